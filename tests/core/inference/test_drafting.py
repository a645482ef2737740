"""Drafting: matches are the longest, drafts continue them, and the gate shuts where they fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codecria.core.inference.drafting import (
    BREAK,
    LONGEST_DRAFT,
    Acceptance,
    Costs,
    Draft,
    Drafter,
    Gate,
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
        length, end = places.match()
        longest, _ = longest_match(tokens[:count])
        assert length == longest if longest > 1 else length <= 1
        if length:
            assert end < count
            assert tokens[end - length : end] == tokens[count - length : count]


def test_of_equal_places_the_one_behind_the_last_change_counts_else_the_latest() -> None:
    places = Places([1, 2, 9, 1, 2, 8, 1, 2, 7, 1, 2])
    assert places.match() == (2, 8)
    places = Places([5, 6, 1, 2, 9, 1, 2, 8, 1, 2, 7, BREAK, 5, 6])
    places.match()
    for token in (4, 1, 2):  # 4 instead of 1
        places.push(token)
    assert places.match() == (2, 4)


def test_an_edited_text_goes_on_a_token_after_the_change() -> None:
    old = (20, 21, 22, 23, 24, 25, 26, 27, 28, 29)
    made = drafter([40, 41], prediction=old)
    made.push((20, 21, 22))
    assert made.draft(2).tokens == (23, 24)
    made.push((99,))  # instead of 23
    assert made.draft(2) == Draft()
    made.push((24,))
    assert made.draft(3) == Draft((25, 26, 27), 1)
    made.push((25, 26, 28))  # without 27
    assert made.draft(3) == Draft((29,), 1)


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


def gate(cost: float) -> Gate:
    """One whose passes take 1 + cost for each token more."""
    made = Gate()
    for _ in range(5):
        for tokens in range(1, 40):
            made.costs.record(tokens, 1 + cost * (tokens - 1))
    return made


def test_long_drafts_where_they_are_right_and_cheap() -> None:
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.record(Draft((1,) * 8, 20), 8)
    assert gate(0.02).length(acceptance, 20, LONGEST_DRAFT, 0) >= 12
    assert gate(1.5).length(acceptance, 20, LONGEST_DRAFT, 0) == 0


def test_the_gate_shuts_where_drafts_fail_and_tries_again_now_and_then() -> None:
    acceptance = Acceptance()
    for _ in range(40):
        acceptance.record(Draft((1,) * 4, 6), 0)
    made = gate(0.1)
    lengths = [made.length(acceptance, 6, 8, 0) for _ in range(200)]
    assert 0 < sum(length > 0 for length in lengths) <= 5
    assert acceptance.rate(6) < 0.1 < acceptance.rate(20)


def test_a_new_sequence_expects_what_others_had_and_learns_for_itself() -> None:
    made = gate(0.1)
    first = made.acceptance.of_sequence()
    for _ in range(60):
        first.record(Draft((1, 2), 2), 0)
        first.record(Draft((1,) * 8, 20), 8)
    second = made.acceptance.of_sequence()
    assert made.length(second, 2, 4, 0) == 0
    assert made.length(second, 20, 8, 0) == 8
    assert (second.drafted, second.accepted) == (0, 0)
    for _ in range(20):
        second.record(Draft((1, 2), 2), 2)
    assert made.length(second, 2, 4, 0) > 0


def test_costs_are_averages_and_a_stall_changes_them_little() -> None:
    costs = Costs()
    for seconds in (1.0, 1.1, 0.9, 50.0):
        costs.record(4, seconds)
    assert 0.8 < costs.seconds(4) < 1.3
    assert costs.seconds(8) > costs.seconds(4)
