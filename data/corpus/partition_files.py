"""The files between the passes: their names, their columns, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

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
DROPPED_FACTS = ("id", "source", "path", "language", "licence")


def keys_path(output: Path) -> Path:
    """Where a partition's keys lie, beside its documents."""
    return output.with_suffix(".keys.arrow")


def drops_path(output: Path) -> Path:
    """Where a partition's dropped candidates lie, beside its documents."""
    return output.with_suffix(".drops.arrow")


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
