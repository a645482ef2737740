"""Runs a repository's tests inside the sandbox; its text is the program, so it stands alone.

`main` takes what `trial.py` asks for: run these tests, and write what became of each (`report`), or
raise unless exactly those that are expected have passed. With `probes` it also notes which tests
execute which lines: files are compiled with a call before each statement that is asked about.

The code under test runs in this process. It cannot end it early and pass: the sandbox wants the end
reached. What it might change of pytest, unittest and the builtins is compared with what was there
before. This stops what a model may write; it is no proof against a person who knows this file.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.machinery
import json
import os
import sys
import time
import types
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MARK = "\0tests\0"  # ahead of the report
PROBE = "__codecria_reached__"
_MACHINERY = ("_pytest", "pluggy", "pytest", "unittest", "builtins")
_CALLABLE = (property, staticmethod, classmethod)


class Failed(Exception):
    """The tests do not decide for the code."""


def main(spec: dict[str, Any]) -> None:
    """Run tests as asked for.

    Args:
        spec: `tree` the repository's folder; `paths` to import from; `packages` likewise, last;
            `backend` pytest or unittest; `files` of tests; `options` for pytest; `wanted` the ids
            of tests to run, or None for all; `probes` by file, each [number, first line, last];
            `seconds` after which no more tests are begun; `plugins` that pytest had before, or None
            where that is not compared; `report` whether results are written, else all wanted tests
            must pass.

    Raises:
        Failed: a wanted test did not pass, or the means of testing were changed.
    """
    sys.dont_write_bytecode = True
    sys.argv = [spec["backend"]]
    sys.path[:0] = spec["paths"]
    sys.path += spec["packages"]
    os.chdir(spec["tree"])
    log = _Log(spec)
    if spec["probes"]:
        _install(log, {os.path.join(spec["tree"], k): v for k, v in spec["probes"].items()})  # noqa: PTH118
    run = _run_pytest if spec["backend"] == "pytest" else _run_unittest
    before = _machinery(spec["backend"])
    run(spec, log)
    changed = _changed(before)
    if spec["report"]:
        found = {"tests": log.outcomes, "reach": log.reach(), "plugins": log.plugins}
        sys.__stdout__.write(f"\n{MARK}{json.dumps(found | {'changed': changed})}\n")  # type: ignore[union-attr]
        return
    bad = [f"{name} {log.outcomes.get(name, ['did not run'])[0]}" for name in spec["wanted"]]
    bad = [line for line in bad if not line.endswith(" passed")]
    if bad:
        raise Failed(f"{len(bad)} of {len(spec['wanted'])} tests: {bad[0]}")
    if changed:
        raise Failed(f"the means of testing were changed: {changed[0]}")
    if spec["plugins"] is not None and log.plugins != spec["plugins"]:
        raise Failed("the means of testing were changed: pytest has other plugins")


class _Log:
    """What happens while tests run."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.outcomes: dict[str, list[Any]] = {}  # outcome and seconds, by id
        self.plugins: list[str] = []
        self.test = ""  # that runs now; empty while files are imported
        self.hits: set[tuple[str, int]] = set()
        self.wanted = None if spec["wanted"] is None else {*spec["wanted"]}
        self.until: float = time.monotonic() + spec["seconds"]

    def wants(self, name: str) -> bool:
        """Whether a test is to run."""
        return self.wanted is None or name in self.wanted

    def begin(self, name: str) -> bool:
        """A test is about to run; whether there is time for it."""
        self.test = name
        return time.monotonic() < self.until

    def end(self, name: str, outcome: str, seconds: float) -> None:
        """A test, or a part of it, has ended; it passes where each part does."""
        known = self.outcomes.setdefault(name, [outcome, 0.0])
        if known[0] == "passed":
            known[0] = outcome
        known[1] = round(known[1] + seconds, 4)

    def reach(self) -> dict[int, list[str]]:
        """The tests that reached each probe; "" for the import of a file."""
        found: dict[int, list[str]] = {}
        for name, number in sorted(self.hits):
            found.setdefault(number, []).append(name)
        return found


# --- the two ways to run tests --------------------------------------------------------------------


def _run_pytest(spec: dict[str, Any], log: _Log) -> None:
    import pytest

    functions: list[tuple[Any, Any]] = []

    class Plugin:
        """Chooses tests, and logs what becomes of them."""

        def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
            left = [item for item in items if not log.wants(item.nodeid)]
            if left:
                config.hook.pytest_deselected(items=left)
                items[:] = [item for item in items if log.wants(item.nodeid)]

        def pytest_collection_finish(self, session: Any) -> None:
            for item in session.items:
                if type(item) is pytest.Function:
                    functions.append((item, _plain(item.obj)))

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_runtest_protocol(self, item: Any) -> Any:
            if not log.begin(item.nodeid):
                item.session.shouldstop = "the time is over"
            yield
            log.test = ""

        def pytest_runtest_logreport(self, report: Any) -> None:
            outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            log.end(report.nodeid, outcome, report.duration)

        def pytest_sessionfinish(self, session: Any) -> None:
            pairs = session.config.pluginmanager.list_name_plugin()
            names = (name for name, plugin in pairs if plugin is not None and plugin is not self)
            log.plugins = sorted(name if not name.isdigit() else "unnamed" for name in names)

    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
    quiet.append("--continue-on-collection-errors")
    plain = ["-o", "addopts=", "-o", "required_plugins=", f"--rootdir={spec['tree']}"]
    pytest.main([*quiet, *plain, *spec["options"], *spec["files"]], plugins=[Plugin()])
    for item, function in functions:
        if _plain(item.obj) is not function:
            log.end(item.nodeid, "replaced", 0.0)


def _run_unittest(spec: dict[str, Any], log: _Log) -> None:
    class Result(unittest.TestResult):
        """Logs what becomes of each test."""

        def startTest(self, test: unittest.TestCase) -> None:
            super().startTest(test)
            self.begun = time.monotonic()
            if not log.begin(test.id()):
                self.stop()

        def stopTest(self, test: unittest.TestCase) -> None:
            super().stopTest(test)
            log.test = ""
            lists = (
                ("failed", self.failures),
                ("failed", self.errors),
                ("skipped", self.skipped),
                ("xfailed", self.expectedFailures),
            )
            own = [name for name, tests in lists if any(_case(t) is test for t, _ in tests)]
            if any(each is test for each in self.unexpectedSuccesses):
                own.append("failed")
            log.end(test.id(), (own or ["passed"])[0], time.monotonic() - self.begun)

    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for file in spec["files"]:
        folder, _, name = file.rpartition("/")
        if os.path.isfile(f"{folder or '.'}/__init__.py"):  # noqa: PTH113
            dotted = file.removesuffix(".py").replace("/", ".")
        else:
            sys.path.insert(0, f"{spec['tree']}/{folder}")
            dotted = name.removesuffix(".py")
        found = _flat(loader.loadTestsFromName(dotted))
        suite.addTests(test for test in found if log.wants(test.id()))
    suite.run(Result())


def _flat(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def _case(test: Any) -> Any:
    return getattr(test, "test_case", test)  # of a subtest, the test


def _plain(function: Any) -> Any:
    return getattr(function, "__func__", function)


# --- whether what judges is as it was -------------------------------------------------------------


def _machinery(backend: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What tests are judged by: names and behaviour of modules and of their classes."""
    importlib.import_module(backend)
    if backend == "pytest":
        from _pytest.config import default_plugins

        for name in default_plugins:
            importlib.import_module(f"_pytest.{name}")
    found = []
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] not in _MACHINERY or not isinstance(module, types.ModuleType):
            continue
        space = vars(module)
        found.append((name, space, dict(space)))
        for each in list(space.values()):
            if isinstance(each, type) and each.__module__ == name:
                own: Any = vars(each)
                found.append((f"{name}.{each.__name__}", own, dict(own)))
    return found


def _changed(before: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[str]:
    """What behaves otherwise now. Plain values may change: pytest keeps its state so."""
    return [
        f"{name}.{key}"
        for name, now, then in before
        for key, value in then.items()
        if (callable(value) or isinstance(value, _CALLABLE)) and now.get(key) is not value
    ]


# --- which tests reach which lines ----------------------------------------------------------------


def _install(log: _Log, probes: dict[str, list[list[int]]]) -> None:
    """Compile the files that are asked about with probes in them."""

    def reached(number: int) -> None:
        log.hits.add((log.test, number))

    setattr(builtins, PROBE, reached)
    loader: Any = importlib.machinery.SourceFileLoader
    plain: Callable[..., Any] = loader.source_to_code

    def compiled(self: Any, data: Any, path: Any, **options: Any) -> Any:
        wanted = probes.get(os.path.realpath(path)) if isinstance(path, str) else None
        if wanted is None or not isinstance(data, bytes):
            return plain(self, data, path, **options)
        return compile(probed(data, wanted), path, "exec", dont_inherit=True)

    loader.source_to_code = compiled


def probed(source: bytes | str, wanted: Sequence[Sequence[int]]) -> ast.Module:
    """The syntax tree of a file with calls before the statements that are asked about.

    Args:
        source: the file.
        wanted: [number, first line, last line]; a function's own statements have the number of a
            stretch that lies within its head, and every function has number -1 - n for [n, 0, 0].
    """
    tree = ast.parse(source)
    for node in list(ast.walk(tree)):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                setattr(node, field, list(_with_probes(node, body, wanted, field == "body")))
    return ast.fix_missing_locations(tree)


def _with_probes(
    node: ast.AST, body: list[ast.stmt], wanted: Sequence[Sequence[int]], main: bool
) -> Iterator[ast.stmt]:
    numbers: set[int] = set()
    if main and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        numbers = {-1 - n for n, first, last in wanted if not first and not last}
        numbers |= {n for n, *lines in wanted if lines[0] and _meets(_head(node), lines)}
    for place, statement in enumerate(body):
        head = _head(statement)
        numbers |= {n for n, *lines in wanted if lines[0] and _meets(head, lines)}
        text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        if (text and place == 0) or future:  # these must come first
            yield statement
            continue
        for number in sorted(numbers):
            call = ast.Call(ast.Name(PROBE, ast.Load()), [ast.Constant(number)], [])
            yield ast.copy_location(ast.Expr(call), statement)
        numbers = set()
        yield statement
    for number in sorted(numbers):  # there is nothing but a docstring
        call = ast.Call(ast.Name(PROBE, ast.Load()), [ast.Constant(number)], [])
        yield ast.copy_location(ast.Expr(call), body[-1])


def _head(node: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, of one that holds others up to these."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    body = getattr(node, "body", None)
    last = node.end_lineno or node.lineno
    if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
        last = max(node.lineno, body[0].lineno - 1)
    return first, last


def _meets(one: tuple[int, int], other: Sequence[int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
