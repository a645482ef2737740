"""A repository's own tests decide about completions, in the sandbox.

Of each commit, the tests run first on the code as it was, with probes in the files that hold spans:
that shows which tests pass here and which of them reach a span. A span is tried where its tests
pass again, alone, and fail without it. Then they run on the tree with a completion in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codecria.core.sandbox import boxes
from codecria.core.sandbox.config import Confirm, SandboxConfig
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Verdict
from codecria.data.corpus.history import History
from codecria.data.errors import UserError
from codecria.data.formats.syntax import PYTHON, parses
from codecria.data.progress import Progress

from .driver import MARK
from .spans import Span
from .suites import (
    Asked,
    Backend,
    Packages,
    files_of_tests,
    is_of_tests,
    names,
    nearest_first,
    stem_of,
)
from .trees import Trees

SLACK_S, SLACK = 10.0, 10.0  # a completion's tests may take so much longer than with the true code
TRACED = 0.8  # of the time for the tests of a commit, after which no more are begun
OUTPUT_BYTES = 32 << 20  # of a reference run, whose results are printed
# Names by which code reaches the interpreter or pytest itself. A completion that has one which
# neither the rest of the file nor what was written has is refused: what it passes proves nothing.
REFUSED = frozenset(
    {
        *("_pytest", "pytest", "pluggy", "unittest", "builtins", "__builtins__", "_exit"),
        *("_getframe", "_current_frames", "f_back", "f_globals", "f_locals", "tb_frame"),
        *("gi_frame", "__globals__", "__code__", "__closure__", "__subclasses__", "ctypes", "gc"),
        *("settrace", "setprofile", "meta_path", "path_hooks", "exec", "eval", "compile"),
        *("__import__", "importlib"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trialled:
    """The tests of a span, or why it has none.

    Attributes:
        tests: ids of the tests that decide; empty where it is left out.
        by: how they were found: "coverage", "file" (they run code of the span's file, which is
            read when it is imported) or "name" (their file names the span's module).
        seconds: that they may take.
        plugins: that pytest had.
        left_out: why no tests decide; empty where some do.
    """

    tests: tuple[str, ...] = ()
    by: str = ""
    seconds: float = 0.0
    plugins: tuple[str, ...] = ()
    left_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How tests are run.

    Attributes:
        asked: which.
        required: it is an error where they cannot be run.
        packages: that they may import.
        sandbox: how it is set up, packages apart.
        seconds: for the tests of one commit, and at most for those of one span.
        memory_bytes: of address space of a run.
    """

    asked: Asked = field(default_factory=Asked)
    required: bool = False
    packages: Packages = field(default_factory=Packages)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    seconds: float = 300.0
    memory_bytes: int = 2 << 30


@contextmanager
def open_trial(history: History, config: Config) -> Iterator[Trial]:
    """A sandbox that the trees of a repository can be run in.

    Raises:
        UserError: there is no sandbox here.
        UsageError: a package is not installed.
    """
    place = boxes.Boxes(in_memory=False)
    try:
        trees = Trees(history, Path(place.make()))
        packages = config.packages
        own = packages.names
        backend: Backend = config.asked.backend or "pytest"
        if backend == "pytest" and not packages.has("pytest") and "pytest" not in own:
            if _installed("pytest"):
                own = ("pytest", *own)
            elif config.asked.backend is None:
                backend = "unittest"
            else:
                raise UserError(
                    "pytest is not installed", hint="pip install pytest, or --packages FOLDER"
                )
        limits = Limits(
            wall_s=config.seconds,
            memory_bytes=config.memory_bytes,
            output_bytes=OUTPUT_BYTES,
            kept=OUTPUT_BYTES,
            disk_bytes=256 << 20,
            files=10_000,
        )
        sandbox = replace(
            config.sandbox,
            packages=own,
            readable=(Path(place.path), *packages.folders),
            compiled=packages.compiled,
            confirm=Confirm.OFF,
            limits=limits,
        )
        with Sandbox(sandbox) as opened:
            yield Trial(opened, trees, history, config, backend)
    finally:
        place.close()


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


class Trial:
    """Runs a repository's tests; made by `open_trial`.

    Args:
        sandbox: opened; it reads the folder of the trees.
        trees: of the history.
        history: opened.
        config: which tests, and their limits.
        backend: what runs them.
    """

    def __init__(
        self, sandbox: Sandbox, trees: Trees, history: History, config: Config, backend: Backend
    ) -> None:
        self.backend = backend
        self.tier = sandbox.tier
        self._sandbox = sandbox
        self._trees = trees
        self._history = history
        self._config = config
        self._source = Path(__file__).with_name("driver.py").read_text(encoding="utf-8")

    def reference(
        self,
        spans: Sequence[Span],
        *,
        known: Mapping[str, Trialled],
        keep: Callable[[Mapping[str, Trialled]], None],
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> dict[str, Trialled]:
        """The tests of each span, by running them on the code as it was.

        Args:
            spans: of a history.
            known: found before.
            keep: called with those of each commit when they are found.
            progress: called as it goes on.

        Raises:
            UserError: the sandbox fails, or a file cannot be read.
        """
        found = dict(known)
        left = [span for span in spans if span.id not in found]
        commits = {commit: [s for s in left if s.commit == commit] for commit in in_order(left)}
        done = len(spans) - len(left)
        for commit, part in commits.items():
            new = self._of_commit(commit, part)
            keep(new)
            found |= new
            done += len(part)
            progress(Progress(stage="tests", done=done, total=len(spans)))
        return found

    def judge(
        self, said: Iterable[tuple[Span, Trialled, str]], keep: Callable[[str, str, str], None]
    ) -> None:
        """Run the tests of spans with completions in their place.

        Args:
            said: spans that are tried, their tests, and what a model said.
            keep: called with the span's id, an outcome ("refused" beside `Outcome`'s) and a detail.

        Raises:
            UserError: the sandbox fails.
        """
        listed = list(said)
        for commit in in_order(span for span, _, _ in listed):
            self._trees.fetch(commit)

        def one(entry: tuple[Span, Trialled, str]) -> tuple[str, str, str]:
            span, tests, text = entry
            if text == span.middle:
                return span.id, "passed", "it is what was written"
            if refused := refusal(span, text):
                return span.id, "refused", f"it names {refused}, which reaches the tests themselves"
            verdict = self._run_with(span, text, tests)
            return span.id, str(verdict.outcome), verdict.detail

        with ThreadPoolExecutor(self._sandbox.workers) as pool:
            for result in pool.map(one, listed):
                keep(*result)

    def _of_commit(self, commit: str, spans: Sequence[Span]) -> dict[str, Trialled]:
        found = {span.id: Trialled(left_out=why) for span in spans if (why := _unsuited(span))}
        left = [span for span in spans if span.id not in found]
        suite = files_of_tests(self._trees.files(commit), self._config.asked)
        if not left or not suite:
            return found | {s.id: Trialled(left_out="no tests at its commit") for s in left}
        self._trees.fetch(commit)
        texts = {path: self._text(commit, path) for path in suite}
        files = nearest_first(suite, (span.path for span in left), texts)
        probes = _probes(left)
        tree = self._trees.make(commit, {})
        try:
            verdict = self._run(
                tree,
                {"files": files, "wanted": None, "probes": probes, "report": True},
                self._config.seconds,
            )
        finally:
            self._trees.drop(tree)
        report = _report(verdict)
        if report is None:
            why = f"its commit's tests do not run here: {verdict.detail or verdict.outcome}"
            return found | {span.id: Trialled(left_out=why) for span in left}
        overhead = max(0.0, verdict.seconds - sum(s for _, s in report["tests"].values()))
        chosen = {
            span.id: self._choose(number, span, report, texts, probes, overhead)
            for number, span in enumerate(left)
        }
        with ThreadPoolExecutor(self._sandbox.workers) as pool:
            checked = pool.map(lambda span: self._check(span, chosen[span.id]), left)
            return found | {span.id: each for span, each in zip(left, checked, strict=True)}

    def _choose(
        self,
        number: int,
        span: Span,
        report: Mapping[str, Any],
        texts: Mapping[str, str],
        probes: Mapping[str, list[list[int]]],
        overhead: float,
    ) -> Trialled:
        """The passing tests that reach a span."""
        tests: Mapping[str, list[Any]] = report["tests"]
        passed = {name for name, (outcome, _) in tests.items() if outcome == "passed"}
        reached = set(report["reach"].get(str(number), ()))
        by, chosen = "coverage", reached & passed
        if not chosen and "" in reached:  # it is executed when the file is imported
            place = [*probes].index(span.path)
            by, chosen = "file", set(report["reach"].get(str(-1 - place), ())) & passed
            if not chosen:
                stem = stem_of(span.path)
                naming = [file for file, text in texts.items() if names(text, stem)]
                by, chosen = "name", {t for t in passed if any(_is_in(t, f) for f in naming)}
        if not chosen:
            why = "no test reaches it" if passed else "no test of its commit passes here"
            if reached - {""}:
                why = "the tests that reach it do not pass here with the true code"
            return Trialled(left_out=why)
        seconds = SLACK_S + SLACK * (overhead + sum(tests[name][1] for name in chosen))
        return Trialled(
            tests=tuple(sorted(chosen)),
            by=by,
            seconds=min(seconds, self._config.seconds),
            plugins=tuple(report["plugins"]),
        )

    def _check(self, span: Span, tests: Trialled) -> Trialled:
        """Whether a span's tests pass again with the true code, and notice when it is missing."""
        if tests.left_out:
            return tests
        if self._run_with(span, span.middle, tests).outcome is not Outcome.PASSED:
            return Trialled(left_out="its tests do not pass every time, or not alone")
        without = next((text for text in ("pass", "") if _parses(span, text)), None)
        if without is not None:
            verdict = self._run_with(span, without, tests)
            if verdict.outcome is Outcome.PASSED:
                return Trialled(left_out="its tests pass without it")
        return tests

    def _run_with(self, span: Span, text: str, tests: Trialled) -> Verdict:
        """The verdict of a span's tests with a text in its place."""
        tree = self._trees.make(span.commit, {span.path: span.prefix + text + span.suffix})
        files = files_of_tests(self._trees.files(span.commit), self._config.asked)
        try:
            return self._run(
                tree,
                {
                    "files": [f for f in files if any(_is_in(t, f) for t in tests.tests)],
                    "wanted": list(tests.tests),
                    "probes": {},
                    "report": False,
                    "plugins": list(tests.plugins) if self.backend == "pytest" else None,
                },
                tests.seconds,
            )
        finally:
            self._trees.drop(tree)

    def _run(self, tree: Path, wanted: Mapping[str, Any], seconds: float) -> Verdict:
        spec = {
            "tree": str(tree),
            "paths": [str(tree / "src"), str(tree), str(tree / "lib")],
            "packages": [str(folder) for folder in self._config.packages.folders],
            "backend": self.backend,
            "options": list(self._config.asked.options),
            "plugins": None,
            "seconds": TRACED * seconds if wanted["report"] else seconds,
            **wanted,
        }
        source = f"{self._source}\n\nmain(json.loads({json.dumps(spec)!r}))\n"
        limits = self._sandbox.limits
        return self._sandbox.run(Program(source=source), replace(limits, wall_s=seconds))

    def _text(self, commit: str, path: str) -> str:
        return self._history.content(self._trees.files(commit)[path]).decode("utf-8", "replace")


def refusal(span: Span, said: str) -> str:
    """The name in a completion by which it would reach the tests themselves; empty without one."""
    own = set(re.findall(r"\w+", said)) & REFUSED
    if not own:
        return ""
    around = set(re.findall(r"\w+", span.prefix + span.middle + span.suffix))
    return min(own - around, default="")


def in_order(spans: Iterable[Span]) -> list[str]:
    """The commits of spans, each once."""
    return list(dict.fromkeys(span.commit for span in spans))


def _unsuited(span: Span) -> str:
    if span.language != PYTHON or not span.path.endswith(".py"):
        return "it is not Python"
    if is_of_tests(span.path):
        return "it is part of the tests"
    if not parses(span.prefix + span.middle + span.suffix, PYTHON):
        return "its file does not parse"
    return ""


def _parses(span: Span, text: str) -> bool:
    return bool(parses(span.prefix + text + span.suffix, PYTHON))


def _probes(spans: Sequence[Span]) -> dict[str, list[list[int]]]:
    """What `driver.probed` takes: the lines of each span, and one for the functions of a file."""
    found: dict[str, list[list[int]]] = {}
    for number, span in enumerate(spans):
        first = span.prefix.count("\n") + 1
        lines = found.setdefault(span.path, [[len(found), 0, 0]])
        lines.append([number, first, first + span.middle.count("\n")])
    return found


def _report(verdict: Verdict) -> dict[str, Any] | None:
    """What a reference run found; None where it did not get so far."""
    _, mark, text = verdict.stdout.rpartition(MARK)
    if verdict.outcome is not Outcome.PASSED or not mark:
        return None
    found: dict[str, Any] = json.loads(text)
    return found


def _is_in(test: str, file: str) -> bool:
    """Whether a test, by its id, is in a file."""
    if "::" in test:
        return test.startswith(f"{file}::")
    return stem_of(file) in test.split(".")
