"""GSM8K answered by programs: a Python function without arguments returns the number.

The worked problems and their words are those of the worded form (`evaluation/text/gsm8k.py`).
"""

from __future__ import annotations

from ..text.gsm8k import SHOTS, name_of, reference
from .problems import Problem, Record, text

NAME = "solution"
STOPS = ("\n#", "\ndef", "\nclass", "\nprint", "\nassert", "\nif", "\n```")
TOLERANCE = 1e-6  # of the larger of 1 and the number: programs compute with floats


def parse(record: Record) -> Problem:
    """A problem of GSM8K's file, whose function is to be completed."""
    wanted = reference(record)
    return Problem(
        task_id=name_of(record),
        language="python",
        before=_function(text(record, "question"), ""),
        tests=f"assert abs(float({NAME}()) - {wanted}) <= {TOLERANCE} * max(1, abs({wanted}))",
        reference=f"    return {wanted}\n",
        entry_point=NAME,
        stops=STOPS,
    )


def prompt(problem: Problem, _: str) -> str:
    """The worked problems as functions, then the one to be completed."""
    shown = [_function(shot.question, shot.program) for shot in SHOTS]
    return "\n\n".join([*shown, problem.before])


def _function(question: str, body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"# Question: {' '.join(question.split())}\ndef {NAME}():\n{lines}"
