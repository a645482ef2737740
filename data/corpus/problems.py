"""Problems of evaluation sets, read from the files they are published in.

HumanEval, its infilling sets, MBPP, MultiPL-E, HumanEval-X, APPS, GSM8K, and any JSON lines, JSON
or parquet of records with text. The fields of a record decide what the problem's name is, and which
texts a leak of it would hold: see `_identity` and `_texts_of`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from codecria.data.compressed import COMPRESSIONS
from codecria.data.errors import UserError
from codecria.data.formats import records as record_files
from codecria.data.formats.records import SUFFIXES

PACKINGS = ("", *COMPRESSIONS)


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
    for suffix, packed in itertools.product(SUFFIXES, PACKINGS):
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


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, or number from 1, or name; record) of one file.

    A `.json` file may also be an object of records by name.

    Raises:
        UserError: it cannot be read, is not a file of problems by its name, or a line is damaged.
    """
    if _format(path) is None:
        raise UserError(
            f"{path} is not a file of problems by its name",
            hint=f"problems are read from {', '.join(SUFFIXES)}, also compressed",
        )
    for place, record in record_files.records(path):
        number = place.strip(":[]")
        if isinstance(record, record_files.Broken):
            raise UserError(
                f"{path}:{number} is not valid JSON: {record.problem}",
                hint="a file of problems has one JSON object a line",
            )
        if place.startswith("[") and _is_by_name(record):
            yield from ((name, {"name": name, **item}) for name, item in record.items())
        elif not isinstance(record, dict):
            if place.startswith("["):
                raise UserError(f"{path} holds no problem", hint="it needs a list of JSON objects")
            raise UserError(
                f"{path}:{number} is no JSON object",
                hint="a file of problems has one JSON object a line",
            )
        else:
            yield number, record


def _is_by_name(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and bool(record)
        and all(isinstance(item, dict) for item in record.values())
    )
