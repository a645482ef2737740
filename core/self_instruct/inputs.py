"""Questions and tests from files: of people, of another run, of another tool.

    .txt              a question a line
    .jsonl, .json     records with a text under question, instruction, prompt, query, problem, text
                      or task; with tests under tests or test_list, as asserts or as code

Compressed files too. A record that is none is a loss with a reason, and never ends a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.formats import dialogs
from codecria.data.formats.records import Broken, records

from .items import Loss, Question
from .parse import Tests, checked_tests, problem_of_question

# An exercise has a prompt, the head of its function, beside the question.
NAMES = ("question", *(name for name in dialogs.QUESTIONS if name != "question"), "text", "task")
TESTS = ("tests", "test_list")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A question of a file, with tests where it has them."""

    question: Question
    tests: Tests | None
    lost: tuple[tuple[str, str], ...] = ()


def read(path: Path, *, with_tests: bool) -> Iterator[Given | Loss]:
    """The questions of a file, in order.

    Args:
        path: of it.
        with_tests: whether each needs tests.

    Raises:
        UserError: the file cannot be read, or holds no record.
    """
    count = 0
    for place, record in _records(path):
        count += 1
        text = _question(record)
        if text is None:
            reason = "not JSON" if isinstance(record, str) else "no question"
            yield Loss(stage="questions", reason=reason, where=place, text=str(record))
            continue
        text = text.strip()
        if why := problem_of_question(text):
            yield Loss(stage="questions", reason=why, where=place, text=text)
            continue
        question = Question.of(text, place)
        if not with_tests:
            yield Given(question=question, tests=None)
            continue
        tests, lost = _tests(record)
        yield Given(question=question, tests=tests, lost=tuple(lost))
    if not count:
        raise UserError(f"{path} holds no question")


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and place, record); a plain text where a line is none."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix != ".txt":
        for place, record in records(path, single=NAMES):
            shown = record.problem if isinstance(record, Broken) else record
            yield path.name + place, shown
        return
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path.name}:{number}", {"question": line}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _question(record: Any) -> str | None:
    if not isinstance(record, dict):
        return None
    found = next((record[name] for name in NAMES if isinstance(record.get(name), str)), None)
    return found if found is None or found.strip() else None


def _tests(record: dict[str, Any]) -> tuple[Tests, list[tuple[str, str]]]:
    given = next((record[name] for name in TESTS if record.get(name)), "")
    before = record.get("setup") or record.get("test_setup_code") or ""
    lines: list[str] = []
    for part in (before, given):
        if isinstance(part, str):
            lines.append(part)
        elif isinstance(part, list):
            lines += [item for item in part if isinstance(item, str)]
    return checked_tests("\n".join(lines))
