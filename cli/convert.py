"""`codecria convert`: checkpoints between Meta's layout, Hugging Face's and GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import options, render

HELP = """Convert a checkpoint between Meta's layout, Hugging Face's and GGUF.

The source is recognised by its content: a folder or a GGUF file. The result is a GGUF file if DST
ends in .gguf, else a Hugging Face folder. Weights are read one at a time. DST appears only after
every weight and the logits were compared with the source.

Example: codecria convert CodeLlama-7b code-llama-7b.gguf --dtype q8

Example: codecria convert CodeLlama-7b merged --adapter run
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("convert", help=HELP)(convert)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Checkpoint folder, GGUF file, or --out of a run.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="New folder or .gguf file.")],
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Adapter to merge into SRC; the result is compared with SRC and the adapter.",
        ),
    ] = None,
    to: Annotated[
        Literal["hf", "meta", "gguf"] | None,
        typer.Option(help="Layout of the result [default: from the name of DST]."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "q8", "q4", "q8_0", "q4_0"] | None,
        typer.Option(
            help="Type of the weights [default: unchanged; float16 for quantised ones]. q8 and q4"
            " quantise: Q8_0 and Q4_0 in GGUF, packed for the CPU in a folder."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Also compare the logits and the checklist of the source.",
        ),
    ] = True,
    context: Annotated[
        int | None,
        typer.Option(
            min=1, help="Trained context in tokens, if the source records none or a wrong one."
        ),
    ] = None,
    rope_theta: Annotated[
        float | None, typer.Option(help="Rotary base, if the source records none or a wrong one.")
    ] = None,
    chat: Annotated[
        Literal["auto", "llama2", "turns", "none"],
        typer.Option(
            help="Chat template; auto keeps the source's, or adds that of an Instruct model."
        ),
    ] = "auto",
    shard_size: Annotated[
        float, typer.Option(min=0.001, help="Largest safetensors file in GB.")
    ] = 5.0,
    ranks: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Number of files in Meta's layout, one for each model-parallel rank.",
        ),
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the model at DST.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Convert, compare, and report."""
    from codecria.core.checkpoints.conversion.convert import convert as run
    from codecria.core.checkpoints.conversion.request import Chat, Layout, Request

    layout = Layout(to or ("gguf" if out.suffix == ".gguf" else "hf"))
    request = Request(
        source=source,
        adapter=adapter,
        out=out,
        layout=layout,
        dtype=None if dtype is None else dtype.removesuffix("_0"),
        verify=verify,
        context=context,
        theta=rope_theta,
        chat=Chat(chat),
        max_shard_bytes=int(shard_size * 1e9),
        ranks=ranks,
        force=force,
    )
    with render.stages() as progress:
        report = run(request, progress, render.note)
    if as_json:
        render.emit_json(report)
    else:
        _show(report)
    found = report["compared"].get("adapter")
    if found is not None and found["gap"] > 0.25 * found["effect"]:
        render.warn(
            f"rounding to {report['dtype']} changes the logits by {found['gap']:.1e}, the adapter"
            f" by {found['effect']:.1e}: --dtype float32 keeps what was learnt"
        )


def _show(report: dict[str, Any]) -> None:
    compared = report["compared"]
    same = "bit for bit" if compared["exact"] else f"within the step of {report['dtype']}"
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
    if "adapter" in compared:
        found = compared["adapter"]
        rows.append(
            (
                "adapter",
                f"{report['adapter']['parameters']:,} weights, rank {report['adapter']['rank']}:"
                f" logits {found['effect']:.1e} from the base's",
            )
        )
        rows.append(("merged", f"logits {found['gap']:.1e} from those of base and adapter"))
        if "gap_four_bits" in found:
            gap = f"logits {found['gap_four_bits']:.1e} from those of the 4-bit model in training"
            rows.append(("QLoRA gap", gap))
    rows.append(("time", render.duration(report["seconds"])))
    render.table(str(report["out"]), ["", ""], rows, to_stdout=True)
