"""HumanEval (Chen et al. 2021), and any problems in its format: a function's head is completed.

Also its infilling sets (Bavarian et al. 2022; Fried et al. 2022), where a part of the function is
left out: the same fields, and a suffix.
"""

from __future__ import annotations

from .problems import Problem, Record, text

# The list that the authors of Code Llama point to (PAPER section 8): bigcode-evaluation-harness.
STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")


def parse(record: Record) -> Problem:
    """A problem with the fields task_id, prompt, entry_point, canonical_solution and test."""
    entry_point = text(record, "entry_point")
    reference = record.get("canonical_solution")
    return Problem(
        task_id=text(record, "task_id"),
        language="python",
        before=text(record, "prompt"),
        tests=f"{text(record, 'test')}\ncheck({entry_point})",
        reference=reference if isinstance(reference, str) else None,
        entry_point=entry_point,
        stops=STOPS,
    )


def parse_infilling(record: Record) -> Problem:
    """A problem with a suffix too; the middle ends where the model ends it."""
    entry_point = text(record, "entry_point")
    return Problem(
        task_id=text(record, "task_id"),
        language="python",
        before=text(record, "prompt"),
        after=text(record, "suffix"),
        tests=f"{text(record, 'test')}\ncheck({entry_point})",
        reference=text(record, "canonical_solution"),
        entry_point=entry_point,
    )
