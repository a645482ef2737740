"""Spans to infill: lines, blocks and function bodies that later commits added, or of plain files.

    line       one added line, without its indentation
    block      added lines that follow each other, 2 to 10 of them, up to an empty line
    function   the body of an added Python function, after its docstring

The file around a span is as the commit left it. What was in the repository before the split is left
out where it is long enough to be told from chance: nothing of an answer was there to learn from.

Of the spans of a kind, those that are taken come from one file after the other, and only a share of
them from test files: most code that a repository gains is tests, and often in a few large files.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from codecria.data.corpus.documents import decode
from codecria.data.corpus.generated import is_generated
from codecria.data.corpus.history import History, Split
from codecria.data.corpus.languages import by_path, language_class
from codecria.data.corpus.reasons import Reason
from codecria.data.errors import UsageError
from codecria.data.formats.syntax import PYTHON, parses

from .suites import is_of_tests

KINDS = ("line", "block", "function")
BLOCK_LINES = 10  # most lines of a block
FUNCTION_LINES = 40  # most of a function's body
KNOWN_LENGTH = 20  # characters from which a span that stood there before is left out
LEAST_LETTERS = 4  # letters and digits of a line that is worth asking for
FILE_CHARACTERS = 200_000  # longest file that is looked at
TEST_SHARE = 0.25  # ours: tests are code that people write too, but not what they write it for


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a file, to be infilled.

    Attributes:
        id: of the span: kind, path and place.
        kind: one of `KINDS`.
        commit: that added it; "" of plain files.
        path, language: of the file.
        prefix, middle, suffix: the file, in three.
    """

    id: str
    kind: str
    commit: str
    path: str
    language: str
    prefix: str
    middle: str
    suffix: str


class Place(NamedTuple):
    """Where a span lies in its file.

    Attributes:
        kind: one of `KINDS`.
        first, last: [first, last) in characters.
        line: of its first character, from 1.
    """

    kind: str
    first: int
    last: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A span that may be taken. A history has very many: it names its file, and does not hold it.

    Attributes:
        id, commit, path, language: as of the span.
        place: in the file.
        middle: the text there.
        source: what the file's text is read by.
    """

    id: str
    commit: str
    path: str
    language: str
    place: Place
    middle: str
    source: str

    def span(self, text: str) -> Span:
        """The span, with its file's text."""
        return Span(
            id=self.id,
            kind=self.place.kind,
            commit=self.commit,
            path=self.path,
            language=self.language,
            prefix=text[: self.place.first],
            middle=self.middle,
            suffix=text[self.place.last :],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The spans of a benchmark.

    Attributes:
        spans: by kind, at most so many of each, in the order of `choose`.
        candidates: of each kind, how many there were.
        known: of each kind, those passed over because their text was there before.
    """

    spans: tuple[Span, ...]
    candidates: dict[str, int] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)


def of_history(
    history: History,
    split: Split,
    *,
    kinds: Sequence[str],
    limit: int,
    seed: int,
    test_share: float = TEST_SHARE,
) -> Found:
    """Spans that the later commits of a history added.

    Args:
        history: opened.
        split: which commits are later.
        kinds: of `KINDS`.
        limit, seed, test_share: as for `choose`.

    Raises:
        UserError: the history cannot be read.
    """
    blobs = code_files(history, split.base.id)
    texts = (text_of(history.content(blob)) for _, blob in blobs)
    before = "\n".join(text for text in texts if text is not None)
    found: dict[tuple[str, str, str], Candidate] = {}
    for commit in split.later:
        for added in history.added(commit):
            language = code_language(added.path)
            text = None if language is None else text_of(history.content(added.blob))
            if text is None or language is None:
                continue
            for place in candidates_in(text, language, added.lines):
                key = (place.kind, added.path, text[place.first : place.last])
                if place.kind in kinds and key not in found:  # else moved, or added again
                    found[key] = _candidate(
                        place, commit.id, added.path, language, text, source=added.blob
                    )
    return _found(
        found.values(),
        lambda blob: text_of(history.content(blob)) or "",
        limit=limit,
        seed=seed,
        test_share=test_share,
        known=lambda text: len(text) >= KNOWN_LENGTH and text in before,
    )


def of_files(
    files: Iterable[tuple[str, str]], *, kinds: Sequence[str], limit: int, seed: int
) -> Found:
    """Spans of files without a history: any of their lines counts as added.

    Args:
        files: path and text of each.
        kinds, limit, seed: as for `of_history`.
    """
    texts = dict(files)
    found: dict[tuple[str, str, str], Candidate] = {}
    for path, text in texts.items():
        language = code_language(path)
        if language is None or not usable(text):
            continue
        every = ((1, text.count("\n") + 1),)
        for place in candidates_in(text, language, every):
            key = (place.kind, path, text[place.first : place.last])
            if place.kind in kinds and key not in found:
                found[key] = _candidate(place, "", path, language, text, source=path)
    return _found(found.values(), texts.__getitem__, limit=limit, seed=seed)


def _found(candidates: Collection[Candidate], read: Callable[[str], str], **options: Any) -> Found:
    """What `choose` takes, with the texts of their files."""
    taken, passed = choose(candidates, **options)
    counts = Counter(each.place.kind for each in candidates)
    return Found(
        spans=tuple(each.span(read(each.source)) for each in taken),
        candidates=dict(counts),
        known=dict(passed),
    )


def check_test_share(share: float) -> None:
    """Refuse what is no share of the spans.

    Raises:
        UsageError: it is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise UsageError(f"--test-share {share:g} is not in [0, 1]", hint=f"use {TEST_SHARE:g}")


def choose(
    candidates: Iterable[Candidate],
    *,
    limit: int,
    seed: int,
    test_share: float = TEST_SHARE,
    known: Callable[[str], bool] = lambda _: False,
) -> tuple[list[Candidate], Counter[str]]:
    """At most so many spans of each kind: those of a smaller limit are the first of a larger one.

    Files take turns, in the order of a hash of their paths, and the spans of a file by a hash of
    their ids.

    Args:
        candidates: to choose from.
        limit: most of each kind.
        seed: of the hash.
        test_share: of the spans that lie in test files, as long as other files have some left; 0
            leaves test files out.
        known: whether a text was there before; such spans are passed over.

    Returns:
        those taken, kind by kind, and how many of each kind were passed over.
    """
    every = list(candidates)
    passed = Counter[str]()

    def fresh(each: Candidate) -> bool:
        if known(each.middle):
            passed[each.place.kind] += 1
            return False
        return True

    taken: list[Candidate] = []
    for kind in KINDS:
        of_kind = [each for each in every if each.place.kind == kind]
        others, tests = (
            _files_in_turn([e for e in of_kind if is_of_tests(e.path) == own], seed, fresh)
            for own in (False, True)
        )
        taken += islice(_shared(others, tests, test_share) if test_share else others, limit)
    return taken, passed


def _files_in_turn(
    candidates: Iterable[Candidate], seed: int, fresh: Callable[[Candidate], bool]
) -> Iterator[Candidate]:
    """Those that are `fresh`: the first of each file, then the second of each, and so on."""

    def key(text: str) -> bytes:
        content = f"{seed}\0{text}".encode("utf-8", "surrogatepass")  # a path may be no UTF-8
        return hashlib.blake2b(content, digest_size=8).digest()

    files: dict[str, list[Candidate]] = {}
    for each in sorted(candidates, key=lambda each: key(each.id)):
        files.setdefault(each.path, []).append(each)
    turns = [filter(fresh, files[path]) for path in sorted(files, key=key)]
    while turns:
        left = []
        for turn in turns:
            for each in islice(turn, 1):
                yield each
                left.append(turn)
        turns = left


def _shared(
    others: Iterator[Candidate], tests: Iterator[Candidate], share: float
) -> Iterator[Candidate]:
    """Of the first n, share * n of the tests, rounded down; where one has no more, the other."""
    n = of_tests = 0
    while True:
        first, second = (tests, others) if of_tests < int(share * (n + 1)) else (others, tests)
        each = next(first, None)
        if each is None:
            yield from second
            return
        n += 1
        of_tests += first is tests
        yield each


def code_language(path: str) -> str | None:
    """The programming language of a path, or None for anything else."""
    language = by_path(path)
    return language if language and language_class(language) == "programming" else None


def code_files(history: History, commit: str) -> Iterator[tuple[str, str]]:
    """Path and hash of the program files of a commit."""
    for path, blob in sorted(history.files(commit).items()):
        if code_language(path) is not None:
            yield path, blob


def usable(text: str) -> bool:
    """Whether a file was written by people and is of a usual size."""
    if len(text) > FILE_CHARACTERS or not text.strip():
        return False
    return not is_generated(text, lines=40)


def text_of(content: bytes) -> str | None:
    """The text of a file; None if it is binary, in another encoding or not `usable`."""
    text = decode(content) if len(content) <= 4 * FILE_CHARACTERS else Reason.BINARY
    return text if not isinstance(text, Reason) and usable(text) else None


def candidates_in(text: str, language: str, added: Sequence[tuple[int, int]]) -> Iterator[Place]:
    """The spans that lie within added lines.

    Args:
        text: the file.
        language: of it.
        added: [first, last] lines, from 1.
    """
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)

    def begin(number: int) -> int:
        line = lines[number - 1]
        return starts[number - 1] + len(line) - len(line.lstrip())

    def end(number: int) -> int:
        return starts[number - 1] + len(lines[number - 1].rstrip())

    for first, last in added:
        run: list[int] = []
        for number in range(first, min(last, len(lines)) + 1):
            line = lines[number - 1]
            comment = line.lstrip().startswith(("#", "//", "*", "/*", "--"))
            if sum(map(str.isalnum, line)) >= LEAST_LETTERS and not comment:
                yield Place("line", begin(number), end(number), number)
            if line.strip() and len(run) < BLOCK_LINES:
                run.append(number)
                continue
            if len(run) > 1:
                yield Place("block", begin(run[0]), end(run[-1]), run[0])
            run = [number] if line.strip() else []
        if len(run) > 1:
            yield Place("block", begin(run[0]), end(run[-1]), run[0])
    if language == PYTHON:
        for first, last in _bodies(text):
            if any(a <= first and last <= b for a, b in added):
                yield Place("function", begin(first), end(last), first)


def _bodies(text: str) -> Iterator[tuple[int, int]]:
    """First and last line of the body of every Python function, after its docstring."""
    if not parses(text, PYTHON):
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body or body[0].lineno == node.lineno:
            continue
        last = body[-1].end_lineno or body[-1].lineno
        if last - body[0].lineno < FUNCTION_LINES:
            yield body[0].lineno, last


def _candidate(
    place: Place, commit: str, path: str, language: str, text: str, *, source: str
) -> Candidate:
    return Candidate(
        id=f"{place.kind} {path}:{place.line} {commit[:12]}".strip(),
        commit=commit,
        path=path,
        language=language,
        place=place,
        middle=text[place.first : place.last],
        source=source,
    )
