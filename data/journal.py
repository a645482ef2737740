"""A journal: a file of JSON lines, each appended when its value is known.

A process may be killed at any moment. What it leaves is whole lines and at most one torn line at
the end, which readers leave out and the next writer cuts off. An append that fails (a full disk)
is undone, so the lines before it stay whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import UserError
from .files import write_error


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a journal.

    Attributes:
        number: of the line, from 1.
        start: offset of the line in the file, in bytes.
        value: the JSON value; None if the line is damaged.
        error: why the line is damaged; empty if it is sound.
        blank: the line has only white space (and is damaged, since JSON has no such value).
    """

    number: int
    start: int
    value: Any
    error: str = ""
    blank: bool = False


class Journal:
    """The lines of one open file; use `open_journal` to get one.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._end = 0

    def entries(self) -> Iterator[Entry]:
        """The whole lines of the file. At the end, a torn last line is cut off.

        Read them all before the first append.

        Raises:
            UserError: the torn line cannot be cut off.
        """
        self._file.seek(0)
        self._end = 0
        for number, raw in enumerate(self._file, start=1):
            if not raw.endswith(b"\n"):
                break
            start, self._end = self._end, self._end + len(raw)
            yield _entry(number, start, raw)
        try:
            self._file.truncate(self._end)
        except OSError as error:
            raise write_error(self.path, error) from error

    def value_at(self, start: int) -> Any:
        """The value of the line that starts at this offset; None if it is damaged."""
        self._file.seek(start)
        return _entry(0, start, self._file.readline()).value

    def append(self, values: Iterable[Mapping[str, Any]]) -> list[int]:
        """Append values, a line each: all of them, or none if the write fails.

        Characters outside ASCII are escaped: a text may hold lone surrogates, which UTF-8 cannot.

        Returns:
            the offset of each line.

        Raises:
            UserError: the file cannot be written.
        """
        starts, content = [], b""
        for value in values:
            starts.append(self._end + len(content))
            content += json.dumps(value).encode() + b"\n"
        if content:
            append_whole(self.path, self._file.fileno(), content)
        self._end += len(content)
        return starts


def append_whole(path: Path, descriptor: int, content: bytes) -> None:
    """Append bytes to an open file: all of them, or none if the write fails.

    Args:
        path: of the file, for the message.
        descriptor: opened for appending.
        content: whole lines.

    Raises:
        UserError: the file cannot be written.
    """
    before = os.fstat(descriptor).st_size
    left = content
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if left:  # also after an interrupt: half a line would damage the next
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, before)


def append_text(path: Path, text: str) -> None:
    """Append text to a file: all of it, or none if the write fails; the file is made if missing.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        append_whole(path, descriptor, text.encode())
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_journal(path: Path, *, hint: str = "wait until it ends") -> Iterator[Journal]:
    """A journal to read and to append to, for one process at a time.

    Args:
        path: of the file; made if it is missing.
        hint: the next step if another process writes to it.

    Raises:
        UserError: another process writes to it, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is writing to {path}", hint=hint) from error
        yield Journal(path, file)
        with contextlib.suppress(OSError):  # a pipe, or a file system without it
            os.fsync(file.fileno())


def read_journal(path: Path) -> Iterator[Entry]:
    """The lines of a file that another process may be writing, without a torn last line.

    A last line without its line end counts if it is whole: an object ends with its brace.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = 0
            for number, raw in enumerate(file, start=1):
                entry = _entry(number, start, raw)
                start += len(raw)
                if raw.endswith(b"\n") or isinstance(entry.value, dict):
                    yield entry
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _entry(number: int, start: int, raw: bytes) -> Entry:
    try:
        return Entry(number, start, json.loads(raw))
    except (ValueError, RecursionError) as error:
        return Entry(number, start, None, str(error) or "not valid JSON", not raw.strip())
