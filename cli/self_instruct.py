"""`codecria self-instruct`: instruction data that a model makes itself, and tests filter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import render
from .commands import QuickGroup
from .options import ConfirmMode, pairs_of
from .signals import ending_in_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from codecria.core.self_instruct.models import Model
    from codecria.core.self_instruct.prompts import Form

HELP = """Make instruction data: questions, tests, solutions; what passes the tests is kept.

A model is asked for questions, for tests of each, and for several solutions; all run in the
sandbox, and the first that passes is kept. The same command goes on where it stopped.

Example: codecria self-instruct --model run --out made --questions 1000
"""
EXECUTE_HELP = """Run one part of a run's solutions, on any machine that sees its folder.

Begin the run with --stop-after solutions, run the parts anywhere, give the first command again.

Example: codecria self-instruct execute made --shard 1/4
"""
PROMPTS_HELP = """Write the prompts to a folder, to be changed and given by --prompts.

Example: codecria self-instruct prompts my-prompts
"""
REPORT_HELP = """Show the funnel of a finished run again.

Example: codecria self-instruct report made
"""
Tier = Literal["auto", "bwrap", "native", "command", "none"]


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
        str | None, typer.Option(metavar="CKPT", help="Checkpoint or run folder to ask.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run.")] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Questions to ask for [default: the preset's].")
    ] = None,
    solutions: Annotated[
        int | None, typer.Option(min=1, help="Solutions of each [default: the paper's 10].")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeats the same texts.")] = None,
    preset: Annotated[
        str, typer.Option(help="verified, or paper: without filters that it does not describe.")
    ] = "verified",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field; repeatable."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible, as http://127.0.0.1:8000/v1."),
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model at --endpoint.")
    ] = None,
    questions_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Who asks: a checkpoint, a name at --endpoint, or URL#NAME."
        ),
    ] = None,
    tests_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Who writes tests, likewise.")
    ] = None,
    solutions_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Who answers, likewise.")
    ] = None,
    form: Annotated[
        Literal["auto", "chat", "few-shot"],
        typer.Option(
            metavar="FORM", help="chat, or few-shot for base models [default: as it was tuned]."
        ),
    ] = "auto",
    key_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that failed.")] = 5,
    request_timeout: Annotated[float, typer.Option(help="Seconds of one request.")] = 600.0,
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Go on without answers that did not come.")
    ] = False,
    emit_requests: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write requests as OpenAI batch, and stop.")
    ] = None,
    responses: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Take their answers; repeatable.")
    ] = None,
    questions_file: Annotated[
        Path | None, typer.Option(help="Questions of yours: .txt or .jsonl.")
    ] = None,
    tests_file: Annotated[
        Path | None, typer.Option(help="Questions with tests of yours: .jsonl.")
    ] = None,
    prompts_folder: Annotated[
        Path | None, typer.Option("--prompts", metavar="DIR", help="Prompts of yours.")
    ] = None,
    decontaminate: Annotated[
        list[Path] | None, typer.Option(help="Evaluation file that no item may hold; repeatable.")
    ] = None,
    near_dedup: Annotated[
        float | None,
        typer.Option(metavar="S", help="Drop questions as similar as this, from 0 to 1: as 0.7."),
    ] = None,
    probe_tests: Annotated[
        bool | None,
        typer.Option(
            "--probe-tests/--no-probe-tests", help="Drop tests that pass constants or arguments."
        ),
    ] = None,
    drop_flaky: Annotated[
        bool | None,
        typer.Option("--drop-flaky/--no-drop-flaky", help="Run what passed twice more."),
    ] = None,
    dedup_solutions: Annotated[
        bool | None,
        typer.Option("--dedup-solutions/--no-dedup-solutions", help="Run equal syntax trees once."),
    ] = None,
    stop_after: Annotated[
        Literal["questions", "tests", "solutions"] | None,
        typer.Option(metavar="STAGE", help="questions, tests or solutions."),
    ] = None,
    sandbox: Annotated[
        Tier, typer.Option(metavar="TIER", help="Where programs run; none is no sandbox at all.")
    ] = "auto",
    sandbox_command: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="For --sandbox command.")
    ] = None,
    confirm: ConfirmMode = "passes",
    workers: Annotated[int | None, typer.Option(min=1, help="Programs side by side.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of one program.")] = 3.0,
    memory_mb: Annotated[int, typer.Option(min=16, help="Of one program.")] = 1_024,
    batch: Annotated[int, typer.Option(min=1, help="Answers drawn side by side.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (as stored where that is fast), float32, bfloat16.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; one when cores are busy.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Parse, make, show."""
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
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    chosen: Form | None = None if form == "auto" else prompt_files.check_form(form)
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
            load={"batch": batch, "device": device, "dtype": dtype},
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
            limits=Limits(wall_s=timeout, memory_bytes=memory_mb << 20),
        ),
        stop_after=stop_after,
        emit=emit_requests,
        responses=tuple(responses or ()),
        skip_failed=skip_failed,
    )
    with ending_in_order(), render.stages() as show:
        told = pipeline.run(request, note=render.note, show=show)
    if as_json:
        render.emit_json(told)
    elif "paused" not in told:
        _show(told)
    if "paused" not in told:
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
    """Who answers each stage; stages without anybody named are left out.

    Raises:
        UsageError: options contradict each other.
        UserError: a checkpoint is none.
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
        raise UsageError("there is no --endpoint", hint="as http://127.0.0.1:8000/v1")
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
        from codecria.core.self_instruct.endpoint import Access, Endpoint, key_from
        from codecria.data.errors import UsageError

        url, _, name = spec.partition("#") if remote else (endpoint or "", "", spec)
        if not name:
            raise UsageError(f"{spec} names no model", hint="as http://127.0.0.1:8000/v1#NAME")
        access = Access(url=url, key=key_from(key_env), **speak)
        if access.in_the_clear:
            render.warn(f"the key in {key_env} goes to {url} unencrypted")
        return Endpoint(access, name, form=form or "chat", note=render.note)
    from codecria.core.self_instruct.local import LocalModel

    return LocalModel(Path(spec), form=form, **load)


def execute(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run.")],
    shard: Annotated[str, typer.Option(metavar="I/N", help="Which part, from 1.")] = "1/1",
    sandbox: Annotated[
        Tier, typer.Option(metavar="TIER", help="Where programs run; none is no sandbox at all.")
    ] = "auto",
    sandbox_command: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="For --sandbox command.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Programs side by side.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Parse, run, show."""
    from codecria.core.sandbox.config import SandboxConfig
    from codecria.core.self_instruct.pipeline import execute_shard

    number, shards = _shard(shard)
    config = SandboxConfig(tier=sandbox, command=sandbox_command or "", workers=workers)
    with ending_in_order(), render.stages() as show:
        told = execute_shard(out, number, shards, sandbox=config, note=render.note, show=show)
    if as_json:
        render.emit_json(told)
        return
    ends = ", ".join(f"{count} {word}" for word, count in told["outcomes"].items())
    render.output(
        f"shard {told['shard']}: {told['questions']} questions, {told['solutions']} solutions"
        + (f": {ends}" if ends else "")
    )


def _shard(text: str) -> tuple[int, int]:
    """The number, from 0, and the count of a shard.

    Raises:
        UsageError: it is none.
    """
    from codecria.data.errors import UsageError

    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UsageError(f"--shard {text} is not I/N", hint="as 1/4, 2/4, 3/4, 4/4")
    return int(first) - 1, int(second)


def report(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Read, show."""
    from codecria.core.self_instruct.record import report_of

    told = report_of(out)
    if as_json:
        render.emit_json(told)
    else:
        _show(told)


def prompts(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that takes them.")],
) -> None:
    """Write, tell."""
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


def _show(told: dict[str, Any]) -> None:
    """The funnel, the losses, the cost."""
    funnel = told["funnel"]
    rows = [(label, f"{funnel[key]:,}") for key, label in FUNNEL if key in funnel]
    render.table("funnel", ["", ""], rows, to_stdout=True)
    losses = [
        (stage, reason, f"{found['count']:,}", _example(found))
        for stage, reasons in told["losses"].items()
        for reason, found in reasons.items()
    ]
    if losses:
        columns = ["stage", "reason", "lost", "the first"]
        render.table("what was lost", columns, losses, to_stdout=True)
    ends = ", ".join(f"{count:,} {word}" for word, count in told["outcomes"].items())
    if ends:
        render.output(f"  solutions run: {ends} (sandbox {', '.join(told['tiers'])})")
    costs = told["costs"]
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
