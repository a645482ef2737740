"""The engine's runner on PyTorch: any CPU, CUDA, and the reference of faster ones.

Shapes: B sequences, T tokens, N tokens of all sequences together, C = dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer

from .cache import CachedAttention, ChunkAttention, KeyValueCache, cache_of
from .runner import Scores, Snapshot

PREFILL_CHUNK = 2_048  # tokens; bounds the activations of a long prompt
PREFILL_TOKENS = 16_384  # of prompts that are read side by side, padding included


class TorchRunner:
    """A Transformer with its key-value cache; see `Runner` for what the methods do.

    Args:
        model: in evaluation.
        cache_dtype: type of the key-value cache; None takes the model's.
    """

    def __init__(self, model: Transformer, *, cache_dtype: torch.dtype | None = None) -> None:
        self.model = model
        self._dtype = cache_dtype or model.tok_embeddings.dtype
        self._device = model.tok_embeddings.device
        self._cache: KeyValueCache | None = None

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.model.config

    @property
    def layout(self) -> str:
        """What decides its snapshots beside the model's files."""
        return f"torch {self._device.type} {self.model.tok_embeddings.dtype} {self._dtype}"

    @property
    def tolerance(self) -> float:
        """Most that a score of several tokens at once differs from that of single ones.

        Products of several rows are summed in another order. Measured on random models of width 64
        to 768: up to 3e-5 in float32; in bfloat16 0.06 for scores up to 11, 0.23 for scores up to
        29.
        """
        return 1e-3 if self.model.tok_embeddings.dtype == torch.float32 else 0.25

    @property
    def lengths(self) -> Sequence[int]:
        """Positions filled, one number a reserved row."""
        return [] if self._cache is None else self._cache.lengths

    @property
    def rows(self) -> int:
        """Rows reserved."""
        return len(self.lengths)

    @property
    def positions(self) -> int:
        """Positions reserved a row."""
        return 0 if self._cache is None else self._cache.positions

    @property
    def cache(self) -> KeyValueCache:
        """What is reserved."""
        assert self._cache is not None, "nothing was reserved"
        return self._cache

    @torch.inference_mode()
    def reserve(self, rows: int, positions: int) -> None:
        """Have room for at least so many rows and positions, and keep what the rows hold."""
        if rows <= self.rows and positions <= self.positions:
            return
        if any(self.lengths):
            rows, positions = max(rows, self.rows), max(positions, self.positions)
            self._cache = self.cache.resized(rows, positions)
            return
        self._cache = None  # its memory goes before the next one's comes
        self._cache = cache_of(self.model, batch=rows, positions=positions, dtype=self._dtype)

    @torch.inference_mode()
    def prefill(self, row: int, prompts: Sequence[Sequence[int]]) -> Scores:
        """Append prompts to the rows from `row` on, and score the token after each: (B,V)."""
        starts = self.cache.lengths[row : row + len(prompts)]
        scores = [
            self._prefill(row + a, starts[a], prompts[a:b]) for a, b in _groups(starts, prompts)
        ]
        return _numpy(torch.cat(scores) if len(scores) > 1 else scores[0])

    def _prefill(self, row: int, start: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts side by side, in chunks, into rows of the same length."""
        cache = self.cache.rows(row, row + len(prompts))
        lengths = [len(prompt) for prompt in prompts]
        ids = _padded(prompts).to(self._device)
        last: list[Tensor | None] = [None] * len(prompts)
        for a in range(0, max(lengths), PREFILL_CHUNK):
            chunk = ids[:, a : a + PREFILL_CHUNK]
            b = a + chunk.shape[1]
            positions = torch.arange(start + a, start + b, device=self._device)
            hidden = self.model(
                chunk, positions.expand(len(prompts), -1), ChunkAttention(cache, start + a)
            )
            for place, length in enumerate(lengths):
                if a < length <= b:
                    last[place] = hidden[place, length - 1 - a]
        self.cache.lengths[row : row + len(prompts)] = [start + length for length in lengths]
        return self.model.logits(torch.stack([h for h in last if h is not None]))

    @torch.inference_mode()
    def decode(self, row: int, tokens: Sequence[Sequence[int]]) -> Scores:
        """Append tokens to the rows from `row` on, and score what follows each: (N,V)."""
        attention = CachedAttention(
            self.cache.rows(row, row + len(tokens)), [len(some) for some in tokens]
        )
        hidden = self.model(
            _padded(tokens).to(self._device), attention.positions, attention
        )  # (B,T,C)
        for place, some in enumerate(tokens, start=row):
            self.cache.lengths[place] += len(some)
        return _numpy(self.model.logits(hidden[attention.sequence, attention.step]))

    def truncate(self, row: int, length: int) -> None:
        """Forget the positions of a row from `length` on."""
        assert length <= self.cache.lengths[row], f"row {row} has {self.cache.lengths[row]}"
        self.cache.lengths[row] = length

    @torch.inference_mode()
    def copy_rows(self, start: int, sources: Sequence[int]) -> None:
        """Make the rows from `start` on continue the sequences of the rows `sources`."""
        self.cache.copy_rows(start, list(sources))

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Move these rows to the front, in this order, and empty all others."""
        if self._cache is not None:
            self._cache.keep(list(rows))

    @torch.inference_mode()
    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """The keys and values of positions start to stop of a row, to `restore` later."""
        span = torch.stack([x[:, row, :, start:stop] for x in (self.cache.keys, self.cache.values)])
        return span.cpu().contiguous().view(torch.uint8).numpy().reshape(-1)  # (2,L,K,stop-start,D)

    @torch.inference_mode()
    def restore(self, row: int, start: int, snapshot: Snapshot) -> None:
        """Put a snapshot into a row from position `start` on, and end it there."""
        assert start <= self.cache.lengths[row], f"row {row} has {self.cache.lengths[row]}"
        layers, _, heads, _, width = self.cache.keys.shape
        raw = torch.from_numpy(np.array(snapshot))  # a copy: the bytes may be read-only, unaligned
        span = raw.view(self._dtype).view(2, layers, heads, -1, width)
        stop = start + span.shape[3]
        for tensor, part in zip((self.cache.keys, self.cache.values), span, strict=True):
            tensor[:, row, :, start:stop] = part.to(self._device)
        self.cache.lengths[row] = stop


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B,T) ids, zeros after the shorter rows."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids


def _groups(starts: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Spans of neighbours that are read side by side.

    They begin at the same position and are of similar lengths, as shorter ones are padded.
    """
    borders, shortest, longest = [0], len(prompts[0]), len(prompts[0])
    for place in range(1, len(prompts)):
        size = len(prompts[place])
        shortest, longest = min(shortest, size), max(longest, size)
        if (
            starts[place] != starts[place - 1]
            or longest > 1.25 * shortest + 16
            or longest * (place - borders[-1] + 1) > PREFILL_TOKENS
        ):
            borders.append(place)
            shortest = longest = size
    return pairwise([*borders, len(prompts)])


def _numpy(scores: Tensor) -> Scores:
    found: Scores = scores.float().cpu().numpy()
    return found
