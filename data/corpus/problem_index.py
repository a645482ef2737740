"""The index of evaluation problems, and how texts are looked up in it (see `decontaminate.py`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codecria.data.errors import UserError
from codecria.data.files import atomic_writer

from . import shingles
from .unwrap import views
from .windows import (
    Bytes,
    Flags,
    Integers,
    Unsigned,
    bytes_of,
    owners_of,
    power_tables,
    token_windows,
    tokens_of,
    word_windows,
)

Kind = Literal["words", "short", "renamed"]
KINDS: tuple[Kind, ...] = ("words", "short", "renamed")

SHORTEST_SHORT = 8  # words of a text that is evidence as a whole
BLOCK_BYTES = 1 << 18  # of text searched at once: its arrays stay in the processor's cache
MOST_BITS = 28  # of a hash that the first look takes: 32 MiB, for sets the size of all of APPS
NAMED = 3  # problems that `hits` names
LAYOUT = 1  # of the saved file, and of what the hashes mean


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
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
        tables: Mapping[Kind, Table],
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
        """Pickled by its parts; what is derived from them is computed again."""
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
        tokens = tokens_of(column, shingles.words(column))
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
        for begin, windows in word_windows(found.hashes, recipe.words):
            if hit := self._look_up("words", windows, begin, recipe.words, found.offsets):
                yield hit, "words"
        if len(self._tables["short"].hashes):
            for begin, windows in word_windows(found.hashes, SHORTEST_SHORT):
                hit = self._look_up("short", windows, begin, SHORTEST_SHORT, found.offsets)
                if hit and (hit := self._whole(hit, found)):
                    yield hit, "short"
        if recipe.window and len(self._tables["renamed"].hashes):
            tokens = tokens_of(texts, found)
            for begin, windows in token_windows(tokens, recipe.window):
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
        owners, is_within = owners_of(offsets, places, size)
        keep = np.flatnonzero(is_there & is_within)
        if not len(keep):
            return None
        low, wanted = low[keep], wanted[keep]
        counts = np.searchsorted(table.hashes, wanted, side="right") - low
        rows = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        problems = rows if kind == "short" else table.problems[rows].astype(np.int64)
        return _Found(np.repeat(owners[keep], counts), np.repeat(places[keep], counts), problems)

    def _whole(self, hit: _Found, found: shingles.Words) -> _Found | None:
        """Those of the windows that continue like the short text that begins like them."""
        lengths = self._lengths[hit.problems].astype(np.int64)
        keep = hit.places + lengths <= found.offsets[hit.texts + 1]
        rows = hit.problems
        for length in np.unique(lengths[keep]).tolist():
            some = np.flatnonzero(keep & (lengths == length))
            grid = hit.places[some][:, None] + np.arange(length)[None, :]
            sums = (found.hashes[grid] * power_tables()[0][:length]).sum(axis=1, dtype=np.uint64)
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
            kind: Table(hashes=column(f"{kind}.hashes"), problems=column(f"{kind}.problems"))
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
    _, borders = bytes_of(texts)
    begin = 0
    while begin < len(texts):
        limit = borders[begin] + BLOCK_BYTES
        end = max(begin + 1, int(np.searchsorted(borders, limit, side="right")) - 1)
        yield begin, texts[begin:end]
        begin = end


def _named(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return ", ".join(problems[:NAMED]) + more
