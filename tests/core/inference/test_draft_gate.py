"""The gate of drafts: long where they are right and cheap, none where they fail."""

from __future__ import annotations

from codecria.core.inference.draft_gate import Acceptance, Costs, Gate
from codecria.core.inference.drafting import Backing, Draft

LONG, SHORT = Draft((1,) * 16, 20), Draft((1,) * 4, 2)


def gate(cost: float) -> Gate:
    """One whose passes take 1 + cost for each token more."""
    made = Gate()
    for _ in range(5):
        for tokens in range(1, 40):
            made.costs.record(tokens, 1 + cost * (tokens - 1))
    return made


def verified(acceptance: Acceptance, draft: Draft, accepted: int, times: int) -> None:
    for _ in range(times):
        acceptance.record(draft, accepted)


def test_long_drafts_where_they_are_right_and_cheap() -> None:
    for cost, least, most in ((0.02, 11, 16), (1.5, 0, 0)):
        made = gate(cost)
        acceptance = made.of_sequence()
        verified(acceptance, LONG, 16, 20)
        assert least <= made.length(acceptance, LONG, 0) <= most


def test_what_more_places_agree_on_is_drafted_further() -> None:
    made = gate(0.2)
    lengths = [
        made.length(made.of_sequence(), Draft(LONG.tokens, 3, backing), 0)
        for backing in (Backing.DISPUTED, Backing.SINGLE, Backing.AGREED)
    ]
    assert lengths[0] == 0 < lengths[1] < lengths[2]


def test_the_gate_shuts_where_drafts_fail_and_tries_again_now_and_then() -> None:
    made = gate(0.1)
    acceptance = made.of_sequence()
    verified(acceptance, LONG.cut(4), 0, 40)
    lengths = [made.length(acceptance, LONG, 0) for _ in range(200)]
    assert 0 < sum(length > 0 for length in lengths) <= 5


def test_a_sequence_learns_for_itself_and_for_the_others() -> None:
    made = gate(0.1)
    foreign = made.of_sequence()
    verified(foreign, SHORT, 0, 60)
    assert made.length(foreign, SHORT, 0) == 0
    other = made.of_sequence()
    assert made.length(other, LONG, 0) > 8, "one foreign text shuts the gate for all"
    assert (other.drafted, other.accepted) == (0, 0)
    verified(other, SHORT, 4, 60)
    assert made.length(other, SHORT, 0) == 3
    _, later = made.of_sequence().rates(SHORT)
    assert later > 0.8, "what one sequence found is lost to the next"


def test_costs_are_averages_and_a_stall_changes_them_little() -> None:
    costs = Costs()
    for seconds in (1.0, 1.1, 0.9, 50.0):
        costs.record(4, seconds)
    assert 0.8 < costs.seconds(4) < 1.3
    assert costs.seconds(8) > costs.seconds(4)
