"""A pass counts only with solution and tests in two processes: cheats fail, honest work passes."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codecria.core.evaluation.benchmarks.compare import compare_results
from codecria.core.evaluation.benchmarks.evaluate import Request, check_references, evaluate
from codecria.core.evaluation.benchmarks.results import meta_path
from codecria.core.sandbox.config import Confirm, SandboxConfig
from codecria.core.sandbox.sandbox import choose_tier
from codecria.core.sandbox.verdict import Limits
from codecria.core.self_instruct import items
from codecria.core.self_instruct.execute import choose, execute
from codecria.core.self_instruct.journal import journal
from codecria.core.self_instruct.parse import Code, checked_tests
from codecria.core.self_instruct.report import outcomes
from codecria.data.errors import UserError

EXPECTED = 8077
# Each replaces the solution of "def f(x)", whose answer to 1 is EXPECTED.
CHEATS = {
    "a metaclass whose classes are equal to everything": (
        "class M(type):\n    def __eq__(cls, other): return True\n"
        "    def __ne__(cls, other): return False\n    def __hash__(cls): return 0\n"
        "class A(metaclass=M): pass\ndef f(x): return A\n"
    ),
    "an object that is equal to everything": (
        "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()\n"
    ),
    "a subclass of int": (
        "class E(int):\n    def __eq__(self, other): return True\ndef f(x): return E(0)\n"
    ),
    "methods of builtin types replaced by their raw dicts": (
        "import gc\n"
        "class Grab:\n    def __eq__(self, other):\n        self.held = other\n"
        "        return True\n    def __hash__(self): return 1\n"
        "def raw(kind):\n    g = Grab()\n    kind.__dict__ == g\n    return g.held\n"
        "raw(int)['__eq__'] = lambda a, b: True\n"
        "raw(int)['__ne__'] = lambda a, b: False\n"
        "import sys\ngetattr(sys, '_clear_type_cache', lambda: None)()\n"
        "def f(x): return 0\n"
    ),
    "ctypes under another name": (
        "import sys, importlib.util, importlib.machinery\n"
        "try:\n    import _ctypes as c\nexcept BaseException:\n    c = None\n"
        "    for folder in sys.path:\n        try:\n"
        "            finder = importlib.machinery.FileFinder(folder,"
        " (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES))\n"
        "            spec = finder.find_spec('_ctypes')\n"
        "            if spec: c = importlib.util.module_from_spec(spec)\n"
        "        except BaseException: pass\n"
        "import re\nfound = 0\n"
        "def f(x): return found\n"
    ),
    "a subinterpreter": (
        "try:\n    import _xxsubinterpreters as sub\n    n = sub.create()\n"
        "    sub.run_string(n, 'import os, sys')\nexcept BaseException: pass\n"
        "def f(x): return 0\n"
    ),
    "copyreg's dispatch table": (
        "import copyreg, copy\nclass E:\n    def __eq__(self, other): return True\n"
        "copyreg.pickle(int, lambda n: (E, ()))\n"
        "copy._deepcopy_dispatch[int] = lambda n, memo: E()\n"
        "copy._deepcopy_dispatch[list] = lambda n, memo: E()\n"
        "def f(x): return 0\n"
    ),
    "registration with an abstract class": (
        "import numbers, collections.abc\nclass E:\n    def __eq__(self, other): return True\n"
        "numbers.Number.register(E)\ncollections.abc.Sequence.register(E)\ndef f(x): return E()\n"
    ),
    "the constants of its caller": (
        "import sys\ndef f(x):\n    frame, best = sys._getframe(), 0\n    while frame:\n"
        "        for v in frame.f_code.co_consts:\n"
        "            if type(v) is int: best = max(best, v)\n"
        "        frame = frame.f_back\n    return best\n"
    ),
    "the constants of a test function handed in": (
        "def f(x):\n    if callable(x):\n"
        "        return max(v for v in x.__code__.co_consts if type(v) is int)\n    return 0\n"
    ),
    "the tests' globals by a function handed in": (
        "def f(x):\n    if callable(x):\n        return x.__globals__['EXPECTED']\n    return 0\n"
    ),
    "the tests' globals by a format string": (
        "def f(x):\n    if callable(x):\n"
        "        return int('{0.__globals__[EXPECTED]}'.format(x))\n    return 0\n"
    ),
    "an exit with the right status": "import os\ndef f(x): os._exit(0)\n",
    "assertions that are none": (
        "import builtins\nbuiltins.AssertionError = StopIteration\ndef f(x): raise StopIteration\n"
    ),
}
HONEST = {
    "a constant": f"def f(x): return {EXPECTED}\n",
    "an object with an order of its own": (
        f"class N:\n    def __init__(self, n): self.n = n\n    def __lt__(self, o):"
        f" return self.n < o.n\ndef f(x): return min(N({EXPECTED}), N(9999)).n\n"
    ),
    "a class with a metaclass": (
        f"class M(type):\n    def size(cls): return {EXPECTED}\nclass A(metaclass=M): pass\n"
        "def f(x): return A.size()\n"
    ),
    "copy, registered": (
        "import copy, copyreg, numbers\nclass P:\n    def __init__(self, n): self.n = n\n"
        "copyreg.pickle(P, lambda p: (P, (p.n,)))\nnumbers.Number.register(P)\n"
        f"def f(x): return copy.deepcopy(P({EXPECTED})).n\n"
    ),
    "what it is handed": f"def f(x): return x() if callable(x) else {EXPECTED}\n",
    "a generator's sum": f"def f(x): return sum(n for n in ({EXPECTED}, 0))\n",
}
RECORDS = {
    "a value": f"def check(candidate):\n    assert candidate(1) == {EXPECTED}\n",
    "in data": (
        f"import copy\ndef check(candidate):\n    assert copy.deepcopy([candidate(1)]) =="
        f" [{EXPECTED}]\n"
    ),
    "a function handed in": (
        f"EXPECTED = {EXPECTED}\ndef given(): return EXPECTED + 0 * {EXPECTED}\n"
        "def check(candidate):\n    assert candidate(given) == EXPECTED\n"
    ),
}


def record(name: str) -> dict[str, str]:
    return {
        "task_id": f"Own/{name}",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "canonical_solution": f"    return x() if callable(x) else {EXPECTED}\n",
        "test": RECORDS[name],
    }


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(request: Request) -> dict[str, Any]:
    [summary] = evaluate(request, note=lambda _: None, show=lambda _: None)
    return summary


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))

    def score(
        records: list[dict[str, str]], sources: list[str], **sandbox: Any
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}.jsonl"
        request = Request(
            task="humaneval",
            problems=write_lines(tmp_path / "problems.jsonl", list(records)),
            samples=write_lines(
                tmp_path / "samples.jsonl",
                [
                    {"task_id": one["task_id"], "solution": source}
                    for one in records
                    for source in sources
                ],
            ),
            out=out,
            sandbox=SandboxConfig(workers=2, **sandbox),
            cache=tmp_path / "cache",
        )
        summary = run(request)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return summary, sorted(lines, key=lambda line: (line["task_id"], line["sample"]))

    return score


def test_no_cheat_counts_and_honest_work_beside_it_does(
    scored: Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]],
) -> None:
    records = [record(name) for name in RECORDS]
    sources = [*CHEATS.values(), *HONEST.values()]
    summary, lines = scored(records, sources)
    for line in lines:
        name = [*CHEATS, *HONEST][line["sample"]]
        assert line["passed"] is (name in HONEST), (name, line)
        assert line["verdict"]["isolated"] or not line["passed"]
    assert summary["unconfirmed"] == 0
    assert summary["sandbox"]["confirm"] == "passes"


def test_without_confirmation_passes_are_unconfirmed_and_the_result_says_so(
    scored: Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]],
) -> None:
    summary, lines = scored([record("a value")], [HONEST["a constant"]], confirm=Confirm.OFF)
    assert lines[0]["passed"]
    assert not lines[0]["verdict"]["isolated"]
    assert (summary["sandbox"]["confirm"], summary["unconfirmed"]) == ("off", 1)
    assert "1 passes are unconfirmed" in summary["labels"][-1]


def test_tests_that_need_an_installed_package_run_and_the_result_names_it(
    scored: Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]],
) -> None:
    one = record("a value")
    one["test"] = "import sortedcontainers\n" + one["test"]
    with pytest.raises(UserError, match="sortedcontainers"):
        scored([one], [HONEST["a constant"]])
    summary, lines = scored([one], [HONEST["a constant"]], packages=("sortedcontainers",))
    assert [line["passed"] for line in lines] == [True]
    assert summary["unconfirmed"] == 0
    version = importlib.metadata.version("sortedcontainers")
    assert summary["sandbox"]["packages"] == {"sortedcontainers": version}


# Tests that look at the type of an object: no right solution passes them in two processes.
UNSPLIT = record("a value") | {
    "task_id": "Own/unsplit",
    "prompt": "class Point:\n    x = 1\n\n\ndef f(x):\n",
    "canonical_solution": "    return Point()\n",
    "test": "def check(candidate):\n    assert type(candidate(1)).__name__ == 'Point'\n",
}


def test_what_its_own_reference_cannot_split_is_counted_apart(
    scored: Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]], tmp_path: Path
) -> None:
    right = UNSPLIT["prompt"] + UNSPLIT["canonical_solution"]
    known = [UNSPLIT, record("a value")]
    sources = [right, "def f(x): return 1\n", HONEST["a constant"]]
    summary, lines = scored(known, sources)
    by_task = {(line["task_id"], line["sample"]): line for line in lines}
    unconfirmed = by_task["Own/unsplit", 0]
    assert unconfirmed["passed"] is False
    assert unconfirmed["result"].startswith("unconfirmed: ")
    assert unconfirmed["verdict"]["outcome"] == "passed"
    assert by_task["Own/a value", 2]["result"] == "passed"
    assert summary["results"] == {"failed": 4, "passed": 1, "unconfirmed": 1}
    assert summary["unconfirmed"] == 1
    assert summary["references"]["unconfirmed"] == ["Own/unsplit"]
    assert summary["pass"]["pass@1"]["value"] == pytest.approx(1 / 6)
    assert summary["pass_with_unconfirmed"]["pass@1"]["value"] == pytest.approx(2 / 6)
    [out] = tmp_path.glob("out-*.jsonl")
    assert json.loads(meta_path(out).read_text())["summary"]["unconfirmed"] == 1
    compared = compare_results(out, out)
    assert compared["unconfirmed"] == {"a": 1, "b": 1}
    assert compared["pass"]["pass@1"]["a"] == pytest.approx(1 / 6)


def test_references_that_cannot_be_split_pass_and_are_named(tmp_path: Path) -> None:
    problems = write_lines(tmp_path / "problems.jsonl", [UNSPLIT, record("a value")])
    request = Request(
        task="humaneval",
        problems=problems,
        sandbox=SandboxConfig(workers=1),
        cache=tmp_path / "cache",
    )
    for _ in range(2):  # run, and known from the cache
        found = check_references(request, note=lambda _: None, show=lambda _: None)
        assert (found["passed"], found["unconfirmed"]) == (2, ["Own/unsplit"])


# --- self-instruct --------------------------------------------------------------------------------


def test_self_instruct_keeps_no_cheat(tmp_path: Path) -> None:
    tests, _ = checked_tests(f"assert f(1) == {EXPECTED}\nassert [f(2)] == [{EXPECTED}]")
    tested = items.Tested.of(items.Question.of("Return the number.", "here"), tests, 0)
    sources = [*CHEATS.values(), *HONEST.values()]
    codes = [Code(source, str(number)) for number, source in enumerate(sources)]
    group = [items.Candidate.of(tested, number, code) for number, code in enumerate(codes)]
    known: dict[str, Any] = {}
    with journal(tmp_path / "verdicts.jsonl") as verdicts:
        execute(
            [tested],
            group,
            SandboxConfig(limits=Limits(wall_s=30.0)),
            verdicts,
            known,
            again=0,
            show=lambda _: None,
        )
    choice = choose(group, known, again=0)
    assert choice.passed == len(HONEST)
    assert choice.kept is group[len(CHEATS)]
    counts = outcomes(known.values())
    assert counts["passed"] == len(HONEST)
    assert counts.get("unconfirmed", 0) >= 1, "cheats that one process believes are counted apart"
