"""Batches of rows: step s holds rows s B .. (s + 1) B - 1, prepared ahead by a thread.

`stack` decides, from the recipe's `document_mask`, what attention crosses and how positions count;
everything that trains on rows or scores them takes both from the batch:

    row                  a a a b b c c c       documents a, b, c
    masked               0 1 2 0 1 0 1 2       attention within a document, positions from its start
    plain causal         0 1 2 3 4 5 6 7       attention across the row, positions along it

Shapes: B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from codecria.data.formats.infill import Infiller, InfillFormat

from .dialog_rows import DialogRows, Learn
from .infill_rows import InfillRows
from .mixture import Mixture
from .rows import IGNORE, Counts, Ids, Kinds, Row, SourceRows
from .shards import ShardSet

POLL_S = 0.1  # how long the thread and its reader wait before they look whether the other is gone


@dataclass(frozen=True, slots=True)
class Infilling:
    """That documents are infilled: with what, and how."""

    infiller: Infiller
    format: InfillFormat


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are trained on together.

    Attributes:
        ids, targets: (B,T), as in `Row`.
        positions: (B,T) of the rotary angles: counted within the stretch that attention sees.
        segments: the lengths of the stretches that attention stays within, of each row; None where
            it is plain causal over the whole row. Always of whole rows, see `at`.
        n_targets: targets with loss.
        kinds: (B,T) how each token's piece is arranged, see `Row`.
        counts: of its documents, where infilling is on.
    """

    ids: Ids
    targets: Ids
    positions: Ids
    segments: tuple[tuple[int, ...], ...] | None
    n_targets: int
    kinds: Kinds
    counts: Counts | None = None

    def split(self, rows: int) -> list[Batch]:
        """The batch in parts of at most `rows` rows, for gradient accumulation."""
        return [
            _batch(
                self.ids[a : a + rows],
                self.targets[a : a + rows],
                self.positions[a : a + rows],
                None if self.segments is None else self.segments[a : a + rows],
                self.kinds[a : a + rows],
            )
            for a in range(0, len(self.ids), rows)
        ]

    def at(self, places: Ids) -> Batch:
        """The same rows at some places alone; attention's segments stay those of whole rows."""
        ids, targets, positions = (a[:, places] for a in (self.ids, self.targets, self.positions))
        kinds = self.kinds[:, places]
        return _batch(ids, targets, positions, self.segments, kinds, self.counts)


def _batch(
    ids: Ids,
    targets: Ids,
    positions: Ids,
    segments: tuple[tuple[int, ...], ...] | None,
    kinds: Kinds,
    counts: Counts | None = None,
) -> Batch:
    n_targets = int((targets != IGNORE).sum())
    return Batch(ids, targets, positions, segments, n_targets, kinds, counts)


def stack(rows: Sequence[Row], *, document_mask: bool) -> Batch:
    """A batch of rows of equal length.

    Args:
        rows: B of them.
        document_mask: attention stays within documents; else it is plain causal over the row. No
            pair of tokens that attention allows may have a negative rotary distance, so positions
            restart exactly where attention does.
    """
    counted = [row.counts for row in rows if row.counts is not None]
    segments = tuple(row.segments for row in rows) if document_mask else None
    lengths = segments if segments is not None else [(len(row.ids),) for row in rows]
    return _batch(
        np.stack([row.ids for row in rows]),
        np.stack([row.targets for row in rows]),
        np.stack([positions_within(each) for each in lengths]),
        segments,
        np.stack([row.kinds for row in rows]),
        sum(counted, start=Counts()) if counted else None,
    )


def positions_within(segments: Sequence[int]) -> Ids:
    """(T,) the place of each token in its segment, from 0.

    >>> positions_within((3, 2)).tolist()
    [0, 1, 2, 0, 1]
    """
    lengths = np.array(segments)
    starts = np.cumsum(lengths) - lengths
    places: Ids = (np.arange(lengths.sum()) - np.repeat(starts, lengths)).astype(np.int32)
    return places


def source_rows(
    shards: ShardSet,
    *,
    context: int,
    seed: int,
    infilling: Infilling | None,
    learn: Learn = "answers",
) -> SourceRows | InfillRows | DialogRows:
    """The rows of one source, as the stage wants them."""
    if shards.dialogs:
        return DialogRows(shards, context=context, seed=seed, learn=learn)
    if infilling is None:
        return SourceRows(shards, context=context, seed=seed)
    return InfillRows(
        shards,
        context=context,
        seed=seed,
        infiller=infilling.infiller,
        format=infilling.format,
    )


class RunRows:
    """The rows of a run: the mixture says which source, the source gives the row.

    Args:
        mixture: the sources and their shares.
        context: T.
        seed: of the run.
        infilling: how documents are infilled, if at all.
        learn: the tokens of dialogs with loss.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        context: int,
        seed: int,
        infilling: Infilling | None = None,
        learn: Learn = "answers",
    ) -> None:
        self.dealer = mixture.dealer(seed)
        self.sources = [
            source_rows(source.shards, context=context, seed=seed, infilling=infilling, learn=learn)
            for source in mixture.sources
        ]

    def row(self, i: int) -> Row:
        """Row i of the run."""
        source, k = self.dealer.locate(i)
        return self.sources[source].row(k)


class Loader:
    """Iterates over the batches of steps start .. stop - 1, a few of them made ahead by a thread.

    What comes out does not depend on how far ahead that is. Use it as a context manager: leaving
    the block ends the thread.

    Args:
        mixture: the sources and their shares.
        context: T.
        seed: of the run.
        batch_rows: B.
        start, stop: the steps.
        document_mask: see `stack`.
        infilling: how documents are infilled, if at all.
        learn: the tokens of dialogs with loss.
        ahead: batches made ahead.
        share: (n, of): only the n-th of `of` equal parts of every batch, counted from 0.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        context: int,
        seed: int,
        batch_rows: int,
        start: int,
        stop: int,
        document_mask: bool,
        infilling: Infilling | None = None,
        learn: Learn = "answers",
        ahead: int = 4,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._rows = RunRows(mixture, context=context, seed=seed, infilling=infilling, learn=learn)
        assert batch_rows % share[1] == 0, f"{batch_rows} rows in {share[1]} parts"
        self._batch_rows = batch_rows
        self._share = share
        self._document_mask = document_mask
        self._steps = range(start, stop)
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=max(1, ahead))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True)

    def batch(self, step: int) -> Batch:
        """This share of the batch of a step, made here and now."""
        part, parts = self._share
        count = self._batch_rows // parts
        first = step * self._batch_rows + part * count
        rows = [self._rows.row(i) for i in range(first, first + count)]
        return stack(rows, document_mask=self._document_mask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        for _ in self._steps:
            made = self._next()
            if isinstance(made, BaseException):
                raise made
            yield made

    def _next(self) -> Batch | BaseException:
        """The next batch, waited for while the thread lives."""
        while True:
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:
                alive = self._thread.is_alive() or not self._ready.empty()
                assert alive, "a loader is iterated once, within its `with` block"

    def _produce(self) -> None:
        for step in self._steps:
            try:
                made: Batch | BaseException = self.batch(step)
            except Exception as error:
                made = error  # raised where the batch is asked for
            while not self._closed.is_set():
                try:
                    self._ready.put(made, timeout=POLL_S)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or isinstance(made, BaseException):
                return


def validation_batches(
    shards: ShardSet,
    *,
    context: int,
    rows: int,
    batch_rows: int,
    document_mask: bool,
    infilling: Infilling | None = None,
    learn: Learn = "answers",
) -> Iterator[Batch]:
    """The same batches every time: at most `rows` rows, spread evenly over a validation split.

    Args:
        shards: the split.
        context: T.
        rows: how many at most; no token comes twice.
        batch_rows: rows of a batch; the last may have fewer.
        document_mask: see `stack`.
        infilling: infill them, with cuts that are the same every time.
        learn: the tokens of dialogs with loss.
    """
    source = source_rows(shards, context=context, seed=0, infilling=infilling, learn=learn)
    count = min(rows, source.rows)  # none, where no dialog fits a row
    places = [n * source.rows // count for n in range(count)]
    for a in range(0, count, batch_rows):
        part = [source.nth(w) for w in places[a : a + batch_rows]]
        yield stack(part, document_mask=document_mask)
