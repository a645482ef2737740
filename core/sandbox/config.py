"""How a sandbox is set up: its tier, when two processes judge, how many programs run at once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from codecria.data.errors import UsageError

from .packages import Allowed, allowed
from .verdict import Limits, Tier

AUTO = "auto"  # bwrap where it works, else native
_COMMAND_HINT = "--sandbox command --sandbox-command 'podman run --rm -i --network none IMAGE'"


class Confirm(StrEnum):
    """Which programs are judged with solution and tests in two processes.

    One process cannot tell a solution that answers right from one that changes what the tests
    mean; two processes that exchange plain data can. A failure is not judged again.

    PASSES: a program that passes in one process is judged again in two, and the second verdict
    counts. A failing program costs one run, a passing one two. ALL: every program runs in two
    processes at once, which is cheaper where most pass. OFF: one process alone; a cheat can pass.
    """

    PASSES = "passes"
    ALL = "all"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """Everything that a sandbox is opened with.

    Attributes:
        tier: "auto", or a name in `verdict.Tier`; nothing chooses "none" or "command" by itself.
        command: with the tier "command" alone: what makes a process for each program.
        confirm: which programs two processes judge.
        workers: programs at once; None for as many as this process may use cores.
        packages: installed packages that Python programs may import, with their dependencies.
        readable: folders that Python programs may read beside those.
        compiled: whether what lies there holds compiled code: programs may import ctypes then.
        limits: of every program that has none of its own.

    Raises:
        UsageError: there is no such tier, tier and command do not go together, or a package is not
            installed.
    """

    tier: str = AUTO
    command: str = ""
    confirm: Confirm = Confirm.PASSES
    workers: int | None = None
    packages: tuple[str, ...] = ()
    readable: tuple[Path, ...] = ()
    compiled: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check that the fields go together."""
        if self.tier not in (AUTO, *Tier):
            raise UsageError(
                f"there is no sandbox tier {self.tier!r}",
                hint=f"choose one of {', '.join((AUTO, *Tier))}",
            )
        if (self.tier == Tier.COMMAND) != bool(self.command.strip()):
            raise UsageError(
                "--sandbox command and --sandbox-command go together", hint=_COMMAND_HINT
            )
        if self.packages and self.tier == Tier.COMMAND:
            raise UsageError(
                "--packages has no effect with --sandbox command",
                hint="install the packages in the command's image",
            )
        assert not (self.readable and self.tier == Tier.COMMAND), "a container has its own files"
        self.argv()
        self.allowed()

    def argv(self) -> list[str]:
        """The words of the command, as a shell splits them.

        Raises:
            UsageError: a quotation does not end.
        """
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise UsageError(
                f"--sandbox-command {self.command!r} cannot be read: {error}", hint=_COMMAND_HINT
            ) from error

    def allowed(self) -> Allowed:
        """The packages that programs may import, with their files.

        Raises:
            UsageError: one is not installed, or its files are not known.
        """
        return allowed(self.packages)
