"""`codecria evaluate report` and `correlation`: results of many checkpoints side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import options, render
from ..picture import Plot, check_picture, drawing

if TYPE_CHECKING:
    from codecria.core.evaluation.report import Report

HELP = """Collect results of several checkpoints in one table, with models as rows.

RESULTS are files that `evaluate TASK --out` wrote, or folders of them. An empty cell comes with the
command that fills it.

Example: codecria evaluate report scores --markdown table.md
"""
CORRELATION_HELP = """Show how scores in two languages go together over checkpoints.

Pearson's coefficient of each pair of languages, with the number of checkpoints and a 95% interval.

Example: codecria evaluate correlation scores
"""
Results = Annotated[
    list[Path], typer.Argument(metavar="RESULTS...", help="Results, or folders of results.")
]


def report(
    results: Results,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table in Markdown too.")
    ] = None,
    plot: Plot = None,
    as_json: options.AsJson = False,
) -> None:
    """Collect, show, write."""
    from codecria.core.evaluation.report import collect, shown
    from codecria.data.files import atomic_write

    if plot is not None:
        check_picture(plot)
    found = collect(results)
    if as_json:
        render.emit_json(found.as_json())
    else:
        rows = [
            (model, *(shown(found.cells.get((digest, column))) for column in found.columns))
            for digest, model in found.models.items()
        ]
        titles = ["model", *(column.title for column in found.columns)]
        render.table("scores in percent, 95% intervals", titles, rows, to_stdout=True)
    for model, column, command in found.missing():
        render.note(f"missing: {column.title} of {model}: {command}")
    for remark in found.remarks:
        render.note(remark)
    if any(cell.notes for cell in found.cells.values()):
        render.note("* is of a part of the tasks")
    if markdown is not None:
        atomic_write(markdown, found.as_markdown().encode())
        render.note(f"written: {markdown}")
    if plot is not None:
        _draw(found, plot)
        render.note(f"written: {plot}")


def _draw(found: Report, path: Path) -> None:
    """Bars by column, a colour for each model, with their intervals."""
    with drawing(path, width=2.0 + 1.6 * len(found.columns), height=4.5) as figure:
        axis = figure.subplots()
        width = 0.8 / len(found.models)
        for place, (digest, model) in enumerate(found.models.items()):
            known = [
                (n, cell)
                for n, column in enumerate(found.columns)
                if (cell := found.cells.get((digest, column))) is not None
            ]
            axis.bar(
                [n + (place + 0.5) * width - 0.4 for n, _ in known],
                [cell.value for _, cell in known],
                width,
                yerr=(
                    [cell.value - cell.low for _, cell in known],
                    [cell.high - cell.value for _, cell in known],
                ),
                label=model,
            )
        axis.set_xticks(range(len(found.columns)), [c.title for c in found.columns], rotation=20)
        axis.set_ylabel("score")
        axis.legend()


def correlation(
    results: Results,
    plot: Plot = None,
    as_json: options.AsJson = False,
) -> None:
    """Read, correlate, show."""
    from codecria.core.evaluation.correlation import ENOUGH, correlate, scores_by_language

    if plot is not None:
        check_picture(plot)
    scores = scores_by_language(results)
    found = correlate(scores)
    if as_json:
        render.emit_json(
            {
                "checkpoints": {language: len(by) for language, by in scores.items()},
                "coefficients": [
                    {"a": c.a, "b": c.b, "n": c.n, "r": c.r, "low": c.low, "high": c.high}
                    for c in found
                ],
            }
        )
    else:
        rows = [(f"{c.a}, {c.b}", str(c.n), *_coefficient(c.r, c.low, c.high)) for c in found]
        columns = ["languages", "checkpoints", "r", "95%"]
        render.table("pass@1 over checkpoints, Pearson's r", columns, rows, to_stdout=True)
    if any(c.n < ENOUGH for c in found):
        render.note(f"fewer than {ENOUGH} checkpoints: such coefficients say little")
    if plot is not None:
        _draw_matrix(list(scores), {(c.a, c.b): c.r for c in found}, plot)
        render.note(f"written: {plot}")


def _coefficient(r: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    interval = "-" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"
    return ("-" if r is None else f"{r:+.2f}", interval)


def _draw_matrix(
    languages: list[str], found: dict[tuple[str, str], float | None], path: Path
) -> None:
    with drawing(path, width=1.5 + len(languages), height=1.5 + len(languages)) as figure:
        axis = figure.subplots()
        nothing = float("nan")
        table: list[list[Any]] = [[nothing] * len(languages) for _ in languages]
        for (a, b), r in found.items():
            row, column = languages.index(b), languages.index(a)
            table[row][column] = nothing if r is None else r
            axis.text(column, row, "-" if r is None else f"{r:.2f}", ha="center", va="center")
        axis.imshow(table, vmin=-1, vmax=1, cmap="coolwarm")
        axis.set_xticks(range(len(languages)), languages, rotation=30)
        axis.set_yticks(range(len(languages)), languages)
