"""The first pass: units of input -> documents that pass every filter, their keys, the drops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codecria.data.files import atomic_writer

from . import dedup, documents, drops
from .documents import Document, Rejected
from .filters import Chain, Filter
from .intake import load_plan
from .partition_files import (
    DOCUMENTS,
    DROPPED_FACTS,
    drops_path,
    keys_path,
)
from .reasons import Verdict
from .tally import Tally
from .units import Unit

BATCH_CHARACTERS = 4 << 20
BATCH_DOCUMENTS = 1024


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
