"""The passes that find near-duplicates (`near.py`), each a pure function, files in and files out.

sketch_partition     survivors of exact dedup -> signatures, band by band
candidate_bands      some bands of all partitions -> pairs that may be near-duplicates
cluster_pairs        all pairs -> who must be compared with whom, in which bucket
extract_partition    a partition's documents in pairs -> their n-grams, scattered by bucket
verify_bucket        a bucket's pairs -> near-duplicates that lose
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codecria.data.files import atomic_writer

from . import dedup, near, shingles
from .append import OldShard, recall_sketches
from .near import Near
from .partition_files import partition_path, read_batches
from .survivors import Corpus

BUCKET_BYTES = 64 << 20  # of n-grams that a bucket holds, about
GRAM_BYTES = 8

MEMBERS = pa.schema([("place", pa.uint64()), ("bucket", pa.uint32())])
GRAMS = pa.schema(
    [("place", pa.uint64()), ("id", pa.string()), ("grams", pa.large_list(pa.uint64()))]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchWork:
    """A partition to sketch; `shard` as in `ExtractWork`."""

    corpus: Corpus
    partition: int
    near: Near
    shard: OldShard | None


def sketch_partition(output: Path, work: SketchWork) -> int:
    """Write the sketches of what exact dedup left (.arrow); how many documents."""
    if work.shard is not None:
        return recall_sketches(output, work.shard, work.near)
    rows: list[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    pieces: list[near.Sketch] = []
    row = 0
    for batch, fates in work.corpus.survivors(work.partition, ["text"]):
        stays = np.array([fate is None for fate in fates], dtype=bool)
        texts = batch.column("text").filter(pa.array(stays))
        rows.append(row + np.flatnonzero(stays))
        pieces.append(near.sketch(texts, work.near))
        row += batch.num_rows
    near.write_sketches(output.with_suffix(".arrow"), np.concatenate(rows), pieces, work.near)
    return sum(len(piece.bins) for piece in pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateWork:
    """Some bands to join over all partitions."""

    sketches: Path
    partitions: int
    bands: tuple[int, int]
    near: Near


def candidate_bands(output: Path, work: CandidateWork) -> int:
    """Write the pairs these bands give (.arrow); how many."""
    files = [partition_path(work.sketches, i).with_suffix(".arrow") for i in range(work.partitions)]
    return near.candidates(output.with_suffix(".arrow"), files, range(*work.bands), work.near)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterWork:
    """The files of pairs, and the sketches, which hold the sizes of the documents in them."""

    pairs: Path
    files: int
    sketches: Path
    partitions: int


def cluster_pairs(output: Path, work: ClusterWork) -> dict[str, int]:
    """Write who is in a pair (.arrow) and the pairs by bucket (.pairs.arrow); pairs and buckets.

    What pairs connect goes to one bucket, so that buckets are verified by themselves.
    """
    files = [partition_path(work.pairs, i).with_suffix(".arrow") for i in range(work.files)]
    pairs = near.read_pairs(files)
    places, component = near.components(pairs)
    grams = np.zeros(len(places), dtype=np.int64)
    for i in range(work.partitions):
        start, stop = _span(places, i)
        if start < stop:
            path = partition_path(work.sketches, i).with_suffix(".arrow")
            batch = near.read_sketches(path, ["row", "shingles"])
            rows = batch.column("row").to_numpy()
            chosen = np.searchsorted(rows, _rows(places[start:stop]))
            grams[start:stop] = batch.column("shingles").to_numpy()[chosen]
    # Components in order, cut where a bucket is full: a component lies in one bucket.
    weight = np.bincount(component, weights=grams, minlength=len(places))
    filled = np.cumsum(weight) - weight
    bucket = (filled * GRAM_BYTES // BUCKET_BYTES).astype(np.int64)[component]
    buckets = int(bucket.max()) + 1 if len(bucket) else 0
    of_pair = bucket[np.searchsorted(places, pairs[:, 0])]
    with (
        atomic_writer(output.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, MEMBERS) as writer,
    ):
        columns = [pa.array(places), pa.array(bucket, pa.uint32())]
        writer.write_batch(pa.record_batch(columns, schema=MEMBERS))
    with (
        atomic_writer(output.with_suffix(".pairs.arrow")) as file,
        pa.ipc.new_file(file, near.PAIRS) as writer,
    ):
        for number in range(buckets):
            columns = [pa.array(side) for side in pairs[of_pair == number].T]
            writer.write_batch(pa.record_batch(columns, schema=near.PAIRS))
    return {"pairs": len(pairs), "buckets": buckets}


def _span(places: near.Unsigned, partition: int) -> tuple[int, int]:
    """Where a partition's places lie among sorted ones."""
    borders = near.place(np.array([partition, partition + 1]), np.zeros(2, dtype=np.uint64))
    start, stop = np.searchsorted(places, borders).tolist()
    return start, stop


def _rows(places: near.Unsigned) -> near.Unsigned:
    return places & np.uint64(0xFFFFFFFF)


def _partitions(places: near.Unsigned) -> near.Unsigned:
    return places >> np.uint64(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractWork:
    """A partition whose documents in pairs give their n-grams.

    Attributes:
        shard: where the documents are, of a partition that is a shard of the set appended to.
    """

    corpus: Corpus
    partition: int
    members: Path
    buckets: int
    near: Near
    shard: OldShard | None


def extract_partition(output: Path, work: ExtractWork) -> int:
    """Write the n-grams of the partition's documents in pairs, batch b holding bucket b."""
    members = next(read_batches(work.members))
    places, buckets = (column.to_numpy() for column in members.columns)
    start, stop = _span(places, work.partition)
    places, buckets = places[start:stop], buckets[start:stop]
    by_bucket: list[list[dict[str, Any]]] = [[] for _ in range(work.buckets)]
    found = 0
    for index, identity, grams in _wanted_grams(work, _rows(places)):
        record = {"place": int(places[index]), "id": identity, "grams": grams}
        by_bucket[int(buckets[index])].append(record)
        found += 1
    assert found == len(places), f"{found} documents of {len(places)} in pairs"
    with (
        atomic_writer(output.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, GRAMS) as writer,
    ):
        for records in by_bucket:
            sets = [record["grams"] for record in records]
            offsets = np.cumsum([0, *(len(grams) for grams in sets)])
            values = np.concatenate([np.zeros(0, dtype=np.uint64), *sets])
            columns = [
                pa.array([record["place"] for record in records], pa.uint64()),
                pa.array([record["id"] for record in records], pa.string()),
                pa.LargeListArray.from_arrays(offsets, values),
            ]
            writer.write_batch(pa.record_batch(columns, schema=GRAMS))
    return found


def _wanted_grams(
    work: ExtractWork, rows: near.Unsigned
) -> Iterator[tuple[int, str, near.Unsigned]]:
    """(index among the rows wanted, id, n-grams) of the partition's rows wanted, ascending."""
    if not len(rows):
        return
    if work.shard is not None:
        for i, (identity, text) in enumerate(work.shard.documents(rows.tolist())):
            yield i, identity, near.gram_sets(shingles.column([text]), work.near)[0]
        return
    begin = 0
    path = work.corpus.path(work.partition).with_suffix(".arrow")
    for batch in read_batches(path, ["id", "text"]):
        first, last = np.searchsorted(rows, [begin, begin + batch.num_rows]).tolist()
        if first < last:
            chosen = batch.take(pa.array(rows[first:last] - np.uint64(begin)))
            identities = chosen.column("id").to_pylist()
            sets = near.gram_sets(chosen.column("text"), work.near)
            yield from zip(range(first, last), identities, sets, strict=True)
        begin += batch.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyWork:
    """A bucket of pairs to verify."""

    pairs: Path
    grams: Path
    old: int
    partitions: int
    bucket: int
    near: Near


def verify_bucket(output: Path, work: VerifyWork) -> int:
    """Write the bucket's near-duplicates that lose (.arrow); how many."""
    batch = next(read_batches(work.pairs, start=work.bucket))
    pairs = np.stack([column.to_numpy() for column in batch.columns], axis=1)
    grams: dict[int, near.Unsigned] = {}
    identities: dict[int, str] = {}
    for i in range(work.partitions):
        path = partition_path(work.grams, i).with_suffix(".arrow")
        found = next(read_batches(path, start=work.bucket))
        places = found.column("place").to_pylist()
        identities |= dict(zip(places, found.column("id").to_pylist(), strict=True))
        lists = found.column("grams")
        values, borders = lists.values.to_numpy(), lists.offsets.to_pylist()
        for place, start, stop in zip(places, borders, borders[1:], strict=False):
            grams[place] = values[start:stop]
    losers = [
        loser
        for loser in near.verify(pairs, grams, work.near.threshold)
        if loser.place >> 32 >= work.old  # what is in the set already stays
    ]
    lost = _lost(losers)
    dedup.write_lost(
        output.with_suffix(".arrow"), lost, [identities[loser.kept] for loser in losers]
    )
    return len(losers)


def _lost(losers: Sequence[near.Loser]) -> dedup.Lost:
    places = np.array([loser.place for loser in losers], dtype=np.uint64)
    kept = np.array([loser.kept for loser in losers], dtype=np.uint64)
    return dedup.Lost(
        partition=_partitions(places),
        row=_rows(places),
        kept_partition=_partitions(kept),
        kept_row=_rows(kept),
        jaccard=np.array([loser.jaccard for loser in losers], dtype=np.float32),
    )
