"""A repository's tests decide about completions: which ones reach a span, and who passes them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from codecria.core.evaluation.repository.driver import PROBE, probed
from codecria.core.evaluation.repository.judge import counts, try_answers
from codecria.core.evaluation.repository.kept import answered, open_kept
from codecria.core.evaluation.repository.measure import Answer, differences, summary
from codecria.core.evaluation.repository.spans import Span
from codecria.core.evaluation.repository.suites import (
    Asked,
    files_of_tests,
    is_of_tests,
    parse_packages,
    parse_tests,
)
from codecria.core.evaluation.repository.trial import (
    Config,
    Trial,
    Trialled,
    open_trial,
    refusal,
)
from codecria.core.sandbox import bwrap, jail
from codecria.core.sandbox.config import SandboxConfig
from codecria.data.corpus.history import History
from codecria.data.errors import UsageError, UserError
from tests.git_repository import git

CONFINED = [
    pytest.param("native", marks=pytest.mark.skipif(bool(jail.problem()), reason="no jail here")),
    pytest.param(
        "bwrap",
        marks=[
            pytest.mark.skipif(bool(bwrap.bwrap_problem()), reason=bwrap.bwrap_problem()),
            pytest.mark.slow,
        ],
    ),
]
SHAPES = '''"""Shapes."""
from __future__ import annotations

SIDES = 3 + 1


def area(width: int, height: int) -> int:
    """The area of a rectangle."""
    found = width * height
    return found


def unused(value: int) -> int:
    return value + SIDES


def far(value: int) -> int:
    return value * 7


def logged(value: int) -> int:
    print("not looked at")
    return value
'''
TESTS = """import socket
import unittest

import pytest
from shapes import area, far, logged

seen = []


def test_area():
    assert area(2, 3) == 6


@pytest.mark.parametrize("side", [1, "é"])
def test_sides(side):
    assert area(side, 2) == side * 2


class OldStyle(unittest.TestCase):
    def test_logged(self):
        self.assertEqual(logged(3), 3)
        seen.append(1)


def test_needs_another_test():
    assert far(3) == 21
    assert seen


def test_needs_the_network():
    socket.create_connection(("127.0.0.1", 9))
"""
LINES = {
    "area": "found = width * height",
    "sides": "SIDES = 3 + 1",
    "unused": "return value + SIDES",
    "far": "return value * 7",
    "logged": 'print("not looked at")',
    "head": "def area(width: int, height: int) -> int:",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tested") / "repo"
    (folder / "src").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "src" / "shapes.py").write_text(SHAPES)
    (folder / "tests" / "test_shapes.py").write_text(TESTS)
    (folder / "tests" / "test_broken.py").write_text("import no_such_module\n")
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--no-such"\n')
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    return folder


def span(repository: Path, name: str, path: str = "src/shapes.py") -> Span:
    text = (repository / path).read_text()
    wanted = LINES.get(name, name)
    assert text.count(wanted) == 1, wanted
    prefix, _, suffix = text.partition(wanted)
    return Span(
        id=name, kind="line", commit=git(repository, "rev-parse", "HEAD"), path=path,
        language="Python", prefix=prefix, middle=wanted, suffix=suffix,
    )  # fmt: skip


@pytest.fixture(scope="module", params=CONFINED)
def trial(repository: Path, request: pytest.FixtureRequest) -> Iterator[Trial]:
    config = Config(sandbox=SandboxConfig(tier=request.param, workers=2), seconds=60.0)
    with History.open(repository) as history, open_trial(history, config) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(repository: Path, trial: Trial) -> dict[str, Trialled]:
    spans = [span(repository, name) for name in LINES]
    spans.append(span(repository, "assert area(2, 3) == 6", "tests/test_shapes.py"))
    kept: dict[str, Trialled] = {}
    result = trial.reference(spans, known={}, keep=kept.update)
    assert kept == result
    assert trial.reference(spans, known=kept, keep=kept.clear) == result, "known ones run again"
    assert kept == result
    return result


def test_the_tests_of_a_span_are_those_that_pass_and_reach_it(found: dict[str, Trialled]) -> None:
    # Kills: failing tests kept, tests that notice nothing, tests that need others, no coverage.
    ids = [f"tests/test_shapes.py::{name}" for name in ("test_area", "test_sides[1]")]
    assert found["area"].by == "coverage"
    assert {*ids} <= {*found["area"].tests}
    assert len(found["area"].tests) == 3
    assert found["head"].tests == found["area"].tests
    assert found["sides"].left_out == "its tests pass without it" or found["sides"].by == "file"
    assert found["unused"].left_out == "no test reaches it"
    assert found["far"].left_out == "its tests do not pass every time, or not alone"
    assert found["logged"].left_out == "its tests pass without it"
    assert found["assert area(2, 3) == 6"].left_out == "it is part of the tests"
    assert counts(found)["left_out"]["no test reaches it"] == 1


# The first test that reaches the span is right to pass (6 is the area); the others are cheated.
LIES = {
    "leaves": "import sys; sys.exit(0)",
    "leaves at once": "import os; getattr(os, '_ex' + 'it')(0)",
    "names pytest": "import pytest; pytest.Function.runtest = lambda self: None; found = 6",
    "changes pytest": (
        "import sys; m = sys.modules['_py' + 'test.python'];"
        " m.Function.runtest = lambda self: None; found = 6"
    ),
    "changes what calls": (
        "import sys; m = sys.modules['_py' + 'test.runner'];"
        " m.call_and_report.__defaults__ = (); m.CallInfo = int; found = 6"
    ),
    "changes the error": "import sys; sys.modules['built' + 'ins'].AssertionError = int; found = 6",
    "replaces tests": (
        "import sys; m = sys.modules['test_shapes'];"
        " m.test_area = m.test_sides = lambda *_: None; found = 6"
    ),
    "skips": "import sys; sys.modules['py' + 'test'].skip('later')",
    "adds a plugin": """import sys
    class Evil:
        def pytest_pyfunc_call(self): return True
    frame = getattr(sys, '_get' + 'frame')()
    while 'item' not in getattr(frame, 'f_lo' + 'cals'): frame = getattr(frame, 'f_ba' + 'ck')
    manager = getattr(frame, 'f_lo' + 'cals')['item'].config.pluginmanager
    if not manager.has_plugin('evil'): manager.register(Evil(), 'evil')
    found = 6""",
}


def test_who_computes_the_same_passes_and_who_lies_does_not(
    repository: Path, trial: Trial, found: dict[str, Trialled]
) -> None:
    # Kills: exit status 0 for a pass, pytest's own word for a pass, a hang for a failure.
    said = {
        "the same": "found = height * width",
        "as written": LINES["area"],
        "wrong": "found = width + height",
        "no Python": "found = = 3",
        "endless": "while True: pass",
        "large": "found = len(bytearray(1 << 40))",
        "writes": "open('tests/test_shapes.py', 'w'); found = width * height",
        **LIES,
    }
    tests = found["area"]
    one = span(repository, "area")
    outcomes: dict[str, tuple[str, str]] = {}
    trial.judge(
        (
            (
                replace(one, id=name),
                replace(tests, seconds=1.5) if name == "endless" else tests,
                text,
            )
            for name, text in said.items()
        ),
        lambda name, outcome, detail: outcomes.update({name: (outcome, detail)}),
    )
    passed = {name for name, (outcome, _) in outcomes.items() if outcome == "passed"}
    assert passed == {"the same", "as written"}, outcomes
    assert outcomes["endless"][0] == "timeout"
    assert outcomes["names pytest"][0] == "refused"
    for name in ("changes pytest", "adds a plugin"):
        assert "means of testing were changed" in outcomes[name][1], (name, outcomes)


def test_unittest_runs_where_it_is_asked_for(repository: Path) -> None:
    if jail.problem():
        pytest.skip("no jail here")
    config = Config(
        asked=parse_tests("python -m unittest tests/test_plain.py"),
        sandbox=SandboxConfig(tier="native", workers=1),
        seconds=30.0,
    )
    folder = repository.with_name("plain")
    (folder / "tests").mkdir(parents=True)
    (folder / "shapes.py").write_text(SHAPES)
    (folder / "tests" / "test_plain.py").write_text(
        "import unittest\nimport shapes\n\n\nclass T(unittest.TestCase):\n"
        "    def test_area(self):\n        self.assertEqual(shapes.area(2, 5), 10)\n"
        "    @unittest.skip('no')\n    def test_far(self):\n        shapes.far(1)\n"
    )
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    one = span(folder, "area", "shapes.py")
    with History.open(folder) as history, open_trial(history, config) as trial:
        found = trial.reference([one, span(folder, "far", "shapes.py")], known={}, keep=dict)
        assert found["area"].tests == ("test_plain.T.test_area",)
        assert found["far"].left_out == "no test reaches it"
        said: list[str] = []
        for text in ("found = height * width", "found = width + height"):
            trial.judge([(one, found["area"], text)], lambda _, outcome, __: said.append(outcome))
        assert said == ["passed", "failed"]


def test_probes_leave_a_file_as_it_was_but_for_what_they_note() -> None:
    text = (
        '"""Doc."""\nfrom __future__ import annotations\n\n\nclass A:\n    """B."""\n\n'
        "    def f(self, x):\n        if x:\n            return 1\n        else:\n"
        "            y = (\n                2\n            )\n        return y\n"
    )
    wanted = [[0, 0, 0], [7, 10, 10], [8, 13, 13], [9, 8, 8]]
    hits: list[int] = []
    space = {PROBE: hits.append}
    exec(compile(probed(text, wanted), "x.py", "exec"), space)
    a = space["A"]
    assert space["__doc__"] == "Doc."
    assert a.__doc__ == "B."
    assert hits == [9], "the head of f is executed"
    hits.clear()
    assert a().f(1) == 1
    assert sorted(hits) == [-1, 7, 9]
    hits.clear()
    assert a().f(0) == 2
    assert sorted(hits) == [-1, 8, 9]


def test_what_tests_may_be() -> None:
    assert parse_tests("auto") == Asked()
    assert parse_tests("tests/unit/ docs").paths == ("tests/unit", "docs")
    asked = parse_tests("/venv/bin/python3.12 -m pytest tests -k 'a and b'")
    assert asked == Asked("pytest", ("tests",), ("-k", "a and b"))
    assert parse_tests("-k fast").options == ("-k", "fast")
    for wrong in ("make test", "tox -e py", "", "unittest -v", "'"):
        with pytest.raises(UsageError):
            parse_tests(wrong)
    files = ["a.py", "tests/test_a.py", "b_test.py", "tests/data.py", "venv/x/test_y.py"]
    assert files_of_tests(files, Asked()) == ["b_test.py", "tests/test_a.py"]
    assert files_of_tests(files, Asked(paths=("tests",))) == ["tests/test_a.py"]
    assert files_of_tests(files, Asked(paths=("a.py",))) == ["a.py"]
    assert is_of_tests("pkg/conftest.py")
    assert is_of_tests("tests/data.py")
    assert not is_of_tests("pkg/testify.py")


def test_packages_are_names_or_folders(tmp_path: Path) -> None:
    assert parse_packages(["numpy", "attrs"]).names == ("numpy", "attrs")
    assert parse_packages([str(tmp_path)]).folders == (tmp_path,)
    (tmp_path / "pyvenv.cfg").touch()
    (tmp_path / "lib" / "python2.7" / "site-packages").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"python2\.7"):
        parse_packages([str(tmp_path)])
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    fitting = tmp_path / "lib" / own / "site-packages"
    (fitting / "pytest").mkdir(parents=True)
    (fitting / "pytest" / "fast.so").touch()
    found = parse_packages([str(tmp_path)])
    assert (found.folders, found.compiled, found.has("pytest")) == ((fitting,), True, True)
    with pytest.raises(UsageError, match="is no folder"):
        parse_packages([str(tmp_path / "gone")])


def test_a_name_that_reaches_the_tests_is_refused_unless_the_file_has_it(repository: Path) -> None:
    one = span(repository, "area")
    assert refusal(one, "import _pytest") == "_pytest"
    assert refusal(one, "found = width * height") == ""
    assert refusal(replace(one, prefix="import pytest\n"), "pytest.approx(1)") == ""


def test_tests_that_were_asked_for_and_are_not_there_are_an_error(repository: Path) -> None:
    config = Config(asked=parse_tests("nowhere"), required=True)
    with open_kept(None, {}) as kept, pytest.raises(UserError, match="there are no tests"):
        try_answers(
            repository, [span(repository, "area")], config, kept, list,
            note=print, stages=contextlib.nullcontext,
        )  # fmt: skip


def test_an_evaluation_that_was_stopped_goes_on_with_what_it_has(
    repository: Path, tmp_path: Path
) -> None:
    # Kills: answers given again, another evaluation's answers taken, a file that stays.
    out = tmp_path / "out.jsonl"
    one = span(repository, "area")
    said = Answer(
        id=one.id, kind="line", said="x", exact=False, similarity=0.5, loss=1.0, tokens=3,
        parses=True, tests="failed",
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt), open_kept(out, {"seed": 1}) as kept:
        kept.add("answer 0", {said.id: asdict(said)})
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="seed: 1 -> 2"), open_kept(out, {"seed": 2}):
        pass
    with open_kept(out, {"seed": 1}) as kept:
        again = answered(kept, "answer 0", tmp_path / "no model", [one], progress=lambda _: None)
    assert again == [said]
    assert not list(tmp_path.iterdir()), "what was kept is no longer needed"
    (row, _) = summary(again)
    assert (row["passes"]["value"], row["tested"]) == (0.0, 1)
    assert differences(again, [replace(said, tests="passed")])[0]["passes"]["value"] == 1.0
    assert differences(again, [replace(said, tests=None)])[0]["passes"] is None
