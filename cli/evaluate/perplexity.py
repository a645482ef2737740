"""`codecria evaluate perplexity`: the loss on text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import options, render
from ..ranks import sharing

HELP = """Measure the loss on text: nats per token, perplexity, bits per byte.

Reads the validation split of shards, source by source, or files, in windows of the context length.

Example: codecria evaluate perplexity --model run --data shards
"""


def perplexity(
    model: options.Model,
    data: options.ShardData = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Text file, read instead of --data; repeatable."),
    ] = None,
    split: Annotated[
        Literal["train", "validation"], typer.Option(help="Split of --data.")
    ] = "validation",
    rows: Annotated[int, typer.Option(min=1, help="Most windows per source, spread evenly.")] = 256,
    adapter: options.Adapter = None,
    context: options.Context = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Let tokens see earlier documents of their window.")
    ] = False,
    fail_over: Annotated[
        float | None,
        typer.Option(metavar="PERPLEXITY", help="Exit with status 3 above this perplexity."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows per forward pass.")] = 8,
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: options.ResultFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Check the options, measure, print the result."""
    model = options.adapted(model, adapter)
    from codecria.data.errors import ExitStatus, UsageError

    if (data is None) == (not file):
        raise UsageError("either shards or files are read", hint="give --data DIR or --file F")

    import torch

    from codecria.core.evaluation.likelihood.by_source import Reading, measure

    if threads is not None:
        torch.set_num_threads(threads)
    reading = Reading(
        data=data,
        files=tuple(file or ()),
        split=split,
        rows=rows,
        context=context,
        document_mask=not plain,
        batch_rows=batch,
    )
    shared = sharing(mesh, device)
    with render.stages() as show:
        summary = measure(model, reading, device=device, dtype=dtype, sharing=shared, show=show)
    if as_json:
        render.emit_json(summary)
    else:
        _show_perplexity(summary)
    if out is not None:
        from codecria.data.files import atomic_write_json

        atomic_write_json(out, summary)
        render.note(f"written: {out}")
    if fail_over is not None and not summary["total"]["perplexity"] <= fail_over:
        render.note(
            f"the perplexity is {summary['total']['perplexity']:.4g}, --fail-over asks for"
            f" {fail_over:g} at most"
        )
        raise typer.Exit(ExitStatus.GATE)


def _show_perplexity(summary: dict[str, Any]) -> None:
    found = [*summary["sources"].items(), ("all", summary["total"])]
    rows = [
        (
            name,
            f"{one['tokens']:,}",
            f"{one['bytes']:,}",
            f"{one['nats']:.4f}",
            f"{one['perplexity']:.4g}",
            "-" if one["bits_per_byte"] is None else f"{one['bits_per_byte']:.4f}",
        )
        for name, one in found
    ]
    columns = ["source", "tokens", "bytes", "nats a token", "perplexity", "bits a byte"]
    render.table(f"windows of {summary['context']:,} tokens", columns, rows, to_stdout=True)
