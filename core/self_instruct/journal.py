"""A journal of self-instruct: lines that each have an id.

Whatever costs time (what a model answered, how a program ended) is appended at once, under an id
that is a digest of what was asked. Everything else is derived from journals, so a run that was
killed at any moment asks for what is missing and ends with the same files.

A damaged line is left out and reported; what it held is asked for again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codecria.data.journal import Journal as Lines
from codecria.data.journal import open_journal, read_journal

Line = dict[str, Any]


class Journal:
    """The lines of one file by their ids; use `journal` to open one.

    Attributes:
        path: of the file.
        damaged: numbers of lines that could not be read.
    """

    def __init__(self, lines: Lines) -> None:
        self.path = lines.path
        self.damaged: list[int] = []
        self._lines = lines
        self._starts: dict[str, int] = {}
        for entry in lines.entries():
            line = _with_id(entry.value)
            if line is None:
                self.damaged.append(entry.number)
            else:
                self._starts.setdefault(line["id"], entry.start)

    def __contains__(self, key: str) -> bool:
        return key in self._starts

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order in which they were appended."""
        return iter(self._starts)

    def get(self, key: str) -> Line | None:
        """The line of an id; None if there is none."""
        start = self._starts.get(key)
        return None if start is None else _with_id(self._lines.value_at(start))

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines; those whose id is known already are left out.

        Raises:
            UserError: the file cannot be written. The lines before stay.
        """
        fresh: dict[str, Mapping[str, Any]] = {}
        for line in lines:
            if line["id"] not in self._starts:
                fresh.setdefault(line["id"], line)
        self._starts |= zip(fresh, self._lines.append(fresh.values()), strict=True)


def _with_id(value: Any) -> Line | None:
    """A line that has an id, or None."""
    return value if isinstance(value, dict) and isinstance(value.get("id"), str) else None


@contextlib.contextmanager
def journal(path: Path) -> Iterator[Journal]:
    """A journal to read and to append to, for one process at a time.

    Args:
        path: of the file; made if it is missing.

    Raises:
        UserError: another process writes to it, or it cannot be written.
    """
    with open_journal(path) as lines:
        yield Journal(lines)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a journal, or of a file made of one, that another process may be writing.

    Raises:
        UserError: it cannot be read.
    """
    for entry in read_journal(path):
        line = _with_id(entry.value)
        if line is not None:
            yield line
