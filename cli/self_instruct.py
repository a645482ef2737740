"""`codecria self-instruct`: instruction data that a model writes and tests filter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options, render
from .commands import QuickGroup
from .options import pairs_of
from .ranks import sharing
from .signals import ending_in_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from codecria.core.self_instruct.models import Model
    from codecria.core.self_instruct.prompts import Form

HELP = """Make instruction data: questions, tests, and solutions that pass them.

A model writes questions, tests for each, and several solutions; all run in the sandbox, and
the first solution that passes is kept. Rerun the same command to resume.

Example: codecria self-instruct --model run --out made --questions 1000
"""
EXECUTE_HELP = """Run one shard of a run's solutions, on any machine that shares its folder.

Start the run with --stop-after solutions, run the shards anywhere, rerun the first command.

Example: codecria self-instruct execute made --shard 1/4
"""
PROMPTS_HELP = """Write the prompts to a folder, to edit and use with --prompts.

Example: codecria self-instruct prompts my-prompts
"""
REPORT_HELP = """Print the report of a finished run.

Example: codecria self-instruct report made
"""


def complete_settings(incomplete: str) -> list[str]:
    """Fields of `settings.Settings` for `--set`, each with its `=`."""
    from dataclasses import fields

    from codecria.core.self_instruct.settings import Settings

    names = [f"{field.name}=" for field in fields(Settings)]
    return [name for name in names if name.startswith(incomplete)]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    group = typer.Typer(cls=QuickGroup)
    group.callback(help=HELP, invoke_without_command=True)(self_instruct)
    group.command("execute", help=EXECUTE_HELP)(execute)
    group.command("report", help=REPORT_HELP)(report)
    group.command("prompts", help=PROMPTS_HELP)(prompts)
    app.add_typer(group, name="self-instruct")


def self_instruct(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="CKPT",
            help="Checkpoint or run folder that answers every stage.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    questions_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model for the questions: a checkpoint, a name at --endpoint, or URL#NAME.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    tests_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model for the tests.", rich_help_panel=options.INPUT),
    ] = None,
    solutions_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Model for the solutions.", rich_help_panel=options.INPUT
        ),
    ] = None,
    questions_file: Annotated[
        Path | None,
        typer.Option(help="Your own questions: .txt or .jsonl.", rich_help_panel=options.INPUT),
    ] = None,
    tests_file: Annotated[
        Path | None,
        typer.Option(help="Your own questions with tests: .jsonl.", rich_help_panel=options.INPUT),
    ] = None,
    prompts_folder: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="DIR",
            help="Your own prompts; `self-instruct prompts` writes files to start from.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    decontaminate: options.Decontaminate = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Run folder; rerun the same command to resume.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.AsJson = False,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Questions to ask for [default: the preset's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    solutions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Solutions of each question [default: the preset's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed.", rich_help_panel=options.SAMPLING)
    ] = None,
    preset: Annotated[
        Literal["verified", "paper"],
        typer.Option(
            help="verified, or paper: without filters that the paper does not describe.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = "verified",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Override a setting; repeatable.",
            rich_help_panel=options.SAMPLING,
            autocompletion=complete_settings,
        ),
    ] = None,
    prompt_form: Annotated[
        Literal["auto", "chat", "few-shot"],
        typer.Option(
            help="How the model is asked: its chat form, or worked examples as text for a base"
            " model; auto chooses by the checkpoint.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = "auto",
    stop_after: Annotated[
        Literal["questions", "tests", "solutions"] | None,
        typer.Option(help="Stop after this stage.", rich_help_panel=options.SAMPLING),
    ] = None,
    near_dedup: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Drop questions whose word sets are this similar, from 0 to 1, such as 0.7.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    probe_tests: Annotated[
        bool | None,
        typer.Option(
            "--probe-tests/--no-probe-tests",
            help="Drop tests that a function returning a constant or its argument passes.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    drop_flaky: Annotated[
        bool | None,
        typer.Option(
            "--drop-flaky/--no-drop-flaky",
            help="Run what passed twice more, and drop what then fails.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    dedup_solutions: Annotated[
        bool | None,
        typer.Option(
            "--dedup-solutions/--no-dedup-solutions",
            help="Run solutions with equal syntax trees once.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    endpoint: options.EndpointUrl = None,
    endpoint_model: options.EndpointModel = None,
    key_env: options.KeyEnv = "OPENAI_API_KEY",
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests at once.", rich_help_panel=options.ENDPOINT)
    ] = 8,
    retries: Annotated[
        int,
        typer.Option(min=0, help="Retries of a failed request.", rich_help_panel=options.ENDPOINT),
    ] = 5,
    request_timeout: Annotated[
        float,
        typer.Option(
            help="Time limit of one request, seconds, from connecting to the last byte.",
            rich_help_panel=options.ENDPOINT,
        ),
    ] = 600.0,
    skip_failed: Annotated[
        bool,
        typer.Option(
            "--skip-failed",
            help="Continue without the answers that failed.",
            rich_help_panel=options.ENDPOINT,
        ),
    ] = False,
    emit_requests: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the open requests as an OpenAI batch, and stop.",
            rich_help_panel=options.ENDPOINT,
        ),
    ] = None,
    responses: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Answers to --emit-requests; repeatable.",
            rich_help_panel=options.ENDPOINT,
        ),
    ] = None,
    sandbox: options.Tier = "auto",
    sandbox_command: options.SandboxCommand = None,
    confirm: options.ConfirmMode = "passes",
    packages: options.Packages = None,
    workers: options.Workers = None,
    timeout: Annotated[
        float,
        typer.Option(help="Time limit per program, seconds.", rich_help_panel=options.SANDBOX),
    ] = 3.0,
    memory_mb: options.MemoryMb = 1_024,
    batch: options.Batch = 16,
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    dtype: options.WeightsDtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    threads: options.EngineThreads = None,
) -> None:
    """Parse the options, run, print the report."""
    if context.invoked_subcommand is not None:
        return
    from codecria.data.errors import UsageError

    if out is None:
        raise UsageError("there is no --out", hint="name a folder for the run, such as --out made")
    if not 0 < timeout <= 3600:
        raise UsageError(f"--timeout {timeout:g} must be from 0 to 3600 seconds")
    if request_timeout <= 0:
        raise UsageError(f"--request-timeout {request_timeout:g} must exceed 0")

    from codecria.core.sandbox.config import Confirm, SandboxConfig
    from codecria.core.sandbox.verdict import Limits
    from codecria.core.self_instruct import pipeline
    from codecria.core.self_instruct import prompts as prompt_files
    from codecria.core.self_instruct.request import Request
    from codecria.core.self_instruct.settings import settings_of

    given: dict[str, Any] = {
        "questions": questions,
        "solutions": solutions,
        "seed": seed,
        "near_dedup": near_dedup,
        "probe_tests": probe_tests,
        "drop_flaky": drop_flaky,
        "dedup_solutions": dedup_solutions,
    }
    asked: Mapping[str, Any] = pairs_of(changes or []) | {
        name: value for name, value in given.items() if value is not None
    }
    compute = options.compute(
        device, dtype, engine, threads, cache_dtype, sharing=sharing(mesh, device)
    )
    chosen: Form | None = None if prompt_form == "auto" else prompt_form
    request = Request(
        out=out,
        settings=settings_of(preset, asked),
        models=_models(
            {
                "questions": questions_model,
                "tests": tests_model,
                "solutions": solutions_model,
            },
            model,
            endpoint,
            endpoint_model,
            form=chosen,
            files=emit_requests is not None or bool(responses),
            key_env=key_env,
            speak={
                "concurrency": concurrency,
                "retries": retries,
                "timeout_s": request_timeout,
            },
            load={"batch": batch, "compute": compute, "say": render.note},
        ),
        prompts=prompt_files.load(prompts_folder),
        questions_file=questions_file,
        tests_file=tests_file,
        decontaminate=tuple(decontaminate or ()),
        sandbox=SandboxConfig(
            tier=sandbox,
            command=sandbox_command or "",
            confirm=Confirm(confirm),
            workers=workers,
            packages=options.names_of(packages),
            limits=Limits(wall_s=timeout, memory_bytes=memory_mb << 20),
        ),
        stop_after=stop_after,
        emit=emit_requests,
        responses=tuple(responses or ()),
        skip_failed=skip_failed,
    )
    with ending_in_order(), render.stages() as show:
        summary = pipeline.run(request, note=render.note, show=show)
    if as_json:
        render.emit_json(summary)
    elif "paused" not in summary:
        _show(summary)
    if "paused" not in summary:
        render.note(f"written: {out / pipeline.DIALOGS}")


def _models(
    named: Mapping[str, str | None],
    model: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    *,
    form: Form | None,
    files: bool,
    key_env: str,
    speak: Mapping[str, Any],
    load: Mapping[str, Any],
) -> dict[str, Model]:
    """The model of each stage; stages without one are left out.

    Raises:
        UsageError: options contradict each other.
        UserError: a path is not a checkpoint.
    """
    from codecria.data.errors import UsageError

    if model is not None and (endpoint is not None or endpoint_model is not None):
        raise UsageError(
            "two models are named for all stages",
            hint="leave --model or --endpoint out, or name one stage's: --questions-model URL#NAME",
        )
    if endpoint is not None and endpoint_model is None and not all(named.values()):
        raise UsageError("there is no --endpoint-model", hint="name the model at the endpoint")
    if endpoint_model is not None and endpoint is None and not files:
        raise UsageError(
            "there is no --endpoint", hint="use a URL such as http://127.0.0.1:8000/v1"
        )
    known: dict[str, Model] = {}

    def open_one(spec: str) -> Model:
        if spec not in known:
            known[spec] = _open(spec, endpoint, form, files, key_env, speak, load)
        return known[spec]

    found: dict[str, Model] = {}
    for stage, own in named.items():
        spec = own or model or endpoint_model
        if spec is not None:
            found[stage] = open_one(spec)
    return found


def _open(
    spec: str,
    endpoint: str | None,
    form: Form | None,
    files: bool,
    key_env: str,
    speak: Mapping[str, Any],
    load: Mapping[str, Any],
) -> Model:
    """A model by a checkpoint's folder, a name at the endpoint, or URL#NAME."""
    remote = spec.startswith(("http://", "https://"))
    if files and not Path(spec).is_dir():
        from codecria.core.self_instruct.batch import BatchModel

        return BatchModel(spec.rpartition("#")[2], form=form or "chat")
    if remote or (endpoint is not None and not Path(spec).is_dir()):
        from codecria.core.endpoint import Access, key_from
        from codecria.core.self_instruct.endpoint import Endpoint
        from codecria.data.errors import UsageError

        url, _, name = spec.partition("#") if remote else (endpoint or "", "", spec)
        if not name:
            raise UsageError(
                f"{spec} names no model", hint="use a URL such as http://127.0.0.1:8000/v1#NAME"
            )
        access = Access(url=url, key=key_from(key_env), **speak)
        if access.in_the_clear:
            render.warn(f"the key in {key_env} goes to {url} unencrypted")
        return Endpoint(access, name, form=form or "chat", note=render.note)
    from codecria.core.self_instruct.local import LocalModel

    return LocalModel(Path(spec), form=form, **load)


def execute(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run.")],
    shard: Annotated[str, typer.Option(metavar="I/N", help="Shard to run, from 1.")] = "1/1",
    sandbox: options.Tier = "auto",
    sandbox_command: options.SandboxCommand = None,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Parse the options, run one shard, print its outcomes."""
    from codecria.core.sandbox.config import SandboxConfig
    from codecria.core.self_instruct.pipeline import execute_shard

    number, shards = _shard(shard)
    config = SandboxConfig(tier=sandbox, command=sandbox_command or "", workers=workers)
    with ending_in_order(), render.stages() as show:
        summary = execute_shard(out, number, shards, sandbox=config, note=render.note, show=show)
    if as_json:
        render.emit_json(summary)
        return
    ends = ", ".join(f"{count} {word}" for word, count in summary["outcomes"].items())
    render.output(
        f"shard {summary['shard']}: {summary['questions']} questions,"
        f" {summary['solutions']} solutions" + (f": {ends}" if ends else "")
    )


def _shard(text: str) -> tuple[int, int]:
    """The number, from 0, and the count of a shard.

    Raises:
        UsageError: it is none.
    """
    from codecria.data.errors import UsageError

    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UsageError(
            f"--shard {text} is not I/N", hint="use 1/4, 2/4, 3/4, 4/4 for four shards"
        )
    return int(first) - 1, int(second)


def report(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run.")],
    as_json: options.AsJson = False,
) -> None:
    """Print the report of a finished run."""
    from codecria.core.self_instruct.record import report_of

    summary = report_of(out)
    if as_json:
        render.emit_json(summary)
    else:
        _show(summary)


def prompts(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
) -> None:
    """Write the prompt files and print their names."""
    from codecria.core.self_instruct import prompts as prompt_files

    for path in prompt_files.write(out):
        render.output(str(path))


# --- what is shown --------------------------------------------------------------------------------

FUNNEL = (
    ("asked", "questions asked for"),
    ("parsed", "items in the answers"),
    ("questions", "questions left"),
    ("with_tests", "with valid tests"),
    ("solutions", "solutions drawn"),
    ("run", "solutions run"),
    ("passed", "solutions passed all tests"),
    ("solved", "questions solved"),
    ("kept", "kept"),
)


def _show(summary: dict[str, Any]) -> None:
    """The funnel, the losses, the cost."""
    funnel = summary["funnel"]
    rows = [(label, f"{funnel[key]:,}") for key, label in FUNNEL if key in funnel]
    render.table("funnel", ["", ""], rows, to_stdout=True)
    losses = [
        (stage, reason, f"{found['count']:,}", _example(found))
        for stage, reasons in summary["losses"].items()
        for reason, found in reasons.items()
    ]
    if losses:
        columns = ["stage", "reason", "lost", "first example"]
        render.table("losses", columns, losses, to_stdout=True)
    ends = ", ".join(f"{count:,} {word}" for word, count in summary["outcomes"].items())
    if ends:
        render.output(f"  solutions run: {ends} (sandbox {', '.join(summary['tiers'])})")
    costs = summary["costs"]
    tokens = sum(cost["tokens"] for cost in costs["models"].values())
    seconds = sum(cost["seconds"] for cost in costs["models"].values())
    render.output(
        f"  cost: {tokens:,} tokens in {render.duration(seconds)} of the models' time,"
        f" {render.duration(costs['sandbox_seconds'])} of programs"
    )
    if costs["tokens_per_kept"] is not None:
        render.output(
            f"  a kept item: {costs['tokens_per_kept']:,.0f} tokens,"
            f" {costs['seconds_per_kept']:,.2f} s"
        )


def _example(found: dict[str, Any]) -> str:
    text = " ".join(found["examples"][0]["text"].split()) if found["examples"] else ""
    return text if len(text) <= 60 else text[:57] + "..."
