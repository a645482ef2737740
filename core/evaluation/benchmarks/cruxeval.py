"""CRUXEval (Gu et al. 2024): what a small function returns, and what makes it return that.

The file has `code` (a function `f`), `input`, `output`, `id`. A completion is an expression: the
output (`cruxeval-o`), or a call of `f` (`cruxeval-i`). As in the original, an output written as the
call itself is wrong: where it is evaluated there is no `f`. An input counts if `f` returns the
output for it, whichever it is. The references, which run first, fail where the file's output is not
what `f` returns.
"""

from __future__ import annotations

import re

from .problems import Problem, Record, text

STOPS = ("[/ANSWER]", "\n[PYTHON]")
_ANSWER = "def codecria_answer():\n    return (\n"
_CALL = "def f(*given, **named):\n    return given, named\n\n\n"
_SHOTS = (
    ('def f(words):\n    return "-".join(words)', '["go", "on"]', '"go-on"'),
    ("def f(n):\n    return [n] * n", "3", "[3, 3, 3]"),
)


def parse_output(record: Record) -> Problem:
    """A problem whose output is asked for."""
    code, given, returned = (text(record, field) for field in ("code", "input", "output"))
    return Problem(
        task_id=f"{_id(record)}/output",
        language="python",
        before=_ANSWER,
        after="\n)\n",
        tests=(
            f"{code}\n\n"
            f"assert f({given}) == ({returned}), 'the file gives another output than f'\n"
            f"assert codecria_answer() == ({returned}), 'another output'"
        ),
        reference=returned,
        question=_question(code, f"f({given}) == ??", "the output", "a literal, no call"),
        stops=STOPS,
    )


def parse_input(record: Record) -> Problem:
    """A problem whose input is asked for."""
    code, given, returned = (text(record, field) for field in ("code", "input", "output"))
    return Problem(
        task_id=f"{_id(record)}/input",
        language="python",
        before=_CALL + _ANSWER,
        after="\n)\n",
        tests=(
            f"{code}\n\n_given, _named = codecria_answer()\n"
            f"assert f(*_given, **_named) == ({returned}), 'another output'"
        ),
        reference=f"f({given})",
        question=_question(code, f"f(??) == {returned}", "any input", "a call of f"),
        stops=STOPS,
    )


def _id(record: Record) -> str:
    found = record.get("id")
    if not isinstance(found, str | int):
        raise KeyError("id")
    return f"CRUXEval/{str(found).removeprefix('sample_')}"


def _question(code: str, assertion: str, wanted: str, form: str) -> str:
    return (
        f"Here is a Python function and an assertion about it. Give {wanted} that stands for ??"
        f" ({form}), even where the function is wrong. Write the whole assertion between [ANSWER]"
        f" and [/ANSWER] tags, and nothing else.\n\n[PYTHON]\n{code}\nassert {assertion}\n[/PYTHON]"
    )


def prompt(problem: Problem, form: str) -> str:
    """The two-shot prompt, up to where the assertion begins."""
    del form
    of_output = problem.task_id.endswith("/output")
    shown = []
    for code, given, returned in _SHOTS:
        left = f"f({given}) == ??" if of_output else f"f(??) == {returned}"
        shown.append(
            f"[PYTHON]\n{code}\nassert {left}\n[/PYTHON]\n"
            f"[ANSWER]\nassert f({given}) == {returned}\n[/ANSWER]\n\n"
        )
    head, mark, asked = problem.question.partition("[PYTHON]")
    return f"{head}{''.join(shown)}{mark}{asked}\n[ANSWER]\n"


def expression(problem: Problem, said: str) -> str:
    """The expression in what a model said: one side of the assertion, or all of it."""
    between = re.search(r"\[ANSWER\](.*?)(?:\[/ANSWER\]|\Z)", said, re.DOTALL)
    found = (between[1] if between else said).strip()
    found = re.sub(r"\A```\w*\n|\n?```\Z", "", found).strip()
    found = re.sub(r"\Aassert\s+", "", found)
    left, equals, right = found.partition("==")
    if problem.task_id.endswith("/input"):
        return left.strip()
    return right.strip() if equals else found
