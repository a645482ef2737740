"""The key-value cache of generation: preallocated once, written in place.

Shapes: L layers, B sequences, K key-value heads, S positions allocated, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codecria.core.model.attention import attend_few, attend_with_past, length_mask
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer


class KeyValueCache:
    """Keys and values of sequences that stand in rows, each with its own length.

    Sequences of unequal length start side by side at position 0; what lies past a sequence's length
    is never seen by a query and is overwritten as it grows. Rows beyond the sequences, and
    positions beyond the longest, are room for more.

    Args:
        config: gives L, K and D.
        batch: rows, B.
        positions: S, the longest any sequence may get.
        dtype: of the tensors; the model's own type or another.
        device: of the tensors; 2 L B K S D elements are allocated.
        heads: K, where this process has some of the heads; None for all.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
        heads: int | None = None,
    ) -> None:
        K = heads or config.n_kv_heads
        shape = (config.n_layers, batch, K, positions, config.head_dim)
        # Zeros, not whatever lies there: a weight of zero does not silence a NaN. They cost nothing
        # until written, as the system hands out pages of zeros.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * batch

    @property
    def positions(self) -> int:
        """S, the longest any sequence may get."""
        return self.keys.shape[3]

    def rows(self, start: int, stop: int) -> KeyValueCache:
        """Some of the rows as a cache of their own, whose tensors are parts of this one's."""
        part = object.__new__(KeyValueCache)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        part.lengths = self.lengths[start:stop]
        return part

    def copy_rows(self, start: int, sources: list[int]) -> None:
        """Make the rows from `start` on continue the sequences of the rows `sources`."""
        stop, lengths = start + len(sources), [self.lengths[row] for row in sources]
        if sources != list(range(start, stop)):
            longest = max(lengths)
            for tensor in (self.keys, self.values):
                tensor[:, start:stop, :, :longest] = tensor[:, sources, :, :longest]
        self.lengths[start:stop] = lengths

    def keep(self, kept: list[int]) -> None:
        """Move these rows to the front, in this order, and empty all others."""
        used = sum(length > 0 for length in self.lengths)  # they stand at the front
        longest = max(self.lengths, default=0)
        self.copy_rows(0, kept)
        self.lengths[len(kept) :] = [0] * (len(self.lengths) - len(kept))
        for tensor in (self.keys, self.values):
            tensor[:, len(kept) : used, :, :longest] = 0  # so that no NaN is left behind

    def resized(self, batch: int, positions: int) -> KeyValueCache:
        """A cache of other measures with this one's sequences, which must fit."""
        larger = object.__new__(KeyValueCache)
        layers, rows, heads, length, width = self.keys.shape
        shape = (layers, batch, heads, positions, width)
        larger.keys, larger.values = (self.keys.new_zeros(shape) for _ in range(2))
        rows, length = min(rows, batch), min(length, positions)
        larger.keys[:, :rows, :, :length] = self.keys[:, :rows, :, :length]
        larger.values[:, :rows, :, :length] = self.values[:, :rows, :, :length]
        larger.lengths = [*self.lengths[:rows], *[0] * (batch - rows)]
        return larger


def cache_of(
    model: Transformer, *, batch: int, positions: int, dtype: torch.dtype | None = None
) -> KeyValueCache:
    """An empty cache for a model, of the heads that this process has.

    Args:
        model: whole, or split over processes for inference.
        batch, positions: as of `KeyValueCache`.
        dtype: of the tensors; None takes the model's.
    """
    config, weight = model.config, model.tok_embeddings
    tp = 1 if model.split is None else model.split.part.group.size()
    return KeyValueCache(
        config,
        batch=batch,
        positions=positions,
        dtype=dtype or weight.dtype,
        device=weight.device,
        heads=config.n_kv_heads // tp,
    )


class ChunkAttention:
    """Attention of a chunk of the prompts, whose keys and values it stores.

    All sequences stand at the same length before the chunk. Shorter prompts are padded on the
    right: causality keeps the padding from every real token, and its keys are overwritten later.
    """

    def __init__(self, cache: KeyValueCache, start: int) -> None:
        self.cache = cache
        self.start = start

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B,T,H,D), (B,T,K,D), (B,T,K,D) -> (B,T,H,D)."""
        stop = self.start + q.shape[1]
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (B,K,S,D)
        keys[:, :, self.start : stop] = k.transpose(1, 2)
        values[:, :, self.start : stop] = v.transpose(1, 2)
        seen_k, seen_v = (x[:, :, :stop].to(q.dtype) for x in (keys, values))
        return attend_with_past(q, seen_k, seen_v, self.start)


class CachedAttention:
    """Attention of a few new tokens a sequence, at each sequence's own length.

    One object serves all layers of one step. The tensors' T is that of the sequence with the most
    new tokens; what stands after another's is neither stored nor seen.

    Args:
        cache: the sequences before the step.
        counts: new tokens of each, at least one.

    Attributes:
        positions: (B,T) of the new tokens.
        sequence, step: (N,) the row and place among the new ones of every new token.
    """

    def __init__(self, cache: KeyValueCache, counts: list[int]) -> None:
        self.cache = cache
        device, T = cache.keys.device, max(counts)
        lengths = torch.tensor(cache.lengths, device=device)
        self.positions = lengths.unsqueeze(1) + torch.arange(T, device=device)
        self.longest = max(a + b for a, b in zip(cache.lengths, counts, strict=True))
        places = [(row, t) for row, count in enumerate(counts) for t in range(count)]
        self.sequence, self.step = torch.tensor(places, device=device).unbind(1)
        self.places = self.positions[self.sequence, self.step]  # (N,)
        even = T == 1 and min(cache.lengths) == max(cache.lengths)
        self.mask = None if even else length_mask(self.positions + 1, self.longest)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B,T,H,D), (B,T,K,D), (B,T,K,D) -> (B,T,H,D)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (B,K,S,D)
        for tensor, new in ((keys, k), (values, v)):
            tensor[self.sequence, :, self.places] = new[self.sequence, self.step].to(tensor.dtype)
        seen_k, seen_v = (x[:, :, : self.longest].to(q.dtype) for x in (keys, values))
        return attend_few(q, seen_k, seen_v, self.mask)
