"""Which processes of a launch live and get on with their work, as their beats in the store show.

    beat/RANK    "41 7"     the 41st beat; 7 steps of its job are done
                 "42 idle"  it waits for a job

A thread of each process beats, so a process that was killed or stopped falls silent; one that hangs
in a job beats on, and its steps do not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codecria.core.training.faults import BEAT_S, Store

SILENCE_S = 20.0  # without a beat a process is taken for gone; a busy machine delays beats
IDLE = "idle"


class Pulse:
    """The beats of this process.

    Args:
        store: a connection of its own.
        rank: of this process.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._steps: int | None = None

    def step(self) -> None:
        """A step of the job is done."""
        self._steps = (self._steps or 0) + 1

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """The block is a job."""
        self.step()
        try:
            yield
        finally:
            self._steps = None

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Beat within the block."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            with contextlib.suppress(RuntimeError):  # the store may go before
                while True:
                    count += 1
                    steps = IDLE if self._steps is None else self._steps
                    self._store.set(f"beat/{self._rank}", f"{count} {steps}")
                    if stop.wait(BEAT_S):
                        return

        # A daemon: it must not keep a process that ends.
        threading.Thread(target=beat, name="pulse", daemon=True).start()
        try:
            yield
        finally:
            stop.set()


@dataclass(slots=True)
class _Seen:
    """What was last seen of a process, and since when."""

    beat: str
    steps: str
    beat_at: float
    steps_at: float


class Watch:
    """What this process sees of others.

    Args:
        store: of the launch.
        ranks: whom it watches.
        timeout_s: how long one may take to start, and for a step of a job.
    """

    def __init__(self, store: Store, ranks: Sequence[int], timeout_s: float) -> None:
        self._store, self._timeout_s = store, timeout_s
        now = time.monotonic()
        self._seen = {rank: _Seen("", IDLE, now, now) for rank in ranks}

    def lost(self) -> tuple[int, float] | None:
        """A process that is gone or hangs, and how many seconds it was given; None if none is."""
        now = time.monotonic()
        for rank, seen in self._seen.items():
            beat, steps = self._read(rank)
            if beat != seen.beat:
                seen.beat, seen.beat_at = beat, now
            if steps != seen.steps or steps == IDLE:
                seen.steps, seen.steps_at = steps, now
            patience_s = SILENCE_S if seen.beat else self._timeout_s
            if now - seen.beat_at > patience_s:
                return rank, patience_s
            if now - seen.steps_at > self._timeout_s:
                return rank, self._timeout_s
        return None

    def beats(self) -> dict[int, str]:
        """The last beat of every process that has begun."""
        found = {rank: self._read(rank)[0] for rank in self._seen}
        return {rank: beat for rank, beat in found.items() if beat}

    def _read(self, rank: int) -> tuple[str, str]:
        key = f"beat/{rank}"
        if not self._store.check([key]):
            return "", IDLE
        beat, _, steps = self._store.get(key).decode().partition(" ")
        return beat, steps
