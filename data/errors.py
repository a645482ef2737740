"""The errors that are meant for the person at the keyboard, and the exit status each ends with.

Raise these for anything a user can cause or mend; use `assert` for our own mistakes. The command
line's error boundary (`cli/boundary.py`) turns them into two lines on stderr and an exit status.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What `codecria` returns to the shell."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    GATE = 3  # a threshold the user set (`--fail-under`) was not met
    INTERRUPTED = 130  # SIGINT, after saving
    TERMINATED = 143  # SIGTERM, after saving


class UserError(Exception):
    """Something a user can mend: one line that names the value, one that says what to do.

    Args:
        message: what is wrong, with the value and the limit.
        hint: the next step, a command where there is one.
    """

    status = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(UserError):
    """The command line itself is off: an option's value, or options that do not go together."""

    status = ExitStatus.USAGE


class ReportedElsewhere(UserError):
    """An error that the main process of several reports; the others end with its status.

    Args:
        error: the main process's.
    """

    def __init__(self, error: UserError) -> None:
        super().__init__(error.message, hint=error.hint)
        self.status = error.status


class Interrupted(Exception):
    """A signal stopped the work after everything worth keeping was saved.

    Args:
        status: the exit status that tells which signal it was.
        message: what was saved and how to go on.
    """

    def __init__(self, status: ExitStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
