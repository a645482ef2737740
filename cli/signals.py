"""SIGINT and SIGTERM while something worth keeping is in memory: the first saves, a second ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

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
