"""One run of self-instruct: questions, their tests, solutions, verdicts, and what is kept.

    DIR/self-instruct.json       what the run is: settings, models, prompts
    DIR/replies/STAGE.jsonl      journals of what models answered
    DIR/probes.jsonl, verdicts/  journals of how programs ended
    DIR/questions.jsonl, tests.jsonl, solutions.jsonl, dropped.jsonl      derived
    DIR/dialogs.jsonl            what is kept, as `instruct` takes it
    DIR/report.json              the funnel

Only the journals cost time, and they survive a kill; everything else is derived from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codecria.core.sandbox.config import SandboxConfig
from codecria.data.corpus import shingles
from codecria.data.corpus.decontaminate import Index, build
from codecria.data.errors import UserError
from codecria.data.files import atomic_write_json, locked, remove_leftovers
from codecria.data.progress import Progress

from . import derive, inputs
from .batch import BatchModel, Responses, read_responses, write_requests
from .endpoint import Endpoint
from .execute import (
    AGAIN,
    Choice,
    Verdicts,
    all_verdicts,
    choose,
    execute,
    probe,
    shard_of,
    shard_path,
    verdict_id,
)
from .inputs import Given
from .items import Candidate, Loss, Question, Tested, read_candidates, read_tested, write_lines
from .journal import Journal, journal
from .models import Ask, Model
from .parse import held_tags
from .record import REPORT, execution_of, open_models, record
from .report import Cost, Losses, costs_json, outcomes
from .request import Request
from .settings import STAGES

DIALOGS, DROPPED = "dialogs.jsonl", "dropped.jsonl"
QUESTIONS, TESTS, SOLUTIONS = (f"{stage}.jsonl" for stage in STAGES)
MAIN = "main.jsonl"
Note = Callable[[str], None]
Show = Callable[[Progress], None]


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run under way.

    Attributes:
        models: who answers each stage.
        named: what names the models of all stages so far, for the items' provenance.
        given: what the file holds that stands for the first stages.
    """

    request: Request
    models: Mapping[str, Model]
    named: Mapping[str, Any]
    given: Sequence[Given | Loss]
    note: Note
    show: Show
    index: Index | None
    responses: Responses
    losses: Losses = field(default_factory=Losses)
    costs: dict[str, Cost] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    matched: set[str] = field(default_factory=set)


class _Paused(Exception):
    """The run stops here as requested; the message gives the next step."""


def run(request: Request, *, note: Note, show: Show) -> dict[str, Any]:
    """Make instruction data; resume if the folder holds this run.

    Args:
        request: what is asked for.
        note: called with each remark for the user.
        show: called with progress.

    Returns:
        the report; with "paused" if the run waits for the user.

    Raises:
        UsageError: options contradict each other.
        UserError: a file is damaged, a model cannot be asked, the folder holds another run.
    """
    models = open_models(request)
    given = _given(request)  # before anything is written: the file may be invalid
    index = build(list(request.decontaminate)) if request.decontaminate else None
    with locked(request.out):
        remove_leftovers(request.out)
        named = record(request, models, index)
        responses = read_responses(request.responses)
        for problem in responses.wrong:
            note(f"skipped: {problem}")
        under_way = _Run(
            request=request,
            models=models,
            named=named,
            given=given,
            note=note,
            show=show,
            index=index,
            responses=responses,
        )
        try:
            return _stages(under_way)
        except _Paused as end:
            note(str(end))
            return {"paused": str(end), "funnel": under_way.counts}
        finally:
            _note_responses(under_way)


def _stages(run: _Run) -> dict[str, Any]:
    request, out = run.request, run.request.out
    tested = _tested(run)
    if request.settings.probe_tests:
        tested = _strong(run, tested)
    run.counts["asserts"] = sum(len(one.tests.asserts) for one in tested)
    write_lines(out / TESTS, (one.as_json() for one in tested))
    _end_of(run, "tests")
    asks = _solution_asks(run, tested)
    with _replies(run, "solutions", asks) as replies:
        solutions = derive.asked_solutions(tested, asks, request.settings, replies.get, run.losses)
        drawn = write_lines(out / SOLUTIONS, (one.as_json() for one in solutions))
    run.counts |= {"solutions": len(tested) * request.settings.solutions, "run": drawn}
    write_lines(out / DROPPED, (loss.as_json() for loss in run.losses.lines))
    _end_of(run, "solutions")
    known = all_verdicts(out)
    again = AGAIN if request.settings.drop_flaky else 0
    with journal(shard_path(out, 0, 1).with_name(MAIN)) as verdicts:
        _note_damage(verdicts, run.note)
        execute(
            tested,
            read_candidates(out / SOLUTIONS),
            request.sandbox,
            verdicts,
            known,
            again=again,
            show=run.show,
            total=drawn,
        )
    return _keep(run, tested, known, again)


# --- questions and tests --------------------------------------------------------------------------


def _tested(run: _Run) -> list[Tested]:
    """The questions with tests, from a file or by asking."""
    request, settings, losses = run.request, run.request.settings, run.losses
    if request.tests_file is not None:
        given = _taken(run)
        kept = _unique(run, [one.question for one in given])
        first = {one.question.text: one for one in reversed(given)}
        found = derive.given_tests([first[question.text] for question in kept], settings, losses)
    else:
        questions = _questions(run)
        _end_of(run, "questions")
        asks = [
            _ask(run, "tests", one.id, run.request.prompts.tests(one.text, settings.tests), 1)
            for one in questions
        ]
        with _replies(run, "tests", asks) as replies:
            found = derive.asked_tests(questions, asks, settings, replies.get, losses)
    run.counts["with_tests"] = len(found)
    return found


def _questions(run: _Run) -> list[Question]:
    request, settings = run.request, run.request.settings
    if request.questions_file is not None:
        return _unique(run, [one.question for one in _taken(run)])
    form = run.models["questions"].form
    sizes = derive.rounds(settings)
    asks = [
        _ask(run, "questions", str(number), request.prompts.questions(size, form), 1)
        for number, size in enumerate(sizes)
    ]
    with _replies(run, "questions", asks) as replies:
        found = derive.asked_questions(asks, sizes, replies.get, run.losses)
    run.counts |= {
        "asked": settings.questions,
        "parsed": len(found) + run.losses.count("questions"),
    }
    return _unique(run, found)


def _given(request: Request) -> list[Given | Loss]:
    """The questions of --questions-file or --tests-file, and what is lost of it."""
    path = request.tests_file or request.questions_file
    with_tests = request.tests_file is not None
    return [] if path is None else list(inputs.read(path, with_tests=with_tests))


def _taken(run: _Run) -> list[Given]:
    """The questions of the file; its losses are counted."""
    for one in run.given:
        if isinstance(one, Loss):
            run.losses(one)
    run.counts |= {"asked": len(run.given), "parsed": len(run.given)}
    return [one for one in run.given if not isinstance(one, Loss)]


def _unique(run: _Run, questions: Sequence[Question]) -> list[Question]:
    kept = derive.unique(questions, run.request.settings.near_dedup, run.index, run.losses)
    run.counts["questions"] = len(kept)
    write_lines(run.request.out / QUESTIONS, (one.as_json() for one in kept))
    return kept


def _strong(run: _Run, tested: list[Tested]) -> list[Tested]:
    """The questions whose tests no trivially wrong solution passes."""
    with journal(run.request.out / "probes.jsonl") as verdicts:
        _note_damage(verdicts, run.note)
        weak = probe(tested, run.request.sandbox, verdicts, show=run.show)
    for one in tested:
        if one.id in weak:
            run.losses(
                Loss(
                    stage="tests",
                    reason="weak tests",
                    where=one.question.where,
                    text=one.question.text,
                    detail=f"a function that {weak[one.id]} passes them",
                )
            )
    kept = [one for one in tested if one.id not in weak]
    run.counts["with_tests"] = len(kept)
    return kept


# --- asking ---------------------------------------------------------------------------------------


def _ask(run: _Run, stage: str, key: str, dialog: Any, samples: int) -> Ask:
    model = run.models[stage]
    return Ask(
        stage=stage,
        key=key,
        dialog=dialog,
        samples=samples,
        settings=run.request.settings,
        model=model.facts,
        form=model.form,
    )


def _solution_asks(run: _Run, tested: Sequence[Tested]) -> list[Ask]:
    prompts, samples = run.request.prompts, run.request.settings.solutions
    return [
        _ask(run, "solutions", one.id, prompts.solution(one.question.text, one.shown), samples)
        for one in tested
    ]


@contextlib.contextmanager
def _replies(run: _Run, stage: str, asks: Sequence[Ask]) -> Iterator[Journal]:
    """The replies to what a stage asks, all of them.

    Raises:
        _Paused: they come by files and are not there yet.
        UserError: an endpoint did not answer some.
    """
    request = run.request
    ids = [key for ask in asks for key in ask.ids()]
    with journal(request.out / "replies" / f"{stage}.jsonl") as replies:
        _note_damage(replies, run.note)
        given = run.responses.replies
        matched = [key for key in ids if key in given]
        replies.add(given[key].as_json() for key in matched)
        run.matched.update(matched)
        resumed = sum(key in replies for key in ids)
        done = resumed

        def advance(count: int) -> None:
            nonlocal done
            done += count
            run.show(Progress(stage=stage, done=done, total=len(ids), resumed=resumed))

        if resumed < len(ids):
            _fetch(run, stage, asks, replies, advance)
        missing = sum(key not in replies for key in ids)
        if missing:
            _check_missing(run, stage, missing, len(ids))
        _check_refused(
            run, stage, [line for key in ids if (line := replies.get(key))], replies.path
        )
        cost = run.costs.setdefault(stage, Cost())
        for key in ids:
            line = replies.get(key)
            if line is not None:
                cost.add(line)
        yield replies


def _fetch(
    run: _Run, stage: str, asks: Sequence[Ask], replies: Journal, advance: Callable[[int], None]
) -> None:
    request = run.request
    model = run.models[stage]
    if isinstance(model, BatchModel):
        if request.emit is None:
            return
        count = write_requests(request.emit, asks, replies, str(model.facts["model"]))
        raise _Paused(
            f"{request.emit} holds {count} requests for {stage}; answer them, and give the same"
            f" command --responses FILE"
        )
    for batch in model.answer(asks, replies):
        replies.add(reply.as_json() for reply in batch)
        advance(len(batch))


def _check_missing(run: _Run, stage: str, missing: int, total: int) -> None:
    model = run.models[stage]
    message = f"{missing} of {total} requests for {stage} have no answer"
    if run.request.skip_failed:
        run.note(f"{message}: continuing without them")
        return
    if isinstance(model, Endpoint):
        hint = "rerun the same command to retry them, or continue without them with --skip-failed"
    else:
        hint = (
            "write them to a file with --emit-requests FILE, or continue without them with"
            " --skip-failed"
        )
    raise UserError(message, hint=hint)


def _check_refused(
    run: _Run, stage: str, lines: Sequence[Mapping[str, Any]], replies: Path
) -> None:
    """End the run if an endpoint refused all requests of a stage.

    Raises:
        UserError: it did.
    """
    if not lines or any(line["finish_reason"] != "refused" for line in lines):
        return
    model = run.models[stage]
    where = model.access.url if isinstance(model, Endpoint) else "the endpoint"
    raise UserError(
        f"{where} refused all {len(lines)} requests for {stage}: {lines[0].get('detail', '')}",
        hint=f"check what it allows, such as --set {stage}_tokens; then remove {replies} and run"
        " the same command again",
    )


def _end_of(run: _Run, stage: str) -> None:
    if run.request.stop_after == stage:
        write_lines(run.request.out / DROPPED, (loss.as_json() for loss in run.losses.lines))
        raise _Paused(f"stopped after the {stage}; rerun without --stop-after to continue")


def _note_responses(run: _Run) -> None:
    """Report which responses were not used."""
    given = run.responses
    if given.failed:
        run.note(f"{len(given.failed)} requests failed in the response files; they remain open")
    if other := len(given.replies.keys() - run.matched):
        run.note(f"{other} responses match no request of this run so far; they are skipped")


def _note_damage(found: Journal, note: Note) -> None:
    if found.damaged:
        lines = ", ".join(map(str, found.damaged[:5]))
        note(f"{found.path}: damaged lines ({lines}) are skipped and requested again")


# --- what is kept ---------------------------------------------------------------------------------


def _keep(
    run: _Run, tested: Sequence[Tested], known: Mapping[str, Mapping[str, Any]], again: int
) -> dict[str, Any]:
    """Write the dialogs and the report."""
    out = run.request.out
    by_tested: dict[str, list[Candidate]] = {one.id: [] for one in tested}
    for candidate in read_candidates(out / SOLUTIONS):
        by_tested[candidate.tested].append(candidate)
    items = []
    passed = solved = 0
    for one in tested:
        choice = choose(by_tested[one.id], known, again=again)
        passed += choice.passed
        solved += choice.passed > 0
        why = _why_not(choice, by_tested[one.id], known)
        if choice.kept is None:
            run.losses(_kept_loss(one, why))
        else:
            items.append(_item(run, one, choice.kept, known, again))
    kept = list(_clean(run, items))
    write_lines(out / DIALOGS, kept)
    write_lines(out / DROPPED, (loss.as_json() for loss in run.losses.lines))
    first_runs = [
        known[verdict_id(candidate.id, 0)] for group in by_tested.values() for candidate in group
    ]
    run.counts |= {"passed": passed, "solved": solved, "kept": len(kept)}
    seconds = sum(float(verdict["seconds"]) for verdict in known.values())
    report = {
        "funnel": run.counts,
        "outcomes": outcomes(first_runs),
        "tiers": sorted({str(verdict["tier"]) for verdict in first_runs}),
        "confirm": str(run.request.sandbox.confirm),
        "packages": dict(run.request.sandbox.allowed().versions),
        "losses": run.losses.reasons(),
        "costs": costs_json(run.costs, seconds, len(kept)),
    }
    atomic_write_json(out / REPORT, report)
    return report


def _why_not(choice: Choice, candidates: Sequence[Candidate], known: Verdicts) -> str:
    if not candidates:
        return "no solution to run"
    if choice.flaky:
        return "flaky"
    firsts = (known[verdict_id(candidate.id, 0)] for candidate in candidates)
    if any(verdict.get("passed_once") for verdict in firsts):
        return "unconfirmed: passed in one process alone"
    return "nothing passed"


def _kept_loss(one: Tested, reason: str, detail: str = "") -> Loss:
    return Loss(
        stage="keep",
        reason=reason,
        where=one.question.where,
        text=one.question.text,
        detail=detail,
    )


def _item(
    run: _Run,
    one: Tested,
    candidate: Candidate,
    known: Mapping[str, Mapping[str, Any]],
    again: int,
) -> tuple[Tested, dict[str, Any]]:
    """A kept item with its provenance."""
    verdict = known[verdict_id(candidate.id, 0)]
    asserts = [*one.tests.setup, *one.tests.asserts]
    request = run.request
    dialog = request.prompts.dialog(one.question.text, one.shown, asserts, candidate.source)
    return one, {
        "id": candidate.id,
        "messages": [{"role": m.role, "content": m.content} for m in dialog],
        "question": one.question.text,
        "tests": asserts,
        "shown": one.shown,
        "solution": candidate.source,
        "provenance": {
            "from": one.question.where,
            "sample": candidate.sample,
            "extracted": candidate.chosen,
            "models": run.named,
            "prompts": request.prompts.digest(),
            "seed": request.settings.seed,
            "verdict": {
                "outcome": verdict["outcome"],
                "tier": verdict["tier"],
                "confirmed": verdict["isolated"],
                "wall_s": verdict["wall_s"],
                "runs": 1 + again,
            },
        },
    }


def _clean(run: _Run, items: Sequence[tuple[Tested, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The items that hold no problem models are scored on, and nothing that breaks a dialog."""
    texts = ["\n".join(m["content"] for m in item["messages"]) for _, item in items]
    hits: Sequence[str | None] = [None] * len(items)
    if run.index is not None and items:
        hits = run.index.hits(shingles.column(texts))
    for (one, item), hit, text in zip(items, hits, texts, strict=True):
        ours = text.replace("[PYTHON]", "").replace("[/PYTHON]", "")
        if hit:
            run.losses(_kept_loss(one, "contaminated", hit))
        elif why := held_tags(ours):
            run.losses(_kept_loss(one, why))
        else:
            yield item


# --- a part of the execution, on its own ----------------------------------------------------------


def execute_shard(
    out: Path, shard: int, shards: int, *, sandbox: SandboxConfig, note: Note, show: Show
) -> dict[str, Any]:
    """Run one part of a run's solutions, on any machine that sees its folder.

    Args:
        out: of a run that has its solutions.
        shard, shards: which part, from 0, of how many.
        sandbox: where programs run; limits, confirmation and packages are the run's own.
        note, show: take remarks and progress.

    Returns:
        how many of its solutions ended how.

    Raises:
        UserError: the folder is no such run, or the part is run by somebody else.
    """
    config, repeats = execution_of(out, sandbox)
    for name in (TESTS, SOLUTIONS):
        if not (out / name).is_file():
            raise UserError(
                f"{out} has no {name} yet",
                hint="`codecria self-instruct ... --stop-after solutions` makes it",
            )
    tested = [one for one in read_tested(out / TESTS) if shard_of(one.id, shards) == shard]
    ids = {one.id for one in tested}
    own = [one for one in read_candidates(out / SOLUTIONS) if one.tested in ids]
    known = all_verdicts(out)
    with journal(shard_path(out, shard, shards)) as verdicts:
        _note_damage(verdicts, note)
        execute(
            tested,
            own,
            config,
            verdicts,
            known,
            again=AGAIN if repeats else 0,
            show=show,
            total=len(own),
        )
    return {
        "shard": f"{shard + 1}/{shards}",
        "questions": len(tested),
        "solutions": len(own),
        "outcomes": outcomes(known[verdict_id(one.id, 0)] for one in own),
    }
