"""Programs and their verdicts: solutions with all their tests, probes of the tests themselves.

Every verdict is appended to a journal at once. The verdicts alone decide which solution is kept, so
machines that share a folder can each run a shard, in any order.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codecria.core.sandbox.config import Confirm, SandboxConfig
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Outcome, Program, Verdict
from codecria.data.errors import UserError
from codecria.data.formats.blocks import parse
from codecria.data.formats.code_names import called_by
from codecria.data.progress import Progress

from .items import Candidate, Tested
from .journal import Journal, read_lines
from .parse import Tests

AGAIN = 2  # runs after the first, for what is kept to be no matter of luck
MOST_LOST = 5  # programs in a row that took the sandbox's servers with them
MOST_LITERALS = 12  # of the tests, that probes return
CONSTANTS = ("None", "True", "False", "0", "1", "''", "[]", "{}")
FOLDER = "verdicts"
Show = Callable[[Progress], None]
Verdicts = Mapping[str, Mapping[str, Any]]


def verdict_id(candidate: str, run: int) -> str:
    """The id of the verdict of one run of a solution."""
    return f"{candidate}-{run}"


def shard_of(key: str, shards: int) -> int:
    """The shard, from 0, that a question with tests falls to."""
    return int(key, 16) % shards


def shard_path(folder: Path, shard: int, shards: int) -> Path:
    """The journal of a shard's verdicts; shards are numbered from 0, files from 1."""
    return folder / FOLDER / f"{shard + 1}-of-{shards}.jsonl"


def all_verdicts(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What all journals of a folder know, by verdict id; of two, the first file's by name.

    Raises:
        UserError: one cannot be read.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        for line in read_lines(path):
            found.setdefault(line["id"], line)
    return found


# --- which solution is kept -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the verdicts say of a question.

    Attributes:
        kept: the first solution, by sample, that passes every run; None while there is none.
        wanted: (solution, run) that must be known before `kept` is certain.
        passed: how many passed their first run.
        flaky: solutions that passed it, and failed another.
    """

    kept: Candidate | None
    wanted: tuple[Candidate, int] | None
    passed: int
    flaky: tuple[Candidate, ...]


def choose(candidates: Sequence[Candidate], known: Verdicts, *, again: int) -> Choice:
    """The solution of a question that is kept.

    Args:
        candidates: its solutions, in order of samples.
        known: verdicts by id.
        again: runs after the first that it must pass too.
    """
    kept: Candidate | None = None
    wanted: tuple[Candidate, int] | None = None
    passed, flaky = 0, []
    for candidate in candidates:
        if not _passed(known.get(verdict_id(candidate.id, 0))):
            continue
        passed += 1
        if kept is not None or wanted is not None:
            continue
        for run in range(1, again + 1):
            verdict = known.get(verdict_id(candidate.id, run))
            if verdict is None:
                wanted = (candidate, run)
                break
            if not _passed(verdict):
                flaky.append(candidate)
                break
        else:
            kept = candidate
    return Choice(kept=kept, wanted=wanted, passed=passed, flaky=tuple(flaky))


def _passed(verdict: Mapping[str, Any] | None) -> bool:
    return verdict is not None and verdict["outcome"] == Outcome.PASSED


# --- running --------------------------------------------------------------------------------------


def execute(
    tested: Sequence[Tested],
    candidates: Iterable[Candidate],
    config: SandboxConfig,
    verdicts: Journal,
    known: dict[str, Mapping[str, Any]],
    *,
    again: int,
    show: Show,
    total: int | None = None,
) -> None:
    """Run solutions without a verdict until the kept solution of every question is known.

    Args:
        tested: questions with tests.
        candidates: their solutions, in order.
        config: where they run.
        verdicts: the journal they are appended to.
        known: those known before; added to.
        again: runs after the first, of solutions that pass, in processes started for them.
        show: called with progress.
        total: how many candidates there are.

    Raises:
        UserError: nothing can be confined here, or a journal cannot be written.
    """
    tests = {one.id: one.tests.program for one in tested}
    by_tested: dict[str, list[Candidate]] = {one.id: [] for one in tested}
    done = 0

    def wanted() -> Iterator[tuple[str, Program]]:
        nonlocal done
        for candidate in candidates:
            if candidate.tested not in by_tested:
                continue
            by_tested[candidate.tested].append(candidate)
            key = verdict_id(candidate.id, 0)
            if key in known:
                done += 1
            else:
                yield key, _program(candidate, tests)

    resumed = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        show(Progress(stage="solutions run", done=done, total=total or done, resumed=resumed))

    _run(wanted(), config, verdicts, known, advance)
    if config.confirm is Confirm.PASSES:  # what passed once is likely to: two processes at once
        config = replace(config, confirm=Confirm.ALL)
    for run in range(1, again + 1):
        while True:
            pending = []
            for group in by_tested.values():
                choice = choose(group, known, again=run)
                if choice.wanted is not None:
                    candidate, number = choice.wanted
                    pending.append((verdict_id(candidate.id, number), _program(candidate, tests)))
            if not pending:
                break
            ended = 0

            def seen(count: int, pending: list[Any] = pending, run: int = run) -> None:
                nonlocal ended
                ended += count
                show(Progress(stage=f"run again {run}", done=ended, total=len(pending), resumed=0))

            _run(iter(pending), config, verdicts, known, seen)


def _program(candidate: Candidate, tests: Mapping[str, str]) -> Program:
    return Program(source=candidate.source, tests=tests[candidate.tested])


def _run(
    programs: Iterator[tuple[str, Program]],
    config: SandboxConfig,
    verdicts: Journal,
    known: dict[str, Mapping[str, Any]],
    done: Callable[[int], None],
) -> None:
    """Run programs in a sandbox of their own, each verdict to the journal."""
    first = next(programs, None)
    if first is None:
        return
    with Sandbox(config) as sandbox:
        for key, verdict in _verdicts(sandbox, itertools.chain([first], programs)):
            line = {"id": key, **verdict.as_json()}
            verdicts.add([line])
            known[key] = line
            done(1)


def _verdicts(
    sandbox: Sandbox, programs: Iterator[tuple[str, Program]]
) -> Iterator[tuple[str, Verdict]]:
    """The verdicts of programs as they come, each final: little is lost to a kill.

    A program that takes the sandbox's servers with it has crashed.

    Raises:
        UserError: several in a row do, which is no program's fault.
    """
    lost = 0
    with ThreadPoolExecutor(sandbox.workers, thread_name_prefix="programs") as pool:
        waiting: dict[Future[Verdict], str] = {}
        while True:
            room = 2 * sandbox.workers - len(waiting)
            for key, program in itertools.islice(programs, room):
                waiting[pool.submit(sandbox.run, program)] = key
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                key = waiting.pop(future)
                try:
                    verdict = future.result()
                    lost = 0
                except UserError as error:
                    lost += 1
                    if lost >= MOST_LOST:
                        raise
                    verdict = _crashed(sandbox, error)
                yield key, verdict


def _crashed(sandbox: Sandbox, error: UserError) -> Verdict:
    return Verdict(
        outcome=Outcome.CRASHED,
        detail=error.message,
        seconds=0.0,
        tier=sandbox.tier,
        limits=sandbox.limits,
    )


# --- probes ---------------------------------------------------------------------------------------


def probes(tests: Tests) -> dict[str, str]:
    """Trivially wrong programs, by what they do.

    Functions that return a constant, among them the values that the tests expect, or an argument
    unchanged. Tests that one of them passes do not check the answer.
    """
    tree = parse(tests.program)
    assert tree is not None, "tests that were parsed before"
    known = {
        (alias.asname or alias.name).split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    names = sorted(called_by(tree.body) - known)
    returns = {f"returns {value}": value for value in (*CONSTANTS, *_literals(tree))}
    returns |= {
        "returns its first argument": "args[0] if args else None",
        "returns its last argument": "args[-1] if args else None",
    }
    return {
        what: "\n".join(f"def {name}(*args, **kwargs):\n    return {value}" for name in names)
        for what, value in returns.items()
    }


def _literals(tree: ast.Module) -> list[str]:
    """The values that asserts compare with."""
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        for side in (node.left, *node.comparators):
            with contextlib.suppress(
                ValueError, TypeError, SyntaxError, RecursionError, MemoryError
            ):
                ast.literal_eval(side)
                found[ast.unparse(side)] = None
    return [text for text in list(found)[:MOST_LITERALS] if text not in CONSTANTS]


def probe(
    tested: Sequence[Tested], config: SandboxConfig, verdicts: Journal, *, show: Show
) -> dict[str, str]:
    """Run the probes of all tests.

    Args:
        tested: questions with tests.
        config: where they run.
        verdicts: journal of the probes; resumed.
        show: called with progress.

    Returns:
        what the passing probe does, by the id of the tests; sound tests are absent.

    Raises:
        UserError: nothing can be confined here, or the journal cannot be written.
    """
    known: dict[str, Mapping[str, Any]] = {key: verdicts.get(key) or {} for key in verdicts}
    keys = (f"{one.id}-{number}" for one in tested for number in range(len(probes(one.tests))))
    total = resumed = 0
    for key in keys:
        total += 1
        resumed += key in known
    done = resumed

    def advance(count: int) -> None:
        nonlocal done
        done += count
        show(Progress(stage="tests probed", done=done, total=total, resumed=resumed))

    def wanted() -> Iterator[tuple[str, Program]]:
        for one in tested:
            for number, source in enumerate(probes(one.tests).values()):
                key = f"{one.id}-{number}"
                if key not in known:
                    yield key, Program(source=source, tests=one.tests.program)

    _run(wanted(), config, verdicts, known, advance)
    weak: dict[str, str] = {}
    for one in tested:
        for number, what in enumerate(probes(one.tests)):
            if _passed(known[f"{one.id}-{number}"]):
                weak.setdefault(one.id, what)
    return weak
