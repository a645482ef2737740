"""The key-value cache of generation: preallocated once, written in place.

Shapes: L layers, B sequences, K key-value heads, S positions allocated, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codecria.core.model.attention import attend_one, attend_with_past
from codecria.core.model.config import ModelConfig


class KeyValueCache:
    """Keys and values of a batch of sequences, each with its own length.

    Sequences of unequal length stand side by side from position 0 on; what lies past a sequence's
    length is never seen by a query and is overwritten as it grows.

    Args:
        config: gives L, K and D.
        batch: B.
        positions: S, the longest any sequence may get.
        dtype, device: of the tensors; 2 L B K S D elements are allocated.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.n_layers, batch, config.n_kv_heads, positions, config.head_dim)
        # Zeros, not whatever lies there: a weight of zero does not silence a NaN. They cost nothing
        # until written, as the system hands out pages of zeros.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * batch

    @property
    def positions(self) -> int:
        """S, the longest any sequence may get."""
        return self.keys.shape[3]

    def repeated(self, times: int) -> KeyValueCache:
        """A cache of `times` sequences that all continue this one's single sequence.

        The samples of one prompt share its prefill this way.
        """
        assert len(self.lengths) == 1, f"{len(self.lengths)} sequences, one is repeated"
        copy = object.__new__(KeyValueCache)
        copy.keys = self.keys.expand(-1, times, -1, -1, -1).contiguous()
        copy.values = self.values.expand(-1, times, -1, -1, -1).contiguous()
        copy.lengths = self.lengths * times
        return copy

    def select(self, rows: list[int]) -> None:
        """Keep only these sequences, in this order (others have ended)."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.lengths = [self.lengths[row] for row in rows]


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
        return attend_with_past(q, keys[:, :, :stop], values[:, :, :stop], self.start)


class TokenAttention:
    """Attention of one new token a sequence, at each sequence's own length."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        self.longest = max(cache.lengths) + 1
        device = cache.keys.device
        even = min(cache.lengths) + 1 == self.longest
        self.places = torch.tensor(cache.lengths, device=device)
        self.rows = torch.arange(len(cache.lengths), device=device)
        self.lengths = None if even else self.places + 1

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B,1,H,D), (B,1,K,D), (B,1,K,D) -> (B,1,H,D)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (B,K,S,D)
        keys[self.rows, :, self.places] = k[:, 0]
        values[self.rows, :, self.places] = v[:, 0]
        end = self.longest
        return attend_one(q, keys[:, :, :end], values[:, :, :end], self.lengths)
