"""The decoding engine: sequences of any length side by side, added and cancelled at any time.

    engine = Engine(runner, tokenizer.stream)
    number = engine.add(prompt, sampling=..., limits=..., ends=...)
    for number, event in engine.run():      # or engine.step(), again and again
        ...

Each step appends one token to every sequence. A sequence that ends makes room for waiting ones;
those with the same prompt share its prefill. A sequence has limits, stop strings and random numbers
of its own: of what is generated beside it, only the last bits of its scores depend.

A runner (`runner.py`) computes the scores and holds the key-value cache; the engine decides what is
computed next, and draws.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt

from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError

from .decoding import Completion, Decoding, Limits, TextStream
from .healing import Opening
from .runner import Runner, Scores
from .sampling import Sampling, draw

BATCH = 16  # sequences decoded side by side: bounds the key-value cache
Event = tuple[int, str | Completion]


class Engine:
    """Sequences that are decoded side by side.

    Args:
        runner: whose rows are this engine's alone.
        new_stream: makes a streaming decoder, one a sequence.
        batch: most sequences at a time; others wait.
        banned: ids that are never drawn, unless they end a sequence.
    """

    def __init__(
        self,
        runner: Runner,
        new_stream: Callable[[], TextStream],
        *,
        batch: int = BATCH,
        banned: Collection[int] = (),
    ) -> None:
        assert batch >= 1, f"a batch of {batch}"
        self._runner = runner
        self._new_stream = new_stream
        self._batch = batch
        self._banned = frozenset(banned)
        self._bans: dict[frozenset[int], npt.NDArray[np.intp] | None] = {}  # by ends that differ
        self._numbers = count()
        self._waiting: deque[Decoding] = deque()
        self._live: list[Decoding] = []  # in the order of the runner's rows
        runner.keep([])  # another engine may have left sequences there

    @property
    def busy(self) -> bool:
        """Whether a sequence has not ended yet."""
        return bool(self._live or self._waiting)

    def add(
        self,
        prompt: Sequence[int],
        *,
        sampling: Sampling,
        limits: Limits,
        ends: frozenset[int],
        sample: int = 0,
        opening: Opening | None = None,
    ) -> int:
        """Add a sequence, which begins with the next step that has room for it.

        Args:
            prompt: token ids, BOS included.
            sampling: how its tokens are drawn.
            limits: how long it may be, and its stop strings.
            ends: ids that end it and are not part of it.
            sample: number of the sample of this prompt, a part of its seed.
            opening: text it must begin with, and that is not shown (`healing.py`).

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
        )
        self._waiting.append(decoding)
        return decoding.number

    def cancel(self, number: int) -> None:
        """Drop a sequence; one that has ended already is none."""
        self._waiting = deque(d for d in self._waiting if d.number != number)
        self._keep([row for row, decoding in enumerate(self._live) if decoding.number != number])

    def run(self) -> Iterator[Event]:
        """Step until every sequence has ended, yielding the events of `step`."""
        while self.busy:
            yield from self.step()

    def step(self) -> list[Event]:
        """Append one token to every sequence.

        Returns:
            (number, text) as text becomes certain, and (number, Completion) where one has ended.

        Raises:
            UserError: the model's scores are not finite.
        """
        found = []
        if self._live:
            found.append(self._runner.decode(0, [d.ids[-1:] for d in self._live]))
        if self._waiting and len(self._live) < self._batch:
            found.append(self._admit())
        if not found:
            return []
        live = self._live
        scores = _allowed(np.concatenate(found) if len(found) > 1 else found[0], live)
        tokens = draw(scores, [d.sampling for d in live], [d.generator for d in live])
        events: list[Event] = []
        for decoding, token in zip(live, tokens, strict=True):
            text = decoding.take(token)
            if text:
                events.append((decoding.number, text))
            if decoding.finish_reason is not None:
                events.append((decoding.number, decoding.completion(time.perf_counter())))
        self._keep([row for row, decoding in enumerate(live) if decoding.finish_reason is None])
        return events

    def _admit(self) -> Scores:
        """Read the prompts of sequences that wait, as many as there is room for.

        Returns:
            (B,V) scores of their first tokens; they follow the live ones.
        """
        began = time.perf_counter()
        room = self._batch - len(self._live)
        fresh = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        fresh.sort(key=lambda d: len(d.prompt))  # runners read similar lengths fastest
        start, stop = len(self._live), len(self._live) + len(fresh)
        self._reserve(stop, max(len(d.prompt) + d.limit for d in fresh))
        prompts = list(dict.fromkeys(d.prompt for d in fresh))  # each is read once
        found = self._runner.prefill(start, prompts)
        places = {prompt: place for place, prompt in enumerate(prompts)}
        sources = [places[d.prompt] for d in fresh]
        self._runner.copy_rows(start, [start + place for place in sources])
        now = time.perf_counter()
        for decoding in fresh:
            decoding.prefill_s, decoding.first_at = now - began, now
        self._live += fresh
        return found if len(prompts) == len(fresh) else found[sources]

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

    def _keep(self, rows: list[int]) -> None:
        if len(rows) < len(self._live):
            self._runner.keep(rows)
            self._live = [self._live[row] for row in rows]


def _allowed(scores: Scores, live: Sequence[Decoding]) -> Scores:
    """The scores, -inf for what must not be drawn: banned ids, and what contradicts an opening.

    Args:
        scores: (B,V), changed in place.
        live: the sequences.

    Raises:
        UserError: they are not finite.
    """
    if not np.isfinite(scores).all():
        raise UserError(
            "the model's scores are not finite (NaN or infinity)",
            hint="weights may be damaged (`codecria inspect --verify`), or values overflow: try"
            " --dtype float32",
        )
    for row, decoding in enumerate(live):
        if decoding.banned is not None:
            scores[row, decoding.banned] = -np.inf
        if decoding.opening is not None and decoding.left:
            allowed = np.zeros(scores.shape[1], dtype=np.bool_)
            fitting = decoding.opening.allowed(decoding.left)
            allowed[: len(fitting)] = fitting  # the model may have rows that no piece has
            if not np.isfinite(scores[row, allowed]).any():  # nothing continues it: give it up
                decoding.left, decoding.hidden = b"", 0
            else:
                scores[row, ~allowed] = -np.inf
    return scores


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

    Yields:
        (sample number, text) as text becomes certain, then (sample number, Completion) once each.

    Raises:
        UserError: the prompt is empty, holds an id outside the vocabulary, or fills the context;
            or the model's scores are not finite.
    """
    engine = Engine(runner, new_stream, batch=batch or limits.samples, banned=banned)
    samples = {
        engine.add(
            prompt, sampling=sampling, limits=limits, ends=ends, sample=sample, opening=opening
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
