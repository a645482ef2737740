"""`codecria evaluate stages`: what each stage of a chain changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import options, render

HELP = """Compare the checkpoints of a chain on the same held-out data.

The plain loss, the loss of infilled documents, perplexity at once, twice and four times the
context, and, with --dialogs, the loss of answers. Figures of a column may be compared.

Example: codecria evaluate stages base infill long chat --data shards
"""


def stages(
    models: Annotated[list[Path], typer.Argument(help="Checkpoint or run folders, in order.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Shard folder made by prepare-data.")],
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens per row [default: the first model's context].")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most held-out rows to read.")] = 64,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to read for perplexity by position.")
    ] = 20_000,
    dialogs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Dialogs whose answers are scored too.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure every checkpoint and show a row for each."""
    import torch

    from codecria.core.evaluation.likelihood.stages import StagesRequest, compare_stages

    if threads is not None:
        torch.set_num_threads(threads)
    request = StagesRequest(
        data=data,
        context=context,
        rows=rows,
        max_tokens=max_tokens,
        dialogs=dialogs,
        device=device,
        dtype=dtype,
    )
    with render.stages() as progress:
        result = compare_stages(request, models, note=render.note, progress=progress)
    if as_json:
        render.emit_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    def figure(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    answers = any(stage["dialog_loss"] is not None for stage in result["stages"])
    render.table(
        f"held-out loss, nats a token, and perplexity by position; context {result['context']:,}",
        [
            "model",
            "stage",
            "loss",
            "infilled",
            *(["answers"] if answers else []),
            *_spans(result["ends"]),
        ],
        [
            (
                Path(stage["path"]).name,
                stage["recipe"] or "-",
                figure(stage["loss"], 4),
                figure(stage["infill_loss"], 4),
                *([figure(stage["dialog_loss"], 4)] if answers else []),
                *(figure(stage["perplexity"].get(str(end)), 2) for end in result["ends"]),
            )
            for stage in result["stages"]
        ],
        to_stdout=True,
    )


def _spans(ends: list[int]) -> list[str]:
    starts = [0, *ends]
    return [f"{a + 1:,} to {b:,}" for a, b in zip(starts, ends, strict=False)]
