"""Samples made while others are judged: the same ones, errors included, and nothing goes on."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.core.evaluation.benchmarks.ahead import Stopped, one_ahead
from codecria.core.evaluation.benchmarks.evaluate import Request, evaluate
from codecria.core.evaluation.benchmarks.protocol import Changes
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer


def test_items_come_in_order_and_the_next_is_made_meanwhile() -> None:
    second = threading.Event()

    def make(_: Stopped) -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    with one_ahead(make) as items:
        assert next(items) == 1
        assert second.wait(60)  # made though nobody has asked for it
        assert list(items) == [2]


def test_an_error_is_raised_behind_the_items_before_it() -> None:
    def make(_: Stopped) -> Iterator[int]:
        yield 1
        raise UserError("no more")

    with one_ahead(make) as items:
        assert next(items) == 1
        with pytest.raises(UserError, match="no more"):
            next(items)


def test_nothing_goes_on_behind_the_block() -> None:
    looks = []

    def make(stopped: Stopped) -> Iterator[int]:
        number = 0
        while not stopped():
            looks.append(number)
            yield number
            number += 1

    with one_ahead(make) as items:
        next(items)
    before = len(looks)
    assert not any(thread.name.startswith("codecria-samples") for thread in threading.enumerate())
    assert len(looks) == before


def test_an_evaluation_is_the_same_either_way(
    tokenizer: Tokenizer, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    problems = tmp_path / "own.jsonl"
    record = {
        "prompt": "def add(a, b):\n",
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    problems.write_text(
        "".join(json.dumps({"task_id": f"Own/{n}", **record}) + "\n" for n in range(3))
    )
    request = Request(
        task="humaneval",
        problems=problems,
        model=random_model(tokenizer, max_context=128),
        preset="table5",
        changes=Changes(samples=2, max_tokens=6),
        batch=2,
    )
    lines = []
    for beside in (False, True):
        out = tmp_path / f"{beside}.jsonl"
        evaluate(replace(request, beside=beside, out=out), note=lambda _: None, show=lambda _: None)
        kept = [json.loads(line) for line in out.read_text().splitlines()]
        lines.append([(line["task_id"], line["sample"], line["completion"]) for line in kept])
    assert sorted(lines[0]) == sorted(lines[1])
    assert len(lines[0]) == 6
