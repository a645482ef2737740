"""One evaluation from a request to its summary: problems, references, samples, verdicts, score."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.engine import BATCH
from codecria.core.inference.generator import Generator, tokenizer_of
from codecria.core.inference.loading import Compute
from codecria.core.sandbox.config import SandboxConfig
from codecria.data.errors import ExitStatus, Interrupted, UsageError, UserError
from codecria.data.files import digest_file
from codecria.data.formats.infill import Infiller
from codecria.data.progress import Progress

from . import mbpp, remote, tasks
from . import references as known_solutions
from .ahead import Stopped, one_ahead
from .execution import Sandbox
from .problems import Problem, ProblemSet
from .protocol import Changes, Form, Protocol, freeze
from .references import Reference
from .registry import TASKS, Task
from .remote import Remote
from .results import Results, finish, meta_path, read_json_or_nothing, results
from .samples import Sample, SampleFile, read_samples
from .sampling import generate
from .scoring import score, too_long
from .summary import Bench, Subject, facts_of, identity_of, own_keys, summary_of
from .tasks import Asker, Choice

MEMORY_BYTES = 1 << 30  # of one program
Note = Callable[[str], None]
Show = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be evaluated, and how.

    Attributes:
        task: a name in `tasks.TASKS`.
        problems: its file.
        model, remote, samples: a checkpoint or a model at an endpoint to ask, or a file of samples;
            none of them checks references alone.
        forms: how the model is asked, one after the other; empty for the task's own.
        preset, changes: how samples are drawn; None takes the task's own preset.
        choice: which tasks.
        out: file of results; with several forms the later ones have the form in their name.
        generate_only: write samples, and run nothing.
        sandbox: where programs run; its limits follow from the tasks.
        timeout_s, memory_bytes: limits of a program.
        cache: folder of what is known of the references; None keeps nothing.
        leave_out_failing: score without the tasks whose references fail.
        partial: score samples that do not cover all tasks.
        batch: samples decoded side by side.
        beside: whether the next samples are made while programs run; None: of a model on a GPU.
        compute: what the model is computed with.
    """

    task: str
    problems: Path
    model: Path | None = None
    remote: Remote | None = None
    samples: Path | None = None
    forms: tuple[str, ...] = ()
    preset: str | None = None
    changes: Changes = field(default_factory=Changes)
    choice: Choice = field(default_factory=Choice)
    out: Path | None = None
    generate_only: bool = False
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    timeout_s: float | None = None
    memory_bytes: int = MEMORY_BYTES
    cache: Path | None = None
    leave_out_failing: bool = False
    partial: bool = False
    batch: int = BATCH
    beside: bool | None = None
    compute: Compute = field(default_factory=Compute)


def evaluate(request: Request, *, note: Note, show: Show) -> list[dict[str, Any]]:
    """Evaluate, form by form.

    Args:
        request: what is asked for.
        note: takes remarks for people.
        show: takes progress.

    Returns:
        a summary of each form.

    Raises:
        UsageError: options contradict each other.
        UserError: a file is damaged, a reference fails, or nothing can run.
        Interrupted: by a signal; what was known is kept in `out`.
    """
    task = TASKS[request.task]
    forms = [tasks.with_form(task, form) for form in request.forms or (None,)]
    _check(request, forms)
    protocols = [_protocol(task, form, request) for form in forms]
    found = tasks.load(task, request.problems, case_s=request.timeout_s)
    asked = tasks.select(task, found, request.choice)
    shots = [tasks.shots_of(task, form, found) for form in forms]
    _check_model(request, forms)
    # What a user can have got wrong shows before anything runs.
    file = _sample_file(request, found, asked, note=note)
    with _bench(request, asked, note=note, show=show) as bench:
        if bench is not None:
            asked = [problem for problem in asked if problem.task_id not in bench.left_out]
        subject = _subject(request, file, asked, note)
        return [
            _evaluate_form(
                request, task, protocol, shown, found, asked, subject, bench, note=note, show=show
            )
            for protocol, shown in zip(protocols, shots, strict=True)
        ]


def check_references(request: Request, *, note: Note, show: Show) -> dict[str, Any]:
    """Run the reference solutions alone.

    Returns:
        how many pass, and what the others did.

    Raises:
        UserError: nothing can be run.
    """
    task = TASKS[request.task]
    found = tasks.load(task, request.problems, case_s=request.timeout_s)
    asked = tasks.select(task, found, request.choice)
    if all(problem.reference is None for problem in asked):
        raise UserError(f"{task.title} has no reference solutions")
    with _sandbox(request, asked) as sandbox:
        checked = _references(request, asked, sandbox, show=show)
        tier = str(sandbox.tier)
        unconfirmed = known_solutions.unconfirmed(checked, sandbox)
    bad = {i: r.first_line for i, r in sorted(checked.items()) if not r.passed}
    for task_id, result in bad.items():
        note(f"{task_id}: {result}")
    return {
        "task": task.name,
        "problems": str(request.problems),
        "references": len(checked),
        "passed": len(checked) - len(bad),
        "unconfirmed": unconfirmed,
        "not_passed": bad,
        "slowest_s": round(max(r.seconds for r in checked.values()), 3),
        "tier": tier,
    }


# --- the parts of a request -----------------------------------------------------------------------


def _check(request: Request, forms: Sequence[Form]) -> None:
    scored = [x for x in (request.model, request.remote, request.samples) if x is not None]
    if len(scored) != 1:
        raise UsageError(
            "one thing is scored: a model or a file of samples",
            hint="give --model CKPT, --endpoint URL or --samples-file FILE, or --check for the"
            " references alone",
        )
    if request.generate_only and (request.samples is not None or request.out is None):
        raise UsageError("--generate-only writes a model's samples", hint="give --model and --out")
    if request.samples is not None and len(forms) > 1:
        raise UsageError("samples in a file are of one form", hint="leave out --also-chat")
    if request.samples is not None and request.preset is not None:
        raise UsageError(
            f"--preset {request.preset} says how a model is asked", hint="samples are scored as is"
        )
    if request.batch < 1:
        raise UsageError(f"--batch {request.batch} must be at least 1")


def _check_model(request: Request, forms: Sequence[Form]) -> None:
    """See early that the model can be asked in these forms: its weights come much later."""
    if request.model is None:
        return
    tokenizer = tokenizer_of(request.model)
    if any(form in ("psm", "spm") for form in forms):
        Infiller(tokenizer)


def _protocol(task: Task, form: Form, request: Request) -> Protocol:
    shots = tuple(f"{mbpp.PREFIX}{n}" for n in mbpp.SHOTS)
    return freeze(
        task.name,
        form,
        request.preset or task.preset,
        # How many samples a file has shows when it is read.
        request.changes if request.samples is None else replace(request.changes, ks=None),
        eos_ends=task.forms[0] != "psm",
        shots=shots if task.name == "mbpp" and form == "few-shot" else (),
        labels=task.labels.get(form, ()),
        source=task.sources[form],
    )


@contextlib.contextmanager
def _sandbox(request: Request, asked: Sequence[Problem]) -> Iterator[Sandbox]:
    limits = known_solutions.limits_for(asked, request.timeout_s, request.memory_bytes)
    with Sandbox(replace(request.sandbox, limits=limits)) as sandbox:
        yield sandbox


def _references(
    request: Request, asked: Sequence[Problem], sandbox: Sandbox, *, show: Show
) -> dict[str, Reference]:
    def done(count: int, total: int) -> None:
        show(Progress(stage="references", done=count, total=total, resumed=0))

    return known_solutions.check(asked, sandbox, folder=request.cache, done=done)


@contextlib.contextmanager
def _bench(
    request: Request, asked: Sequence[Problem], *, note: Note, show: Show
) -> Iterator[Bench | None]:
    """An open sandbox that the references have passed in; None where nothing is to run."""
    if request.generate_only:
        yield None
        return
    with _sandbox(request, asked) as sandbox:
        checked = _references(request, asked, sandbox, show=show)
        kept, left_out = known_solutions.require(
            asked, checked, leave_out=request.leave_out_failing
        )
        for task_id, result in left_out.items():
            note(f"left out: the reference of {task_id} does not pass here ({result})")
        limits_s = {
            p.task_id: known_solutions.limit_s(p, checked.get(p.task_id), request.timeout_s)
            for p in kept
        }
        yield Bench(sandbox=sandbox, references=checked, limits_s=limits_s, left_out=left_out)


def _sample_file(
    request: Request, found: ProblemSet, asked: Sequence[Problem], *, note: Note
) -> SampleFile | None:
    """The samples to be scored, if they are in a file.

    Raises:
        UserError: lines are no samples, or tasks have none.
    """
    if request.samples is None:
        return None
    file = read_samples(request.samples, found.by_id(), asked)
    if file.passed_over:
        note(f"{file.passed_over} samples are of tasks that were not asked for: not scored")
    if file.missing:
        named = ", ".join(file.missing[:5]) + (", ..." if len(file.missing) > 5 else "")
        message = f"{request.samples} has no sample of {len(file.missing)} of {len(asked)} tasks"
        if not request.partial:
            raise UserError(
                f"{message}: {named}",
                hint="score what is there with --partial, or name tasks with --tasks or --limit",
            )
        note(f"{message}: {named}")
    return file


def _subject(
    request: Request, file: SampleFile | None, asked: Sequence[Problem], note: Note
) -> Subject:
    """Who wrote the samples, and what is known of it."""
    if request.model is not None:
        checkpoint = Checkpoint.open(request.model)
        facts = {"model": str(request.model), "model_digest": checkpoint.digest()}
        generator = Generator.computed(request.model, request.compute, say=note)
        facts["computed_by"] = generator.runner.layout  # engine and types: they decide samples
        return Subject(facts=facts, generator=generator)
    if request.remote is not None:
        return Subject(facts=request.remote.facts, remote=request.remote)
    assert request.samples is not None, "neither a model nor samples"
    assert file is not None, "samples that were not read"
    kept = {problem.task_id for problem in asked}
    file = replace(file, samples=tuple(s for s in file.samples if s.task_id in kept))
    facts = {"samples_file": str(request.samples), "samples_digest": digest_file(request.samples)}
    # What our own samples were made by goes on into the result.
    made_by = read_json_or_nothing(meta_path(request.samples))
    for name in ("protocol", "model", "model_digest"):
        if name in made_by:
            facts[name] = made_by[name]
    return Subject(facts=facts, file=file)


# --- one form -------------------------------------------------------------------------------------


def _evaluate_form(
    request: Request,
    task: Task,
    protocol: Protocol,
    shots: Sequence[Problem],
    found: ProblemSet,
    asked: Sequence[Problem],
    subject: Subject,
    bench: Bench | None,
    *,
    note: Note,
    show: Show,
) -> dict[str, Any]:
    """The summary of one form, its results written as they come."""
    out = _out_of(request, protocol.form)
    facts = facts_of(request, task, protocol, found, subject, bench)
    total = _total(asked, protocol, subject)
    with results(out, identity_of(facts), facts) as kept:
        if kept.resumed:
            note(f"{out} holds {kept.resumed} samples: going on")
        try:
            for line in _lines(request, asked, protocol, shots, subject, bench, kept, note=note):
                kept.add(line)
                done = len(own_keys(kept, asked))
                show(
                    Progress(
                        stage="samples" if subject.file is not None else protocol.form,
                        done=min(done, total),
                        total=total,
                        resumed=kept.resumed,
                    )
                )
        except (KeyboardInterrupt, Interrupted) as end:
            if out is None:
                raise
            raise Interrupted(
                end.status if isinstance(end, Interrupted) else ExitStatus.INTERRUPTED,
                f"stopped with {len(kept.lines)} of {total} samples in {out};"
                " the same command goes on",
            ) from None
        summary = summary_of(request, task, facts, found, asked, protocol, subject, bench, kept)
        if out is not None:
            finish(out, summary, complete=len(own_keys(kept, asked)) >= total)
    return summary


def _out_of(request: Request, form: Form) -> Path | None:
    """Where a form's results go: the first form's to --out, the others' beside it."""
    if request.out is None or form == (request.forms or (form,))[0]:
        return request.out
    return request.out.with_name(f"{request.out.stem}.{form}{request.out.suffix}")


def _total(asked: Sequence[Problem], protocol: Protocol, subject: Subject) -> int:
    if subject.file is not None:
        return len(subject.file.samples)
    return len(asked) * protocol.samples


def _lines(
    request: Request,
    asked: Sequence[Problem],
    protocol: Protocol,
    shots: Sequence[Problem],
    subject: Subject,
    bench: Bench | None,
    kept: Results,
    *,
    note: Note,
) -> Iterator[dict[str, Any]]:
    """The lines that are not known yet, as they come."""
    by_id = {problem.task_id: problem for problem in asked}
    known = frozenset(kept.lines)
    if subject.file is not None:
        left = [s for s in subject.file.samples if (s.task_id, s.number) not in known]
        assert bench is not None, "samples of a file are scored"
        yield from score(left, by_id, bench.sandbox, bench.limits_s)
        return
    made_by, generator = subject.remote, subject.generator
    if generator is not None:
        asker = Asker(protocol, shots, generator.tokenizer, generator.ends)

    def samples(stopped: Stopped) -> Iterator[list[Sample]]:
        if made_by is not None:
            return remote.generate(
                made_by, asked, protocol, shots, known=known, batch=request.batch, note=note
            )
        assert generator is not None, "neither a model nor samples"
        return generate(
            generator, asker, asked, protocol, known=known, batch=request.batch, stopped=stopped
        )

    if bench is None:
        for batch in samples(lambda: False):
            yield from (sample.as_json() for sample in batch)
        return
    on_gpu = generator is not None and generator.runner.layout.startswith("torch cuda")
    beside = on_gpu if request.beside is None else request.beside
    made = one_ahead(samples) if beside else contextlib.nullcontext(samples(lambda: False))
    with made as batches:
        for batch in batches:
            fitting = [sample for sample in batch if sample.finish_reason != "prompt_too_long"]
            yield from (too_long(sample) for sample in batch if sample not in fitting)
            yield from score(fitting, by_id, bench.sandbox, bench.limits_s)
