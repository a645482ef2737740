"""Results of several checkpoints in one table; correlations computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codecria.core.evaluation.correlation import (
    correlate,
    fisher_interval,
    pearson,
    scores_by_language,
)
from codecria.core.evaluation.report import collect
from codecria.data.errors import UserError


def result(folder: Path, name: str, **changes: Any) -> Path:
    """A result as `evaluate` leaves it, as far as reports read it."""
    meta = {
        "task": "humaneval",
        "title": "HumanEval",
        "model": "a",
        "model_digest": "da",
        "protocol": {"form": "completion", "temperature": 0.0},
        "problems": {"file": "he.jsonl"},
        "languages": ["python"],
        "summary": {"pass": {"pass@1": {"value": 0.25, "low": 0.1, "high": 0.4}}, "partial": []},
    } | changes
    path = folder / name
    path.write_text("")
    (folder / f"{name}.meta.json").write_text(json.dumps(meta))
    return path


def test_models_are_rows_and_an_empty_cell_says_how_to_fill_it(tmp_path: Path) -> None:
    first = result(tmp_path, "a.jsonl")
    result(tmp_path, "b.jsonl", model="b", model_digest="db")
    result(
        tmp_path,
        "maths.jsonl",
        task="gsm8k",
        title="GSM8K",
        problems={"files": ["test.jsonl"]},
        summary={
            "score": "solved",
            "scores": {"solved": {"value": 0.5, "low": 0.4, "high": 0.6}},
            "partial": ["6 of 10 questions asked"],
        },
    )
    found = collect([tmp_path])
    assert list(found.models.values()) == ["a", "b"]
    assert [column.title for column in found.columns] == ["HumanEval pass@1", "GSM8K solved"]
    [(model, column, command)] = found.missing()
    assert (model, column.title) == ("b", "GSM8K solved")
    assert command == "codecria evaluate gsm8k --problems test.jsonl --model b --out FILE"
    table = found.as_markdown()
    assert "| a | 25.0 [10.0, 40.0] | 50.0* [40.0, 60.0] |" in table
    assert "| b | 25.0 [10.0, 40.0] | - |" in table
    assert command in table
    assert found.as_json()["models"][0]["scores"]["HumanEval pass@1"]["source"] == str(first)


def test_forms_temperatures_and_languages_are_columns_of_their_own(tmp_path: Path) -> None:
    result(tmp_path, "a.jsonl")
    result(tmp_path, "b.jsonl", protocol={"form": "chat", "temperature": 0.8})
    result(tmp_path, "c.jsonl", task="multipl-e", title="MultiPL-E", languages=["cpp"])
    assert [column.title for column in collect([tmp_path]).columns] == [
        "HumanEval pass@1",
        "HumanEval pass@1 (chat, T 0.8)",
        "MultiPL-E pass@1 (cpp)",
    ]


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    result(tmp_path, "a.jsonl")
    result(tmp_path, "again.jsonl")
    (tmp_path / "open.jsonl.meta.json").write_text(json.dumps({"task": "x"}))
    found = collect([tmp_path])
    assert len(found.cells) == 1
    assert any("again.jsonl is passed over" in remark for remark in found.remarks)
    assert any("open.jsonl is not complete" in remark for remark in found.remarks)


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no result"):
        collect([tmp_path / "none.jsonl"])
    with pytest.raises(UserError, match="no complete result"):
        collect([tmp_path])


def test_pearsons_coefficient_and_its_interval_by_hand() -> None:
    x, y = [0.1, 0.2, 0.4, 0.5], [0.2, 0.1, 0.5, 0.4]
    # deviations -.2 -.1 .1 .2 and -.1 -.2 .2 .1: products .02 + .02 + .02 + .02, squares .1 each
    assert pearson(x, y) == pytest.approx(0.8)
    assert pearson(x, y) == pytest.approx(float(np.corrcoef(x, y)[0, 1]))
    low, high = fisher_interval(0.8, 4)
    half = 1.959963984540054 / math.sqrt(4 - 3)
    assert low == pytest.approx(math.tanh(0.5 * math.log(1.8 / 0.2) - half))
    assert high == pytest.approx(math.tanh(0.5 * math.log(1.8 / 0.2) + half))


def test_too_few_or_equal_scores_have_no_coefficient_or_interval() -> None:
    assert pearson([0.5], [0.5]) is None
    assert pearson([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]) is None
    assert fisher_interval(0.5, 3) == (None, None)
    assert fisher_interval(1.0, 9) == (1.0, 1.0)


def test_languages_are_correlated_over_the_checkpoints_that_have_both(tmp_path: Path) -> None:
    for n, (python, cpp) in enumerate([(0.1, 0.1), (0.2, 0.3), (0.4, 0.5)]):
        for language, value in (("python", python), ("cpp", cpp)):
            result(
                tmp_path,
                f"{language}{n}.jsonl",
                model_digest=f"d{n}",
                languages=[language],
                summary={"pass": {"pass@1": {"value": value}}},
            )
    result(tmp_path, "more.jsonl", model_digest="d9", languages=["python"])
    [found] = correlate(scores_by_language([tmp_path]))
    assert {found.a, found.b} == {"python", "cpp"}
    assert found.n == 3
    assert found.r == pytest.approx(float(np.corrcoef([0.1, 0.2, 0.4], [0.1, 0.3, 0.5])[0, 1]))
    assert found.low is None
