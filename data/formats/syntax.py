"""The syntax of a text: which parts of it are whole statements and expressions, whether it parses.

Python is read by its own parser. Other languages need tree-sitter, an extra:
pip install 'codecria[syntax]'.
"""

from __future__ import annotations

import ast
import functools
import importlib
import warnings
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

PYTHON = "Python"
# Language -> the wheel's module and the function that gives its grammar.
_GRAMMARS = {
    "C": ("tree_sitter_c", "language"),
    "C++": ("tree_sitter_cpp", "language"),
    "Go": ("tree_sitter_go", "language"),
    "Java": ("tree_sitter_java", "language"),
    "JavaScript": ("tree_sitter_javascript", "language"),
    "Rust": ("tree_sitter_rust", "language"),
    "TypeScript": ("tree_sitter_typescript", "language_tsx"),
}
LANGUAGES = (PYTHON, *_GRAMMARS)
LONGEST = 200_000  # characters of a text that is parsed

Span = tuple[int, int]  # [first, last) in characters
Spans = npt.NDArray[np.int64]  # (n,2)


def parses(text: str, language: str) -> bool | None:
    """Whether a text is free of syntax errors; None where no parser is at hand.

    Args:
        text: a whole file.
        language: linguist's name.
    """
    if language == PYTHON:
        return _tree(text) is not None
    parser = _parser(language)
    if parser is None or len(text) > LONGEST:
        return None
    return not parser.parse(text.encode("utf-8", "replace")).root_node.has_error


def spans(text: str, language: str | None) -> Spans:
    """The syntax nodes of a text, as stretches of characters, in the order of the text.

    Statements, runs of lines that are one statement, expressions and definitions; not the whole
    text, and no stretch twice. A part of a file is parsed as far as it can be.

    Args:
        text: a file, or a part of one.
        language: linguist's name; None where it is not known, which is tried as Python.

    Returns:
        (n,2) [first, last) of each; none where no parser reads it.
    """
    if len(text) > LONGEST:
        return np.empty((0, 2), dtype=np.int64)
    if language in (None, PYTHON):
        tree = _tree(text) or _tree(_closed(text))
        found: Iterable[Span] = () if tree is None else _of_python(tree, text)
    else:
        parser = _parser(language)
        found = () if parser is None else _of_tree_sitter(parser, text)
    whole = (0, len(text))
    kept = {span for span in found if span != whole and span[0] < span[1] <= len(text)}
    return np.array(sorted(kept), dtype=np.int64).reshape(-1, 2)


def nearest(found: Spans, one: int, other: int) -> Span:
    """The span whose ends are nearest to two places, the earlier of equals.

    Drawn places so keep the lengths that they had, as far as the syntax has such nodes.

    Args:
        found: (n,2) from `spans`, at least one.
        one, other: places in any order.
    """
    low, high = sorted((one, other))
    place = int(np.abs(found - (low, high)).sum(1).argmin())
    return int(found[place, 0]), int(found[place, 1])


def _tree(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in the text
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _closed(text: str) -> str:
    """The whole lines of a part of a file that begin and end at the margin."""
    lines = text.splitlines(keepends=True)
    edges = [n for n, line in enumerate(lines) if line[:1].strip() and line[:1] not in ")]}#@"]
    if len(edges) < 2:
        return ""
    # The same places: what is cut off before becomes empty lines of the same length.
    first, last = edges[0], edges[-1]
    before = "".join(" " * (len(line) - 1) + "\n" for line in lines[:first])
    return before + "".join(lines[first:last])


def _of_python(tree: ast.Module, text: str) -> Iterator[Span]:
    lines = text.split("\n")
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    plain = text.isascii()

    def place(line: int, column: int) -> int:
        # Columns count bytes.
        row = lines[line - 1]
        within = column if plain else len(row.encode()[:column].decode("utf-8", "ignore"))
        return starts[line - 1] + within

    for node in ast.walk(tree):
        line = getattr(node, "lineno", None)
        end = getattr(node, "end_lineno", None)
        if line is None or end is None or end > len(lines):
            continue
        yield place(line, node.col_offset), place(end, node.end_col_offset)  # type: ignore[attr-defined]
        body = getattr(node, "body", None)
        if isinstance(body, list) and len(body) > 1:
            first, last = body[0], body[-1]
            yield (
                place(first.lineno, first.col_offset),
                place(last.end_lineno, last.end_col_offset),
            )


def _of_tree_sitter(parser: Any, text: str) -> Iterator[Span]:
    content = text.encode("utf-8", "surrogatepass")
    tree = parser.parse(content)
    # Places count bytes.
    plain = len(content) == len(text)
    at = None
    if not plain:
        sizes = (len(c.encode("utf-8", "surrogatepass")) for c in text)
        at = {byte: n for n, byte in enumerate(accumulate(sizes, initial=0))}
    waiting = [tree.root_node]
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        if not node.is_named or node.has_error:
            continue
        first, last = node.start_byte, node.end_byte
        if at is not None:
            if first not in at or last not in at:
                continue
            first, last = at[first], at[last]
        yield first, last


@functools.cache
def _parser(language: str) -> Any:
    """tree-sitter's parser of a language, or None where its wheel is not installed."""
    if language not in _GRAMMARS:
        return None
    module, function = _GRAMMARS[language]
    try:
        tree_sitter = importlib.import_module("tree_sitter")
        grammar = getattr(importlib.import_module(module), function)()
    except ImportError:
        return None
    return tree_sitter.Parser(tree_sitter.Language(grammar))


def missing(language: str) -> bool:
    """Whether a language could be parsed if the extra were installed."""
    return language in _GRAMMARS and _parser(language) is None
