"""LiveCodeBench (Jain et al. 2024): contest problems with the date that they were published.

The score of a model depends on the window of dates: `--since` and `--until`, both included, stand
in the result. Read from the rows of code_generation and code_generation_lite, whose private cases
are packed. Cases run and outputs compare as in the original's harness (`case_runner`): 6 seconds a
case, lines without white space at their ends, numbers as decimals. There are no references.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from datetime import date
from typing import Any

from . import cases
from .problems import Problem, Record, text

CASE_S = 6.0  # testing_util.py of the original
STOPS = ("```", "### Question")
LEVELS = ("easy", "medium", "hard")
_NAMES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json"),
)
# What the original puts ahead of every solution.
PRELUDE = (
    "".join(f"from {name} import *\n" for name in (*_NAMES, "builtins", "typing"))
    + "".join(f"import {name}\n" for name in _NAMES)
    + "sys.setrecursionlimit(50000)\n"
)
_BY_CALL = "Complete the starter code."
_BY_STANDARD_INPUT = "Read from standard input and write to standard output."
_SHOT = {
    True: (
        "### Question\nGiven a list of integers, return how many of them are even.\n\n"
        f"{_BY_CALL}\n```python\nclass Solution:\n"
        "    def countEven(self, nums: List[int]) -> int:\n```\n\n### Answer\n```python\n"
        "class Solution:\n    def countEven(self, nums: List[int]) -> int:\n"
        "        return sum(n % 2 == 0 for n in nums)\n```\n\n"
    ),
    False: (
        "### Question\nThe first line has n, the second n integers. Print the largest.\n\n"
        f"{_BY_STANDARD_INPUT}\n\n### Answer\n```python\n"
        "n = int(input())\nprint(max(map(int, input().split())))\n```\n\n"
    ),
}


class _TextOnly(pickle.Unpickler):
    """Reads plain values alone: a file of problems runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"the private cases name {module}.{name}")


def parse(record: Record) -> Problem:
    """A problem; KeyError where a field is missing, ValueError where the cases are damaged."""
    public = json.loads(text(record, "public_test_cases"))
    tests = [*public, *_private(text(record, "private_test_cases"))]
    metadata = record.get("metadata")
    metadata = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata or {}
    name = metadata.get("func_name")
    function = name if isinstance(name, str) and name.isidentifier() else ""
    inputs: list[Any] = [str(test["input"]) for test in tests]
    outputs: list[Any] = [str(test["output"]) for test in tests]
    if function:
        inputs = [[json.loads(line) for line in given.split("\n")] for given in inputs]
        outputs = [json.loads(wanted) for wanted in outputs]
    written = cases.pairs_json(inputs, outputs)
    starter = record.get("starter_code")
    asked = text(record, "question_content").rstrip()
    if isinstance(starter, str) and starter.strip():
        asked += f"\n\n{_BY_CALL}\n```python\n{starter.rstrip()}\n```"
    else:
        asked += f"\n\n{_BY_STANDARD_INPUT}"
    return Problem(
        task_id=f"LiveCodeBench/{text(record, 'question_id')}",
        language="python",
        tests=cases.function_tests(function, written, same="value_returned", case_s=CASE_S)
        if function
        else cases.program_tests(written, same="lines_printed", case_s=CASE_S),
        reference=None,
        prelude=PRELUDE,
        entry_point=function,
        is_program=not function,
        question=asked,
        stops=STOPS,
        level=text(record, "difficulty"),
        date=date.fromisoformat(text(record, "contest_date")[:10]).isoformat(),
        cases=len(inputs),
        case_s=CASE_S,
    )


def _private(value: str) -> list[Any]:
    """The private cases: JSON, or JSON that was pickled, compressed and encoded (the lite set).

    Raises:
        ValueError: they are neither.
    """
    if not value.strip():
        return []
    if value.lstrip().startswith("["):
        found = json.loads(value)
    else:
        try:
            packed = zlib.decompress(base64.b64decode(value))
            found = json.loads(_TextOnly(io.BytesIO(packed)).load())
        except (zlib.error, pickle.UnpicklingError, EOFError, IndexError) as error:
            raise ValueError(f"private_test_cases: {error}") from error
    if not isinstance(found, list):
        raise ValueError("private_test_cases hold no list")
    return found


def prompt(problem: Problem, form: str) -> str:
    """The one-shot prompt, up to where the program begins."""
    del form
    shot = _SHOT[not problem.is_program]
    return f"{shot}### Question\n{problem.question}\n\n### Answer\n```python\n"


def chat_question(problem: Problem) -> str:
    """What a model in a conversation is asked."""
    return f"{problem.question}\n\nAnswer with one Python program in a code block."
