"""The evaluations of text: what they read, how a model is asked, what of its answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from . import docstrings, gsm8k, lines, safety, truthfulqa
from .metrics import edit_similarity, exact_match, smoothed_bleu
from .questions import Question

Form = Literal["completion", "psm", "spm", "chat", "choice"]
Scores = dict[str, float]
GREEDY, SAFETY = (0.0, 1.0), (0.1, 0.9)  # temperature and nucleus; the paper's section 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTask:
    """An evaluation whose answers are compared as text.

    Attributes:
        name: on the command line.
        title: as people write it.
        read: the questions of a file, in a form.
        suffixes: of the files that a folder is searched for.
        forms: how a model can be asked; the first unless another is chosen.
        answer: what of a model's text counts.
        score: of an answer, by name; the first is the score.
        judged: whether the score comes from outside: a classifier, a lexicon or a judge.
        stops: strings that end an answer.
        max_tokens: longest answer.
        drawn: temperature and nucleus.
        cut: whether a prompt that is too long loses its start; otherwise it scores nothing.
        sources: where each form comes from.
        labels: what a reader of the score must know.
    """

    name: str
    title: str
    read: Callable[[Path, Form], Iterable[Question]]
    suffixes: Sequence[str]
    forms: tuple[Form, ...] = ("completion",)
    answer: Callable[[str], str] = str.strip
    score: Callable[[Question, str], Scores] | None = None
    judged: bool = False
    stops: tuple[str, ...] = ()
    max_tokens: int
    drawn: tuple[float, float] = GREEDY
    cut: bool = False
    sources: Mapping[Form, str]
    labels: tuple[str, ...] = ()


def _plain(
    read: Callable[[Path], Iterable[Question]],
) -> Callable[[Path, Form], Iterable[Question]]:
    return lambda path, _: read(path)


def _solved(question: Question, answer: str) -> Scores:
    return {"solved": gsm8k.solved(answer, question.target)}


def _line(question: Question, answer: str) -> Scores:
    bare = partial("".join)
    return {
        "exact_match": exact_match(answer, question.target),
        "edit_similarity": edit_similarity(answer, question.target),
        "bleu": smoothed_bleu(answer, question.target) / 100,
        "exact_without_spaces": float(bare(answer.split()) == bare(question.target.split())),
    }


def _infilled(question: Question, answer: str) -> Scores:
    return {
        "exact_match": float(answer.strip() == question.target),
        "edit_similarity": edit_similarity(answer.strip(), question.target),
    }


def _documented(question: Question, answer: str) -> Scores:
    return {"bleu": smoothed_bleu(answer, question.target) / 100}


def _declined(_: Question, answer: str) -> Scores:
    return {"refused": safety.is_refusal(answer)}


TASKS: dict[str, TextTask] = {
    task.name: task
    for task in (
        TextTask(
            name="gsm8k",
            title="GSM8K",
            read=_plain(gsm8k.read),
            suffixes=gsm8k.SUFFIXES,
            answer=gsm8k.answer,
            score=_solved,
            stops=gsm8k.STOPS,
            max_tokens=256,
            sources={"completion": "8-shot, Code Llama table 12; the worked problems are ours"},
            labels=(
                "the number after the first 'answer is', or else the last number, is the answer",
            ),
        ),
        TextTask(
            name="line-completion",
            title="Line completion",
            read=_plain(lines.read_completion),
            suffixes=(*lines.RECORDS, ".py", ".java", ".cs", ".js", ".ts", ".c", ".cpp", ".go"),
            answer=lines.first_line,
            score=_line,
            stops=(),
            max_tokens=64,
            cut=True,
            sources={"completion": "greedy, Code Llama table 7; CodeXGLUE's py150 and LCC"},
            labels=("white space between tokens does not count in an exact match",),
        ),
        TextTask(
            name="line-infilling",
            title="Single-line infilling",
            read=_plain(lines.read_infilling),
            suffixes=lines.RECORDS,
            forms=("psm", "spm"),
            score=_infilled,
            max_tokens=128,
            sources={
                "psm": "Code Llama table 6 (Allal et al. 2023): greedy, exact match, prefix first",
                "spm": "Code Llama table 6 (Allal et al. 2023): greedy, exact match, suffix first",
            },
        ),
        TextTask(
            name="docstrings",
            title="Docstring generation",
            read=lambda path, form: docstrings.read(path, infill=form != "completion"),
            suffixes=docstrings.SUFFIXES,
            forms=("psm", "spm", "completion"),
            answer=docstrings.answer,
            score=_documented,
            max_tokens=64,
            sources={
                "psm": "Code Llama table 13 and appendix E: infilled, greedy, prefix first",
                "spm": "Code Llama appendix E, suffix first",
                "completion": "left to right: what follows the docstring is not shown",
            },
            labels=("BLEU is CodeXGLUE's smoothed BLEU-4, the mean over sentences",),
        ),
        TextTask(
            name="truthfulqa",
            title="TruthfulQA",
            read=_plain(truthfulqa.read),
            suffixes=truthfulqa.SUFFIXES,
            forms=("choice", "completion"),
            answer=safety.statement,
            judged=True,
            stops=truthfulqa.STOPS,
            max_tokens=64,
            drawn=SAFETY,
            sources={
                "choice": "Lin et al. 2021: mc1 and mc2 by likelihood; six pairs shown, ours",
                "completion": "Code Llama table 9: answers to six pairs and a question, judged",
            },
        ),
        TextTask(
            name="toxigen",
            title="ToxiGen",
            read=_plain(safety.read_toxigen),
            suffixes=safety.TOXIGEN_SUFFIXES,
            forms=("completion", "chat"),
            answer=safety.statement,
            judged=True,
            max_tokens=64,
            drawn=SAFETY,
            cut=True,
            sources={
                "completion": "Code Llama table 9: the next statement of each prompt, classified",
                "chat": "the prompt as a message, for models tuned on instructions",
            },
            labels=("the paper's filtered prompts are not published with the set",),
        ),
        TextTask(
            name="bold",
            title="BOLD",
            read=_plain(safety.read_bold),
            suffixes=safety.BOLD_SUFFIXES,
            forms=("completion", "chat"),
            judged=True,
            max_tokens=64,
            drawn=SAFETY,
            sources={
                "completion": "Code Llama table 9: VADER's sentiment of prompt and completion",
                "chat": "the prompt as a message, for models tuned on instructions",
            },
            labels=("two groups of religions are left out, as in the paper: too few prompts",),
        ),
        TextTask(
            name="refusals",
            title="False refusals",
            read=_plain(safety.read_harmless),
            suffixes=(".json", ".jsonl"),
            forms=("chat", "completion"),
            score=_declined,
            max_tokens=96,
            sources={
                "chat": "Code Llama section 4 notes false refusals; requests and rule are ours",
                "completion": "as above, continued without the chat form",
            },
            labels=("an answer whose start declines in the first person counts as a refusal",),
        ),
    )
}
