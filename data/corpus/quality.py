"""Filters for code: a document is kept unless one named predicate says otherwise.

The thresholds are the field's customary ones (the StarCoder and CodeParrot preparations): lines of
at most 1,000 characters and 100 on average, a quarter of the characters alphanumeric, no generated
file. Data and prose differ: long lines are usual there, so each class of language has its own
`Limits`. A recipe holds the whole `Quality`, so the numbers travel with the shards they made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .generated import is_generated
from .languages import LanguageClass, language_class
from .reasons import Reason, Verdict

_ASCII_ALPHANUMERIC = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds for one class of language; lengths in characters, None for no limit.

    Attributes:
        longest_line: a document with a longer line is dropped.
        mean_line: so is one whose lines are longer on average, line ends not counted.
        alphanumeric_share: so is one with a smaller share of letters and digits.
    """

    longest_line: int | None = 1000
    mean_line: int | None = 100
    alphanumeric_share: float = 0.25

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """All filters' thresholds.

    Attributes:
        programming, markup, data, prose: by class of language (`languages.json`).
        min_characters: shorter documents, white space at the ends not counted, are dropped.
        max_bytes: larger documents (UTF-8) are dropped.
        generated_lines: how many lines at the front, and after the comments that open a file, are
            searched for a generator's notice (`generated.py`); 0 turns it off.
    """

    programming: Limits = Limits()
    markup: Limits = Limits()
    data: Limits = Limits(longest_line=10_000, mean_line=1000)
    prose: Limits = Limits(longest_line=None, mean_line=None)
    min_characters: int = 20
    max_bytes: int = 1 << 20
    generated_lines: int = 10

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def limits(self, kind: LanguageClass) -> Limits:
        """The limits of one class of language."""
        by_class = {
            "programming": self.programming,
            "markup": self.markup,
            "data": self.data,
            "prose": self.prose,
        }
        return by_class[kind]


DEFAULT = Quality()


def judge(text: str, language: str, quality: Quality = DEFAULT) -> Verdict | None:
    """The first predicate that rules a document out, or None: it is good."""
    limits = quality.limits(language_class(language))
    if verdict := _length(text, quality):
        return verdict
    if is_generated(text, lines=quality.generated_lines):
        return Verdict(Reason.GENERATED, "says so at its head")
    longest, mean = line_lengths(text)
    if limits.longest_line is not None and longest > limits.longest_line:
        detail = f"a line of {longest:,} characters, at most {limits.longest_line:,}"
        return Verdict(Reason.LINE_TOO_LONG, detail)
    if limits.mean_line is not None and mean > limits.mean_line:
        detail = f"{mean:.1f} characters a line on average, at most {limits.mean_line}"
        return Verdict(Reason.LINES_TOO_LONG, detail)
    share = alphanumeric_share(text)
    if share < limits.alphanumeric_share:
        detail = f"{share:.3f} of the characters, at least {limits.alphanumeric_share}"
        return Verdict(Reason.FEW_ALPHANUMERIC, detail)
    return None


def _length(text: str, quality: Quality) -> Verdict | None:
    characters = len(text.strip())
    if not characters:
        return Verdict(Reason.EMPTY)
    if characters < quality.min_characters:
        return Verdict(
            Reason.TOO_SHORT, f"{characters} characters, at least {quality.min_characters}"
        )
    # Four bytes a character at most: most texts need not be encoded to know.
    if len(text) * 4 > quality.max_bytes and (size := len(text.encode())) > quality.max_bytes:
        return Verdict(Reason.TOO_LARGE, f"{size:,} bytes, at most {quality.max_bytes:,}")
    return None


def line_lengths(text: str) -> tuple[int, float]:
    """(longest, mean) length of the lines in characters, line ends not counted."""
    lengths = [len(line) for line in text.splitlines()]
    return (max(lengths), sum(lengths) / len(lengths)) if lengths else (0, 0.0)


def alphanumeric_share(text: str) -> float:
    """The share of characters that are letters or digits of any script; 0 for an empty text."""
    if not text:
        return 0.0
    # Bytes are counted at memory speed, and few characters of code lie outside ASCII.
    data = text.encode()
    count = len(data) - len(data.translate(None, _ASCII_ALPHANUMERIC))
    if not text.isascii():
        count += sum(c.isalnum() for run in _NOT_ASCII.findall(text) for c in run)
    return count / len(text)
