"""SIGINT and SIGTERM: work ends in order, with the signal's exit status."""

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
    """Whether a signal was received, and what to do at the first one.

    Attributes:
        on_stop: called at the first signal.
        received: the number of the first signal; 0 if there was none.
    """

    on_stop: Callable[[], None] | None = None
    received: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether it was SIGINT."""
        return self.received == signal.SIGINT


@contextlib.contextmanager
def saving_on_signal() -> Iterator[StopSignal]:
    """Call `on_stop` at the first SIGINT or SIGTERM within the block; a second one acts as usual.

    A signal before `on_stop` is set acts as usual too: there is nothing to save yet.
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
        render.note("saving after this step, then stopping; a second signal stops at once")
        state.on_stop()

    for number in before:
        signal.signal(number, handle)
    try:
        yield state
    finally:
        restore()


RESUMABLE = "stopped; rerun the same command to resume"


@contextlib.contextmanager
def ending_in_order(message: str = RESUMABLE) -> Iterator[None]:
    """End the work at SIGINT or SIGTERM within the block; what is done stays done.

    Args:
        message: for the user, about what was kept.

    Raises:
        Interrupted: a signal was received.
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
