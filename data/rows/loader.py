"""Batches of rows: step s holds rows s B .. (s + 1) B - 1, prepared ahead by a thread.

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
        ids, targets, positions: (B,T), as in `Row`.
        segments: the pieces' lengths of each row.
        n_targets: targets with loss.
        kinds: (B,T) how each token's piece is arranged, see `Row`.
        counts: of its documents, where infilling is on.
    """

    ids: Ids
    targets: Ids
    positions: Ids
    segments: tuple[tuple[int, ...], ...]
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
                self.segments[a : a + rows],
                self.kinds[a : a + rows],
            )
            for a in range(0, len(self.ids), rows)
        ]


def _batch(
    ids: Ids,
    targets: Ids,
    positions: Ids,
    segments: tuple[tuple[int, ...], ...],
    kinds: Kinds,
    counts: Counts | None = None,
) -> Batch:
    n_targets = int((targets != IGNORE).sum())
    return Batch(ids, targets, positions, segments, n_targets, kinds, counts)


def stack(rows: Sequence[Row]) -> Batch:
    """A batch of rows of equal length."""
    counted = [row.counts for row in rows if row.counts is not None]
    return _batch(
        np.stack([row.ids for row in rows]),
        np.stack([row.targets for row in rows]),
        np.stack([row.positions for row in rows]),
        tuple(row.segments for row in rows),
        np.stack([row.kinds for row in rows]),
        sum(counted, start=Counts()) if counted else None,
    )


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
        infilling: how documents are infilled, if at all.
        learn: the tokens of dialogs with loss.
        ahead: batches made ahead.
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
        infilling: Infilling | None = None,
        learn: Learn = "answers",
        ahead: int = 4,
    ) -> None:
        self._rows = RunRows(mixture, context=context, seed=seed, infilling=infilling, learn=learn)
        self._batch_rows = batch_rows
        self._steps = range(start, stop)
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=max(1, ahead))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True)

    def batch(self, step: int) -> Batch:
        """The batch of a step, made here and now."""
        first = step * self._batch_rows
        return stack([self._rows.row(i) for i in range(first, first + self._batch_rows)])

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
    infilling: Infilling | None = None,
    learn: Learn = "answers",
) -> Iterator[Batch]:
    """The same batches every time: at most `rows` rows, spread evenly over a validation split.

    Args:
        shards: the split.
        context: T.
        rows: how many at most; no token comes twice.
        batch_rows: rows of a batch; the last may have fewer.
        infilling: infill them, with cuts that are the same every time.
        learn: the tokens of dialogs with loss.
    """
    source = source_rows(shards, context=context, seed=0, infilling=infilling, learn=learn)
    count = min(rows, source.rows)  # none, where no dialog fits a row
    places = [n * source.rows // count for n in range(count)]
    for a in range(0, count, batch_rows):
        yield stack([source.nth(w) for w in places[a : a + batch_rows]])
