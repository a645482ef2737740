"""Near-duplicates: MinHash and LSH find candidates, Jaccard similarity on the texts decides.

Two texts are near-duplicates when their sets of word n-grams (`shingles.py`) have a Jaccard
similarity of at least the threshold. Clusters are what such pairs connect; of each the lowest
(source order, path) stays. Five passes, whose memory is bounded by a partition or a bucket:

    sketch      partition -> a signature a document, stored band by band
    candidates  some bands over all partitions -> pairs that agree in a whole band
    cluster     all pairs -> provisional clusters, each given to one bucket
    extract     partition -> the n-grams of documents in a pair, scattered by bucket
    verify      bucket -> the true Jaccard of each pair, the clusters, who loses to whom

The signature is a one-permutation MinHash: each n-gram's hash falls into one of K bins, and the
bin keeps its smallest hash; an empty bin copies another, chosen by its own number alone, so that
two texts' entries agree with a probability of their similarity (Shrivastava 2017, "Optimal
Densification for Fast and Accurate Minwise Hashing"). That is one hash an n-gram where plain
MinHash takes K. Eight bits of each entry are kept; they agree by chance once in 256.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codecria.data.files import atomic_writer

from . import licence_comments, shingles

Bytes = npt.NDArray[np.uint8]
Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

RECALL = 0.99  # of pairs exactly at the threshold that some band must find, at least
NEIGHBOURS = 3  # in a band's group, a document is compared with so many before it, and the first
EMPTY = np.uint32(0xFFFFFFFF)
PAIRS_AT_ONCE = 1 << 15  # whose signatures are compared at once

PAIRS = pa.schema([("first", pa.uint64()), ("second", pa.uint64())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """What counts as a near-duplicate, and how it is looked for.

    The threshold, the number of permutations and the shingles of five words are those of The
    Stack's preparation (Kocetkov et al. 2022, section 3.4: Jaccard 0.7 after MinHash with 256).

    Attributes:
        threshold: Jaccard similarity of the sets of shingles from which texts are near-duplicates.
        permutations: entries of a signature.
        shingle: words in a shingle.
    """

    threshold: float = 0.7
    permutations: int = 256
    shingle: int = 5

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: naming the field and its range.
        """
        if not 0.1 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, not within 0.1 and 1")
        if not 16 <= self.permutations <= 4096:
            raise ValueError(f"permutations is {self.permutations}, not within 16 and 4096")
        if not 1 <= self.shingle <= 32:
            raise ValueError(f"shingle is {self.shingle}, not within 1 and 32")

    @property
    def bands(self) -> tuple[int, int]:
        """(bands, entries in each): the longest bands that still find pairs at the threshold.

        A pair of similarity s agrees in some band with probability 1 - (1 - s**r)**b.

        >>> Near().bands
        (42, 6)
        """
        for rows in range(min(8, self.permutations), 0, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= RECALL:
                return bands, rows
        return self.permutations, 1


DEFAULT = Near()


# ------------------------------------------------------------------------------------------- sketch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """Signatures of some documents (D), by K entries.

    Attributes:
        signatures: (D, K) low eight bits of each entry.
        bins: (D,) how many of the K entries are the document's own, the others being copies.
        shingles: (D,) n-grams, repeated ones counted; 0 for a text without words, which is
            nobody's near-duplicate.
    """

    signatures: Bytes
    bins: npt.NDArray[np.uint16]
    shingles: npt.NDArray[np.uint32]


def _shingles(texts: pa.Array, near: Near) -> shingles.Shingles:
    """The n-grams of a column of texts, the licence comments at their heads left out."""
    return shingles.shingles(shingles.words(licence_comments.without(texts)), near.shingle)


def sketch(texts: pa.Array, near: Near) -> Sketch:
    """The signatures of a column of texts; of each text alone, whatever its neighbours."""
    found = _shingles(texts, near)
    documents, entries = len(texts), near.permutations
    counts = np.diff(found.offsets)
    bins = ((found.hashes >> np.uint64(32)) * np.uint64(entries)) >> np.uint64(32)
    bins += np.repeat(np.arange(documents, dtype=np.uint64) * np.uint64(entries), counts)
    minima = np.full(documents * entries, EMPTY, dtype=np.uint32)
    np.minimum.at(minima, bins.astype(np.intp), found.hashes.astype(np.uint32))
    table = minima.reshape(documents, entries)
    own = (table != EMPTY).sum(axis=1)
    _fill_empty(table, own)
    return Sketch(
        signatures=(table & np.uint32(0xFF)).astype(np.uint8),
        bins=own.astype(np.uint16),
        shingles=counts.astype(np.uint32),
    )


@functools.cache
def _lenders(entries: int) -> npt.NDArray[np.int64]:
    """(entries, entries) for each bin, all bins in an order of its own: whom it copies from."""
    generator = np.random.Generator(np.random.Philox(0x1E4D))
    return np.stack([generator.permutation(entries) for _ in range(entries)])


def _fill_empty(minima: npt.NDArray[np.uint32], own: Integers) -> None:
    """Give every empty bin the value of the first bin in its own order that has one."""
    lenders = _lenders(minima.shape[1])
    filled = minima != EMPTY
    document, empty = np.nonzero(~filled & (own > 0)[:, None])
    for attempt in range(minima.shape[1]):
        if not len(document):
            return
        lender = lenders[empty, attempt]
        found = filled[document, lender]
        minima[document[found], empty[found]] = minima[document[found], lender[found]]
        document, empty = document[~found], empty[~found]


def _sketch_schema(near: Near) -> pa.Schema:
    bands, rows = near.bands
    fields = [("row", pa.uint32()), ("bins", pa.uint16()), ("shingles", pa.uint32())]
    fields += [(f"band{i}", pa.binary(rows)) for i in range(bands)]
    return pa.schema(fields)


def write_sketches(path: Path, rows: Integers, sketches: Sequence[Sketch], near: Near) -> None:
    """Write a partition's sketches, a column a band, so that one band is read without the others.

    Args:
        path: the file.
        rows: (D,) each document's row in its partition, ascending.
        sketches: of these documents, in pieces.
        near: for the bands.
    """
    bands, width = near.bands
    entries = [piece.signatures[:, : bands * width] for piece in sketches]
    joined = np.concatenate([np.zeros((0, bands * width), np.uint8), *entries])
    assert len(rows) == len(joined), f"{len(rows)} rows, {len(joined)} signatures"
    by_band = np.ascontiguousarray(joined.reshape(-1, bands, width).transpose(1, 0, 2))
    arrays = [
        pa.array(rows, pa.uint32()),
        pa.array(np.concatenate([np.zeros(0, np.uint16), *(p.bins for p in sketches)])),
        pa.array(np.concatenate([np.zeros(0, np.uint32), *(p.shingles for p in sketches)])),
    ]
    for band in by_band:
        buffers = [None, pa.py_buffer(band.tobytes())]
        arrays.append(pa.Array.from_buffers(pa.binary(width), len(rows), buffers))
    schema = _sketch_schema(near)
    with atomic_writer(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def read_sketches(path: Path, columns: Sequence[str]) -> pa.RecordBatch:
    """Some columns of a file of sketches; the others are not read."""
    with pa.OSFile(str(path)) as file:  # read, not mapped: mapped pages would add up
        names = pa.ipc.open_file(file).schema.names
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
        return pa.ipc.open_file(file, options=options).get_batch(0)


def _band_bytes(batch: pa.RecordBatch, band: int, width: int) -> Bytes:
    """(D, width) one band of some documents' signatures."""
    _, values = batch.column(f"band{band}").buffers()
    if values is None:
        return np.zeros((0, width), dtype=np.uint8)
    return np.frombuffer(values, dtype=np.uint8)[: batch.num_rows * width].reshape(-1, width)


def signatures(path: Path, near: Near) -> Bytes:
    """(D, bands * width) the signatures in a file of sketches, row by row."""
    bands, width = near.bands
    batch = read_sketches(path, [f"band{band}" for band in range(bands)])
    return np.concatenate([_band_bytes(batch, band, width) for band in range(bands)], axis=1)


class SketchRow(NamedTuple):
    """One document's sketch: its own bins, its n-grams, its signature."""

    bins: int
    shingles: int
    signature: bytes


# What a shard keeps of each document, so that others can be compared with it later.
KEYS = pa.schema(
    [
        ("high", pa.uint64()),  # halves of the text's digest
        ("low", pa.uint64()),
        ("bins", pa.uint16()),  # null without near dedup, and so on
        ("shingles", pa.uint32()),
        ("signature", pa.binary()),
    ]
)


def sketch_rows(path: Path, near: Near) -> dict[int, SketchRow]:
    """The sketches in a file by their documents' rows."""
    batch = read_sketches(path, ["row", "bins", "shingles"])
    rows, bins, counts = (column.to_pylist() for column in batch.columns)
    known = zip(bins, counts, signatures(path, near), strict=True)
    return {
        row: SketchRow(bins=own, shingles=count, signature=values.tobytes())
        for row, (own, count, values) in zip(rows, known, strict=True)
    }


def key_columns(
    digests: Sequence[tuple[int, int]], sketches: Sequence[SketchRow | None]
) -> list[pa.Array]:
    """The columns of `KEYS` for some documents."""
    nothing = (None, None, None)
    rows = [
        (*digest, *(sketch or nothing)) for digest, sketch in zip(digests, sketches, strict=True)
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(KEYS)
    return [pa.array(list(values), field.type) for values, field in zip(columns, KEYS, strict=True)]


def place(partition: int | Integers, row: npt.NDArray[np.generic]) -> Unsigned:
    """A document's place, partition and row, as one number in the order of the sources."""
    high = np.asarray(partition).astype(np.uint64) << np.uint64(32)
    return high | row.astype(np.uint64)


# --------------------------------------------------------------------------------------- candidates


def candidates(path: Path, files: Sequence[Path], bands: range, near: Near) -> int:
    """Write the pairs that agree in one of some bands and look similar; how many they are.

    Within a group of documents with one band in common, each is paired with the group's first and
    with a few neighbours, the group being sorted by the next band so that the like lie together:
    linear in its size, and other bands give other groups.

    Args:
        path: the file of pairs of places, lower first, sorted.
        files: the sketches of every partition, in order.
        bands: which bands.
        near: the threshold.
    """
    count = near.bands[0]
    wanted = [*bands, (bands[-1] + 1) % count]
    places, own, keys = _load(files, wanted, near)
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for band, following in itertools.pairwise(wanted):
        among = _shared(keys[band])
        order = np.lexsort((among, keys[following][among], keys[band][among]))
        pairs.append(_neighbours(keys[band][among[order]], among[order]))
    found = np.unique(np.concatenate(pairs), axis=0)
    found = found[_promising(files, places, found, own, near)]
    columns = [pa.array(places[found[:, side]]) for side in range(2)]
    with atomic_writer(path) as file, pa.ipc.new_file(file, PAIRS) as writer:
        writer.write_batch(pa.record_batch(columns, schema=PAIRS))
    return len(found)


def _load(
    files: Sequence[Path], bands: Sequence[int], near: Near
) -> tuple[Unsigned, npt.NDArray[np.uint16], dict[int, Unsigned]]:
    """The documents with words: places, own bins, and each band as a number; (D,) all."""
    width = near.bands[1]
    assert width <= 8, f"a band of {width} bytes does not fit a number"
    places, own = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint16)]
    keys: dict[int, list[Unsigned]] = {band: [np.zeros(0, np.uint64)] for band in bands}
    for i, path in enumerate(files):
        batch = read_sketches(path, ["row", "bins", *(f"band{band}" for band in sorted(keys))])
        bins = batch.column("bins").to_numpy()
        alive = bins > 0
        own.append(bins[alive])
        places.append(place(i, batch.column("row").to_numpy()[alive]))
        for band, parts in keys.items():
            padded = np.zeros((int(alive.sum()), 8), dtype=np.uint8)
            padded[:, :width] = _band_bytes(batch, band, width)[alive]
            parts.append(padded.view("<u8").ravel())
    joined = {band: np.concatenate(parts) for band, parts in keys.items()}
    return np.concatenate(places), np.concatenate(own), joined


def _shared(keys: Unsigned) -> Integers:
    """Where the keys are that occur more than once."""
    if not len(keys):
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    more = np.zeros(len(keys), dtype=bool)
    more[1:] |= same
    more[:-1] |= same
    return np.sort(order[more])


def _neighbours(keys: Unsigned, documents: Integers) -> Integers:
    """(P, 2) pairs within runs of equal keys: with the run's first, and with those just before."""
    positions = np.arange(len(keys))
    new = np.ones(len(keys), dtype=bool)
    new[1:] = keys[1:] != keys[:-1]
    first = np.maximum.accumulate(np.where(new, positions, 0))
    pairs = [np.zeros((0, 2), np.int64)]
    for before in (first, *(positions - distance for distance in range(1, NEIGHBOURS + 1))):
        valid = (before >= first) & (before < positions)
        pairs.append(np.stack([documents[before[valid]], documents[positions[valid]]], axis=1))
    return np.sort(np.concatenate(pairs), axis=1)


def _promising(
    files: Sequence[Path],
    places: Unsigned,
    pairs: Integers,
    own: npt.NDArray[np.uint16],
    near: Near,
) -> npt.NDArray[np.bool_]:
    """Which pairs' signatures agree enough for their texts to be compared.

    The share that agrees estimates the similarity with a standard deviation of at most
    0.5 / sqrt(entries of their own); four of these below the threshold, a pair is given up.
    """
    involved, index = np.unique(pairs, return_inverse=True)
    first, second = index.reshape(-1, 2).T
    wanted = places[involved]
    found = np.zeros((len(involved), near.bands[0] * near.bands[1]), dtype=np.uint8)
    for i, path in enumerate(files):
        start, stop = np.searchsorted(wanted, place(np.array([i, i + 1]), np.zeros(2, np.uint64)))
        if start < stop:
            rows = read_sketches(path, ["row"]).column("row").to_numpy()
            chosen = np.searchsorted(rows, wanted[start:stop] & np.uint64(0xFFFFFFFF))
            found[start:stop] = signatures(path, near)[chosen]
    allowed = np.zeros(len(pairs), dtype=bool)
    for begin in range(0, len(pairs), PAIRS_AT_ONCE):
        some = slice(begin, begin + PAIRS_AT_ONCE)
        share = (found[first[some]] == found[second[some]]).mean(axis=1)
        similarity = (share - 1 / 256) / (255 / 256)
        fewest = np.minimum(own[pairs[some, 0]], own[pairs[some, 1]]).astype(np.float64)
        allowed[some] = similarity >= near.threshold - 2 / np.sqrt(fewest)
    return allowed


# ------------------------------------------------------------------------------------------ cluster


def components(pairs: Unsigned) -> tuple[Unsigned, Integers]:
    """What pairs connect: the documents in them (M,) sorted, and each one's component.

    A component is called by the index of its lowest member.

    Args:
        pairs: (P, 2) places.
    """
    places, index = np.unique(pairs, return_inverse=True)
    links = index.reshape(-1, 2)
    parent = np.arange(len(places))
    while True:
        roots = parent[links]
        low, high = roots.min(axis=1), roots.max(axis=1)
        if np.array_equal(low, high):
            return places, parent
        np.minimum.at(parent, high, low)  # hook the higher root under the lower one
        while not np.array_equal(parent, parent[parent]):  # then shorten every path
            parent = parent[parent]


def read_pairs(files: Sequence[Path]) -> Unsigned:
    """(P, 2) all pairs of some files, each once."""
    columns = []
    for path in files:
        with pa.memory_map(str(path)) as mapped:
            batch = pa.ipc.open_file(mapped).get_batch(0)
            columns.append(np.stack([column.to_numpy() for column in batch.columns], axis=1))
    if not columns:
        return np.zeros((0, 2), dtype=np.uint64)
    return np.unique(np.concatenate(columns), axis=0)


# ------------------------------------------------------------------------------------------- verify


def jaccard(first: Unsigned, second: Unsigned) -> float:
    """The Jaccard similarity of two sets, given as sorted arrays without repetition."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - common
    return common / union if union else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loser:
    """A document that a cluster's lowest stands for.

    Attributes:
        place, kept: its place, and that of the one that stays.
        jaccard: the similarity of the two; where others connect them it may be under the threshold.
    """

    place: int
    kept: int
    jaccard: float


def verify(pairs: Unsigned, grams: dict[int, Unsigned], threshold: float) -> Iterator[Loser]:
    """Who loses in the clusters that the true near-duplicates among some pairs connect.

    Args:
        pairs: (P, 2) places, sorted.
        grams: place -> the document's set of n-grams, sorted.
        threshold: Jaccard similarity.
    """
    parent = {int(document): int(document) for document in np.unique(pairs)}

    def root(document: int) -> int:
        while parent[document] != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    for first, second in pairs.tolist():
        one, other = root(first), root(second)
        # What is connected already needs no comparison.
        if one != other and jaccard(grams[first], grams[second]) >= threshold:
            parent[max(one, other)] = min(one, other)
    for document in sorted(parent):
        kept = root(document)
        if kept != document:
            similarity = jaccard(grams[document], grams[kept])
            yield Loser(place=document, kept=kept, jaccard=similarity)


def gram_sets(texts: pa.Array, near: Near) -> list[Unsigned]:
    """Each text's set of n-grams, sorted."""
    found = _shingles(texts, near)
    return [
        np.unique(found.hashes[start:stop]) for start, stop in itertools.pairwise(found.offsets)
    ]
