"""`codecria evaluate repo`: a private benchmark from a git history."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from codecria.data.errors import UsageError

from .. import options, render
from ..ranks import sharing
from ..repository import figure, show_tests, trial_of, tried

HELP = """Score infilling of code that later commits of a git repository added.

The history is cut in two by time. Lines, blocks and function bodies that the later commits added
are infilled at their place in the file as the commit left it: exact match, edit similarity, loss,
whether the file parses, and whether the repository's own tests pass, in the sandbox. Text that was
there before the cut is left out. Nothing leaves the machine. With --out, rerun the same command to
resume.

Example: codecria evaluate repo ~/src/app -m run --since 2026-05-01

Example: codecria evaluate repo . -m base --compare base+adapter --out spans.jsonl

Example: codecria evaluate repo . -m run --tests 'pytest tests/unit' --packages .venv
"""


def repo(
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="Folder of a git clone.")],
    model: options.Model,
    adapter: options.Adapter = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Second model, or MODEL+ADAPTER, on the same spans.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DAY|COMMIT",
            help="Where the later part begins: a day (UTC) or a commit.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(
            help="Share of the commits that is the later part [default: 0.2].",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    kinds: Annotated[
        str,
        typer.Option(
            metavar="KIND,KIND",
            help="Kinds of spans: line, block, function.",
            rich_help_panel=options.INPUT,
        ),
    ] = "line,block,function",
    limit: Annotated[
        int, typer.Option(min=1, help="Most spans of each kind.", rich_help_panel=options.INPUT)
    ] = 100,
    test_share: options.TestShare = 0.25,
    form: Annotated[
        Literal["auto", "psm", "spm", "left"],
        typer.Option(
            help="Prompt form; auto is psm where the model can infill, else left (prefix alone)."
        ),
    ] = "auto",
    context: options.Context = None,
    seed: options.Seed = 0,
    show: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Print N spans and stop; no model is loaded."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write each span with its answers here (JSON lines).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    tests: options.Tests = "auto",
    packages: options.TestsPackages = None,
    tests_timeout: options.TestsTimeout = 300.0,
    memory_mb: options.MemoryMb = 2_048,
    sandbox: options.Tier = "auto",
    workers: options.Workers = None,
    batch: options.Batch = 8,
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the spans, have the models infill them, print the figures."""
    from codecria.core.evaluation.repository.spans import KINDS, check_test_share, of_history
    from codecria.data.corpus.history import History
    from codecria.data.corpus.history import split as cut

    if since is not None and split is not None:
        raise UsageError("--since and --split both cut the history", hint="give one of them")
    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    unknown = sorted({*wanted} - {*KINDS})
    if unknown or not wanted:
        named = ", ".join(unknown) or "nothing"
        raise UsageError(f"--kinds names {named}", hint=f"kinds: {', '.join(KINDS)}")
    check_test_share(test_share)
    trial = trial_of(tests, packages, tests_timeout, memory_mb, tier=sandbox, workers=workers)
    with History.open(repository) as history:
        halves = cut(history.commits(), since=since, share=split)
        found = of_history(
            history, halves, kinds=wanted, limit=limit, seed=seed, test_share=test_share
        )
    candidates = sum(found.candidates.values())
    render.note(
        f"{len(halves.later):,} of {halves.commits:,} commits are after {halves.base.date}"
        f" ({halves.base.id[:12]}); {len(found.spans):,} of {candidates:,} spans"
    )
    if passed := sum(found.known.values()):
        render.note(f"{passed:,} spans passed over: their text was there before")
    if show is not None:
        _show_spans(found.spans[:show], as_json=as_json)
        return
    if not found.spans:
        from codecria.data.errors import UserError

        raise UserError(
            "the later commits add no code to ask for", hint="choose an earlier --since"
        )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    from codecria.core.checkpoints.checkpoint import Checkpoint
    from codecria.core.evaluation.repository import measure
    from codecria.core.evaluation.repository.kept import answered, open_kept

    paths = [options.adapted(model, adapter), *([compare] if compare is not None else [])]
    identity = {
        "spans": [span.id for span in found.spans],
        "base": halves.base.id,
        "models": [Checkpoint.open(path).digest() for path in paths],
        "form": form,
        "context": context,
        "tests": [tests, packages],
    }
    result: dict[str, Any] = {
        "repository": str(repository),
        "base": halves.base.id,
        "later_commits": len(halves.later),
        "candidates": found.candidates,
        "known": found.known,
    }
    shared = sharing(mesh, device)
    with open_kept(out, identity) as kept:

        def answer(n: int) -> list[measure.Answer]:
            with render.stages() as progress:
                return answered(
                    kept,
                    f"answer {n}",
                    paths[n],
                    found.spans,
                    form=form,
                    context=context,
                    batch=batch,
                    device=device,
                    dtype=dtype,
                    sharing=shared,
                    progress=progress,
                )

        made, tested = tried(
            repository, found.spans, trial, kept, lambda: [answer(n) for n in range(len(paths))]
        )
        if tested is not None:
            result["tests"] = tested
        result["models"] = [
            {"model": str(path), "kinds": measure.summary(answers)}
            for path, answers in zip(paths, made, strict=True)
        ]
        if compare is not None:
            result["differences"] = measure.differences(*made)
        if out is not None:
            measure.write(out, found.spans, zip(map(str, paths), made, strict=True))
    if as_json:
        render.emit_json(result)
        return
    for entry in result["models"]:
        show_summary(entry["model"], entry["kinds"])
    if compare is not None:
        show_differences("second model less first, same spans", result["differences"])
    if tested is not None:
        show_tests(tested)


def show_summary(title: str, kinds: list[dict[str, Any]]) -> None:
    """Print one model's figures."""
    tested = any(row["passes"] is not None for row in kinds)
    render.table(
        title,
        ["spans", "n", "exact %", "edit similarity", "loss, nats a token", "parses %"]
        + (["tests pass %", "tested"] if tested else []),
        [
            (
                row["kind"],
                str(row["spans"]),
                figure(row["exact"], percent=True),
                figure(row["similarity"]),
                figure(row["loss"]),
                figure(row["parses"], percent=True),
                *(
                    (figure(row["passes"], percent=True), str(row.get("tested", 0)))
                    if tested
                    else ()
                ),
            )
            for row in kinds
        ],
        to_stdout=True,
    )


def show_differences(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the paired differences of two models."""
    tested = any(row["passes"] is not None for row in rows)
    render.table(
        title,
        ["spans", "n", "exact, points", "edit similarity", "loss, nats a token"]
        + (["tests pass, points"] if tested else []),
        [
            (
                row["kind"],
                str(row["spans"]),
                figure(row["exact"], percent=True, signed=True),
                figure(row["similarity"], signed=True),
                figure(row["loss"], signed=True),
                *((figure(row["passes"], percent=True, signed=True),) if tested else ()),
            )
            for row in rows
        ],
        to_stdout=True,
    )


def _show_spans(spans: Any, *, as_json: bool) -> None:
    for span in spans:
        if as_json:
            render.emit_json_line(asdict(span))
            continue
        render.output(f"--- {span.id}")
        before, after = span.prefix.split("\n")[-4:], span.suffix.split("\n")[:3]
        render.output("\n".join(before) + "«" + span.middle + "»" + "\n".join(after) + "\n")
