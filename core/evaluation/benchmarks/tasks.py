"""The tasks: from a problem to a prompt, from what the model says to a completion.

    file -> Problem -> prompt -> text of the model -> completion -> program, run by scoring.py

A completion is always what goes behind the published prompt, so that any tool can score it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from codecria.core.sandbox import languages
from codecria.data.errors import UsageError, UserError
from codecria.data.formats import answers, blocks, chat
from codecria.data.formats.infill import Infiller, Order
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import mbpp, multilingual
from .problems import Problem, ProblemSet, read
from .protocol import Form, Protocol
from .registry import TASKS, Task

Split = Literal["test", "validation", "train", "prompt", "all"]
SPLITS: tuple[str, ...] = get_args(Split)


def load(task: Task, path: Path, *, case_s: float | None = None) -> ProblemSet:
    """The problems in a file of the task.

    Args:
        case_s: time limit of a case, in seconds, in place of the suite's own.

    Raises:
        UserError: see `problems.read`.
    """
    found = read(path, task.parse, task.folder)
    return ProblemSet(found.path, tuple(p.with_case_limit(case_s) for p in found.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of a file's problems are asked for.

    Attributes:
        split: of MBPP, by task id.
        ids: these alone, of whichever split; spelled as `known_id` takes them.
        levels: of difficulty; empty for all.
        since, until: first and last date, as year-month-day; empty for no bound.
        limit: at most so many.
    """

    split: Split = "test"
    ids: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    limit: int | None = None


def select(task: Task, found: ProblemSet, choice: Choice = Choice()) -> list[Problem]:
    """The problems asked for, in the file's order.

    Args:
        task: of MBPP, the split is taken; of suites with levels or dates, these.
        found: all problems of the file.
        choice: among them.

    Raises:
        UserError: an id is not in the file, or nothing is left.
    """
    by_id = found.by_id()
    problems = list(found.problems)
    if choice.ids:
        wanted = {known_id(i, by_id): i for i in choice.ids}
        unknown = [given for known, given in wanted.items() if known is None]
        if None in wanted:
            raise UserError(
                f"{found.path} has no task {unknown[0]}",
                hint=f"ids are spelled as {problems[0].task_id}",
            )
        problems = [problem for problem in problems if problem.task_id in wanted]
    elif task.name == "mbpp" and choice.split != "all":
        problems = [p for p in problems if mbpp.number_of(p) in mbpp.SPLITS[choice.split]]
        if not problems:
            raise UserError(
                f"{found.path} has no task of the split {choice.split}", hint="try --split all"
            )
    if choice.levels:
        problems = [p for p in problems if p.level in choice.levels]
    problems = [
        p
        for p in problems
        if choice.since <= p.date and (not choice.until or p.date <= choice.until)
    ]
    if not problems:
        dates = sorted(p.date for p in found.problems)
        raise UserError(
            f"{found.path} has no such problem",
            hint=f"its problems are of {dates[0]} to {dates[-1]}"
            if dates[0]
            else "try without --level",
        )
    return problems[: choice.limit]


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
            before, after = problem.fill or (problem.before, problem.after)
            ids = self._infiller.prompt(before, after, order)
            ends = self._ends | {self._infiller.special.end}
            return Asked(ids=tuple(ids.tolist()), ends=ends, stops=())
        worded = worded_of(problem, self.protocol, self.shots)
        if form == "chat":
            question = chat.Message(role="user", content=worded.prompt)
            return Asked(
                ids=tuple(chat.prompt_ids(self.tokenizer, [question])),
                ends=self._ends | {chat.stop_id(self.tokenizer)},
                stops=(),
            )
        return Asked(
            ids=tuple(self.tokenizer.encode(worded.prompt, bos=True)),
            ends=self._ends,
            stops=worded.stops,
            left_out=worded.left_out,
        )

    def written(self, problem: Problem, asked: Asked, said: str, *, cut: bool) -> Written:
        """The program in what the model said.

        Args:
            problem, asked: what it answers.
            said: its text, without the stop string.
            cut: whether a stop string ended it.
        """
        return written_of(problem, self.protocol, said, left_out=asked.left_out, cut=cut)


@dataclass(frozen=True, slots=True)
class Worded:
    """A prompt as text: a question in the chat form, else what is to be continued.

    Attributes:
        prompt: the text.
        stops: strings that end a completion and are no part of it.
        left_out: white space of the published prompt that the model is not shown.
    """

    prompt: str
    stops: tuple[str, ...] = ()
    left_out: str = ""


def worded_of(problem: Problem, protocol: Protocol, shots: Sequence[Problem]) -> Worded:
    """The prompt of a problem in a form that is text (all but psm and spm)."""
    form = protocol.form
    if form == "chat":
        return Worded((TASKS[protocol.task].chat or question_of)(problem))
    prompt, stops = problem.before, problem.stops
    written = TASKS[protocol.task].prompt
    if written is not None:
        prompt = written(problem, form)
    elif form == "few-shot":
        prompt = mbpp.few_shot_prompt(problem, shots)
    elif form == "tagged":
        prompt, stops = f"{mbpp.tagged_prompt(problem)}\n{blocks.TAG}\n", (blocks.END_TAG,)
    kept = prompt.rstrip() if protocol.strip_prompt else prompt
    return Worded(kept, stops, prompt[len(kept) :])


def written_of(
    problem: Problem, protocol: Protocol, said: str, *, left_out: str, cut: bool
) -> Written:
    """The program in what a model said.

    Args:
        problem, protocol: what it answers, and how it was asked.
        said: its text, without the stop string.
        left_out: see `Worded`.
        cut: whether a stop string ended it.
    """
    reads = TASKS[protocol.task].reads
    if reads is not None:
        answer = chat.answer_of(said) if protocol.form == "chat" else said
        return Written(reads(problem, answer))
    if protocol.form == "chat":
        return answer_to(problem, chat.answer_of(said), protocol.extraction)
    said = said.removeprefix(left_out)
    if cut and protocol.task == "humaneval-x":
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
    known = languages.LANGUAGES.get(problem.language)
    return (
        f"Complete this {known.title if known else 'Python'} function."
        " Answer with the whole function in one code block.\n\n"
        f"```{problem.language}\n{problem.before.rstrip()}\n```"
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
    if blocks.parse(head) is None:
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
