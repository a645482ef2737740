"""A journal: a JSON line for each thing that is known, written as it becomes known.

Whatever costs time (what a model answered, how a program ended) goes to a journal at once, under an
id that is a digest of what was asked. Everything else is derived from journals, so a run that was
killed at any moment asks for what is missing and ends with the same files.

A line that a kill tore is cut off. A damaged line elsewhere is passed over and told: what it held
is asked for again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from codecria.data.errors import UserError
from codecria.data.files import write_error

Line = dict[str, Any]


class Journal:
    """The lines of one file by their ids; use `journal` to open one.

    Attributes:
        path: of the file.
        damaged: numbers of lines that could not be read.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.damaged: list[int] = []
        self._file = file
        self._places: dict[str, int] = {}
        file.seek(0)
        end = 0
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                break  # torn
            line = _parsed(raw)
            if line is None:
                self.damaged.append(number)
            else:
                self._places.setdefault(line["id"], end)
            end += len(raw)
        file.truncate(end)
        self._end = end

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order in which they became known."""
        return iter(self._places)

    def get(self, key: str) -> Line | None:
        """The line of an id; None where there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        self._file.seek(place)
        return _parsed(self._file.readline())

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines; those whose id is known already are passed over.

        Raises:
            UserError: the file cannot be written. Lines before stay.
        """
        fresh = b""
        places: dict[str, int] = {}
        for line in lines:
            key = line["id"]
            if key in self._places or key in places:
                continue
            places[key] = self._end + len(fresh)
            # Escaped: what a model says may hold what UTF-8 cannot.
            fresh += json.dumps(line).encode() + b"\n"
        if not fresh:
            return
        try:
            _write_whole(self._file.fileno(), fresh)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._end)
            raise write_error(self.path, error) from error
        self._end += len(fresh)
        self._places |= places


def _write_whole(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _parsed(raw: bytes) -> Line | None:
    """A line with an id, or None."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("id"), str) else None


@contextlib.contextmanager
def journal(path: Path) -> Iterator[Journal]:
    """A journal to read and to append to, for one process at a time.

    Args:
        path: of the file; made where it is missing.

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
            raise UserError(
                f"another process is writing to {path}", hint="wait until it ends"
            ) from error
        yield Journal(path, file)
        with contextlib.suppress(OSError):  # a pipe, or a file system without it
            os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a journal, or of a file made of one, that somebody else may be writing.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            for raw in file:
                line = _parsed(raw) if raw.endswith(b"\n") else None
                if line is not None:
                    yield line
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
