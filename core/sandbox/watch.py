"""A process that is watched: what it prints is read, and it is killed when it takes too much."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable

from . import boxes
from .wire import Answer, Bounds

LOOK_S = 0.05  # between looks at what it holds and has written
MOST_THREADS = 256  # of one program
MOST_PROCESSES = 64  # of one that may start others
RUNTIME_BYTES = 256 << 20  # that a language's runtime itself may hold
LEFT_TOO_MUCH = "it left more files than can be removed"


class Watch:
    """Looks after a process from its start to its end.

    Args:
        bounds: its limits.
        box: the folder that it writes in.
        child: the process.
        started: when, by the monotonic clock.
        resident_bytes: that it may hold, where address space says little; 0 looks at none.
        group: whether all processes of its group count, as one that starts others has them.
        limited: whether the box has a file system of its own, see `boxes.is_overfull`.

    Attributes:
        reason: why it was killed: "time", or a sentence; empty where it was not.
        deadline: when it is killed.
        also: another process of the same program, which is killed with it.
        reap: gives the wait status of the process, which has ended.
    """

    def __init__(
        self,
        bounds: Bounds,
        box: str,
        child: int,
        started: float,
        *,
        limited: bool,
        resident_bytes: int = 0,
        group: bool = False,
    ) -> None:
        self.bounds = bounds
        self.box = box
        self.child = child
        self.also: int | None = None
        self.reap: Callable[[int], int] = _status
        self.deadline = started + bounds.wall_s
        self.reason = ""
        self._resident_bytes = resident_bytes
        self._group = group
        self._limited = limited

    def until_end(
        self, streams: dict[int, bytearray], feed: tuple[int, bytes] | None = None
    ) -> int:
        """Read the streams until the process has ended; its wait status.

        Args:
            streams: where what it prints goes, by descriptor.
            feed: a descriptor that it reads from, which is closed here, and what it is given.
        """
        poll = select.poll()
        fed, left = feed or (-1, b"")
        if feed is not None:
            os.set_blocking(fed, False)
            poll.register(fed, select.POLLOUT)
        ended = os.pidfd_open(self.child)
        for descriptor in (*streams, ended):
            poll.register(descriptor, select.POLLIN)
        look = time.monotonic() + LOOK_S
        alive = True
        while alive:
            now = time.monotonic()
            if now >= self.deadline:
                self._kill("time")
            elif now >= look:
                look = now + LOOK_S
                if self._is_overfull():
                    self._kill("it wrote more files, or larger ones, than it may")
                elif too_much := self._takes_too_much():
                    self._kill(too_much)
            wait = max(0.0, min(look, self.deadline) - now)
            for descriptor, _ in poll.poll(1_000 * wait + 1):
                if descriptor == ended:
                    alive = False
                elif descriptor == fed:
                    left = _written(fed, left)
                    if not left:
                        poll.unregister(fed)
                        os.close(fed)
                        fed = -1
                elif not self._read(descriptor, streams):
                    poll.unregister(descriptor)
        poll.unregister(ended)
        os.close(ended)
        if fed >= 0:
            poll.unregister(fed)
            os.close(fed)
        if feed is not None:  # what a compiler started ends with it
            with contextlib.suppress(OSError):
                os.killpg(self.child, signal.SIGKILL)
        # No process of the program is left that could fill a pipe: what is there is all there is.
        while left_over := [found for found, event in poll.poll(0) if event & select.POLLIN]:
            for descriptor in left_over:
                if not self._read(descriptor, streams):
                    poll.unregister(descriptor)
        return self.reap(self.child)

    def _read(self, descriptor: int, streams: dict[int, bytearray]) -> bool:
        data = os.read(descriptor, 1 << 16)
        streams[descriptor] += data
        if len(streams[descriptor]) > self.bounds.output_bytes:
            del streams[descriptor][self.bounds.output_bytes :]
            self._kill("it printed more than it may")
            return False
        return bool(data)

    def _kill(self, reason: str) -> None:
        self.reason = self.reason or reason
        with contextlib.suppress(OSError):
            os.kill(self.child, signal.SIGKILL)
        if self.also is not None:
            os.kill(self.also, signal.SIGKILL)  # it is waited for later, so the number is its own
        with contextlib.suppress(OSError):  # where it leads a group
            os.killpg(self.child, signal.SIGKILL)
        self.deadline = float("inf")

    def _takes_too_much(self) -> str:
        """What the child holds beyond its limits, empty where nothing; from /proc."""
        try:
            with open(f"/proc/{self.child}/status", encoding="utf-8") as file:  # noqa: PTH123
                status = dict(line.split(":", 1) for line in file if ":" in line)
        except (OSError, ValueError):
            return ""
        if int(status.get("Threads", "0")) > MOST_THREADS:
            return "it started more threads than it may"
        held = int(status.get("VmRSS", "0 kB").split()[0]) << 10
        if self._group:
            processes, held = _group(self.child)
            if processes > MOST_PROCESSES:
                return "it started more processes than it may"
        if self._resident_bytes and held > self._resident_bytes + RUNTIME_BYTES:
            return "it took more memory than it may"
        return ""

    def _is_overfull(self) -> bool:
        return boxes.is_overfull(
            self.box, disk_bytes=self.bounds.disk_bytes, files=self.bounds.files,
            limited=self._limited, process=self.child,
        )  # fmt: skip


def _group(leader: int) -> tuple[int, int]:
    """How many processes a group has, and the bytes that they hold."""
    count, pages = 0, 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib is not loaded here
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                words = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if len(words) > 21 and int(words[2]) == leader:
            count += 1
            pages += int(words[21])
    return count, pages * os.sysconf("SC_PAGE_SIZE")


def _status(child: int) -> int:
    return os.waitpid(child, 0)[1]


def _written(to: int, data: bytes) -> bytes:
    """What is left of the data after as much was written as goes in; nothing if nobody reads."""
    try:
        return data[os.write(to, data[: 1 << 16]) :] if data else b""
    except BlockingIOError:
        return data
    except OSError:
        return b""


# --- what became of it ----------------------------------------------------------------------------


def judged(
    reason: str,
    code: int,
    proved: bool,
    stderr: str,
    *,
    first: bool = False,
) -> tuple[str, str]:
    """The outcome, and why.

    Args:
        reason: for which the program was killed: "time", or a sentence; empty where it was not.
        code: its exit status, or the signal that ended it, below zero.
        proved: whether it proved that it reached its end.
        stderr: what it printed.
        first: whether it is a compiler's or another runtime's, whose first telling line is shown,
            and which says so when memory runs out; else the last line is.
    """
    if code == 0 and proved and not reason:
        return "passed", ""
    if reason == "time":
        return "timeout", "it did not end in time"
    if reason:
        return "resource", reason
    lines = [text.strip() for text in stderr.splitlines() if text.strip()]
    line = lines[-1] if lines else ""
    if first:
        place = next((n for n, text in enumerate(lines) if _TELLING.search(text)), -1)
        line = lines[place] if lines else ""
        if line.endswith(":") and 0 <= place < len(lines) - 1:  # Rust says what on the next line
            line = f"{line} {lines[place + 1]}"
    line = line[:300]
    if code == -signal.SIGXCPU:
        return "timeout", "it computed longer than it may"
    if code == -signal.SIGXFSZ:
        return "resource", "a file grew larger than it may"
    if first and (any(word in stderr for word in _NO_MEMORY) or boxes.is_full_error(stderr)):
        return "resource", line
    if code < 0:
        return "crashed", f"signal {signal.Signals(-code).name}"
    if line.startswith("MemoryError") or boxes.is_full_error(line):
        return "resource", line
    if code == 0:
        return "failed", "it ended before its last statement"
    return "failed", line or f"exit status {code}"


# Of what compilers and runtimes print, the line to show, and what says that memory ran out.
_TELLING = re.compile(
    r"error: |error TS\d+: |error CS\d+: |error\[E\d+\]|^\S+\.go:\d+:\d+: "
    r"|^(?:Uncaught )?[\w.]*(?:Error|Exception)\b"
    r"|^(?:assertion failed|terminate called|FATAL|panic: )|panicked at |: syntax error"
)
_NO_MEMORY = (
    "std::bad_alloc", "OutOfMemoryError", "heap out of memory", "virtual memory exhausted",
    "out of memory allocating", "Array buffer allocation failed", "cannot allocate memory",
    "Allowed memory size of", "Cannot allocate memory", "xrealloc: ", "xmalloc: ",
)  # fmt: skip


def as_answer(
    judgement: tuple[str, str],
    seconds: float,
    code: int,
    stdout: str,
    stderr: str,
    kept: int,
    *,
    whole: bool = False,
) -> Answer:
    """What a verdict is made of; of what was printed, the ends.

    Args:
        judgement: outcome and detail, see `judged`.
        seconds: by the clock.
        code: the exit status, or the signal that ended the program, below zero.
        stdout, stderr: what it printed.
        kept: characters of it, from the end.
        whole: whether all of stdout is kept.
    """
    told = stdout if whole else stdout[-kept:]
    return Answer(*judgement, seconds, code, told, stderr[-kept:])
