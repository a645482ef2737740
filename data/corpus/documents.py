"""From pieces of input to documents: text files, notebooks, JSON lines and parquet.

A document's id is `source/relative/path`, and for a record also `:number`, its line or row counted
from 1. It does not depend on the content, on the other sources, or on how files were split.
A candidate that yields no document is never lost silently: it comes out as a `Rejected`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codecria.data.compressed import read_blocks
from codecria.data.errors import UserError
from codecria.data.files import LFS_POINTER, LFS_POINTER_BYTES, read_regular

from . import languages, licence_texts, licences, units
from .reasons import Reason
from .units import TEXT_COLUMNS, InputFile, Unit

PARQUET_ROWS = 256  # rows decoded at once

# The columns met in code data sets: The Stack, starcoderdata, Dolma, and the plain forms.
LANGUAGE_COLUMNS = ("lang", "language", "programming_language", "ext", "extension")
PATH_COLUMNS = ("max_stars_repo_path", "path", "file_path", "filename")
REPOSITORY_COLUMNS = ("max_stars_repo_name", "repo_name", "repo")
LICENCE_COLUMNS = ("max_stars_repo_licenses", "detected_licenses", "licenses", "license")
RECORD_COLUMNS = (
    *TEXT_COLUMNS,
    *LANGUAGE_COLUMNS,
    *PATH_COLUMNS,
    *REPOSITORY_COLUMNS,
    *LICENCE_COLUMNS,
    "metadata",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What is known of a document besides its text."""

    source: str
    path: str
    language: str
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with its identity; `input_bytes` is what it took in the source."""

    id: str
    text: str
    metadata: Metadata
    input_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A candidate that yields no document; `detail` says more where there is more to say."""

    id: str
    source: str
    reason: Reason
    input_bytes: int
    detail: str = ""


def read(unit: Unit) -> Iterator[Document | Rejected]:
    """The unit's candidates, each once, in order.

    Raises:
        UserError: the file changed after it was scanned.
    """
    file = unit.file
    whole = f"{file.source}/{file.relative}"
    try:
        status = file.path.stat()
    except OSError as error:
        yield _rejected(file, whole, Reason.UNREADABLE, file.bytes, error.strerror or "")
        return
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.mtime_ns):
        raise UserError(f"{file.path} changed while it was being read", hint="run it again")
    if file.bytes <= LFS_POINTER_BYTES and is_pointer(
        read_regular(file.path, LFS_POINTER_BYTES) or b""
    ):
        yield _rejected(file, whole, Reason.LFS_POINTER, file.bytes)
    elif file.kind == "jsonl":
        yield from _read_lines(unit)
    elif file.kind == "parquet":
        yield from _read_parquet(unit)
    else:
        try:
            data = file.path.read_bytes()
        except OSError as error:
            yield _rejected(file, whole, Reason.UNREADABLE, file.bytes, error.strerror or "")
            return
        yield _read_notebook(file, data) if file.kind == "notebook" else _read_text(file, data)


def _rejected(
    file: InputFile, identity: str, reason: Reason, input_bytes: int, detail: str = ""
) -> Rejected:
    return Rejected(
        id=identity, source=file.source, reason=reason, input_bytes=input_bytes, detail=detail
    )


def is_pointer(data: bytes) -> bool:
    """Whether a file holds what Git LFS puts in place of a large file that was not fetched."""
    return len(data) <= LFS_POINTER_BYTES and LFS_POINTER.match(data) is not None


def decode(data: bytes) -> str | Reason:
    """Text from UTF-8, or from UTF-16 by its byte order mark; else why not. The mark is dropped."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        elif b"\0" in data:
            return Reason.BINARY
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Reason.UNDECODABLE
    return Reason.BINARY if "\0" in text else text


def _read_text(file: InputFile, data: bytes) -> Document | Rejected:
    identity = f"{file.source}/{file.relative}"
    text = decode(data)
    if isinstance(text, Reason):
        return _rejected(file, identity, text, len(data))
    language = languages.by_content(file.relative, text)
    if language is None:
        return _rejected(file, identity, Reason.LANGUAGE_UNKNOWN, len(data))
    licence = licence_texts.of_header(text) or file.licence
    metadata = Metadata(source=file.source, path=file.relative, language=language, licence=licence)
    return Document(id=identity, text=text, metadata=metadata, input_bytes=len(data))


def _read_notebook(file: InputFile, data: bytes) -> Document | Rejected:
    """A notebook's code cells, with an empty line between them, in its kernel's language."""
    identity = f"{file.source}/{file.relative}"
    text = decode(data)
    if isinstance(text, Reason):
        return _rejected(file, identity, text, len(data))
    try:
        notebook = json.loads(text)
        cells = notebook.get("cells")
        if cells is None:  # the format before version 4
            cells = [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
        codes = [
            "".join(cell["source"] if "source" in cell else cell["input"])
            for cell in cells
            if cell["cell_type"] == "code"
        ]
        known = notebook.get("metadata", {})
        kernel = (
            known.get("kernelspec", {}).get("language")
            or known.get("language_info", {}).get("name")
            or "python"
        )
        code = "\n\n".join(code.rstrip("\n") for code in codes if code.strip())
        code.encode()  # escapes can spell half a surrogate pair
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        detail = f"not a notebook ({type(error).__name__})"
        return _rejected(file, identity, Reason.BAD_RECORD, len(data), detail)
    if "\0" in code:
        return _rejected(file, identity, Reason.BINARY, len(data))
    language = languages.by_name(str(kernel)) or languages.UNKNOWN
    licence = licence_texts.of_header(code) or file.licence
    metadata = Metadata(source=file.source, path=file.relative, language=language, licence=licence)
    text = code + "\n" if code else ""
    return Document(id=identity, text=text, metadata=metadata, input_bytes=len(data))


def _blocks(unit: Unit) -> Iterator[bytes]:
    """The unit's bytes, decompressed, and as UTF-8 where the file begins with a UTF-16 mark."""
    if unit.file.compression is not None:
        yield from read_blocks(unit.file.path, unit.file.compression)
        return
    with unit.file.path.open("rb") as raw:
        raw.seek(unit.start)
        left = unit.stop - unit.start
        decoder = None
        first = unit.start == 0
        while left and (block := raw.read(min(units.BLOCK_BYTES, left))):
            left -= len(block)
            if first and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                decoder = codecs.getincrementaldecoder("utf-16")("replace")
            first = False
            yield block if decoder is None else decoder.decode(block).encode()


def _lines(blocks: Iterator[bytes]) -> Iterator[tuple[bytes | None, int]]:
    """(line without its newline, its bytes); None for a line over `MAX_RECORD_BYTES`."""
    parts: list[bytes] = []
    size = 0

    def line() -> tuple[bytes | None, int]:
        return (b"".join(parts) if size <= units.MAX_RECORD_BYTES else None), size

    for block in blocks:
        *whole, rest = block.split(b"\n")
        for piece in whole:
            if size:
                parts.append(piece)
                size += len(piece)
                yield line()
                parts, size = [], 0
            else:
                yield piece, len(piece)
        if rest:
            size += len(rest)
            parts.append(rest)
            if size > units.MAX_RECORD_BYTES:
                parts.clear()
    if size:
        yield line()


def _read_lines(unit: Unit) -> Iterator[Document | Rejected]:
    file = unit.file
    number = unit.first - 1
    try:
        for line, size in _lines(_blocks(unit)):
            number += 1
            identity = f"{file.source}/{file.relative}:{number}"
            if line is None:
                yield _rejected(file, identity, Reason.TOO_LARGE, size)
            elif line.strip():  # an empty line is no record
                yield _read_line(file, identity, line)
    except OSError as error:
        yield _rest_lost(file, number + 1, error)


def _rest_lost(file: InputFile, number: int, error: Exception) -> Rejected:
    """Reading stopped before record `number`: what came before was given, the rest counts as one.

    An error of the system has a number, one about the content (a truncated archive) has none.
    """
    unreadable = isinstance(error, OSError) and error.errno is not None
    reason = Reason.UNREADABLE if unreadable else Reason.TRUNCATED
    detail = (str(error).splitlines() or [type(error).__name__])[0]
    return _rejected(file, f"{file.source}/{file.relative}:{number}", reason, 0, detail)


def _read_line(file: InputFile, identity: str, line: bytes) -> Document | Rejected:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _rejected(file, identity, Reason.UNDECODABLE, len(line))
    except (ValueError, RecursionError) as error:
        return _rejected(file, identity, Reason.BAD_RECORD, len(line), f"not JSON: {error}")
    if not isinstance(record, dict):
        detail = f"a JSON {type(record).__name__}, not an object"
        return _rejected(file, identity, Reason.BAD_RECORD, len(line), detail)
    return _record(file, identity, record, len(line))


def _read_parquet(unit: Unit) -> Iterator[Document | Rejected]:
    """The rows of a unit's row groups; a damaged group loses what follows in it, and no other."""
    file = unit.file
    number = unit.first - 1
    try:
        with file.path.open("rb") as stream, pq.ParquetFile(stream) as parquet:
            names = parquet.schema_arrow.names
            if not any(name in names for name in TEXT_COLUMNS):
                yield _without_text(file, names)
                return
            columns = [name for name in RECORD_COLUMNS if name in names]
            for group in range(unit.start, unit.stop):
                last = number + parquet.metadata.row_group(group).num_rows
                try:
                    for record, size in _group_rows(parquet, group, columns):
                        number += 1
                        identity = f"{file.source}/{file.relative}:{number}"
                        if record is None:
                            yield _rejected(file, identity, Reason.UNDECODABLE, size)
                        else:
                            yield _record(file, identity, record, size)
                except (OSError, pa.ArrowException) as error:
                    yield _rest_lost(file, number + 1, error)
                number = last
    except (OSError, pa.ArrowException) as error:
        yield _rest_lost(file, number + 1, error)


def _without_text(file: InputFile, names: Sequence[str]) -> Rejected:
    """A whole file of records that have no text."""
    detail = f"no column 'content' or 'text', only {', '.join(names)}"
    detail += _IDS_ALONE if "blob_id" in names else ": rename the column that holds the documents"
    return _rejected(file, f"{file.source}/{file.relative}", Reason.BAD_RECORD, 0, detail)


def _group_rows(
    parquet: pq.ParquetFile, group: int, columns: list[str]
) -> Iterator[tuple[dict[str, Any] | None, int]]:
    for batch in parquet.iter_batches(PARQUET_ROWS, row_groups=[group], columns=columns):
        yield from _rows(batch)


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """(row, bytes of its text); None for one with text that is not UTF-8."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # parquet does not check what it calls a string
        if batch.num_rows == 1:
            yield None, batch.nbytes
            return
        for i in range(batch.num_rows):
            yield from _rows(batch.slice(i, 1))
        return
    for row in rows:
        text = _first(row, TEXT_COLUMNS)
        data = text.encode() if isinstance(text, str) else text
        yield row, len(data) if isinstance(data, bytes) else 0


_IDS_ALONE = ": The Stack v2 lists ids alone, fetch the contents first"


def _known(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of some fields of a record, or of its `metadata` (Dolma, datatrove)."""
    found = _first(record, names)
    inner = record.get("metadata")
    return _first(inner, names) if found is None and isinstance(inner, Mapping) else found


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _record(
    file: InputFile, identity: str, record: Mapping[str, Any], size: int
) -> Document | Rejected:
    """A record's columns as a document; the language by its column, else by its path."""
    text = _first(record, TEXT_COLUMNS)
    if isinstance(text, bytes):  # a parquet column may be binary
        text = decode(text)
        if isinstance(text, Reason):
            return _rejected(file, identity, text, size)
    if not isinstance(text, str):
        problem = f"text is {type(text).__name__}"
        if text is None:
            problem = "no 'content' or 'text'"
            if "blob_id" in record:
                problem += _IDS_ALONE
        return _rejected(file, identity, Reason.BAD_RECORD, size, problem)
    if "\0" in text:
        return _rejected(file, identity, Reason.BINARY, size)
    if len(text) <= LFS_POINTER_BYTES and is_pointer(text.encode("utf-8", "replace")):
        return _rejected(file, identity, Reason.LFS_POINTER, size)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            detail = "half a surrogate pair"
            return _rejected(file, identity, Reason.BAD_RECORD, size, detail)
    inner = _text_or_none(_known(record, PATH_COLUMNS))
    repository = _text_or_none(_known(record, REPOSITORY_COLUMNS))
    path = "/".join(part for part in (repository, inner) if part) or identity
    named = _text_or_none(_known(record, LANGUAGE_COLUMNS))
    language = (
        (languages.by_name(named) if named else None)
        or (languages.by_content(inner, text) if inner else None)
        or languages.UNKNOWN
    )
    stated = _known(record, LICENCE_COLUMNS)
    values = stated if isinstance(stated, list) else [stated]
    licence = licence_texts.of_header(text) or licences.join(
        filter(None, map(_text_or_none, values))
    )
    metadata = Metadata(source=file.source, path=path, language=language, licence=licence)
    return Document(
        id=identity, text=text.removeprefix("\ufeff"), metadata=metadata, input_bytes=size
    )


def _text_or_none(value: Any) -> str | None:
    """A column's text, with anything Arrow could not store replaced."""
    if not isinstance(value, str) or not value:
        return None
    return value.encode("utf-8", "replace").decode()
