"""Exact duplicates, found by joining keys; no text leaves its partition.

Each partition scatters one row a document (digest, row) into buckets by digest:
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codecria.data.files import atomic_writer

KEYS = pa.schema(
    [
        ("high", pa.uint64()),
        ("low", pa.uint64()),
        ("row", pa.uint32()),  # among the partition's documents
    ]
)
LOSERS = pa.schema(
    [
        ("partition", pa.uint32()),
        ("row", pa.uint32()),
        ("kept_partition", pa.uint32()),
        ("kept_row", pa.uint32()),
        ("jaccard", pa.float32()),
        ("kept_id", pa.string()),
    ]
)
TWO_64 = 1 << 64

Unsigned = npt.NDArray[np.uint64]


def text_digest(text: str) -> tuple[int, int]:
    """The two 64-bit halves of a text's digest: buckets use the high one, the split the low one."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def scatter(path: Path, high: Unsigned, low: Unsigned, *, buckets: int) -> None:
    """Write a partition's digests, record batch b holding bucket b, rows ascending within each.

    Args:
        path: the file.
        high, low: (D,) halves of the digest of each of the partition's documents, in order.
        buckets: how many.
    """
    bucket = ((high >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)
    order = np.argsort(bucket, kind="stable")
    columns = (high[order], low[order], order.astype(np.uint32))
    borders = np.searchsorted(bucket[order], np.arange(buckets + 1, dtype=np.uint64))
    with atomic_writer(path) as file, pa.ipc.new_file(file, KEYS) as writer:
        for start, stop in itertools.pairwise(borders):
            arrays = [pa.array(column[start:stop]) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema=KEYS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Documents that lose, sorted by place, and who stands for each; all columns (L,).

    Attributes:
        partition, row: of the document that goes.
        kept_partition, kept_row: of the one that stays.
        jaccard: of the two, 1 for equal texts.
    """

    partition: npt.NDArray[Any]
    row: npt.NDArray[Any]
    kept_partition: npt.NDArray[Any]
    kept_row: npt.NDArray[Any]
    jaccard: npt.NDArray[Any]


def join(key_files: Sequence[Path], bucket: int) -> Lost:
    """Find one bucket's duplicates.

    Args:
        key_files: every partition's, in order.
        bucket: which record batch of each to join.
    """
    batches, partitions = [], [np.zeros(0, dtype=np.uint32)]
    for i, key_file in enumerate(key_files):
        with pa.OSFile(str(key_file)) as file:
            batch = pa.ipc.open_file(file).get_batch(bucket)
            batches.append(batch)
            partitions.append(np.full(batch.num_rows, i, dtype=np.uint32))
    table = pa.Table.from_batches(batches, schema=KEYS)
    high, low, row = (table[name].to_numpy() for name in KEYS.names)
    partition = np.concatenate(partitions)

    # Stable, and rows come in the order of the sources: the first of equals is the lowest.
    order = np.lexsort((low, high))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    winner = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    lost, beaten_by = order[~new], winner[~new]
    by_place = np.lexsort((row[lost], partition[lost]))
    lost, beaten_by = lost[by_place], beaten_by[by_place]
    return Lost(
        partition=partition[lost],
        row=row[lost],
        kept_partition=partition[beaten_by],
        kept_row=row[beaten_by],
        jaccard=np.ones(len(lost), dtype=np.float32),
    )


def write_lost(path: Path, lost: Lost, ids: Sequence[str]) -> None:
    """Write who loses to whom; `ids` are those of the documents kept."""
    arrays = [getattr(lost, name) for name in LOSERS.names[:-1]]
    columns = [pa.array(values, LOSERS.field(i).type) for i, values in enumerate(arrays)]
    columns.append(pa.array(ids, pa.string()))
    with atomic_writer(path) as file, pa.ipc.new_file(file, LOSERS) as writer:
        writer.write_batch(pa.record_batch(columns, schema=LOSERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The document that stands for a removed one: its id, and how similar the two are."""

    id: str
    jaccard: float


def lost_of(path: Path, partition: int) -> dict[int, Winner]:
    """One partition's rows among a file of losers -> the document kept."""
    with pa.OSFile(str(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    places = batch.column("partition").to_numpy()
    start, stop = np.searchsorted(places, [partition, partition + 1])
    rows, similarities, ids = (
        batch.column(name).slice(start, stop - start).to_pylist()
        for name in ("row", "jaccard", "kept_id")
    )
    return {
        row: Winner(id=identity, jaccard=similarity)
        for row, similarity, identity in zip(rows, similarities, ids, strict=True)
    }


Summary = dict[str, dict[str, Any]]  # group and source -> what is kept of it


def summarise(
    batch_keys: Sequence[str], high: Unsigned, low: Unsigned, size: npt.NDArray[Any]
) -> Summary:
    """What is kept, by key: documents, bytes, the lowest and highest [low, high] of the digests.

    Args:
        batch_keys: (D,) each document's group and source.
        high, low: (D,) halves of its digest.
        size: (D,) bytes.
    """
    names, index = np.unique(np.array(batch_keys, dtype=object), return_inverse=True)
    result: Summary = {}
    for i, name in enumerate(names.tolist()):
        chosen = index == i
        order = np.lexsort((high[chosen], low[chosen]))
        first, last = int(order[0]), int(order[-1])
        result[name] = {
            "documents": len(order),
            "bytes": int(size[chosen].sum(dtype=np.uint64)),
            "lowest": [int(low[chosen][first]), int(high[chosen][first])],
            "highest": [int(low[chosen][last]), int(high[chosen][last])],
        }
    return result


def merge_summaries(summaries: Sequence[Summary]) -> Summary:
    """The summaries of several partitions as one."""
    merged: Summary = {}
    for summary in summaries:
        for key, counts in summary.items():
            have = merged.setdefault(key, {**counts, "documents": 0, "bytes": 0})
            have["documents"] += counts["documents"]
            have["bytes"] += counts["bytes"]
            have["lowest"] = min(have["lowest"], counts["lowest"])
            have["highest"] = max(have["highest"], counts["highest"])
    return merged


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


def plan_split(summary: Summary, *, share: float) -> Split:
    """The split for what is kept; a share of 0 gives no validation at all."""
    return Split(
        threshold=int(share * TWO_64),
        validation=frozenset(_pair(counts["lowest"]) for counts in summary.values())
        if share
        else frozenset(),
        training=frozenset(_pair(counts["highest"]) for counts in summary.values()),
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    low, high = values
    return low, high
