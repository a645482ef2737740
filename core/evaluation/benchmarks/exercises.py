"""Exercises of one's own: a question, tests, a solution, as self-instruct writes and reads them.

    {"id": ..., "question": TEXT, "tests": [ASSERT], "solution": CODE, "prompt": HEAD}

A model in a conversation is asked the question; others complete the head, a function's first lines
with its docstring, where there is one. `dialogs.jsonl` of a self-instruct run is a file of these.
"""

from __future__ import annotations

import re

from .humaneval import STOPS
from .problems import Problem, Record, text, texts


def parse(record: Record) -> Problem:
    """A problem with the fields id (or task_id), question, tests and solution."""
    head = record.get("prompt")
    before = head if isinstance(head, str) else ""
    solution = record.get("solution")
    reference = None
    if isinstance(solution, str):
        # Behind a head that is a function already, the whole function defines it anew.
        reference = solution.removeprefix(before) if before else solution
        if before and reference == solution:
            reference = f"\n\n{solution}"
    name = re.search(r"^\s*(?:async\s+)?def\s+(\w+)", before, re.MULTILINE)
    return Problem(
        task_id=text(record, "task_id" if "task_id" in record else "id"),
        language="python",
        before=before,
        tests="\n".join(texts(record, "tests")),
        reference=reference,
        question=text(record, "question"),
        entry_point=name[1] if name else "",
        stops=STOPS,
    )
