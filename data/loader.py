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

from .mixture import Mixture
from .rows import IGNORE, Ids, Row, RunRows, SourceRows
from .shards import ShardSet

POLL_S = 0.1  # how long the thread and its reader wait before they look whether the other is gone


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are trained on together.

    Attributes:
        ids, targets, positions: (B,T), as in `Row`.
        segments: the pieces' lengths of each row.
        n_targets: targets with loss.
    """

    ids: Ids
    targets: Ids
    positions: Ids
    segments: tuple[tuple[int, ...], ...]
    n_targets: int

    def split(self, rows: int) -> list[Batch]:
        """The batch in parts of at most `rows` rows, for gradient accumulation."""
        return [
            _batch(
                self.ids[a : a + rows],
                self.targets[a : a + rows],
                self.positions[a : a + rows],
                self.segments[a : a + rows],
            )
            for a in range(0, len(self.ids), rows)
        ]


def _batch(ids: Ids, targets: Ids, positions: Ids, segments: tuple[tuple[int, ...], ...]) -> Batch:
    return Batch(ids, targets, positions, segments, int((targets != IGNORE).sum()))


def stack(rows: Sequence[Row]) -> Batch:
    """A batch of rows of equal length."""
    return _batch(
        np.stack([row.ids for row in rows]),
        np.stack([row.targets for row in rows]),
        np.stack([row.positions for row in rows]),
        tuple(row.segments for row in rows),
    )


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
        ahead: int = 4,
    ) -> None:
        self._rows = RunRows(mixture, context=context, seed=seed)
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
    shards: ShardSet, *, context: int, rows: int, batch_rows: int
) -> Iterator[Batch]:
    """The same batches every time: at most `rows` rows, spread evenly over a validation split.

    Args:
        shards: the split.
        context: T.
        rows: how many at most; no token comes twice.
        batch_rows: rows of a batch; the last may have fewer.
    """
    source = SourceRows(shards, context=context, seed=0)
    count = min(rows, source.rows)
    places = [n * source.rows // count for n in range(count)]
    for a in range(0, count, batch_rows):
        yield stack(
            [
                source.span(w * context, min(context, source.size - w * context))
                for w in places[a : a + batch_rows]
            ]
        )
