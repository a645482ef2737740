"""The passes over a corpus, each a pure function of one partition: files in, files out.

    read_partition     units of input -> documents that pass every filter, and their keys
    join_bucket        a bucket of keys -> duplicates that lose, and what the split needs
    train_tokenizer    a sample of the training documents -> tokenizer.model
    tokens_partition   a partition's documents -> ids and flags, scattered to shards by hash
    write_shard        what was scattered to one shard -> the shard, sorted by the same hash

`prepare.py` maps them. A new filter is one more entry in `filters`; it may also change the text
(redaction). A step that must see all documents at once (near-duplicates) works as the join does:
scatter keys, never text, and join buckets.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import dedup, documents, quality, shards, tokenizer
from .documents import Document, Rejected
from .files import atomic_writer, digest_file
from .intake import PrepareRecipe, load_plan
from .report import Tally
from .sources import Reason, Unit

BATCH_CHARACTERS = 4 << 20
BATCH_DOCUMENTS = 1024
CHUNK_BYTES = 128 << 20  # text tokenised before it is scattered; a partition is rarely larger
SPLITS = ("train", "validation")

DOCUMENTS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("language", pa.string()),
        ("licence", pa.string()),
        ("text", pa.string()),
        ("high", pa.uint64()),
        ("low", pa.uint64()),
    ]
)
METADATA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("language", pa.string()),
        ("licence", pa.string()),
        ("bytes", pa.uint32()),
    ]
)


# --------------------------------------------------------------------------------------------- read

Verdicts = tuple[pa.RecordBatch, list[Reason | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A step over a batch of documents: the batch, changed or not, and why a row is dropped."""

    step: str
    apply: Callable[[pa.RecordBatch], Verdicts]


def filters(recipe: PrepareRecipe) -> list[Filter]:
    """The recipe's filters in order; each sees only what the ones before it kept."""
    wanted, limits = recipe.languages, recipe.quality

    def by_language(batch: pa.RecordBatch) -> Verdicts:
        if wanted is None:
            return batch, [None] * batch.num_rows
        found = batch.column("language").to_pylist()
        return batch, [None if name in wanted else Reason.LANGUAGE_UNWANTED for name in found]

    def by_quality(batch: pa.RecordBatch) -> Verdicts:
        texts, found = batch.column("text").to_pylist(), batch.column("language").to_pylist()
        if limits is None:
            return batch, [None if text else Reason.EMPTY for text in texts]
        return batch, [
            quality.judge(text, language, limits)
            for text, language in zip(texts, found, strict=True)
        ]

    return [
        Filter(step="language", apply=by_language),
        Filter(step="quality", apply=by_quality),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadWork:
    """A partition to read: its plan file, the sources' names in order, the recipe."""

    plan: Path
    sources: tuple[str, ...]
    recipe: PrepareRecipe
    buckets: int


def read_partition(output: Path, work: ReadWork) -> dict[str, Any]:
    """Write the partition's surviving documents (.arrow) and keys (.keys.arrow); give its tally."""
    tally = Tally()
    steps = filters(work.recipe)
    index = {name: i for i, name in enumerate(work.sources)}
    keys = dedup.Keys()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        atomic_writer(output.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, DOCUMENTS, options=options) as writer,
    ):
        for batch in _document_batches(load_plan(work.plan), tally):
            for step in steps:
                batch = _filtered(batch, step, tally)
            texts = batch.column("text").to_pylist()
            found = [dedup.text_digest(text) for text in texts]
            names = batch.column("source").to_pylist()
            for digest, name, size in zip(found, names, _text_bytes(batch), strict=True):
                keys.add(digest, index[name], size)
            columns = batch.columns[:-2]
            for half in range(2):
                columns.append(pa.array([digest[half] for digest in found], pa.uint64()))
            writer.write_batch(pa.record_batch(columns, schema=DOCUMENTS))
    dedup.scatter(output.with_suffix(".keys.arrow"), keys, buckets=work.buckets)
    return tally.to_json()


def _document_batches(units: Sequence[Unit], tally: Tally) -> Iterator[pa.RecordBatch]:
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
                continue
            held.append(item)
            characters += len(item.text)
            if characters >= BATCH_CHARACTERS or len(held) >= BATCH_DOCUMENTS:
                yield _batch(held, tally)
                held, characters = [], 0
    if held:
        yield _batch(held, tally)


def _batch(held: Sequence[Document], tally: Tally) -> pa.RecordBatch:
    columns = [
        pa.array([document.id for document in held], pa.string()),
        pa.array([document.metadata.source for document in held], pa.string()),
        pa.array([document.metadata.path for document in held], pa.string()),
        pa.array([document.metadata.language for document in held], pa.string()),
        pa.array([document.metadata.licence for document in held], pa.string()),
        pa.array([document.text for document in held], pa.string()),
        pa.nulls(len(held), pa.uint64()),  # the digest comes last, when the text is final
        pa.nulls(len(held), pa.uint64()),
    ]
    batch = pa.record_batch(columns, schema=DOCUMENTS)
    for document, size in zip(held, _text_bytes(batch), strict=True):
        tally.read(document.metadata.language, size)
    return batch


def _text_bytes(batch: pa.RecordBatch) -> list[int]:
    """The texts' sizes in UTF-8."""
    sizes: list[int] = pc.binary_length(batch.column("text")).to_pylist()
    return sizes


def _filtered(batch: pa.RecordBatch, step: Filter, tally: Tally) -> pa.RecordBatch:
    """The rows a filter keeps, everything tallied."""
    before = _text_bytes(batch)
    batch, reasons = step.apply(batch)
    identities, after = batch.column("id").to_pylist(), _text_bytes(batch)
    for i, reason in enumerate(reasons):
        if reason is None:
            tally.passed(step.step, after[i])
        else:
            tally.dropped(step.step, reason, before[i], identities[i])
    if not any(reasons):
        return batch
    return batch.filter(pa.array([reason is None for reason in reasons], pa.bool_()))


# --------------------------------------------------------------------------------------------- join


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWork:
    """A bucket of keys to join over all partitions of the read stage."""

    read: Path
    partitions: int
    bucket: int
    remove: bool


def join_bucket(output: Path, work: JoinWork) -> dict[str, Any]:
    """Write the bucket's losers (.arrow); give its counts by source index."""
    files = [
        partition_path(work.read, i).with_suffix(".keys.arrow") for i in range(work.partitions)
    ]
    return dedup.join(output.with_suffix(".arrow"), files, work.bucket, remove=work.remove)


def partition_path(folder: Path, number: int) -> Path:
    """The name, without an ending, of one partition's files in a stage's folder."""
    return folder / f"{number:06d}"


def _survivors(
    read: Path, join: Path, buckets: int, partition: int
) -> Iterator[tuple[pa.RecordBatch, list[tuple[int, int] | None]]]:
    """A partition's batches, and for each row None (it stays) or the place of the one kept."""
    losers: dict[int, tuple[int, int]] = {}
    for bucket in range(buckets):
        path = partition_path(join, bucket).with_suffix(".arrow")
        losers.update(dedup.losers_of(path, partition))
    row = 0
    for batch in _batches(partition_path(read, partition).with_suffix(".arrow")):
        yield batch, [losers.get(i) for i in range(row, row + batch.num_rows)]
        row += batch.num_rows


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def _id_at(read: Path, place: tuple[int, int]) -> str:
    """The id of the document at (partition, row)."""
    partition, row = place
    for batch in _batches(partition_path(read, partition).with_suffix(".arrow")):
        if row < batch.num_rows:
            return str(batch.column("id")[row])
        row -= batch.num_rows
    raise AssertionError(f"no row {place[1]} in partition {partition}")


# ---------------------------------------------------------------------------------------- tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWork:
    """What a tokenizer is trained on: training documents whose hash lies under a threshold."""

    read: Path
    join: Path
    partitions: int
    buckets: int
    split: dedup.Split
    sample_below: int
    vocab_size: int
    threads: int


def train_tokenizer(output: Path, work: TrainWork) -> str:
    """Train `tokenizer.model` beside the marker; its digest."""

    def sample() -> Iterator[str]:
        for partition in range(work.partitions):
            for batch, kept in _survivors(work.read, work.join, work.buckets, partition):
                highs, lows = batch.column("high").to_pylist(), batch.column("low").to_pylist()
                for i, beaten_by in enumerate(kept):
                    if (
                        beaten_by is None
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
class TokensWork:
    """A partition of documents to tokenise and scatter.

    Attributes:
        shards: how many for training and for validation.
    """

    read: Path
    join: Path
    partition: int
    buckets: int
    tokenizer: Path
    split: dedup.Split
    shards: tuple[int, int]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A tokenised document on its way to a shard."""

    shard: int  # training shards first, then those of validation
    key: int
    metadata: dict[str, Any]
    flags: int
    ids: Any  # framed by BOS and EOS


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


def tokens_partition(output: Path, work: TokensWork) -> dict[str, Any]:
    """Write the partition's ids, batch b of each chunk holding shard b; give tally and counts."""
    model = _loaded(work.tokenizer, digest_file(work.tokenizer))
    tally = Tally()
    counts: dict[str, Any] = {"kept": {}, "licences": {}, "lossy": [0, 0]}
    schema = _tokens_schema(model.vocab_size)
    rows: list[_Row] = []
    held = 0
    with (
        atomic_writer(output.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for batch, beaten_by in _survivors(work.read, work.join, work.buckets, work.partition):
            for record, place in zip(batch.to_pylist(), beaten_by, strict=True):
                size = len(record["text"].encode())
                if place is None:
                    tally.passed("unique", size)
                    rows.append(_tokenise(record, size, model, work, counts))
                    held += size
                else:
                    example = record["id"]
                    if tally.wants_example("unique", Reason.EXACT_DUPLICATE):
                        example += f" = {_id_at(work.read, place)}"
                    tally.dropped("unique", Reason.EXACT_DUPLICATE, size, example)
            if held >= CHUNK_BYTES:
                _write_chunk(writer, rows, schema, sum(work.shards))
                rows, held = [], 0
        if rows:
            _write_chunk(writer, rows, schema, sum(work.shards))
    return {"tally": tally.to_json(), **counts}


def _tokens_schema(vocab_size: int) -> pa.Schema:
    dtype = pa.from_numpy_dtype(shards.token_dtype(vocab_size))
    fields = [("key", pa.uint64()), ("flags", pa.uint8()), ("ids", pa.large_list(dtype))]
    return pa.schema([*METADATA, *(pa.field(*field) for field in fields)])


def _tokenise(
    record: dict[str, Any],
    size: int,
    model: tokenizer.Tokenizer,
    work: TokensWork,
    counts: dict[str, Any],
) -> _Row:
    """One document's row; the counts grow by it."""
    ids = model.encode_array(record["text"], bos=True, eos=True)
    lossy = model.decode(ids[1:-1].tolist()) != record["text"]
    validates = work.split.validates((record["high"], record["low"]))
    key = shuffle_key(work.seed, record["id"])
    train, validation = work.shards
    shard = train + (key * validation >> 64) if validates else key * train >> 64

    kept = counts["kept"].setdefault(SPLITS[validates], {}).setdefault(record["source"], {})
    more = [1, size, len(ids)]
    for table, name in ((kept, record["language"]), (counts["licences"], record["licence"] or "")):
        table[name] = [a + b for a, b in zip(table.get(name, [0, 0, 0]), more, strict=True)]
    if lossy:
        counts["lossy"] = [counts["lossy"][0] + 1, counts["lossy"][1] + size]
    metadata = {name: record[name] for name in METADATA.names if name != "bytes"} | {"bytes": size}
    return _Row(
        shard=shard,
        key=key,
        metadata=metadata,
        flags=shards.ROUNDTRIP_LOSSY if lossy else 0,
        ids=ids,
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
        values = np.concatenate([np.zeros(0, dtype), *(row.ids.astype(dtype) for row in chosen)])
        metadata = pa.RecordBatch.from_pylist([row.metadata for row in chosen], schema=METADATA)
        columns = [
            *metadata.columns,
            pa.array([row.key for row in chosen], pa.uint64()),
            pa.array([row.flags for row in chosen], pa.uint8()),
            pa.LargeListArray.from_arrays(offsets, values),
        ]
        writer.write_batch(pa.record_batch(columns, schema=schema))


# ------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """A shuffle bucket to sort into a shard."""

    tokens: Path
    partitions: int
    shards: tuple[int, int]
    number: int  # training shards first, then those of validation
    vocab_size: int


def write_shard(output: Path, work: ShardWork) -> dict[str, Any] | None:
    """Write the bucket's shard beside the marker; its manifest entry, or None if it is empty.

    Ids are copied a document at a time to where the order puts them: one shard's worth of memory.
    """
    facts = [batch.drop_columns(["ids"]) for batch in _scattered(work)]
    table = pa.Table.from_batches(facts) if facts else None
    if table is None or not table.num_rows:
        return None
    lengths = np.concatenate([np.diff(batch.column("ids").offsets) for batch in _scattered(work)])
    by_key = [("key", "ascending"), ("id", "ascending")]
    order = pc.sort_indices(table, sort_keys=by_key).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    start = np.empty(len(order), dtype=np.int64)
    start[order] = offsets[:-1]

    tokens = np.empty(offsets[-1], dtype=shards.token_dtype(work.vocab_size))
    row = 0
    for batch in _scattered(work):
        ids = batch.column("ids")
        values, borders = ids.values.to_numpy(), ids.offsets.to_numpy()
        for first, last in itertools.pairwise(borders):
            tokens[start[row] : start[row] + last - first] = values[first:last]
            row += 1

    train = work.shards[0]
    split, number = (0, work.number) if work.number < train else (1, work.number - train)
    table = table.take(pa.array(order))
    entry = shards.write_shard(
        output.parent,
        f"{SPLITS[split]}-{number:05d}",
        tokens=tokens,
        offsets=offsets,
        flags=table.column("flags").to_numpy(),
        metadata=table.select(METADATA.names),
        vocab_size=work.vocab_size,
    )
    return asdict(entry)


def _scattered(work: ShardWork) -> Iterator[pa.RecordBatch]:
    """What every partition scattered to this shard, read one batch at a time."""
    count = sum(work.shards)
    for i in range(work.partitions):
        # Read, not mapped: mapped pages would stay and add up to the whole shard once more.
        with pa.OSFile(str(partition_path(work.tokens, i).with_suffix(".arrow"))) as file:
            reader = pa.ipc.open_file(file)
            for number in range(work.number, reader.num_record_batches, count):
                yield reader.get_batch(number)
