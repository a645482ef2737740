"""Every candidate that was not kept, and why: `dropped.parquet` in a shard set.

    id, source, path, language, licence     what is known of it; a folder's path ends in /
    step, reason                            where and why it was dropped (`report.py`, `sources.py`)
    detail                                  what was measured, or the document that stands for it
    bytes                                   its size at that step

Removed duplicates name the document kept, near ones with the Jaccard similarity of the two. No
text of a document is ever in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codecria.data.files import atomic_writer

from .reasons import Verdict

NAME = "dropped.parquet"
ROWS = 1 << 14  # written at once

DROPS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("language", pa.string()),
        ("licence", pa.string()),
        ("step", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("bytes", pa.uint64()),
    ]
)


class DropWriter:
    """Collects what one partition drops, and writes it piece by piece."""

    def __init__(self, writer: pa.RecordBatchWriter) -> None:
        self._writer = writer
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        *,
        identity: str,
        source: str,
        path: str,
        step: str,
        verdict: Verdict | str,
        size: int,
        language: str | None = None,
        licence: str | None = None,
    ) -> None:
        """One candidate is dropped; see the module for the fields."""
        reason, detail = verdict if isinstance(verdict, Verdict) else (verdict, "")
        self._rows.append(
            {
                "id": identity,
                "source": source,
                "path": path,
                "language": language,
                "licence": licence,
                "step": step,
                "reason": str(reason),
                "detail": detail or None,
                "bytes": size,
            }
        )
        if len(self._rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=DROPS))
            self._rows = []


@contextlib.contextmanager
def writing(path: Path) -> Iterator[DropWriter]:
    """A writer of the drops file at `path`, which appears when all is well."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        atomic_writer(path) as file,
        pa.ipc.new_file(file, DROPS, options=options) as arrow,
    ):
        writer = DropWriter(arrow)
        yield writer
        writer.flush()


def publish(target: Path, files: Sequence[Path], older: Path | None = None) -> None:
    """Write `dropped.parquet` from the partitions' files, after the rows of an older one."""
    held: list[pa.RecordBatch] = []
    with atomic_writer(target) as file, pq.ParquetWriter(file, DROPS, compression="zstd") as out:

        def write(batches: Iterable[pa.RecordBatch], *, at_least: int) -> None:
            for batch in batches:
                held.append(batch)
                if sum(piece.num_rows for piece in held) >= at_least:
                    out.write_table(pa.Table.from_batches(held, schema=DROPS))
                    held.clear()

        if older is not None:
            with pq.ParquetFile(older) as before:
                write(before.iter_batches(ROWS), at_least=ROWS)
        for path in files:
            with pa.OSFile(str(path)) as arrow:
                reader = pa.ipc.open_file(arrow)
                write(map(reader.get_batch, range(reader.num_record_batches)), at_least=ROWS)
        if held:
            out.write_table(pa.Table.from_batches(held, schema=DROPS))
