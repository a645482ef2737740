"""The training verbs: one function, registered once for each stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codecria.data.errors import UsageError

from . import render
from .options import pairs_of

if TYPE_CHECKING:
    from codecria.core.training.plan import Plan
    from codecria.core.training.stage import Stage, StageRequest

PRETRAIN_HELP = """Train a model on code, from fresh weights or from a checkpoint.

Started again with the same options, it goes on where it stopped; Ctrl-C saves first.

Example: codecria pretrain --data shards --size 15m --tokens 20000000 --out run
"""

FIM_HELP = """Train a model on code with the infilling objective, from a checkpoint.

The tokenizer and the embeddings grow by the infilling pieces; shards of the checkpoint's own
tokenizer serve as they are. Started again with the same options, it goes on where it stopped.

Example: codecria fim --init run --data shards --tokens 20000000 --out infill
"""

LCFT_HELP = """Fine-tune a model on long sequences, so that it can use a long context.

Four times the window, and rotary frequencies of a larger base. Linear scaling of the positions
instead: --set rope_theta=1e4 --set rope_scale=4. `codecria evaluate long-context` shows what came
of it. Started again with the same options, it goes on where it stopped.

Example: codecria lcft --init infill --data shards --tokens 20000000 --out long
"""

INSTRUCT_HELP = """Tune a model on dialogs, so that it follows instructions.

Files hold JSON lines: OpenAI messages, ShareGPT conversations, Alpaca, instruction and response.
The loss is on answers alone. Started again with the same options, it goes on where it stopped.

Example: codecria instruct --init long --dialogs chats.jsonl --rehearse shards=0.08 --out chat
"""

DIALOGS = ("dialogs", "rehearse", "allow_tags", "strict", "epochs")


def register(app: typer.Typer) -> None:
    """Add the training verbs to the command line."""
    app.command("pretrain", help=PRETRAIN_HELP)(_verb("pretrain", ("python",), without=DIALOGS))
    app.command("fim", help=FIM_HELP)(_verb("fim", without=DIALOGS))
    app.command("lcft", help=LCFT_HELP)(_verb("lcft", ("lcft-python",), without=DIALOGS))
    app.command("instruct", help=INSTRUCT_HELP)(_verb("instruct", without=("data",)))


def _verb(
    name: str, others: tuple[str, ...] = (), *, without: tuple[str, ...]
) -> Callable[..., None]:
    """The training function as one verb has it.

    Args:
        name: of the verb and of its recipe.
        others: recipes that `--recipe` chooses instead; without any, the option is not there.
        without: options that the verb has not.
    """

    def command(**given: Any) -> None:
        train(**({"recipe": name} | given))

    parameters = []
    for parameter in inspect.signature(train, eval_str=True).parameters.values():
        if parameter.name == "recipe" and others:
            choice = typer.Option(help=f"Whose numbers to use: {' or '.join((name, *others))}.")
            kind = Annotated[str, choice]
            parameters.append(parameter.replace(annotation=kind, default=name))
        elif parameter.name not in (*without, "recipe"):
            parameters.append(parameter)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def train(
    out: Annotated[
        Path | None, typer.Option(help="Run folder: checkpoints, metrics, the model.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR[=WEIGHT]", help="Shard folder and its share; repeatable."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Model size for fresh weights or a plan: 15m, 7b ...")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from.")] = None,
    any_init: Annotated[
        bool, typer.Option("--any-init", help="Start from a checkpoint of any stage, or from none.")
    ] = False,
    recipe: str = "pretrain",
    dialogs: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=WEIGHT]", help="File of dialogs and its share; repeatable."),
    ] = None,
    rehearse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[=SHARE]",
            help="Shard folder trained on beside them, and its share of all rows [default: 0.08 in"
            " all]; repeatable.",
        ),
    ] = None,
    allow_tags: Annotated[
        bool, typer.Option("--allow-tags", help="Keep dialogs that hold [INST] and the like.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A dialog that cannot be used is an error.")
    ] = False,
    tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, instead of --tokens.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="How often to go through the dialogs, instead of --tokens.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a recipe field; repeatable."),
    ] = None,
    micro_rows: Annotated[
        int | None, typer.Option(help="Rows of one forward pass; bounds memory.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    compiled: Annotated[
        str, typer.Option("--compile", help="auto, on or off: torch.compile where it pays.")
    ] = "auto",
    attention: Annotated[str, typer.Option(help="auto, sdpa or xformers.")] = "auto",
    recompute: Annotated[
        str,
        typer.Option(help="auto, on or off: activations anew in backward, for less memory."),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; one when cores are busy.")
    ] = (None),
    log_every: Annotated[int, typer.Option(help="Steps between log lines.")] = 10,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between validations [default: a tenth of the run].")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints [default: a tenth of the run].")
    ] = None,
    eval_rows: Annotated[int, typer.Option(help="Validation rows of each source.")] = 64,
    keep: Annotated[int, typer.Option(help="Checkpoints kept.")] = 2,
    show: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Print N training examples, text and ids, and stop."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Plan, examples or metrics as JSON.")
    ] = False,
) -> None:
    """Parse, resolve, and train or plan."""
    import torch

    from codecria.core.training.stage import StageRequest

    if threads is not None:
        torch.set_num_threads(threads)
    request = StageRequest(
        recipe=recipe,
        data=data or [],
        size=size,
        init=init,
        any_init=any_init,
        tokens=tokens,
        steps=steps,
        epochs=epochs,
        changes=pairs_of(changes or []),
        micro_rows=micro_rows,
        device=device,
        dtype=dtype,
        compiled=compiled,
        attention=attention,
        recompute=recompute,
        dialogs=dialogs or [],
        rehearse=rehearse or [],
        allow_tags=allow_tags,
        strict=strict,
        log_every=log_every,
        eval_every=eval_every,
        save_every=save_every,
        eval_rows=eval_rows,
        keep=keep,
    )
    if show is not None:
        _show_examples(request, show, as_json=as_json)
        return
    if dry_run:
        _show_plan(request, out, as_json=as_json)
        return
    if out is None:
        raise UsageError("there is no --out", hint="name a folder for the run, such as --out run")
    _train(request, out, as_json=as_json)


def _show_plan(request: StageRequest, out: Path | None, *, as_json: bool) -> None:
    from codecria.core.training.stage import paper_plan, resolve

    at_hand = request.data or request.dialogs
    plan = resolve(request, out=out).plan() if at_hand else paper_plan(request)
    if as_json:
        render.emit_json(plan.as_json())
    else:
        _render_plan(plan)


def _render_plan(plan: Plan) -> None:
    told = plan.as_json()
    seconds = told["seconds"]
    facts = [
        ("recipe", f"{plan.recipe.name} {plan.recipe.size} ({plan.recipe.source})"),
        ("parameters", f"{told['parameters']:,}"),
        ("tokens", f"{told['tokens']:,} in {told['steps']:,} steps of {told['batch_tokens']:,}"),
        ("context", f"{told['context']:,}"),
        ("learning rate", f"{told['peak_lr']:g} after {told['warmup_steps']:,} warm-up steps"),
        ("FLOPs", f"{told['flops']:.3g}"),
        ("time here", "unknown" if seconds is None else render.duration(seconds)),
    ]
    if plan.recipe.rope_theta is not None or plan.recipe.rope_scale is not None:
        facts.append(("rotary base", f"{told['rope_theta']:g}, scale {told['rope_scale']:g}"))
    if plan.recompute:
        facts.append(("activations", "computed anew in backward (--recompute off keeps them)"))
    if plan.reach is not None:
        facts.append(
            ("see further than", f"{plan.reach.beyond:,} tokens: {plan.reach.share:.1%} of tokens")
        )
    if told["infill"] is not None:
        facts += _infill_facts(told["infill"])
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
            for s in told["sources"]
        ],
        to_stdout=True,
    )
    render.table(
        "memory on one device",
        ["part", "GB"],
        [(part, f"{size / 1e9:.2f}") for part, size in told["memory_bytes"].items()],
        to_stdout=True,
    )


def _infill_facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        (
            "infilling",
            f"{told['rate']:.0%} of eligible documents, {told['spm_share']:.0%} of them SPM;"
            f" scope {told['scope']}",
        )
    ]
    if told["effective_rate"] is not None:
        facts += [
            (
                "eligible",
                f"{told['eligible_pieces']:,} of {told['pieces']:,} document parts,"
                f" {told['eligible_tokens']:,} of {told['tokens']:,} tokens",
            ),
            ("effective rate", f"{told['effective_rate']:.1%} of tokens"),
        ]
    return facts


def _show_examples(request: StageRequest, count: int, *, as_json: bool) -> None:
    """Print examples of the run's own rows; the payload is stdout's."""
    from codecria.core.training.examples import examples
    from codecria.core.training.stage import resolve

    number = 0
    for number, example in enumerate(examples(resolve(request, out=None), count), start=1):
        if as_json:
            render.emit_json_line(example.as_json())
            continue
        size = f"{len(example.ids):,} tokens"
        render.output(f"--- {number}: {example.order}, row {example.row}, {size}")
        render.output(example.marked)
        render.output("ids " + " ".join(map(str, example.ids)) + "\n")
    if number < count:
        render.note(f"the run holds {number} examples; --dry-run tells what is eligible")


def _train(request: StageRequest, out: Path, *, as_json: bool) -> None:
    from codecria.core.training.run import METRICS_NAME
    from codecria.core.training.stage import resolve, run_stage
    from codecria.core.training.trainer import Trainer
    from codecria.data.errors import ExitStatus, Interrupted

    from .signals import saving_on_signal

    stage = resolve(request, out=out)
    _announce(stage, out)
    with render.training_progress(stage.run.recipe.steps) as progress, saving_on_signal() as signal:

        def report(entry: dict[str, Any]) -> None:
            progress(entry)
            if as_json:
                render.emit_json_line(entry)

        def started(trainer: Trainer) -> None:
            signal.on_stop = lambda: setattr(trainer, "stop_requested", True)

        outcome = run_stage(stage, out, report=report, warn=render.warn, started=started)
    if not outcome.finished:
        status = ExitStatus.TERMINATED if signal.terminated else ExitStatus.INTERRUPTED
        raise Interrupted(
            status,
            f"stopped and saved at step {outcome.step} of {stage.run.recipe.steps};"
            " the same command goes on from there",
        )
    if outcome.trained == 0:
        render.note(f"{out} is finished: nothing to do")
    else:
        render.note(f"trained to step {outcome.step}: {out / 'model'}, {out / METRICS_NAME}")


LEAST_REACH = 0.1  # below, long-context training has little to learn from (DECISIONS)


def _announce_dialogs(stage: Stage) -> None:
    """What the files of dialogs held, and what was left out of them."""
    for report in stage.dialogs:
        refused = sum(report.refused.values())
        out = [f"{report.duplicates:,} that came before"] if report.duplicates else []
        out += [f"{refused:,} that cannot be used"] if refused else []
        leaks = report.contaminated_dialogs
        out += [f"{leaks:,} that hold an evaluation problem"] if leaks else []
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
            "no --rehearse: without some of the code it was trained on, a model unlearns (Code"
            " Llama rehearses 8 %)"
        )


def _announce(stage: Stage, out: Path) -> None:
    """What is about to happen, in a few lines on stderr."""
    from codecria.core.machine import compiler_problem

    run = stage.run
    render.note(
        f"{run.recipe.name} {run.recipe.size}: {run.model.parameters:,} parameters,"
        f" {run.recipe.steps:,} steps of {run.recipe.batch_tokens:,} tokens -> {out}"
    )
    render.note(
        f"{stage.device}, {run.dtype}, {'compiled' if run.compiled else 'eager'},"
        f" {run.micro_rows} rows a pass{', activations recomputed' if run.recompute else ''};"
        f" attention {run.attention}: {stage.why_attention}"
    )
    if run.recipe.rope_theta is not None or run.recipe.rope_scale is not None:
        render.note(
            f"context {run.recipe.context:,}, rotary base {run.model.rope_theta:g}, positions"
            f" divided by {run.model.rope_scale:g}"
        )
    if (reach := stage.reach()) is not None:
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
