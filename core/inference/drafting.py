"""Drafting without a model: guess the next tokens from text that was seen, verify them in one pass.

Code repeats itself: an edit copies most of a file, an infilled call has its pattern a few lines
above. `Places` finds where the longest end of the sequence so far stands in the prompt, in other
open files, in earlier answers or in a prediction of the answer; what followed it there is the
draft. The engine scores the draft's tokens in one pass and draws each token as it
would without a draft: a token that differs from the draft ends it. So the text is the same at
temperature 0, and has the same distribution otherwise, whatever is drafted; scores of several
tokens at once differ from those of single ones by rounding at most.

    history   def area(self):\\n return self.w *          documents   ... self.w * self.h\\n def ...
                               |-- longest match --|                  |-- match --| draft

How long a draft may be is decided elsewhere (draft_gate.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

BREAK = -1  # between documents: no match and no draft goes across it
LONGEST_DRAFT = 31  # tokens
LONGEST_COMPARED = 64  # tokens of a match; a longer one predicts no better
CERTAIN_MATCH = 17  # tokens; what a match as long says is nearly always right
RESUMED_MATCH, RESUMED_WITHIN = 5, 8  # a match so long goes on within so many tokens after a change
MOST_ASKED = 32  # places of a match, the latest ones, that say what follows it
ALIGNED_WITHIN = 32  # tokens after a change in which places just behind it come first
NOWHERE = 1 << 40  # behind every place
FIRST_ROOM = 256  # tokens that a sequence grows by before its index is copied
MOST_INDEXED = 16_384  # tokens of documents, the latest ones; bounds memory and time


class Backing(IntEnum):
    """What speaks for the token behind a match; how often it is right depends on this."""

    DISPUTED = 0  # no more than half of its places
    MAJORITY = 1  # more than half
    SINGLE = 2  # there is one place
    AGREED = 3  # all of several places
    ALIGNED = 4  # it goes on with a text just behind a change, whatever other places say


@dataclass(frozen=True, slots=True)
class Match:
    """An end of the sequence that stands earlier in it, too.

    Attributes:
        length: in tokens; 0 for none.
        end: number of tokens up to the end of the place that is followed.
        backing: what speaks for its next token.
    """

    length: int = 0
    end: int = 0
    backing: Backing = Backing.SINGLE


class Places:
    """A growing sequence of tokens, and where its longest repeated end stood earlier.

    A match that goes on needs no search, since an end of n + 1 tokens repeats at most one token
    more than that of n. Else all places of the last token are compared at once, backwards from
    their ends. A suffix automaton finds the same matches, but takes microseconds a token to build:
    most completions end before that is earned back.

    Args:
        tokens: what the sequence begins with.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._size = len(tokens)
        self._tokens = np.empty(self._size + FIRST_ROOM, dtype=np.int32)
        self._tokens[: self._size] = tokens
        self._ends: npt.NDArray[np.intp] | None = None  # of the match's places; None: to be found
        self._length = 0
        self._end = 0  # of the place that is followed
        self._followed = NOWHERE  # where the last match that broke would have gone on
        self._since = ALIGNED_WITHIN + 1  # tokens since then
        self._resumable = False  # whether that match was long enough to go on behind a change
        self._resuming = False  # whether the match goes on with a text behind such a place

    def push(self, token: int) -> None:
        """Append a token."""
        size, known = self._size, self._tokens
        if size == len(known):
            known = self._tokens = np.concatenate([known, np.empty_like(known)])
        known[size] = token
        self._size = size + 1
        self._since += 1
        ends = self._ends
        if ends is not None and len(ends):
            if known[self._end] == token:
                self._end += 1
                self._ends = ends + 1 if len(ends) == 1 else ends[known[ends] == token] + 1
                self._length += 1
                return
            if self._length > 1 or self._resuming:
                self.leave(self._end, self._length)
        self._ends = None

    def leave(self, end: int, length: int) -> None:
        """Note where a match ended that the next token broke."""
        self._followed, self._since = end, 0
        self._resumable = length >= RESUMED_MATCH or self._resuming

    def match(self) -> Match:
        """The longest end of the sequence that stands earlier in it, too.

        Of equally long ones that which is followed by what follows most of them, the latest of
        these; just after a change the first behind it.
        """
        if self._ends is None:
            self._length, self._ends = self._search()
        if not len(self._ends):
            return Match()
        self._end, backing = self._chosen(self._ends)
        return Match(self._length, self._end, backing)

    def following(self, end: int, most: int) -> tuple[int, ...]:
        """The tokens behind a place, up to the end of its document; a loop's go on and on."""
        found = self._tokens[end : min(end + most, self._size)].tolist()
        period = self._size - end
        while len(found) < most:
            found.append(found[-period])
        return tuple(found[: found.index(BREAK)] if BREAK in found else found)

    def _search(self) -> tuple[int, npt.NDArray[np.intp]]:
        """(length, ends) of the longest match."""
        known = self._tokens[: self._size]
        tail = known[-LONGEST_COMPARED:].tolist()[::-1]
        if BREAK in tail:
            del tail[tail.index(BREAK) :]
        if not tail:
            return 0, _NO_PLACES
        ends = (known[:-1] == tail[0]).nonzero()[0] + 1
        length = min(len(ends), 1)
        self._resuming = False
        for token in tail[1:]:
            inner = ends[1:] if len(ends) and ends[0] == length else ends  # one begins at the start
            longer = inner[known[inner - length - 1] == token]
            if not len(longer):
                break
            ends, length = longer, length + 1
        if length == 1 and self._resumable and self._since <= RESUMED_WITHIN:
            behind = ends[ends > self._followed]
            if len(behind) and behind[0] <= self._followed + RESUMED_WITHIN:
                self._resuming = True
                return 1, behind[:1]
        return length, ends

    def _chosen(self, ends: npt.NDArray[np.intp]) -> tuple[int, Backing]:
        """Which of a match's places is followed, and what speaks for it."""
        if len(ends) == 1:
            return int(ends[0]), Backing.ALIGNED if self._resuming else Backing.SINGLE
        latest = ends[-MOST_ASKED:]
        followed = self._tokens[latest].tolist()
        if followed.count(followed[0]) == len(followed):
            return int(latest[-1]), Backing.AGREED
        if self._resumable and self._since <= ALIGNED_WITHIN:
            place = int(ends.searchsorted(self._followed))
            if place < len(ends) and ends[place] <= self._followed + ALIGNED_WITHIN:
                return int(ends[place]), Backing.ALIGNED
        token, count = Counter(reversed(followed)).most_common(1)[0]
        backing = Backing.MAJORITY if 2 * count > len(followed) else Backing.DISPUTED
        return int(latest[len(followed) - 1 - followed[::-1].index(token)]), backing


_NO_PLACES = np.empty(0, dtype=np.intp)


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
        backing: what speaks for the first of them.
    """

    tokens: tuple[int, ...] = ()
    match: int = 0
    backing: Backing = Backing.SINGLE

    def cut(self, length: int) -> Draft:
        """Its first tokens."""
        return Draft(self.tokens[:length], self.match, self.backing)


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
            return Draft(prediction[self._opened : self._opened + most], CERTAIN_MATCH)
        match = places.match()
        if not match.length:
            return Draft()
        return Draft(places.following(match.end, most), match.length, match.backing)

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
