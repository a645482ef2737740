"""pass@k over temperature: one evaluation for each, resumable; GSM8K answered by programs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.core.evaluation.benchmarks import gsm8k_programs
from codecria.core.evaluation.benchmarks.evaluate import Request, check_references
from codecria.core.evaluation.benchmarks.protocol import Changes
from codecria.core.evaluation.benchmarks.sweep import sweep
from codecria.data.tokenizer.tokenizer import Tokenizer

ADD = {
    "task_id": "Own/0",
    "prompt": "def add(a, b):\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}


def ignore(_: object) -> None:
    """For notes and progress that a test does not look at."""


def test_every_temperature_has_a_result_of_its_own(
    tokenizer: Tokenizer, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    problems = tmp_path / "own.jsonl"
    problems.write_text(json.dumps(ADD) + "\n")
    request = Request(
        task="humaneval",
        problems=problems,
        model=random_model(tokenizer, max_context=128),
        changes=Changes(samples=2, max_tokens=4),
    )
    found = sweep(request, (0.1, 0.3), tmp_path / "swept", note=ignore, show=ignore)
    assert [one["protocol"]["temperature"] for one in found] == [0.1, 0.3]
    assert [one["protocol"]["preset"] for one in found] == ["sweep-0.1", "paper-sampled"]
    assert [one["samples"] for one in found] == [2, 2]
    names = sorted(path.name for path in (tmp_path / "swept").glob("*.jsonl"))
    assert names == ["humaneval-T0.1.jsonl", "humaneval-T0.3.jsonl"]
    notes: list[str] = []
    assert sweep(request, (0.1, 0.3), tmp_path / "swept", note=notes.append, show=ignore) == found
    assert sum("going on" in note for note in notes) == 2  # nothing is drawn again


def test_programs_are_judged_by_the_number_that_they_return(tmp_path: Path) -> None:
    problems = tmp_path / "test.jsonl"
    problems.write_text(json.dumps({"question": "How\nmany?", "answer": "#### 1,200.5"}) + "\n")
    found = check_references(
        Request(task="gsm8k-programs", problems=problems), note=ignore, show=ignore
    )
    assert (found["passed"], found["references"]) == (1, 1)
    problem = gsm8k_programs.parse(json.loads(problems.read_text()))
    space: dict[str, object] = {}
    exec(problem.source("    return 2401 / 2\n") + problem.tests, space)
    with pytest.raises(AssertionError):
        exec(problem.source("    return 1200\n") + problem.tests, space)
    shown = gsm8k_programs.prompt(problem, "few-shot")
    assert shown.count("def solution():") == 9
    assert shown.endswith("# Question: How many?\ndef solution():\n")
