"""Drafting without a model: guess the next tokens from text that was seen, verify them in one pass.

Code repeats itself: an edit copies most of a file, an infilled call has its pattern a few lines
above. `Places` finds the longest end of the sequence so far that stands somewhere in the prompt, in
other open files, in earlier answers or in a prediction of the answer; what followed it there is the
draft. The engine scores the draft's tokens in one pass and draws each token as it
would without a draft: a token that differs from the draft ends it. So the text is the same at
temperature 0, and has the same distribution otherwise, whatever is drafted; scores of several
tokens at once differ from those of single ones by rounding at most.

    history   def area(self):\\n return self.w *          documents   ... self.w * self.h\\n def ...
                               |-- longest match --|                  |-- match --| draft

A draft costs time only if it is wrong. `Gate` measures what passes of each width cost and how often
drafts are accepted, and picks the length that is expected to yield most tokens a second: none where
drafts do not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

BREAK = -1  # between documents: no match and no draft goes across it
LONGEST_DRAFT = 16  # tokens
SHORTEST_MATCH = 2  # tokens; single tokens match nearly everywhere and predict little
LONGEST_COMPARED = 64  # tokens of a match; a longer one predicts no better
RESUMED_MATCH, RESUMED_WITHIN = 5, 8  # a match so long goes on within so many tokens after a change
NOWHERE = 1 << 40  # behind every place
FIRST_ROOM = 256  # tokens that a sequence grows by before its index is copied
MOST_INDEXED = 16_384  # tokens of documents, the latest ones; bounds memory and time
LENGTHS = (1, 2, 3, 4, 6, 8, 12, LONGEST_DRAFT)  # of drafts that are considered
# Acceptance of a drafted token by the length of its match, before anything is measured: long
# matches are rarely wrong. Each counts as PRIOR_WEIGHT tokens.
MATCHES = (2, 3, 5, 9, 17)
PRIORS = (0.5, 0.25, 0.4, 0.6, 0.75, 0.85)
PRIOR_WEIGHT = 4.0
MEMORY = 64.0  # tokens after which old acceptance counts half as much
FLOOR = 1.02  # expected gain below which no draft is made: estimates are noisy
PROBE_EVERY = 48  # steps without a draft after which a long match is tried once more


class Places:
    """A growing sequence of tokens, and where its longest repeated end stood earlier.

    A match that goes on needs no search, since an end of n + 1 tokens repeats at most one token
    more than that of n. Else all places of the last two tokens are compared at once, backwards from
    their ends. A suffix automaton finds the same matches, but takes microseconds a token to build:
    most completions end before that is earned back.

    Args:
        tokens: what the sequence begins with.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._size = len(tokens)
        self._tokens = np.empty(self._size + FIRST_ROOM, dtype=np.int32)
        self._tokens[: self._size] = tokens
        self._length: int | None = None  # of the match; None: to be searched
        self._end = 0
        self._followed = NOWHERE  # where the last match that broke would have gone on
        self._since = RESUMED_WITHIN + 1  # tokens since then
        self._resuming = False  # whether the match goes on with a text behind such a place

    def push(self, token: int) -> None:
        """Append a token."""
        size, known = self._size, self._tokens
        if size == len(known):
            known = self._tokens = np.concatenate([known, np.empty_like(known)])
        known[size] = token
        self._size = size + 1
        self._since += 1
        if self._length:
            if known[self._end] == token:
                self._length += 1
                self._end += 1
                return
            if self._length >= SHORTEST_MATCH:
                self.leave(self._end, self._length)
        self._length = None

    def leave(self, end: int, length: int) -> None:
        """Note where a match ended that the next token broke."""
        self._followed = end
        is_text = length >= RESUMED_MATCH or self._resuming
        self._since = 0 if is_text else RESUMED_WITHIN + 1

    def match(self) -> tuple[int, int]:
        """The longest end of the sequence that stands earlier in it, too.

        Of equally long ones the first behind the last match that broke, else the latest. Where
        there is none, an end of one token counts that stands just behind a match that broke.

        Returns:
            (length, end): its length in tokens, and the number of tokens up to the end of its
            earlier place; (0, 0) for none.
        """
        if self._length is None:
            self._length, self._end = self._search()
        return self._length, self._end

    def following(self, end: int, most: int) -> tuple[int, ...]:
        """The tokens behind a place, up to the end of its document; a loop's go on and on."""
        found = self._tokens[end : min(end + most, self._size)].tolist()
        period = self._size - end
        while len(found) < most:
            found.append(found[-period])
        return tuple(found[: found.index(BREAK)] if BREAK in found else found)

    def _search(self) -> tuple[int, int]:
        size = self._size
        known = self._tokens[:size]
        tail = known[-LONGEST_COMPARED:].tolist()[::-1]
        if BREAK in tail:
            del tail[tail.index(BREAK) :]
        if len(tail) < SHORTEST_MATCH:
            return 0, 0
        ends = ((known[1:-1] == tail[0]) & (known[:-2] == tail[1])).nonzero()[0] + SHORTEST_MATCH
        if not len(ends):
            return self._resumed(tail[0])
        length, self._resuming = SHORTEST_MATCH, False
        for token in tail[SHORTEST_MATCH:]:
            inner = ends[1:] if ends[0] == length else ends  # one begins where the sequence does
            longer = inner[known[inner - length - 1] == token]
            if not len(longer):
                break
            ends, length = longer, length + 1
        place = int(ends.searchsorted(self._followed))
        return length, int(ends[place if place < len(ends) else -1])

    def _resumed(self, token: int) -> tuple[int, int]:
        """The first place of a token just behind a match that broke."""
        if self._since > RESUMED_WITHIN:
            return 0, 0
        behind = min(self._followed + RESUMED_WITHIN, self._size - 1)
        near = self._tokens[self._followed : behind].tolist()
        self._resuming = token in near
        return (1, self._followed + near.index(token) + 1) if self._resuming else (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a sequence may draw its drafts from.

    Attributes:
        history: ids that the sequence continues; for a gap the text before it, not the prompt.
        documents: ids of other texts, the most telling one last.
        prediction: ids of a guess at the answer, or none.
    """

    history: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...] = ()
    prediction: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens.

    Attributes:
        tokens: what may come next.
        match: length of the match they follow, in tokens.
    """

    tokens: tuple[int, ...] = ()
    match: int = 0


class Drafter:
    """Drafts for one sequence.

    Args:
        sources: where drafts come from.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._places: Places | None = None  # made when the first draft is asked for
        self._new: list[int] = []  # that it lacks
        # The answer begins as its prediction does, whatever stands before it: so many tokens of
        # it are there, or it went another way.
        self._opened: int | None = 0 if sources.prediction else None

    def push(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence has grown by."""
        self._new += tokens

    def draft(self, most: int) -> Draft:
        """What may come next, at most so many tokens."""
        places = self._caught_up()
        if self._opened is not None:
            prediction = self._sources.prediction
            return Draft(prediction[self._opened : self._opened + most], MATCHES[-1])
        length, end = places.match()
        return Draft(places.following(end, most), length) if length else Draft()

    def _caught_up(self) -> Places:
        """The index with what was pushed."""
        if self._places is None:
            self._places = Places(self._known())
        for token in self._new:
            self._places.push(token)
            if self._opened is not None:
                self._open(token, self._places)
        self._new.clear()
        return self._places

    def _open(self, token: int, places: Places) -> None:
        """Go on with the prediction, or note where the answer went another way."""
        prediction, opened = self._sources.prediction, self._opened
        assert opened is not None, "an answer that went another way before"
        if prediction[opened] == token and opened + 1 < len(prediction):
            self._opened = opened + 1
            return
        self._opened = None
        if prediction[opened] != token and opened < MOST_INDEXED:
            places.leave(self._predicted + opened, RESUMED_MATCH)

    def _known(self) -> list[int]:
        """The sources in one sequence."""
        sources = self._sources
        documents, room = [], MOST_INDEXED
        for document in reversed(sources.documents):
            if room > 0:
                documents.append(document[-room:])
                room -= len(document)
        known: list[int] = []
        for document in (*reversed(documents), sources.prediction[:MOST_INDEXED]):
            self._predicted = len(known)
            if document:
                known += document
                known.append(BREAK)
        known += sources.history[-MOST_INDEXED:]
        return known


@dataclass(slots=True)
class Acceptance:
    """How often drafted tokens were right, by the length of the match they followed.

    Attributes:
        drafted, accepted: tokens so far, of all matches.
        shared: of all sequences, or None.
    """

    drafted: int = 0
    accepted: int = 0
    shared: Acceptance | None = None
    _right: list[float] = field(default_factory=lambda: [p * PRIOR_WEIGHT for p in PRIORS])
    _tried: list[float] = field(default_factory=lambda: [PRIOR_WEIGHT] * len(PRIORS))

    def of_sequence(self) -> Acceptance:
        """One for a new sequence: it expects what the others had, and tells what it had."""
        rates = [min(max(r / t, 0.02), 0.98) for r, t in zip(self._right, self._tried, strict=True)]
        return Acceptance(shared=self, _right=[rate * PRIOR_WEIGHT for rate in rates])

    def rate(self, match: int) -> float:
        """The share of drafted tokens that is expected to be right after a match of this length."""
        place = _bucket(match)
        return self._right[place] / self._tried[place]

    def record(self, draft: Draft, accepted: int) -> None:
        """Count a verified draft: tokens after the first wrong one say nothing."""
        self.drafted += len(draft.tokens)
        self.accepted += accepted
        tried = min(accepted + 1, len(draft.tokens))
        place = _bucket(draft.match)
        fade = 0.5 ** (tried / MEMORY)
        self._right[place] = self._right[place] * fade + accepted
        self._tried[place] = self._tried[place] * fade + tried
        if self.shared is not None:
            self.shared.record(draft, accepted)


def _bucket(match: int) -> int:
    return sum(match >= least for least in MATCHES)


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

    One gate serves an engine; each sequence has an `Acceptance` of its own, which begins with what
    the gate knows of the others.
    """

    def __init__(self) -> None:
        self.costs = Costs()
        self.acceptance = Acceptance()
        self._waited = 0

    def length(self, acceptance: Acceptance, match: int, available: int, others: int) -> int:
        """How many of the available tokens of a draft are worth verifying.

        Args:
            acceptance: of the sequence.
            match: length of the match, in tokens.
            available: tokens of the draft.
            others: tokens of other sequences in the same pass.
        """
        rate = min(acceptance.rate(match), 0.98)
        plain = self.costs.seconds(others + 1)
        best, gain = 0, FLOOR
        for length in LENGTHS:
            if length > available:
                break
            # 1 + r + r^2 + ...: the tokens this sequence yields. The others yield one each, so a
            # pass that takes longer costs them, too.
            tokens = (1 - rate ** (length + 1)) / (1 - rate)
            found = (others + tokens) / (others + 1)
            found *= plain / self.costs.seconds(others + 1 + length)
            if found > gain:
                best, gain = length, found
        if best:
            self._waited = 0
            return best
        self._waited += 1
        if self._waited >= PROBE_EVERY and match >= MATCHES[2]:
            self._waited = 0
            return min(2, available)
        return 0
