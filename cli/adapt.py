"""`codecria adapt`: an adapter for one repository, and the proof that it helps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codecria.data.errors import UsageError

from . import options, render
from .repository import figure, show_tests, trial_of, tried

if TYPE_CHECKING:
    from codecria.core.adaptation.material import Material
    from codecria.core.adaptation.plan import AdaptPlan
    from codecria.core.adaptation.request import AdaptRequest
    from codecria.core.checkpoints.checkpoint import Checkpoint
    from codecria.core.evaluation.repository.measure import Answer
    from codecria.core.evaluation.repository.trial import Config

HELP = """Teach a model your repository, and measure whether that helped.

The history is cut in two by time. An infilling adapter is trained on the code before the cut, with
some other code rehearsed beside it; then the model fills in what later commits added, without and
with the adapter. Where the repository has tests that run in the sandbox, they decide too. Rerun the
same command to resume; finished, it does nothing.

Example: codecria adapt ~/src/app --init CodeLlama-7b-hf --out app

Example: codecria generate -m CodeLlama-7b-hf --adapter app/run --file app.py --at 42:9
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("adapt", help=HELP)(adapt)


def adapt(
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="Folder of a git clone.")],
    init: Annotated[
        Path,
        typer.Option(
            help="Model to adapt: checkpoint or run folder.", rich_help_panel=options.INPUT
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for data, run and report.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DAY|COMMIT",
            help="Where the part that is measured begins: a day (UTC) or a commit.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(
            help="Share of the commits that is measured [default: 0.2].",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    rehearsal: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of other code to rehearse [default: Python's standard library].",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    rehearsal_share: Annotated[
        float,
        typer.Option(
            help="Share of the training rows that rehearse.", rich_help_panel=options.TRAINING
        ),
    ] = 0.1,
    lora: Annotated[
        int,
        typer.Option(
            min=1, metavar="RANK", help="Rank of the adapter.", rich_help_panel=options.ADAPTER
        ),
    ] = 16,
    qlora: Annotated[
        bool,
        typer.Option(
            "--qlora",
            help="Keep the model's own weights in 4 bits.",
            rich_help_panel=options.ADAPTER,
        ),
    ] = False,
    epochs: Annotated[
        float, typer.Option(help="Passes over the code.", rich_help_panel=options.TRAINING)
    ] = 3.0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Optimizer steps, instead of --epochs.", rich_help_panel=options.TRAINING
        ),
    ] = None,
    changes: options.Changes = None,
    limit: Annotated[
        int,
        typer.Option(
            min=1, help="Most spans of each kind to measure.", rich_help_panel=options.SCORING
        ),
    ] = 50,
    test_share: options.TestShare = 0.25,
    tests: options.Tests = "auto",
    packages: options.TestsPackages = None,
    tests_timeout: options.TestsTimeout = 300.0,
    memory_mb: options.MemoryMb = 2_048,
    sandbox: options.Tier = "auto",
    workers: options.Workers = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Gather, prepare, measure, train, measure again, and say what came of it."""
    import torch

    from codecria.core.adaptation import material as materials
    from codecria.core.adaptation.request import REPORT, AdaptRequest
    from codecria.core.checkpoints.checkpoint import Checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    request = AdaptRequest(
        repository=repository,
        init=init,
        since=since,
        split=split,
        rank=lora,
        qlora=qlora,
        epochs=epochs,
        steps=steps,
        rehearsal=rehearsal,
        rehearsal_share=rehearsal_share,
        limit=limit,
        test_share=test_share,
        changes=options.pairs_of(changes or []),
        seed=seed,
        device=device,
        dtype=dtype,
    )
    request.check()
    trial = trial_of(tests, packages, tests_timeout, memory_mb, tier=sandbox, workers=workers)
    checkpoint = Checkpoint.open(init)
    if checkpoint.adapter is not None:
        raise UsageError(
            f"{init} is an adapter: none can be trained on top of it",
            hint=f"merge it first: codecria convert {init} MERGED",
        )
    material = materials.gather(request, out)
    halves = material.halves
    render.note(
        f"{len(material.code):,} files of code at {halves.base.id[:12]} ({halves.base.date});"
        f" {len(material.spans.spans):,} spans of {len(halves.later):,} later commits"
    )
    if dry_run:
        from codecria.core.adaptation.plan import plan

        _show_plan(plan(request, material, out), trial, as_json=as_json)
        return
    with render.stages() as progress:
        tokens = materials.write(
            request, material, out, checkpoint, note=render.note, progress=progress
        )
    found = _proved(request, material, trial, checkpoint, out, tokens)
    from codecria.data.files import atomic_write_json

    atomic_write_json(out / REPORT, found)
    if as_json:
        render.emit_json(found)
    else:
        _show(found)
        if "tests" in found:
            show_tests(found["tests"])
    advice = found["advice"]
    if advice["use"]:
        render.note(f"the adapter helps on {advice['spans']} spans: {advice['why']}")
        render.note(f"use it: codecria generate -m {init} --adapter {out / 'run'} ...")
    else:
        render.warn(
            f"better without this adapter: on {advice['spans']} spans, {advice['why']};"
            " more history, more --epochs or a larger model may help"
        )
    if advice["forgot"]:
        render.warn(
            f"it forgot something: {advice['forgot']}; a larger --rehearsal-share keeps more"
        )


def _proved(
    request: AdaptRequest,
    material: Material,
    trial: Config | None,
    checkpoint: Checkpoint,
    out: Path,
    tokens: int,
) -> dict[str, Any]:
    """Measure, train, measure again; the report."""
    from codecria.core.adaptation.proof import FORMAT, measured, report
    from codecria.core.adaptation.request import PROOF, RUN, SPANS
    from codecria.core.checkpoints.adapters.folder import with_adapter
    from codecria.core.evaluation.repository.kept import open_lasting
    from codecria.core.evaluation.repository.measure import write

    from .train import carry_out

    spans, others = material.spans.spans, material.rehearsal_spans.spans
    models = (request.init, with_adapter(request.init, out / RUN))
    rehearsal: list[list[Answer]] = []
    with open_lasting(out / PROOF, {"format": FORMAT}) as kept:

        def measure(model: Path) -> list[Answer]:
            with render.stages() as progress:
                found = measured(model, spans, kept, request, progress=progress)
                if others:
                    rehearsal.append(measured(model, others, kept, request, progress=progress))
            return found

        def answer() -> list[list[Answer]]:
            before = measure(request.init)
            stage = request.stage(out, max_context=checkpoint.config.max_context, tokens=tokens)
            render.note(
                f"codecria fim --init {request.init}"
                f" {' '.join(f'--data {each}' for each in stage.data)} --lora {request.rank}"
                f"{' --qlora' if request.qlora else ''} --steps {stage.steps}"
                + "".join(f" --set {name}={value}" for name, value in stage.changes.items())
                + f" --out {out / RUN}"
            )
            carry_out(stage, out / RUN)
            return [before, measure(models[1])]

        (before, after), tested = tried(request.repository, spans, trial, kept, answer)
    names = [str(model) for model in models]
    write(out / SPANS, spans, zip(names, (before, after), strict=True))
    found = report((before, after), (rehearsal[0], rehearsal[1]) if others else None)
    return found if tested is None else found | {"tests": tested}


def _show(found: dict[str, Any]) -> None:
    """The figures over all kinds of spans; report.json has those of each kind."""
    rows = []
    for name in ("repo", "rehearsal"):
        if name not in found:
            continue
        before, after, change = (
            found[name][part][-1] for part in ("before", "after", "differences")
        )
        for metric, words in (
            ("exact", "exact %"),
            ("similarity", "edit similarity"),
            ("loss", "loss, nats a token"),
            ("passes", "tests pass %"),
        ):
            percent = metric in ("exact", "passes")
            if before[metric] is None:
                continue
            spans = before["tested"] if metric == "passes" else before["spans"]
            rows.append(
                (
                    f"{name} ({spans})",
                    words,
                    figure(before[metric], percent=percent),
                    figure(after[metric], percent=percent),
                    figure(change[metric], percent=percent, signed=True),
                )
            )
    render.table(
        "before and after the adapter, 95 % intervals",
        ["spans", "", "before", "after", "change"],
        rows,
        to_stdout=True,
    )


def _show_plan(plan: AdaptPlan, trial: Config | None, *, as_json: bool) -> None:
    if as_json:
        render.emit_json(plan.as_json())
        return
    training = plan.training
    memory = sum(training.memory.values())
    seconds = training.seconds
    render.table(
        "plan",
        ["", ""],
        [
            ("code", f"{plan.tokens:,} tokens"),
            (
                "training",
                f"{training.recipe.steps:,} steps of {training.recipe.batch_tokens:,} tokens,"
                f" rank {training.recipe.lora_rank}, rate {training.recipe.peak_lr:g}",
            ),
            ("memory", f"{memory / 1e9:.2f} GB"),
            (
                "training time",
                "unknown" if seconds is None else f"about {render.duration(seconds)}",
            ),
            ("measuring", f"{plan.spans:,} spans twice, about {render.duration(plan.measuring_s)}"),
            (
                "tests",
                "none"
                if trial is None
                else f"of {plan.commits:,} commits if they have some, each at most"
                f" {render.duration(trial.seconds)}; then those of each completion",
            ),
        ],
        to_stdout=True,
    )
