"""Files in the published formats that are damaged or unusual: right problems, or one message."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from codecria.core.evaluation.benchmarks import problems
from codecria.core.evaluation.benchmarks.registry import TASKS
from codecria.core.evaluation.text.questions import QuestionSet, gather
from codecria.core.evaluation.text.tasks import TASKS as TEXT_TASKS
from codecria.data.errors import UserError


def packed(value: bytes) -> str:
    return base64.b64encode(zlib.compress(value)).decode()


class Runs:
    """What a pickle of it would run when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


CASES = [{"input": "2\n", "output": "4\n", "testtype": "stdin"}]
LIVECODEBENCH = {
    "question_id": "1873_A",
    "question_content": "Read n, print 2n.",
    "contest_date": "2024-09-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps(CASES),
    "private_test_cases": packed(pickle.dumps(json.dumps(CASES))),
    "metadata": "{}",
}
EVALPLUS = {
    "task_id": "HumanEval/900",
    "prompt": "def above(xs, t):\n",
    "entry_point": "above",
    "canonical_solution": "    return sum(x > t for x in xs)\n",
    "base_input": [[[1, 5], 2]],
    "plus_input": [[[], 0]],
    "atol": 0,
}
SAFIM = {
    "task_id": "block_1",
    "lang": "python",
    "prompt": "n = int(input())\n# TODO: Your code here\n",
    "eval_prompt": "n = int(input())\n{{completion}}\n",
    "ground_truth": "print(n + 1)",
    "unit_tests": json.dumps([{"input": "1", "output": ["2"]}]),
}
APPS = {
    "problem_id": 4000,
    "question": "Add two numbers.",
    "solutions": "",
    "input_output": json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]}),
    "difficulty": "introductory",
}
RECORDS: dict[str, dict[str, Any]] = {
    "livecodebench": LIVECODEBENCH,
    "humaneval-plus": EVALPLUS,
    "safim": SAFIM,
    "apps": APPS,
}


def read(task: str, path: Path) -> tuple[problems.Problem, ...]:
    return problems.read(path, TASKS[task].parse, TASKS[task].folder).problems


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


DAMAGED = {
    "no base64": ("livecodebench", {"private_test_cases": "!!!"}, "private_test_cases: "),
    "not compressed": (
        "livecodebench",
        {"private_test_cases": base64.b64encode(b"x").decode()},
        "private_test_cases: ",
    ),
    "no pickle": ("livecodebench", {"private_test_cases": packed(b"zzz")}, "private_test_cases: "),
    "a program": (
        "livecodebench",
        {"private_test_cases": packed(pickle.dumps(Runs()))},
        "the private cases name builtins.print",
    ),
    "cases of no kind": ("livecodebench", {"public_test_cases": "[1]"}, "is damaged"),
    "no date": ("livecodebench", {"contest_date": "September"}, "isoformat string"),
    "no case": ("livecodebench", {"public_test_cases": "[]", "private_test_cases": ""}, "0 inputs"),
    "an argument alone": ("humaneval-plus", {"plus_input": [3]}, "no list of arguments"),
    "no inputs": ("humaneval-plus", {"plus_input": None}, "no field 'plus_input'"),
    "no place": ("safim", {"lang": "java"}, r"its prompt \(java\) holds '/\* TODO: Your code here"),
    "two places": ("safim", {"eval_prompt": "{{completion}}{{completion}}"}, "2 times"),
    "tests of no kind": ("safim", {"unit_tests": [[1]]}, "is damaged"),
    "fewer outputs": (
        "apps",
        {"input_output": json.dumps({"inputs": ["1 2\n"], "outputs": []})},
        "1 inputs and 0 outputs",
    ),
    "another level": ("apps", {"difficulty": "hard"}, "no field 'difficulty'"),
}


@pytest.mark.parametrize(("task", "change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_problem_is_one_message_with_its_line(
    tmp_path: Path, task: str, change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "problems.jsonl", RECORDS[task] | change)
    with pytest.raises(UserError, match=message) as refused:
        read(task, path)
    assert refused.value.message.startswith(f"{path}:1: ")


@pytest.mark.parametrize("task", RECORDS)
def test_the_same_problems_however_the_file_is_written(tmp_path: Path, task: str) -> None:
    record = RECORDS[task] | {"an extra field": [1]}
    plain = read(task, written(tmp_path / "plain.jsonl", record))
    line = json.dumps(record).encode()
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "array.json").write_text(json.dumps([record]))
    for name in ("marked.jsonl", "packed.jsonl.gz", "array.json"):
        assert read(task, tmp_path / name) == plain, name
    twice = written(tmp_path / "twice.jsonl", record, record)
    with pytest.raises(UserError, match="stands in line 1 too"):
        read(task, twice)


def test_a_missing_tolerance_is_none(tmp_path: Path) -> None:
    without = written(tmp_path / "none.jsonl", EVALPLUS | {"atol": None})
    assert read("humaneval-plus", without) == read(
        "humaneval-plus", written(tmp_path / "zero.jsonl", EVALPLUS)
    )


# --- text -----------------------------------------------------------------------------------------

HEAD = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
ROW = 'A,Myths,Is the sky green?,No,No; It is blue,"Yes; It is green",x\n'


def questions(task: str, path: Path) -> QuestionSet:
    read = TEXT_TASKS[task].read
    suffixes = TEXT_TASKS[task].suffixes
    return gather([path], lambda file: read(file, "choice"), suffixes=suffixes)


def test_truthfulqa_reads_the_same_questions_however_the_file_is_written(tmp_path: Path) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text(HEAD + ROW)
    (tmp_path / "marked.csv").write_bytes(
        b"\xef\xbb\xbf" + (HEAD + ROW).replace("\n", "\r\n").encode()
    )
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress((HEAD + ROW).encode()))
    expected = questions("truthfulqa", plain).questions
    assert expected[0].right[0] == "No."
    for name in ("marked.csv", "packed.csv.gz"):
        assert questions("truthfulqa", tmp_path / name).questions == expected, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + ROW.replace('"Yes; It is green"', ""), ":2: the record has no field 'Incorrect"),
        (HEAD + ROW.replace(",No,", ", ,"), ":2: the record has no field 'Best Answer'"),
        (HEAD + ROW + ROW, "'Is the sky green\\?' is in it twice"),
        (HEAD, "no question was found"),
        ("", "no question was found"),
        (HEAD + ROW.replace("green", "gr\ufffdn"), "UTF-8"),
    ],
)
def test_a_damaged_truthfulqa_is_one_message(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "TruthfulQA.csv"
    path.write_bytes(content.encode("utf-8").replace("\ufffd".encode(), b"\xe9"))
    with pytest.raises(UserError) as refused:
        questions("truthfulqa", path)
    told = f"{refused.value.message} {refused.value.hint}"
    assert message.replace("\\?", "?") in told


def test_toxigens_prompts_have_neither_a_mark_nor_a_carriage_return(tmp_path: Path) -> None:
    path = tmp_path / "hate_women_1k.txt"
    path.write_bytes("\ufeff- one\\n- two\\n-\r\n- three\\n-\r\n".encode())
    found = questions("toxigen", path).questions
    assert [q.before for q in found] == ["- one\n- two\n-", "- three\n-"]


@pytest.mark.parametrize("value", [{"Left": {"A": "one prompt"}}, {"Left": ["A"]}, [1]])
def test_other_json_is_no_file_of_bold(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "political_prompt.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="is no file of BOLD's prompts"):
        questions("bold", path)
