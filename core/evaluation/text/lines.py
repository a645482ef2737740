"""Single lines: the next one of a file, or one that is missing in a function.

Line completion (CodeXGLUE's py150, LCC, or files of one's own) goes on from all that stands before
a line. Single-line infilling (Allal et al. 2023: Python, Java, JavaScript) also shows what follows.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from codecria.core.evaluation.benchmarks.multilingual import language_e
from codecria.core.evaluation.benchmarks.problems import text
from codecria.core.seed import seed_of
from codecria.data.errors import UserError
from codecria.data.files import digest_bytes

from .questions import Question, Record, parsed

RECORDS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".jsonl.zst")
LINES_A_FILE = 4  # of a file of one's own
LEAST_LINE = 6  # characters of a line that is asked for: a brace alone says nothing
BUCKETS = (4_000, 8_000, 16_000, 32_000, 64_000)  # characters before the line, for the table
_LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT(?::(.*?))?>")


def read_completion(path: Path) -> Iterator[Question]:
    """Questions of line completion: py150's or LCC's records, or lines of a file of code.

    py150:  {"input": "<s> import os <EOL> ...", "gt": "tokens of the line"}
    LCC:    {"context": TEXT, "gt": "the line"}
    """
    if path.name.endswith(RECORDS):
        return parsed(path, _record)
    return _own_lines(path)


def _record(place: str, record: Record) -> Question:
    if "input" in record and "context" not in record:
        before, target, name = _from_tokens(text(record, "input")), text(record, "gt"), "py150"
        target = _literals(target)
    else:
        before, target, name = text(record, "context"), text(record, "gt"), "LCC"
    return Question(
        task_id=f"{name}/{place}-{digest_bytes(before.encode())[:6]}",
        group=bucket_of(before),
        before=before,
        target=target.strip(),
    )


def _from_tokens(tokens: str) -> str:
    """A file of py150, whose lines end in <EOL> and whose literals are named, as text."""
    whole = tokens.removeprefix("<s>").removesuffix("</s>")
    return "\n".join(_literals(line.strip()) for line in whole.split("<EOL>"))


def _literals(line: str) -> str:
    """Literals as they were; those that py150 does not tell are empty, or 0."""

    def literal(found: re.Match[str]) -> str:
        return found[2] if found[2] is not None else "0" if found[1] == "NUM" else ""

    return _LITERAL.sub(literal, line)


def bucket_of(before: str) -> str:
    """How much stands before a line, as a range of characters."""
    low = 0
    for high in BUCKETS:
        if len(before) < high:
            return f"{low:,}-{high:,} characters"
        low = high
    return f"{low:,} characters or more"


def _own_lines(path: Path) -> Iterator[Question]:
    """Some lines of a file, the same ones every time, deeper ones no rarer than others."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", hint="it needs UTF-8 text") from error
    fit = [n for n, line in enumerate(lines) if n and len(line.strip()) >= LEAST_LINE]
    drawn = random.Random(seed_of(0, "".join(lines)))  # of the content, wherever the file lies
    for number in sorted(drawn.sample(fit, min(LINES_A_FILE, len(fit)))):
        before, line = "".join(lines[:number]), lines[number]
        indent = line[: len(line) - len(line.lstrip())]
        yield Question(
            task_id=f"{path}:{number + 1}",
            group=bucket_of(before),
            before=before + indent,
            target=line.strip(),
        )


def evened_out(questions: Sequence[Question], *, seed: int = 0) -> list[Question]:
    """As many questions of each range of lengths as of the rarest, at least one.

    LCC's files are short; the paper evens their lengths out (appendix G.2) so that long ones weigh
    as much. How it cuts the ranges it does not say: these are `BUCKETS`.
    """
    by_length: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_length[question.group].append(question)
    least = min(map(len, by_length.values()))
    kept = {
        question.task_id
        for group, among in by_length.items()
        for question in random.Random(seed_of(seed, group)).sample(among, least)
    }
    return [question for question in questions if question.task_id in kept]


def first_line(said: str) -> str:
    """The line that a model wrote, without what follows it."""
    return said.lstrip("\n").split("\n", 1)[0].strip()


# --- infilling ------------------------------------------------------------------------------------


def read_infilling(path: Path) -> Iterator[Question]:
    """Questions of single-line infilling, told apart by language.

    SantaCoder's set:  {"name": ..., "language": "py", "prompt", "suffix", "canonical_solution"}
    HumanEval-X:       {"task_id": "Java/0", "prompt", "canonical_solution"}: each of its lines
                       with a letter or a digit is left out once
    """
    if "suffix" in _first(path):
        return parsed(path, _published)
    return _left_out(path)


def _first(path: Path) -> Record:
    from codecria.data.corpus.problems import records

    return next((record for _, record in records(path)), {})


def _published(place: str, record: Record) -> Question:
    language = text(record, "language")
    name = record.get("name")
    return Question(
        task_id=f"{language}/{name if isinstance(name, str) else ''}/{place}",
        group=language_e(language),
        before=text(record, "prompt"),
        after=text(record, "suffix"),
        target=text(record, "canonical_solution").strip(),
    )


def _left_out(path: Path) -> Iterator[Question]:
    def parse(_: str, record: Record) -> Question:  # one record, not yet a line of it
        solution = json.dumps([text(record, "prompt"), text(record, "canonical_solution")])
        return Question(task_id=text(record, "task_id"), before=solution)

    for whole in parsed(path, parse):
        prompt, solution = json.loads(whole.before)
        lines = solution.splitlines(keepends=True)
        for number, line in enumerate(lines):
            if re.search(r"\w", line):
                yield replace(
                    whole,
                    task_id=f"{whole.task_id}/{number}",
                    group=whole.task_id.split("/")[0].lower(),
                    before=prompt + "".join(lines[:number]),
                    after=("\n" if line.endswith("\n") else "") + "".join(lines[number + 1 :]),
                    target=line.strip(),
                )
