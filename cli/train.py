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
    CHAT,
    INPUT,
    MACHINE,
    OUTPUT,
    SCHEDULE,
    TRAINING,
    Changes,
    Decontaminate,
    Device,
    DryRun,
    Dtype,
    Threads,
    complete_recipes,
    complete_sizes,
    count_option,
    pairs_of,
)
from .signals import StopSignal, saving_on_signal

if TYPE_CHECKING:
    from codecria.core.training.plan import Plan
    from codecria.core.training.request import StageRequest
    from codecria.core.training.run import Standing
    from codecria.core.training.stage import Stage
    from codecria.core.training.trainer import Outcome, Trainer

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
    "changes": Changes,
    "micro_batch_size": typer.Option(
        help="Rows of one forward pass; smaller needs less memory.", rich_help_panel=MACHINE
    ),
    "extend": typer.Option(
        "--extend", help="Give the run in --out more steps.", rich_help_panel=TRAINING
    ),
    "force": typer.Option("--force", help="Replace the run in --out.", rich_help_panel=OUTPUT),
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
        as_json: bool,
        **given: Any,
    ) -> None:
        request = _request({"recipe": name} | given, threads)
        if show is not None:
            _show_examples(request, show, as_json=as_json)
        elif dry_run:
            _show_plan(request, out, as_json=as_json)
        elif out is None:
            raise UsageError(
                "there is no --out", hint="name a folder for the run, such as --out run"
            )
        else:
            from codecria.core.training.stage import run_stage

            stage = _resolve(request, out)
            with _watching(stage, as_json=as_json) as (signal, watchers):
                outcome = run_stage(stage, out, warn=render.warn, **watchers)
            _conclude(stage, out, outcome, signal)

    parameters = [*_options_of(name, others), *_COMMON]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


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


def _resolve(request: StageRequest, out: Path) -> Stage:
    """The stage, with what is about to happen in a few lines on stderr."""
    from codecria.core.training.resolve import resolve

    stage = resolve(request, out=out)
    stage.standing(out)  # refuse before announcing
    _announce(stage, out)
    return stage


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


def _conclude(stage: Stage, out: Path, outcome: Outcome, signal: StopSignal) -> None:
    """Say what came of a run.

    Raises:
        Interrupted: a signal stopped it.
    """
    from codecria.core.training.run import METRICS_NAME

    if not outcome.finished:
        raise Interrupted(
            ExitStatus.TERMINATED if signal.terminated else ExitStatus.INTERRUPTED,
            f"stopped and saved at step {outcome.step} of {stage.run.recipe.steps};"
            " rerun the same command to resume",
        )
    if outcome.trained == 0:
        render.note(f"{out} is finished: nothing to do")
    else:
        render.note(f"trained to step {outcome.step}: {out / 'model'}, {out / METRICS_NAME}")


def _show_plan(request: StageRequest, out: Path | None, *, as_json: bool) -> None:
    from codecria.core.training.planner import plan_paper, plan_stage
    from codecria.core.training.resolve import resolve

    if not (request.data or request.dialogs):
        plan, now = plan_paper(request), None
    else:
        stage = resolve(request, out=out, plan=True)
        now = stage.standing(out) if out is not None else None
        plan = plan_stage(stage, out)
    if as_json:
        render.emit_json(plan.as_json() | {"action": now.action if now is not None else None})
        return
    _render_plan(plan)
    if out is not None and now is not None:
        _note_standing(now, out)


def _note_standing(now: Standing, out: Path) -> None:
    """What the same command without --dry-run would do to the run folder."""
    from codecria.core.training.resume import newest_step

    for warning in now.warnings:
        render.warn(warning)
    done = newest_step(out)
    render.note(
        {
            "start": f"{out}: a new run",
            "resume": f"{out}: resumes after step {done:,}",
            "extend": f"{out}: extends the run after step {min(done, now.rewind):,}",
            "replace": f"{out}: replaces the run there",
        }[now.action]
    )


def _render_plan(plan: Plan) -> None:
    plain = plan.as_json()
    seconds = plain["seconds"]
    facts = [
        ("recipe", f"{plan.recipe.name} {plan.recipe.size} ({plan.recipe.source})"),
        ("parameters", f"{plain['parameters']:,}"),
        ("tokens", f"{plain['tokens']:,} in {plain['steps']:,} steps of {plain['batch_tokens']:,}"),
        ("context", f"{plain['context']:,}"),
        ("learning rate", f"{plain['peak_lr']:g} after {plain['warmup_steps']:,} warm-up steps"),
        ("FLOPs", f"{plain['flops']:.3g}"),
        ("time here", "unknown" if seconds is None else _time_here(plan)),
    ]
    if plan.recipe.rope_theta is not None or plan.recipe.rope_scale is not None:
        facts.append(("rotary base", f"{plain['rope_theta']:g}, scale {plain['rope_scale']:g}"))
    if plan.recompute:
        facts.append(("activations", "recomputed in backward (--recompute off keeps them)"))
    if plan.reach is not None:
        facts.append(
            ("see further than", f"{plan.reach.beyond:,} tokens: {plan.reach.share:.1%} of tokens")
        )
    if plain["infill"] is not None:
        facts += _infill_facts(plain["infill"])
    render.table("plan", ["", ""], facts, to_stdout=True)
    render.table(
        "data",
        ["source", "share", "tokens drawn", "tokens held", "epochs"],
        [
            (
                s["name"],
                f"{s['share']:.1%}",
                f"{s['tokens_drawn']:.4g}",
                f"{s['tokens_unique']:.4g}" if s["tokens_unique"] else "",
                f"{s['epochs']:.2f}" if s["tokens_unique"] else "",
            )
            for s in plain["sources"]
        ],
        to_stdout=True,
    )
    render.table(
        "memory on one device",
        ["part", "GB"],
        [(part, f"{size / 1e9:.2f}") for part, size in plain["memory_bytes"].items()],
        to_stdout=True,
    )


def _time_here(plan: Plan) -> str:
    assert plan.rate is not None, "a time comes from a rate"
    assert plan.seconds is not None, "a time comes from a rate"
    rate = plan.rate.tokens_per_s
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return f"{render.duration(plan.seconds)} ({speed} tokens/s, {plan.rate.source})"


def _infill_facts(infill: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        (
            "infilling",
            f"{infill['rate']:.0%} of eligible documents, {infill['spm_share']:.0%} of them SPM;"
            f" scope {infill['scope']}",
        )
    ]
    if infill["effective_rate"] is not None:
        facts += [
            (
                "eligible",
                f"{infill['eligible_pieces']:,} of {infill['pieces']:,} document parts,"
                f" {infill['eligible_tokens']:,} of {infill['tokens']:,} tokens",
            ),
            ("effective rate", f"{infill['effective_rate']:.1%} of tokens"),
        ]
    return facts


def _show_examples(request: StageRequest, count: int, *, as_json: bool) -> None:
    """Print examples of the run's own rows; the payload is stdout's."""
    from codecria.core.training.examples import examples
    from codecria.core.training.resolve import resolve

    number = 0
    for number, example in enumerate(
        examples(resolve(request, out=None, plan=True), count), start=1
    ):
        if as_json:
            render.emit_json_line(example.as_json())
            continue
        size = f"{len(example.ids):,} tokens"
        render.output(f"--- {number}: {example.order}, row {example.row}, {size}")
        render.output(example.marked)
        render.output("ids " + " ".join(map(str, example.ids)) + "\n")
    if number < count:
        render.note(f"the run holds {number} examples; --dry-run shows what is eligible")


LEAST_REACH = 0.1  # below, long-context training has little to learn from (DECISIONS)


def _announce_dialogs(stage: Stage) -> None:
    """What the files of dialogs held, and what was left out of them."""
    for report in stage.dialogs:
        refused = sum(report.refused.values())
        out = [f"{report.duplicates:,} duplicates"] if report.duplicates else []
        out += [f"{refused:,} that cannot be used"] if refused else []
        if report.contaminated_dialogs:
            out.append(f"{report.contaminated_dialogs:,} that hold an evaluation problem")
        render.note(
            f"{report.name}: {report.kept:,} dialogs, {report.held_out:,} of them for validation"
            + (f"; left out {' and '.join(out)}" if out else "")
        )
        for line in report.examples:
            render.warn(line)
        if refused > len(report.examples):
            render.note(f"... and {refused - len(report.examples):,} more")
        if report.unused:
            named = ", ".join(f"{name} {count:,}" for name, count in report.unused.items())
            render.note(f"{report.name}: fields not used, by records: {named}")
    if stage.too_long:
        context = stage.run.recipe.context
        render.warn(f"{stage.too_long:,} dialogs longer than {context:,} tokens are left out")
    if stage.dialogs and all(source.shards.dialogs for source in stage.mixture.sources):
        render.note(
            "no --replay: without some of the code it was trained on, a model unlearns it (Code"
            " Llama replays 8 %)"
        )


def _announce(stage: Stage, out: Path) -> None:
    """What is about to happen, in a few lines on stderr."""
    from codecria.core.machine import compiler_problem
    from codecria.core.training.planner import reach_of

    run = stage.run
    render.note(
        f"{run.recipe.name} {run.recipe.size}: {run.model.parameters:,} parameters,"
        f" {run.recipe.steps:,} steps of {run.recipe.batch_tokens:,} tokens -> {out}"
    )
    render.note(
        f"{stage.settings.device}, {run.dtype}, {'compiled' if run.compiled else 'eager'},"
        f" {run.micro_batch_size} rows a pass"
        f"{', activations recomputed' if run.recompute else ''};"
        f" attention {run.attention}: {stage.settings.why_attention}"
    )
    if run.recipe.rope_theta is not None or run.recipe.rope_scale is not None:
        render.note(
            f"context {run.recipe.context:,}, rotary base {run.model.rope_theta:g}, positions"
            f" divided by {run.model.rope_scale:g}"
        )
    if (reach := reach_of(stage)) is not None:
        say = render.warn if reach.share < LEAST_REACH else render.note
        say(
            f"{reach.share:.1%} of tokens see further than {reach.beyond:,} tokens: attention stays"
            " within documents; --set document_mask=false lets it reach across the window"
        )
    _announce_dialogs(stage)
    if (infill := run.recipe.infill) is not None:
        render.note(
            f"infilling {infill.rate:.0%} of eligible documents, scope {infill.scope};"
            f" vocabulary {run.model.vocab_size:,}, of it"
            f" {run.model.vocab_size - stage.vocabulary.known_rows} new"
        )
    if problem := compiler_problem():
        render.note(f"{problem}: a long run is somewhat slower without torch.compile")
