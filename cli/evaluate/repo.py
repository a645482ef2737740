"""`codecria evaluate repo`: a private benchmark from a git history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from codecria.data.errors import UsageError

from .. import options, render

HELP = """Score infilling of code that later commits of a git repository added.

The history is cut in two by time. Lines, blocks and function bodies that the later commits added
are infilled at their place in the file as the commit left it: exact match, edit similarity, loss,
whether the file parses. Text that was there before the cut is left out. Nothing leaves the
machine.

Example: codecria evaluate repo ~/src/app -m run --since 2026-05-01

Example: codecria evaluate repo . -m base --compare base+adapter --out spans.jsonl
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
    batch: options.Batch = 8,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the spans, have the models infill them, print the figures."""
    from codecria.core.evaluation.repository.spans import KINDS, of_history
    from codecria.data.corpus.history import History
    from codecria.data.corpus.history import split as cut

    if since is not None and split is not None:
        raise UsageError("--since and --split both cut the history", hint="give one of them")
    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    unknown = sorted({*wanted} - {*KINDS})
    if unknown or not wanted:
        named = ", ".join(unknown) or "nothing"
        raise UsageError(f"--kinds names {named}", hint=f"kinds: {', '.join(KINDS)}")
    with History.open(repository) as history:
        halves = cut(history.commits(), since=since, share=split)
        found = of_history(history, halves, kinds=wanted, limit=limit, seed=seed)
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
    from codecria.core.evaluation.repository import measure

    paths = [options.adapted(model, adapter), *([compare] if compare is not None else [])]
    made = []
    with render.stages() as progress:
        for path in paths:
            made.append(
                measure.answers(
                    path,
                    found.spans,
                    form=form,
                    context=context,
                    batch=batch,
                    device=device,
                    dtype=dtype,
                    progress=progress,
                )
            )
    result: dict[str, Any] = {
        "repository": str(repository),
        "base": halves.base.id,
        "later_commits": len(halves.later),
        "candidates": found.candidates,
        "known": found.known,
        "models": [
            {"model": str(path), "kinds": measure.summary(answers)}
            for path, answers in zip(paths, made, strict=True)
        ],
    }
    if compare is not None:
        result["differences"] = measure.differences(*made)
    if out is not None:
        _write(out, found.spans, [str(path) for path in paths], made)
    if as_json:
        render.emit_json(result)
        return
    for entry in result["models"]:
        show_summary(entry["model"], entry["kinds"])
    if compare is not None:
        show_differences("second model less first, same spans", result["differences"])


def figure(value: dict[str, float] | None, *, percent: bool = False, signed: bool = False) -> str:
    """A figure with its interval on one line."""
    if value is None:
        return "-"
    form = ("+" if signed else "") + (".1f" if percent else ".3f")
    scale = 100 if percent else 1
    parts = [format(value[name] * scale, form) for name in ("value", "low", "high")]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def show_summary(title: str, kinds: list[dict[str, Any]]) -> None:
    """Print one model's figures."""
    render.table(
        title,
        ["spans", "n", "exact %", "edit similarity", "loss, nats a token", "parses %"],
        [
            (
                row["kind"],
                str(row["spans"]),
                figure(row["exact"], percent=True),
                figure(row["similarity"]),
                figure(row["loss"]),
                figure(row["parses"], percent=True),
            )
            for row in kinds
        ],
        to_stdout=True,
    )


def show_differences(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the paired differences of two models."""
    render.table(
        title,
        ["spans", "n", "exact, points", "edit similarity", "loss, nats a token"],
        [
            (
                row["kind"],
                str(row["spans"]),
                figure(row["exact"], percent=True, signed=True),
                figure(row["similarity"], signed=True),
                figure(row["loss"], signed=True),
            )
            for row in rows
        ],
        to_stdout=True,
    )


def _show_spans(spans: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    for span in spans:
        if as_json:
            render.emit_json_line(asdict(span))
            continue
        render.output(f"--- {span.id}")
        before, after = span.prefix.split("\n")[-4:], span.suffix.split("\n")[:3]
        render.output("\n".join(before) + "«" + span.middle + "»" + "\n".join(after) + "\n")


def _write(out: Path, spans: Any, models: list[str], made: Any) -> None:
    from codecria.core.evaluation.repository.measure import as_json
    from codecria.data.files import atomic_write, json_line

    lines = [
        json_line({"model": model} | as_json(answer, span))
        for model, answers in zip(models, made, strict=True)
        for answer, span in zip(answers, spans, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, "".join(lines).encode())
