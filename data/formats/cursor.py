"""A gap in a text: where it is, what stands before and after it, and the text with it filled.

Line ends are the model's `\\n` while it works, and come back as they were: a file whose lines all
end in `\\r\\n` is written so again. A byte order mark stays at the start.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from codecria.data.errors import UsageError

MARKER = "<FILL_ME>"
BOM = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A place in a text.

    Attributes:
        prefix, suffix: what stands before and after it, lines ending in a line feed.
        original: the text as it was, without a marker.
        mark: a byte order mark, or nothing.
        carriage: whether every line ended in carriage return and line feed.
    """

    prefix: str
    suffix: str
    original: str
    mark: str = ""
    carriage: bool = False

    def shown(self, middle: str) -> str:
        """A middle with the line ends of the text around it."""
        return middle.replace("\n", "\r\n") if self.carriage else middle

    def filled(self, middle: str) -> str:
        """The whole text with the gap filled."""
        return self.mark + self.shown(self.prefix + middle + self.suffix)

    def diff(self, middle: str, name: str) -> str:
        """What filling changes, as a unified diff of lines."""
        before, after = (
            text.removeprefix(BOM).splitlines(keepends=True)
            for text in (self.original, self.filled(middle))
        )
        lines = difflib.unified_diff(before, after, f"a/{name}", f"b/{name}")
        told = [
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for line in lines
        ]
        return "".join(told)


def parse_place(text: str) -> tuple[int, int]:
    """`LINE:COL` as numbers, both from 1.

    Raises:
        UsageError: it is not that.
    """
    line, separator, column = text.partition(":")
    if not (separator and line.isdecimal() and column.isdecimal() and int(line) and int(column)):
        raise UsageError(
            f"--at {text!r} is no place in a file", hint="--at LINE:COL, both counted from 1"
        )
    return int(line), int(column)


def at_place(text: str, line: int, column: int) -> Gap:
    """The gap before a column of a line, both from 1, in code points; the end of a line has one.

    Raises:
        UsageError: there is no such line or column.
    """
    mark = BOM if text.startswith(BOM) else ""
    plain = text.removeprefix(BOM)
    carriage = _is_carriage(plain)
    if carriage:
        plain = plain.replace("\r\n", "\n")
    lines = plain.split("\n")
    if line > len(lines):
        raise UsageError(f"there is no line {line}", hint=f"the file has lines 1 to {len(lines)}")
    here = lines[line - 1]
    if column > len(here) + 1:
        raise UsageError(
            f"line {line} has no column {column}", hint=f"its columns are 1 to {len(here) + 1}"
        )
    start = sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
    return Gap(
        prefix=plain[:start], suffix=plain[start:], original=text, mark=mark, carriage=carriage
    )


def at_marker(text: str, marker: str = MARKER) -> Gap:
    """The gap where a marker stands.

    Raises:
        UsageError: it stands nowhere, or at several places.
    """
    count = text.count(marker)
    if count != 1:
        raise UsageError(
            f"{marker} stands at {count} places" if count else f"there is no {marker}",
            hint="mark one place, or name another marker with --marker",
        )
    before, after = text.split(marker)
    return between(before, after)


def between(before: str, after: str) -> Gap:
    """The gap between two texts."""
    original = before + after
    mark = BOM if before.startswith(BOM) else ""
    carriage = _is_carriage(original)
    prefix, suffix = before.removeprefix(BOM), after
    if carriage:
        prefix, suffix = (text.replace("\r\n", "\n") for text in (prefix, suffix))
    return Gap(prefix=prefix, suffix=suffix, original=original, mark=mark, carriage=carriage)


def _is_carriage(text: str) -> bool:
    """Whether every line end is a carriage return and a line feed."""
    pairs = text.count("\r\n")
    return pairs > 0 and pairs == text.count("\n") == text.count("\r")
