"""Pictures of results, drawn by matplotlib into a file that appears whole."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from codecria.data.errors import UsageError, UserError

from . import options

INSTALL = "pip install 'codecria[plot]'"
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Draw a picture (PNG, SVG or PDF; needs matplotlib).",
        rich_help_panel=options.OUTPUT,
    ),
]


def _plotting() -> Any:
    """matplotlib's pyplot, drawing to files alone.

    Raises:
        UserError: it is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise UserError("--plot needs matplotlib", hint=INSTALL) from error


def check_picture(path: Path) -> None:
    """Check that matplotlib is installed and draws such files.

    Raises:
        UsageError: it draws no such files.
        UserError: it is not installed.
    """
    pyplot = _plotting()
    figure = pyplot.figure()
    kinds = sorted(figure.canvas.get_supported_filetypes())
    pyplot.close(figure)
    if _kind(path) not in kinds:
        raise UsageError(f"--plot {path}: matplotlib draws {', '.join(kinds)}")


def _kind(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


@contextlib.contextmanager
def drawing(path: Path, *, width: float, height: float) -> Iterator[Any]:
    """A figure that is written when the block ends.

    Args:
        path: its file; the name says the kind.
        width, height: in inches.

    Raises:
        UserError: it cannot be written.
    """
    from codecria.data.files import atomic_writer

    pyplot = _plotting()
    figure = pyplot.figure(figsize=(width, height))
    try:
        yield figure
        figure.tight_layout()
        with atomic_writer(path) as file:
            figure.savefig(file, format=_kind(path))
    finally:
        pyplot.close(figure)
