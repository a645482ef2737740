"""Row i of a run as a pure function of the data, the context, the seed and i.

Documents of a source lie end to end, S tokens in all, and an epoch is R = ceil(S / T) rows of T:

    document    BOS a a a EOS BOS b b EOS BOS c c ...
    row         |      row w      |     row w+1 ...
    target      a a a EOS  .  b b EOS  .          the next token of the same document; no loss (.)
                                                  from EOS across to the next document's BOS

Each epoch goes through the rows in another order, and cuts them at another place: the line of
tokens is rotated. Both follow from the seed, the source's digest and the epoch, so nothing needs to
be remembered to go on from any row. Every stored token is an input once an epoch, and every token
but BOS is a target once an epoch.

Shapes: T tokens of a row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .mixture import Mixture
from .shards import ShardSet

IGNORE = -100  # a target without loss; the value torch's cross-entropy ignores as well
PADDING = 0  # the id that fills an unfinished row; never a target

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of training data.

    Attributes:
        ids: (T,) input tokens.
        targets: (T,) the token to predict at each place, or IGNORE.
        positions: (T,) place of each token in its piece of a document, from 0.
        segments: lengths of the pieces, in order, summing to T; padding is the last.
    """

    ids: Ids
    targets: Ids
    positions: Ids
    segments: tuple[int, ...]


def keyed(*parts: str | int) -> int:
    """A 64-bit number that is a fixed function of its parts, on any machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(index: int, size: int, key: int) -> int:
    """A bijection of 0 .. size - 1 under a key, computed without listing it.

    A Feistel network of four rounds on just enough bits, walked until it falls back into range:
    at most a few turns on average, as its domain is less than four times the range.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(right + (turn << 32) + key) & mask)
        index = (left << half) | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


class SourceRows:
    """The rows of one source, numbered through its epochs.

    Args:
        shards: the source.
        context: T.
        seed: of the run.
    """

    def __init__(self, shards: ShardSet, *, context: int, seed: int) -> None:
        self.shards = shards
        self.context = context
        self.size = shards.n_tokens
        self.rows = -(-self.size // context)
        self._key = ("rows", shards.digest, shards.split, seed)
        self._epoch = lru_cache(maxsize=8)(self._derive_epoch)

    def row(self, k: int) -> Row:
        """Row number k: of epoch k // rows, in that epoch's order and rotation."""
        epoch, place = divmod(k, self.rows)
        order, turn = self._epoch(epoch)
        w = permute(place, self.rows, order)
        count = min(self.context, self.size - w * self.context)
        start = (w * self.context + turn) % self.size
        return self.span(start, count)

    def _derive_epoch(self, epoch: int) -> tuple[int, int]:
        """The key of an epoch's order, and by how many tokens its line is rotated."""
        order = keyed(*self._key, "order", epoch)
        return order, keyed(*self._key, "rotation", epoch) % self.size

    def span(self, start: int, count: int) -> Row:
        """The row of `count` tokens from token `start` on, around the end, and then padding."""
        T = self.context
        ids = np.full(T, PADDING, dtype=np.int32)
        targets = np.full(T, IGNORE, dtype=np.int32)
        starts: list[npt.NDArray[np.int64]] = []
        filled = 0
        while filled < count:
            stop = min(start + count - filled, self.size)
            taken = stop - start
            starts.append(self._fill(start, stop, ids[filled:], targets[filled:]) + filled)
            filled += taken
            start = 0
        if count < T:
            starts.append(np.array([count]))
        borders = np.concatenate([*starts, [T]])
        lengths = np.diff(borders)
        positions = np.arange(T, dtype=np.int32)
        positions -= np.repeat(borders[:-1], lengths).astype(np.int32)
        return Row(ids, targets, positions, tuple(lengths.tolist()))

    def _fill(self, start: int, stop: int, ids: Ids, targets: Ids) -> npt.NDArray[np.int64]:
        """Write tokens start .. stop - 1 and their targets; where each document's piece begins."""
        count = stop - start
        tokens = self.shards.tokens(start, min(stop + 1, self.size))
        first = self.shards.document_at(start)
        last = self.shards.document_at(stop - 1)
        offsets = self.shards.offsets(first, last + 1)
        ids[:count] = tokens[:count]
        targets[: len(tokens) - 1] = tokens[1 : count + 1]
        ends = offsets[1:] - 1 - start  # the EOS of each document: nothing follows it
        targets[ends[ends < count]] = IGNORE
        begins: npt.NDArray[np.int64] = np.maximum(offsets[:-1] - start, 0)
        return begins


class RunRows:
    """The rows of a run: the mixture says which source, the source gives the row.

    Args:
        mixture: the sources and their shares.
        context: T.
        seed: of the run.
    """

    def __init__(self, mixture: Mixture, *, context: int, seed: int) -> None:
        self.dealer = mixture.dealer(seed)
        self.sources = [
            SourceRows(source.shards, context=context, seed=seed) for source in mixture.sources
        ]

    def row(self, i: int) -> Row:
        """Row i of the run."""
        source, k = self.dealer.locate(i)
        return self.sources[source].row(k)
