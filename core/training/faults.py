"""One line for a failure of several processes, with the process that failed named.

A process that fails breaks the connections of the others, which then fail too. Each writes its end
to the store of the launch. The main process reports; if it is the one that is gone, process 1 does,
which knows by the main one's heartbeat in the store.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from codecria.data.errors import Interrupted, ReportedElsewhere, UserError

GRACE_S = 5.0  # how long the main process waits for the word of the others
BEAT_S = 0.5  # between beats of the main process
SILENCE_S = 4.0  # without a beat it is taken for gone
POLL_S = 0.05
STOPPED = "stopped by a signal"  # what a process writes that was asked to end
RESUME = "see its error; then rerun the same command to resume"


class Store(Protocol):
    """The part of PyTorch's stores that is used: keys that all processes see."""

    def set(self, key: str, value: str, /) -> None:
        """Set a key."""

    def get(self, key: str, /) -> bytes:
        """The value of a key that was set."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all the keys were set."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number; the sum."""


@dataclass(frozen=True, slots=True)
class Failures:
    """What the processes of a launch write about their ends.

    Attributes:
        store: of the launch, under a name of this start.
        rank: of this process.
        size: how many there are.
    """

    store: Store
    rank: int
    size: int

    def reported(self, error: Exception, *, lost: bool, timeout_s: float) -> Exception:
        """The error that this process is to end with.

        Args:
            error: what happened here.
            lost: it is the loss of the connection to another process, which may know why.
            timeout_s: how long the processes wait for each other.

        Returns:
            in one process what a person is to read, in the others `ReportedElsewhere`; after a
            signal, the error as it is.
        """
        with no_termination():
            try:
                self.store.set(f"end/{self.rank}", "" if lost else _message(error))
                if isinstance(error, Interrupted):
                    return error
                if self.rank == 0:
                    if not lost:
                        return error
                    wait_for(lambda: len(self.heard()) == self.size, GRACE_S)
                    return self._found(timeout_s)
                if lost and self.rank == 1 and not self.main_lives():
                    return self._found(timeout_s)
            except RuntimeError:  # the store went with the process that held it
                if self.rank <= 1:
                    return gone([0], self.size, timeout_s) if lost else error
            return ReportedElsewhere(
                error if isinstance(error, UserError) else UserError(_message(error))
            )

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Let the others know within the block that the main process lives."""
        if self.rank:
            yield
            return
        stop = threading.Event()

        def beat() -> None:
            with contextlib.suppress(RuntimeError):  # the store may go before
                while not stop.wait(BEAT_S):
                    self.store.add("beat", 1)

        # A daemon: it must not keep a process that ends.
        threading.Thread(target=beat, name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def main_lives(self) -> bool:
        """Whether the main process writes of its end, or beats."""
        first = self.store.add("beat", 0)

        def lives() -> bool:
            return self.store.check(["end/0"]) or self.store.add("beat", 0) != first

        wait_for(lives, SILENCE_S)
        return lives()

    def heard(self) -> list[int]:
        """The processes that have written that they end."""
        return [rank for rank in range(self.size) if self.store.check([f"end/{rank}"])]

    def word_of(self, rank: int) -> str:
        """What a process that was heard wrote of its end; empty where it lost a connection."""
        return self.store.get(f"end/{rank}").decode()

    def _found(self, timeout_s: float) -> UserError:
        """What broke the connections, as far as the others wrote it."""
        heard = self.heard()
        for rank in heard:
            if message := self.word_of(rank):
                return UserError(f"process {rank} of {self.size}: {message}", hint=RESUME)
        silent = [rank for rank in range(self.size) if rank not in heard]
        return gone(silent, self.size, timeout_s)


def gone(ranks: list[int], size: int, timeout_s: float) -> UserError:
    """The error that names processes which ended without a word, or do not answer."""
    who = "another process of the run"
    if ranks:
        who = f"process {', '.join(map(str, ranks))} of {size}"
    return UserError(f"{who} ended, or did not answer within {timeout_s:g} s", hint=RESUME)


def _message(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, UserError):
        return error.message
    if isinstance(error, Interrupted):
        return STOPPED
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def wait_for(condition: Callable[[], bool], at_most_s: float) -> None:
    """Wait until something is so, for a while."""
    end = time.monotonic() + at_most_s
    while not condition() and time.monotonic() < end:
        time.sleep(POLL_S)


@contextlib.contextmanager
def no_termination() -> Iterator[None]:
    """Pass over SIGTERM for these seconds: torchrun sends it to all when one process has died."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
