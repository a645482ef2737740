"""Exact duplicates, found by joining keys; no text leaves its partition.

Each partition scatters one row a document (digest, row, source, bytes) into buckets by digest:
record batch b of its key file holds bucket b. A bucket is then joined over all partitions by
itself. Rows are compared in the order of the sources, so the lowest (source order, path) stays.

    partition 0:  batch 0 | batch 1 | ...        join(bucket 1) reads batch 1 of every file and
    partition 1:  batch 0 | batch 1 | ...        lists the rows that lose, and who beat them

The digest is of the text as it will be trained on: a byte order mark or UTF-16 makes no
difference, white space and line ends do (near-duplicates are another step).
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .files import atomic_writer

KEYS = pa.schema(
    [
        ("high", pa.uint64()),
        ("low", pa.uint64()),
        ("row", pa.uint32()),  # among the partition's documents
        ("source", pa.uint16()),
        ("bytes", pa.uint32()),
    ]
)
LOSERS = pa.schema(
    [
        ("partition", pa.uint32()),
        ("row", pa.uint32()),
        ("kept_partition", pa.uint32()),
        ("kept_row", pa.uint32()),
    ]
)
TWO_64 = 1 << 64

Unsigned = npt.NDArray[np.uint64]


def text_digest(text: str) -> tuple[int, int]:
    """The two 64-bit halves of a text's digest: buckets use the high one, the split the low one."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


class Keys:
    """The columns of a partition's keys, one entry a document in order.

    Held compactly: a compressed file is one partition however many documents it holds.
    """

    def __init__(self) -> None:
        self.high, self.low = array("Q"), array("Q")
        self.sources, self.bytes = array("H"), array("I")

    def add(self, digest: tuple[int, int], source: int, size: int) -> None:
        """The next document: its digest's halves, its source's number, its size in bytes."""
        self.high.append(digest[0])
        self.low.append(digest[1])
        self.sources.append(source)
        self.bytes.append(size)


def scatter(path: Path, keys: Keys, *, buckets: int) -> None:
    """Write a partition's keys, record batch b holding bucket b, rows ascending within each."""
    high, low = np.array(keys.high, dtype=np.uint64), np.array(keys.low, dtype=np.uint64)
    bucket = ((high >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)
    order = np.argsort(bucket, kind="stable")
    columns = (
        high[order],
        low[order],
        order.astype(np.uint32),
        np.array(keys.sources, dtype=np.uint16)[order],
        np.array(keys.bytes, dtype=np.uint32)[order],
    )
    borders = np.searchsorted(bucket[order], np.arange(buckets + 1, dtype=np.uint64))
    with atomic_writer(path) as file, pa.ipc.new_file(file, KEYS) as writer:
        for start, stop in itertools.pairwise(borders):
            arrays = [pa.array(column[start:stop]) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema=KEYS))


def join(path: Path, key_files: Sequence[Path], bucket: int, *, remove: bool) -> dict[str, Any]:
    """Find one bucket's duplicates and write the rows that lose, sorted, to `path`.

    Args:
        path: the file of losers.
        key_files: every partition's, in order.
        bucket: which record batch of each to join.
        remove: False keeps duplicates and only counts sources.

    Returns:
        source index (as text) -> its documents and bytes kept, and the lowest and highest of
        their digests as [low, high], which the split needs.
    """
    batches, partitions = [], []
    for i, key_file in enumerate(key_files):
        with pa.memory_map(str(key_file)) as mapped:
            batch = pa.ipc.open_file(mapped).get_batch(bucket)
            batches.append(batch)
            partitions.append(np.full(batch.num_rows, i, dtype=np.uint32))
    table = pa.Table.from_batches(batches, schema=KEYS)
    high, low, row, source, size = (table[name].to_numpy() for name in KEYS.names)
    partition = np.concatenate(partitions) if partitions else np.zeros(0, dtype=np.uint32)

    # Stable, and rows come in the order of the sources: the first of equals is the lowest.
    order = np.lexsort((low, high))
    new = np.ones(len(order), dtype=bool)
    if remove:
        same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
        new[1:] = ~same
    winner = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    lost, beaten_by = order[~new], winner[~new]
    by_place = np.lexsort((row[lost], partition[lost]))
    lost, beaten_by = lost[by_place], beaten_by[by_place]
    columns = (partition[lost], row[lost], partition[beaten_by], row[beaten_by])
    with atomic_writer(path) as file, pa.ipc.new_file(file, LOSERS) as writer:
        writer.write_batch(pa.record_batch([pa.array(c) for c in columns], schema=LOSERS))
    kept = order[new]
    return {
        str(s): _source_summary(high[chosen], low[chosen], size[chosen])
        for s in np.unique(source[kept]).tolist()
        if len(chosen := kept[source[kept] == s])
    }


def _source_summary(high: Unsigned, low: Unsigned, size: npt.NDArray[np.uint32]) -> dict[str, Any]:
    order = np.lexsort((high, low))
    first, last = int(order[0]), int(order[-1])
    return {
        "documents": len(order),
        "bytes": int(size.sum(dtype=np.uint64)),
        "lowest": [int(low[first]), int(high[first])],
        "highest": [int(low[last]), int(high[last])],
    }


def losers_of(path: Path, partition: int) -> dict[int, tuple[int, int]]:
    """One partition's rows among a bucket's losers -> (partition, row) of the document kept."""
    with pa.memory_map(str(path)) as mapped:
        batch = pa.ipc.open_file(mapped).get_batch(0)
        places = batch.column("partition").to_numpy()
        start, stop = np.searchsorted(places, [partition, partition + 1])
        rows, kept_partitions, kept_rows = (
            batch.column(name).slice(start, stop - start).to_pylist()
            for name in ("row", "kept_partition", "kept_row")
        )
    return dict(zip(rows, zip(kept_partitions, kept_rows, strict=True), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which documents validate: a function of the text, so copies never straddle the border.

    A document validates when the low half of its digest is under the threshold. Where that leaves
    a source without one, the source's lowest document validates; its highest always trains, so a
    source with a single document gives it to training.

    Attributes:
        threshold: of 2**64.
        validation, training: digests [low, high] decided by name; training wins.
    """

    threshold: int
    validation: frozenset[tuple[int, int]]
    training: frozenset[tuple[int, int]]

    def validates(self, digest: tuple[int, int]) -> bool:
        """Whether the document with this (high, low) digest belongs to validation."""
        high, low = digest
        if (low, high) in self.training:
            return False
        return low < self.threshold or (low, high) in self.validation


def plan_split(summaries: Sequence[dict[str, Any]], *, share: float) -> Split:
    """The split for the joined buckets' summaries; a share of 0 gives no validation at all."""
    threshold = int(share * TWO_64)
    lowest: dict[str, tuple[int, int]] = {}
    highest: dict[str, tuple[int, int]] = {}
    for summary in summaries:
        for source, counts in summary.items():
            low, high = tuple(counts["lowest"]), tuple(counts["highest"])
            lowest[source] = min(lowest.get(source, low), low)
            highest[source] = max(highest.get(source, high), high)
    return Split(
        threshold=threshold,
        validation=frozenset(lowest.values()) if share else frozenset(),
        training=frozenset(highest.values()),
    )
