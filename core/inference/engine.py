"""Completion: one prefill, then token by token, streamed as text that never splits a character.

`prefill` and `decode_step` are functions of a model and a cache alone; the loop around them knows
about sampling, stop strings and text. A faster engine replaces those two and nothing else.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from codecria.core.model.transformer import Transformer
from codecria.data.errors import UsageError, UserError

from .cache import ChunkAttention, KeyValueCache, TokenAttention
from .healing import Opening
from .sampling import Sampling, draw

PREFILL_CHUNK = 2_048  # tokens; bounds the activations of a long prompt
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is generated, and where it ends early.

    Attributes:
        max_tokens: longest completion, in tokens.
        stops: strings that end a completion and are not part of it.
        samples: how many completions of the prompt.
        first: number of the first of them; those before are made elsewhere.
        context: longest sequence allowed, prompt and completion; None takes what the model was
            trained on.
    """

    max_tokens: int
    stops: tuple[str, ...] = ()
    samples: int = 1
    first: int = 0
    context: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a limit or stop string makes no sense.
        """
        if self.max_tokens < 1 or self.samples < 1:
            raise UsageError(
                f"max-tokens {self.max_tokens} and samples {self.samples} must be at least 1"
            )
        if "" in self.stops:
            raise UsageError("a stop string is empty", hint="leave --stop away instead")
        if self.context is not None and self.context < 2:
            raise UsageError(f"a context of {self.context} tokens has no room to generate")


class TextStream(Protocol):
    """What the generator needs of a tokenizer's streaming decoder."""

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        ...

    def finish(self) -> str:
        """The text still held back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One finished completion.

    Attributes:
        text: what follows the prompt, without the stop string or the end token.
        ids: the generated ids, the end token excluded.
        prompt_tokens: length of the prompt in tokens, BOS included.
        finish_reason: "stop" at an end token or a stop string, "length" at the limit.
        prefill_s: seconds until the first token.
        decode_s: seconds from the first token to the last.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    prefill_s: float
    decode_s: float


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


def stop_at(text: str, stops: Sequence[str], searched: int) -> int | None:
    """Where the earliest stop string begins in `text`, looking only where it can be new.

    Args:
        text: all text so far.
        stops: the stop strings, none of them empty.
        searched: length of the text that an earlier call has searched.
    """
    starts = []
    for stop in stops:
        found = text.find(stop, max(0, searched - len(stop) + 1))
        if found >= 0:
            starts.append(found)
    return min(starts, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` might yet turn out to begin a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


@dataclass(slots=True)
class _Sample:
    """One completion while it is being generated."""

    number: int
    generator: torch.Generator
    stream: TextStream
    prompt_tokens: int
    limit: int  # tokens
    text: str = ""
    shown: int = 0
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    left: bytes = b""  # of the opening, that is still to come
    hidden: int = 0  # characters of it that have not come yet

    def take(self, token: int, ends: frozenset[int], stops: Sequence[str]) -> str:
        """Add a drawn token and return the text that is now certain to be shown."""
        if token in ends:
            return self._end("stop")
        self.ids.append(token)
        searched = len(self.text)
        self.text += self._beyond_opening(self.stream.push(token))
        cut = stop_at(self.text, stops, searched)
        if cut is not None:
            self.text = self.text[:cut]
            self.finish_reason = "stop"
            return self._show(len(self.text))
        if len(self.ids) >= self.limit:
            return self._end("length")
        return self._show(len(self.text) - held_back(self.text, stops))

    def _beyond_opening(self, text: str) -> str:
        known = min(self.hidden, len(text))
        self.hidden -= known
        return text[known:]

    def _end(self, reason: FinishReason) -> str:
        self.text += self._beyond_opening(self.stream.finish())
        self.finish_reason = reason
        return self._show(len(self.text))

    def _show(self, upto: int) -> str:
        fresh = self.text[self.shown : upto]
        self.shown = max(self.shown, upto)
        return fresh


def _held_to(opening: Opening, live: Sequence[_Sample], scores: Tensor) -> Tensor:
    """The scores, without tokens that contradict what is left of each sample's opening."""
    if not any(sample.left for sample in live):
        return scores
    scores = scores.clone()
    for row, sample in enumerate(live):
        if sample.left:
            allowed = opening.allowed(sample.left).to(scores.device)
            scores[row, : len(allowed)].masked_fill_(~allowed, -torch.inf)
            scores[row, len(allowed) :] = -torch.inf  # rows of the model that no piece has
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
) -> Iterator[tuple[int, str | Completion]]:
    """Generate completions of one prompt; the samples share its prefill.

    Args:
        model: in evaluation.
        prompt: token ids, BOS included.
        new_stream: makes a streaming decoder, one a sample.
        sampling: how tokens are drawn.
        limits: how many, how long, and where they end.
        ends: ids that end a completion and are not part of it.
        opening: text the completion must begin with, and that is not shown (`healing.py`).

    Yields:
        (sample number, text) as text becomes certain, then (sample number, Completion) once each.

    Raises:
        UserError: the prompt is empty, holds an id outside the vocabulary, or fills the context.
    """
    limit = _limit(model, prompt, limits)
    started = time.perf_counter()
    cache = _cache(model, batch=1, positions=len(prompt) + limit)
    scores = prefill(model, cache, [prompt])
    first_at = time.perf_counter()
    left = opening.text if opening is not None else b""
    live = [
        _Sample(
            n,
            sampling.generator(n),
            new_stream(),
            len(prompt),
            limit,
            left=left,
            hidden=len(left.decode()),
        )
        for n in range(limits.first, limits.first + limits.samples)
    ]
    if limits.samples > 1:
        cache = cache.repeated(limits.samples)
        scores = scores.expand(limits.samples, -1)
    yield from _decode(
        model,
        cache,
        scores,
        live,
        sampling=sampling,
        stops=limits.stops,
        ends=ends,
        opening=opening,
        prefill_s=first_at - started,
    )


def complete_each(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    new_stream: Callable[[], TextStream],
    sampling: Sampling,
    seeds: Sequence[int],
    limits: Limits,
    ends: frozenset[int],
) -> Iterator[tuple[int, Completion]]:
    """Generate a completion of each of several prompts, side by side.

    Args:
        model: in evaluation.
        prompts: token ids, BOS included; of any lengths.
        new_stream: makes a streaming decoder, one a prompt.
        sampling: how tokens are drawn; its seed is not used.
        seeds: one a prompt.
        limits: how long, and where they end; the sample drawn is its `first`.
        ends: ids that end a completion and are not part of it.

    Yields:
        (place of the prompt, its completion) as they end.

    Raises:
        UserError: a prompt is empty, holds an id outside the vocabulary, or fills the context.
    """
    room = [_limit(model, prompt, limits) for prompt in prompts]
    started = time.perf_counter()
    positions = max(len(p) + limit for p, limit in zip(prompts, room, strict=True))
    cache = _cache(model, batch=len(prompts), positions=positions)
    scores = prefill(model, cache, prompts)
    first_at = time.perf_counter()
    live = [
        _Sample(
            place,
            replace(sampling, seed=seed).generator(limits.first),
            new_stream(),
            len(prompt),
            limit,
        )
        for place, (prompt, seed, limit) in enumerate(zip(prompts, seeds, room, strict=True))
    ]
    events = _decode(
        model,
        cache,
        scores,
        live,
        sampling=sampling,
        stops=limits.stops,
        ends=ends,
        opening=None,
        prefill_s=first_at - started,
    )
    for place, event in events:
        if not isinstance(event, str):
            yield place, event


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


def _cache(model: Transformer, *, batch: int, positions: int) -> KeyValueCache:
    weight = model.tok_embeddings
    return KeyValueCache(
        model.config, batch=batch, positions=positions, dtype=weight.dtype, device=weight.device
    )


def _decode(
    model: Transformer,
    cache: KeyValueCache,
    scores: Tensor,
    live: list[_Sample],
    *,
    sampling: Sampling,
    stops: Sequence[str],
    ends: frozenset[int],
    opening: Opening | None,
    prefill_s: float,
) -> Iterator[tuple[int, str | Completion]]:
    """Token by token for as long as a sample lives; (number, event) as `complete` yields them.

    Args:
        model, sampling, stops, ends, opening: see `complete`.
        cache: (B,...) of the samples' prompts.
        scores: (B,V) of each one's first token.
        live: the samples, one a row.
        prefill_s: what their prompts took.
    """
    first_at = time.perf_counter()
    while live:
        if opening is not None:
            scores = _held_to(opening, live, scores)
        tokens = [
            draw(row, sampling, sample.generator) for sample, row in zip(live, scores, strict=True)
        ]
        if opening is not None:
            for sample, token in zip(live, tokens, strict=True):
                sample.left = opening.after(sample.left, token)
        for sample, token in zip(live, tokens, strict=True):
            text = sample.take(token, ends, stops)
            if text:
                yield sample.number, text
            if sample.finish_reason is not None:
                yield (
                    sample.number,
                    Completion(
                        text=sample.text,
                        ids=tuple(sample.ids),
                        prompt_tokens=sample.prompt_tokens,
                        finish_reason=sample.finish_reason,
                        prefill_s=prefill_s,
                        decode_s=time.perf_counter() - first_at,
                    ),
                )
        going = [row for row, sample in enumerate(live) if sample.finish_reason is None]
        if len(going) < len(live):
            live = [live[row] for row in going]
            tokens = [tokens[row] for row in going]
            if live:
                cache.select(going)
        if live:
            scores = decode_step(model, cache, tokens)
