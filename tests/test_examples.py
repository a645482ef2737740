"""The example files: the family's Makefile, the dialogs of the demo, the prose of docstrings."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codecria.core.model.config import PAPER_MODELS
from codecria.core.training.recipes import recipe_for
from codecria.data.formats.dialogs import Found, read

EXAMPLES = Path(__file__).parents[1] / "examples"

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-C", str(EXAMPLES), *arguments],
        capture_output=True,
        text=True,
        timeout=900,  # two processes a stage, on two cores that others may use
        check=False,
    )


def stages(commands: str) -> dict[str, tuple[str, str]]:
    """Folder -> (recipe, folder it starts from) of the commands make would run."""
    found = {}
    for line in commands.replace("\\\n", " ").splitlines():
        words = line.split()
        if words[:1] != ["codecria"]:
            continue
        option = dict(itertools.pairwise(words))
        recipe = option.get("--recipe", words[1])
        found[Path(option["--out"]).name] = (recipe, Path(option.get("--init", "")).name)
    return found


@needs_make
@pytest.mark.parametrize("size", [*PAPER_MODELS, "1m"])
def test_the_makefile_is_the_familys_graph(size: str, tmp_path: Path) -> None:
    (tmp_path / "llama2").mkdir()
    (tmp_path / "llama2" / "config.json").touch()
    made = make("-n", "family", f"SIZE={size}", f"LLAMA2={tmp_path / 'llama2'}", "CODE=c", "TEXT=t")
    found = stages(made.stdout)
    assert found["base"][0] == "lcft", made.stderr
    for folder, (recipe, parent) in found.items():
        name = recipe
        if recipe == "lcft" and found[parent][0] == "python":
            name = "lcft-python"
        came = "pretrain" if parent == "llama2" else found[parent][0]
        if came == "lcft" and found[found[parent][1]][0] == "python":
            came = "lcft-python"
        assert came in recipe_for(name, size).follows, f"{folder}: {name} after {came}"
    infills = {parent for recipe, parent in found.values() if recipe == "fim"}
    assert bool(infills) == (size != "34b")


@needs_make
@pytest.mark.slow
def test_the_family_is_made_and_scored_once_by_two_processes(
    warm_python: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON_EXEC", warm_python)  # what torchrun starts
    options = (
        "family",
        "evaluate",
        "PROCESSES=2",
        f"TORCHRUN={warm_python} -m torch.distributed.run",
        f"CODE={shards}",
        f"OUT={tmp_path / 'family'}",
        "ARGS=--steps 2 --set context=64 --set batch_tokens=128 --eval-rows 1 --compile off"
        " --threads 1",
        "STAGES_ARGS=--rows 2 --max-tokens 500 --threads 1",
    )
    first = make(*options)
    assert first.returncode == 0, first.stderr
    made = sorted(path.parents[1].name for path in tmp_path.glob("family/*/model/config.json"))
    assert made == ["base", "code", "fim", "instruct", "llama2", "python", "python-long"]
    for name in made:
        run = json.loads((tmp_path / "family" / name / "run.json").read_text())
        assert run["environment"]["processes"] == 2, name
    scored = json.loads((tmp_path / "family" / "stages.json").read_text())["stages"]
    chain = ["llama2", "fim", "base", "python", "python-long", "instruct"]
    assert [Path(stage["path"]).name for stage in scored] == chain
    second = make(*options)
    assert "codecria.cli" not in second.stdout, "what is finished is not made again"


def test_the_dialogs_are_sound_and_their_code_compiles() -> None:
    found = list(read(EXAMPLES / "dialogs.jsonl"))
    assert all(isinstance(record, Found) for record in found)
    assert len(found) > 60
    for record in found:
        assert isinstance(record, Found)
        for message in record.dialog:
            if re.match(r"(def|class|import) ", message.content):
                ast.parse(message.content)


def test_docstrings_become_documents(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(f'"""{"Long enough to be prose. " * 10}"""\n\nx = 1\n')
    (tmp_path / "short.py").write_text('"""Short."""\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "docstrings.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert record["path"] == "m.txt"
    assert record["text"].startswith("Long enough")


@needs_make
def test_tables_score_every_model_on_what_is_named_and_end_with_the_report(tmp_path: Path) -> None:
    made = make(
        "-n", "tables", "SIZE=7b", f"OUT={tmp_path}", f"CODE={tmp_path}", "HUMANEVAL=he.jsonl",
        "INFILLING=fill.jsonl", "MULTIPLE=humaneval-cpp.jsonl humaneval-js.jsonl",
    )  # fmt: skip
    scored = re.findall(r"evaluate (\S+) --problems (\S+) --model \S+/(\S+) ", made.stdout)
    models = ("base", "python-long", "instruct")
    assert sorted(scored) == sorted(
        [("humaneval", "he.jsonl", model) for model in models]
        + [("multipl-e", f"humaneval-{x}.jsonl", model) for model in models for x in ("cpp", "js")]
        + [("infilling", "fill.jsonl", "base")]
    )
    commands = [line for line in made.stdout.splitlines() if line.startswith("codecria")]
    assert "evaluate report" in commands[-1]
