"""The decoding engine: sequences of any length side by side, added and cancelled at any time.

    engine = Engine(runner, tokenizer.stream)
    number = engine.add(prompt, sampling=..., limits=..., ends=...)
    for number, event in engine.run():      # or engine.step(), again and again
        ...

Each step appends a token to every sequence, or several where drafts were right (`drafting.py`). A
sequence that ends makes room for waiting ones. Those with the same prompt share its prefill, also
with one that is being decoded, and what a prefix cache holds of it is not read again
(`prefix_cache.py`). A sequence has limits, stop strings and random numbers of its own: of what is
generated beside it, only the last bits of its scores depend.

A runner (`runner.py`) computes the scores and holds the key-value cache; the engine decides what is
computed next, and draws.

    rows   [ live 0 .. n-1: decoded ][ reading n .. : prompts that are being read ][ empty ]

Shapes: N tokens scored in a pass, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError

from .decoding import Completion, Decoding, Limits, TextStream, TokenScore
from .draft_gate import Gate
from .drafting import Draft, Drafter, Sources
from .drawing import allowed, draft_of, take
from .healing import Opening
from .prefix_cache import PrefixCache
from .runner import Runner, Scores
from .sampling import Sampling

BATCH = 16  # sequences decoded side by side: bounds the key-value cache
Event = tuple[int, str | Completion]


@dataclass(slots=True)
class _Reading:
    """Prompts that are being read into the rows behind the live ones.

    Attributes:
        prompts: each is read once, from short to long.
        decodings: the sequences that begin with them.
        done: positions of each prompt that its row holds.
        began: clock when reading began.
    """

    prompts: list[tuple[int, ...]]
    decodings: list[Decoding]
    done: list[int]
    began: float


class Engine:
    """Sequences that are decoded side by side.

    Args:
        runner: whose rows are this engine's alone.
        new_stream: makes a streaming decoder, one a sequence.
        batch: most sequences at a time; others wait.
        banned: ids that are never drawn, unless they end a sequence.
        cache: of the runner's model, or None.
        chunk: most tokens of prompts that are read in a step, so that other sequences go on
            meanwhile; None reads them whole.
    """

    def __init__(
        self,
        runner: Runner,
        new_stream: Callable[[], TextStream],
        *,
        batch: int = BATCH,
        banned: Collection[int] = (),
        cache: PrefixCache | None = None,
        chunk: int | None = None,
    ) -> None:
        assert batch >= 1, f"a batch of {batch}"
        self._runner = runner
        self._new_stream = new_stream
        self._batch = batch
        self._banned = frozenset(banned)
        self._cache = cache
        self._chunk = chunk
        self._gate = Gate()
        self._bans: dict[frozenset[int], npt.NDArray[np.intp] | None] = {}  # by ends that differ
        self._numbers = count()
        self._waiting: deque[Decoding] = deque()
        self._live: list[Decoding] = []  # in the order of the runner's rows
        self._reading: _Reading | None = None
        self._after: dict[tuple[int, ...], Scores] = {}  # (V,) after live sequences' prompts
        runner.keep([])  # another engine may have left sequences there

    @property
    def busy(self) -> bool:
        """Whether a sequence has not ended yet."""
        return bool(self._live or self._waiting or self._reading)

    def add(
        self,
        prompt: Sequence[int],
        *,
        sampling: Sampling,
        limits: Limits,
        ends: frozenset[int],
        sample: int = 0,
        opening: Opening | None = None,
        sources: Sources | None = None,
        top_scores: int | None = None,
        read_only: bool = False,
    ) -> int:
        """Add a sequence, which begins with the next step that has room for it.

        Args:
            prompt: token ids, BOS included.
            sampling: how its tokens are drawn.
            limits: how long it may be, and its stop strings.
            ends: ids that end it and are not part of it.
            sample: number of the sample of this prompt, a part of its seed.
            opening: text it must begin with, and that is not shown (`healing.py`).
            sources: what drafts of its tokens are taken from; None drafts none.
            top_scores: likeliest tokens that are reported at each place; None for no scores.
            read_only: whether it ends once its prompt is read, for the prefix cache.

        Returns:
            the number that its events carry.

        Raises:
            UserError: the prompt is empty, holds an id outside the vocabulary, or fills the
                context.
        """
        decoding = Decoding(
            number=next(self._numbers),
            prompt=tuple(prompt),
            sampling=sampling,
            generator=sampling.generator(sample),
            stream=self._new_stream(),
            limit=_limit(self._runner.config, prompt, limits),
            stops=limits.stops,
            ends=ends,
            banned=self._ban(ends),
            opening=opening,
            read_only=read_only,
            top_scores=top_scores,
            drafter=None if sources is None else Drafter(sources),
            acceptance=self._gate.of_sequence(),
        )
        self._waiting.append(decoding)
        return decoding.number

    def cancel(self, number: int) -> None:
        """Drop a sequence; one that has ended already is none. What was read stays in the cache."""
        self._waiting = deque(d for d in self._waiting if d.number != number)
        self._drop({number})

    def end(self, number: int) -> list[Event]:
        """End a sequence with what there is; the events of `step`."""
        found = next((d for d in self._all() if d.number == number), None)
        if found is None:
            return []
        text = found.end()
        self.cancel(number)
        events: list[Event] = [(number, text)] if text else []
        return [*events, (number, found.completion(time.perf_counter()))]

    def first_at(self, number: int) -> float | None:
        """The clock when a sequence's prompt was read; None before that."""
        found = next((d for d in self._live if d.number == number), None)
        return None if found is None else found.first_at

    def scores(self, number: int) -> tuple[Sequence[TokenScore], int]:
        """(scores of a sequence's tokens so far, number of its tokens)."""
        found = next((d for d in self._live if d.number == number), None)
        return ((), 0) if found is None else (found.scores, len(found.ids))

    def run(self) -> Iterator[Event]:
        """Step until every sequence has ended, yielding the events of `step`."""
        while self.busy:
            yield from self.step()

    def step(self) -> list[Event]:
        """Append a token to every sequence, or several, and read prompts.

        Returns:
            (number, text) as text becomes certain, and (number, Completion) where one has ended.

        Raises:
            UserError: the model's scores are not finite.
        """
        events = self._decode() if self._live else []
        events += self._read()
        return events

    # --- decoding ---

    def _decode(self) -> list[Event]:
        """One pass over the live sequences with their drafts."""
        began = time.perf_counter()
        live = list(self._live)
        drafts = [draft_of(decoding, self._gate, len(live) - 1) for decoding in live]
        before = list(self._runner.lengths[: len(live)])
        tokens = [[d.ids[-1], *draft.tokens] for d, draft in zip(live, drafts, strict=True)]
        scores = self._runner.decode(0, tokens)
        scores = allowed(scores, [d for d, some in zip(live, tokens, strict=True) for _ in some])
        best = scores.argmax(-1).tolist()
        events: list[Event] = []
        at = 0
        for row, (decoding, draft) in enumerate(zip(live, drafts, strict=True)):
            span = slice(at, at + len(draft.tokens) + 1)
            at = span.stop
            kept, text = take(decoding, draft, scores[span], best[span], self._runner.tolerance)
            if kept <= len(draft.tokens):
                self._runner.truncate(row, before[row] + kept)
            events += self._events(decoding, text)
        # With all that a token costs besides the pass: a draft has to earn that, too.
        self._gate.costs.record(at, time.perf_counter() - began)
        self._drop({d.number for d in live if d.finish_reason is not None})
        return events

    def _events(self, decoding: Decoding, text: str) -> list[Event]:
        events: list[Event] = [(decoding.number, text)] if text else []
        if decoding.finish_reason is not None:
            events.append((decoding.number, decoding.completion(time.perf_counter())))
        return events

    # --- reading ---

    def _read(self) -> list[Event]:
        """Read a chunk of the prompts that wait; the first tokens of those that are read whole."""
        events = []
        if self._reading is None:
            events = self._join()
            self._reading = self._admit()
        reading = self._reading
        if reading is None:
            return events
        left = zip(reading.prompts, reading.done, strict=True)
        parts = [prompt[done:] for prompt, done in left]
        if self._chunk is not None and len(parts) == 1:
            parts = [parts[0][: self._chunk]]
        scores = self._runner.prefill(len(self._live), parts)
        reading.done = [d + len(part) for d, part in zip(reading.done, parts, strict=True)]
        if reading.done[0] < len(reading.prompts[0]):
            return events
        self._reading = None
        return events + self._begin(reading, scores)

    def _join(self) -> list[Event]:
        """Begin the next sequences that wait, as long as a live one has read their prompt."""
        start, twins = len(self._live), list[Decoding]()
        while self._waiting and start + len(twins) < self._batch:
            one = self._waiting[0]
            if one.read_only or one.prompt not in self._after:
                break
            twins.append(self._waiting.popleft())
        if not twins:
            return []
        self._reserve(start + len(twins), max(len(d.prompt) + d.limit for d in twins))
        rows = {decoding.prompt: row for row, decoding in enumerate(self._live)}
        self._runner.copy_rows(start, [rows[decoding.prompt] for decoding in twins])
        now = time.perf_counter()
        for row, decoding in enumerate(twins, start):
            self._runner.truncate(row, len(decoding.prompt))
            decoding.first_at, decoding.cached = now, self._live[rows[decoding.prompt]].cached
        return self._first_tokens(twins, np.stack([self._after[d.prompt] for d in twins]))

    def _admit(self) -> _Reading | None:
        """Take sequences that wait, as many as there is room for, and what is known of them.

        If prompts are read in chunks, only such are read together as fit a chunk.
        """
        room = self._batch - len(self._live)
        if not room or not self._waiting:
            return None
        fresh = [self._waiting.popleft()]
        total, known = len(fresh[0].prompt), {fresh[0].prompt}
        while self._waiting and len(fresh) < room:
            prompt = self._waiting[0].prompt
            if prompt not in known:
                total += len(prompt)
                if self._chunk is not None and total > self._chunk:
                    break
                known.add(prompt)
            fresh.append(self._waiting.popleft())
        fresh.sort(key=lambda d: len(d.prompt))  # runners read similar lengths fastest
        start = len(self._live)
        self._reserve(start + len(fresh), max(len(d.prompt) + d.limit for d in fresh))
        prompts = list(dict.fromkeys(d.prompt for d in fresh))  # each is read once
        began = time.perf_counter()
        done = [0] * len(prompts)
        if self._cache is not None:
            for place, prompt in enumerate(prompts):
                done[place] = self._cache.restore(self._runner, start + place, prompt)
        for decoding in fresh:
            decoding.cached = done[prompts.index(decoding.prompt)]
        return _Reading(prompts, fresh, done, began)

    def _begin(self, reading: _Reading, scores: Scores) -> list[Event]:
        """Draw the first tokens after prompts that are read."""
        start, now = len(self._live), time.perf_counter()
        if self._cache is not None:
            for place, prompt in enumerate(reading.prompts):
                self._cache.store(self._runner, start + place, prompt)
        events: list[Event] = []
        for decoding in reading.decodings:
            decoding.prefill_s, decoding.first_at = now - reading.began, now
            if decoding.read_only:
                events += self._events(decoding, decoding.end())
        fresh = [decoding for decoding in reading.decodings if not decoding.read_only]
        places = {prompt: place for place, prompt in enumerate(reading.prompts)}
        sources = [places[decoding.prompt] for decoding in fresh]
        if sources:
            self._runner.copy_rows(start, [start + place for place in sources])
        if len(sources) < len(reading.prompts):
            self._runner.keep(range(start + len(sources)))
        for decoding in fresh:
            self._after[decoding.prompt] = scores[places[decoding.prompt]].copy()
        if sources != list(range(len(scores))):
            scores = scores[sources]
        return events + self._first_tokens(fresh, scores)

    def _first_tokens(self, fresh: list[Decoding], scores: Scores) -> list[Event]:
        """Draw the first tokens of sequences that stand behind the live ones, which they join."""
        self._live += fresh
        events: list[Event] = []
        scores = allowed(scores, fresh)
        best = scores.argmax(-1).tolist()
        for row, decoding in enumerate(fresh):
            one = slice(row, row + 1)
            _, text = take(decoding, Draft(), scores[one], best[one], 0.0)
            events += self._events(decoding, text)
        self._drop({d.number for d in fresh if d.finish_reason is not None})
        return events

    # --- rows ---

    def _all(self) -> Iterator[Decoding]:
        yield from self._live
        yield from self._waiting
        if self._reading is not None:
            yield from self._reading.decodings

    def _drop(self, numbers: Collection[int]) -> None:
        """Give up the rows of sequences; what they hold goes to the cache."""
        live, reading = len(self._live), self._reading
        kept = [row for row, d in enumerate(self._live) if d.number not in numbers]
        if self._cache is not None:
            for row, decoding in enumerate(self._live):
                if decoding.number in numbers:
                    held = (*decoding.prompt, *decoding.ids)[: self._runner.lengths[row]]
                    self._cache.store(self._runner, row, held)
        if reading is not None:
            reading.decodings = [d for d in reading.decodings if d.number not in numbers]
            if reading.decodings:
                behind = range(live, live + len(reading.prompts))
            else:
                behind = range(0)
                if self._cache is not None:
                    for place, prompt in enumerate(reading.prompts):
                        part = prompt[: reading.done[place]]
                        self._cache.store(self._runner, live + place, part)
                self._reading = None
        else:
            behind = range(0)
        if len(kept) < live or (reading is not None and self._reading is None):
            self._runner.keep([*kept, *behind])
            self._live = [self._live[row] for row in kept]
            prompts = {decoding.prompt for decoding in self._live}
            self._after = {p: scores for p, scores in self._after.items() if p in prompts}

    def _ban(self, ends: frozenset[int]) -> npt.NDArray[np.intp] | None:
        """Which ids a sequence with these ends never draws; None when it may draw all."""
        if not self._banned:
            return None
        excepted = ends & self._banned
        if excepted not in self._bans:
            self._bans[excepted] = np.array(sorted(self._banned - excepted), dtype=np.intp)
        return self._bans[excepted]

    def _reserve(self, rows: int, positions: int) -> None:
        """Make room for so many rows and positions; rows double, as growing copies them all."""
        held = self._runner.rows
        if self._live and rows > held:
            rows = min(self._batch, max(rows, 2 * held))
        self._runner.reserve(rows, positions)


def complete(
    runner: Runner,
    prompt: Sequence[int],
    *,
    new_stream: Callable[[], TextStream],
    sampling: Sampling,
    limits: Limits,
    ends: frozenset[int],
    opening: Opening | None = None,
    banned: Collection[int] = (),
    batch: int | None = None,
    sources: Sources | None = None,
    cache: PrefixCache | None = None,
) -> Iterator[Event]:
    """Generate completions of one prompt; the samples share its prefill.

    Args:
        runner: whose rows it may use.
        prompt: token ids, BOS included.
        new_stream: makes a streaming decoder, one a sample.
        sampling: how tokens are drawn.
        limits: how many, how long, and where they end.
        ends: ids that end a completion and are not part of it.
        opening: text the completion must begin with, and that is not shown (`healing.py`).
        banned: ids that are never drawn, unless they are among the ends.
        batch: samples at a time; None takes all at once.
        sources: what drafts are taken from; None drafts none.
        cache: see `Engine`.

    Yields:
        (sample number, text) as text becomes certain, then (sample number, Completion) once each.

    Raises:
        UserError: the prompt is empty, holds an id outside the vocabulary, or fills the context;
            or the model's scores are not finite.
    """
    engine = Engine(
        runner,
        new_stream,
        batch=batch or limits.samples,
        banned=banned,
        cache=cache,
    )
    samples = {
        engine.add(
            prompt,
            sampling=sampling,
            limits=limits,
            ends=ends,
            sample=sample,
            opening=opening,
            sources=sources,
        ): sample
        for sample in range(limits.first, limits.first + limits.samples)
    }
    for number, event in engine.run():
        yield samples[number], event


def _limit(config: ModelConfig, prompt: Sequence[int], limits: Limits) -> int:
    """How many tokens may follow a prompt.

    Raises:
        UserError: it is empty, holds an id outside the vocabulary, or fills the context.
    """
    if not prompt:
        raise UserError("the prompt has no tokens", hint="it needs at least the BOS token")
    V = config.vocab_size
    if not 0 <= min(prompt) <= max(prompt) < V:
        raise UserError(
            f"the prompt holds a token outside the model's vocabulary of {V}",
            hint="the tokenizer does not belong to this model",
        )
    room = (limits.context or config.max_context) - len(prompt)
    if room < 1:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the context {len(prompt) + room}",
            hint="shorten it, or widen the context with --context",
        )
    return min(limits.max_tokens, room)
