"""Decontamination: a document that holds a problem we score ourselves on is never trained on.

`build` reads the problems in the formats they are published in, and `Index.hits` says of every text
of a column which problem it holds. Evidence is a window of the text that is also one of a problem:

    words      13 words (`shingles.py`) in a row: white space, case and punctuation do not matter
    short      a whole text of 8 to 12 words, such as a problem's only sentence
    renamed    20 tokens in a row in which every name is replaced by the distance to where it stood
               before in the window (Baker 1996, "Parameterized Pattern Matching"), so that

                   total = 0; for x in xs: total += x        and        s = 0; for i in a: s += i

               are the same; keywords, called builtins, numbers, operators and attributes stay

Texts inside other texts are searched too: in JSON, in strings, behind line numbers (`unwrap.py`).

What is not evidence is left out when the index is made: windows met in more problems than `shared`
(imports, test frames; translations of one problem count once), and windows that say little (rows
of numbers, lines that repeat). The answer for a text depends on that text alone.

Of each problem every text counts, in the order in which a leak would hold it: the prompt with its
solution, as published and as Python without docstrings and comments; the tests; the answer. See
`_texts_of` for files in other layouts.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codecria.data.errors import UserError
from codecria.data.files import atomic_writer, digest_bytes, digest_json

from . import problems as problem_files
from . import shingles
from .unwrap import views

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

Kind = Literal["words", "short", "renamed"]
KINDS: tuple[Kind, ...] = ("words", "short", "renamed")

LONGEST_TEXT = 1 << 18  # characters of a problem's text that are read; longer ones hold test input
LONGEST_PROGRAM = 1 << 15  # characters of a text that is parsed as Python
SHORTEST_SHORT = 8  # words of a text that is evidence as a whole
SHORT_LETTERED = 3  # of its words that begin with two letters, at least
BLOCK_BYTES = 1 << 18  # of text searched at once: its arrays stay in the processor's cache
MOST_BITS = 28  # of a hash that the first look takes: 32 MiB, for sets the size of all of APPS
SEGMENT = 1 << 15  # windows hashed at once, from one running sum
NAMED = 3  # problems that `hits` names
NAMED_MISSING = 20  # problems that `facts` names as not indexed
LAYOUT = 1  # of the saved file, and of what the hashes mean
SEARCH = 2  # counted up when the same index finds more or less in the same text

_BASE = 0xD1342543DE82EF95  # odd, of the polynomial over words or tokens
_POSITION = np.uint64(0xFFFF)
_WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]{1,%d}" % shingles.LONGEST_WORD)
# What changes when code is laid out anew: brackets, commas, colons and quotes are no tokens.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decontamination:
    """What counts as a problem's text inside a document.

    The thresholds of windows of tokens were measured on HumanEval and MBPP: at 20 tokens, four
    fifths and two thirds of their solutions are found with all names replaced and docstrings gone,
    while one file in a thousand of Python's library and of common packages holds a window, which
    is then the same few lines of a textbook. At 18 tokens it is three files, at 16 eight.

    Attributes:
        words: words in a row that are the same; 13, as in the GPT-3 paper (Brown et al. 2020,
            appendix C).
        window: tokens in a row that are the same but for the names; 0 turns it off.
        shared: a window met in more problems than this is no evidence.
        lettered: a window of words needs so many that begin with two letters: an alphabet is no
            evidence, nor is a row of numbers.
        distinct: a window of words needs so many different ones.
        kept: a window of tokens needs so many that are neither numbers nor a name's first
            occurrence.
        kinds: a window of tokens needs so many different ones, names not counted.
    """

    words: int = 13
    window: int = 20
    shared: int = 4
    lettered: int = 3
    distinct: int = 6
    kept: int = 12
    kinds: int = 6

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: naming the field and its range.
        """
        if not SHORTEST_SHORT < self.words <= 64:
            raise ValueError(f"words is {self.words}, not within {SHORTEST_SHORT + 1} and 64")
        if self.window and not 8 <= self.window <= 256:
            raise ValueError(f"window is {self.window}, not 0 and not within 8 and 256")
        if self.shared < 1:
            raise ValueError(f"shared is {self.shared}, not at least 1")
        for field in ("lettered", "distinct"):
            if not 0 <= (value := getattr(self, field)) <= self.words:
                raise ValueError(f"{field} is {value}, not within 0 and words = {self.words}")
        for field in ("kept", "kinds"):
            if self.window and not 0 <= (value := getattr(self, field)) <= self.window:
                raise ValueError(f"{field} is {value}, not within 0 and window = {self.window}")


DEFAULT = Decontamination()


class Hit(NamedTuple):
    """A problem found in a text.

    Attributes:
        problem: its name, such as `HumanEval/12`.
        file: the name of the file it was read from.
        kind: what was found of it.
        grams: how many windows of that kind.
        line: where the first of them begins, counted from 1.
    """

    problem: str
    file: str
    kind: Kind
    grams: int
    line: int


# ------------------------------------------------------------------------------- texts to windows


@functools.cache
def _powers() -> tuple[Unsigned, Unsigned]:
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


def _word_windows(hashes: Unsigned, size: int) -> Iterator[tuple[int, Unsigned]]:
    """(first window, hashes of the windows from there on), over the ends of texts too."""
    powers, inverses = _powers()
    for begin in range(0, len(hashes) - size + 1, SEGMENT):
        piece = hashes[begin : begin + SEGMENT + size - 1]
        total = _running(piece * powers[: len(piece)])
        windows = total[size:] - total[:-size]
        windows *= inverses[: len(windows)]
        yield begin, windows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
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
    raise AssertionError("no 14 bits tell the fixed words apart")


def _bytes_of(texts: pa.Array) -> tuple[memoryview, Integers]:
    """A string column's UTF-8 bytes, and where each text begins in them."""
    _, offsets, values = texts.buffers()
    width = np.dtype(np.int64 if pa.types.is_large_string(texts.type) else np.int32)
    borders = np.frombuffer(offsets, dtype=width)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(values if values is not None else b""), borders.astype(np.int64)


def _tokens(texts: pa.Array, found: shingles.Words) -> _Tokens:
    """The tokens of a column of strings, whose words are `found`."""
    view, borders = _bytes_of(texts)
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
    return _Tokens(
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


def _token_windows(tokens: _Tokens, size: int) -> Iterator[tuple[int, Unsigned]]:
    """(first window, hashes of the windows from there on), over the ends of texts too.

    A name's value is that of a first occurrence; what a later one adds to that is added to the
    windows that hold both, by a running sum over where such windows begin and end.
    """
    powers, inverses = _powers()
    distances = _distance_hashes()
    for begin in range(0, len(tokens.hashes) - size + 1, SEGMENT):
        stop = begin + SEGMENT + size - 1
        hashes, is_name = tokens.hashes[begin:stop], tokens.is_name[begin:stop]
        values = np.where(is_name, distances[0], hashes)
        values *= powers[: len(values)]
        total = _running(values)
        windows = total[size:] - total[:-size]
        previous, following = _pairs(hashes, is_name, size)
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


def _pairs(hashes: Unsigned, is_name: Flags, size: int) -> tuple[Integers, Integers]:
    """Where names stand, and where the same name stands next, less than `size` later."""
    names = np.flatnonzero(is_name)
    order = hashes[names] & ~_POSITION
    order |= names.astype(np.uint64)  # a segment has fewer than 2**16
    order.sort()
    places = (order & _POSITION).astype(np.int64)
    same = (order[1:] ^ order[:-1]) <= _POSITION
    same &= (places[1:] - places[:-1]) < size
    return places[:-1][same], places[1:][same]


def _owners(offsets: Integers, places: Integers, sizes: Integers | int) -> tuple[Integers, Flags]:
    """The text of each window, and whether the window ends in it too."""
    owners = np.searchsorted(offsets, places, side="right") - 1
    return owners, places + sizes <= offsets[owners + 1]


# ---------------------------------------------------------------------------------------- the index


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Windows and the problems they are of, a row for each of the two, sorted.

    Attributes:
        hashes: (P,) of the windows; a window of two problems stands there twice.
        problems: (P,) the problems' numbers.
    """

    hashes: Unsigned
    problems: npt.NDArray[np.uint32]

    def filters(self) -> _Filters:
        """What rules out nearly all windows without a search."""
        width = min(max(10, (len(self.hashes) * 32).bit_length()), MOST_BITS)
        shift = np.uint64(64 - width)
        mask = np.uint64((1 << width) - 1)
        return _Filters(
            shift=shift,
            high=_bits(self.hashes >> shift, width),
            mask=mask,
            low=_bits(self.hashes & mask, width),
        )


class _Filters(NamedTuple):
    """A bit for every value of the hashes' highest bits, and of their lowest: which are there.

    One hash in 32 or fewer passes each by chance.
    """

    shift: np.uint64
    high: Bytes
    mask: np.uint64
    low: Bytes

    def places(self, hashes: Unsigned) -> Integers:
        """Which hashes may be there."""
        found = np.flatnonzero(_is_set(self.high, hashes >> self.shift))
        return found[_is_set(self.low, hashes[found] & self.mask)]


def _bits(slots: Unsigned, width: int) -> Bytes:
    bits = np.zeros(1 << width - 3, dtype=np.uint8)
    here = np.uint8(1) << (slots.astype(np.uint8) & 7)
    np.bitwise_or.at(bits, (slots >> np.uint64(3)).astype(np.intp), here)
    return bits


def _is_set(bits: Bytes, slots: Unsigned) -> Flags:
    chosen = bits[(slots >> np.uint64(3)).astype(np.intp)] >> (slots.astype(np.uint8) & 7)
    chosen &= 1
    return chosen.view(np.bool_)


class _Found(NamedTuple):
    """Windows of some texts that are problems' (N): one row for each window and problem."""

    texts: Integers
    places: Integers
    problems: Integers


class Index:
    """The problems' windows, to be looked for in texts; made by `build`, or read by `load`.

    Attributes:
        recipe: what counts as a hit.
        digest: of the recipe and of all problems' texts, however the files are called and wherever
            they lie.
    """

    def __init__(
        self,
        recipe: Decontamination,
        tables: Mapping[Kind, _Table],
        lengths: npt.NDArray[np.uint8],
        wholes: Unsigned,
        problems: Sequence[str],
        files: Sequence[str],
        facts: Mapping[str, Any],
        digest: str,
    ) -> None:
        self.recipe = recipe
        self.digest = digest
        self._tables = dict(tables)
        self._lengths, self._wholes = lengths, wholes
        self._problems, self._files = list(problems), list(files)
        self._facts = dict(facts)
        self._filters = {kind: table.filters() for kind, table in tables.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its parts; what is derived of them is made anew."""
        return Index, (
            self.recipe,
            self._tables,
            self._lengths,
            self._wholes,
            self._problems,
            self._files,
            self._facts,
            self.digest,
        )

    @property
    def problems(self) -> list[str]:
        """The problems that something can be found of, by name."""
        return sorted(set(self._problems))

    def facts(self) -> dict[str, Any]:
        """What the report says of the index: files, problems, what could not be indexed."""
        return {
            **self._facts,
            "recipe": asdict(self.recipe),
            "grams": {kind: len(np.unique(self._tables[kind].hashes)) for kind in KINDS},
            "digest": self.digest,
        }

    def hits(self, texts: pa.Array) -> list[str | None]:
        """For each text None, or the first few of `problems_in` in one short string."""
        return [_named(problems) if problems else None for problems in self.problems_in(texts)]

    def problems_in(self, texts: pa.Array) -> list[list[str]]:
        """For each text the problems found in it, those with most windows first."""
        counts: dict[int, Counter[str]] = {}
        for numbers, column in _searched(texts):
            for found, _ in self._search(column):
                for text, problem in zip(
                    found.texts.tolist(), found.problems.tolist(), strict=True
                ):
                    counts.setdefault(numbers[text], Counter())[self._problems[problem]] += 1
        return [
            sorted(counts[i], key=lambda name: (-counts[i][name], name)) if i in counts else []
            for i in range(len(texts))
        ]

    def find(self, text: str) -> list[Hit]:
        """All problems found in one text, with what was found and where, most windows first.

        What is found in several forms of the text (`unwrap.py`) is given for the first of them.
        """
        hits: dict[tuple[str, str, Kind], Hit] = {}
        for form in (text, *views(text)):
            for hit in self._find(form):
                hits.setdefault((hit.problem, hit.file, hit.kind), hit)
        return sorted(hits.values(), key=lambda hit: (-hit.grams, hit))

    def _find(self, text: str) -> Iterator[Hit]:
        data = text.encode("utf-8", "replace")
        column = shingles.column([data.decode()])
        lines = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
        tokens = _tokens(column, shingles.words(column))
        for found, kind in self._search(column):
            starts = tokens.starts if kind == "renamed" else tokens.starts[tokens.is_word]
            first: dict[int, int] = {}
            counts = Counter(found.problems.tolist())
            for place, problem in zip(found.places.tolist(), found.problems.tolist(), strict=True):
                first[problem] = min(place, first.get(problem, place))
            for problem, count in counts.items():
                line = int(np.searchsorted(lines, starts[first[problem]])) + 1
                name, file = self._problems[problem], self._files[problem]
                yield Hit(name, file, kind, count, line)

    def _search(self, texts: pa.Array) -> Iterator[tuple[_Found, Kind]]:
        """What is found in some texts, piece by piece."""
        found = shingles.words(texts)
        recipe = self.recipe
        for begin, windows in _word_windows(found.hashes, recipe.words):
            if hit := self._look_up("words", windows, begin, recipe.words, found.offsets):
                yield hit, "words"
        if len(self._tables["short"].hashes):
            for begin, windows in _word_windows(found.hashes, SHORTEST_SHORT):
                hit = self._look_up("short", windows, begin, SHORTEST_SHORT, found.offsets)
                if hit and (hit := self._whole(hit, found)):
                    yield hit, "short"
        if recipe.window and len(self._tables["renamed"].hashes):
            tokens = _tokens(texts, found)
            for begin, windows in _token_windows(tokens, recipe.window):
                if hit := self._look_up("renamed", windows, begin, recipe.window, tokens.offsets):
                    yield hit, "renamed"

    def _look_up(
        self, kind: Kind, windows: Unsigned, begin: int, size: int, offsets: Integers
    ) -> _Found | None:
        """Which of some windows are in a table; in `short`, problems are rows of the table."""
        table = self._tables[kind]
        places = self._filters[kind].places(windows)
        if not len(places):
            return None
        wanted = windows[places]
        low = np.searchsorted(table.hashes, wanted)
        is_there = low < len(table.hashes)
        is_there[is_there] = table.hashes[low[is_there]] == wanted[is_there]
        places = places + begin
        owners, is_within = _owners(offsets, places, size)
        keep = np.flatnonzero(is_there & is_within)
        if not len(keep):
            return None
        low, wanted = low[keep], wanted[keep]
        counts = np.searchsorted(table.hashes, wanted, side="right") - low
        rows = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        problems = rows if kind == "short" else table.problems[rows].astype(np.int64)
        return _Found(np.repeat(owners[keep], counts), np.repeat(places[keep], counts), problems)

    def _whole(self, hit: _Found, found: shingles.Words) -> _Found | None:
        """Those of the windows that go on as the short text does that begins like them."""
        lengths = self._lengths[hit.problems].astype(np.int64)
        keep = hit.places + lengths <= found.offsets[hit.texts + 1]
        rows = hit.problems
        for length in np.unique(lengths[keep]).tolist():
            some = np.flatnonzero(keep & (lengths == length))
            grid = hit.places[some][:, None] + np.arange(length)[None, :]
            sums = (found.hashes[grid] * _powers()[0][:length]).sum(axis=1, dtype=np.uint64)
            keep[some] = sums == self._wholes[rows[some]]
        if not keep.any():
            return None
        problems = self._tables["short"].problems[rows[keep]].astype(np.int64)
        return _Found(hit.texts[keep], hit.places[keep], problems)

    def save(self, path: Path) -> None:
        """Write the index to one Arrow file, which `load` maps into memory.

        Raises:
            UserError: it cannot be written.
        """
        about = {
            "layout": LAYOUT,
            "recipe": asdict(self.recipe),
            "problems": self._problems,
            "files": self._files,
            "facts": self._facts,
            "digest": self.digest,
        }
        columns: dict[str, npt.NDArray[Any]] = {
            "lengths": self._lengths,
            "wholes": self._wholes,
        }
        for kind, table in self._tables.items():
            columns |= {f"{kind}.hashes": table.hashes, f"{kind}.problems": table.problems}
        arrays = []
        for values in columns.values():
            flat = pa.array(np.ascontiguousarray(values))
            offsets = pa.array([0, len(values)], pa.int64())
            arrays.append(pa.LargeListArray.from_arrays(offsets, flat))
        batch = pa.record_batch(arrays, names=list(columns))
        schema = batch.schema.with_metadata({"decontamination": json.dumps(about)})
        with atomic_writer(path) as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch.cast(schema) if batch.schema != schema else batch)

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read a saved index; its arrays stay in the file, mapped, and are shared by processes.

        Raises:
            UserError: it cannot be read, or another version wrote it.
        """
        try:
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                batch = reader.get_batch(0)
                about = json.loads((reader.schema.metadata or {})[b"decontamination"])
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"cannot read the index of problems {path}: {error}", hint="remove it and run again"
            ) from error
        if about.get("layout") != LAYOUT:
            raise UserError(
                f"the index of problems {path} was written by another version",
                hint="remove it and run again",
            )

        def column(name: str) -> npt.NDArray[Any]:
            values: npt.NDArray[Any] = batch.column(name).values.to_numpy(zero_copy_only=True)
            return values

        tables = {
            kind: _Table(hashes=column(f"{kind}.hashes"), problems=column(f"{kind}.problems"))
            for kind in KINDS
        }
        return cls(
            Decontamination(**about["recipe"]),
            tables,
            column("lengths"),
            column("wholes"),
            about["problems"],
            about["files"],
            about["facts"],
            about["digest"],
        )


def _searched(texts: pa.Array) -> Iterator[tuple[Sequence[int], pa.Array]]:
    """(numbers of texts, what is searched of them): the texts, then their other forms."""
    for begin, block in _blocks(texts):
        yield range(begin, begin + len(block)), block
    numbers: list[int] = []
    forms: list[str] = []
    held = 0
    for number, text in enumerate(texts.to_pylist()):
        for form in views(text):
            numbers.append(number)
            forms.append(form)
            held += len(form)
        if held > BLOCK_BYTES:
            yield numbers, shingles.column(forms)
            numbers, forms, held = [], [], 0
    if forms:
        yield numbers, shingles.column(forms)


def _blocks(texts: pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """(number of its first text, slice) of a column, each of some texts and one at least."""
    if not len(texts):
        return
    _, borders = _bytes_of(texts)
    begin = 0
    while begin < len(texts):
        limit = borders[begin] + BLOCK_BYTES
        end = max(begin + 1, int(np.searchsorted(borders, limit, side="right")) - 1)
        yield begin, texts[begin:end]
        begin = end


def _named(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return ", ".join(problems[:NAMED]) + more


# --------------------------------------------------------------------------------- making the index


def build(files: Sequence[Path], recipe: Decontamination = DEFAULT) -> Index:
    """The index of the problems in some files or folders of files.

    Args:
        files: `.jsonl`, `.ndjson`, `.json` (plain, or with `.gz`, `.zst`, `.bz2`) and `.parquet`;
            of a folder all such files below it.
        recipe: what counts as a hit.

    Raises:
        UserError: a file cannot be read, or holds no problem; with file and line.
    """
    maker = _Maker(recipe)
    facts: dict[str, Any] = {}
    for name, path in problem_files.expand(files):
        before, cut, names = maker.texts, maker.cut, set()
        for problem in problem_files.read(path, name):
            names.add(problem.name)
            maker.add(problem)
        if maker.texts == before:
            raise UserError(
                f"{path} holds no problem",
                hint="its records need fields of text, such as prompt, question or text",
            )
        facts[name] = {
            "problems": len(names),
            "texts": maker.texts - before,
            "texts_cut": maker.cut - cut,
        }
    return maker.index(facts)


class _Maker:
    """Gathers windows of problems' texts, then keeps what is evidence."""

    def __init__(self, recipe: Decontamination) -> None:
        self.recipe = recipe
        self.texts = self.cut = 0
        self.names: dict[str, int] = {}
        self.sources: dict[tuple[int, str], int] = {}  # (problem, file) -> number in the tables
        self.longest: list[int] = []  # words in a source's longest text
        self.seen: set[str] = set()
        self.marks: set[str] = set()
        self.waiting: list[tuple[str, int]] = []
        self.waiting_characters = 0
        self.rows: dict[Kind, list[tuple[Unsigned, npt.NDArray[np.uint32]]]] = {
            kind: [] for kind in KINDS
        }
        self.whole_rows: list[tuple[npt.NDArray[np.uint8], Unsigned]] = []

    def add(self, problem: problem_files.Problem) -> None:
        """Take a problem's texts in; the same text of the same problem counts once."""
        name = self.names.setdefault(problem.name, len(self.names))
        number = self.sources.setdefault((name, problem.file), len(self.sources))
        if number == len(self.longest):
            self.longest.append(0)
        for text in problem.texts:
            self.texts += 1
            if len(text) > LONGEST_TEXT:
                text = text[:LONGEST_TEXT]
                self.cut += 1
            data = text.encode("utf-8", "replace")
            mark = digest_bytes(problem.name.encode(), data)
            if mark in self.seen:
                continue
            self.seen.add(mark)
            self.marks.add(digest_bytes(problem.key.encode(), data))
            self.waiting.append((data.decode(), number))
            if bare := _bare_python(text):
                self.waiting.append((bare, number))
            self.waiting_characters += len(text)
        if self.waiting_characters > BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Turn the texts that wait into windows."""
        if not self.waiting:
            return
        texts = shingles.column([text for text, _ in self.waiting])
        numbers = np.array([number for _, number in self.waiting], dtype=np.uint32)
        self.waiting, self.waiting_characters = [], 0
        found = shingles.words(texts)
        tokens = _tokens(texts, found)
        counts = np.diff(found.offsets)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self.longest[number] = max(self.longest[number], count)
        recipe = self.recipe
        lettered = _begins_with_letters(texts, tokens)
        self._add_words(found, lettered, numbers)
        self._add_short(found, lettered, numbers, counts)
        if recipe.window:
            self._add_tokens(tokens, numbers)

    def _add_words(
        self, found: shingles.Words, lettered: Flags, numbers: npt.NDArray[np.uint32]
    ) -> None:
        recipe = self.recipe
        for begin, windows in _word_windows(found.hashes, recipe.words):
            places = np.arange(begin, begin + len(windows))
            owners, good = _owners(found.offsets, places, recipe.words)
            good &= _sums(lettered, places, recipe.words) >= recipe.lettered
            good &= _different(found.hashes, places, recipe.words) >= recipe.distinct
            self.rows["words"].append((windows[good], numbers[owners[good]]))

    def _add_short(
        self,
        found: shingles.Words,
        lettered: Flags,
        numbers: npt.NDArray[np.uint32],
        counts: Integers,
    ) -> None:
        """Texts too short for a window, as wholes: if enough words are different and no numbers."""
        recipe = self.recipe
        for i in np.flatnonzero((counts >= SHORTEST_SHORT) & (counts < recipe.words)).tolist():
            begin, end = int(found.offsets[i]), int(found.offsets[i + 1])
            words = found.hashes[begin:end]
            if (
                len(np.unique(words)) < recipe.distinct
                or lettered[begin:end].sum() < SHORT_LETTERED
            ):
                continue
            weighted = words * _powers()[0][: len(words)]
            self.rows["short"].append(
                (
                    weighted[:SHORTEST_SHORT].sum(dtype=np.uint64, keepdims=True),
                    numbers[i : i + 1],
                )
            )
            whole = weighted.sum(dtype=np.uint64, keepdims=True)
            self.whole_rows.append((np.array([len(words)], dtype=np.uint8), whole))

    def _add_tokens(self, tokens: _Tokens, numbers: npt.NDArray[np.uint32]) -> None:
        recipe = self.recipe
        size = recipe.window
        for begin, windows in _token_windows(tokens, size):
            places = np.arange(begin, begin + len(windows))
            owners, good = _owners(tokens.offsets, places, size)
            stop = begin + len(windows) + size - 1
            hashes, is_name = tokens.hashes[begin:stop], tokens.is_name[begin:stop]
            previous, following = _pairs(hashes, is_name, size)
            again = np.zeros(len(hashes) + size + 1, dtype=np.int64)
            again[following + 1] += 1
            again[previous + 1 + size] -= 1
            kept = np.cumsum(again)[size : size + len(windows)]
            kept += _sums(~is_name & ~tokens.is_number[begin:stop], places - begin, size)
            good &= kept >= recipe.kept
            plain = np.where(is_name, np.uint64(0), hashes)
            kinds = _different(plain, places - begin, size)
            kinds -= _sums(is_name, places - begin, size) > 0
            good &= kinds >= recipe.kinds
            self.rows["renamed"].append((windows[good], numbers[owners[good]]))

    def index(self, files: Mapping[str, Any]) -> Index:
        """The index of all that was taken in."""
        self.flush()
        tables: dict[Kind, _Table] = {}
        common: dict[str, int] = {}
        tables["words"], common["words"] = self._table("words")
        tables["renamed"], common["renamed"] = self._table("renamed")
        short, lengths, wholes, common["short"] = self._short_table()
        tables["short"] = short
        names = list(self.names)
        owners = self._owners()
        indexed = {owners[i] for table in tables.values() for i in np.unique(table.problems)}
        longest = [0] * len(names)
        for owner, words in zip(owners.tolist(), self.longest, strict=True):
            longest[owner] = max(longest[owner], words)
        facts = {
            "files": dict(files),
            "problems": len(names),
            "problems_short": sum(words < self.recipe.words for words in longest),
            "problems_not_indexed": len(names) - len(indexed),
            "not_indexed": [name for number, name in enumerate(names) if number not in indexed][
                :NAMED_MISSING
            ],
            "grams_shared": common,
        }
        marks = "".join(sorted(self.marks)).encode()
        digest = digest_bytes(digest_json([LAYOUT, SEARCH, asdict(self.recipe)]).encode(), marks)
        by_source = [names[owner] for owner in owners]
        files_by_source = [file for _, file in self.sources]
        return Index(
            self.recipe, tables, lengths, wholes, by_source, files_by_source, facts, digest
        )

    def _owners(self) -> Integers:
        """The problem of each source."""
        return np.array([problem for problem, _ in self.sources], dtype=np.int64)

    def _pairs_of(self, kind: Kind) -> tuple[Unsigned, npt.NDArray[np.uint32]]:
        rows = self.rows[kind]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(row[0] for row in rows)])
        problems = np.concatenate([np.zeros(0, np.uint32), *(row[1] for row in rows)])
        return hashes, problems

    def _table(self, kind: Kind) -> tuple[_Table, int]:
        """The table of what not too many problems share, and how many windows they do share."""
        hashes, problems = self._pairs_of(kind)
        keep, common = self._few(hashes, problems)
        return _Table(hashes=hashes[keep], problems=problems[keep]), common

    def _short_table(self) -> tuple[_Table, npt.NDArray[np.uint8], Unsigned, int]:
        prefixes, problems = self._pairs_of("short")
        lengths = np.concatenate([np.zeros(0, np.uint8), *(row[0] for row in self.whole_rows)])
        wholes = np.concatenate([np.zeros(0, np.uint64), *(row[1] for row in self.whole_rows)])
        keep, common = self._few(wholes, problems)
        keep = keep[np.argsort(prefixes[keep], kind="stable")]
        table = _Table(hashes=prefixes[keep], problems=problems[keep])
        return table, lengths[keep], wholes[keep], common

    def _few(self, hashes: Unsigned, sources: npt.NDArray[np.uint32]) -> tuple[Integers, int]:
        """The rows of windows that not too many problems share, and how many windows they do.

        In the order of the hashes; a window that a problem has in several files counts, and
        stays, once: in the first of them.
        """
        if not len(hashes):
            return np.zeros(0, dtype=np.int64), 0
        problems = self._owners()[sources]
        order = np.lexsort((sources, problems, hashes))
        ordered, owners = hashes[order], problems[order]
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = (ordered[1:] != ordered[:-1]) | (owners[1:] != owners[:-1])
        order = order[fresh]
        _, counts = np.unique(hashes[order], return_counts=True)
        few = counts <= self.recipe.shared
        return order[np.repeat(few, counts)], int((~few).sum())


def _begins_with_letters(texts: pa.Array, tokens: _Tokens) -> Flags:
    """Of each word, whether its first two characters are letters (or not ASCII)."""
    view, _ = _bytes_of(texts)
    is_letter = np.zeros(256, dtype=bool)
    is_letter[[*range(65, 91), *range(97, 123), *range(128, 256)]] = True
    letters = np.append(is_letter[np.frombuffer(view, dtype=np.uint8)], False)
    starts = tokens.starts[tokens.is_word]
    both: Flags = letters[starts] & letters[starts + 1]
    return both


def _sums(flags: Flags, places: Integers, size: int) -> Integers:
    """How many flags are set in each window."""
    total = np.concatenate([[0], np.cumsum(flags)])
    sums: Integers = total[places + size] - total[places]
    return sums


def _different(values: Unsigned, places: Integers, size: int) -> Integers:
    """How many different values each window has."""
    windows = np.lib.stride_tricks.sliding_window_view(values, size)[places]
    windows = np.sort(windows, axis=1)
    different: Integers = 1 + (windows[:, 1:] != windows[:, :-1]).sum(axis=1)
    return different


def _bare_python(text: str) -> str | None:
    """Python code without docstrings and comments, laid out anew; None for anything else.

    Other versions of Python may write it with other brackets and quotes, which are no tokens.
    """
    if len(text) > LONGEST_PROGRAM or not ("def " in text or "import " in text or "=" in text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(textwrap.dedent(text))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and (
                    ast.get_docstring(node, clean=False) is not None
                ):
                    node.body = node.body[1:] or [ast.Pass()]
            bare = ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return bare or None
