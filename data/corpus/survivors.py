"""Which of the documents read others stand for, and the passes that join and count them.

join_bucket          a bucket of keys -> exact duplicates that lose
summarise_partition  what is left of a partition, for the split and the layout of the shards
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from . import dedup
from .intake import group_of
from .partition_files import (
    keys_path,
    partition_path,
    read_batches,
)
from .reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The documents read, and the files that say which of them others stand for.

    Attributes:
        read: the folder of the read stage.
        old: how many partitions at the front are shards of the set that is appended to; they hold
            keys and ids alone, and never lose.
        partitions: all, the old ones among them.
        exact, near: files of losers.
    """

    read: Path
    old: int
    partitions: int
    exact: tuple[Path, ...] = ()
    near: tuple[Path, ...] = ()

    def lost(self, partition: int) -> dict[int, tuple[Reason, dedup.Winner]]:
        """A partition's rows that lose -> why, and to whom."""
        found: dict[int, tuple[Reason, dedup.Winner]] = {}
        for reason, files in (
            (Reason.NEAR_DUPLICATE, self.near),
            (Reason.EXACT_DUPLICATE, self.exact),
        ):
            for path in files:
                lost = dedup.lost_of(path, partition)
                found |= {row: (reason, winner) for row, winner in lost.items()}
        return found

    def survivors(
        self, partition: int, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[pa.RecordBatch, list[tuple[Reason, dedup.Winner] | None]]]:
        """A partition's batches, and for each row None (it stays) or who stands for it."""
        lost = self.lost(partition)
        row = 0
        for batch in read_batches(self.path(partition).with_suffix(".arrow"), columns):
            yield batch, [lost.get(i) for i in range(row, row + batch.num_rows)]
            row += batch.num_rows

    def path(self, partition: int) -> Path:
        """The name, without an ending, of a partition's files."""
        return partition_path(self.read, partition)

    def ids(self, partition: npt.NDArray[Any], row: npt.NDArray[Any]) -> list[str]:
        """The ids of documents at these places, each partition read once."""
        found = np.empty(len(partition), dtype=object)
        for number in np.unique(partition).tolist():
            here = np.flatnonzero(partition == number)
            batches = read_batches(self.path(number).with_suffix(".arrow"), ["id"])
            table = pa.Table.from_batches(batches)
            found[here] = table["id"].take(pa.array(row[here])).to_pylist()
        return list(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWork:
    """A bucket of keys to join over all partitions of the read stage."""

    corpus: Corpus
    bucket: int


def join_bucket(output: Path, work: JoinWork) -> int:
    """Write the bucket's exact duplicates (.arrow); how many there are."""
    corpus = work.corpus
    files = [keys_path(corpus.path(i)) for i in range(corpus.partitions)]
    lost = dedup.join(files, work.bucket)
    ids = corpus.ids(lost.kept_partition, lost.kept_row)
    dedup.write_lost(output.with_suffix(".arrow"), lost, ids)
    return len(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryWork:
    """A partition whose survivors are counted by group and source."""

    corpus: Corpus
    partition: int
    group_by: str


def summarise_partition(output: Path, work: SummaryWork) -> dedup.Summary:  # noqa: ARG001
    """What is kept of a partition, by group and source."""
    keys: list[str] = []
    parts: list[npt.NDArray[Any]] = []
    facts = ["source", "language", "high", "low", "bytes"]
    for batch, fates in work.corpus.survivors(work.partition, facts):
        kept = np.array([fate is None for fate in fates], dtype=bool)
        columns = [batch.column(name).to_numpy() for name in ("high", "low", "bytes")]
        parts.append(np.stack([column[kept].astype(np.uint64) for column in columns]))
        sources, found = (batch.column(name).to_pylist() for name in ("source", "language"))
        keys += [
            summary_key(group_of(source, language, work.group_by), source)
            for source, language, stays in zip(sources, found, kept, strict=True)
            if stays
        ]
    high, low, size = np.concatenate([np.zeros((3, 0), dtype=np.uint64), *parts], axis=1)
    return dedup.summarise(keys, high, low, size)


def summary_key(group: str, source: str) -> str:
    """A group and a source as the key of a summary."""
    return json.dumps([group, source])
