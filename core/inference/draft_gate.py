"""How long a draft may be: what passes cost, and how often drafts were right.

A draft costs time only if it is wrong. `Gate` measures what passes of each width cost and how often
drafted tokens are accepted, and picks the length that is expected to yield most tokens a second:
none where drafts do not pay.

    right   first token: by what speaks for it and the length of its match | those behind it
    times   how much more or less often this sequence's drafts were right than that
"""

from __future__ import annotations

from dataclasses import dataclass

from .drafting import Backing, Draft

LENGTHS = (1, 2, 3, 5, 7, 11, 15, 23, 31)  # of drafts; kernels take 4 or 8 tokens at a time best
MATCHES = (2, 3, 5, 9, 17)  # tokens of a match from which on other shares are expected
# Shares of first tokens that were right, by backing and match (below 2, 2, 3, 5, 9, 17 tokens),
# and of the tokens behind right ones; measured on Python's library and this project.
FIRST = {
    Backing.DISPUTED: (0.12, 0.2, 0.2, 0.2, 0.2, 0.5),
    Backing.MAJORITY: (0.37, 0.4, 0.5, 0.5, 0.6, 0.7),
    Backing.SINGLE: (0.31, 0.48, 0.55, 0.7, 0.85, 0.98),
    Backing.AGREED: (0.7, 0.76, 0.86, 0.92, 0.96, 0.98),
    Backing.ALIGNED: (0.4, 0.5, 0.55, 0.75, 0.85, 0.9),
}
LATER = {
    Backing.DISPUTED: (0.45, 0.5, 0.65, 0.8, 0.9, 0.9),
    Backing.MAJORITY: (0.4, 0.45, 0.6, 0.65, 0.9, 0.9),
    Backing.SINGLE: (0.55, 0.6, 0.7, 0.8, 0.9, 0.98),
    Backing.AGREED: (0.56, 0.7, 0.8, 0.9, 0.93, 0.96),
    Backing.ALIGNED: (0.6, 0.65, 0.75, 0.82, 0.85, 0.9),
}
PRIOR_TOKENS = 16.0  # that such a share counts for
OWN_PRIOR = 0.3  # first tokens that a sequence is taken to have had right as often as others
MEMORY = 128.0  # tokens after which old acceptance counts half as much
LEAST_FACTOR, MOST_FACTOR, MOST_SHARE = 0.02, 1.5, 0.98
FLOOR = 1.05  # expected gain below which no draft is made: estimates are noisy
PROBE_EVERY = 48  # steps without a draft after which a long match is tried once more
PROBED_MATCH = 5  # tokens


class Shares:
    """How often drafted tokens are right, in all sequences of an engine."""

    def __init__(self) -> None:
        places = {(backing, bucket) for backing in Backing for bucket in range(len(MATCHES) + 1)}
        self._first = {p: [FIRST[p[0]][p[1]] * PRIOR_TOKENS, PRIOR_TOKENS] for p in places}
        self._later = {p: [LATER[p[0]][p[1]] * PRIOR_TOKENS, PRIOR_TOKENS] for p in places}

    def of(self, draft: Draft) -> tuple[float, float]:
        """(share of first tokens that is right, share of the tokens behind a right one)."""
        place = _place(draft)
        first, later = self._first[place], self._later[place]
        return first[0] / first[1], later[0] / later[1]

    def record(self, draft: Draft, accepted: int, factor: float) -> None:
        """Count a verified draft of a sequence whose drafts are right so many times as often."""
        place = _place(draft)
        _count(self._first[place], min(accepted, 1), factor)
        tried = min(accepted + 1, len(draft.tokens)) - 1  # what follows a wrong one says nothing
        if accepted and tried:
            _count(self._later[place], accepted - 1, tried)


def _count(share: list[float], right: float, tried: float) -> None:
    fade = 0.5 ** (tried / MEMORY)
    share[0] = share[0] * fade + right
    share[1] = share[1] * fade + tried


def _place(draft: Draft) -> tuple[Backing, int]:
    return draft.backing, sum(draft.match >= least for least in MATCHES)


@dataclass(slots=True)
class Acceptance:
    """How often the drafts of a sequence were right.

    Attributes:
        shares: of all sequences.
        drafted, accepted: tokens so far.
    """

    shares: Shares
    drafted: int = 0
    accepted: int = 0
    _right: float = OWN_PRIOR
    _expected: float = OWN_PRIOR

    @property
    def factor(self) -> float:
        """How many times as often as in all sequences first tokens are right in this one."""
        return min(max(self._right / self._expected, LEAST_FACTOR), MOST_FACTOR)

    def rates(self, draft: Draft) -> tuple[float, float]:
        """(chance that its first token is right, chance of one behind a right one)."""
        first, later = self.shares.of(draft)
        factor = self.factor
        return min(first * factor, MOST_SHARE), min(later, MOST_SHARE)

    def record(self, draft: Draft, accepted: int) -> None:
        """Count a verified draft."""
        self.drafted += len(draft.tokens)
        self.accepted += accepted
        expected, _ = self.shares.of(draft)
        self.shares.record(draft, accepted, min(self.factor, 1.0))
        fade = 0.5 ** (1 / MEMORY)
        self._right = self._right * fade + min(accepted, 1)
        self._expected = self._expected * fade + expected


class Costs:
    """Seconds that steps of the engine take, by the tokens in them, as measured.

    Widths that have not been seen are estimated from the nearest that has, by a cautious slope.
    """

    SLOPE = 0.12  # of one token's time, for each more; measured: 0.03 (AVX-512) to 0.13 (AVX2)
    MEMORY = 0.2  # weight of a new measurement
    FIRST = 3  # measurements of a width that are averaged plainly

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def record(self, tokens: int, seconds: float) -> None:
        """Add a step with so many tokens."""
        known = self._seconds.get(tokens)
        count = self._counts[tokens] = self._counts.get(tokens, 0) + 1
        if known is None:
            self._seconds[tokens] = seconds
        elif seconds < 4 * known:  # else another process had the cores
            weight = max(self.MEMORY, 1 / count) if count <= self.FIRST else self.MEMORY
            self._seconds[tokens] = known + weight * (seconds - known)
        else:
            self._seconds[tokens] = known * 1.1

    def seconds(self, tokens: int) -> float:
        """What a step with so many tokens is expected to take; 1.0 and more before any is known."""
        if tokens in self._seconds:
            return self._seconds[tokens]
        if not self._seconds:
            return 1 + self.SLOPE * (tokens - 1)
        near = min(self._seconds, key=lambda known: (abs(known - tokens), known))
        scale = (1 + self.SLOPE * (tokens - 1)) / (1 + self.SLOPE * (near - 1))
        return self._seconds[near] * scale


class Gate:
    """Decides how long a draft is, from what passes cost and how often drafts were right.

    One gate serves an engine; each sequence has an `Acceptance` of its own.
    """

    def __init__(self) -> None:
        self.costs = Costs()
        self._shares = Shares()
        self._waited = 0

    def of_sequence(self) -> Acceptance:
        """The acceptance of a new sequence."""
        return Acceptance(self._shares)

    def length(self, acceptance: Acceptance, draft: Draft, others: int) -> int:
        """How many tokens of a draft are worth verifying.

        Args:
            acceptance: of the sequence.
            draft: as long as may be.
            others: tokens of other sequences in the same pass.
        """
        first, later = acceptance.rates(draft)
        plain = self.costs.seconds(others + 1)
        best, gain = 0, FLOOR
        for length in LENGTHS:
            if length > len(draft.tokens):
                break
            # The tokens this sequence yields. The others yield one each, so a pass that takes
            # longer costs them, too.
            tokens = 1 + first * (1 - later**length) / (1 - later)
            found = (others + tokens) / (others + 1)
            found *= plain / self.costs.seconds(others + 1 + length)
            if found > gain:
                best, gain = length, found
        if best:
            self._waited = 0
            return best
        self._waited += 1
        if self._waited >= PROBE_EVERY and draft.match >= PROBED_MATCH:
            self._waited = 0
            return min(2, len(draft.tokens))
        return 0
