"""The training verbs: one command for each stage, its options made from `StageRequest`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer

from codecria.data.errors import ExitStatus, Interrupted, UsageError

from . import render
from .options import (
    ADAPTER,
    CHAT,
    INPUT,
    MACHINE,
    OUTPUT,
    SCHEDULE,
    TRAINING,
    Changes,
    Decontaminate,
    Device,
    DeviceFlops,
    DeviceMemory,
    Devices,
    DryRun,
    Dtype,
    Mfu,
    Threads,
    complete_recipes,
    complete_sizes,
    count_option,
    pairs_of,
)
from .signals import StopSignal, saving_on_signal
from .train_output import announce, show_examples, show_plan

if TYPE_CHECKING:
    from codecria.core.training.request import StageRequest
    from codecria.core.training.stage import Stage
    from codecria.core.training.trainer import Outcome, Trainer
    from codecria.core.training.world import World

PRETRAIN_HELP = """Train a model on code, from fresh weights or from a checkpoint.

Rerun the same command to resume; Ctrl-C saves first.

Example: codecria pretrain --data shards --size 15m --tokens 20M --out run

Example: codecria pretrain --size 7b --dry-run
"""

FIM_HELP = """Train a model on code with the infilling objective, from a checkpoint.

The infilling tokens are added to the tokenizer and the embeddings; shards of the checkpoint's own
tokenizer are used as they are. Rerun the same command to resume.

Example: codecria fim --init run --data shards --tokens 20M --out infill
"""

LCFT_HELP = """Fine-tune a model on long sequences, so that it can use a long context.

The context is four times as long and the rotary base larger. For linear position scaling instead:
--set rope_theta=1e4 --set rope_scale=4. Measure the result with `codecria evaluate long-context`.
Rerun the same command to resume.

Example: codecria lcft --init infill --data shards --tokens 20M --out long
"""

INSTRUCT_HELP = """Tune a model on dialogs, so that it follows instructions.

Dialogs are JSON lines: OpenAI messages, ShareGPT conversations, Alpaca, instruction and response.
The loss is on answers alone. Rerun the same command to resume.

Example: codecria instruct --init long --dialogs chats.jsonl --replay shards=0.08 --out chat
"""

VERBS = ("pretrain", "fim", "lcft", "instruct")  # whose work several processes share

ON_DIALOGS = {"dialogs", "replay", "decontaminate", "allow_tags", "strict", "epochs"}

# The help line and group of each field of `StageRequest`; name, type and default are the field's.
OPTIONS: dict[str, Any] = {
    "data": Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[=WEIGHT]",
            help="Shard folder and its share; repeatable.",
            rich_help_panel=INPUT,
        ),
    ],
    "dialogs": Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[=WEIGHT]",
            help="File of dialogs and its share; repeatable.",
            rich_help_panel=INPUT,
        ),
    ],
    "replay": Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[=SHARE]",
            help="Shard folder to train on beside the dialogs, and its share of all rows [default:"
            " 0.08 in all]; repeatable.",
            rich_help_panel=INPUT,
        ),
    ],
    "decontaminate": Decontaminate,
    "allow_tags": typer.Option(
        "--allow-tags",
        help="Keep dialogs that contain chat-template tags such as [INST].",
        rich_help_panel=CHAT,
    ),
    "strict": typer.Option(
        "--strict", help="Fail on a dialog that cannot be used.", rich_help_panel=CHAT
    ),
    "size": typer.Option(
        help="Model size for fresh weights or a plan: 15m, 7b ...",
        autocompletion=complete_sizes,
        rich_help_panel=INPUT,
    ),
    "init": typer.Option(help="Checkpoint or run folder to start from.", rich_help_panel=INPUT),
    "any_init": typer.Option(
        "--any-init",
        help="Start from a checkpoint of any stage, or from fresh weights.",
        rich_help_panel=INPUT,
    ),
    "tokens": count_option("Tokens to train on.", panel=TRAINING),
    "steps": count_option("Optimizer steps, instead of --tokens.", panel=TRAINING),
    "epochs": typer.Option(
        help="Passes over the dialogs, instead of --tokens.", rich_help_panel=TRAINING
    ),
    "lora": typer.Option(
        metavar="RANK",
        help="Train an adapter (LoRA) of this rank; the model's own weights stay as they are.",
        rich_help_panel=ADAPTER,
    ),
    "lora_alpha": typer.Option(
        help="Scale of the adapter, divided by its rank [default: 32].", rich_help_panel=ADAPTER
    ),
    "lora_layers": typer.Option(
        help="Matrices that get an adapter [default: all].", rich_help_panel=ADAPTER
    ),
    "qlora": typer.Option(
        "--qlora",
        help="Keep the model's own weights in 4 bits [rank: 16, or --lora].",
        rich_help_panel=ADAPTER,
    ),
    "changes": Changes,
    "micro_batch_size": typer.Option(
        help="Rows of one forward pass; smaller needs less memory.", rich_help_panel=MACHINE
    ),
    "extend": typer.Option(
        "--extend", help="Give the run in --out more steps.", rich_help_panel=TRAINING
    ),
    "force": typer.Option("--force", help="Replace the run in --out.", rich_help_panel=OUTPUT),
    "mesh": typer.Option(
        metavar="MESH",
        help="How torchrun's processes share the work: auto, or such as dp=8,tp=2,cp=4 for data,"
        " tensor and context parallel.",
        rich_help_panel=MACHINE,
    ),
    "process_timeout": typer.Option(
        min=1,
        help="Time that one of torchrun's processes may keep the others waiting, seconds; then all"
        " end.",
        rich_help_panel=MACHINE,
    ),
    "device": Device,
    "dtype": Dtype,
    "compile": typer.Option(
        help="torch.compile; auto uses it where the run is long enough.", rich_help_panel=MACHINE
    ),
    "attention": typer.Option(help="Attention backend.", rich_help_panel=MACHINE),
    "recompute": typer.Option(
        help="Activation (gradient) checkpointing: less memory, more time.",
        rich_help_panel=MACHINE,
    ),
    "log_every": typer.Option(help="Steps between log lines.", rich_help_panel=SCHEDULE),
    "eval_every": typer.Option(
        help="Steps between validations [default: a tenth of the run].", rich_help_panel=SCHEDULE
    ),
    "save_every": typer.Option(
        help="Steps between checkpoints [default: a tenth of the run].", rich_help_panel=SCHEDULE
    ),
    "eval_rows": typer.Option(help="Validation rows per source.", rich_help_panel=SCHEDULE),
    "keep": typer.Option(help="Checkpoints to keep.", rich_help_panel=SCHEDULE),
}


def register(app: typer.Typer) -> None:
    """Add the training verbs to the command line."""
    app.command("pretrain", help=PRETRAIN_HELP)(verb("pretrain", "python"))
    app.command("fim", help=FIM_HELP)(verb("fim"))
    app.command("lcft", help=LCFT_HELP)(verb("lcft", "lcft-python"))
    app.command("instruct", help=INSTRUCT_HELP)(verb("instruct"))


def verb(name: str, *others: str) -> Callable[..., None]:
    """The command of a stage: Typer fills a `StageRequest`, and this carries it out.

    Args:
        name: of the verb and of its recipe.
        others: recipes that `--recipe` chooses instead; without any, the option is not there.
    """

    def command(
        out: Path | None,
        threads: int | None,
        show: int | None,
        dry_run: bool,
        devices: int | None,
        device_memory: int | None,
        device_flops: float,
        mfu: float,
        as_json: bool,
        **given: Any,
    ) -> None:
        if (devices is not None or device_memory is not None) and not dry_run:
            raise UsageError(
                "--devices and --device-memory are for plans",
                hint="add --dry-run; torchrun --nproc-per-node N starts several processes",
            )
        request = _request({"recipe": name} | given, threads)
        if show is not None:
            show_examples(request, show, as_json=as_json)
        elif dry_run:
            machines = None
            if devices is not None or device_memory is not None:
                from codecria.core.training.spread import Machines

                machines = Machines(
                    devices=devices or 1, memory=device_memory, peak_flops=device_flops, mfu=mfu
                )
            show_plan(request, out, as_json=as_json, machines=machines)
        elif out is None:
            raise UsageError(
                "there is no --out", hint="name a folder for the run, such as --out run"
            )
        else:
            carry_out(request, out, as_json=as_json)

    parameters = [*_options_of(name, others), *_COMMON]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def carry_out(request: StageRequest, out: Path, *, as_json: bool = False) -> None:
    """Train as requested, from the beginning or from where the run in the folder stopped.

    Raises:
        Interrupted: a signal stopped it; what was done is saved.
        UserError: see `resolve` and `run_stage`.
    """
    from codecria.core.machine import choose_device
    from codecria.core.training.stage import run_stage
    from codecria.core.training.world import joined

    device = choose_device(request.device)
    with joined(device, timeout_s=request.process_timeout) as world:
        stage, world = _resolve(request, out, world)
        with _watching(stage, as_json=as_json) as (signal, watchers):
            outcome = run_stage(stage, out, warn=render.warn, world=world, **watchers)
        _conclude(stage, out, outcome, signal, world)


_COMMON = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
    for name, kind, default in (
        ("threads", Threads, None),
        (
            "show",
            Annotated[
                int | None,
                typer.Option(
                    min=1,
                    metavar="N",
                    help="Print N training examples, text and ids, and stop.",
                    rich_help_panel=OUTPUT,
                ),
            ],
            None,
        ),
        ("dry_run", DryRun, False),
        ("devices", Devices, None),
        ("device_memory", DeviceMemory, None),
        ("device_flops", DeviceFlops, 989e12),
        ("mfu", Mfu, 0.4),
        (
            "as_json",
            Annotated[
                bool,
                typer.Option(
                    "--json", help="Plan, examples or metrics as JSON.", rich_help_panel=OUTPUT
                ),
            ],
            False,
        ),
    )
]


def _options_of(name: str, others: tuple[str, ...]) -> list[inspect.Parameter]:
    """The options of a verb: the run folder, then the fields of `StageRequest` that it has."""
    from codecria.core.training.request import INSTRUCT, StageRequest  # light, as help needs it

    hints = get_type_hints(StageRequest)
    left_out = {"data"} if name == INSTRUCT else ON_DIALOGS
    out = typer.Option(
        "--out",
        "-o",
        help="Run folder: checkpoints, metrics, the model.",
        rich_help_panel=OUTPUT,
    )
    found: list[tuple[str, Any, Any]] = [("out", Annotated[Path | None, out], None)]
    if others:
        choice = typer.Option(
            help=f"Recipe: {' or '.join((name, *others))}.",
            autocompletion=complete_recipes,
            rich_help_panel=TRAINING,
        )
        found.append(("recipe", Annotated[str, choice], name))
    for field in fields(StageRequest):
        if field.name == "recipe" or field.name in left_out:
            continue
        option = OPTIONS[field.name]
        whole = get_origin(option) is Annotated
        kind = option if whole else Annotated[hints[field.name], option]
        # An empty list is None to Typer, and None leaves the field's default.
        default = None if field.default in (MISSING, ()) else field.default
        found.append((field.name, kind, default))
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, kind, default in found
    ]


def _request(given: dict[str, Any], threads: int | None) -> StageRequest:
    """The request that the options make, with PyTorch's threads set."""
    import torch

    from codecria.core.training.request import StageRequest

    if threads is not None:
        torch.set_num_threads(threads)
    given = {name: value for name, value in given.items() if value is not None}
    if "size" in given:
        given["size"] = given["size"].lower()  # 7B is 7b
    if "changes" in given:
        given["changes"] = pairs_of(given["changes"])
    return StageRequest(**given)


def _resolve(request: StageRequest, out: Path, world: World) -> tuple[Stage, World]:
    """The stage and its processes, with what is about to happen on stderr of the main one."""
    from codecria.core.training.resolve import known_init, resolve
    from codecria.core.training.stage import agreed

    # Of many processes on one disk only the main one reads the whole checkpoint.
    known = world.on_main(lambda: known_init(request, out)) if world.size > 1 else None

    def opened() -> Stage:
        stage = resolve(request, out=out, known=known)
        stage.standing(out)  # refuse before announcing
        return stage

    if not world.is_main:
        render.set_quiet(True)
    stage, world = agreed(world.main_first(opened), world)
    if world.is_main:
        announce(stage, out)
    if world.size > 1:
        render.note(f"{world.size} processes share each step: {world.mesh}")
    return stage, world


@contextlib.contextmanager
def _watching(stage: Stage, *, as_json: bool) -> Iterator[tuple[StopSignal, dict[str, Any]]]:
    """Progress and signals of a run.

    Yields:
        the signal that may come, and what `run_stage` calls: `report` and `started`.
    """
    with render.training_progress(stage.run.recipe.steps) as progress, saving_on_signal() as signal:

        def report(entry: dict[str, Any]) -> None:
            progress(entry)
            if as_json:
                render.emit_json_line(entry)

        def started(trainer: Trainer) -> None:
            signal.on_stop = lambda: setattr(trainer, "stop_requested", True)

        yield signal, {"report": report, "started": started}


def _conclude(stage: Stage, out: Path, outcome: Outcome, signal: StopSignal, world: World) -> None:
    """Say what came of a run.

    Raises:
        Interrupted: a signal stopped it.
    """
    from codecria.core.training.run import METRICS_NAME

    if not outcome.finished:
        raise Interrupted(
            ExitStatus.INTERRUPTED if signal.interrupted else ExitStatus.TERMINATED,
            f"stopped and saved at step {outcome.step} of {stage.run.recipe.steps};"
            " rerun the same command to resume"
            if world.is_main
            else "",
        )
    if outcome.trained == 0:
        render.note(f"{out} is finished: nothing to do")
    else:
        made = out / stage.run.published
        render.note(f"trained to step {outcome.step}: {made}, {out / METRICS_NAME}")
