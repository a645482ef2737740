"""`codecria evaluate TASK`: programs that a model writes, run with their tests, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import options, render
from ..picture import Plot, check_picture
from ..ranks import sharing
from ..signals import ending_in_order
from . import output
from .suites import FORMS, HELPS, ONLY, PresetName
from .tasks import command_of

if TYPE_CHECKING:
    from codecria.core.evaluation.benchmarks.evaluate import Request
    from codecria.core.evaluation.benchmarks.remote import Remote


def register_tasks(group: typer.Typer) -> None:
    """Add the benchmarks to the `evaluate` group."""
    for name, text in HELPS.items():
        forms = FORMS.get(name)
        group.command(name, help=text)(command_of(evaluate_task, name, forms=forms, only=ONLY))


def evaluate_task(
    *,
    task: str,
    problems: Annotated[
        Path,
        typer.Option(
            help="Problems, in the file that the suite publishes, compressed or not.",
            rich_help_panel=options.INPUT,
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint or run folder to evaluate.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    adapter: options.Adapter = None,
    endpoint: options.EndpointUrl = None,
    endpoint_model: options.EndpointModel = None,
    key_env: options.KeyEnv = "OPENAI_API_KEY",
    samples_file: Annotated[
        Path | None,
        typer.Option(
            help="Score these samples instead: JSON lines of task_id and completion or solution.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    split: Annotated[
        Literal["test", "validation", "train", "prompt", "all"],
        typer.Option(
            help="Part of the suite; test is ids 11 to 510.", rich_help_panel=options.INPUT
        ),
    ] = "test",
    level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL,LEVEL",
            help="Only these levels of difficulty, such as introductory (APPS) or easy.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only problems published on this day or later, such as 2024-08-01.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only problems published on this day or earlier.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="ID,ID", help="Only these tasks.", rich_help_panel=options.INPUT),
    ] = None,
    limit: options.Limit = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Score a --samples-file that does not cover all tasks.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Results, one JSON line per sample; rerun the same command to resume.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="T,T",
            help="Evaluate at each of these temperatures, such as 0.1,0.4,0.6,0.8; --out is a"
            " folder then.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    plot: Plot = None,
    as_json: options.AsJson = False,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            help="How samples are drawn [default: the suite's, else paper-greedy].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    prompt_form: options.PromptForm = None,
    also_chat: Annotated[
        bool,
        typer.Option(
            "--also-chat",
            help="Ask in the chat form as well, and report both.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = False,
    extract: Annotated[
        Literal["best", "simple"],
        typer.Option(
            help="Code of a chat answer: the block that defines the tested function (best), or the"
            " first code block (simple).",
            rich_help_panel=options.SCORING,
        ),
    ] = "best",
    form: Annotated[
        Literal["psm", "spm", "both"],
        typer.Option(
            help="Order: psm (prefix, suffix, middle), spm (suffix, prefix, middle), or both.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = "psm",
    samples_per_task: Annotated[
        int | None,
        typer.Option(
            "--samples-per-task",
            "-n",
            min=1,
            help="Samples of each task [default: the preset's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "-t",
            help="Sampling temperature; 0 is greedy [default: the preset's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Nucleus sampling [default: the preset's].", rich_help_panel=options.SAMPLING
        ),
    ] = None,
    seed: options.Seed = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest completion, in tokens [default: 512].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    context: options.Context = None,
    strip_prompt: Annotated[
        bool,
        typer.Option(
            "--strip-prompt",
            help="Remove white space at the end of the prompt.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = False,
    k: options.Ks = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Run the reference solutions and stop.",
            rich_help_panel=options.SCORING,
        ),
    ] = False,
    generate_only: Annotated[
        bool,
        typer.Option(
            "--generate-only",
            help="Write the model's samples to --out and run nothing.",
            rich_help_panel=options.SCORING,
        ),
    ] = False,
    leave_out_failing: Annotated[
        bool,
        typer.Option(
            "--leave-out-failing",
            help="Score without the tasks whose reference solution fails here.",
            rich_help_panel=options.SCORING,
        ),
    ] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(
            metavar="PASS@1",
            help="Exit with status 3 if pass@1 is below this, such as 0.3.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results of reference solutions [default: the user's cache].",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    sandbox: options.Tier = "auto",
    sandbox_command: options.SandboxCommand = None,
    confirm: options.ConfirmMode = "passes",
    packages: options.Packages = None,
    workers: options.Workers = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Time limit per program, seconds; 4 times the reference's own time if that is"
            " more [default: 4; 15 in other languages]. Per case where a suite limits each.",
            rich_help_panel=options.SANDBOX,
        ),
    ] = None,
    memory_mb: options.MemoryMb = 1_024,
    batch: options.Batch = 16,
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    dtype: options.WeightsDtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    threads: options.EngineThreads = None,
) -> None:
    """Parse, evaluate, show."""
    from codecria.data.errors import UsageError

    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under {fail_under:g} is a share from 0 to 1", hint="as 0.3")
    if fail_under is not None and generate_only:
        raise UsageError("--generate-only scores nothing", hint="leave out --fail-under")
    if timeout is not None and not 0 < timeout <= 3600:
        raise UsageError(f"--timeout {timeout:g} must be from 0 to 3600 seconds")

    from codecria.core.evaluation.benchmarks import evaluate as evaluation
    from codecria.core.evaluation.benchmarks.protocol import Changes
    from codecria.core.evaluation.benchmarks.references import cache_folder
    from codecria.core.evaluation.benchmarks.sweep import sweep as sweep_over
    from codecria.core.evaluation.benchmarks.tasks import Choice
    from codecria.core.sandbox.config import Confirm, SandboxConfig

    if adapter is not None:
        if model is None:
            raise UsageError("--adapter belongs to a model", hint="name it with --model")
        model = options.adapted(model, adapter)
    request = evaluation.Request(
        task=task,
        problems=problems,
        model=model,
        remote=_remote(endpoint, endpoint_model, key_env, batch),
        samples=samples_file,
        forms=_forms(task, prompt_form, also_chat=also_chat, infilling=form),
        preset=preset,
        changes=Changes(
            temperature=temperature,
            top_p=top_p,
            samples=samples_per_task,
            seed=seed,
            max_tokens=max_tokens,
            context=context,
            strip_prompt=strip_prompt,
            extraction=extract,
            ks=None if k is None else options.ks_of(k),
        ),
        choice=Choice(
            split=split,
            ids=options.names_of(tasks),
            levels=_levels(task, level),
            since=_date("--since", since),
            until=_date("--until", until),
            limit=limit,
        ),
        out=out,
        generate_only=generate_only,
        sandbox=SandboxConfig(
            tier=sandbox,
            command=sandbox_command or "",
            confirm=Confirm(confirm),
            workers=workers,
            packages=options.names_of(packages),
        ),
        timeout_s=timeout,
        memory_bytes=memory_mb << 20,
        cache=cache or cache_folder(),
        leave_out_failing=leave_out_failing,
        partial=partial,
        batch=batch,
        compute=options.compute(
            device, dtype, engine, threads, cache_dtype, sharing=sharing(mesh, device)
        ),
    )
    if check:
        _check_references(request, as_json=as_json)
        return
    temperatures = _temperatures(sweep, out=out, model=model, plot=plot)
    with ending_in_order("stopped: without --out nothing is kept"), render.stages() as show:
        if temperatures and out is not None:
            summaries = sweep_over(request, temperatures, out, note=render.note, show=show)
        else:
            summaries = evaluation.evaluate(request, note=render.note, show=show)
    if as_json:
        render.emit_json(summaries[0] if len(summaries) == 1 else {"forms": summaries})
    else:
        output.show(summaries)
    if plot is not None:
        output.draw(summaries, plot)
        render.note(f"written: {plot}")
    if out is not None:
        render.note(f"written: {out}")
    if fail_under is not None:
        output.gate(summaries, fail_under)


def _forms(task: str, form: str | None, *, also_chat: bool, infilling: str) -> tuple[str, ...]:
    """The forms asked for, the plain one first; none for the task's own.

    Raises:
        UsageError: --also-chat and --prompt-form contradict each other.
    """
    from codecria.data.errors import UsageError

    if task in ONLY["form"]:
        return ("psm", "spm") if infilling == "both" else (infilling,)
    if not also_chat:
        return () if form is None else (form,)
    if form == "chat":
        raise UsageError(
            "--also-chat reports the chat form beside another",
            hint="leave out --also-chat or --prompt-form",
        )
    from codecria.core.evaluation.benchmarks.registry import TASKS

    return (form or TASKS[task].forms[0], "chat")


def _levels(task: str, given: str | None) -> tuple[str, ...]:
    """The levels asked for.

    Raises:
        UsageError: the suite has no such level.
    """
    from codecria.core.evaluation.benchmarks.registry import TASKS
    from codecria.data.errors import UsageError

    levels = options.names_of(given)
    for level in levels:
        if level not in TASKS[task].levels:
            raise UsageError(
                f"{TASKS[task].title} has no level {level!r}",
                hint="levels: " + ", ".join(TASKS[task].levels),
            )
    return levels


def _date(option: str, given: str | None) -> str:
    """A date as year-month-day; nothing where none is given.

    Raises:
        UsageError: it is no date.
    """
    from datetime import date

    from codecria.data.errors import UsageError

    if given is None:
        return ""
    try:
        return date.fromisoformat(given).isoformat()
    except ValueError as error:
        raise UsageError(f"{option} {given} is no date", hint="write it as 2024-08-01") from error


def _remote(
    endpoint: str | None, name: str | None, key_env: str, concurrency: int
) -> Remote | None:
    """The model at an endpoint, if one is named."""
    from codecria.core.endpoint import Access, key_from
    from codecria.core.evaluation.benchmarks.remote import Remote
    from codecria.data.errors import UsageError

    if endpoint is None:
        if name is not None:
            raise UsageError(
                "there is no --endpoint", hint="use a URL such as http://127.0.0.1:8012/v1"
            )
        return None
    if name is None:
        raise UsageError("there is no --endpoint-model", hint="name the model at the endpoint")
    access = Access(url=endpoint, key=key_from(key_env), concurrency=concurrency)
    if access.in_the_clear:
        render.warn(f"the key in {key_env} goes to {endpoint} unencrypted")
    return Remote(access=access, name=name)


def _temperatures(
    sweep: str | None, *, out: Path | None, model: Path | None, plot: Path | None
) -> list[float]:
    """The temperatures of a sweep; none where there is none.

    Raises:
        UsageError: one is no temperature, or an option that a sweep needs is missing.
    """
    from codecria.data.errors import UsageError

    if sweep is None:
        if plot is not None:
            raise UsageError("--plot draws pass@k over temperature", hint="add --sweep 0.1,0.8")
        return []
    if model is None or out is None:
        raise UsageError(
            "--sweep asks a model and keeps much", hint="give --model and --out FOLDER"
        )
    if plot is not None:
        check_picture(plot)
    try:
        found = [float(part) for part in sweep.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < temperature <= 2 for temperature in found):
        raise UsageError(
            f"--sweep {sweep}: temperatures are above 0 and at most 2", hint="as 0.1,0.4,0.6,0.8"
        )
    return found


def _check_references(request: Request, *, as_json: bool) -> None:
    """Run the references, and end with 1 where one fails.

    Raises:
        UserError: one fails.
    """
    from codecria.core.evaluation.benchmarks import evaluate as evaluation
    from codecria.core.evaluation.benchmarks.multilingual import WRONG_REFERENCES
    from codecria.data.errors import UserError

    with render.stages() as show:
        checked = evaluation.check_references(request, note=render.note, show=show)
    if as_json:
        render.emit_json(checked)
    else:
        render.output(
            f"{checked['passed']}/{checked['references']} reference solutions pass"
            f" (sandbox {checked['tier']}, slowest {checked['slowest_s']:g} s)"
        )
        if checked["unconfirmed"]:
            render.output(
                f"{len(checked['unconfirmed'])} of them pass with solution and tests in one process"
                " only; passes of these tasks are unconfirmed: "
                + ", ".join(checked["unconfirmed"][:5])
            )
    failed: dict[str, str] = {}
    for task_id, why in checked["not_passed"].items():
        if task_id in WRONG_REFERENCES:
            render.note(f"{task_id}: wrong as published ({WRONG_REFERENCES[task_id]})")
        elif not (why.startswith("skipped") and checked["passed"]):
            failed[task_id] = why
    if failed:
        first, why = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} reference solutions do not pass here, {first} first: {why}",
            hint="--leave-out-failing scores the others; the sandbox's languages: docs/sandbox.md",
        )
