"""Rows of whole dialogs: several side by side in a row, none cut, targets in the answers alone.

    row       BOS [INST] a [/INST] b EOS BOS [INST] c [/INST] d e EOS (padding)
    target     .     .   .    b   EOS .   .     .   .    d    e EOS  .    .

Each epoch goes through the dialogs in another order and fills rows with them: a dialog goes into
the fullest of the open rows that has room for it, and the fullest row is closed when too many are
open, which leaves about a hundredth of the places empty. A dialog longer than a row is left out.

The order follows from the seed, the source's digest and the epoch. How many rows an epoch has
depends on the order, so to find a row far into a run the epochs before it are packed once each.

Shapes: T tokens of a row, N dialogs.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from .rows import DIALOG, IGNORE, PADDING, Row, keyed, segments_of
from .shards import ShardSet

Learn = Literal["answers", "all"]
OPEN_ROWS = 64  # open at a time: more fill rows no better


@dataclass(frozen=True, slots=True)
class Packing:
    """An epoch's rows.

    Attributes:
        dialogs: (N,) the dialogs' numbers, row by row.
        borders: (rows + 1,) where each row begins among them.
        tokens: (rows + 1,) tokens in the rows before each.
    """

    dialogs: npt.NDArray[np.int64]
    borders: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        """How many rows the epoch has."""
        return len(self.borders) - 1


def pack(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], context: int) -> Packing:
    """Put dialogs into rows of at most `context` tokens, whole.

    >>> pack(np.array([0, 1, 2, 3]), np.array([5, 4, 3, 1]), 8).borders.tolist()
    [0, 2, 4]

    Args:
        order: (N,) the dialogs' numbers in the order they are taken.
        lengths: of all dialogs; none of those taken exceeds `context`.
        context: T.
    """
    closed: list[list[int]] = []
    # (free places, when it was opened) of each open row, ascending; what is in them.
    free: list[tuple[int, int]] = []
    held: dict[int, list[int]] = {}
    for opened, (d, n) in enumerate(zip(order.tolist(), lengths[order].tolist(), strict=True)):
        place = bisect_left(free, (n, -1))
        if place < len(free):
            room, row = free.pop(place)
        else:
            if len(free) >= OPEN_ROWS:
                closed.append(held.pop(free.pop(0)[1]))
            room, row = context, opened
            held[row] = []
        held[row].append(d)
        insort(free, (room - n, row))
    closed += [held[row] for row in sorted(held)]
    flat = np.array([d for row in closed for d in row], dtype=np.int64)
    borders = np.cumsum([0, *(len(row) for row in closed)])
    ends = np.concatenate(([0], np.cumsum(lengths[flat])))
    return Packing(flat, borders, ends[borders])


class DialogRows:
    """The rows of a set of dialogs, numbered through its epochs.

    Args:
        shards: the set, with its targets marked.
        context: T.
        seed: of the run.
        learn: which tokens have loss: answers and what ends them, or every token of a turn.
    """

    def __init__(
        self, shards: ShardSet, *, context: int, seed: int, learn: Learn = "answers"
    ) -> None:
        self.shards = shards
        self.context = context
        self.learn = learn
        self.lengths = np.diff(shards.offsets(0, shards.n_documents))
        self.fitting = np.flatnonzero(self.lengths <= context)
        self._key = keyed("dialogs", shards.digest, shards.split, seed)
        self._counts: list[int] = []  # rows of the epochs that were packed
        self._packing = lru_cache(maxsize=2)(self._pack)
        self._lock = threading.Lock()  # a run's loader and its ledger share one

    @property
    def too_long(self) -> int:
        """Dialogs that no row holds."""
        return len(self.lengths) - len(self.fitting)

    @property
    def rows(self) -> int:
        """Rows of all dialogs as they are stored."""
        return self._packing(-1).rows

    def row(self, k: int) -> Row:
        """Row number k, counted through the epochs."""
        epoch, place = self._locate(k)
        return self._build(self._packing(epoch), place)

    def nth(self, w: int) -> Row:
        """Row w of the dialogs packed in the order they are stored."""
        return self._build(self._packing(-1), w)

    def drawn(self, rows: int) -> int:
        """Tokens in the first `rows` rows."""
        epoch, place = self._locate(rows)
        whole = int(self.lengths[self.fitting].sum())
        return epoch * whole + int(self._packing(epoch).tokens[place])

    def _locate(self, k: int) -> tuple[int, int]:
        """The epoch of row k, and its place there."""
        assert len(self.fitting), f"{self.shards.folder}: no dialog fits {self.context} tokens"
        with self._lock:
            epoch = 0
            while True:
                if epoch == len(self._counts):
                    self._counts.append(self._packing(epoch).rows)
                if k < self._counts[epoch]:
                    return epoch, k
                k -= self._counts[epoch]
                epoch += 1

    def _pack(self, epoch: int) -> Packing:
        """The rows of an epoch; epoch -1 is the order as stored."""
        order = self.fitting
        if epoch >= 0:
            draws = np.random.Philox(key=[self._key, epoch]).random_raw(len(order))
            order = order[np.argsort(draws, kind="stable")]
        return pack(order, self.lengths, self.context)

    def _build(self, packing: Packing, place: int) -> Row:
        T = self.context
        ids = np.full(T, PADDING, dtype=np.int32)
        targets = np.full(T, IGNORE, dtype=np.int32)
        kinds = np.zeros(T, dtype=np.uint8)
        starts, filled = [], 0
        bos = self.shards.manifest.tokenizer.bos_id
        for d in packing.dialogs[packing.borders[place] : packing.borders[place + 1]].tolist():
            start, stop = self.shards.offset(d), self.shards.offset(d + 1)
            n = stop - start
            tokens = self.shards.tokens(start, stop)
            said = self.shards.learned(start, stop) if self.learn == "answers" else tokens != bos
            here = slice(filled, filled + n)
            ids[here] = tokens
            targets[filled : filled + n - 1] = np.where(said[1:], tokens[1:], IGNORE)
            kinds[here] = DIALOG
            starts.append(filled)
            filled += n
        if filled < T:
            starts.append(filled)
        segments = segments_of(np.array([*starts, T], dtype=np.int64))
        return Row(ids, targets, segments, kinds)
