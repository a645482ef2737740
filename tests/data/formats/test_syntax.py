"""Syntax nodes as cuts: whole, in characters, near what was drawn; texts that do not parse."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from codecria.data.formats import syntax

TEXT = '''import os


def läuft(path: str) -> bool:
    """Ob es läuft."""
    name = "größe" + path
    return os.path.exists(name)
'''


def test_python_nodes_are_stretches_of_characters_whatever_the_letters(corpus: list[str]) -> None:
    # Kills: columns in bytes taken for characters.
    found = {TEXT[a:b] for a, b in syntax.spans(TEXT, "Python")}
    assert {'"größe" + path', "os.path.exists(name)", "return os.path.exists(name)"} <= found
    for text in corpus[:10]:
        for first, last in syntax.spans(text, None).tolist():
            assert 0 <= first < last <= len(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                assert ast.get_source_segment(text, node) in text


def test_a_part_of_a_file_is_read_as_far_as_it_goes() -> None:
    whole = "def whole(x):\n    return x + 1"
    part = f"    tail = 1\n    return tail\n\n\n{whole}\n\n\ndef cut(y):\n    if"
    found = {part[a:b] for a, b in syntax.spans(part, "Python").tolist()}
    assert whole in found
    assert len(syntax.spans("this is no code at all", "Python")) == 0
    assert len(syntax.spans("word " * 50_000, "Python")) == 0, "too long to be parsed"


def test_the_nearest_node_is_the_nearest_by_both_ends() -> None:
    nodes = np.array([[0, 10], [2, 5], [4, 30]])
    assert syntax.nearest(nodes, 6, 3) == (2, 5)
    assert syntax.nearest(nodes, 0, 9) == (0, 10)
    assert syntax.nearest(nodes, 29, 29) == (4, 30)


def test_other_languages_are_read_by_tree_sitter() -> None:
    pytest.importorskip("tree_sitter_javascript")
    text = "const größe = 'ä';\nfunction plus(a, b) {\n  return a + b;\n}\n"
    found = {text[a:b] for a, b in syntax.spans(text, "JavaScript").tolist()}
    assert {"return a + b;", "a + b", "const größe = 'ä';"} <= found
    assert syntax.parses(text, "JavaScript") is True
    assert syntax.parses(text[:-3], "JavaScript") is False
    assert syntax.parses(text, "COBOL") is None
    assert len(syntax.spans(text, "COBOL")) == 0


def test_python_parses_or_does_not() -> None:
    assert syntax.parses(TEXT, "Python") is True
    assert syntax.parses(TEXT[:-4], "Python") is False
    assert syntax.parses("x = '\\d'\n", "Python") is True, "a warning is no error"
    assert syntax.parses("(" * 10_000, "Python") is False
