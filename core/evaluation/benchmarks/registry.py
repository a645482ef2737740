"""The test suites by name: each module of a suite is registered here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import (
    apps,
    cruxeval,
    evalplus,
    exercises,
    gsm8k_programs,
    humaneval,
    livecodebench,
    mbpp,
    multilingual,
    safim,
)
from .problems import Problem, Record
from .protocol import Form

FROM_MEMORY = "the [BEGIN] and [DONE] form of the prompt is from memory: the paper does not show it"
OUR_WORDS = "the paper shows the parts of this prompt; its words are ours"
OUR_PROMPT = "the words of this prompt and its examples are ours, not the suite's"
PLAIN = "the prompt as published, not stripped"
_CHAT = "PAPER: zero-shot for Instruct too; whether in the chat form is not said, so both are told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A test suite and how models are asked.

    Attributes:
        name: on the command line.
        title: as people write it.
        parse: makes a record a problem.
        forms: how a model can be asked; the first unless another is chosen.
        sources: where each form comes from.
        labels: what a reader of a score must know of a form.
        answers: for models tuned on instructions, the form that is reported too.
        preset: how samples are drawn unless another is chosen.
        ks: of pass@k, of samples in a file.
        prompt: makes the text of a form that is not the published prompt; given problem and form.
        chat: makes the question of a conversation, where the problem's own is not all of it.
        reads: finds the completion in what a model said, where it is not all that was said.
        folder: gives the records of a folder, where the suite is published as one.
        levels: of difficulty, easiest first; results are reported by level.
        dated: whether its problems have dates.
    """

    name: str
    title: str
    parse: Callable[[Record], Problem]
    forms: tuple[Form, ...]
    sources: Mapping[Form, str]
    labels: Mapping[Form, tuple[str, ...]] = field(default_factory=dict)
    answers: Form | None = None
    preset: str = "paper-greedy"
    ks: tuple[int, ...] = (1, 10, 100)
    prompt: Callable[[Problem, str], str] | None = None
    chat: Callable[[Problem], str] | None = None
    reads: Callable[[Problem, str], str] | None = None
    folder: Callable[[Path], Iterator[tuple[str, Record]]] | None = None
    levels: tuple[str, ...] = ()
    dated: bool = False


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="humaneval",
            title="HumanEval",
            parse=humaneval.parse,
            forms=("completion", "chat"),
            sources={
                "completion": "zero-shot, Code Llama table 2; stop words of the harness its"
                " authors name (bigcode-evaluation-harness)",
                "chat": _CHAT,
            },
            labels={"completion": (PLAIN,), "chat": (OUR_WORDS,)},
            answers="chat",
        ),
        Task(
            name="mbpp",
            title="MBPP",
            parse=mbpp.parse,
            forms=("few-shot", "tagged", "chat"),
            sources={
                "few-shot": "three-shot, Code Llama table 2; tasks 2, 3, 4 shown, 11 to 510 asked"
                " (Austin et al. 2021)",
                "tagged": "zero-shot, Code Llama table 8 and figure 13",
                "chat": "zero-shot, Code Llama table 8 and figure 13, in the chat form",
            },
            labels={
                "few-shot": (FROM_MEMORY,),
                "tagged": (OUR_WORDS,),
                "chat": (OUR_WORDS,),
            },
            answers="chat",
        ),
        Task(
            name="infilling",
            title="HumanEval infilling",
            parse=humaneval.parse_infilling,
            forms=("psm", "spm"),
            sources={
                "psm": "Code Llama table 14, prefix first; the middle ends at EOT alone",
                "spm": "Code Llama table 14, suffix first; the middle ends at EOT alone",
            },
        ),
        Task(
            name="humaneval-x",
            title="HumanEval-X",
            parse=multilingual.parse_x,
            forms=("completion", "chat"),
            sources={
                "completion": "zero-shot, Zheng et al. 2023; stop strings are ours",
                "chat": "zero-shot, Zheng et al. 2023, in the chat form",
            },
            labels={
                "completion": ("not in the paper, which uses MultiPL-E",),
                "chat": ("not in the paper, which uses MultiPL-E", OUR_PROMPT),
            },
            answers="chat",
        ),
        Task(
            name="multipl-e",
            title="MultiPL-E",
            parse=multilingual.parse_e,
            forms=("completion", "chat"),
            sources={
                "completion": "zero-shot, Code Llama table 4; stop strings of the file",
                "chat": _CHAT,
            },
            labels={
                "completion": ("the suite has no reference solutions",),
                "chat": ("the suite has no reference solutions", OUR_PROMPT),
            },
            answers="chat",
        ),
        Task(
            name="apps",
            title="APPS",
            parse=apps.parse,
            forms=("few-shot", "chat"),
            sources={
                "few-shot": "two-shot, Code Llama table 3 and appendix F; 4 s a case and outputs"
                " compared as by the original's harness",
                "chat": "zero-shot for Instruct models, Code Llama table 15, in the chat form",
            },
            labels={"few-shot": (OUR_WORDS,), "chat": (OUR_WORDS,)},
            answers="chat",
            preset="apps",
            ks=(1, 5, 10, 100),
            prompt=apps.prompt,
            chat=apps.chat_question,
            folder=apps.folder_records,
            levels=apps.LEVELS,
        ),
        Task(
            name="gsm8k-programs",
            title="GSM8K, programs",
            parse=gsm8k_programs.parse,
            forms=("few-shot",),
            sources={"few-shot": "8-shot, Code Llama table 12 says no more; answers are programs"},
            labels={"few-shot": (OUR_PROMPT,)},
            prompt=gsm8k_programs.prompt,
        ),
        Task(
            name="humaneval-plus",
            title="HumanEval+",
            parse=evalplus.parse_humaneval,
            forms=("completion", "chat"),
            sources={
                "completion": "zero-shot, Liu et al. 2023; stop words as of HumanEval",
                "chat": "zero-shot, Liu et al. 2023, in the chat form",
            },
            labels={"completion": (PLAIN,), "chat": (OUR_PROMPT,)},
            answers="chat",
        ),
        Task(
            name="mbpp-plus",
            title="MBPP+",
            parse=evalplus.parse_mbpp,
            forms=("completion", "chat"),
            sources={
                "completion": "zero-shot, Liu et al. 2023; stop strings are ours",
                "chat": "zero-shot, Liu et al. 2023, in the chat form",
            },
            labels={"completion": (PLAIN,), "chat": (OUR_PROMPT,)},
            answers="chat",
        ),
        *(
            Task(
                name=name,
                title=title,
                parse=parse,
                forms=("few-shot", "chat"),
                sources={
                    "few-shot": "two-shot, direct prediction, Gu et al. 2024",
                    "chat": "zero-shot, direct prediction, Gu et al. 2024, in the chat form",
                },
                labels={"few-shot": (OUR_PROMPT,), "chat": (OUR_PROMPT,)},
                answers="chat",
                preset="cruxeval",
                ks=(1, 5),
                prompt=cruxeval.prompt,
                reads=cruxeval.expression,
            )
            for name, title, parse in (
                ("cruxeval-o", "CRUXEval, output", cruxeval.parse_output),
                ("cruxeval-i", "CRUXEval, input", cruxeval.parse_input),
            )
        ),
        Task(
            name="livecodebench",
            title="LiveCodeBench",
            parse=livecodebench.parse,
            forms=("few-shot", "chat"),
            sources={
                "few-shot": "one-shot, Jain et al. 2024; 6 s a case and outputs compared as by the"
                " original's harness",
                "chat": "zero-shot, Jain et al. 2024, in the chat form",
            },
            labels={"few-shot": (OUR_PROMPT,), "chat": (OUR_PROMPT,)},
            answers="chat",
            preset="livecodebench",
            ks=(1, 5, 10),
            prompt=livecodebench.prompt,
            chat=livecodebench.chat_question,
            levels=livecodebench.LEVELS,
            dated=True,
        ),
        Task(
            name="safim",
            title="SAFIM",
            parse=safim.parse,
            forms=("psm", "spm"),
            sources={
                "psm": "Gong et al. 2024, prefix first; the middle ends at EOT alone",
                "spm": "Gong et al. 2024, suffix first; the middle ends at EOT alone",
            },
        ),
        Task(
            name="exercises",
            title="Exercises",
            parse=exercises.parse,
            forms=("completion", "chat"),
            sources={
                "completion": "a file of the user's: the head is completed",
                "chat": "a file of the user's: the question as it stands, in the chat form",
            },
            answers="chat",
        ),
    )
}
