"""Problems of evaluation sets, read from the files they are published in.

HumanEval, its infilling sets, MBPP, MultiPL-E, HumanEval-X, APPS, GSM8K, and any JSON lines, JSON
or parquet of records with text. The fields of a record decide what the problem's name is, and which
texts a leak of it would hold: see `_identity` and `_texts_of`.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from codecria.data.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst", ".bz2")


class Problem(NamedTuple):
    """A problem as read.

    Attributes:
        name: the same for all forms of the problem.
        key: the name, without the file's where that is part of it.
        file: the name of the file.
        texts: those a leak would hold.
    """

    name: str
    key: str
    file: str
    texts: tuple[str, ...]


def expand(files: Sequence[Path]) -> list[tuple[str, Path]]:
    """(name, path) of all problem files, sorted by name; a name is unique."""
    paths: list[tuple[str, Path]] = []
    for path in dict.fromkeys(files):
        if path.is_dir():
            below = [p for p in sorted(path.rglob("*")) if p.is_file() and _format(p)]
            below = [
                p for p in below if not any(x.startswith(".") for x in p.parts[len(path.parts) :])
            ]
            if not below:
                raise UserError(
                    f"{path} has no file of problems",
                    hint=f"problems are read from {', '.join(SUFFIXES)}, also compressed",
                )
            paths += [(p.relative_to(path).as_posix(), p) for p in below]
        elif not path.is_file():
            raise UserError(
                f"{path} does not exist", hint="--decontaminate takes files of problems"
            )
        elif not _format(path):
            raise UserError(
                f"{path} is not a file of problems by its name",
                hint=f"problems are read from {', '.join(SUFFIXES)}, also compressed",
            )
        else:
            paths.append((path.name, path))
    counts = Counter(name for name, _ in paths)
    unique = {
        path: f"{path.absolute().parent.name}/{name}" if counts[name] > 1 else name
        for name, path in paths
    }
    if len(set(unique.values())) < len(unique):
        unique = {path: str(path) for path in unique}
    # HumanEval.jsonl before HumanEval-SingleLineInfilling.jsonl: a window is the first one's.
    return sorted(
        ((name, path) for path, name in unique.items()),
        key=lambda pair: (PurePath(pair[0]).name.split(".")[0], pair),
    )


def _format(path: Path) -> tuple[str, str] | None:
    """(suffix, compression's suffix) by a file's name."""
    name = path.name.lower()
    for suffix, packed in itertools.product(SUFFIXES, COMPRESSIONS):
        if name.endswith(suffix + packed) and not (suffix == ".parquet" and packed):
            return suffix, packed
    return None


NAME_FIELDS = ("task_id", "name", "problem_id", "question_id", "id")
SOLUTION_FIELDS = ("canonical_solution", "reference_solution", "solution")
OPENING_FIELDS = ("prompt", "declaration")
TASK_FIELDS = ("text", "prompt")  # a task in words, in records that have `code`
# Fields that are no text of the problem. In MultiPL-E, `original` is a path.
PASSED_FIELDS = frozenset(
    [
        *NAME_FIELDS,
        *("entry_point", "language", "split", "difficulty", "url", "source", "source_file"),
        *("original", "doctests", "prompt_terminology", "stop_tokens", "stop_sequences"),
        *("metadata", "level", "type", "subject", "category", "license", "licence", "canary"),
    ]
)
_HUMANEVAL = re.compile(r"(?:^|[/_])HumanEval[/_](\d+)(?:[/_]|$)", re.IGNORECASE)
_MBPP = re.compile(r"(?:^|[/_])MBPP[/_](\d+)(?:[/_]|$)", re.IGNORECASE)
_TRANSLATION = re.compile(r"(?:C\+\+|CPP|Go|Java|JavaScript|JS|Python|Rust)/(\d+)$", re.IGNORECASE)


def read(path: Path, name: str) -> Iterator[Problem]:
    """The problems of one file."""
    for place, record in records(path):
        identity, key = _identity(record, name, place)
        texts = tuple(_texts_of(record))
        if texts:
            yield Problem(identity, key, name, texts)


def _identity(record: Any, file: str, place: str) -> tuple[str, str]:
    """The problem's name, the same for all forms of it, and the name without the file's.

    >>> _identity({"task_id": "SingleLineInfilling/HumanEval/0/L0"}, "f.jsonl", "1")
    ('HumanEval/0', 'HumanEval/0')
    >>> _identity({"name": "mbpp_3_is_not_prime"}, "f.jsonl", "1")
    ('MBPP/3', 'MBPP/3')
    >>> _identity({"question": "?"}, "test.jsonl", "7")
    ('test.jsonl:7', '7')
    """
    fields = record if isinstance(record, dict) else {}
    given = next((fields[k] for k in NAME_FIELDS if isinstance(fields.get(k), str | int)), None)
    if given is None:
        return f"{file}:{place}", place
    value = str(given)
    if known := _known(value, fields):
        return known, known
    if "/" in value:
        return value, value
    return f"{PurePath(file).name.split('.')[0]}/{value}", value


def _known(value: str, fields: Mapping[str, Any]) -> str | None:
    """The name of a problem of HumanEval, MBPP, APPS and the sets made of them."""
    if found := _HUMANEVAL.search(value):
        return f"HumanEval/{int(found[1])}"
    if found := _MBPP.search(value):
        return f"MBPP/{int(found[1])}"
    if "canonical_solution" in fields and (found := _TRANSLATION.match(value)):
        return f"HumanEval/{int(found[1])}"
    if not (value.isascii() and value.isdecimal()):
        return None
    if "test_list" in fields:
        return f"MBPP/{int(value)}"
    if "question" in fields and not fields.keys().isdisjoint(("solutions", "input_output")):
        split = f"{fields['split']}/" if isinstance(fields.get("split"), str) else ""
        return f"APPS/{split}{int(value)}"
    return None


def _texts_of(record: Any) -> Iterator[str]:
    """The texts of a record that a leak would hold.

    A prompt (or declaration) is joined with its solution and suffix, since a program holds them in
    one piece. Of all other fields every string counts, in lists and objects too, and in JSON that
    stands in a string (APPS); but not ids and what is in `PASSED_FIELDS`, nor a string without
    white space: that is a name, a path or a number. Short strings of one list are taken together
    (MBPP's tests).
    """
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, dict):
        yield from _strings(record)
        return
    joined = set()
    solution = next((record[k] for k in SOLUTION_FIELDS if isinstance(record.get(k), str)), None)
    if solution is not None:
        suffix = record.get("suffix")
        for field in OPENING_FIELDS:
            if isinstance(opening := record.get(field), str):
                yield opening + solution + (suffix if isinstance(suffix, str) else "")
                joined |= {field, "suffix", *SOLUTION_FIELDS}
    elif isinstance(code := record.get("code"), str):  # MBPP
        for field in TASK_FIELDS:
            if isinstance(task := record.get(field), str):
                yield f"{task}\n{code}"
    for field, value in record.items():
        if field not in joined and field not in PASSED_FIELDS:
            yield from _strings(value)


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        if value[:1] in ("[", "{") and depth < 4:
            with contextlib.suppress(ValueError, RecursionError):
                yield from _strings(json.loads(value), depth + 1)
                return
        text = value.strip()
        if any(c.isspace() for c in text):
            yield value
            if "<<" in value and ">>" in value:  # GSM8K's calculator annotations
                yield re.sub(r"<<[^<>]*>>", "", value)
    elif isinstance(value, list):
        lines = [item for item in value if isinstance(item, str)]
        if lines and all("\n" not in line and len(line) < 1000 for line in lines):
            yield from _strings("\n".join(lines), 4)
        else:
            for item in value:
                yield from _strings(item, depth)
    elif isinstance(value, dict):
        for field, item in value.items():
            if field not in PASSED_FIELDS:
                yield from _strings(item, depth)


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """(line or number from 1, record) of one file.

    Raises:
        UserError: it cannot be read, is not a file of problems by its name, or a line is damaged.
    """
    kind = _format(path)
    if kind is None:
        raise UserError(
            f"{path} is not a file of problems by its name",
            hint=f"problems are read from {', '.join(SUFFIXES)}, also compressed",
        )
    suffix, packed = kind
    try:
        if suffix == ".parquet":
            rows = itertools.count(1)
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches(batch_size=256):
                    for record in batch.to_pylist():
                        yield str(next(rows)), record
            return
        with _open(path, packed) as file:
            if suffix != ".json":
                yield from _lines(path, file)
                return
            data = file.read()
    except (OSError, EOFError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason}", hint="is the file whole?") from error
    yield from _json(path, data)


def _open(path: Path, packed: str) -> IO[bytes] | gzip.GzipFile | io.BufferedReader:
    if packed == ".gz":
        return gzip.open(path)
    if packed == ".bz2":
        return bz2.open(path)
    if packed == ".zst":
        stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        return io.BufferedReader(stream)
    return path.open("rb")


def _lines(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{number} is not valid JSON: {error}",
                hint="a file of problems has one JSON object a line",
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f"{path}:{number} is no JSON object",
                hint="a file of problems has one JSON object a line",
            )
        yield str(number), record


def _json(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """The records of a `.json` file: a list, an object by name, one record, or JSON lines."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        head = data.lstrip()[:1]
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and head == b"{":
            yield from _lines(path, data.splitlines())
            return
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{line} is not valid JSON: {error}", hint="is the file whole?"
        ) from error
    if isinstance(value, dict):
        if value and all(isinstance(item, dict) for item in value.values()):
            yield from ((key, {"name": key, **item}) for key, item in value.items())
            return
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict):
            value = lists[0]  # {"examples": [...], "version": ...}
        else:
            value = [value]
    if not isinstance(value, list):
        raise UserError(f"{path} holds no problem", hint="it needs a list of JSON objects")
    yield from ((str(number), record) for number, record in enumerate(value, start=1))
