"""What the rules read and give: a document prepared for search, and the findings in it."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

EMAIL = "<EMAIL>"
KEY = "<KEY>"
PASSWORD = "<PASSWORD>"
PRIVATE_KEY = "<PRIVATE_KEY>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What is replaced.

    Attributes:
        emails: whether e-mail addresses are.
        secrets: whether keys, tokens and passwords are.
        min_length: the shortest value that is taken for its name alone, in characters.
        min_entropy: the least Shannon entropy of such a value, in bits a character; 32 random
            hexadecimal digits have 3.6 on average, 12 random letters and digits 3.4.
        chosen: whether values of 8 characters or more that only a person could have chosen are
            replaced too, where the name or the place is certain: words that are changed, or put
            together with numbers and signs.
        keep_emails: addresses that stay, either whole (`dev@project.org`) or by host
            (`@project.org`), compared without regard to case.
    """

    emails: bool = True
    secrets: bool = True
    min_length: int = 12
    min_entropy: float = 3.0
    chosen: bool = True
    keep_emails: tuple[str, ...] = ()

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


DEFAULT = Redaction()


class Finding(NamedTuple):
    """A span to replace.

    Attributes:
        start: where it begins.
        end: where it ends.
        rule: the name it is counted under.
        placeholder: what takes its place.
    """

    start: int
    end: int
    rule: str
    placeholder: str


class Document:
    """A text and what several rules need of it, each made when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def lower(self) -> bytes:
        """The text in lower case, a byte a character; `?` for what is not ASCII."""
        return self.text.encode("ascii", "replace").lower()

    @functools.cached_property
    def _marks(self) -> bytes:
        """A mark at the hash of every three characters in a row, in lower case."""
        codes = np.frombuffer(self.lower, np.uint8).astype(np.uint32)
        codes = codes[:-2] | codes[1:-1] << np.uint32(8) | codes[2:] << np.uint32(16)
        marks = np.zeros(1 << 16, np.uint8)
        marks[(codes * np.uint32(_HASH)) >> np.uint32(16)] = 1
        return marks.tobytes()

    def may_hold(self, word: bytes) -> bool:
        """False where a word in lower case does not occur; much faster than to look for it."""
        marks = self._marks
        for code in _hashes(word):  # noqa: SIM110 - half as long as all() with a generator
            if not marks[code]:
                return False
        return True

    def holds_any(self, choice: tuple[bytes, ...]) -> bool:
        """Whether one of some words in lower case occurs."""
        return any(self.may_hold(word) and word in self.lower for word in choice)

    @functools.cached_property
    def names(self) -> Counter[str]:
        """How often each name, number or word occurs."""
        return Counter(_NAME.findall(self.text))

    @functools.cached_property
    def runs(self) -> str:
        """The long runs of token characters with a little around them, joined.

        Vendors' tokens lie in such runs, so their prefixes are looked for in this small text alone.
        Runs of lower-case letters without a digit are names, and left out.
        """
        text = self.text
        shape = text.encode("ascii", "replace").translate(_WORDS)
        # Four at once: wherever it starts, a run of 20 holds four whole blocks of four.
        blocks = np.frombuffer(shape, np.uint32, len(shape) // 4) == _FOUR_WORDS
        in_run = blocks[:-3] & blocks[1:-2] & blocks[2:-1] & blocks[3:]
        runs: list[str] = []
        end = 0
        for at in (np.flatnonzero(in_run) * 4).tolist():
            if at < end:
                continue  # of the run before
            start = shape.rfind(_OTHER, end, at) + 1 or end
            end = shape.find(_OTHER, at)
            end = len(shape) if end < 0 else end
            if end - start < _LONG_RUN:
                continue
            if text[start:end].islower() and not _DIGIT.search(text, start, end):
                continue
            runs.append(text[max(0, start - 20) : end + 2])
        return "\n".join(runs)


_HASH = 0x9E3779B1  # 2^32 over the golden ratio: spreads what differs in a few bits


@functools.lru_cache(maxsize=1024)
def _hashes(word: bytes) -> tuple[int, ...]:
    """The hashes of a word's characters, three in a row; none of a shorter word."""
    threes = (word[at : at + 3] for at in range(len(word) - 2))
    return tuple((int.from_bytes(three, "little") * _HASH & 0xFFFFFFFF) >> 16 for three in threes)


Finder: TypeAlias = Callable[[Document, Redaction], Iterator[Finding]]

_LONG_RUN = 20
_NAME = re.compile(r"\w+")
_DIGIT = re.compile(r"[0-9]")
_FOUR_WORDS = np.frombuffer(b"wwww", np.uint32)[0]
_WORD, _OTHER = b"w", b" "
_WORD_CHARACTERS = frozenset((string.ascii_letters + string.digits + "_-+/").encode())
_WORDS = b"".join(_WORD if code in _WORD_CHARACTERS else _OTHER for code in range(256))


def has_any(text: str, words: tuple[str, ...]) -> bool:
    """Whether a text holds one of some words."""
    for word in words:  # noqa: SIM110 - half as long as any() with a generator
        if word in text:
            return True
    return False


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())
