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
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codecria.data.errors import UserError
from codecria.data.files import digest_bytes, digest_json

from . import problems as problem_files
from . import shingles
from .problem_index import (
    BLOCK_BYTES,
    DEFAULT,
    KINDS,
    LAYOUT,
    SHORTEST_SHORT,
    Decontamination,
    Hit,
    Index,
    Kind,
    Table,
)
from .windows import (
    Flags,
    Integers,
    Tokens,
    Unsigned,
    begins_with_letters,
    different_values,
    owners_of,
    pairs_of,
    power_tables,
    token_windows,
    tokens_of,
    window_sums,
    word_windows,
)

__all__ = ["DEFAULT", "KINDS", "Decontamination", "Hit", "Index", "build"]

LONGEST_TEXT = 1 << 18  # characters of a problem's text that are read; longer ones hold test input
LONGEST_PROGRAM = 1 << 15  # characters of a text that is parsed as Python
SHORT_LETTERED = 3  # of its words that begin with two letters, at least
NAMED_MISSING = 20  # problems that `facts` names as not indexed
SEARCH = 2  # counted up when the same index finds more or less in the same text


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
        tokens = tokens_of(texts, found)
        counts = np.diff(found.offsets)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self.longest[number] = max(self.longest[number], count)
        recipe = self.recipe
        lettered = begins_with_letters(texts, tokens)
        self._add_words(found, lettered, numbers)
        self._add_short(found, lettered, numbers, counts)
        if recipe.window:
            self._add_tokens(tokens, numbers)

    def _add_words(
        self, found: shingles.Words, lettered: Flags, numbers: npt.NDArray[np.uint32]
    ) -> None:
        recipe = self.recipe
        for begin, windows in word_windows(found.hashes, recipe.words):
            places = np.arange(begin, begin + len(windows))
            owners, good = owners_of(found.offsets, places, recipe.words)
            good &= window_sums(lettered, places, recipe.words) >= recipe.lettered
            good &= different_values(found.hashes, places, recipe.words) >= recipe.distinct
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
            weighted = words * power_tables()[0][: len(words)]
            self.rows["short"].append(
                (
                    weighted[:SHORTEST_SHORT].sum(dtype=np.uint64, keepdims=True),
                    numbers[i : i + 1],
                )
            )
            whole = weighted.sum(dtype=np.uint64, keepdims=True)
            self.whole_rows.append((np.array([len(words)], dtype=np.uint8), whole))

    def _add_tokens(self, tokens: Tokens, numbers: npt.NDArray[np.uint32]) -> None:
        recipe = self.recipe
        size = recipe.window
        for begin, windows in token_windows(tokens, size):
            places = np.arange(begin, begin + len(windows))
            owners, good = owners_of(tokens.offsets, places, size)
            stop = begin + len(windows) + size - 1
            hashes, is_name = tokens.hashes[begin:stop], tokens.is_name[begin:stop]
            previous, following = pairs_of(hashes, is_name, size)
            again = np.zeros(len(hashes) + size + 1, dtype=np.int64)
            again[following + 1] += 1
            again[previous + 1 + size] -= 1
            kept = np.cumsum(again)[size : size + len(windows)]
            kept += window_sums(~is_name & ~tokens.is_number[begin:stop], places - begin, size)
            good &= kept >= recipe.kept
            plain = np.where(is_name, np.uint64(0), hashes)
            kinds = different_values(plain, places - begin, size)
            kinds -= window_sums(is_name, places - begin, size) > 0
            good &= kinds >= recipe.kinds
            self.rows["renamed"].append((windows[good], numbers[owners[good]]))

    def index(self, files: Mapping[str, Any]) -> Index:
        """The index of all that was taken in."""
        self.flush()
        tables: dict[Kind, Table] = {}
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

    def _table(self, kind: Kind) -> tuple[Table, int]:
        """The table of what not too many problems share, and how many windows they do share."""
        hashes, problems = self._pairs_of(kind)
        keep, common = self._few(hashes, problems)
        return Table(hashes=hashes[keep], problems=problems[keep]), common

    def _short_table(self) -> tuple[Table, npt.NDArray[np.uint8], Unsigned, int]:
        prefixes, problems = self._pairs_of("short")
        lengths = np.concatenate([np.zeros(0, np.uint8), *(row[0] for row in self.whole_rows)])
        wholes = np.concatenate([np.zeros(0, np.uint64), *(row[1] for row in self.whole_rows)])
        keep, common = self._few(wholes, problems)
        keep = keep[np.argsort(prefixes[keep], kind="stable")]
        table = Table(hashes=prefixes[keep], problems=problems[keep])
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


def _bare_python(text: str) -> str | None:
    """Python code without docstrings and comments, formatted again; None for anything else.

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
