"""What the sandbox's tests share: the tiers of this machine, limits of time, other languages.

A program that ends by itself, or is ended for what it takes, gets time enough on a busy machine:
how fast it is shows nothing. One that does not end costs its whole limit, often twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from codecria.core.sandbox import bwrap, jail, languages
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Verdict

ENOUGH_S = 30.0
SHORT_S = 2.0

NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(bool(jail.problem()), reason=f"no jail here: {jail.problem()}"),
)
BWRAP = pytest.param(
    "bwrap", marks=pytest.mark.skipif(bool(bwrap.bwrap_problem()), reason=bwrap.bwrap_problem())
)
CONFINED = [NATIVE, BWRAP]
TIERS = [*CONFINED, "none"]


def short(limits: Limits) -> Limits:
    """The same limits for a program that does not end."""
    return replace(limits, wall_s=SHORT_S)


def judged(sandbox: Sandbox, asked: Program, limits: Limits | None = None) -> Verdict:
    """The verdict on a program; skips where nothing here runs its language."""
    if why := languages.missing(languages.canonical(asked.language), asked.needs):
        pytest.skip(why)
    return sandbox.run(asked, limits)


def assert_stopped(
    sandbox: Sandbox, asked: Program, limits: Limits, outcomes: Collection[Outcome] | None
) -> None:
    """A program that takes too much does not pass, ends as expected and floods nobody.

    Args:
        sandbox: to run it in.
        asked: the program.
        limits: its own, if something beside the clock ends it.
        outcomes: how it may end; None where the clock may come first.
    """
    if why := languages.missing(languages.canonical(asked.language)):
        pytest.skip(why)
    by_the_clock = outcomes is None or Outcome.TIMEOUT in outcomes
    # Not `run`: a timeout would be judged twice.
    verdict = sandbox._once(asked, short(limits) if by_the_clock else limits)
    assert verdict.outcome is not Outcome.PASSED or (outcomes and Outcome.PASSED in outcomes)
    assert outcomes is None or verdict.outcome in outcomes, verdict
    assert len(verdict.stdout) <= 2_000
