"""The passes over a corpus, each a pure function of one partition: files in, files out.

    read_partition       units of input -> documents that pass every filter, and their keys
    join_bucket          a bucket of keys -> exact duplicates that lose
    (near_passes.py)     sketches, candidates, verification -> near-duplicates that lose
    summarise_partition  what is left of a partition, for the split and the layout of the shards
    train_tokenizer      a sample of the training documents -> tokenizer.model
    tokens_partition     a partition's documents -> ids and flags, scattered to shards by hash
    write_shard          what was scattered to one shard -> the shard, sorted by the same hash

`prepare.py` maps them. The filters are in `filters.py`. A step that must see all documents at once
works as the join does: scatter keys, never text, and join buckets.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from codecria.data.files import atomic_writer, digest_file
from codecria.data.rows import shards
from codecria.data.tokenizer import tokenizer

from . import dedup, documents, drops, near
from .documents import Document, Rejected
from .filters import Chain, Filter
from .intake import group_of, load_plan
from .reasons import Reason, Verdict
from .tally import Tally
from .units import Unit

BATCH_CHARACTERS = 4 << 20
BATCH_DOCUMENTS = 1024
CHUNK_BYTES = 32 << 20  # text tokenised before it is scattered
SPLITS = ("train", "validation")

METADATA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("language", pa.string()),
        ("licence", pa.string()),
        ("redactions", pa.string()),  # "email 2, aws-key 1"; null for none
        ("bytes", pa.uint32()),
    ]
)
DOCUMENTS = pa.schema(
    [*METADATA, ("text", pa.string()), ("high", pa.uint64()), ("low", pa.uint64())]
)


# --------------------------------------------------------------------------------------------- read


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadWork:
    """A partition to read: its plan file, and the filters of its documents."""

    plan: Path
    filters: Chain
    buckets: int


def read_partition(output: Path, work: ReadWork) -> dict[str, Any]:
    """Write the partition's documents (.arrow), keys and drops; give its tally."""
    tally = Tally()
    steps = work.filters.make()
    halves: list[tuple[int, int]] = []
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        drops.writing(drops_path(output)) as dropped,
        atomic_writer(output.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, DOCUMENTS, options=options) as writer,
    ):
        for batch in _document_batches(load_plan(work.plan), tally, dropped):
            for step in steps:
                batch = _filtered(batch, step, tally, dropped)
            found = [dedup.text_digest(text) for text in batch.column("text").to_pylist()]
            halves += found
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns["bytes"] = pc.binary_length(batch.column("text")).cast(pa.uint32())
            for half, name in enumerate(("high", "low")):
                columns[name] = pa.array([digest[half] for digest in found], pa.uint64())
            arrays = [columns[name] for name in DOCUMENTS.names]
            writer.write_batch(pa.record_batch(arrays, schema=DOCUMENTS))
    digests = np.array(halves, dtype=np.uint64).reshape(-1, 2)
    dedup.scatter(keys_path(output), digests[:, 0], digests[:, 1], buckets=work.buckets)
    return tally.to_json()


def keys_path(output: Path) -> Path:
    """Where a partition's keys lie, beside its documents."""
    return output.with_suffix(".keys.arrow")


def drops_path(output: Path) -> Path:
    """Where a partition's dropped candidates lie, beside its documents."""
    return output.with_suffix(".drops.arrow")


def _document_batches(
    units: Sequence[Unit], tally: Tally, dropped: drops.DropWriter
) -> Iterator[pa.RecordBatch]:
    """The units' documents in batches of bounded size; what could not be read is tallied."""
    held: list[Document] = []
    characters = 0
    for unit in units:
        for item in documents.read(unit):
            source = item.source if isinstance(item, Rejected) else item.metadata.source
            tally.found(source, item.input_bytes)
            tally.passed("named", item.input_bytes)
            if isinstance(item, Rejected):
                example = f"{item.id}: {item.detail}" if item.detail else item.id
                tally.dropped("read", item.reason, item.input_bytes, example)
                dropped.add(
                    identity=item.id,
                    source=source,
                    path=item.id.removeprefix(f"{source}/"),
                    step="read",
                    verdict=Verdict(item.reason, item.detail),
                    size=item.input_bytes,
                )
                continue
            held.append(item)
            characters += len(item.text)
            if characters >= BATCH_CHARACTERS or len(held) >= BATCH_DOCUMENTS:
                yield _batch(held, tally)
                held, characters = [], 0
    if held:
        yield _batch(held, tally)


def _batch(held: Sequence[Document], tally: Tally) -> pa.RecordBatch:
    schema = pa.schema([field for field in DOCUMENTS if pa.types.is_string(field.type)])
    rows = {
        "id": [document.id for document in held],
        "source": [document.metadata.source for document in held],
        "path": [document.metadata.path for document in held],
        "language": [document.metadata.language for document in held],
        "licence": [document.metadata.licence for document in held],
        "redactions": [None] * len(held),
        "text": [document.text for document in held],
    }
    batch = pa.record_batch([pa.array(rows[name], pa.string()) for name in schema.names], schema)
    for document, size in zip(held, _text_bytes(batch), strict=True):
        tally.read(document.metadata.language, document.metadata.licence, size)
    return batch


def _text_bytes(batch: pa.RecordBatch) -> list[int]:
    """The texts' sizes in UTF-8."""
    sizes: list[int] = pc.binary_length(batch.column("text")).to_pylist()
    return sizes


def _filtered(
    batch: pa.RecordBatch, step: Filter, tally: Tally, dropped: drops.DropWriter
) -> pa.RecordBatch:
    """The rows a filter keeps, everything tallied."""
    before = _text_bytes(batch)
    batch, verdicts = step.decide(batch, tally)
    after, named = _text_bytes(batch), batch.column("language").to_pylist()
    for i, verdict in enumerate(verdicts):
        if verdict is None:
            tally.passed(step.step, after[i], named[i])
            continue
        known = {name: batch.column(name)[i].as_py() for name in DROPPED_FACTS}
        example = f"{known['id']}: {verdict.detail}" if verdict.detail else known["id"]
        tally.dropped(step.step, verdict.reason, before[i], example)
        identity = known.pop("id")
        dropped.add(identity=identity, step=step.step, verdict=verdict, size=before[i], **known)
    if not any(verdicts):
        return batch
    return batch.filter(pa.array([verdict is None for verdict in verdicts], pa.bool_()))


DROPPED_FACTS = ("id", "source", "path", "language", "licence")


# ---------------------------------------------------------------------------- what stands and falls


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


def partition_path(folder: Path, number: int) -> Path:
    """The name, without an ending, of one partition's files in a stage's folder."""
    return folder / f"{number:06d}"


def read_batches(
    path: Path, columns: Sequence[str] | None = None, *, start: int = 0, step: int = 1
) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file one at a time, or some of them, or some of their columns."""
    with pa.OSFile(str(path)) as file:  # read, not mapped: mapped pages would stay and add up
        reader = pa.ipc.open_file(file)
        if columns is not None:
            fields = [reader.schema.get_field_index(name) for name in columns]
            options = pa.ipc.IpcReadOptions(included_fields=fields)
            reader = pa.ipc.open_file(file, options=options)
        for i in range(start, reader.num_record_batches, step):
            yield reader.get_batch(i)


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


# ---------------------------------------------------------------------------------------- tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWork:
    """What a tokenizer is trained on: training documents whose hash lies under a threshold."""

    corpus: Corpus
    split: dedup.Split
    sample_below: int
    vocab_size: int
    threads: int


def train_tokenizer(output: Path, work: TrainWork) -> str:
    """Train `tokenizer.model` beside the marker; its digest."""

    def sample() -> Iterator[str]:
        for partition in range(work.corpus.old, work.corpus.partitions):
            for batch, fates in work.corpus.survivors(partition, ["text", "high", "low"]):
                highs, lows = batch.column("high").to_pylist(), batch.column("low").to_pylist()
                for i, fate in enumerate(fates):
                    if (
                        fate is None
                        and highs[i] < work.sample_below
                        and not work.split.validates((highs[i], lows[i]))
                    ):
                        yield str(batch.column("text")[i])

    model = tokenizer.train(
        sample(),
        vocab_size=work.vocab_size,
        out=output.parent / tokenizer.MODEL_NAME,
        threads=work.threads,
    )
    return model.digest


# ------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many shards each group has.

    Attributes:
        groups: (name, training shards, validation shards) of each; the name is "" where there is
            but one.
        first: (training, validation) shards of each group that are there already.
    """

    groups: tuple[tuple[str, int, int], ...]
    first: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """All shards."""
        return sum(train + validation for _, train, validation in self.groups)

    def number(self, group: str, key: int, *, validates: bool) -> int:
        """The shard of a document with this shuffle key."""
        number = 0
        for name, train, validation in self.groups:
            if name == group:
                return number + (
                    train + (key * validation >> 64) if validates else key * train >> 64
                )
            number += train + validation
        raise AssertionError(f"no group {group!r} in {self.groups}")

    def name(self, number: int) -> tuple[str, str, str]:
        """The group, the split, and the stem of the files of a shard."""
        for (group, *counts), first in zip(self.groups, self.first, strict=True):
            for split, count, taken in zip(SPLITS, counts, first, strict=True):
                if number < count:
                    return group, split, f"{split}-{taken + number:05d}"
                number -= count
        raise AssertionError(f"no shard of that number in {self.groups}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensWork:
    """A partition of documents to tokenise and scatter.

    Attributes:
        sketches: the partition's, kept for what may be appended later; None without near dedup.
    """

    corpus: Corpus
    partition: int
    tokenizer: Path
    split: dedup.Split
    layout: Layout
    group_by: str
    seed: int
    sketches: Path | None
    near: near.Near


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, digest: str) -> tokenizer.Tokenizer:
    """The tokenizer, kept by the process from partition to partition since its cache warms up."""
    model = tokenizer.Tokenizer.load(path)
    assert model.digest == digest, f"{path} changed to {model.digest}"
    return model


def shuffle_key(seed: int, identity: str) -> int:
    """Where a document falls in the global order: 64 bits of blake2b over seed and id."""
    data = f"{seed}\0{identity}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A tokenised document on its way to a shard."""

    shard: int
    key: int
    metadata: dict[str, Any]
    digest: tuple[int, int]
    sketch: near.SketchRow | None
    flags: int
    ids: npt.NDArray[Any]  # framed by BOS and EOS


Kept = dict[str, list[int]]  # [group, split, source, language, licence] -> documents, bytes, tokens


def tokens_partition(output: Path, work: TokensWork) -> dict[str, Any]:
    """Write the partition's ids, batch b of each chunk holding shard b, and what it drops.

    Returns:
        {"tally", "kept": counts by the key of `Kept`, "lossy": [documents, bytes]}.
    """
    model = _loaded(work.tokenizer, digest_file(work.tokenizer))
    tally = Tally()
    kept: Kept = {}
    lossy = [0, 0]
    schema = _tokens_schema(model.vocab_size)
    dtype = np.dtype(shards.token_dtype(model.vocab_size))
    sketches = near.sketch_rows(work.sketches, work.near) if work.sketches is not None else {}
    rows: list[_Row] = []
    held = seen = 0
    with (
        drops.writing(drops_path(output)) as dropped,
        atomic_writer(output.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for batch, fates in work.corpus.survivors(work.partition):
            for record, fate in zip(batch.to_pylist(), fates, strict=True):
                seen += 1
                if not _stays(record, fate, tally, dropped):
                    continue
                ids = model.encode_array(record["text"], bos=True, eos=True)
                survives = model.survives(record["text"], ids[1:-1])
                if not survives:
                    lossy = [lossy[0] + 1, lossy[1] + record["bytes"]]
                row = _row(record, ids.astype(dtype), survives, work, sketches.get(seen - 1))
                rows.append(row)
                counts = [1, record["bytes"], len(ids)]
                key = _kept_key(record, work)
                kept[key] = [a + b for a, b in zip(kept.get(key, [0] * 3), counts, strict=True)]
                held += record["bytes"]
                if held >= CHUNK_BYTES:
                    _write_chunk(writer, rows, schema, work.layout.count)
                    rows, held = [], 0
        if rows:
            _write_chunk(writer, rows, schema, work.layout.count)
    return {"tally": tally.to_json(), "kept": kept, "lossy": lossy}


def _stays(
    record: dict[str, Any],
    fate: tuple[Reason, dedup.Winner] | None,
    tally: Tally,
    dropped: drops.DropWriter,
) -> bool:
    """Whether no other document stands for this one; tallied either way."""
    size, language = record["bytes"], record["language"]
    if fate is None:
        tally.passed("unique", size, language)
        tally.passed("distinct", size, language)
        return True
    reason, winner = fate
    step, detail = "unique", f"= {winner.id}"
    if reason is Reason.NEAR_DUPLICATE:
        tally.passed("unique", size, language)
        step, detail = "distinct", f"~ {winner.id} (Jaccard {winner.jaccard:.2f})"
    tally.dropped(step, reason, size, f"{record['id']} {detail}")
    facts = {name: record[name] for name in DROPPED_FACTS[1:]}
    verdict = Verdict(reason, detail)
    dropped.add(identity=record["id"], step=step, verdict=verdict, size=size, **facts)
    return False


def _kept_key(record: dict[str, Any], work: TokensWork) -> str:
    group = group_of(record["source"], record["language"], work.group_by)
    split = SPLITS[work.split.validates((record["high"], record["low"]))]
    facts = [group, split, record["source"], record["language"], record["licence"]]
    return json.dumps(facts, ensure_ascii=False)


def _row(
    record: dict[str, Any],
    ids: npt.NDArray[Any],
    survives: bool,
    work: TokensWork,
    sketch: near.SketchRow | None,
) -> _Row:
    digest = (record["high"], record["low"])
    key = shuffle_key(work.seed, record["id"])
    group = group_of(record["source"], record["language"], work.group_by)
    return _Row(
        shard=work.layout.number(group, key, validates=work.split.validates(digest)),
        key=key,
        metadata={name: record[name] for name in METADATA.names},
        digest=digest,
        sketch=sketch,
        flags=0 if survives else shards.ROUNDTRIP_LOSSY,
        ids=ids,
    )


def _tokens_schema(vocab_size: int) -> pa.Schema:
    dtype = pa.from_numpy_dtype(shards.token_dtype(vocab_size))
    return pa.schema(
        [
            *METADATA,
            *near.KEYS,
            ("tokens", pa.uint64()),
            ("key", pa.uint64()),
            ("flags", pa.uint8()),
            ("ids", pa.large_list(dtype)),
        ]
    )


def _write_chunk(
    writer: pa.RecordBatchWriter, rows: Sequence[_Row], schema: pa.Schema, shard_count: int
) -> None:
    """One record batch a shard, empty ones too, so that a shard's batches are found by number."""
    by_shard: list[list[_Row]] = [[] for _ in range(shard_count)]
    for row in rows:
        by_shard[row.shard].append(row)
    dtype = schema.field("ids").type.value_type.to_pandas_dtype()
    for chosen in by_shard:
        offsets = np.cumsum([0, *(len(row.ids) for row in chosen)])
        values = np.concatenate([np.zeros(0, dtype), *(row.ids for row in chosen)])
        metadata = pa.RecordBatch.from_pylist([row.metadata for row in chosen], schema=METADATA)
        keys = near.key_columns([row.digest for row in chosen], [row.sketch for row in chosen])
        columns = [
            *metadata.columns,
            *keys,
            pa.array([len(row.ids) for row in chosen], pa.uint64()),
            pa.array([row.key for row in chosen], pa.uint64()),
            pa.array([row.flags for row in chosen], pa.uint8()),
            pa.LargeListArray.from_arrays(offsets, values),
        ]
        writer.write_batch(pa.record_batch(columns, schema=schema))


# ------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """A shuffle bucket to sort into a shard.

    Attributes:
        keyed: keep the documents' keys beside it, so that more can be appended.
    """

    tokens: Path
    old: int
    partitions: int
    layout: Layout
    number: int
    vocab_size: int
    keyed: bool


def write_shard(output: Path, work: ShardWork) -> dict[str, Any] | None:
    """Write the bucket's shard below the marker; its manifest entry, or None if it is empty.

    Ids go from what was scattered straight to their place in the file, a document at a time, so
    that memory holds one batch and not the shard.
    """
    group, _, name = work.layout.name(work.number)
    facts = [*_tokens_schema(work.vocab_size).names]
    facts.remove("ids")
    batches = list(_scattered(work, facts))
    table = pa.Table.from_batches(batches) if batches else None
    if table is None or not table.num_rows:
        return None
    lengths = table["tokens"].to_numpy().astype(np.int64)
    by_key = [("key", "ascending"), ("id", "ascending")]
    order = pc.sort_indices(table, sort_keys=by_key).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    start = np.empty(len(order), dtype=np.int64)
    start[order] = offsets[:-1]
    dtype = np.dtype(shards.token_dtype(work.vocab_size)).newbyteorder("<")

    folder = output.parent / group
    folder.mkdir(exist_ok=True)
    with atomic_writer(folder / f"{name}.tokens") as file:
        file.truncate(int(offsets[-1]) * dtype.itemsize)
        row = 0
        for batch in _scattered(work, ["ids"]):
            ids = batch.column("ids")
            values = ids.values.to_numpy().astype(dtype, copy=False)
            for first, last in itertools.pairwise(ids.offsets.to_pylist()):
                os.pwrite(file.fileno(), values[first:last].data, int(start[row]) * dtype.itemsize)
                row += 1
    table = table.take(pa.array(order))
    entry = shards.finish_shard(
        folder,
        name,
        offsets=offsets,
        flags=table.column("flags").to_numpy(),
        metadata=table.select(METADATA.names),
        keys=table.select(near.KEYS.names) if work.keyed else None,
    )
    return asdict(entry)


def _scattered(work: ShardWork, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """What every partition scattered to this shard, some columns, one batch at a time."""
    for i in range(work.old, work.partitions):
        path = partition_path(work.tokens, i).with_suffix(".arrow")
        yield from read_batches(path, columns, start=work.number, step=work.layout.count)
