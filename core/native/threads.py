"""Helper threads of a runner, and how many of them are worth waking.

A helper is a Python thread that spends its time in the kernels' `help`, without Python's lock. It
looks for work without pause for about a millisecond after the last step, then sleeps until a step
wakes it. The step never waits for it to wake: shares that nobody else takes it computes itself.

Where other programs keep the cores busy, more threads can be slower: the step waits for shares that
a helper began and the system then suspended. `ThreadTuner` therefore tries another number now and
then while tokens are generated, and keeps the quicker one.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from .kernels import Kernels
from .record import PARKED, QUIT, THREAD_BYTES, Record

LOOKS = 20_000  # of a helper without work before it sleeps: about 1 ms
_NEVER = 1 << 40
_JOIN_S = 2.0
PERIOD, TRIAL = 48, 4  # steps from one trial to the next, and of a trial
FIRST = 8  # steps before the first trial: beside busy programs a short text must not end before it
_GAIN = 0.93  # a trial must take less than this share of the time to be kept


def available_threads() -> int:
    """The CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Helpers:
    """The helper threads of one record, started when they are first woken.

    They end with the object, at the latest with the process. A forked child has none of its
    parent's and starts its own.

    Args:
        kernels: whose `help` they run.
        record: what they work on.
        count: the most that are ever woken.
    """

    def __init__(self, kernels: Kernels, record: Record, count: int) -> None:
        self._kernels, self._record, self._count = kernels, record, count
        self._parked = [(PARKED + THREAD_BYTES * (n + 1)) >> 3 for n in range(count)]
        self._begin()

    def _begin(self) -> None:
        """No thread runs yet."""
        self._process = os.getpid()
        self._wakes: list[threading.Semaphore] = []
        self._threads: list[threading.Thread] = []
        self._record.words[QUIT >> 3] = 0
        self._end = weakref.finalize(self, _stop, self._record, self._wakes, self._threads)

    def wake(self, count: int) -> None:
        """Let the first `count` helpers look for work."""
        if self._process != os.getpid():
            self._end.detach()
            self._begin()
        words = self._record.words
        for number in range(len(self._threads), min(count, self._count)):
            self._start(number)
        for number in range(count):
            place = self._parked[number]
            if words[place]:
                words[place] = 0
                self._wakes[number].release()

    def _start(self, number: int) -> None:
        self._record.words[self._parked[number]] = 1
        self._wakes.append(threading.Semaphore(0))
        thread = threading.Thread(
            target=_help,
            args=(self._kernels, self._record, number, self._wakes[number]),
            name=f"codecria-helper-{number}",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End the threads; `wake` starts others."""
        if self._process == os.getpid():
            self._end()
            self._begin()


def _help(kernels: Kernels, record: Record, number: int, wake: threading.Semaphore) -> None:
    """A helper's life. It holds the record and nothing else of the runner."""
    while True:
        wake.acquire()
        if record.words[QUIT >> 3]:
            return
        kernels.help(record.address, number + 1, LOOKS)


def _stop(
    record: Record, wakes: list[threading.Semaphore], threads: list[threading.Thread]
) -> None:
    record.words[QUIT >> 3] = _NEVER
    for wake in wakes:
        wake.release()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(_JOIN_S)


class ThreadTuner:
    """Chooses the number of threads of each step by how long steps took.

    Args:
        most: threads that may take part.
        fixed: always take all of them.
    """

    def __init__(self, most: int, *, fixed: bool) -> None:
        self.most, self.fixed = most, fixed or most == 1
        self.threads = most  # the quickest known
        self._step = PERIOD - FIRST  # the usual number is measured first
        self._tokens = 0  # of the last step
        self._usual: deque[float] = deque(maxlen=16)
        self._trial: list[float] = []
        self._fewer = True  # which side is tried next

    def choose(self) -> int:
        """Threads of the next step."""
        if self.fixed:
            return self.most
        return self._candidate() if self._step % PERIOD < TRIAL else self.threads

    def measured(self, tokens: int, seconds: float) -> None:
        """How long the step took that `choose` was asked for.

        Args:
            tokens: of the step; steps of different sizes are not compared.
            seconds: its time.
        """
        if self.fixed:
            return
        if tokens != self._tokens:
            if self._tokens:
                self._step = TRIAL
            self._tokens = tokens
            self._usual.clear()
            self._trial.clear()
        place = self._step % PERIOD
        (self._trial if place < TRIAL else self._usual).append(seconds)
        self._step += 1
        if place == TRIAL - 1 and self._usual:
            usual = sum(self._usual) / len(self._usual)
            if sum(self._trial) / len(self._trial) < _GAIN * usual:
                self.threads = self._candidate()
                self._usual.clear()
            else:
                self._fewer = not self._fewer
            self._trial.clear()

    def _candidate(self) -> int:
        """Half or twice as many, within what is allowed."""
        fewer, more = max(1, self.threads // 2), min(self.most, self.threads * 2)
        chosen = fewer if self._fewer else more
        return chosen if chosen != self.threads else fewer + more - self.threads
