"""SAFIM (Gong et al. 2024): blocks, control expressions and API calls filled into programs.

Fields: `task_id`, `lang`, `prompt` (with a comment where the code is missing), `eval_prompt` (with
{{completion}} there), `ground_truth`, `unit_tests`. A program with unit tests is run for each of
them, and what it prints is compared word by word with the outputs that are right; one without, an
API call, must be the original's, white space aside (in Python, as the same call).

Python programs run like those of APPS. In C++, Java and C# a program runs once for each case, from
the start, and its output is judged outside the sandbox.
"""

from __future__ import annotations

import json
from typing import Any

from codecria.core.sandbox import languages

from . import cases
from .problems import Problem, Record, text

CASE_S = 5.0  # ours; the original leaves it to its server
HOLE = "{{completion}}"
_MARK = {"python": "# TODO: Your code here"}
_ANY_MARK = "/* TODO: Your code here */"
_CALL = """\
import ast as _ast

def _squeezed(code):
    return "".join(code.split())

def _call(code):
    try:
        body = _ast.parse(code.strip(), mode="eval").body
    except SyntaxError:
        return None
    return _ast.dump(body) if isinstance(body, _ast.Call) else None

WANTED = {wanted!r}
_same = _squeezed(codecria_written) == _squeezed(WANTED)
if not _same and {python}:
    _same = _call(WANTED) is not None and _call(codecria_written) == _call(WANTED)
assert _same, "another call than the original's"
"""


def parse(record: Record) -> Problem:
    """A problem; KeyError where a field is missing, ValueError where no place is left to fill."""
    language = languages.canonical(text(record, "lang"))
    mark = _MARK.get(language, _ANY_MARK)
    shown = text(record, "prompt").split(mark)
    judged = text(record, "eval_prompt").split(HOLE)
    for field, parts, place in (("prompt", shown, mark), ("eval_prompt", judged, HOLE)):
        if len(parts) != 2:
            raise ValueError(f"its {field} ({language}) holds {place!r} {len(parts) - 1} times")
    fields: dict[str, Any] = {
        "task_id": text(record, "task_id"),
        "reference": text(record, "ground_truth"),
        "fill": (shown[0], shown[1]),
    }
    runs = _unit_tests(record)
    if not runs:
        wanted = fields["reference"]
        tests = _CALL.format(wanted=wanted, python=language == "python")
        return Problem(language="python", tests=tests, is_text=True, **fields)
    fields |= {"before": judged[0], "after": judged[1], "cases": len(runs), "case_s": CASE_S}
    if language != "python":
        return Problem(language=language, tests="", runs=runs, **fields)
    given, expected = [one for one, _ in runs], [list(outputs) for _, outputs in runs]
    written = cases.pairs_json(given, expected)
    tests = cases.program_tests(written, same="one_of_printed", case_s=CASE_S)
    return Problem(language="python", tests=tests, is_program=True, **fields)


def _unit_tests(record: Record) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(input, outputs that are right) of each test; none for API calls."""
    value = record.get("unit_tests")
    found = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    tests = []
    for test in found:
        outputs = test["output"]
        outputs = [outputs] if isinstance(outputs, str) else outputs
        tests.append((str(test["input"]), tuple(str(one) for one in outputs)))
    return tuple(tests)
