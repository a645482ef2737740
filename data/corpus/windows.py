"""Windows of words and of tokens in texts, as hashes (`decontaminate.py` has their use).

A window of words is so many words of `shingles.py` in a row. A window of tokens also holds
operators, and every name in it is replaced by the distance to where it stood before in the window.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from . import shingles

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

SEGMENT = 1 << 15  # windows hashed at once, from one running sum
_BASE = 0xD1342543DE82EF95  # odd, of the polynomial over words or tokens
_POSITION = np.uint64(0xFFFF)
_WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]{1,%d}" % shingles.LONGEST_WORD)
# What changes when code is formatted again: brackets, commas, colons and quotes are no tokens.
_OPERATORS = b"+-*/%=<>!&|^~.?@$["
# Words that nobody renames: what Python and the languages its problems are translated into reserve.
# Left out is what they reserve but programs in another of them use as names (end, string, type).
# Written out, so that an index does not depend on the Python that made it.
_KEYWORDS = """
False None True and as assert async await break class continue def del elif else except finally for
from global if import in is lambda nonlocal not or pass raise return try while with yield self cls
__init__ __main__ __name__
catch const do enum extends extern fn foreach elseif endif esac fi function goto implements include
impl instanceof interface isset let mut namespace nullptr null package private protected public
sizeof static struct super switch template this throw throws typedef typename typeof undefined
unsigned using usize virtual void volatile
"""
# Builtins: nobody renames them where they are called; elsewhere `max` may well be a variable.
_CALLED = """
abs all any bin bool bytearray bytes chr dict divmod enumerate eval exec filter float format
frozenset getattr hasattr hash hex id input int isinstance issubclass iter len list map max min next
object oct open ord pow print range repr reversed round set setattr slice sorted str sum tuple type
vars zip Exception IndexError KeyError RuntimeError StopIteration TypeError ValueError Counter
defaultdict deque namedtuple reduce partial sqrt
append array cap console count echo explode implode isNaN make parseFloat parseInt printf println
push_back reverse size sizeof sort strlen swap to_string vec
"""


@functools.cache
def power_tables() -> tuple[Unsigned, Unsigned]:
    """The powers of the base and of its inverse, as many as a segment's windows reach."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.full(SEGMENT + 256, base, dtype=np.uint64)
        powers[0] = 1
        tables.append(np.cumprod(powers))
    return tables[0], tables[1]


def _running(values: Unsigned) -> Unsigned:
    total = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values, out=total[1:])
    return total


def word_windows(hashes: Unsigned, size: int) -> Iterator[tuple[int, Unsigned]]:
    """(first window, hashes of the windows from there on), over the ends of texts too."""
    powers, inverses = power_tables()
    for begin in range(0, len(hashes) - size + 1, SEGMENT):
        piece = hashes[begin : begin + SEGMENT + size - 1]
        total = _running(piece * powers[: len(piece)])
        windows = total[size:] - total[:-size]
        windows *= inverses[: len(windows)]
        yield begin, windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of some texts, one after another (T in all).

    Attributes:
        hashes: (T,) of each.
        is_name: (T,) whether it may be renamed.
        is_number: (T,) whether it begins with a digit.
        is_word: (T,) whether it is a word of `shingles.py`.
        starts: (T,) where it begins in the texts' bytes.
        offsets: (texts + 1,) the first token of each text, then T.
    """

    hashes: Unsigned
    is_name: Flags
    is_number: Flags
    is_word: Flags
    starts: Integers
    offsets: Integers


@functools.cache
def _classes() -> bytes:
    """(256,) 2 for a byte of words, 1 for an operator, 0 for what is between tokens."""
    table = bytearray(256)
    for byte in range(256):
        table[byte] = 2 if _WORD.match(bytes([byte])) else int(byte in _OPERATORS)
    return bytes(table)


@functools.cache
def _operator_hashes() -> Unsigned:
    generator = np.random.Generator(np.random.Philox(0x0FE6))
    return generator.integers(1, 1 << 64, size=256, dtype=np.uint64)


@functools.cache
def _distance_hashes() -> Unsigned:
    """(257,) a hash for each distance to a name's last occurrence; the first for none."""
    generator = np.random.Generator(np.random.Philox(0xD157))
    return generator.integers(1, 1 << 64, size=257, dtype=np.uint64)


@functools.cache
def _fixed_words() -> tuple[np.uint64, Unsigned, Flags]:
    """A shift and two tables, by a word's 14 bits from there: the fixed word, if only when called.

    A word is fixed where the first table holds its hash.
    """
    keywords, called = (
        np.unique(shingles.words(shingles.column([names])).hashes) for names in (_KEYWORDS, _CALLED)
    )
    called = np.setdiff1d(called, keywords)
    hashes = np.concatenate([keywords, called])
    for shift in range(51):
        slots = ((hashes >> np.uint64(shift)) & np.uint64(0x3FFF)).astype(np.intp)
        if len(np.unique(slots)) == len(slots):
            table, if_called = np.zeros(1 << 14, dtype=np.uint64), np.zeros(1 << 14, dtype=bool)
            table[slots] = hashes
            if_called[slots[len(keywords) :]] = True
            return np.uint64(shift), table, if_called
    raise AssertionError("no 14 bits distinguish the fixed words")


def bytes_of(texts: pa.Array) -> tuple[memoryview, Integers]:
    """A string column's UTF-8 bytes, and where each text begins in them."""
    _, offsets, values = texts.buffers()
    width = np.dtype(np.int64 if pa.types.is_large_string(texts.type) else np.int32)
    borders = np.frombuffer(offsets, dtype=width)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(values if values is not None else b""), borders.astype(np.int64)


def tokens_of(texts: pa.Array, found: shingles.Words) -> Tokens:
    """The tokens of a column of strings, whose words are `found`."""
    view, borders = bytes_of(texts)
    begin, end = int(borders[0]), int(borders[-1])
    data = np.frombuffer(view, dtype=np.uint8)[begin:end]
    borders = borders - begin
    classes = np.frombuffer(view[begin:end].tobytes().translate(_classes()), dtype=np.uint8)
    inside = classes == 2
    first = classes != 0
    first[1:] &= ~(inside[1:] & inside[:-1])
    inner = borders[borders < len(data)]
    first[inner] = classes[inner] != 0
    starts = np.flatnonzero(first)
    is_word = inside[starts]
    if np.count_nonzero(is_word) != len(found.hashes):
        starts = _cut_long_words(inside, starts, borders)
        is_word = inside[starts]
    leading = data[starts]
    hashes = _operator_hashes()[leading]
    hashes[is_word] = found.hashes
    offsets = np.searchsorted(starts, borders).astype(np.int64)
    shift, table, if_called = _fixed_words()
    slots = ((found.hashes >> shift) & np.uint64(0x3FFF)).astype(np.intp)
    fixed = table[slots] == found.hashes
    fixed &= ~if_called[slots] | _called(data, inside, starts[is_word], borders)
    is_number = (leading >= ord("0")) & (leading <= ord("9"))
    is_name = is_word & ~is_number
    is_name[is_word] &= ~fixed
    # An attribute is no variable; but what follows two dots is (a range's end). A text's first
    # token follows nothing.
    is_dot = leading == ord(".")
    after = np.zeros(len(starts) + 1, dtype=bool)
    after[1:] = is_dot
    after[offsets] = False
    after_two = np.zeros(len(starts) + 1, dtype=bool)
    after_two[1:] = is_dot & after[:-1]
    after_two[offsets] = False
    is_name &= ~after[:-1] | after_two[:-1]
    return Tokens(
        hashes=hashes,
        is_name=is_name,
        is_number=is_number,
        is_word=is_word,
        starts=starts + begin,
        offsets=offsets,
    )


def _called(data: Bytes, inside: Flags, words: Integers, borders: Integers) -> Flags:
    """Of each word of some texts, whether a bracket opens right after it."""
    opens = data == ord("(")
    opens[borders[borders < len(data)]] = False  # the next text's bracket
    opens[1:] &= inside[:-1]
    # A word that brackets follow is the last that begins before them.
    called = np.zeros(len(words), dtype=bool)
    called[np.searchsorted(words, np.flatnonzero(opens)) - 1] = True
    return called


def _cut_long_words(inside: Flags, starts: Integers, borders: Integers) -> Integers:
    """The tokens' starts where words are longer than `shingles` takes in one piece."""
    stops = np.flatnonzero(~inside)
    words = starts[inside[starts]]
    ends = np.append(stops, len(inside))[np.searchsorted(stops, words)]
    ends = np.minimum(ends, borders[np.searchsorted(borders, words, side="right")])
    longest = shingles.LONGEST_WORD
    more = [
        np.arange(word + longest, end, longest)
        for word, end in zip(words.tolist(), ends.tolist(), strict=True)
        if end - word > longest
    ]
    cut: Integers = np.sort(np.concatenate([starts, *more]))
    return cut


def token_windows(tokens: Tokens, size: int) -> Iterator[tuple[int, Unsigned]]:
    """(first window, hashes of the windows from there on), over the ends of texts too.

    A name's value is that of a first occurrence; what a later one adds to that is added to the
    windows that hold both, by a running sum over where such windows begin and end.
    """
    powers, inverses = power_tables()
    distances = _distance_hashes()
    for begin in range(0, len(tokens.hashes) - size + 1, SEGMENT):
        stop = begin + SEGMENT + size - 1
        hashes, is_name = tokens.hashes[begin:stop], tokens.is_name[begin:stop]
        values = np.where(is_name, distances[0], hashes)
        values *= powers[: len(values)]
        total = _running(values)
        windows = total[size:] - total[:-size]
        previous, following = pairs_of(hashes, is_name, size)
        gain = distances[following - previous]
        gain -= distances[0]
        gain *= powers[following]
        change = np.zeros(len(hashes) + size + 1, dtype=np.uint64)
        change[following + 1] = gain
        change[previous + 1 + size] -= gain
        np.cumsum(change, out=change)
        windows += change[size : size + len(windows)]
        windows *= inverses[: len(windows)]
        yield begin, windows


def pairs_of(hashes: Unsigned, is_name: Flags, size: int) -> tuple[Integers, Integers]:
    """Where names stand, and where the same name stands next, less than `size` later."""
    names = np.flatnonzero(is_name)
    order = hashes[names] & ~_POSITION
    order |= names.astype(np.uint64)  # a segment has fewer than 2**16
    order.sort()
    places = (order & _POSITION).astype(np.int64)
    same = (order[1:] ^ order[:-1]) <= _POSITION
    same &= (places[1:] - places[:-1]) < size
    return places[:-1][same], places[1:][same]


def owners_of(offsets: Integers, places: Integers, sizes: Integers | int) -> tuple[Integers, Flags]:
    """The text of each window, and whether the window ends in it too."""
    owners = np.searchsorted(offsets, places, side="right") - 1
    return owners, places + sizes <= offsets[owners + 1]


def begins_with_letters(texts: pa.Array, tokens: Tokens) -> Flags:
    """Of each word, whether its first two characters are letters (or not ASCII)."""
    view, _ = bytes_of(texts)
    is_letter = np.zeros(256, dtype=bool)
    is_letter[[*range(65, 91), *range(97, 123), *range(128, 256)]] = True
    letters = np.append(is_letter[np.frombuffer(view, dtype=np.uint8)], False)
    starts = tokens.starts[tokens.is_word]
    both: Flags = letters[starts] & letters[starts + 1]
    return both


def window_sums(flags: Flags, places: Integers, size: int) -> Integers:
    """How many flags are set in each window."""
    total = np.concatenate([[0], np.cumsum(flags)])
    sums: Integers = total[places + size] - total[places]
    return sums


def different_values(values: Unsigned, places: Integers, size: int) -> Integers:
    """How many different values each window has."""
    windows = np.lib.stride_tricks.sliding_window_view(values, size)[places]
    windows = np.sort(windows, axis=1)
    different: Integers = 1 + (windows[:, 1:] != windows[:, :-1]).sum(axis=1)
    return different
