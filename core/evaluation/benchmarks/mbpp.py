"""MBPP (Austin et al. 2021): a task in a sentence and its tests, and a whole program is written.

Two prompts. Three-shot, as in Austin et al. and as Code Llama is scored (table 2); that the paper's
few-shot text was exactly this is from memory, and every result says so. Zero-shot, for models tuned
on instructions (table 8 and figure 13): the task, its tests, and tags to answer between; the words
are ours, the parts and their order are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

from codecria.data.formats.blocks import END_TAG, TAG

from .problems import Problem, Record, text, texts

SHOTS = (2, 3, 4)  # the tasks whose solutions are shown (google-research/mbpp, README)
SPLITS = {  # by task id (the same README)
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
STOPS = ("[DONE]",)
PREFIX = "MBPP/"


def parse(record: Record) -> Problem:
    """A problem of mbpp.jsonl, or of sanitized-mbpp.json, whose names of fields differ."""
    number = record.get("task_id")
    if not isinstance(number, int):
        raise KeyError("task_id")
    sanitized = "test_imports" in record
    setup = texts(record, "test_imports") if sanitized else (text(record, "test_setup_code"),)
    shown = texts(record, "test_list")
    return Problem(
        task_id=f"{PREFIX}{number}",
        language="python",
        tests="\n".join([*(line for line in setup if line), *shown]),
        reference=text(record, "code"),
        question=text(record, "prompt" if sanitized else "text"),
        shown=shown,
        stops=STOPS,
    )


def number_of(problem: Problem) -> int:
    """The number that the file names a task by."""
    return int(problem.task_id.removeprefix(PREFIX))


def few_shot_prompt(problem: Problem, shots: Sequence[Problem]) -> str:
    """The three-shot prompt: tasks with their solutions, then the task."""
    examples = [f"{_task(shot)}\n[BEGIN]\n{shot.reference}\n[DONE]" for shot in shots]
    return "\n\n".join([*examples, f"{_task(problem)}\n[BEGIN]\n"])


def _task(problem: Problem) -> str:
    tests = "\n".join(problem.shown)
    return (
        "You are an expert Python programmer, and here is your task:"
        f" {problem.question} Your code should pass these tests:\n\n{tests}"
    )


def tagged_prompt(problem: Problem) -> str:
    """The zero-shot prompt: the task, its tests, and the tags around the answer."""
    tests = "\n".join(problem.shown)
    return (
        f"You are an expert Python programmer. Your task is this: {problem.question}\n"
        f"The code you write has to pass these tests:\n\n{tests}\n\n"
        f"Write the code between {TAG} and {END_TAG} tags."
    )
