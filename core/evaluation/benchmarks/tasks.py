"""The tasks: from a problem to a prompt, from what the model says to a completion.

    file -> Problem -> prompt -> text of the model -> completion -> program, run by scoring.py

A completion is always what goes behind the published prompt, so that any tool can score it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from codecria.data.errors import UsageError, UserError
from codecria.data.formats import answers, chat
from codecria.data.formats.infill import Infiller, Order
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import exercises, humaneval, mbpp, multilingual
from .problems import Problem, ProblemSet, Record, read
from .protocol import Form, Protocol

Split = Literal["test", "validation", "train", "prompt", "all"]
SPLITS: tuple[str, ...] = get_args(Split)
FROM_MEMORY = "the [BEGIN] and [DONE] form of the prompt is from memory: the paper does not show it"
OUR_WORDS = "the paper shows the parts of this prompt; its words are ours"
PLAIN = "the prompt as published, not stripped"


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
    """

    name: str
    title: str
    parse: Callable[[Record], Problem]
    forms: tuple[Form, ...]
    sources: Mapping[Form, str]
    labels: Mapping[Form, tuple[str, ...]]
    answers: Form | None = None


_CHAT = "PAPER: zero-shot for Instruct too; whether in the chat form is not said, so both are told"
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
            labels={},
        ),
        Task(
            name="humaneval-x",
            title="HumanEval-X",
            parse=multilingual.parse_x,
            forms=("completion",),
            sources={"completion": "zero-shot, Zheng et al. 2023; stop strings are ours"},
            labels={"completion": ("not in the paper, which uses MultiPL-E",)},
        ),
        Task(
            name="multipl-e",
            title="MultiPL-E",
            parse=multilingual.parse_e,
            forms=("completion",),
            sources={"completion": "zero-shot, Code Llama table 4; stop strings of the file"},
            labels={"completion": ("the suite has no reference solutions",)},
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
            labels={},
            answers="chat",
        ),
    )
}


def load(task: Task, path: Path) -> ProblemSet:
    """The problems in a file of the task.

    Raises:
        UserError: see `problems.read`.
    """
    return read(path, task.parse)


def select(
    task: Task,
    found: ProblemSet,
    *,
    split: Split = "test",
    ids: Sequence[str] = (),
    limit: int | None = None,
) -> list[Problem]:
    """The problems asked for, in the file's order.

    Args:
        task: of MBPP, `split` is taken.
        found: all problems of the file.
        split: of MBPP, by task id.
        ids: these alone, of whichever split; spelled as `known_id` takes them.
        limit: at most so many.

    Raises:
        UserError: an id is not in the file, or nothing is left.
    """
    by_id = found.by_id()
    problems = list(found.problems)
    if ids:
        wanted = {known_id(i, by_id): i for i in ids}
        unknown = [given for known, given in wanted.items() if known is None]
        if None in wanted:
            raise UserError(
                f"{found.path} has no task {unknown[0]}",
                hint=f"ids are spelled as {problems[0].task_id}",
            )
        problems = [problem for problem in problems if problem.task_id in wanted]
    elif task.name == "mbpp" and split != "all":
        problems = [p for p in problems if mbpp.number_of(p) in mbpp.SPLITS[split]]
    problems = problems[:limit]
    if not problems:
        raise UserError(f"{found.path} has no task of the split {split}", hint="try --split all")
    return problems


def known_id(given: object, problems: Mapping[str, Problem]) -> str | None:
    """The id of a problem as tools spell it: MBPP's are numbers, or begin with Mbpp in evalplus.

    >>> known_id(11, {"MBPP/11": None}), known_id("Mbpp/11", {"MBPP/11": None})
    ('MBPP/11', 'MBPP/11')
    """
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None
    spelled = str(given)
    if spelled in problems:
        return spelled
    number = re.fullmatch(r"(?:mbpp/)?(\d+)", spelled, re.IGNORECASE)
    for prefix in (mbpp.PREFIX, "HumanEval/") if number else ():
        assert number is not None, "the loop is empty"
        if f"{prefix}{number[1]}" in problems:
            return f"{prefix}{number[1]}"
    return None


def shots_of(task: Task, form: Form, found: ProblemSet) -> tuple[Problem, ...]:
    """The solved tasks that the prompt shows.

    Raises:
        UserError: the file does not hold them.
    """
    if task.name != "mbpp" or form != "few-shot":
        return ()
    by_id = found.by_id()
    ids = [f"{mbpp.PREFIX}{number}" for number in mbpp.SHOTS]
    missing = [i for i in ids if i not in by_id]
    if missing:
        raise UserError(
            f"{found.path} has no {missing[0]}, whose solution the prompt shows",
            hint="use the whole file, or --prompt-form tagged",
        )
    return tuple(by_id[i] for i in ids)


# --- what the model is shown ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt and where its completion ends.

    Attributes:
        ids: the prompt, BOS first.
        ends: ids that end it.
        stops: strings that end it and are no part of it.
        left_out: white space of the published prompt that the model was not shown.
    """

    ids: tuple[int, ...]
    ends: frozenset[int]
    stops: tuple[str, ...]
    left_out: str = ""


class Asker:
    """Makes prompts of problems, and completions of what the model says to them.

    Args:
        protocol: says how.
        shots: solved tasks that the prompt shows.
        tokenizer: of the model.
        ends: ids that end a completion of the checkpoint.

    Raises:
        UserError: the tokenizer cannot fill in the middle, and that is asked for.
    """

    def __init__(
        self,
        protocol: Protocol,
        shots: Sequence[Problem],
        tokenizer: Tokenizer,
        ends: frozenset[int],
    ) -> None:
        self.protocol = protocol
        self.shots = shots
        self.tokenizer = tokenizer
        self._ends = ends if protocol.eos_ends else frozenset[int]()
        self._infiller = Infiller(tokenizer) if protocol.form in ("psm", "spm") else None

    def ask(self, problem: Problem) -> Asked:
        """The prompt of a problem."""
        form = self.protocol.form
        if self._infiller is not None:
            order = Order.PSM if form == "psm" else Order.SPM
            ids = self._infiller.prompt(problem.before, problem.after, order)
            ends = self._ends | {self._infiller.special.end}
            return Asked(ids=tuple(ids.tolist()), ends=ends, stops=())
        if form == "chat":
            question = chat.Message(role="user", content=question_of(problem))
            return Asked(
                ids=tuple(chat.prompt_ids(self.tokenizer, [question])),
                ends=self._ends | {chat.stop_id(self.tokenizer)},
                stops=(),
            )
        prompt, stops = problem.before, problem.stops
        if form == "few-shot":
            prompt = mbpp.few_shot_prompt(problem, self.shots)
        elif form == "tagged":
            prompt, stops = f"{mbpp.tagged_prompt(problem)}\n{answers.TAG}\n", (answers.END_TAG,)
        kept = prompt.rstrip() if self.protocol.strip_prompt else prompt
        return Asked(
            ids=tuple(self.tokenizer.encode(kept, bos=True)),
            ends=self._ends,
            stops=stops,
            left_out=prompt[len(kept) :],
        )

    def written(self, problem: Problem, asked: Asked, said: str, *, cut: bool) -> Written:
        """The program in what the model said.

        Args:
            problem, asked: what it answers.
            said: its text, without the stop string.
            cut: whether a stop string ended it.
        """
        if self.protocol.form == "chat":
            return answer_to(problem, chat.answer_of(said), self.protocol.extraction)
        said = said.removeprefix(asked.left_out)
        if cut and self.protocol.task == "humaneval-x":
            return Written(multilingual.closed(problem, said))
        return Written(said)


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote for a problem.

    Attributes:
        text: a completion, or a whole program.
        is_whole: which of the two.
        extracted: what of a chat answer was chosen; None where nothing was.
    """

    text: str
    is_whole: bool = False
    extracted: str | None = None


def question_of(problem: Problem) -> str:
    """What a model in a conversation is asked."""
    if problem.shown:
        return mbpp.tagged_prompt(problem)
    if problem.question:
        return problem.question
    return (
        "Complete this Python function. Answer with the whole function in one code block.\n\n"
        f"```python\n{problem.before.rstrip()}\n```"
    )


def answer_to(problem: Problem, answer: str, rule: answers.Rule = "best") -> Written:
    """The completion that an answer's code amounts to.

    An answer holds the whole function again. Behind a prompt that is a whole function already, as
    one with a docstring is, it is defined anew; imports and helpers of the prompt stay.

    Args:
        problem: that was asked.
        answer: of the model.
        rule: how the code is found.
    """
    if rule == "simple":
        code, chosen = answers.simple(answer), "simple rule"
        is_body = not re.search(
            rf"^\s*(async\s+)?def\s+{re.escape(problem.entry_point)}\b", code, re.MULTILINE
        )
    else:
        found = answers.extract(answer, wanted=problem.wanted, head=problem.before)
        code, chosen, is_body = found.code, found.chosen, found.is_body
    if not problem.before or is_body:
        return Written(code, extracted=chosen)
    head = problem.before
    if answers.parse(head) is None:
        head = f"{head}    pass\n"
    future, rest = answers.split_future(code)
    if future:  # stands ahead of everything, so that no completion can hold it
        return Written(f"{future}{head}\n\n{rest}", is_whole=True, extracted=chosen)
    return Written(f"{head[len(problem.before) :]}\n\n{code}", extracted=chosen)


def with_form(task: Task, form: str | None) -> Form:
    """The form that is asked for, or the task's own.

    Raises:
        UsageError: the task has no such form.
    """
    for known in task.forms:
        if form in (None, known):
            return known
    raise UsageError(f"{task.title} has no form {form!r}", hint="forms: " + ", ".join(task.forms))
