"""Records from files: JSON lines, JSON and parquet, plain or compressed.

    .jsonl .ndjson      an object a line
    .json               an array of objects, objects line by line, one object, or an object whose
                        only list holds the records ({"data": [...]})
    .parquet            an object a row

Any of them but parquet also with .gz, .zst, .bz2, .xz or .lz4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codecria.data.compressed import COMPRESSIONS, read_blocks
from codecria.data.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
BLOCK_BYTES = 1 << 20
HINT = f"records come as {', '.join(SUFFIXES)}, compressed with {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no record, and why."""

    problem: str


def records(path: Path, *, single: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The records of a file in order.

    Args:
        path: of the file; its name says how it is read, a name that says nothing means JSON lines.
        single: a JSON object with one of these fields is one record, whatever lists it holds.

    Yields:
        (place in the file, record): a line ":7", an item "[7]", both counted from 1. The record is
        a `Broken` where a line is no JSON.

    Raises:
        UserError: the file cannot be read or is damaged, or a .json file is no JSON.
    """
    suffix = path.suffix.lower()
    compression = COMPRESSIONS.get(suffix)
    kind = Path(path.stem).suffix.lower() if compression else suffix
    try:
        if kind == ".parquet" and not compression:
            yield from _rows(path)
            return
        blocks = read_blocks(path, compression) if compression else _plain_blocks(path)
        if kind == ".json":
            yield from _json(path, b"".join(blocks), single)
        else:
            yield from _lines(blocks)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason}", hint=HINT) from error


def _plain_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=256):
            for record in batch.to_pylist():
                number += 1
                yield f"[{number}]", record


def _lines(blocks: Iterator[bytes]) -> Iterator[tuple[str, Any]]:
    rest = b""
    number = 0
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            number += 1
            if line.strip():
                yield f":{number}", _record(line)
    if rest.strip():
        yield f":{number + 1}", _record(rest)


def _record(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Broken(f"not JSON: {error}")


def _json(path: Path, data: bytes, single: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        # Objects line by line are a customary content of .json files too.
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _lines(iter([data]))
            return
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{line} is not valid JSON: {error}", hint="is the file whole?"
        ) from error
    if isinstance(value, dict) and value.keys().isdisjoint(single):
        lists = [item for item in value.values() if _is_list_of_objects(item)]
        if len(lists) == 1:
            value = lists[0]
    if not isinstance(value, list):
        value = [value]
    for number, record in enumerate(value, 1):
        yield f"[{number}]", record


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)
