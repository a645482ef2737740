"""Between the sandbox and its servers: jobs and answers, as fields of bytes.

Nothing but the standard library's C modules: what a server loads, every program's fork pays for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

MOST_BYTES = 1 << 30  # of a message
READ_BYTES = 1 << 16  # at a time
_LIMITS = struct.Struct("<dQQQQQ")
_ENDING = struct.Struct("<dq??")


class Socket(Protocol):
    """What is needed of a socket."""

    def recv(self, size: int, /) -> bytes:
        """Some of what comes."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Send all of it."""
        ...


class Setup(NamedTuple):
    """What a server is started with.

    Attributes:
        kind: what it runs, see `worker.py`.
        socket: descriptor of the socket for jobs.
        boxes: an empty folder of ours, for its boxes.
        confined: whether it and its programs are confined.
        landlock: whether Landlock governs files.
        own_disk: how the boxes get a file system of their own: "namespaces" makes them, "mount"
            mounts in those that bubblewrap made, "" leaves the folder as it is.
        disk_bytes, files: of that file system.
        packages: the folder that programs import packages from, empty where they may not.
        readable: paths that these packages' files are read from, a line each.
        compiled: whether the packages hold compiled code.
    """

    kind: str
    socket: int
    boxes: str
    confined: bool
    landlock: bool
    own_disk: str
    disk_bytes: int
    files: int
    packages: str = ""
    readable: str = ""
    compiled: bool = False

    def words(self) -> list[str]:
        """As arguments of a command."""
        return [str(int(part)) if isinstance(part, bool) else str(part) for part in self]

    @classmethod
    def of(cls, words: Sequence[str]) -> Setup:
        """From arguments of a command."""
        kind, socket, boxes, confined, landlock, own_disk, disk_bytes, files, *packages = words
        folder, readable, compiled = packages
        return cls(
            kind, int(socket), boxes, confined == "1", landlock == "1", own_disk,
            int(disk_bytes), int(files), folder, readable, compiled == "1",
        )  # fmt: skip


class Bounds(NamedTuple):
    """The limits of a program; see `verdict.Limits`, which a server does not load."""

    wall_s: float
    memory_bytes: int
    output_bytes: int
    disk_bytes: int
    files: int
    kept: int


class Job:
    """A Python program to judge.

    Attributes:
        source, tests, stdin, entry: see `verdict.Program`.
        bounds: its limits.
        isolate: whether solution and tests run in two processes.
        careful: whether nothing of it is looked at by the server itself.
    """

    __slots__ = ("bounds", "careful", "entry", "isolate", "source", "stdin", "tests")

    def __init__(
        self,
        source: str,
        tests: str,
        stdin: str,
        entry: tuple[str, ...],
        bounds: Bounds,
        *,
        isolate: bool,
        careful: bool,
    ) -> None:
        self.source, self.tests, self.stdin, self.entry = source, tests, stdin, entry
        self.bounds, self.isolate, self.careful = bounds, isolate, careful


class Answer(NamedTuple):
    """How a program ended; see `verdict.Verdict`.

    Attributes:
        spent: whether the server must be replaced: what the program left could not be removed.
    """

    outcome: str
    detail: str
    seconds: float
    exit_status: int
    stdout: str
    stderr: str
    isolated: bool = False
    spent: bool = False


def pack_job(job: Job) -> list[bytes]:
    """A job as fields."""
    flags = bytes((job.isolate, job.careful))
    texts = (job.source, job.tests, job.stdin, "\n".join(job.entry))
    return [*map(_bytes, texts), _LIMITS.pack(*job.bounds), flags]


def unpack_job(fields: list[bytes]) -> Job:
    """The job in fields, which are emptied: a program's process has no other copy of its tests."""
    source, tests, stdin, entry = map(_text, fields[:4])
    bounds = Bounds(*_LIMITS.unpack(fields[4]))
    isolate, careful = map(bool, fields[5])
    fields.clear()
    names = tuple(entry.split("\n"))
    return Job(source, tests, stdin, names, bounds, isolate=isolate, careful=careful)


def pack_answer(answer: Answer) -> list[bytes]:
    """An answer as fields."""
    ending = (answer.seconds, answer.exit_status, answer.isolated, answer.spent)
    texts = (answer.outcome, answer.detail, answer.stdout, answer.stderr)
    return [*map(_bytes, texts), _ENDING.pack(*ending)]


def unpack_answer(fields: Sequence[bytes]) -> Answer:
    """The answer in fields."""
    outcome, detail, stdout, stderr = map(_text, fields[:4])
    seconds, status, isolated, spent = _ENDING.unpack(fields[4])
    return Answer(outcome, detail, seconds, status, stdout, stderr, isolated, spent)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # programs may hold what no UTF-8 is


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def send(to: Socket, fields: Sequence[bytes]) -> None:
    """Send a message: how long it is, how many fields, how long each is, and what they hold."""
    count = len(fields)
    lengths = [len(field) for field in fields]
    total = 4 * (count + 1) + sum(lengths)
    to.sendall(struct.pack(f"<{count + 2}I", total, count, *lengths) + b"".join(fields))


def receive(source: Socket) -> list[bytes] | None:
    """The next message, or None where the other side has gone.

    One is answered before the next is sent, so nothing of another is read along.

    Raises:
        ValueError: it is no message.
    """
    data = source.recv(READ_BYTES)
    while len(data) < 4:
        more = source.recv(READ_BYTES)
        if not more:
            return None
        data += more
    total = 4 + int.from_bytes(data[:4], "little")
    if total > MOST_BYTES:
        raise ValueError("a message is too long")
    if len(data) < total:
        parts, have = [data], len(data)
        while have < total:
            more = source.recv(READ_BYTES)
            if not more:
                return None
            parts.append(more)
            have += len(more)
        data = b"".join(parts)
    count = int.from_bytes(data[4:8], "little")
    lengths = struct.unpack_from(f"<{count}I", data, 8)
    fields, start = [], 8 + 4 * count
    for length in lengths:
        fields.append(data[start : start + length])
        start += length
    return fields
