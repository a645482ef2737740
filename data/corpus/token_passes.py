"""The passes from documents to shards.

train_tokenizer      a sample of the training documents -> tokenizer.model
tokens_partition     a partition's documents -> ids and flags, scattered to shards by hash
write_shard          what was scattered to one shard -> the shard, sorted by the same hash
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
from codecria.data.tokenizer import training
from codecria.data.tokenizer.model_file import MODEL_NAME
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import dedup, drops, near
from .intake import group_of
from .partition_files import (
    DROPPED_FACTS,
    METADATA,
    SPLITS,
    drops_path,
    partition_path,
    read_batches,
)
from .reasons import Reason, Verdict
from .survivors import Corpus
from .tally import Tally

CHUNK_BYTES = 32 << 20  # text tokenised before it is scattered


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

    model = training.train(
        sample(),
        vocab_size=work.vocab_size,
        out=output.parent / MODEL_NAME,
        threads=work.threads,
    )
    return model.digest


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
def _loaded(path: Path, digest: str) -> Tokenizer:
    """The tokenizer, kept by the process from partition to partition since its cache warms up."""
    model = Tokenizer.load(path)
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
