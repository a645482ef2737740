"""`codecria convert`: checkpoints between Meta's layout, Hugging Face's and GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import render

HELP = """Convert a checkpoint between Meta's layout, Hugging Face's and GGUF.

The source is recognised by its content; the result is a GGUF file if DST ends in .gguf, else a
Hugging Face folder. Weights are read one at a time, and the result is compared with the source,
weight for weight and logit for logit, before it appears.

Example: codecria convert CodeLlama-7b code-llama-7b.gguf --dtype q8_0
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("convert", help=HELP)(convert)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A checkpoint folder, or a run's --out.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="A new folder, or a .gguf file.")],
    to: Annotated[
        Literal["hf", "meta", "gguf"] | None,
        typer.Option(help="Layout of the result; by default as DST's name says."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "q8_0"] | None,
        typer.Option(help="Type of the weights; by default as they are. q8_0 is GGUF's."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare logits and the source's checklist too, not the weights alone.",
        ),
    ] = True,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Trained context, where the source is wrong or silent."),
    ] = None,
    rope_theta: Annotated[
        float | None, typer.Option(help="Rotary base, where the source has lost it.")
    ] = None,
    chat: Annotated[
        Literal["auto", "llama2", "turns", "none"],
        typer.Option(help="Chat template; auto: the source's own, or that of its kind."),
    ] = "auto",
    shard_size: Annotated[
        float, typer.Option(min=0.001, help="Largest safetensors file, in GB.")
    ] = 5.0,
    ranks: Annotated[
        int, typer.Option(min=1, max=64, help="Files of Meta's layout, a part of the model each.")
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at DST.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Convert, compare, and tell."""
    from codecria.core.checkpoints import convert as core

    layout = core.Layout(to or ("gguf" if out.suffix == ".gguf" else "hf"))
    request = core.Request(
        source=source,
        out=out,
        layout=layout,
        dtype=dtype,
        verify=verify,
        context=context,
        theta=rope_theta,
        chat=core.Chat(chat),
        max_shard_bytes=int(shard_size * 1e9),
        ranks=ranks,
        force=force,
    )
    with render.stages() as tell:
        report = core.convert(request, tell, render.note)
    if as_json:
        render.emit_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    compared = report["compared"]
    same = "bit for bit" if compared["exact"] else "within the step of Q8_0"
    rows = [
        ("source", f"{report['source_layout']}, {report['source_files']} files"),
        ("written", f"{report['layout']}, {report['dtype']}, {report['bytes'] / 1e6:,.1f} MB"),
        ("parameters", f"{report['parameters']:,}"),
        ("rotary base", f"{report['model']['rope_theta']:g}"),
        ("context", f"{report['model']['max_context']:,} tokens"),
        ("weights", f"{compared['weights']} compared, equal {same}"),
    ]
    if "logits" in compared:
        found = compared["logits"]
        rows.append(
            (
                "logits",
                f"at {compared['tokens']} tokens: {found['relative']:.1e} apart,"
                f" KL {max(found['kl'], 0):.1e}, first choice equal at {found['agree']:.0%}",
            )
        )
    rows.append(("time", render.duration(report["seconds"])))
    render.table(str(report["out"]), ["", ""], rows, to_stdout=True)
