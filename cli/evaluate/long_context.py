"""`codecria evaluate long-context`: perplexity by position, and key retrieval."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import options, render
from ..picture import Plot, check_picture, drawing
from ..ranks import sharing

if TYPE_CHECKING:
    from codecria.core.evaluation.long_context.measure import ModelSpec, Request

HELP = """Measure long-context quality: perplexity by position and key retrieval.

Texts are read to several times the trained context, and a function is to be found again in prompts
as long. With --compare a second model reads the same.

Example: codecria evaluate long-context --model run --data shards --join
"""


def long_context(
    model: options.Model,
    adapter: options.Adapter = None,
    compare: Annotated[
        Path | None, typer.Option(help="Second model, measured on the same texts.")
    ] = None,
    data: options.ShardData = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Source file, read instead of --data; repeatable."),
    ] = None,
    split: Annotated[
        Literal["train", "validation"] | None,
        typer.Option(help="Split of --data [default: validation, or train if it is empty]."),
    ] = None,
    min_bytes: Annotated[
        int, typer.Option(min=0, help="Shortest document of --data to read, bytes.")
    ] = 50_000,
    join: Annotated[
        bool,
        typer.Option("--join", help="Join documents of a source into long texts."),
    ] = False,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Read only texts that reach the last position."),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to score in total; the paper uses 4,000,000.")
    ] = 100_000,
    lengths: Annotated[
        str,
        typer.Option(
            metavar="N,N", help="Context lengths to test, as multiples of the trained one."
        ),
    ] = "1,2,4",
    positions: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Ends of the rows, tokens; replaces --lengths."),
    ] = None,
    retrieval: Annotated[
        bool, typer.Option("--retrieval/--no-retrieval", help="Measure key retrieval.")
    ] = True,
    retrieval_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Prompt lengths of key retrieval, tokens [default: as --lengths]."
        ),
    ] = None,
    retrieval_positions: Annotated[
        str, typer.Option(metavar="P,P", help="Positions of the key in the prompt, from 0 to 1.")
    ] = "0,0.2,0.4,0.6,0.8,1",
    examples: Annotated[
        int, typer.Option(min=1, help="Prompts per length and position; the paper uses 64.")
    ] = 16,
    filler: Annotated[
        Path | None,
        typer.Option(
            help="Python functions around the key, .py or .jsonl [default: those of the texts]."
        ),
    ] = None,
    seed: options.Seed = 0,
    theta: Annotated[
        float | None, typer.Option(help="Rotary base that replaces the one of --model.")
    ] = None,
    rope_scale: Annotated[
        float | None, typer.Option(help="Divide the positions of --model by this.")
    ] = None,
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: options.ResultFile = None,
    plot: Plot = None,
    show: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Print N retrieval prompts and stop.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check the options, measure, print the result."""
    model = options.adapted(model, adapter)
    ends = _counts(positions, "--positions") if positions is not None else ()
    sizes = _counts(retrieval_lengths, "--retrieval-lengths") if retrieval_lengths else ()
    multiples = _numbers(lengths, "--lengths")
    places = _numbers(retrieval_positions, "--retrieval-positions", least=0, most=1)
    _check_options(theta=theta, rope_scale=rope_scale, data=data, file=file, filler=filler)
    # What can go wrong at the end is looked at before anything is measured.
    if plot is not None:
        check_picture(plot)
    for written in (out, plot):
        if written is not None:
            _check_writable(written)

    import torch

    from codecria.core.evaluation.long_context.measure import ModelSpec, Request, measure

    if threads is not None:
        torch.set_num_threads(threads)
    request = Request(
        data=data,
        files=tuple(file or ()),
        split=split,
        min_bytes=min_bytes,
        join=join,
        whole=whole,
        max_tokens=max_tokens,
        multiples=multiples,
        ends=ends,
        retrieval=retrieval,
        retrieval_lengths=sizes,
        retrieval_positions=places,
        examples=examples,
        filler=filler,
        seed=seed,
    )
    specs = [ModelSpec.open(model, theta=theta, rope_scale=rope_scale)]
    if compare is not None:
        specs.append(ModelSpec.open(compare))
    if show is not None:
        _show_prompts(request, specs[0], show, as_json=as_json)
        return
    with render.stages() as progress:
        summary = measure(
            request,
            specs,
            device=device,
            dtype=dtype,
            note=render.note,
            progress=progress,
            sharing=sharing(mesh, device),
        )
    if as_json:
        render.emit_json(summary)
    else:
        _show(summary)
    if out is not None:
        from codecria.data.files import atomic_write_json

        atomic_write_json(out, summary)
        render.note(f"written: {out}")
    if plot is not None:
        _draw(summary, plot)
        render.note(f"written: {plot}")


# --- what is asked for ----------------------------------------------------------------------------


def _numbers(
    text: str, option: str, *, least: float | None = None, most: float | None = None
) -> tuple[float, ...]:
    """The numbers of an option, ascending, without duplicates; above 0 unless bounds are given.

    Raises:
        UsageError: one is no number, or out of bounds.
    """
    from codecria.data.errors import UsageError

    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r} is not a list of numbers", hint="such as 1,2,4"
        ) from error
    for number in found:
        inside = number > 0 if least is None else number >= least
        if not inside or not number <= (1e12 if most is None else most):
            bounds = "above 0" if least is None else f"from {least:g} to {most:g}"
            raise UsageError(f"{option}: {number:g} is not {bounds}")
    return tuple(found)


def _counts(text: str, option: str) -> tuple[int, ...]:
    """Like `_numbers`, for whole numbers.

    Raises:
        UsageError: one is not whole, or not above 0.
    """
    from codecria.data.errors import UsageError

    found = _numbers(text, option)
    for number in found:
        if number != int(number):
            raise UsageError(f"{option}: {number:g} is not a whole number of tokens")
    return tuple(int(number) for number in found)


def _check_options(
    *,
    theta: float | None,
    rope_scale: float | None,
    data: Path | None,
    file: list[Path] | None,
    filler: Path | None,
) -> None:
    """Check the options before anything is loaded.

    Raises:
        UsageError: options contradict each other or make no sense.
    """
    from codecria.data.errors import UsageError

    if theta is not None and not 1 < theta < float("inf"):
        raise UsageError(f"--theta {theta:g} must exceed 1", hint="such as 1e6")
    if rope_scale is not None and not 0 < rope_scale < float("inf"):
        raise UsageError(f"--rope-scale {rope_scale:g} must exceed 0", hint="such as 4")
    if data is not None and file:
        raise UsageError("--data and --file cannot be combined", hint="give one of them")
    if data is None and not file and filler is None:
        raise UsageError(
            "no texts are given",
            hint="name a shard folder with --data, or files with --file",
        )


def _check_writable(path: Path) -> None:
    """Check that a file can be made.

    Raises:
        UserError: its folder is missing or may not be written, or a folder has its name.
    """
    import os

    from codecria.data.errors import UserError

    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder", hint="name a file in it")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "may not be written" if folder.is_dir() else "does not exist"
        raise UserError(f"cannot write {path}: the folder {folder} {what}")


# --- what is shown --------------------------------------------------------------------------------


def _show_prompts(request: Request, spec: ModelSpec, count: int, *, as_json: bool) -> None:
    """Print prompts of the retrieval grid; the payload is stdout's."""
    from codecria.core.evaluation.long_context.measure import prompts

    for number, prompt in enumerate(
        itertools.islice(prompts(request, spec, note=render.note), count), start=1
    ):
        known = {
            "length": prompt.length,
            "tokens": len(prompt.ids),
            "position": prompt.position,
            "placed": prompt.placed,
            "value": prompt.value,
        }
        if as_json:
            render.emit_json_line(known | {"text": prompt.text, "ids": prompt.ids})
            continue
        render.output(
            f"--- {number}: {prompt.length:,} tokens asked for, {len(prompt.ids):,} made;"
            f" position {prompt.position:g}, placed at {prompt.placed:.3f}"
        )
        render.output(prompt.marked + "\n")


def _show(summary: dict[str, Any]) -> None:
    """The result as tables."""
    models = summary["models"]
    names = "AB"[: len(models)]
    render.table(
        "models",
        ["", "path", "trained context", "theta", "rope scale", "parameters"],
        [
            (
                name,
                m["path"],
                f"{m['trained_context']:,}",
                f"{m['rope_theta']:g}",
                f"{m['rope_scale']:g}",
                f"{m['parameters']:,}",
            )
            for name, m in zip(names, models, strict=True)
        ],
        to_stdout=True,
    )
    if summary["perplexity"] is not None:
        _show_perplexity(summary["perplexity"], models, names)
    if summary["retrieval"] is not None:
        _show_retrieval(summary["retrieval"], names)


def _show_perplexity(summary: dict[str, Any], models: list[dict[str, Any]], names: str) -> None:
    key = summary["measure"]
    what = key.replace("_", " ")
    columns = ["tokens before", "texts", "tokens"]
    for name in names:
        columns += [f"{name} {what}", "95%", f"{name} up to here"]
    if len(names) == 2:
        columns += ["B against A", "95%"]
    rows = []
    for row in summary["rows"]:
        first = row["models"][0]
        cells = [f"{row['from']:,} .. {row['to']:,}", f"{first['texts']:,}", f"{first['tokens']:,}"]
        for m in row["models"]:
            cells += [_number(m[key]), _span(m[f"{key}_interval"]), _number(m["upto"][key])]
        if len(names) == 2:
            cells += [
                _percent(row["difference"]["relative"]),
                _span(row["difference"]["interval"], "+.2%"),
            ]
        ends = [n for n, m in zip(names, models, strict=True) if m["trained_context"] == row["to"]]
        rows.append([*cells, f"<- trained context of {' and '.join(ends)}" if ends else ""])
    render.table(f"{what} by position", [*columns, ""], rows, to_stdout=True)


def _show_retrieval(summary: dict[str, Any], names: str) -> None:
    rows = []
    for cell in summary["cells"]:
        first = cell["models"][0]
        cells = [f"{cell['length']:,}", f"{cell['position']:g}", f"{first['placed']:.2f}"]
        for m in cell["models"]:
            cells += [
                f"{m['greedy']:.0%} {_span(m['greedy_interval'], '.0%')}",
                f"{m['forced']:.0%} {_span(m['forced_interval'], '.0%')}",
                f"{m['mean_rank']:.1f}",
            ]
        if len(names) == 2:
            a, b = cell["models"]
            cells += [f"{b[way] - a[way]:+.0%}" for way in ("greedy", "forced")]
        rows.append(cells)
    columns = ["tokens", "position", "placed"]
    for name in names:
        columns += [f"{name} greedy", f"{name} forced choice", f"{name} mean rank"]
    if len(names) == 2:
        columns += ["B - A greedy", "B - A forced"]
    render.table(
        f"key retrieval: {summary['examples']} prompts a row, 95% intervals (chance:"
        f" forced choice {summary['chance']:.1%}, mean rank {summary['chance_rank']:g} of 90)",
        columns,
        rows,
        to_stdout=True,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2%}"


def _span(interval: list[float] | None, form: str = ".4g") -> str:
    return "-" if interval is None else "[" + ", ".join(format(x, form) for x in interval) + "]"


# --- the picture ----------------------------------------------------------------------------------


def _draw(summary: dict[str, Any], path: Path) -> None:
    """Draw the perplexity's curve and the retrieval grid into one picture.

    Raises:
        UserError: it cannot be written.
    """
    models, curve, grid = summary["models"], summary["perplexity"], summary["retrieval"]
    panels = (curve is not None) + (len(models) if grid is not None else 0)
    with drawing(path, width=6.0 * panels, height=4.5) as figure:
        left = list(figure.subplots(1, panels, squeeze=False)[0])
        if curve is not None:
            _draw_curve(left.pop(0), curve, models)
        if grid is not None:
            for n, axis in enumerate(left):
                _draw_grid(axis, grid, n)


def _draw_curve(axis: Any, curve: dict[str, Any], models: list[dict[str, Any]]) -> None:
    key = curve["measure"]
    for n, m in enumerate(models):
        points = [
            (row["to"], row["models"][n][key], row["models"][n][f"{key}_interval"])
            for row in curve["rows"]
            if row["models"][n][key] is not None
        ]
        [line] = axis.plot([p[0] for p in points], [p[1] for p in points], "o-", label=_label(m, n))
        bands = [(to, *interval) for to, _, interval in points if interval is not None]
        if bands:
            axis.fill_between(*zip(*bands, strict=True), alpha=0.2, color=line.get_color())
        axis.axvline(m["trained_context"], ls="--", color=line.get_color(), lw=1)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("tokens before, end of bucket (dashed: trained context)")
    axis.set_ylabel(key.replace("_", " "))
    axis.legend()


def _label(model: dict[str, Any], n: int) -> str:
    return f"{'AB'[n]}: {model['path']}, theta {model['rope_theta']:g}"


def _draw_grid(axis: Any, grid: dict[str, Any], n: int) -> None:
    lengths = sorted({cell["length"] for cell in grid["cells"]})
    places = sorted({cell["position"] for cell in grid["cells"]})
    share = {(c["length"], c["position"]): c["models"][n]["forced"] for c in grid["cells"]}
    axis.imshow(
        [[share[length, place] for length in lengths] for place in places],
        vmin=0,
        vmax=1,
        cmap="viridis",
        aspect="auto",
    )
    axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axis.set_yticks(range(len(places)), [f"{place:g}" for place in places])
    for (x, length), (y, place) in itertools.product(enumerate(lengths), enumerate(places)):
        value = share[length, place]
        colour = "black" if value > 0.6 else "white"
        axis.text(x, y, f"{value:.0%}", ha="center", va="center", color=colour)
    axis.set_xlabel("tokens of the prompt")
    axis.set_ylabel("position of the key")
    axis.set_title(f"{'AB'[n]}: forced choice among 90")
