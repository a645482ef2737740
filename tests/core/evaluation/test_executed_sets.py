"""APPS, LiveCodeBench, CRUXEval and EvalPlus: their formats, and right and wrong answers to each.

The problems are made up here in the shape of the published files.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.core.evaluation.benchmarks import (
    apps,
    case_runner,
    cruxeval,
    evalplus,
    livecodebench,
    references,
)
from codecria.core.evaluation.benchmarks.evaluate import Request, evaluate
from codecria.core.evaluation.benchmarks.execution import Job, program_of, result_of, run_all
from codecria.core.evaluation.benchmarks.problems import Problem
from codecria.core.evaluation.benchmarks.registry import TASKS
from codecria.core.evaluation.benchmarks.tasks import Choice, answer_to, load, select
from codecria.core.sandbox.sandbox import Sandbox, choose_tier
from codecria.core.sandbox.verdict import Limits, Outcome, Verdict
from codecria.data.errors import UserError

BENCHMARKS = Path(__file__).parents[3].parent / "shared" / "benchmarks"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))
    with Sandbox(limits=Limits(wall_s=10.0), workers=2) as opened:
        yield opened


def judge(sandbox: Sandbox, problem: Problem, *solutions: str) -> list[Verdict]:
    """The verdicts of solutions, whole or behind the prompt, in order."""
    wall_s = references.limit_s(problem, None, None)
    jobs = [Job(program_of(problem, problem.source(one)), wall_s) for one in solutions]
    return [verdict for _, verdict in sorted(run_all(sandbox, jobs))]


# --- APPS -----------------------------------------------------------------------------------------

SUM = {
    "problem_id": 7,
    "question": "Add the numbers.",
    "solutions": json.dumps(["n = int(input())\nprint(sum(map(int, input().split())))"]),
    "input_output": json.dumps({"inputs": ["2\n1 2\n", "3\n1 2 3\n"], "outputs": ["3\n", "6\n"]}),
    "difficulty": "introductory",
    "url": "",
    "starter_code": "",
}
DOUBLE = {
    "problem_id": 8,
    "question": "Double a list.",
    "solutions": [
        "def double(x):\n    return x",
        "class Solution:\n    def double(self, x):\n        return [2 * n for n in x]",
    ],
    "input_output": {"fn_name": "double", "inputs": [[[1, 2]], [[]]], "outputs": [[[2, 4]], [[]]]},
    "metadata": {"difficulty": "interview"},
    "starter_code": "def double(x):\n\t",
}


# What the original's harness says of these (testing_util.py), worked out by hand from its steps.
PRINTED = {
    "the same": ("1 2\n3\n", "1 2\n3\n", True),
    "white space at the ends": ("  1 2  \n3", "1 2\n3\n\n", True),
    "another end of lines": ("1\r\n2\r\n", "1\n2\n", True),
    "empty lines between": ("1\n\n2\n", "1\n2\n", True),
    "spaces within a line, by words": ("1  2\n", "1 2\n", True),
    "close numbers": ("0.3333333\n", "0.33333334\n", True),
    "numbers of three digits, several in a line": ("0.12341 5\n", "0.1234 5\n", True),
    "another order of lines": ("2\n1\n", "1\n2\n", True),
    "another order of words": ("2 1\n", "1 2\n", True),
    "a line twice": ("1\n1\n2\n", "1\n2\n", True),
    "words in other lines": ("1\n2\n", "1 2\n", False),
    "another number": ("1.01\n", "1\n", False),
    "another digit in several": ("0.125 5\n", "0.123 5\n", False),
    "a word more": ("1 2 3\n", "1 2\n", False),
    "another case": ("Yes\n", "YES\n", False),
    "nothing": ("", "1\n", False),
}


@pytest.mark.parametrize(("printed", "expected", "right"), PRINTED.values(), ids=PRINTED)
def test_printed_text_is_compared_as_by_the_original(
    printed: str, expected: str, *, right: bool
) -> None:
    assert case_runner.apps_printed(printed, expected) is right
    assert case_runner.apps_printed(printed, expected.split("\n")) is right


RETURNED = {
    "a value": (3, 3, True),
    "a value in a list of its own": (3, [3], True),
    "a tuple": ((1, 2), [1, 2], True),
    "tuples in a list": ([(1, 2)], [[[1, 2]]], True),
    "another order": ([2, 1], [1, 2], False),
    "close is not equal": (0.30000001, 0.3, False),
    "none": (None, [3], False),
}


@pytest.mark.parametrize(("found", "expected", "right"), RETURNED.values(), ids=RETURNED)
def test_returned_values_are_compared_as_by_the_original(
    found: Any, expected: Any, *, right: bool
) -> None:
    assert case_runner.apps_returned(found, expected) is right


PROGRAMS = {
    "reads lines": ("n = int(input())\nprint(sum(map(int, input().split())))", ""),
    "reads descriptor 0": ("d = open(0).read().split()\nprint(sum(map(int, d[1:])))", ""),
    "reads bytes": (
        "import sys\nd = sys.stdin.buffer.read().split()\n"
        "sys.stdout.buffer.write(str(sum(map(int, d[1:]))).encode())",
        "",
    ),
    "writes to descriptor 1": (
        "import os, sys\nd = sys.stdin.read().split()\nos.write(1, b'%d' % sum(map(int, d[1:])))",
        "",
    ),
    "leaves by exit": ("d = open(0).read().split()\nprint(sum(map(int, d[1:])))\nexit()", ""),
    "returns at the top": ("input()\nprint(sum(map(int, input().split())))\nreturn", ""),
    "is the main module": (
        "def main():\n    input()\n    print(sum(map(int, input().split())))\n"
        "if __name__ == '__main__':\n    main()",
        "",
    ),
    "runs in a thread": (
        "import threading\ndef f():\n    input()\n    print(sum(map(int, input().split())))\n"
        "threading.Thread(target=f).start()",
        "",
    ),
    "uses what the harness imports": (
        "input()\nprint(sum(map(int, Counter(input().split()).elements())))",
        "",
    ),
    "wrong": ("input()\nprint(max(map(int, input().split())) + 1)", "case 2 of 2: expected '6"),
    "reads too much": ("input(); input()\nprint(input())", "EOFError"),
    "does not parse": ("print(", "SyntaxError"),
    "ends with a status": ("print(3)\nexit(1)", "exit status 1"),
    "leaves for good": ("import os\nos._exit(0)", "ended before its last statement"),
    "prints ahead of reading": ("print(3 if input() == '2' else 6)", ""),
}


@pytest.mark.parametrize(("source", "why"), PROGRAMS.values(), ids=PROGRAMS)
def test_programs_run_as_scripts_and_fail_for_what_they_do(
    sandbox: Sandbox, source: str, why: str
) -> None:
    [verdict] = judge(sandbox, apps.parse(SUM), source)
    if why:
        assert verdict.outcome is Outcome.FAILED
        assert why in verdict.detail
    else:
        assert verdict.confirmed, verdict


def test_a_case_has_a_time_limit_of_its_own_and_says_which(sandbox: Sandbox) -> None:
    problem = apps.parse(SUM).with_case_limit(0.4)
    assert references.limit_s(problem, None, None) == pytest.approx(4.8)
    slow = "n = int(input())\nwhile n == 3: pass\nprint(3)"
    stubborn = (
        "n = int(input())\nimport time\ntry:\n    while n == 3: pass\n"
        "except BaseException: pass\nprint(sum(map(int, input().split())))"
    )
    first, second = judge(sandbox, problem, slow, stubborn)
    assert result_of(first) == "timed out: case 2 of 2 took longer than 0.4 s"
    assert second.outcome is not Outcome.PASSED


def test_functions_are_called_with_arguments(sandbox: Sandbox) -> None:
    problem = apps.parse(DOUBLE)
    assert (problem.task_id, problem.level, problem.entry_point) == (
        "APPS/8",
        "interview",
        "double",
    )
    right, plain, wrong, order = judge(
        sandbox,
        problem,
        DOUBLE["solutions"][1],  # type: ignore[index]
        "def double(x):\n    return tuple(n + n for n in x)",
        "def double(x):\n    return x * 2",
        "def double(x):\n    return [2 * n for n in reversed(x)]",
    )
    assert right.confirmed
    assert plain.confirmed
    assert "case 1 of 2: expected [[2, 4]], got [1, 2, 1, 2]" in wrong.detail
    assert "got [4, 2]" in order.detail


def test_keys_of_objects_are_integers_again(sandbox: Sandbox) -> None:
    cases = {"fn_name": "f", "inputs": [[{"1": 2}]], "outputs": [[{"1": 3}]]}
    problem = apps.parse({**DOUBLE, "input_output": cases})
    right, wrong = judge(
        sandbox,
        problem,
        "def f(x):\n    return {k + 0: v + 1 for k, v in x.items()}",
        "def f(x):\n    return {str(k): v + 1 for k, v in x.items()}",
    )
    assert right.confirmed
    assert wrong.outcome is Outcome.FAILED


def test_long_integers_stay_what_they_are(sandbox: Sandbox) -> None:
    digits = "7" * 5_000
    written = '{"fn_name": "f", "inputs": [[1]], "outputs": [' + digits + "]}"
    right, wrong = judge(
        sandbox,
        apps.parse({**DOUBLE, "input_output": written}),
        "def f(x):\n    return (10**5000 - 1) // 9 * 7",
        "def f(x):\n    return (10**5000 - 1) // 9 * 7 + 1",
    )
    assert right.confirmed
    assert wrong.outcome is not Outcome.PASSED


def test_another_solution_stands_in_for_one_that_is_wrong(sandbox: Sandbox) -> None:
    found = references.check([apps.parse(DOUBLE)], sandbox, folder=None)
    assert found["APPS/8"].passed
    wrong = apps.parse({**DOUBLE, "solutions": DOUBLE["solutions"][:1]})  # type: ignore[index]
    assert references.check([wrong], sandbox, folder=None)["APPS/8"].passed is False


CHEATS = {
    "equal to all": (
        "class Any_(list):\n    def __eq__(self, o): return True\n"
        "def double(x):\n    return Any_(x)"
    ),
    "another comparison": (
        "import __main__\n"
        "def apps_returned(found, expected): return True\ndef run_cases(*a): pass\n"
        "def double(x):\n    return x"
    ),
    "another clock": (
        "import signal\nsignal.setitimer = signal.signal = lambda *a: None\n"
        "def double(x):\n    return x"
    ),
    "the frames above": (
        "import sys\ndef double(x):\n    f = sys._getframe()\n    while f:\n"
        "        for v in list(f.f_locals.values()) + list(f.f_globals.values()):\n"
        "            if isinstance(v, list) and v and isinstance(v[0], tuple):\n"
        "                for given, wanted in v:\n"
        "                    if given == [x]: return wanted[0]\n"
        "        f = f.f_back\n    return x"
    ),
}


@pytest.mark.parametrize("source", CHEATS.values(), ids=CHEATS)
def test_a_solution_that_knows_the_runner_does_not_pass(sandbox: Sandbox, source: str) -> None:
    [verdict] = judge(sandbox, apps.parse(DOUBLE), source)
    assert verdict.outcome is not Outcome.PASSED


def test_prompts_show_two_examples_and_the_guidance_of_the_problem() -> None:
    program, function = apps.parse(SUM), apps.parse(DOUBLE)
    prompt = apps.prompt(program, "few-shot")
    assert prompt.count("\nA: ```") == 3
    assert prompt.endswith(
        "Q: Add the numbers.\n\nPlease read from and write to standard IO.\nA: ```\n"
    )
    assert "def double(x):\n\nPlease use the provided function signature." in function.question
    assert apps.chat_question(function).startswith("Double a list.")
    answer = "Here:\n```python\nclass Solution:\n    def double(self, x):\n        return x\n```"
    assert "double = Solution().double" in answer_to(function, answer).text
    assert answer_to(program, "```python\nprint(input())\n```").text.strip() == "print(input())"


def test_the_originals_folders_are_read_too(tmp_path: Path) -> None:
    home = tmp_path / "0007"
    home.mkdir()
    (home / "question.txt").write_text("Add the numbers.")
    (home / "input_output.json").write_text(str(SUM["input_output"]))
    (home / "solutions.json").write_text(str(SUM["solutions"]))
    (home / "metadata.json").write_text('{"difficulty": "introductory"}')
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(SUM) + "\n")
    assert load(TASKS["apps"], tmp_path).digest() == load(TASKS["apps"], file).digest()
    empty = tmp_path / "none"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no question\.txt"):
        load(TASKS["apps"], empty)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("difficulty", "hard"),
        ("input_output", ""),
        ("input_output", '{"inputs": [], "outputs": []}'),
    ],
)
def test_a_record_without_cases_or_level_is_refused(tmp_path: Path, field: str, value: str) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({**SUM, field: value}) + "\n")
    with pytest.raises(UserError, match=r"one\.jsonl:1"):
        load(TASKS["apps"], file)


def test_the_published_sample_passes_and_each_level_has_its_score(tmp_path: Path) -> None:
    file = BENCHMARKS / "apps_sample/apps_sample.jsonl"
    if not file.is_file():
        pytest.skip("the published files are not here")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    samples = [
        {"task_id": f"APPS/{int(one['problem_id'])}", "solution": text}
        for one in records
        for text in (one["solutions"][0], "print(input())")
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in samples))
    request = Request(task="apps", problems=file, samples=path)
    [found] = evaluate(request, note=lambda _: None, show=lambda _: None)
    assert found["pass"]["pass@1"]["value"] == 0.5
    assert {level: one["tasks"] for level, one in found["by_level"].items()} == {
        "introductory": 2,
        "interview": 2,
        "competition": 1,
    }
    assert all(one["pass"]["pass@1"]["value"] == 0.5 for one in found["by_level"].values())
    assert found["unconfirmed"] == 0
    few = replace(request, choice=Choice(levels=("interview",)), partial=True)
    [found] = evaluate(few, note=lambda _: None, show=lambda _: None)
    assert found["tasks"] == 2
    assert found["partial"] == ["2 of 5 tasks asked for"]


# --- LiveCodeBench --------------------------------------------------------------------------------


def lcb(
    cases: list[tuple[str, str]], *, name: str = "", packed: bool = False, **fields: str
) -> dict[str, Any]:
    """A row of the published data set."""
    kind = "functional" if name else "stdin"
    tests = [{"input": a, "output": b, "testtype": kind} for a, b in cases]
    private = json.dumps(tests[1:])
    if packed:
        private = base64.b64encode(zlib.compress(pickle.dumps(private))).decode()
    return {
        "question_title": "t", "question_content": "Do it.", "platform": "atcoder",
        "question_id": "abc1_a", "contest_id": "abc1", "contest_date": "2024-05-04T00:00:00",
        "starter_code": "class Solution:\n    def f(self, x: int) -> int:" if name else "",
        "difficulty": "easy", "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": private, "metadata": json.dumps({"func_name": name} if name else {}),
        **fields,
    }  # fmt: skip


LINES = {
    "the same": ("1 2\n3\n", "1 2\n3", True),
    "spaces at the ends": (" 1 2 \n3", "1 2\n3", True),
    "decimals": ("1.50 2\n", "1.5 2.0", True),
    "a digit": ("0.333333333", "0.3333333333", False),
    "large numbers": ("50000000000000000", "50000000000000001", False),
    "another order": ("2\n1", "1\n2", False),
    "an empty line": ("1\n\n2", "1\n2", False),
    "words": ("a  b", "a b", False),
}


@pytest.mark.parametrize(("printed", "expected", "right"), LINES.values(), ids=LINES)
def test_lines_are_compared_as_by_livecodebench(
    printed: str, expected: str, *, right: bool
) -> None:
    assert case_runner.lines_printed(printed, expected) is right


@pytest.mark.parametrize("packed", [False, True])
def test_livecodebench_programs_and_functions(sandbox: Sandbox, *, packed: bool) -> None:
    program = livecodebench.parse(lcb([("2\n", "4\n"), ("3\n", "6\n")], packed=packed))
    right, wrong = judge(sandbox, program, "print(2 * int(input()))", "print(4)")
    assert right.confirmed
    assert "case 2 of 2" in wrong.detail
    function = livecodebench.parse(lcb([("2", "4"), ("3", "6")], name="f", packed=packed))
    right, wrong = judge(
        sandbox,
        function,
        "class Solution:\n    def f(self, x: int) -> int:\n        return 2 * x",
        "class Solution:\n    def f(self, x: int) -> int:\n        return x * x",
    )
    assert right.confirmed
    assert "case 2 of 2: expected 6, got 9" in wrong.detail
    assert (program.date, program.level, program.reference) == ("2024-05-04", "easy", None)
    assert livecodebench.prompt(function, "few-shot").count("### Question") == 2


def test_packed_cases_that_would_run_something_are_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("ran",))

    record = lcb([("1", "1")])
    record["private_test_cases"] = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=r"one\.jsonl:1.*builtins\.print"):
        load(TASKS["livecodebench"], file)


def test_problems_are_chosen_by_their_dates(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    rows = [
        lcb([("1", "1")], question_id=f"q{day}", contest_date=f"2024-05-0{day}T10:00:00")
        for day in range(1, 6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(TASKS["livecodebench"], file)

    def days(**choice: str) -> list[str]:
        chosen = select(TASKS["livecodebench"], found, Choice(**choice))  # type: ignore[arg-type]
        return [problem.task_id[-1] for problem in chosen]

    assert days() == list("12345")
    assert days(since="2024-05-02", until="2024-05-04") == list("234")
    assert days(until="2024-05-01") == ["1"]
    with pytest.raises(UserError, match="no such problem") as caught:
        days(since="2025-01-01")
    assert "2024-05-01 to 2024-05-05" in str(caught.value.hint)


# --- CRUXEval -------------------------------------------------------------------------------------

CRUX = {"code": "def f(x, y=1):\n    return [x] * y", "input": "'a', y=2", "output": "['a', 'a']",
        "id": "sample_3"}  # fmt: skip
OUTPUTS = {
    "['a', 'a']": True,
    "['a'] * 2": True,  # an expression, as the original accepts
    "['a']": False,
    "f('a', y=2)": False,  # the call itself
    "('a', 'a')": False,
    "__import__('os')._exit(0)": False,
    "])": False,
}
INPUTS = {
    "f('a', y=2)": True,
    "f('a', 2)": True,
    "f('a')": False,
    "['a', 'a']": False,
    "f(*['a'], **{'y': 2})": True,
}


def test_outputs_are_judged_where_there_is_no_f(sandbox: Sandbox) -> None:
    problem = cruxeval.parse_output(CRUX)
    for verdict, right in zip(judge(sandbox, problem, *OUTPUTS), OUTPUTS.values(), strict=True):
        assert verdict.confirmed is right, verdict


def test_any_input_counts_that_returns_the_output(sandbox: Sandbox) -> None:
    problem = cruxeval.parse_input(CRUX)
    for verdict, right in zip(judge(sandbox, problem, *INPUTS), INPUTS.values(), strict=True):
        assert verdict.confirmed is right, verdict


@pytest.mark.parametrize("parse", [cruxeval.parse_input, cruxeval.parse_output])
def test_the_references_of_cruxeval_pass(sandbox: Sandbox, parse: Callable[[Any], Problem]) -> None:
    problem = parse(CRUX)
    assert references.check([problem], sandbox, folder=None)[problem.task_id].passed


@pytest.mark.parametrize("parse", [cruxeval.parse_input, cruxeval.parse_output])
def test_a_record_whose_output_is_not_what_the_function_returns_is_found(
    sandbox: Sandbox, parse: Callable[[Any], Problem]
) -> None:
    problem = parse(CRUX | {"output": "['a']"})
    assert references.check([problem], sandbox, folder=None)[problem.task_id].passed is False


def test_the_expression_is_found_in_what_is_said() -> None:
    output, given = cruxeval.parse_output(CRUX), cruxeval.parse_input(CRUX)
    for said in (
        "assert f('a', y=2) == ['a', 'a']\n",
        "Sure. [ANSWER]\nassert f('a', y=2) == ['a', 'a']\n[/ANSWER] Done.",
        "[ANSWER]['a', 'a'][/ANSWER]",
        "```python\nassert f('a', y=2) == ['a', 'a']\n```",
    ):
        assert cruxeval.expression(output, said) == "['a', 'a']", said
    assert cruxeval.expression(given, "assert f('b') == ['b']") == "f('b')"
    assert cruxeval.prompt(given, "few-shot").count("assert f(??) == ") == 3
    assert cruxeval.prompt(output, "few-shot").endswith("== ??\n[/PYTHON]\n[ANSWER]\n")


# --- EvalPlus -------------------------------------------------------------------------------------

MEAN = {
    "task_id": "HumanEval/900",
    "prompt": "def mean(x):\n",
    "entry_point": "mean",
    "canonical_solution": "    return sum(x) / len(x)\n",
    "base_input": [[[1, 2]]],
    "plus_input": [[[0.1, 0.2, 0.3]], [[5]]],
    "atol": 0,
    "contract": "",
}
PAIRS = {
    "task_id": "Mbpp/901",
    "prompt": '"""\nSwap.\nassert swap((1, 2)) == (2, 1)\n"""\n',
    "entry_point": "swap",
    "canonical_solution": "def swap(p):\n    return (p[1], p[0])\n",
    "base_input": [[[1, 2]]],
    "plus_input": [[["a", [3]]]],
    "atol": 0,
    "assertion": "assert swap((1, 2)) == (2, 1)",
}


def test_evalplus_runs_base_and_plus_inputs(sandbox: Sandbox) -> None:
    problem = evalplus.parse_humaneval(MEAN)
    right, close, wrong, base = judge(
        sandbox,
        problem,
        "    return sum(x) / len(x)\n",
        "    return sum(n / len(x) for n in x)\n",
        "    return sum(x) / 2\n",
        "    return 0\n",
    )
    assert right.confirmed
    assert close.confirmed
    assert "plus input 2" in wrong.detail
    assert "base input 1: expected 1.5, got 0" in base.detail


def test_arguments_have_the_types_that_assertions_show(sandbox: Sandbox) -> None:
    problem = evalplus.parse_mbpp(PAIRS)
    right, wrong = judge(
        sandbox,
        problem,
        "def swap(p):\n    assert type(p) is tuple\n    return p[::-1]\n",
        "def swap(p):\n    return list(p[::-1])\n",
    )
    assert right.confirmed
    assert "expected (2, 1), got [2, 1]" in wrong.detail
    assert references.check([problem], sandbox, folder=None)["Mbpp/901"].passed


SPECIAL = {
    "a set": ("Diff", "def Diff(x):\n    return [1, 2]\n", ["return [2, 1, 1]"], ["return [1]"]),
    "whether": ("check_str", "def check_str(x):\n    return 1\n", ["return True"], ["return None"]),
    "a constant": (
        "sum_div",
        "def sum_div(x):\n    return x[0]\n",
        ["return x[0]", "return 0"],
        ["return 1"],
    ),
}


@pytest.mark.parametrize(("name", "code", "right", "wrong"), SPECIAL.values(), ids=SPECIAL)
def test_some_problems_have_a_rule_of_their_own(
    sandbox: Sandbox, name: str, code: str, right: list[str], wrong: list[str]
) -> None:
    record = {**PAIRS, "entry_point": name, "canonical_solution": code, "prompt": '"""\n"""\n',
              "assertion": "", "base_input": [[[3]], [[4]]]}  # fmt: skip
    if name == "check_str":
        record["canonical_solution"] = "def check_str(x):\n    return True\n"
    problem = evalplus.parse_mbpp(record)
    bodies = [f"def {name}(x):\n    {body}\n" for body in (*right, *wrong)]
    verdicts = judge(sandbox, problem, *bodies)
    assert [v.confirmed for v in verdicts] == [True] * len(right) + [False] * len(wrong), verdicts


def test_rows_of_the_data_sets_are_read_too() -> None:
    row = {
        "task_id": 3,
        "code": "def g(x):\n    return x\n",
        "prompt": "Same.",
        "source_file": "",
        "test_imports": [],
        "test_list": ["assert g(1) == 1"],
        "test": "assert g(2) == 2",
    }
    problem = evalplus.parse_mbpp(row)
    assert (problem.task_id, problem.entry_point) == ("Mbpp/3", "g")
    assert problem.before == '"""\nSame.\nassert g(1) == 1\n"""\n'
    assert problem.tests == "assert g(2) == 2"
