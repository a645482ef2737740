"""SAFIM: programs in four languages run for each unit test, and API calls compared as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.core.evaluation.benchmarks import references, safim
from codecria.core.evaluation.benchmarks.evaluate import Request, evaluate
from codecria.core.evaluation.benchmarks.execution import job_of, result_of, run_all
from codecria.core.evaluation.benchmarks.problems import Problem
from codecria.core.evaluation.benchmarks.registry import TASKS
from codecria.core.evaluation.benchmarks.tasks import load
from codecria.core.sandbox import languages
from codecria.core.sandbox.sandbox import Sandbox, choose_tier
from codecria.core.sandbox.verdict import Limits, Outcome
from codecria.data.errors import UserError

# language: (program with HOLE where the code is missing, right, wrong)
PROGRAMS = {
    "python": (
        "n = int(input())\nfor _ in range(n):\n    a, b = map(int, input().split())\n    HOLE\n",
        "print(a + b)",
        "print(a - b)",
    ),
    "cpp": (
        "#include <iostream>\nusing namespace std;\nint main() {\n    int n, a, b;\n    cin >> n;\n"
        "    while (n--) {\n        cin >> a >> b;\n        HOLE\n    }\n    exit(0);\n}\n",
        "cout << a + b << endl;",
        "cout << a - b << endl;",
    ),
    "java": (
        "import java.util.Scanner;\npublic class Sum {\n    public static void main(String[] x) {\n"
        "        Scanner in = new Scanner(System.in);\n        int n = in.nextInt();\n"
        "        while (n-- > 0) {\n            int a = in.nextInt(), b = in.nextInt();\n"
        "            HOLE\n        }\n    }\n}\n",
        "System.out.println(a + b);",
        "System.out.println(a - b);",
    ),
    "csharp": (
        "using System;\nclass Sum {\n    static void Main() {\n"
        "        int n = int.Parse(Console.ReadLine());\n        while (n-- > 0) {\n"
        "            var p = Console.ReadLine().Split(' ');\n"
        "            int a = int.Parse(p[0]), b = int.Parse(p[1]);\n            HOLE\n"
        "        }\n    }\n}\n",
        "Console.WriteLine(a + b);",
        "Console.WriteLine(a - b);",
    ),
}
TESTS = [
    {"input": "2\n1 2\n3 4\n", "output": ["3\n7\n"]},
    {"input": "1\n5 0\n", "output": ["6", "5"]},
]


def record(language: str, **fields: Any) -> dict[str, Any]:
    program, right, _ = PROGRAMS[language]
    mark = "# TODO: Your code here" if language == "python" else "/* TODO: Your code here */"
    return {
        "task_id": f"block_{language}",
        "lang": language,
        "prompt": f"Description\n{program.replace('HOLE', mark)}",
        "eval_prompt": program.replace("HOLE", "{{completion}}"),
        "ground_truth": right,
        "unit_tests": json.dumps(TESTS),
        **fields,
    }


API = {
    "task_id": "api_1", "lang": "python", "prompt": "a = # TODO: Your code here\n",
    "eval_prompt": "a = {{completion}}\n", "ground_truth": "np.ones((n, n), dtype=int)",
    "unit_tests": "[]",
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))
    with Sandbox(limits=Limits(wall_s=10.0), workers=2) as opened:
        yield opened


def judge(sandbox: Sandbox, problem: Problem, *completions: str) -> list[Any]:
    jobs = [job_of(problem, problem.source(c), references.limit_s(problem, None, None))
            for c in completions]  # fmt: skip
    return [verdict for _, verdict in sorted(run_all(sandbox, jobs), key=lambda pair: pair[0])]


@pytest.mark.slow
@pytest.mark.parametrize("language", PROGRAMS)
def test_programs_run_for_each_case_and_any_of_its_outputs_is_right(
    sandbox: Sandbox, language: str
) -> None:
    if language != "python" and (why := languages.missing(language)):
        pytest.skip(why)
    problem = safim.parse(record(language))
    _, right, wrong = PROGRAMS[language]
    first, second, broken = judge(sandbox, problem, right, wrong, "(((")
    assert first.confirmed, first
    assert "case 1 of 2" in second.detail
    assert broken.outcome is Outcome.FAILED
    found = references.check([problem], sandbox, folder=None)[problem.task_id]
    assert found.passed, found


def test_a_run_that_takes_too_long_is_a_timeout(sandbox: Sandbox) -> None:
    if why := languages.missing("cpp"):
        pytest.skip(why)
    problem = safim.parse(record("cpp")).with_case_limit(0.5)
    [verdict] = judge(sandbox, problem, "while (true) ;")
    assert result_of(verdict) == "timed out"


def test_calls_are_compared_white_space_aside_and_in_python_as_calls(sandbox: Sandbox) -> None:
    problem = safim.parse(API)
    texts = {
        "np.ones((n, n), dtype=int)": True,
        "np.ones( (n,n),dtype = int )": True,
        "np.ones((n, n), dtype=float)": False,
        "np.zeros((n, n), dtype=int)": False,
        "codecria_written": False,
    }
    for verdict, right in zip(judge(sandbox, problem, *texts), texts.values(), strict=True):
        assert verdict.confirmed is right, verdict
    java = safim.parse({**API, "lang": "java", "prompt": "x = /* TODO: Your code here */;",
                        "ground_truth": "new A(b)"})  # fmt: skip
    first, second = judge(sandbox, java, "new  A( b )", "new A(c)")
    assert (first.confirmed, second.confirmed) == (True, False)


def test_the_model_sees_the_prompt_and_the_program_is_made_of_the_other_text() -> None:
    problem = safim.parse(record("cpp"))
    assert problem.fill is not None
    assert problem.fill[0].startswith("Description\n")
    assert problem.source("X;").startswith("#include <iostream>")
    with pytest.raises(ValueError, match="eval_prompt"):
        safim.parse(record("cpp", eval_prompt="none"))


def test_a_file_with_samples_is_scored(tmp_path: Path) -> None:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))
    file, samples = tmp_path / "safim.jsonl", tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (record("python"), API)))
    lines = [
        {"task_id": "block_python", "completion": "print(a + b)"},
        {"task_id": "api_1", "completion": "np.ones(n)"},
    ]
    samples.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert len(load(TASKS["safim"], file).problems) == 2
    request = Request(task="safim", problems=file, samples=samples)
    [found] = evaluate(request, note=lambda _: None, show=lambda _: None)
    assert found["pass"]["pass@1"]["value"] == 0.5
    assert found["unconfirmed"] == 0
