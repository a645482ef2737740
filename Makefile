# Two commands: `make demo` takes a small model through the whole chain, `make test` runs the tests.
# Both make their own environment first. On Linux without a GPU, PyTorch's CPU build is smaller:
# make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP_ARGS ?=
EXTRAS ?= test
JOBS ?= auto
BIN := $(VENV)/bin
CODECRIA := $(BIN)/codecria

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-round test test-slow check format bench completions clean

help:
	@echo "make demo       take a small model through the whole chain, on Python's standard library"
	@echo "make test       run the tests, but the slow ones"
	@echo "make test-slow  run the slow ones"
	@echo "make check      formatting, lint, types"
	@echo "make bench      speed beside SentencePiece and transformers"

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		-c constraints.txt -e '.[$(EXTRAS)]'
	# As pip does with other packages: where Python may not write, each process would compile them.
	$(BIN)/python -m compileall -q cli core data
	touch $@

# --- the demo: the whole chain, on code and prose that every Python installation has --------------

SIZE ?= small
DEMO ?= demo/$(SIZE)
SOURCE ?= $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('stdlib'))")

ifeq ($(SIZE),ci)
DEMO_SOURCES := json=$(SOURCE)/json email=$(SOURCE)/email http=$(SOURCE)/http
DEMO_VOCAB := 1024
DEMO_STAGE := --set context=128 --set batch_tokens=2048 --eval-rows 8
DEMO_LONG := --set context=512 --set batch_tokens=2048 --eval-rows 2
DEMO_STEPS := 40 40 12 20 10
DEMO_ROUND := --solutions 2
DEMO_SCORE := --max-tokens 32 --limit 8
DEMO_ADAPT := --limit 3 --steps 8 --rehearsal-share 0 --set context=128 --set batch_tokens=1024
else
DEMO_SOURCES := stdlib=$(SOURCE)
DEMO_VOCAB := 4096
DEMO_STAGE := --set context=256 --set batch_tokens=2048 --eval-rows 16
DEMO_LONG := --set context=1024 --set batch_tokens=4096 --eval-rows 4
DEMO_STEPS := 300 900 120 400 120
DEMO_ROUND := --solutions 10
DEMO_SCORE := --max-tokens 48
DEMO_ADAPT := --limit 30 --steps 150 --set context=256 --set batch_tokens=2048
endif
DEMO_TUNE := --dialogs examples/dialogs.jsonl --dialogs $(DEMO)/answered.jsonl \
	--replay $(DEMO)/code=0.06 --replay $(DEMO)/prose=0.02
DEMO_TESTED := $(CODECRIA) evaluate exercises --problems $(DEMO)/held-out.jsonl $(DEMO_SCORE)

# A first model learns to write from docstrings and a little code: it plays Llama 2. The stages of
# Code Llama follow it: infilling, long context, instructions.
demo: venv
	$(CODECRIA) prepare-data $(DEMO_SOURCES) --train-tokenizer --vocab-size $(DEMO_VOCAB) \
		--out $(DEMO)/code
	$(CODECRIA) inspect $(DEMO)/code
	test -f $(DEMO)/prose.jsonl || { $(PYTHON) examples/docstrings.py $(SOURCE) \
		> $(DEMO)/prose.part && mv $(DEMO)/prose.part $(DEMO)/prose.jsonl; }
	$(CODECRIA) prepare-data prose=$(DEMO)/prose.jsonl --tokenizer $(DEMO)/code --out $(DEMO)/prose
	$(CODECRIA) pretrain --data $(DEMO)/prose=0.9 --data $(DEMO)/code=0.1 --size 1m \
		--steps $(word 1,$(DEMO_STEPS)) $(DEMO_STAGE) --out $(DEMO)/base
	$(CODECRIA) fim --init $(DEMO)/base --data $(DEMO)/code=0.85 --data $(DEMO)/prose=0.15 \
		--steps $(word 2,$(DEMO_STEPS)) $(DEMO_STAGE) --out $(DEMO)/infill
	$(CODECRIA) lcft --init $(DEMO)/infill --data $(DEMO)/code=0.85 --data $(DEMO)/prose=0.15 \
		--steps $(word 3,$(DEMO_STEPS)) $(DEMO_LONG) --out $(DEMO)/long
	for split in dialogs=answered train=train held-out=held-out; do \
		$(PYTHON) examples/exercises.py $${split%=*} > $(DEMO)/$${split#*=}.part && \
		mv $(DEMO)/$${split#*=}.part $(DEMO)/$${split#*=}.jsonl || exit 1; done
	$(CODECRIA) instruct --init $(DEMO)/long $(DEMO_TUNE) --set peak_lr=1e-3 \
		--steps $(word 4,$(DEMO_STEPS)) $(DEMO_STAGE) --out $(DEMO)/chat
	$(CODECRIA) inspect $(DEMO)/chat/model
	@printf '\n--- complete: def __init__(self, ...\n'
	$(CODECRIA) generate --model $(DEMO)/long --max-tokens 60 'def __init__(self, '
	@printf '\n--- complete: for i in range( ... (sampled)\n'
	$(CODECRIA) generate --model $(DEMO)/long --max-tokens 60 --temperature 0.7 --top-p 0.95 \
		--seed 1 'for i in range('
	@printf '\n--- from a pipe, as JSON\n'
	printf 'import os\nimport sys\n' | $(CODECRIA) generate - --model $(DEMO)/long \
		--max-tokens 40 --json
	@printf '\n--- answer: Write a function that adds two numbers.\n'
	$(CODECRIA) generate --chat --model $(DEMO)/chat --max-tokens 60 \
		'Write a function that adds two numbers.'
	@printf '\n--- fill the gap in a file\n'
	printf 'def read(path):\n    with open(<FILL_ME>) as file:\n        return file.read()\n' \
		> $(DEMO)/gap.py
	$(CODECRIA) generate --file $(DEMO)/gap.py --diff --model $(DEMO)/long --max-tokens 24
	@printf '\n--- what each stage changed\n'
	$(CODECRIA) evaluate stages $(DEMO)/base $(DEMO)/infill $(DEMO)/long $(DEMO)/chat \
		--data $(DEMO)/code --dialogs examples/dialogs.jsonl
	@printf '\n--- adapt: an adapter for a package that no stage saw, and what it is worth\n'
	$(BIN)/python examples/history.py $$($(BIN)/python -c \
		'import os, typer; print(os.path.dirname(typer.__file__))') $(DEMO)/history
	$(CODECRIA) adapt $(DEMO)/history --init $(DEMO)/infill --since 2026-01-02 $(DEMO_ADAPT) \
		--out $(DEMO)/adapted
	@printf '\n--- exercises in wordings that no stage saw: heads completed, then questions answered\n'
	for stage in base infill long; do $(DEMO_TESTED) --model $(DEMO)/$$stage \
		--out $(DEMO)/$$stage.scores.jsonl || exit 1; done
	$(DEMO_TESTED) --model $(DEMO)/chat --prompt-form chat --out $(DEMO)/chat.scores.jsonl
	@printf '\n--- self-instruct: it answers other exercises, tests filter, it learns what is kept\n'
	$(CODECRIA) self-instruct --model $(DEMO)/chat --tests-file $(DEMO)/train.jsonl \
		--prompts examples/prompts $(DEMO_ROUND) --set solutions_tokens=48 --out $(DEMO)/made
	@if test -s $(DEMO)/made/dialogs.jsonl; then $(MAKE) --no-print-directory demo-round; \
	else echo 'no solution passed its tests: nothing to tune on, so nothing changes'; fi

# More training alone changes a score too, so beside the model that learns what was kept stands one
# that is trained as long without it.
demo-round:
	for run in with=$(DEMO)/made/dialogs.jsonl without=; do \
		kept=$${run#*=}; out=$(DEMO)/$${run%%=*}; \
		$(CODECRIA) instruct --init $(DEMO)/chat --any-init $${kept:+--dialogs} $${kept:+$$kept} \
			$(DEMO_TUNE) --steps $(word 5,$(DEMO_STEPS)) $(DEMO_STAGE) --out $$out && \
		$(DEMO_TESTED) --model $$out --prompt-form chat --out $$out.scores.jsonl || exit 1; done
	@printf '\n--- before (A) and after (B) the round\n'
	$(CODECRIA) evaluate compare $(DEMO)/chat.scores.jsonl $(DEMO)/with.scores.jsonl
	@printf '\n--- trained as long without (A) and with (B) what was kept\n'
	$(CODECRIA) evaluate compare $(DEMO)/without.scores.jsonl $(DEMO)/with.scores.jsonl

# --- for people who change the code ---------------------------------------------------------------

# One process a core; PyTorch in each on one thread, since the cores are taken.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 15

test: venv
	$(PYTEST) -m 'not slow'

test-slow: venv
	$(PYTEST) -m slow

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .typing/codecria
	for part in cli core data; do ln -sfn ../../$$part .typing/codecria/$$part; done
	$(BIN)/mypy -p codecria.cli -p codecria.core -p codecria.data

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

completions: venv
	$(BIN)/python completions/regenerate.py

bench: venv
	$(BIN)/python tests/bench/tokenizer.py
	$(BIN)/python tests/bench/training.py --size 15m --context 512 --rows 8

clean:
	rm -rf .venv .venv-ci .typing demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
