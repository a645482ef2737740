"""What a run is about, from a question to a kept item, and how each is written to a file.

Ids are digests of content, so the same thing has the same id in every run and on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecria.core.seed import seed_of
from codecria.data.errors import UserError
from codecria.data.files import atomic_writer, digest_json

from .journal import read_lines
from .models import ID_DIGITS
from .parse import Code, Tests

SHOWN = 500  # characters of a lost thing that are kept


def content_id(*parts: object) -> str:
    """The id of something made of these parts."""
    return digest_json(list(parts))[:ID_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Something that went no further, and why.

    Attributes:
        stage: questions, asserts, tests, solutions or keep.
        reason: in a few words, the same for all losses of its kind.
        where: what it came from.
        text: it, shortened.
        detail: more than the reason.
    """

    stage: str
    reason: str
    where: str
    text: str
    detail: str = ""

    def as_json(self) -> dict[str, str]:
        """A line of dropped.jsonl."""
        line = {
            "stage": self.stage,
            "reason": self.reason,
            "from": self.where,
            "text": self.text[:SHOWN],
        }
        return line | ({"detail": self.detail[:SHOWN]} if self.detail else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that is asked.

    Attributes:
        where: the round and the item, or the file and the line.
    """

    id: str
    text: str
    where: str

    @classmethod
    def of(cls, text: str, where: str) -> Question:
        """The question with its id."""
        return cls(id=content_id(text), text=text, where=where)

    def as_json(self) -> dict[str, str]:
        """A line of questions.jsonl."""
        return {"id": self.id, "question": self.text, "from": self.where}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A question with its tests.

    Attributes:
        shown: the assert that solutions are shown; it reveals the function's name and arguments.
    """

    id: str
    question: Question
    tests: Tests
    shown: str

    @classmethod
    def of(cls, question: Question, tests: Tests, seed: int) -> Tested:
        """The question with its tests, one of them drawn to be shown (PAPER 7, 3b)."""
        draw = random.Random(seed_of(seed, f"shown:{question.id}"))
        return cls(
            id=content_id(question.text, tests.setup, tests.asserts),
            question=question,
            tests=tests,
            shown=draw.choice(tests.asserts),
        )

    def as_json(self) -> dict[str, Any]:
        """A line of tests.jsonl."""
        return {
            "id": self.id,
            "question_id": self.question.id,
            "question": self.question.text,
            "from": self.question.where,
            "setup": list(self.tests.setup),
            "tests": list(self.tests.asserts),
            "shown": self.shown,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Tested:
        """The item of a line that `as_json` made.

        Raises:
            KeyError: a field is missing.
        """
        question = Question(id=line["question_id"], text=line["question"], where=line["from"])
        tests = Tests(tuple(line["setup"]), tuple(line["tests"]))
        return cls(id=line["id"], question=question, tests=tests, shown=line["shown"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A solution that is run.

    Attributes:
        tested: id of its question with tests.
        sample: its number among the question's, from 0; the first that passes is kept.
        source: the program.
        chosen: what of the answer it is.
    """

    id: str
    tested: str
    sample: int
    source: str
    chosen: str = ""

    @classmethod
    def of(cls, tested: Tested, sample: int, code: Code) -> Candidate:
        """The solution with its id."""
        return cls(
            id=content_id(tested.id, sample, code.source),
            tested=tested.id,
            sample=sample,
            source=code.source,
            chosen=code.chosen,
        )

    def as_json(self) -> dict[str, Any]:
        """A line of solutions.jsonl."""
        return {
            "id": self.id,
            "tests_id": self.tested,
            "sample": self.sample,
            "solution": self.source,
            "extracted": self.chosen,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Candidate:
        """The solution of a line that `as_json` made.

        Raises:
            KeyError: a field is missing.
        """
        return cls(
            id=line["id"],
            tested=line["tests_id"],
            sample=line["sample"],
            source=line["solution"],
            chosen=line["extracted"],
        )


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Write a file of JSON lines, whole or not at all; how many.

    Raises:
        UserError: it cannot be written.
    """
    import json

    count = 0
    with atomic_writer(path) as file:
        for line in lines:
            file.write(json.dumps(line).encode() + b"\n")
            count += 1
    return count


def read_tested(path: Path) -> list[Tested]:
    """The questions of a tests.jsonl that a run wrote.

    Raises:
        UserError: it cannot be read, or a line is none.
    """
    try:
        return [Tested.from_json(line) for line in read_lines(path)]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of tests that this version wrote: {error}") from error


def read_candidates(path: Path) -> Iterator[Candidate]:
    """The solutions of a solutions.jsonl that a run wrote.

    Raises:
        UserError: it cannot be read, or a line is none.
    """
    try:
        for line in read_lines(path):
            yield Candidate.from_json(line)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no file of solutions that this version wrote: {error}"
        ) from error
