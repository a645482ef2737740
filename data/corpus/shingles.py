"""Words and word n-grams (shingles) of many texts at once, as 64-bit hashes.

A word is a run of ASCII letters, digits, underscores and non-ASCII characters, in lower case;
everything between words is ignored. So white space, line ends, punctuation and indentation make no
difference to near-duplicates (`near.py`) and to decontamination (`decontaminate.py`).

    texts                  "if x == 1:\\n    f(X)"   "return"
    words                  if x 1 f x                return
    shingles of two        (if x) (x 1) (1 f) (f x)  (return)      short texts give one of all words

Everything is numpy over the bytes of a column of texts. A word's hash is a polynomial over random
numbers drawn for its bytes, modulo 2**64, from one running sum: the difference of the sum at its
ends, divided by the power of the base at its start (the base is odd, so it can be divided by).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

WINDOW_BYTES = 1 << 16  # what is hashed at once: its arrays stay in the processor's cache
LONGEST_WORD = 1 << 20  # bytes; a longer run is cut, so that memory is bounded
_BASE = 0x9E3779B97F4A7C15  # odd
_INVERSE = pow(_BASE, -1, 1 << 64)
_STEP = np.uint64(0xD6E8FEB86659FD93)  # odd, the base of the polynomial over words


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words of some texts, one after another.

    Attributes:
        hashes: (W,) of each word.
        offsets: (texts + 1,) the first word of each text, then W.
    """

    hashes: Unsigned
    offsets: Integers


def column(texts: Sequence[str]) -> pa.Array:
    """Texts as the Arrow column that `words` takes."""
    return pa.array(texts, pa.string())


def words(texts: pa.Array) -> Words:
    """The words of a column of strings."""
    data, borders = _bytes_of(texts)
    hashes, starts = [], []
    begin, end = int(borders[0]), int(borders[-1])
    table = _byte_values()
    while begin < end:
        stop = min(begin + WINDOW_BYTES, end)
        values = table[data[begin:stop].astype(np.intp)]
        inside = values != 0
        first, last = np.searchsorted(borders, [begin, stop])
        inner = borders[first:last] - begin  # texts that begin in the window
        if stop < end and inside[-1] and table[data[stop]] and borders[last] != stop:
            stop = _boundary(begin, stop, inside, inner, data, int(borders[last]))
            values = table[data[begin:stop].astype(np.intp)]
            inside = values != 0
            inner = inner[inner < len(inside)]
        before = np.empty_like(inside)  # the byte before is of the same word
        before[0] = False
        before[1:] = inside[:-1]
        before[inner] = False
        after = np.zeros_like(inside)
        after[:-1] = inside[1:]
        after[inner[inner > 0] - 1] = False
        left, right = np.flatnonzero(inside > before), np.flatnonzero(inside > after) + 1
        powers, inverses = _powers(len(inside))
        running = np.zeros(len(inside) + 1, dtype=np.uint64)
        values *= powers
        np.cumsum(values, out=running[1:])
        hashes.append(mix((running[right] - running[left]) * inverses[left]))
        starts.append(left + begin)
        begin = stop
    if not hashes:
        return Words(
            hashes=np.zeros(0, dtype=np.uint64), offsets=np.zeros(len(borders), dtype=np.int64)
        )
    return Words(
        hashes=np.concatenate(hashes),
        offsets=np.searchsorted(np.concatenate(starts), borders).astype(np.int64),
    )


def _bytes_of(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], Integers]:
    """A string column's UTF-8 bytes, and where each text begins in them."""
    large = pa.types.is_large_string(texts.type)
    _, offsets, values = texts.buffers()
    width = np.dtype(np.int64 if large else np.int32)
    borders: Integers = np.frombuffer(offsets, dtype=width).astype(np.int64)
    borders = borders[texts.offset : texts.offset + len(texts) + 1]
    if values is None:
        return np.zeros(0, dtype=np.uint8), borders
    return np.frombuffer(values, dtype=np.uint8), borders


def _boundary(
    begin: int,
    stop: int,
    inside: npt.NDArray[np.bool_],
    inner: Integers,
    data: npt.NDArray[np.uint8],
    text_end: int,
) -> int:
    """Where a window ends that would end inside a word: before that word, or after a long one.

    A cut depends on the word alone, never on where the window began: so a text has the same words
    in any company.
    """
    outside = np.flatnonzero(~inside[::-1][:4096])
    if not len(outside):
        outside = np.flatnonzero(~inside[::-1])
    last = len(inside) - int(outside[0]) if len(outside) else 0
    last = max(last, int(inner[-1]) if len(inner) else 0)
    if last:
        return begin + last
    # The window is one run from its first byte on.
    limit = min(begin + LONGEST_WORD, text_end)
    rest = np.flatnonzero(_byte_values()[data[stop:limit]] == 0)
    return stop + int(rest[0]) if len(rest) else limit


@functools.cache
def _byte_values() -> Unsigned:
    """(256,) a random number for each byte of words, equal for both cases of a letter; else 0."""
    generator = np.random.Generator(np.random.Philox(0xC0DE))
    values = generator.integers(1, 1 << 64, size=256, dtype=np.uint64)
    values[ord("A") : ord("Z") + 1] = values[ord("a") : ord("z") + 1]
    is_word = np.zeros(256, dtype=bool)
    is_word[128:] = True
    is_word[[*range(48, 58), *range(65, 91), 95, *range(97, 123)]] = True
    return np.where(is_word, values, 0).astype(np.uint64)


@functools.lru_cache(maxsize=2)
def _power_tables(size: int) -> tuple[Unsigned, Unsigned]:
    tables = []
    for base in (_BASE, _INVERSE):
        powers = np.full(size, base, dtype=np.uint64)
        powers[0] = 1
        tables.append(np.cumprod(powers))
    return tables[0], tables[1]


def _powers(size: int) -> tuple[Unsigned, Unsigned]:
    """(size,) powers of the base and of its inverse."""
    forward, backward = _power_tables(WINDOW_BYTES if size <= WINDOW_BYTES else LONGEST_WORD)
    return forward[:size], backward[:size]


def mix(values: Unsigned) -> Unsigned:
    """Spread hashes so that every bit depends on all (the finaliser of SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Shingles:
    """The n-grams of some texts, one after another, repeated ones too.

    Attributes:
        hashes: (S,) of each n-gram.
        offsets: (texts + 1,) the first n-gram of each text, then S.
    """

    hashes: Unsigned
    offsets: Integers

    def of(self, text: int) -> Unsigned:
        """The hashes of one text."""
        return self.hashes[self.offsets[text] : self.offsets[text + 1]]


def shingles(found: Words, size: int, *, whole_short: bool = True) -> Shingles:
    """All n-grams of `size` words.

    Args:
        found: the words.
        size: words in an n-gram, at least 1.
        whole_short: a text of fewer words (but not none) gives one n-gram of all of them.
    """
    assert size >= 1, f"n-grams of {size} words"
    hashes, offsets = found.hashes, found.offsets
    lengths = np.diff(offsets)
    counts = np.maximum(lengths - size + 1, 0)
    short = np.flatnonzero((lengths > 0) & (lengths < size)) if whole_short else lengths[:0]
    total = max(0, len(hashes) - size + 1)
    sums = np.zeros(total, dtype=np.uint64)
    power = np.uint64(1)
    with np.errstate(over="ignore"):
        for k in range(size):
            sums += hashes[k : k + total] * power
            power = power * _STEP
    # What begins within `size` of a text's end would reach into the next text.
    starts = np.ones(total, dtype=bool)
    ends = offsets[1:][:, None] - np.arange(1, size)[None, :]
    ends = ends[(ends >= offsets[:-1][:, None]) & (ends < total)]
    starts[ends] = False
    grams = mix(sums[starts])
    border = np.concatenate([[0], np.cumsum(counts)])
    if len(short):
        powers = np.array([pow(int(_STEP), k, 1 << 64) for k in range(size)], dtype=np.uint64)
        wholes = np.array(
            [
                (hashes[offsets[i] : offsets[i + 1]] * powers[: lengths[i]]).sum(dtype=np.uint64)
                for i in short
            ],
            dtype=np.uint64,
        )
        grams = np.insert(grams, border[short], mix(wholes))
        counts[short] = 1
        border = np.concatenate([[0], np.cumsum(counts)])
    return Shingles(hashes=grams, offsets=border.astype(np.int64))
