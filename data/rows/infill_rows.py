"""Rows with infilling: documents are cut and rearranged while a row is built.

On the line that rows are windows of, each document is followed by free places for what it grows by:

    stored      BOS a a a EOS BOS b b EOS ...
    line        BOS a a a EOS . . . . . . . . BOS b b EOS . . . . . . . . ...
    row         BOS PRE a SUF a MID a EOT EOS BOS b b EOS (padding)

so every stored token is in one row of an epoch, whole documents may grow by the four sentinels and
some tokens more, nothing is truncated, and the line's length follows without reading a document.
What one document leaves of its places, the next ones in the row may take.

Scope "document" (Code Llama): documents wholly in a window are eligible. Scope "context": the part
of a document in a window is taken for a document, framed by BOS and EOS as such; 12 places of each
row are kept for those parts, which the row's border cuts off from their own.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from codecria.data.formats import syntax
from codecria.data.formats.infill import Draw, Infiller, InfillFormat, KnownLines, Order, Parts

from .rows import IGNORE, PADDING, Counts, Ids, Row, Windows, rows_key, segments_of
from .shards import ROUNDTRIP_LOSSY, ShardSet

RESERVE = 8  # places after a document: four sentinels, and tokens that cutting adds (DESIGN 2.2)
# Places of a row, scope "context": for its first part, which lacks BOS and may need the implied
# space, and for its last, whose own places are in the next row.
FRONT, BACK = 4, RESERVE


_DOCUMENTS = 1 << 20  # looked at together


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a source's documents lie on the line, and how wide its windows are.

    Attributes:
        context: T.
        reserve: free places after each document.
        margin: places of a row that no window fills.
    """

    context: int
    reserve: int = 0
    margin: int = 0

    @classmethod
    def of(cls, context: int, infill: InfillFormat | None) -> Layout:
        """The layout of rows with or without infilling."""
        if infill is None:
            return cls(context=context)
        margin = FRONT + BACK if infill.scope == "context" else 0
        return cls(context=context, reserve=RESERVE, margin=margin)

    @property
    def width(self) -> int:
        """Places of the line in one row."""
        return self.context - self.margin

    def size(self, shards: ShardSet) -> int:
        """Places of a source's line."""
        return shards.n_tokens + self.reserve * shards.n_documents

    def rows(self, shards: ShardSet) -> int:
        """Rows of one epoch of a source."""
        return -(-self.size(shards) // self.width)

    def drawn(self, shards: ShardSet, rows: int) -> int:
        """Tokens in so many rows of a source: exact for whole epochs, else within a row or so."""
        epochs, rest = divmod(rows, self.rows(shards))
        held, places = shards.n_tokens, self.size(shards)
        return epochs * held + min(rest * self.width * held // places, held)


@dataclass(frozen=True, slots=True)
class Piece:
    """A document's part in a window.

    Attributes:
        document: its number.
        ids: as stored, and the token after them if the document goes on.
        length: of the part.
        starts, ends: whether BOS and EOS are within it.
        at: its first token's place in the document.
        room: free places that are its own.
    """

    document: int
    ids: Ids
    length: int
    starts: bool
    ends: bool
    at: int
    room: int


class InfillRows:
    """The rows of one source with infilling, numbered through its epochs.

    Args:
        shards: the source, under the infiller's tokenizer.
        context: T.
        seed: of the run.
        infiller: makes the sequences.
        format: how often and how.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        context: int,
        seed: int,
        infiller: Infiller,
        format: InfillFormat,
    ) -> None:
        self.shards = shards
        self.context = context
        self.infiller = infiller
        self.format = format
        self.layout = Layout.of(context, format)
        self.windows = Windows(
            size=self.layout.size(shards), width=self.layout.width, key=rows_key(shards, seed)
        )
        self.rows = self.windows.count
        self._key = "\0".join(map(str, ("infill", *rows_key(shards, seed))))

    def row(self, k: int) -> Row:
        """Row number k: of epoch k // rows, in that epoch's order, rotation and cuts."""
        return self.build(*self.windows.locate(k))

    def nth(self, w: int) -> Row:
        """Window w of the line as it is stored, with the cuts of the first epoch."""
        start = w * self.windows.width
        return self.build(0, start, min(self.windows.width, self.windows.size - start))

    def build(self, epoch: int, start: int, count: int) -> Row:
        """The row of `count` places of the line from place `start` on, with an epoch's cuts."""
        T = self.context
        ids = np.full(T, PADDING, dtype=np.int32)
        targets = np.full(T, IGNORE, dtype=np.int32)
        kinds = np.zeros(T, dtype=np.uint8)
        counted: list[Counts] = []
        borders: list[int] = []
        filled = 0
        pieces = self._pieces(start, count)
        spare = FRONT if self.layout.margin else 0
        for number, piece in enumerate(pieces):
            room = piece.room
            if self.layout.margin and number == len(pieces) - 1:
                room += BACK
            made, order, became = self._arrange(epoch, piece, piece.length + room + spare)
            counted.append(became)
            n = piece.length if made is None else len(made)
            spare += piece.length + room - n
            if not n:
                continue
            # A plain part that its document outlives has the next token as its last target.
            taken = piece.ids if made is None else made
            ids[filled : filled + n] = taken[:n]
            targets[filled : filled + len(taken) - 1] = taken[1:]
            kinds[filled : filled + n] = order
            borders.append(filled)
            filled += n
        assert filled <= T, f"{filled} tokens in a row of {T}"
        if filled < T:
            borders.append(filled)
        segments = segments_of(np.array([*borders, T], dtype=np.int64))
        counts = sum(counted, start=Counts(padding=T - filled))
        return Row(ids, targets, segments, kinds, counts)

    def expect(self) -> Counts:
        """What the first epoch holds, before any document is read: pieces, and the eligible ones.

        Documents that do not survive decoding, or are empty, are counted with the others here.
        """
        g, width, size = self.layout.reserve, self.windows.width, self.windows.size
        turn = self.windows.rotation(0)
        total = Counts()
        for first in range(0, self.shards.n_documents, _DOCUMENTS):
            last = min(first + _DOCUMENTS, self.shards.n_documents)
            offsets = self.shards.offsets(first, last)
            lengths = np.diff(offsets)
            begin = (offsets[:-1] + g * np.arange(first, last) - turn) % size
            end = begin + lengths - 1  # beyond the line's end, it goes on in the first window
            around = end >= size
            parts = end % size // width - begin // width + 1 + around * self.windows.count
            whole = parts == 1
            pieces, tokens = int(parts.sum()), int(lengths.sum())
            if self.format.scope == "context":
                total += Counts(
                    pieces=pieces, tokens=tokens, eligible=pieces, eligible_tokens=tokens
                )
            else:
                total += Counts(
                    pieces=pieces,
                    tokens=tokens,
                    eligible=int(whole.sum()),
                    eligible_tokens=int(lengths[whole].sum()),
                )
        return total

    def _pieces(self, start: int, count: int) -> list[Piece]:
        """The documents' parts in a window, in order; those of free places alone have length 0."""
        found = []
        g = self.layout.reserve
        for begin, end in self.windows.spans(start, count):
            first = self._document_at(begin)
            # A document takes at least its reserve, so no more than these can be in the stretch.
            most = min(first + (end - begin) // g + 2, self.shards.n_documents)
            offsets = self.shards.offsets(first, most).tolist()
            for d, (token, after) in enumerate(pairwise(offsets), start=first):
                place, n = token + g * d, after - token
                if place >= end:
                    break
                a, b = max(begin - place, 0), min(end - place, n)
                # Of the reserve, what lies in the stretch.
                room = min(end, place + n + g) - max(begin, place + n)
                ids = self.shards.tokens(token + a, token + min(b + 1, n)) if a < b else _NONE
                found.append(
                    Piece(d, ids, max(b - a, 0), a == 0, b == n and a < b, a, max(room, 0))
                )
        return found

    def _document_at(self, place: int) -> int:
        """The document that holds a place of the line, its reserve included."""
        g, shards = self.layout.reserve, self.shards
        # The token at the same share of the line is near; the answer lies between its neighbours.
        near = shards.document_at(
            min(place * shards.n_tokens // self.windows.size, shards.n_tokens - 1)
        )
        low, high, step = near, near + 1, 1
        while low > 0 and shards.offset(low) + g * low > place:
            low, step = max(0, low - step), step * 2
        step = 1
        while high < shards.n_documents and shards.offset(high) + g * high <= place:
            high, step = min(shards.n_documents, high + step), step * 2
        key: Callable[[int], int] = lambda d: shards.offset(d) + g * d  # noqa: E731
        return low + bisect_right(range(low, high), place, key=key) - 1

    def _arrange(self, epoch: int, piece: Piece, most: int) -> tuple[Ids | None, Order, Counts]:
        """One piece infilled, or None where it stays plain.

        Args:
            epoch: whose cuts are drawn.
            piece: the document's part.
            most: tokens that it may take.
        """
        plain = Counts(pieces=int(piece.length > 0), tokens=piece.length)
        # BOS and EOS are no text.
        first, last = int(piece.starts), piece.length - int(piece.ends)
        whole = piece.starts and piece.ends
        if first >= last or not (whole or self.format.scope == "context"):
            return None, Order.PLAIN, plain
        if self.shards.flags(piece.document) & ROUNDTRIP_LOSSY:
            return None, Order.PLAIN, replace(plain, lossy=1)
        key = f"{self._key}\0{epoch}\0{piece.document}\0{piece.at}"
        draw = Draw.of(self.format, key.encode())
        able = replace(plain, eligible=1, eligible_tokens=piece.length)
        if not draw.chosen and whole:
            return None, Order.PLAIN, able
        # After BOS comes the implied space, which is no text; further on spaces are real ones.
        opens = piece.at <= 1
        text = self.infiller.tokenizer.text_of(piece.ids[first:last], continuation=not opens)
        if text is None:  # a row's border within a character: no text to cut
            return None, Order.PLAIN, replace(plain, split=1)
        if not draw.chosen:
            return None, Order.PLAIN, able
        tokenizer = self.infiller.tokenizer
        lines = None
        if tokenizer.newline_id is not None:
            lines = KnownLines(
                tokenizer, text, piece.ids[first:last], starts=opens, ends=piece.ends
            )
        redrawn = 0
        nodes = self._nodes(piece, text)
        for redrawn, drawn in enumerate(draw.cuts(len(text))):
            one, other = drawn if nodes is None else syntax.nearest(nodes, *drawn)
            made = self.infiller.example(
                Parts.cut(text, one, other), draw.order, eos=self.format.eos, lines=lines
            )
            if len(made) <= most:
                return (
                    made,
                    draw.order,
                    replace(
                        able,
                        infilled=1,
                        infilled_tokens=piece.length,
                        psm=int(draw.order == Order.PSM),
                        spm=int(draw.order == Order.SPM),
                        syntax=int(nodes is not None),
                        redrawn=redrawn,
                    ),
                )
        return None, Order.PLAIN, replace(able, unfit=1, redrawn=redrawn)

    def _nodes(self, piece: Piece, text: str) -> syntax.Spans | None:
        """The syntax nodes of a piece's text, where the cuts are to be at those and it has some."""
        if self.format.spans == "chars":
            return None
        nodes = syntax.spans(text, self.shards.language(piece.document))
        return nodes if len(nodes) else None


_NONE = np.empty(0, dtype=np.int32)
