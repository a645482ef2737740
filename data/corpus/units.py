"""Files to read, and how they are cut into units of bounded size that can be read alone.

Nothing is opened here but what must be to cut it; `documents.read` reads a unit.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from codecria.data.compressed import Compression

from .names import Kind

BLOCK_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20  # a longer line is counted and skipped without being held
TEXT_COLUMNS = ("content", "text")  # of a record; the first that is there


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of a source, seen but not opened.

    Attributes:
        source: the source's name.
        relative: its path within the source, with `/`, always valid text.
        path: where it is.
        bytes, mtime_ns: as seen; a reader refuses a file that has changed since.
        language: what its name says; None for records and for names that say nothing.
        licence: that of the nearest licence file at or above it.
    """

    source: str
    relative: str
    path: Path
    bytes: int
    mtime_ns: int
    kind: Kind
    compression: Compression | None = None
    language: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A piece of one file that can be read by itself.

    Attributes:
        start, stop: bytes for JSON lines (both at line starts), row groups for parquet; a file
            read whole has 0 and its size.
        first: the number of its first record, from 1.
        weight: about how many bytes of input it stands for.
    """

    file: InputFile
    start: int
    stop: int
    first: int
    weight: int


def split(file: InputFile, *, unit_bytes: int) -> Iterator[Unit]:
    """A file's pieces of about `unit_bytes`, in order.

    Text files and compressed JSON lines stay whole (the latter is streamed by its reader).
    """
    if file.kind == "parquet":
        yield from _split_parquet(file, unit_bytes)
    elif file.kind == "jsonl" and file.compression is None and file.bytes > unit_bytes:
        yield from _split_lines(file, unit_bytes)
    else:
        yield Unit(file=file, start=0, stop=file.bytes, first=1, weight=file.bytes)


def _split_lines(file: InputFile, unit_bytes: int) -> Iterator[Unit]:
    """Cut at the first line start at or after each multiple of `unit_bytes`."""
    try:
        with file.path.open("rb") as stream:
            if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                yield Unit(file=file, start=0, stop=file.bytes, first=1, weight=file.bytes)
                return
            stream.seek(0)
            start = position = 0
            first = line = 1  # of the unit, and of the line that begins at `position`
            while block := stream.read(BLOCK_BYTES):
                # The unit may end only after a newline at offset `start + unit_bytes - 1` or later.
                earliest = max(0, start + unit_bytes - 1 - position)
                cut = block.find(b"\n", earliest) if earliest < len(block) else -1
                while cut >= 0:
                    stop = position + cut + 1
                    next_first = line + block.count(b"\n", 0, cut + 1)
                    yield Unit(file=file, start=start, stop=stop, first=first, weight=stop - start)
                    start, first = stop, next_first
                    earliest = start + unit_bytes - 1 - position
                    cut = block.find(b"\n", earliest) if earliest < len(block) else -1
                line += block.count(b"\n")
                position += len(block)
            if start < position:
                yield Unit(
                    file=file, start=start, stop=position, first=first, weight=position - start
                )
    except OSError:
        # Left to the reader, which counts it.
        yield Unit(file=file, start=0, stop=file.bytes, first=1, weight=file.bytes)


def _split_parquet(file: InputFile, unit_bytes: int) -> Iterator[Unit]:
    try:
        with file.path.open("rb") as stream, pq.ParquetFile(stream) as parquet:
            metadata = parquet.metadata
            has_text = any(name in parquet.schema_arrow.names for name in TEXT_COLUMNS)
    except (OSError, pa.ArrowException):
        has_text = False
    if not has_text:
        yield Unit(file=file, start=0, stop=0, first=1, weight=0)  # the reader counts it
        return
    start, first, rows, weight = 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        weight += metadata.row_group(group).total_byte_size
        if weight >= unit_bytes or group + 1 == metadata.num_row_groups:
            yield Unit(file=file, start=start, stop=group + 1, first=first, weight=weight)
            start, first, rows, weight = group + 1, first + rows, 0, 0
