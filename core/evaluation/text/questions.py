"""A question whose answer is compared with a text, whichever file it came from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codecria.data.compressed import COMPRESSIONS, read_blocks
from codecria.data.corpus import problems as files
from codecria.data.errors import UserError
from codecria.data.files import digest_json

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is shown, and what a right answer is.

    Attributes:
        task_id: names it in the results.
        group: what scores are told apart by, such as a language.
        before: text that the model goes on from; or what it is asked, in the chat form.
        after: text after the gap that it fills; None where it goes on alone.
        target: the right answer; empty where there is none.
        right, wrong: answers to choose from.
    """

    task_id: str
    group: str = ""
    before: str
    after: str | None = None
    target: str = ""
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of some files, in their order, each id once."""

    paths: tuple[Path, ...]
    questions: tuple[Question, ...]

    def digest(self) -> str:
        """Of all that decides prompts and scores, independent of the files' form."""
        return digest_json([asdict(question) for question in self.questions])


def gather(
    paths: Sequence[Path], parse: Callable[[Path], Iterable[Question]], *, suffixes: Sequence[str]
) -> QuestionSet:
    """The questions of files, and of the files in folders.

    Args:
        paths: as the user named them.
        parse: reads one file.
        suffixes: of the files that a folder is searched for.

    Raises:
        UserError: a path does not exist, there is no question, or an id comes twice.
    """
    found: list[Question] = []
    seen: dict[str, Path] = {}
    for path in _files(paths, suffixes):
        if path in seen.values():
            raise UserError(f"{path} is named twice", hint="each question counts once")
        for question in parse(path):
            if question.task_id in seen:
                other = seen[question.task_id]
                raise UserError(
                    f"{path}: {question.task_id!r} "
                    + ("is in it twice" if other == path else f"is also in {other}"),
                    hint="each question counts once: leave out the copy",
                )
            seen[question.task_id] = path
            found.append(question)
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))}: no question was found",
            hint="docs/evaluate-text.md shows what each evaluation reads",
        )
    return QuestionSet(tuple(paths), tuple(found))


def _files(paths: Sequence[Path], suffixes: Sequence[str]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (
                file
                for file in sorted(path.rglob("*"))
                if file.is_file() and file.name.endswith(tuple(suffixes))
            )
        elif path.is_file():
            yield path
        else:
            raise UserError(
                f"there is no file {path}",
                hint="docs/evaluate-text.md says where people get each set",
            )


def parsed(path: Path, parse: Callable[[str, Record], Question]) -> Iterator[Question]:
    """The questions in the records of a file, JSON lines, JSON or parquet, compressed or not.

    Args:
        path: of the file.
        parse: makes a record a question, given its place; raises KeyError for a field it needs.

    Raises:
        UserError: the file cannot be read, or a record lacks a field.
    """
    for place, record in files.records(path):
        try:
            yield parse(place, record)
        except KeyError as error:
            raise missing_field(path, place, error) from error


def rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, record) of a CSV file, compressed or not, whose first line names the columns.

    Raises:
        UserError: it cannot be read, or one of the fields is missing or empty.
    """
    try:
        reader = csv.DictReader(io.StringIO(whole_text(path), newline=""))
        for row in reader:
            for field in fields:
                if not (row.get(field) or "").strip():
                    raise missing_field(path, str(reader.line_num), KeyError(field))
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"cannot read {path}: {error}") from error


def whole_text(path: Path) -> str:
    """The text of a file, compressed or not, without a mark of its byte order.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        compression = COMPRESSIONS.get(path.suffix)
        blocks = [path.read_bytes()] if compression is None else read_blocks(path, compression)
        return b"".join(blocks).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", hint="it needs UTF-8 text") from error


def missing_field(path: Path, place: str, error: KeyError) -> UserError:
    """What is told of a record without a field that it must have."""
    return UserError(
        f"{path}:{place}: the record has no field {error.args[0]!r}",
        hint="is it a file of this set? docs/evaluate-text.md shows each one's fields",
    )
