"""APPS (Hendrycks et al. 2021): programming contests, as whole programs or as functions.

Read from the data set's JSON lines (`question`, `solutions`, `input_output`, `difficulty`,
`starter_code`; the texts may be JSON in strings), or from the original's folders, one a problem.
Cases run and outputs compare as in the original's harness (`case_runner`): 4 seconds a case, and
neither white space at the ends of lines, nor the order of lines and words, nor digits beyond the
third of numbers count there.

The prompt is the paper's: a question, the guidance on how input comes, the answer in a code fence;
two-shot, or zero-shot for models tuned on instructions. The two examples are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError

from . import cases
from .problems import Problem, Record, text

CASE_S = 4.0  # testing_util.py of the original
LEVELS = ("introductory", "interview", "competition")
LONG = 4_000  # digits of an integer
_MARK = "\0integer:"
_MARKED = re.compile(r'"\\u0000integer:(-?\d+)"')
OTHERS = 4  # solutions beside the first that may stand in for it: some of APPS' are wrong
STOPS = ("```", "\nQ:")
# What the original puts ahead of every solution, but numpy, which the sandbox may not have.
PRELUDE = """\
import sys, time, itertools, collections, math, fractions, random, heapq
from itertools import accumulate, product, permutations, combinations
from collections import Counter, OrderedDict, deque, defaultdict, ChainMap
from functools import lru_cache
from math import sqrt, sin, cos, tan, ceil, fabs, floor, gcd, exp, log, log2
from typing import List, Tuple
from heapq import *
"""
BY_STANDARD_INPUT = "read from and write to standard IO"  # the paper's two guidances (appendix F)
BY_CALL = "use the provided function signature"
_SHOTS = f"""\
Q: Write a Python program that reads an integer n and then n integers, and prints their sum.

Please {BY_STANDARD_INPUT}.
A: ```
n = int(input())
numbers = list(map(int, input().split()))
print(sum(numbers[:n]))
```

Q: Given a string, return how many of its characters are vowels.

def count_vowels(word):

Please {BY_CALL}.
A: ```
def count_vowels(word):
    return sum(letter in "aeiou" for letter in word.lower())
```

"""


def parse(record: Record) -> Problem:
    """A problem; KeyError where a field is missing, or it has no tests."""
    number = next(
        (
            record[k]
            for k in ("task_id", "problem_id", "id")
            if isinstance(record.get(k), str | int)
        ),
        None,
    )
    if number is None:
        raise KeyError("problem_id")
    given, count, function = _input_output(record)
    solutions = _json(record, "solutions", [])
    starter = record.get("starter_code")
    starter = starter if isinstance(starter, str) else ""
    written = tuple(s.replace("\r\n", "\n") for s in solutions if isinstance(s, str))
    return Problem(
        task_id=number if isinstance(number, str) and "/" in number else f"APPS/{int(number)}",
        language="python",
        tests=cases.function_tests(
            function, given, same="apps_returned", case_s=CASE_S,
            given="apps_arguments", expected="apps_expected",
        )
        if function
        else cases.program_tests(given, same="apps_printed", case_s=CASE_S),
        reference=written[0] if written else None,
        others=written[1 : 1 + OTHERS],
        prelude=PRELUDE,
        entry_point=function,
        is_program=not function,
        question=_question(text(record, "question"), starter, function),
        stops=STOPS,
        level=_level(record),
        cases=count,
        case_s=CASE_S,
    )  # fmt: skip


def _input_output(record: Record) -> tuple[str, int, str]:
    """(cases as JSON, how many, the function's name or nothing)."""
    value = record.get("input_output")
    # Integers stay as they are written: some have more digits than Python reads.
    found = json.loads(value, parse_int=_digits) if isinstance(value, str) and value else value
    if not isinstance(found, dict) or not isinstance(found.get("inputs"), list):
        raise KeyError("input_output")
    outputs = found.get("outputs")
    if not isinstance(outputs, list):
        raise KeyError("input_output")
    name = found.get("fn_name")
    function = name if isinstance(name, str) and name.isidentifier() else ""
    inputs = found["inputs"]
    if not function:
        inputs = ["\n".join(map(str, i)) if isinstance(i, list) else str(i) for i in inputs]
    written = _MARKED.sub(r"\1", cases.pairs_json(inputs, outputs))
    return written, len(inputs), function


def _digits(written: str) -> int | str:
    """An integer of JSON; one that is too long for Python's limit stays text, with a mark."""
    return int(written) if len(written) < LONG else f"{_MARK}{written}"


def _json(record: Record, field: str, default: Any) -> Any:
    value = record.get(field)
    if isinstance(value, str):
        return json.loads(value) if value.strip() else default
    return default if value is None else value


def _level(record: Record) -> str:
    metadata = record.get("metadata")
    value = record.get("difficulty")
    if value is None and isinstance(metadata, dict):
        value = metadata.get("difficulty")
    if value not in LEVELS:
        raise KeyError("difficulty")
    return str(value)


def _question(question: str, starter: str, function: str) -> str:
    given = f"\n\n{starter.rstrip()}" if starter.strip() else ""
    return f"{question.rstrip()}{given}\n\nPlease {BY_CALL if function else BY_STANDARD_INPUT}."


def prompt(problem: Problem, form: str) -> str:
    """The two-shot prompt, up to where the program begins."""
    del form
    return f"{_SHOTS}Q: {problem.question}\nA: ```\n"


def chat_question(problem: Problem) -> str:
    """What a model in a conversation is asked: zero-shot."""
    return f"{problem.question}\nAnswer with one Python program in a code block."


def folder_records(folder: Path) -> Iterator[tuple[str, Record]]:
    """The problems in the original's layout: a folder each, with question.txt and JSON files.

    Raises:
        UserError: there is none.
    """
    found = False
    for place in sorted(path for path in folder.rglob("question.txt")):
        home = place.parent
        record: dict[str, Any] = {"problem_id": home.name, "question": place.read_text("utf-8")}
        for name in ("input_output.json", "solutions.json", "metadata.json", "starter_code.py"):
            path = home / name
            if path.is_file():
                value = path.read_text("utf-8")
                record[path.stem] = json.loads(value) if name == "metadata.json" else value
        found = True
        yield str(place), record
    if not found:
        raise UserError(f"{folder} holds no question.txt", hint="give a .jsonl file, or the folder")
