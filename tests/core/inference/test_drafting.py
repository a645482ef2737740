"""Drafting: matches are the longest, drafts continue them, and say what speaks for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.inference.drafting import (
    BREAK,
    Backing,
    Draft,
    Drafter,
    Match,
    Places,
    Sources,
)


def longest_match(tokens: list[int]) -> tuple[int, int]:
    """(length, end) by looking everywhere."""
    for length in range(len(tokens) - 1, 0, -1):
        end = tokens[-length:]
        for start in range(len(tokens) - length):
            if tokens[start : start + length] == end:
                return length, start + length
    return 0, 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 40), st.booleans())
def test_the_match_is_the_longest_end_that_stood_earlier(
    tokens: list[int], given: int, always: bool
) -> None:
    places = Places(tokens[:given])
    for count in range(len(tokens[:given]), len(tokens) + 1):
        if count > given:
            places.push(tokens[count - 1])
        if not (always or count % 3):  # a match that was not asked for is found later
            continue
        match = places.match()
        length, end = match.length, match.end
        longest, _ = longest_match(tokens[:count])
        assert length == longest or (length == 1 and match.backing == Backing.ALIGNED)
        if length:
            assert end < count
            assert tokens[end - length : end] == tokens[count - length : count]


@pytest.mark.parametrize(
    ("tokens", "end", "backing"),
    [
        ([1, 2, 9, 1, 2, 8, 1, 2, 7], 8, Backing.DISPUTED),
        ([1, 2, 9, 1, 2, 9, 1, 2, 7], 5, Backing.MAJORITY),
        ([1, 2, 9, 3, 1, 2, 9, 4, 1, 2, 9, 5], 10, Backing.AGREED),
        ([1, 2, 9, 8], 2, Backing.SINGLE),
    ],
)
def test_of_equal_places_the_latest_of_most_is_followed(
    tokens: list[int], end: int, backing: Backing
) -> None:
    assert Places([*tokens, 1, 2]).match() == Match(2, end, backing)


def test_of_equal_places_the_first_behind_a_change_is_followed() -> None:
    places = Places([31, 32, 33, 34, 35, 1, 2, 9, 1, 2, 8, 1, 2, 8, BREAK, 31, 32, 33, 34, 35])
    places.match()
    for token in (4, 1, 2):  # 4 instead of 1
        places.push(token)
    assert places.match() == Match(2, 7, Backing.ALIGNED)


def test_an_edited_text_goes_on_a_token_after_the_change() -> None:
    old = (20, 21, 22, 23, 24, 25, 26, 27, 28, 29)
    made = drafter([40, 41], prediction=old)
    made.push((20, 21, 22))
    assert made.draft(2).tokens == (23, 24)
    made.push((99,))  # instead of 23
    assert made.draft(2) == Draft()
    made.push((24,))
    assert made.draft(3) == Draft((25, 26, 27), 1, Backing.ALIGNED)
    made.push((25, 26, 28))  # without 27
    assert made.draft(3) == Draft((29,), 1, Backing.ALIGNED)


def test_a_match_within_a_document_does_not_reach_across_its_start() -> None:
    assert drafter([1, 2], [1, 2, 3]).draft(3) == Draft((3,), 2)


def drafter(history: list[int], *documents: list[int], prediction: tuple[int, ...] = ()) -> Drafter:
    return Drafter(
        Sources(
            history=tuple(history), documents=tuple(map(tuple, documents)), prediction=prediction
        )
    )


def test_a_draft_is_what_followed_the_match() -> None:
    found = drafter([9, 1, 2, 3], [7, 1, 2, 3, 4, 5, 6]).draft(8)
    assert found == Draft((4, 5, 6), 3)
    assert drafter([9, 1, 2, 3], [7, 1, 2, 3, 4, 5, 6]).draft(2).tokens == (4, 5)


def test_a_loop_is_drafted_beyond_the_end() -> None:
    assert drafter([5, 1, 2, 1, 2]).draft(5).tokens == (1, 2, 1, 2, 1)
    assert drafter([4, 4, 4]).draft(3).tokens == (4, 4, 4)


def test_no_draft_goes_across_the_end_of_a_document() -> None:
    found = drafter([1, 2], [8, 1, 2, 3], [4, 5]).draft(8)
    assert found.tokens == (3,)
    assert BREAK not in found.tokens


def test_nothing_known_is_no_draft() -> None:
    assert drafter([1, 2, 3], [4, 5, 6]).draft(8) == Draft()
    assert drafter([1]).draft(8) == Draft()


def test_an_answer_begins_as_its_prediction_and_goes_on_with_it_after_a_change() -> None:
    prediction = (1, 2, 3, 4, 5, 6, 7, 8)
    made = drafter([40, 41], prediction=prediction)
    assert made.draft(4).tokens == (1, 2, 3, 4)
    made.push((1, 2))
    assert made.draft(4).tokens == (3, 4, 5, 6)
    made.push((30,))  # instead of 3
    assert made.draft(4) == Draft()
    made.push((4, 5))
    assert made.draft(8) == Draft((6, 7, 8), 2)
