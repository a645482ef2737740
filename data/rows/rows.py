"""Row i of a run as a pure function of the data, the context, the seed and i.

Documents of a source lie end to end, S tokens in all, and an epoch is R = ceil(S / T) rows of T:

    document    BOS a a a EOS BOS b b EOS BOS c c ...
    row         |      row w      |     row w+1 ...
    target      a a a EOS  .  b b EOS  .          the next token of the same document; no loss (.)
                                                  from EOS across to the next document's BOS

Each epoch goes through the rows in another order, and cuts them at another place: the line of
tokens is rotated. Both follow from the seed, the source's digest and the epoch, so nothing needs to
be remembered to resume from any row. Every stored token is an input once an epoch, and every token
but BOS is a target once an epoch.

Shapes: T tokens of a row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .shards import ShardSet

IGNORE = -100  # a target without loss; the value torch's cross-entropy ignores as well
DIALOG = 3  # the kind of a dialog's tokens, after those of `infill.Order`
KINDS = 4
PADDING = 0  # the id that fills an unfinished row; never a target

Ids = npt.NDArray[np.int32]
Kinds = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the documents in some rows, in pieces: a document's part within a row.

    Attributes:
        pieces, tokens: all of them, as stored.
        eligible, eligible_tokens: those that may be infilled, as stored.
        infilled, infilled_tokens: those that were, as stored; the rest is plain.
        psm, spm: infilled in either order.
        syntax: infilled with a middle that is a syntax node.
        lossy: not eligible, for the document does not survive decoding.
        split: not eligible, for the row's border is within a character.
        unfit: eligible and drawn, but no cut left it short enough, so plain.
        redrawn: cuts drawn again before one fitted, or none did.
        padding: places of the rows without a token.
    """

    pieces: int = 0
    tokens: int = 0
    eligible: int = 0
    eligible_tokens: int = 0
    infilled: int = 0
    infilled_tokens: int = 0
    psm: int = 0
    spm: int = 0
    syntax: int = 0
    lossy: int = 0
    split: int = 0
    unfit: int = 0
    redrawn: int = 0
    padding: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        names = self.__slots__
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, slots=True)
class Row:
    """One row of training data.

    Attributes:
        ids: (T,) input tokens.
        targets: (T,) the token to predict at each place, or IGNORE.
        segments: lengths of the pieces of documents, in order, summing to T; padding is the last.
        kinds: (T,) how the piece is arranged, an `infill.Order`, or DIALOG; 0, plain, for padding.
        counts: of its documents, where infilling is on.
    """

    ids: Ids
    targets: Ids
    segments: tuple[int, ...]
    kinds: Kinds
    counts: Counts | None = None


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


class Windows:
    """A line of S places, gone through in epochs of R = ceil(S / W) windows of W places.

    Each epoch has another order of the windows, and another rotation of the line.

    Args:
        size: S.
        width: W.
        key: what the orders and rotations are drawn from.
    """

    def __init__(self, *, size: int, width: int, key: tuple[str | int, ...]) -> None:
        self.size = size
        self.width = width
        self.count = -(-size // width)
        self._key = key
        self._epoch = lru_cache(maxsize=8)(self._derive_epoch)

    def locate(self, k: int) -> tuple[int, int, int]:
        """Window number k, counted through the epochs: its epoch, its first place, its length."""
        epoch, place = divmod(k, self.count)
        order, turn = self._epoch(epoch)
        w = permute(place, self.count, order)
        length = min(self.width, self.size - w * self.width)
        return epoch, (w * self.width + turn) % self.size, length

    def rotation(self, epoch: int) -> int:
        """By how many places the line is rotated in an epoch."""
        return self._epoch(epoch)[1]

    def spans(self, start: int, length: int) -> list[tuple[int, int]]:
        """A window's places as [start, stop) stretches: two of them around the line's end."""
        stop = start + length
        assert stop <= 2 * self.size, f"a window of {length} on a line of {self.size}"
        if stop <= self.size:
            return [(start, stop)]
        return [(start, self.size), (0, stop - self.size)]

    def _derive_epoch(self, epoch: int) -> tuple[int, int]:
        """The key of an epoch's order, and by how many places its line is rotated."""
        order = keyed(*self._key, "order", epoch)
        return order, keyed(*self._key, "rotation", epoch) % self.size


def rows_key(shards: ShardSet, seed: int) -> tuple[str | int, ...]:
    """What the order of a source's rows is drawn from."""
    return ("rows", shards.digest, shards.split, seed)


def segments_of(borders: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Lengths of a row's pieces.

    Args:
        borders: where each piece begins, ascending, and T.
    """
    return tuple(np.diff(borders).tolist())


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
        self.windows = Windows(size=self.size, width=context, key=rows_key(shards, seed))
        self.rows = self.windows.count

    def row(self, k: int) -> Row:
        """Row number k: of epoch k // rows, in that epoch's order and rotation."""
        _, start, count = self.windows.locate(k)
        return self.span(start, count)

    def nth(self, w: int) -> Row:
        """Window w of the line as it is stored, neither rotated nor in another order."""
        start = w * self.context
        return self.span(start, min(self.context, self.size - start))

    def span(self, start: int, count: int) -> Row:
        """The row of `count` tokens from token `start` on, around the end, and then padding."""
        T = self.context
        ids = np.full(T, PADDING, dtype=np.int32)
        targets = np.full(T, IGNORE, dtype=np.int32)
        starts: list[npt.NDArray[np.int64]] = []
        filled = 0
        for begin, end in self.windows.spans(start, count):
            starts.append(self._fill(begin, end, ids[filled:], targets[filled:]) + filled)
            filled += end - begin
        if count < T:
            starts.append(np.array([count]))
        segments = segments_of(np.concatenate([*starts, [T]]))
        return Row(ids, targets, segments, np.zeros(T, dtype=np.uint8))

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
