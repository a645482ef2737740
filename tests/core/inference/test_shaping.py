"""What is shown of a streamed text is the same in whatever pieces it comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.inference.shaping import Indented, LineEnds, Stripper

Shape = Callable[[], "Indented | LineEnds | Stripper"]


def shown(shaper: Indented | LineEnds | Stripper, pieces: list[str]) -> str:
    text = ""
    for piece in pieces:
        if shaper.ended:
            break
        text += shaper.push(piece)
    return text if shaper.ended else text + shaper.finish()


@pytest.mark.parametrize("shape", [Stripper, LineEnds, lambda: Indented(2)], ids=range(3))
@given(pieces=st.lists(st.text("a \n\tb", max_size=6), max_size=12))
def test_pieces_do_not_matter(shape: Shape, pieces: list[str]) -> None:
    assert shown(shape(), pieces) == shown(shape(), ["".join(pieces)])


@given(text=st.text("a \n\tb", max_size=30))
def test_an_answer_is_stripped(text: str) -> None:
    assert shown(Stripper(), list(text)) == text.strip()


def test_a_block_ends_before_a_line_that_is_indented_less() -> None:
    text = "return a\n\n    # more\n  x = 1\n    y"
    assert shown(Indented(4), [text]) == "return a\n\n    # more\n"
    assert shown(Indented(2), [text]) == text
