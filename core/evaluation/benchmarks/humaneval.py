"""HumanEval (Chen et al. 2021), and any problems in its format: a function's head is completed.

Also its infilling sets (Bavarian et al. 2022; Fried et al. 2022), where a part of the function is
left out: the same fields, and a suffix.
"""

from __future__ import annotations

from .helpers import helpers_for
from .problems import Problem, Record, text

# The list that the authors of Code Llama point to (PAPER section 8): bigcode-evaluation-harness.
STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")


def parse(record: Record) -> Problem:
    """A problem with the fields task_id, prompt, entry_point, canonical_solution and test."""
    entry_point = text(record, "entry_point")
    reference = record.get("canonical_solution")
    prompt = text(record, "prompt")
    return Problem(
        task_id=text(record, "task_id"),
        language="python",
        before=prompt,
        tests=_tests(record, prompt, reference if isinstance(reference, str) else "    pass\n"),
        reference=reference if isinstance(reference, str) else None,
        entry_point=entry_point,
        stops=STOPS,
    )


def parse_infilling(record: Record) -> Problem:
    """A problem with a suffix too; the middle ends where the model ends it."""
    prompt, reference = text(record, "prompt"), text(record, "canonical_solution")
    return Problem(
        task_id=text(record, "task_id"),
        language="python",
        before=prompt,
        after=text(record, "suffix"),
        tests=_tests(record, prompt, reference, text(record, "suffix")),
        reference=reference,
        entry_point=text(record, "entry_point"),
    )


def _tests(record: Record, prompt: str, reference: str, suffix: str = "") -> str:
    """The tests with the prompt's helpers that they use, and the call that runs them."""
    entry_point, test = text(record, "entry_point"), text(record, "test")
    helpers = helpers_for(test, prompt, reference, suffix, entry_point)
    return f"{helpers}{test}\ncheck({entry_point})"
