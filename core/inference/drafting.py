"""Drafting without a model: guess the next tokens from text that was seen, verify them in one pass.

Code repeats itself: an edit copies most of a file, an infilled call has its pattern a few lines
above. A suffix automaton finds the longest end of the sequence so far that stands somewhere in the
prompt, in other open files, in earlier answers or in a prediction of the answer; what followed it
there is the draft. The engine scores the draft's tokens in one pass and draws each token as it
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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

BREAK = -1  # between documents: no match and no draft goes across it
LONGEST_DRAFT = 16  # tokens
SHORTEST_MATCH = 2  # tokens; single tokens match nearly everywhere and predict little
MOST_INDEXED = 16_384  # tokens of documents, the latest ones; bounds memory and time to build
LENGTHS = (1, 2, 3, 4, 6, 8, 12, LONGEST_DRAFT)  # of drafts that are considered
# Acceptance of a drafted token by the length of its match, before anything is measured: long
# matches are rarely wrong. Each counts as PRIOR_WEIGHT tokens.
MATCHES = (3, 5, 9, 17)
PRIORS = (0.3, 0.45, 0.6, 0.75, 0.85)
PRIOR_WEIGHT = 4.0
MEMORY = 64.0  # tokens after which old acceptance counts half as much
FLOOR = 1.02  # expected gain below which no draft is made: estimates are noisy
PROBE_EVERY = 48  # steps without a draft after which a long match is tried once more


class SuffixAutomaton:
    """All parts of a growing sequence of tokens, and where each first ended.

    A state stands for the parts that end at the same places; `link` leads to the longest end of
    them that stands at other places, too (Blumer et al. 1985). Appending a token takes constant
    time on average.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link: list[int] = [-1]
        self._length: list[int] = [0]
        self._end: list[int] = [0]  # tokens up to the end of the first place
        self._last = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        nexts, links, lengths, ends = self._next, self._link, self._length, self._end
        last = self._last
        for token in tokens:
            self.tokens.append(token)
            made = len(nexts)
            nexts.append({})
            lengths.append(lengths[last] + 1)
            ends.append(len(self.tokens))
            links.append(0)
            state = last
            while state >= 0 and token not in nexts[state]:
                nexts[state][token] = made
                state = links[state]
            if state >= 0:
                target = nexts[state][token]
                if lengths[target] == lengths[state] + 1:
                    links[made] = target
                else:
                    copy = len(nexts)
                    nexts.append(dict(nexts[target]))
                    lengths.append(lengths[state] + 1)
                    links.append(links[target])
                    ends.append(ends[target])
                    while state >= 0 and nexts[state].get(token) == target:
                        nexts[state][token] = copy
                        state = links[state]
                    links[target] = links[made] = copy
            last = made
        self._last = last

    def match(self) -> tuple[int, int]:
        """The longest end of the sequence that stands earlier in it, too.

        Returns:
            (length, end): its length in tokens, and the number of tokens up to its first place's
            end; (0, 0) for none.
        """
        state = self._link[self._last]
        return (self._length[state], self._end[state]) if state > 0 else (0, 0)


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
        self._sources: Sources | None = sources
        self._automaton = SuffixAutomaton()
        self._new: list[int] = []  # that the automaton lacks
        # The answer begins as its prediction does, whatever stands before it.
        self._opening = sources.prediction

    def push(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence has grown by."""
        self._new += tokens
        if self._opening[: len(tokens)] == tuple(tokens):
            self._opening = self._opening[len(tokens) :]
        else:
            self._opening = ()

    def draft(self, most: int) -> Draft:
        """What may come next, at most so many tokens."""
        self._catch_up()
        if self._opening:
            return Draft(self._opening[:most], MATCHES[-1])
        length, end = self._automaton.match()
        if length < SHORTEST_MATCH:
            return Draft()
        # A loop's match overlaps the end of the sequence: what it lacks is the draft itself.
        known = self._automaton.tokens
        found = known[end : end + most]
        period = len(known) - end
        while len(found) < most:
            found.append(found[-period])
        if BREAK in found:
            del found[found.index(BREAK) :]
        return Draft(tuple(found), length)

    def _catch_up(self) -> None:
        """Index the sources when the first draft is asked for, then what was pushed."""
        sources, self._sources = self._sources, None
        if sources is not None:
            documents, room = [], MOST_INDEXED
            for document in reversed(sources.documents):
                if room > 0:
                    documents.append(document[-room:])
                    room -= len(document)
            for document in (*reversed(documents), sources.prediction[:MOST_INDEXED]):
                if document:
                    self._automaton.extend(document)
                    self._automaton.extend((BREAK,))
            self._automaton.extend(sources.history[-MOST_INDEXED:])
        self._automaton.extend(self._new)
        self._new.clear()


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
    """Seconds that passes of the model take, by the tokens in them, as measured.

    Widths that have not been seen are estimated from the nearest that has, by a cautious slope.
    """

    SLOPE = (
        0.06  # of one token's time, for each more; measured kernels are below (ENGINE: 1.19 at 8)
    )
    MEMORY = 0.2  # weight of a new measurement
    FIRST = 3  # measurements of a width that are averaged plainly

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def record(self, tokens: int, seconds: float) -> None:
        """Add a pass over so many tokens."""
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
        """What a pass over so many tokens is expected to take; 1.0 and more before any is known."""
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
        if self._waited >= PROBE_EVERY and match >= MATCHES[1]:
            self._waited = 0
            return min(2, available)
        return 0
