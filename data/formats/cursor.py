"""A gap in a text: the text before and after it, the text with the gap filled, and the patch.

The model reads and writes lines that end in `\\n`. If all lines of a file end in `\\r\\n`, the
filled file and the patch have `\\r\\n` too. A byte order mark stays at the start.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from codecria.data.errors import UsageError

MARKER = "<FILL_ME>"
BOM = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A place in a text.

    Attributes:
        prefix, suffix: what stands before and after it, lines ending in a line feed.
        original: the text as it was, with its marker if it had one.
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
        """What filling changes, as a unified diff that `patch -p1` and `git apply` accept.

        A line ends in a line feed and nowhere else, as it does for both programs: carriage returns,
        form feeds and U+2028 are parts of lines.

        Args:
            middle: what fills the gap.
            name: of the file, from the folder where the patch is to be applied.
        """
        return _unified(self.original, self.filled(middle), name)


CONTEXT_LINES = 3  # around a change, as diff -u and git give


def _unified(old: str, new: str, name: str) -> str:
    """One hunk from the first line that differs to the last; empty where none does."""
    before, after = _lines(old), _lines(new)
    if before == after:
        return ""
    shorter = min(len(before), len(after))
    first = next((n for n in range(shorter) if before[n] != after[n]), shorter)
    most = shorter - first
    behind = next((n for n in range(most) if before[-1 - n] != after[-1 - n]), most)
    start = max(0, first - CONTEXT_LINES)
    more = min(behind, CONTEXT_LINES)
    ends = (len(before) - behind, len(after) - behind)
    shown = [
        *(" " + line for line in before[start:first]),
        *("-" + line for line in before[first : ends[0]]),
        *("+" + line for line in after[first : ends[1]]),
        *(" " + line for line in before[ends[0] : ends[0] + more]),
    ]
    sizes = tuple(_span(start, end + more - start) for end in ends)
    body = "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in shown
    )
    heads = (f"--- {_quoted(f'a/{name}')}", f"+++ {_quoted(f'b/{name}')}")
    return f"{heads[0]}\n{heads[1]}\n@@ -{sizes[0]} +{sizes[1]} @@\n{body}"


def _lines(text: str) -> list[str]:
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop().removesuffix("\n")
    return [*lines, last] if last else lines


def _span(start: int, count: int) -> str:
    """A hunk's place: its first line from 1, and its lines; the line before it if it has none."""
    return f"{start + 1},{count}" if count else f"{start},0"


def _quoted(name: str) -> str:
    """A name for a patch's header: in C's quotes where it holds what would end it.

    After a name with a space stands a tab, which ends it, as git writes it.
    """
    raw = os.fsencode(name)
    if not any(byte < 32 or byte in b'"\\\x7f' for byte in raw) and name.isprintable():
        return f"{name}\t" if " " in name else name
    quoted = "".join(
        f"\\{chr(byte)}" if byte in b'"\\' else chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
        for byte in raw
    )
    return f'"{quoted}"'


def parse_place(text: str) -> tuple[int, int]:
    """`LINE:COL` as numbers, both from 1.

    Raises:
        UsageError: it is not that.
    """
    line, separator, column = text.partition(":")
    if not (separator and line.isdecimal() and column.isdecimal() and int(line) and int(column)):
        raise UsageError(
            f"--at {text!r} is not LINE:COL", hint="both count from 1, as in --at 42:9"
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
    """The gap where a marker stands; filling it takes the marker away.

    Raises:
        UsageError: it stands nowhere, or at several places.
    """
    count = text.count(marker) if marker else 0
    if count != 1:
        raise UsageError(
            f"{marker} stands at {count} places"
            if count
            else f"the marker {marker!r} is not there",
            hint="mark one place, or name another marker with --marker",
        )
    before, after = text.split(marker)
    return replace(between(before, after), original=text)


def between(before: str, after: str) -> Gap:
    """The gap between two texts."""
    mark = BOM if before.startswith(BOM) else ""
    carriage = _is_carriage(before, after)
    prefix, suffix = before.removeprefix(BOM), after
    if carriage:
        prefix, suffix = (text.replace("\r\n", "\n") for text in (prefix, suffix))
    return Gap(prefix=prefix, suffix=suffix, original=before + after, mark=mark, carriage=carriage)


def _is_carriage(*texts: str) -> bool:
    """Whether every line end in each text is a carriage return and a line feed."""
    pairs = [text.count("\r\n") for text in texts]
    return sum(pairs) > 0 and all(
        n == text.count("\n") == text.count("\r") for n, text in zip(pairs, texts, strict=True)
    )
