"""SIGINT and SIGTERM while work is under way: it ends in order, with the signal's exit status."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from codecria.data.errors import ExitStatus, Interrupted

from . import render


@dataclass(slots=True)
class StopSignal:
    """Whether a signal came, and what to do when it does.

    Attributes:
        on_stop: called at the first signal.
        received: the first signal's number, 0 before.
    """

    on_stop: Callable[[], None] | None = None
    received: int = 0

    @property
    def terminated(self) -> bool:
        """Whether it was SIGTERM."""
        return self.received == signal.SIGTERM


@contextlib.contextmanager
def saving_on_signal() -> Iterator[StopSignal]:
    """Within the block the first SIGINT or SIGTERM calls `on_stop`; the next acts as usual.

    A signal that comes before `on_stop` is set acts as usual too: there is nothing to save yet.
    """
    state = StopSignal()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        restore()
        if state.on_stop is None:
            signal.raise_signal(number)
            return
        state.received = number
        render.note("stopping after this step to save; once more stops at once")
        state.on_stop()

    for number in before:
        signal.signal(number, handle)
    try:
        yield state
    finally:
        restore()


GOES_ON = "stopped: the same command goes on from here"


@contextlib.contextmanager
def ending_in_order(message: str = GOES_ON) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM end the work where it is; what is done stays done.

    Args:
        message: for the user, of what was kept.

    Raises:
        Interrupted: a signal came.
    """
    statuses = {signal.SIGINT: ExitStatus.INTERRUPTED, signal.SIGTERM: ExitStatus.TERMINATED}

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise Interrupted(statuses[signal.Signals(number)], message)

    before = {number: signal.signal(number, stop) for number in statuses}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
