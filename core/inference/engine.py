"""The decoding engine: sequences of any length side by side, added and cancelled at any time.

    engine = Engine(model, tokenizer.stream)
    number = engine.add(prompt, sampling=..., limits=..., ends=...)
    for number, event in engine.run():      # or engine.step(), again and again
        ...

Each step appends one token to every sequence. A sequence that ends makes room for waiting ones;
those with the same prompt share its prefill. A sequence has limits, stop strings and random numbers
of its own: of what is generated beside it, only the last bits of its scores depend.

`prefill` and `decode_step` are functions of a model and a cache alone. A faster engine replaces
those two and nothing else.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError

from .cache import ChunkAttention, KeyValueCache, TokenAttention
from .decoding import Completion, Decoding, Limits, TextStream
from .healing import Opening
from .sampling import Sampling, draw

PREFILL_CHUNK = 2_048  # tokens; bounds the activations of a long prompt
PREFILL_TOKENS = 16_384  # of prompts that are read side by side, padding included
BATCH = 16  # sequences decoded side by side: bounds the key-value cache
Event = tuple[int, str | Completion]


@torch.inference_mode()
def prefill(model: Transformer, cache: KeyValueCache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Run the prompts through the model, in chunks, and fill the cache with them.

    Args:
        model: in evaluation.
        cache: fresh, with as many sequences as prompts.
        prompts: token ids, at least one each; ragged is fine.

    Returns:
        (B,V) float32 scores of the token after each prompt.
    """
    device = cache.keys.device
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(device)
    last: list[Tensor | None] = [None] * len(prompts)
    for start in range(0, longest, PREFILL_CHUNK):
        chunk = ids[:, start : start + PREFILL_CHUNK]
        stop = start + chunk.shape[1]
        positions = torch.arange(start, stop, device=device).expand(len(prompts), -1)
        hidden = model(chunk, positions, ChunkAttention(cache, start))
        for row, length in enumerate(lengths):
            if start < length <= stop:
                last[row] = hidden[row, length - 1 - start]
    cache.lengths = lengths
    return model.logits(torch.stack([h for h in last if h is not None]))


@torch.inference_mode()
def decode_step(model: Transformer, cache: KeyValueCache, tokens: Sequence[int]) -> Tensor:
    """Append one token to each sequence and score the next.

    Args:
        model: in evaluation.
        cache: filled by `prefill` and earlier steps; grows by one position.
        tokens: one id a sequence.

    Returns:
        (B,V) float32 scores.
    """
    device = cache.keys.device
    ids = torch.tensor(tokens, device=device).unsqueeze(1)  # (B,1)
    positions = torch.tensor(cache.lengths, device=device).unsqueeze(1)
    hidden = model(ids, positions, TokenAttention(cache))
    cache.lengths = [length + 1 for length in cache.lengths]
    return model.logits(hidden[:, 0])


class Engine:
    """Sequences that are decoded side by side.

    Args:
        model: in evaluation.
        new_stream: makes a streaming decoder, one a sequence.
        batch: most sequences at a time; others wait.
        banned: ids that are never drawn, unless they end a sequence.
        cache_dtype: type of the key-value cache; None takes the model's.
    """

    def __init__(
        self,
        model: Transformer,
        new_stream: Callable[[], TextStream],
        *,
        batch: int = BATCH,
        banned: Collection[int] = (),
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        assert batch >= 1, f"a batch of {batch}"
        self._model = model
        self._new_stream = new_stream
        self._batch = batch
        self._banned = frozenset(banned)
        self._masks: dict[frozenset[int], Tensor | None] = {}  # (V,) by the ends that differ
        self._cache_dtype = cache_dtype or model.tok_embeddings.dtype
        self._cache: KeyValueCache | None = None
        self._numbers = count()
        self._waiting: deque[Decoding] = deque()
        self._live: list[Decoding] = []  # in the order of the cache's rows

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
            limit=_limit(self._model, prompt, limits),
            stops=limits.stops,
            ends=ends,
            banned=self._mask(ends),
            opening=opening,
        )
        self._waiting.append(decoding)
        return decoding.number

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Drop a sequence; one that has ended already is none."""
        self._waiting = deque(d for d in self._waiting if d.number != number)
        self._keep([row for row, decoding in enumerate(self._live) if decoding.number != number])

    def run(self) -> Iterator[Event]:
        """Step until every sequence has ended, yielding the events of `step`."""
        while self.busy:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Append one token to every sequence.

        Returns:
            (number, text) as text becomes certain, and (number, Completion) where one has ended.

        Raises:
            UserError: the model's scores are not finite.
        """
        found = []
        if self._live:
            cache = self._rows(0, len(self._live))
            found.append(decode_step(self._model, cache, [d.ids[-1] for d in self._live]))
            self._store(0, cache)
        if self._waiting and len(self._live) < self._batch:
            found.append(self._admit())
        if not found:
            return []
        live = self._live
        scores = _allowed(torch.cat(found) if len(found) > 1 else found[0], live)
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

    def _admit(self) -> Tensor:
        """Read the prompts of sequences that wait, as many as there is room for.

        Returns:
            (B,V) scores of their first tokens; they follow the live ones.
        """
        room = self._batch - len(self._live)
        fresh = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        fresh.sort(key=lambda d: len(d.prompt))  # neighbours need little padding
        start, stop = len(self._live), len(self._live) + len(fresh)
        self._reserve(stop, max(len(d.prompt) + d.limit for d in fresh))
        prompts = list(dict.fromkeys(d.prompt for d in fresh))  # each is read once
        scores, seconds = list[Tensor](), dict[tuple[int, ...], float]()
        first = 0
        for group in _groups(prompts):
            began = time.perf_counter()
            cache = self._rows(start + first, start + first + len(group))
            scores.append(prefill(self._model, cache, group))
            self._store(start + first, cache)
            first += len(group)
            spent = time.perf_counter() - began
            seconds |= dict.fromkeys(group, spent)
        places = {prompt: place for place, prompt in enumerate(prompts)}
        sources = [places[d.prompt] for d in fresh]
        assert self._cache is not None, "reserved above"
        self._cache.copy_rows(start, [start + place for place in sources])
        now = time.perf_counter()
        for decoding in fresh:
            decoding.prefill_s, decoding.first_at = seconds[decoding.prompt], now
        self._live += fresh
        found = torch.cat(scores) if len(scores) > 1 else scores[0]
        return found if len(prompts) == len(fresh) else found[sources]

    def _mask(self, ends: frozenset[int]) -> Tensor | None:
        """(V,) which ids a sequence with these ends never draws; None when it may draw all."""
        if not self._banned:
            return None
        excepted = ends & self._banned
        if excepted not in self._masks:
            mask = torch.zeros(self._model.config.vocab_size, dtype=torch.bool)
            mask[sorted(self._banned - excepted)] = True
            self._masks[excepted] = mask.to(self._model.tok_embeddings.device)
        return self._masks[excepted]

    def _reserve(self, rows: int, positions: int) -> None:
        """Make room in the cache for so many rows and positions."""
        cache = self._cache
        if cache is None or (
            not self._live and (rows > len(cache.lengths) or positions > cache.positions)
        ):
            device = self._model.tok_embeddings.device
            self._cache = None  # its memory goes before the next one's comes
            self._cache = KeyValueCache(
                self._model.config,
                batch=rows,
                positions=positions,
                dtype=self._cache_dtype,
                device=device,
            )
        elif rows > len(cache.lengths) or positions > cache.positions:
            more = min(self._batch, max(rows, 2 * len(cache.lengths)))
            rows = len(cache.lengths) if rows <= len(cache.lengths) else more
            self._cache = cache.resized(rows, max(positions, cache.positions))

    def _rows(self, start: int, stop: int) -> KeyValueCache:
        assert self._cache is not None, "there is no cache"
        return self._cache.rows(start, stop)

    def _store(self, start: int, part: KeyValueCache) -> None:
        """Note the lengths of some rows, whose tensors are the cache's own."""
        assert self._cache is not None, "there is no cache"
        self._cache.lengths[start : start + len(part.lengths)] = part.lengths

    def _keep(self, rows: list[int]) -> None:
        if len(rows) < len(self._live):
            assert self._cache is not None, "there is no cache"
            self._cache.keep(rows)
            self._live = [self._live[row] for row in rows]


def _groups(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Prompts that are read side by side: of similar lengths, as shorter ones are padded.

    Args:
        prompts: from short to long.
    """
    group: list[tuple[int, ...]] = []
    for prompt in prompts:
        padded = len(prompt) * (len(group) + 1)
        if group and (len(prompt) > 1.25 * len(group[0]) + 16 or padded > PREFILL_TOKENS):
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _allowed(scores: Tensor, live: Sequence[Decoding]) -> Tensor:
    """The scores, -inf for what must not be drawn: banned ids, and what contradicts an opening.

    Raises:
        UserError: they are not finite.
    """
    if not bool(scores.isfinite().all()):
        raise UserError(
            "the model's scores are not finite (NaN or infinity)",
            hint="weights may be damaged (`codecria inspect --verify`), or values overflow: try"
            " --dtype float32",
        )
    masks = [decoding.banned for decoding in live]
    if all(mask is masks[0] for mask in masks):
        if masks[0] is not None:
            scores = scores.masked_fill(masks[0], -torch.inf)
    else:
        scores = scores.masked_fill(torch.stack([m for m in masks if m is not None]), -torch.inf)
    for row, decoding in enumerate(live):
        if decoding.opening is not None and decoding.left:
            allowed = torch.zeros(scores.shape[1], dtype=torch.bool)
            fitting = decoding.opening.allowed(decoding.left)
            allowed[: len(fitting)] = fitting  # the model may have rows that no piece has
            held = scores[row].masked_fill(~allowed.to(scores.device), -torch.inf)
            if bool(held.isinf().all()):  # no token can go on with it: give the opening up
                decoding.left, decoding.hidden = b"", 0
                continue
            scores = scores.index_put((torch.tensor(row),), held)
    return scores


def complete(
    model: Transformer,
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
        model: in evaluation.
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
    engine = Engine(model, new_stream, batch=batch or limits.samples, banned=banned)
    samples = {
        engine.add(
            prompt, sampling=sampling, limits=limits, ends=ends, sample=sample, opening=opening
        ): sample
        for sample in range(limits.first, limits.first + limits.samples)
    }
    for number, event in engine.run():
        yield samples[number], event


def _limit(model: Transformer, prompt: Sequence[int], limits: Limits) -> int:
    """How many tokens may follow a prompt.

    Raises:
        UserError: it is empty, holds an id outside the vocabulary, or fills the context.
    """
    if not prompt:
        raise UserError("the prompt has no tokens", hint="it needs at least the BOS token")
    V = model.config.vocab_size
    if not 0 <= min(prompt) <= max(prompt) < V:
        raise UserError(
            f"the prompt holds a token outside the model's vocabulary of {V}",
            hint="the tokenizer does not belong to this model",
        )
    room = (limits.context or model.config.max_context) - len(prompt)
    if room < 1:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the context {len(prompt) + room}",
            hint="shorten it, or widen the context with --context",
        )
    return min(limits.max_tokens, room)
