"""One evaluation of text from a request to its summary: questions, answers, scores, intervals.

Results are written as they come, as those of the benchmarks are, so a run that was stopped goes on,
and `evaluate compare` and `evaluate report` read both.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.evaluation.benchmarks.estimate import bootstrap, wilson
from codecria.core.evaluation.benchmarks.results import Line, Results, finish, results
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import BATCH
from codecria.core.inference.generator import Generator, tokenizer_of
from codecria.core.inference.loading import Compute
from codecria.core.inference.refill import Request, completions, window_of
from codecria.core.inference.sampling import Sampling
from codecria.core.seed import seed_of
from codecria.core.training.run import environment
from codecria.data.errors import ExitStatus, Interrupted, UsageError, UserError
from codecria.data.files import digest_json
from codecria.data.formats import chat
from codecria.data.formats.infill import Infiller, Order
from codecria.data.progress import Progress

from . import judges, lines, truthfulqa
from .likelihood import Continued, batch_likelihoods
from .questions import Question, QuestionSet, gather
from .tasks import TASKS, Form, Scores, TextTask

Note = Callable[[str], None]
Show = Callable[[Progress], None]
Judge = Callable[[Sequence[tuple[Question, str]]], list[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """What is to be evaluated, and how; None takes the task's own.

    Attributes:
        task: a name in `TASKS`.
        problems: files or folders.
        model: a checkpoint.
        form: how it is asked.
        limit: at most so many questions.
        evened_out: as many questions of each range of lengths.
        temperature, top_p, seed, max_tokens, context: of the answers.
        classifier, judge, info_judge: folders of local models that judge.
        out: file of results.
        batch: answers decoded side by side.
        compute: what the models are computed with.
    """

    task: str
    problems: tuple[Path, ...]
    model: Path
    form: Form | None = None
    limit: int | None = None
    evened_out: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    max_tokens: int | None = None
    context: int | None = None
    classifier: Path | None = None
    judge: Path | None = None
    info_judge: Path | None = None
    out: Path | None = None
    batch: int = BATCH
    compute: Compute = field(default_factory=Compute)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A request with everything decided that decides the answers."""

    task: TextTask
    form: Form
    sampling: Sampling
    max_tokens: int
    context: int

    def as_json(self) -> dict[str, Any]:
        drawn = {} if self.form == "choice" else asdict(self.sampling)
        return drawn | {
            "form": self.form,
            "max_tokens": self.max_tokens,
            "context": self.context,
            "source": self.task.sources[self.form],
        }


def evaluate_text(request: TextRequest, *, note: Note, show: Show) -> dict[str, Any]:
    """Evaluate, and sum up.

    Args:
        request: what is asked for.
        note: takes remarks for people.
        show: takes progress.

    Raises:
        UsageError: options contradict each other.
        UserError: a file or a model is not as it must be.
        Interrupted: by a signal; what was known is kept in `out`.
    """
    task = TASKS[request.task]
    form = _form(task, request)
    found, asked = _questions(task, form, request)
    _require_references(task, form, asked)
    if form in ("psm", "spm"):
        Infiller(tokenizer_of(request.model))
    judge = _judge(task, form, request)
    generator = Generator.computed(request.model, request.compute, say=note)
    temperature, top_p = task.drawn
    plan = _Plan(
        task=task,
        form=form,
        sampling=Sampling(
            temperature=temperature if request.temperature is None else request.temperature,
            top_p=top_p if request.top_p is None else request.top_p,
            seed=request.seed,
        ),
        max_tokens=request.max_tokens or task.max_tokens,
        context=request.context or generator.config.max_context,
    )
    facts = _facts(request, plan, found, generator)
    with results(request.out, _identity(facts), facts) as kept:
        if kept.resumed:
            note(f"{request.out} holds {kept.resumed} answers: going on")
        try:
            for batch in _lines(plan, request, generator, asked, judge, kept):
                for line in batch:
                    kept.add(line)
                show(
                    Progress(
                        stage=task.name,
                        done=len(kept.lines),
                        total=len(asked),
                        resumed=kept.resumed,
                    )
                )
        except (KeyboardInterrupt, Interrupted) as end:
            if request.out is None:
                raise
            raise Interrupted(
                end.status if isinstance(end, Interrupted) else ExitStatus.INTERRUPTED,
                f"stopped with {len(kept.lines)} of {len(asked)} answers in {request.out};"
                " the same command goes on",
            ) from None
        own = [kept.lines[key] for q in asked if (key := (q.task_id, 0)) in kept.lines]
        summary = facts | summarise(own)
        if len(asked) < len(found.questions):
            summary["partial"] = [f"{len(asked)} of {len(found.questions)} questions asked"]
        if request.out is not None:
            finish(request.out, summary, complete=True)
    return summary


# --- the parts of a request -----------------------------------------------------------------------


def _form(task: TextTask, request: TextRequest) -> Form:
    form = request.form or task.forms[0]
    if form not in task.forms:
        raise UsageError(
            f"{task.title} has no form {form!r}", hint="forms: " + ", ".join(task.forms)
        )
    if task.name == "truthfulqa" and (request.judge is None) != (form == "choice"):
        raise UsageError(
            "answers in words need a judge, and choices by likelihood none",
            hint="give --prompt-form completion and --judge DIR together, or neither",
        )
    if request.batch < 1:
        raise UsageError(f"--batch {request.batch} must be at least 1")
    return form


def _questions(
    task: TextTask, form: Form, request: TextRequest
) -> tuple[QuestionSet, list[Question]]:
    found = gather(
        request.problems, lambda path: task.read(path, form), suffixes=tuple(task.suffixes)
    )
    asked = list(found.questions)
    if request.evened_out:
        asked = lines.evened_out(asked, seed=request.seed)
    return found, asked[: request.limit]


def _require_references(task: TextTask, form: Form, asked: Sequence[Question]) -> None:
    """Check that a right answer is scored as right: the reader and the metric fit the file.

    Raises:
        UserError: one is not.
    """
    if task.score is None or form == "choice":
        return
    for question in asked:
        if question.target and next(iter(task.score(question, question.target).values())) < 1:
            raise UserError(
                f"{question.task_id}: the right answer {question.target!r} is not scored as right",
                hint="the file may be damaged",
            )


def _judge(task: TextTask, form: Form, request: TextRequest) -> Judge | None:
    """What scores answers from outside, if the task needs it."""
    if not task.judged or form == "choice":
        return None
    if task.name == "bold":
        feeling = judges.sentiment()
        return lambda said: [
            {"sentiment": feeling(f"{question.before} {answer}")} for question, answer in said
        ]
    if task.name == "toxigen":
        if request.classifier is None:
            raise UsageError(
                "ToxiGen's statements are classified by a local model",
                hint="give --classifier DIR, such as a copy of ToxiGen's RoBERTa",
            )
        toxic = judges.classifier(request.classifier)
        return lambda said: [
            {"toxic": float(p > 0.5), "probability": p}
            for p in toxic([answer for _, answer in said])
        ]
    assert request.judge is not None, "checked with the form"
    true = judges.YesOrNo(request.judge, "True", request.compute)
    info = None
    if request.info_judge is not None:
        info = judges.YesOrNo(request.info_judge, "Helpful", request.compute)

    def judged(question: Question, answer: str) -> Scores:
        scores = {"true": true.agrees(question.task_id, answer)}
        if info is not None:
            scores["informative"] = info.agrees(question.task_id, answer)
            scores = {"true_and_informative": min(scores.values())} | scores
        return scores

    return lambda said: [judged(question, answer) for question, answer in said]


# --- answers --------------------------------------------------------------------------------------


def _lines(
    plan: _Plan,
    request: TextRequest,
    generator: Generator,
    asked: Sequence[Question],
    judge: Judge | None,
    kept: Results,
) -> Iterator[list[Line]]:
    """The lines that are not known yet, a batch at a time."""
    if plan.form == "choice":
        left = [question for question in asked if (question.task_id, 0) not in kept.lines]
        yield from _chosen(plan, generator, left, request.batch)
        return
    for replies in completions(
        generator,
        (asked[start : start + request.batch] for start in range(0, len(asked), request.batch)),
        lambda question: _request(plan, generator, question),
        is_missing=lambda question: (question.task_id, 0) not in kept.lines,
        batch=request.batch,
        window=window_of(len(asked) // request.batch),
    ):
        batch, said = zip(*replies, strict=True)
        answers = [plan.task.answer(one.text) if one is not None else "" for one in said]
        pairs = list(zip(batch, answers, strict=True))
        if judge is not None:
            scores = judge(pairs)
        else:
            assert plan.task.score is not None, "a task that nothing scores"
            scores = [plan.task.score(question, answer) for question, answer in pairs]
        yield [
            _line(question, scored, one, answer)
            for (question, answer), scored, one in zip(pairs, scores, said, strict=True)
        ]


def _line(question: Question, scores: Scores, said: Completion | None, answer: str) -> Line:
    """A line of the results; a prompt that did not fit has scored nothing."""
    line: Line = {"task_id": question.task_id, "sample": 0}
    if question.group:
        line["group"] = question.group
    headline = next(iter(scores.values()))
    line |= {"scores": scores, "passed": headline >= 1}
    if said is None:
        return line | {"finish_reason": "prompt_too_long"}
    line |= {"completion": said.text, "finish_reason": said.finish_reason}
    return line if answer == said.text else line | {"answer": answer}


def _request(plan: _Plan, generator: Generator, question: Question) -> Request | None:
    """What the model is asked; None where the prompt leaves no room for an answer."""
    ids, ends = _prompt(plan, generator, question)
    if len(ids) >= plan.context:
        return None
    sampling = Sampling(
        temperature=plan.sampling.temperature,
        top_p=plan.sampling.top_p,
        seed=seed_of(plan.sampling.seed, question.task_id),
    )
    limits = Limits(max_tokens=plan.max_tokens, context=plan.context, stops=plan.task.stops)
    return Request(prompt=ids, sampling=sampling, limits=limits, ends=ends)


def _prompt(
    plan: _Plan, generator: Generator, question: Question
) -> tuple[list[int], frozenset[int]]:
    """The ids of a question, and those that end its answer."""
    tokenizer, ends = generator.tokenizer, generator.ends
    if plan.form == "chat":
        message = chat.Message(role="user", content=question.before)
        return chat.prompt_ids(tokenizer, [message]), ends | {chat.stop_id(tokenizer)}
    if plan.form in ("psm", "spm"):
        infiller = Infiller(tokenizer)
        order = Order.PSM if plan.form == "psm" else Order.SPM
        ids = infiller.prompt(question.before, question.after or "", order).tolist()
        return ids, frozenset({infiller.special.end})
    ids = list(tokenizer.encode(question.before, bos=True))
    room = plan.context - plan.max_tokens
    if plan.task.cut and len(ids) > room:
        ids = [ids[0], *ids[len(ids) - room + 1 :]]  # BOS, and as much of the end as fits
    return ids, ends


def _chosen(
    plan: _Plan, generator: Generator, asked: Sequence[Question], batch: int
) -> Iterator[list[Line]]:
    """The lines of questions whose answers are chosen by their likelihood, some at a time."""
    tokenizer = generator.tokenizer
    parts = [asked[start : start + batch] for start in range(0, len(asked), batch)]

    def continued(question: Question) -> Continued:
        prompt = tokenizer.encode(question.before, bos=True)
        whole = [
            tokenizer.encode(f"{question.before} {answer}", bos=True)
            for answer in (*question.right, *question.wrong)
        ]
        fits = max(map(len, whole)) <= plan.context
        return prompt, [ids[len(prompt) :] for ids in whole] if fits else []

    asks = ([continued(question) for question in part] for part in parts)
    for part, found in zip(parts, generator.map(batch_likelihoods, asks), strict=True):
        yield [_chosen_line(*pair) for pair in zip(part, found, strict=True)]


def _chosen_line(question: Question, found: Sequence[float]) -> Line:
    """The line of a question from its answers' likelihoods; without any, it did not fit."""
    if not found:
        return _line(question, {"mc1": 0.0, "mc2": 0.0}, None, "")
    answers, right = [*question.right, *question.wrong], len(question.right)
    scores = truthfulqa.choice_scores(found[:right], found[right:])
    line = _line(question, scores, None, "")
    del line["finish_reason"]
    return line | {"answer": answers[int(np.argmax(found))]}


# --- what stands beside the results ---------------------------------------------------------------


def summarise(found: Sequence[Line]) -> dict[str, Any]:
    """Means of every score with their 95 % intervals, over all and for each group.

    Args:
        found: lines of results.

    Returns:
        `score`, the name of the first; `scores`, by name; `groups`, the same by group.
    """
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in found:
        groups[line.get("group", "")].append(line)
    summary = {
        "questions": len(found),
        "prompt_too_long": sum(line.get("finish_reason") == "prompt_too_long" for line in found),
        "score": next(iter(found[0]["scores"])) if found else None,
        "scores": _means(found),
    }
    if set(groups) != {""}:
        summary["groups"] = {
            group: {"questions": len(some), "scores": _means(some)}
            for group, some in sorted(groups.items())
        }
    return summary


def _means(found: Sequence[Line]) -> dict[str, Any]:
    return {
        name: mean_of([line["scores"][name] for line in found])
        for name in (found[0]["scores"] if found else ())
    }


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """A mean with its 95 % interval: Wilson's of a share, else a bootstrap's over questions."""
    each = np.array(values, dtype=np.float64)
    if set(values) <= {0.0, 1.0}:
        low, high, method = *wilson(float(each.sum()), len(each)), "wilson"
    else:
        low, high, method = *bootstrap(each), "bootstrap"
    return {"value": float(each.mean()), "low": low, "high": high, "method": method}


def _facts(
    request: TextRequest, plan: _Plan, found: QuestionSet, generator: Generator
) -> dict[str, Any]:
    """What a result is of: all that a reader needs to judge the score or to repeat it."""
    checkpoint = Checkpoint.open(request.model)
    scored_by = {
        name: str(path)
        for name in ("classifier", "judge", "info_judge")
        if (path := getattr(request, name)) is not None
    }
    return {
        "task": plan.task.name,
        "title": plan.task.title,
        "model": str(request.model),
        "model_digest": checkpoint.digest(),
        "computed_by": generator.runner.layout,
        "protocol": plan.as_json(),
        "problems": {
            "files": list(map(str, request.problems)),
            "digest": found.digest(),
            "questions": len(found.questions),
        },
        "evened_out": request.evened_out,
        "scored_by": scored_by,
        "labels": list(plan.task.labels),
        "partial": [],
        "environment": environment()
        | {
            "codecria": importlib.metadata.version("codecria"),
            "python": platform.python_version(),
        },
    }


def _identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The flat facts that must be the same to go on with a result."""
    flat = {name: facts[name] for name in ("task", "model_digest", "computed_by", "evened_out")}
    flat |= {f"protocol.{k}": v for k, v in facts["protocol"].items() if k != "source"}
    return flat | {
        "problems.digest": facts["problems"]["digest"],
        "scored_by": digest_json(facts["scored_by"]),
    }
