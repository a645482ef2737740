"""The key-value cache of the CPU engine: memory for rows of positions, laid out for its kernels.

Shapes: L layers, R rows, K key-value heads, P positions (a multiple of 16), E numbers of a head,
V = E padded to 16. Memory that was reserved and never written costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from codecria.core.inference.runner import Snapshot
from codecria.core.model.config import ModelConfig

from .record import Record

CacheDtype = Literal["float32", "bfloat16", "q8"]
BLOCK = 16  # positions whose keys lie side by side
_TYPES: dict[CacheDtype, tuple[int, Any]] = {  # number in attention.py, and numpy's type
    "float32": (0, np.float32),
    "bfloat16": (1, np.uint16),
    "q8": (2, np.int8),
}


class KeyValues:
    """Keys and values of all rows, and how far each is filled.

    Args:
        config: gives L, K and E.
        dtype: of the numbers; "q8" has one scale for each key and value beside them.
        rows: R.
        positions: P, rounded up to a multiple of 16.
    """

    def __init__(self, config: ModelConfig, dtype: CacheDtype, rows: int, positions: int) -> None:
        self.config, self.dtype = config, dtype
        self.kind, numbers = _TYPES[dtype]
        L, K, E = config.n_layers, config.n_kv_heads, config.head_dim
        blocks = -(-positions // BLOCK)
        P = blocks * BLOCK
        self.lengths = [0] * rows
        self.rows, self.positions = rows, P
        self.keys = np.zeros((L, rows, K, blocks, E, BLOCK), numbers)
        self.values = np.zeros((L, rows, K, P, -(-E // BLOCK) * BLOCK), numbers)
        scaled = (L, rows, K, P) if dtype == "q8" else (L, 0, K, 0)
        self.key_scales, self.value_scales = (np.zeros(scaled, np.float32) for _ in range(2))

    def enter(self, record: Record) -> None:
        """Write where everything lies into a record."""
        record.keys, record.values = self.keys.ctypes.data, self.values.ctypes.data
        record.key_scales = self.key_scales.ctypes.data
        record.value_scales = self.value_scales.ctypes.data
        record.cache_rows, record.cache_positions = self.rows, self.positions
        record.cache_kind = self.kind

    def resized(self, rows: int, positions: int) -> KeyValues:
        """A cache of at least the same measures with this one's sequences."""
        larger = KeyValues(self.config, self.dtype, rows, positions)
        for row, length in enumerate(self.lengths):
            if length:
                _copy(self, row, larger, row, length)
        larger.lengths[: self.rows] = self.lengths
        return larger

    def copy_rows(self, start: int, sources: Sequence[int]) -> None:
        """Make the rows from `start` on continue the sequences of the rows `sources`."""
        copied = [(start + n, source) for n, source in enumerate(sources) if start + n != source]
        lengths = [self.lengths[source] for source in sources]
        # A row that is a source still, when it is to be written, must have been read before.
        pending = dict(copied)
        while pending:
            free = [to for to in pending if to not in pending.values()]
            if not free:
                self._permute(pending)
                break
            for to in free:
                source = pending.pop(to)
                _copy(self, source, self, to, self.lengths[source])
        self.lengths[start : start + len(sources)] = lengths

    def _permute(self, sources: dict[int, int]) -> None:
        """Rows that exchange their places in a circle: by way of a copy."""
        old = list(sources.values())
        longest = max(self.lengths[row] for row in old)
        for tensor, count in self._tensors(longest):
            tensor[:, list(sources), :, :count] = tensor[:, old, :, :count]

    def keep(self, kept: Sequence[int]) -> None:
        """Move these rows to the front, in this order, and empty all others."""
        self.copy_rows(0, kept)
        self.lengths[len(kept) :] = [0] * (self.rows - len(kept))

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """The bytes of positions start to stop of a row."""
        parts = [self._keys_by_position(row, start, stop), self.values[:, row, :, start:stop]]
        if self.dtype == "q8":
            parts += [x[:, row, :, start:stop] for x in (self.key_scales, self.value_scales)]
        return np.concatenate([np.ascontiguousarray(p).view(np.uint8).reshape(-1) for p in parts])

    def restore(self, row: int, start: int, snapshot: Snapshot) -> None:
        """Put a snapshot into a row from position `start` on, and end it there."""
        L, _, K, _, E, _ = self.keys.shape
        V, size = self.values.shape[-1], self.keys.itemsize
        line = (E + V) * size + (8 if self.dtype == "q8" else 0)
        count = snapshot.nbytes // (L * K * line)
        stop = start + count
        raw = np.ascontiguousarray(snapshot)
        a, b = L * K * count * E * size, L * K * count * V * size
        # (L,K,N,E): position p lies in block p // 16, at the end p % 16
        keys = raw[:a].view(self.keys.dtype).reshape(L, K, count, E)
        places = np.arange(start, stop)
        self.keys[:, row, :, places // BLOCK, :, places % BLOCK] = keys.transpose(2, 0, 1, 3)
        values = raw[a : a + b].view(self.values.dtype).reshape(L, K, count, V)
        self.values[:, row, :, start:stop] = values
        if self.dtype == "q8":
            scales = raw[a + b :].view(np.float32).reshape(2, L, K, count)
            self.key_scales[:, row, :, start:stop], self.value_scales[:, row, :, start:stop] = (
                scales
            )
        self.lengths[row] = stop

    def _keys_by_position(self, row: int, start: int, stop: int) -> npt.NDArray[Any]:
        """(L,K,N,E) keys of some positions."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        blocks = self.keys[:, row, :, first:last]  # (L,K,blocks,E,16)
        L, K, count, E, _ = blocks.shape
        lines = blocks.swapaxes(-1, -2).reshape(L, K, count * BLOCK, E)
        return lines[:, :, start - first * BLOCK : stop - first * BLOCK]

    def _tensors(self, length: int) -> list[tuple[npt.NDArray[Any], int]]:
        """Each array, and how far along its fourth dimension `length` positions reach."""
        found: list[tuple[npt.NDArray[Any], int]] = [
            (self.keys, -(-length // BLOCK)),
            (self.values, length),
        ]
        if self.dtype == "q8":
            found += [(self.key_scales, length), (self.value_scales, length)]
        return found


def _copy(source: KeyValues, row: int, to: KeyValues, to_row: int, length: int) -> None:
    """Copy the positions of one row, also into another cache."""
    for (old, count), (new, _) in zip(source._tensors(length), to._tensors(length), strict=True):
        new[:, to_row, :, :count] = old[:, row, :, :count]
