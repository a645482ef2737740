# Two commands: `make demo` trains a small model and completes code with it, `make test` runs the
# tests. Both make their own environment first. On Linux without a GPU, PyTorch's CPU build is
# smaller: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
CODECRIA := $(BIN)/codecria

.DEFAULT_GOAL := help
.PHONY: help venv demo test check format bench completions clean

help:
	@echo "make demo   train a small model on Python's standard library and complete code with it"
	@echo "make test   run the tests"
	@echo "make check  formatting, lint, types"
	@echo "make bench  speed beside SentencePiece and transformers"

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		-c constraints.txt -e '.[test]'
	touch $@

# --- the demo: the chain so far, on code that every Python installation has -----------------------

SIZE ?= small
DEMO ?= demo/$(SIZE)
SOURCE ?= $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('stdlib'))")

ifeq ($(SIZE),ci)
DEMO_SOURCES := json=$(SOURCE)/json email=$(SOURCE)/email http=$(SOURCE)/http
DEMO_VOCAB := 1024
DEMO_MODEL := --size 1m --steps 60 --set context=128 --set batch_tokens=2048
else
DEMO_SOURCES := stdlib=$(SOURCE)
DEMO_VOCAB := 4096
DEMO_MODEL := --size 1m --steps 900 --set context=256 --set batch_tokens=2048 --eval-rows 16
endif

demo: venv
	$(CODECRIA) prepare-data $(DEMO_SOURCES) --train-tokenizer --vocab-size $(DEMO_VOCAB) \
		--out $(DEMO)/shards
	$(CODECRIA) inspect $(DEMO)/shards
	$(CODECRIA) pretrain --data $(DEMO)/shards $(DEMO_MODEL) --out $(DEMO)/run
	$(CODECRIA) inspect $(DEMO)/run
	@printf '\n--- def __init__(self, ...\n'
	$(CODECRIA) generate --model $(DEMO)/run --max-tokens 60 'def __init__(self, '
	@printf '\n--- for i in range( ... (sampled)\n'
	$(CODECRIA) generate --model $(DEMO)/run --max-tokens 60 --temperature 0.7 --top-p 0.95 \
		--seed 1 'for i in range('
	@printf '\n--- from a pipe, as JSON\n'
	printf 'import os\nimport sys\n' | $(CODECRIA) generate - --model $(DEMO)/run \
		--max-tokens 40 --json

# --- for people who change the code ---------------------------------------------------------------

test: venv
	$(BIN)/python -m pytest

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
	rm -rf $(VENV) .typing demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
