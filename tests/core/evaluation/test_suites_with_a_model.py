"""A model is asked in every form of the executed suites, scored, stopped and resumed.

The model has random weights: what it writes is nothing, but every part of the way runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.core.evaluation.benchmarks.evaluate import Request, evaluate
from codecria.core.evaluation.benchmarks.protocol import Changes
from codecria.core.evaluation.benchmarks.registry import TASKS
from codecria.core.sandbox.config import SandboxConfig
from codecria.core.sandbox.sandbox import choose_tier
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

_CASES = {"inputs": ["1\n"], "outputs": ["1\n"]}
_LCB = [{"input": "1", "output": "1", "testtype": "stdin"}]
_CRUX = {"id": "sample_0", "code": "def f(x):\n    return x", "input": "1", "output": "1"}
RECORDS: dict[str, dict[str, Any]] = {
    "apps": {
        "problem_id": 1, "question": "Echo.", "solutions": ["print(input())"],
        "input_output": _CASES, "difficulty": "interview", "starter_code": "",
    },
    "humaneval-plus": {
        "task_id": "HumanEval/0", "prompt": "def f(x):\n", "entry_point": "f",
        "canonical_solution": "    return x\n", "base_input": [[1]], "plus_input": [[2]],
        "atol": 0,
    },
    "mbpp-plus": {
        "task_id": "Mbpp/2", "prompt": '"""\nEcho.\nassert f(1) == 1\n"""\n', "entry_point": "f",
        "canonical_solution": "def f(x):\n    return x\n", "base_input": [[1]],
        "plus_input": [[2]], "atol": 0,
    },
    "cruxeval-o": _CRUX,
    "cruxeval-i": _CRUX,
    "livecodebench": {
        "question_id": "a", "question_content": "Echo.", "contest_date": "2024-01-01T00:00:00",
        "difficulty": "easy", "starter_code": "", "public_test_cases": json.dumps(_LCB),
        "private_test_cases": "[]", "metadata": "{}",
    },
    "multipl-e": {
        "name": "HumanEval_0_f", "language": "sh", "prompt": "#!/bin/bash\nf() {\n",
        "tests": '}\nset -e\n[[ $(f 1) = "1" ]]\n', "stop_tokens": ["\n}"],
    },
    "humaneval-x": {
        "task_id": "Python/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n",
        "test": "assert f(1) == 1\n",
    },
    "safim": {
        "task_id": "block_1", "lang": "python", "prompt": "x = # TODO: Your code here\nprint(x)\n",
        "eval_prompt": "x = {{completion}}\nprint(x)\n", "ground_truth": "input()",
        "unit_tests": [{"input": "1\n", "output": ["1"]}],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_model_is_asked_in_every_form_and_resumed(
    name: str, tokenizer: Tokenizer, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))
    problems, out = tmp_path / "problems.jsonl", tmp_path / "out.jsonl"
    problems.write_text(json.dumps(RECORDS[name]) + "\n")
    task = TASKS[name]
    notes: list[str] = []
    if task.forms[0] == "psm":
        tokenizer = tokenizer.extend(tmp_path / "extended.model")
    request = Request(
        task=name,
        problems=problems,
        model=random_model(tokenizer, max_context=1_024),
        forms=task.forms,
        changes=Changes(samples=2, temperature=0.7, max_tokens=6),
        out=out,
        sandbox=SandboxConfig(workers=1),
    )
    found = evaluate(request, note=notes.append, show=lambda _: None)
    assert [one["protocol"]["form"] for one in found] == list(task.forms)
    for one in found:
        assert one["protocol"]["preset"] == task.preset
        assert one["samples"] == 2
        assert one["references"]["passed"] == one["references"]["run"]
        assert one["protocol"]["sources"][1] == task.sources[one["protocol"]["form"]]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["sample"] for line in lines] == [0, 1]
    assert all(line["result"] for line in lines)
    before = out.read_bytes()
    out.write_bytes(before[: before.index(b"\n") + 5])  # torn in the second line
    again = evaluate(request, note=notes.append, show=lambda _: None)
    assert [one["results"] for one in again] == [one["results"] for one in found]
    assert [json.loads(line)["sample"] for line in out.read_text().splitlines()] == [0, 1]
