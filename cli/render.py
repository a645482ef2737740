"""How results and progress look; the only module that uses rich.

stdout carries the payload alone. Notes, warnings and progress go to stderr: a live bar on a
terminal, a plain line now and then elsewhere, so that logs stay readable.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from codecria.data.progress import Progress

PLAIN_EVERY_S = 10.0


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Not rich's own test: FORCE_COLOR would make it take a pipe for a terminal.
    terminal = stream.isatty()
    # A table in a pipe keeps its lines whole, however long.
    return Console(
        stderr=stderr, force_terminal=terminal, width=None if terminal else 200, highlight=False
    )


_quiet = False  # --quiet, for the whole process


def set_quiet(quiet: bool) -> None:
    """Print notes and progress, or keep them back (`--quiet`)."""
    global _quiet
    _quiet = quiet


def note(message: str) -> None:
    """Print a note on stderr, unless `--quiet` keeps it back."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    error(f"warning: {message}")


def error(message: str) -> None:
    """Print on stderr what `--quiet` does not keep back."""
    print(message, file=sys.stderr, flush=True)


def output(text: str) -> None:
    """Write text to stdout, with a line's end."""
    print(text, flush=True)


def emit_json(value: Any) -> None:
    """Write one readable JSON document to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def emit_json_line(value: Any) -> None:
    """Write one JSON document on a line of its own to stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    to_stdout: bool = False,
) -> None:
    """Show a table, on stderr unless it is the payload."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for column in columns:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    _console(stderr=not to_stdout).print(shown)


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "3 min 20 s", "5 h 7 min", "12 d 3 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, size, smaller, part in (
        ("min", 60, "s", 1),
        ("h", 3_600, "min", 60),
        ("d", 86_400, "h", 3_600),
    ):
        if whole < size * (60 if unit == "min" else 24) or unit == "d":
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    raise AssertionError("the last unit takes every duration")


@contextlib.contextmanager
def training_progress(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show the metrics records of a run: a bar on a terminal, lines elsewhere.

    Args:
        steps: of the whole run.

    Yields:
        a function to call with each record.
    """
    state: dict[str, float] = {}
    last = 0.0

    def line(record: dict[str, Any]) -> str:
        state.update({k: v for k, v in record.items() if isinstance(v, int | float)})
        left = (steps - state["step"]) * state.get("tokens", 0) / max(state["step"], 1)
        eta = left / state["tokens_per_s"] if state.get("tokens_per_s") else None
        parts = [
            f"loss {state['loss']:.4f}" if "loss" in state else "",
            f"infill {state['infill_loss']:.4f}" if "infill_loss" in state else "",
            f"validation {state['validation_loss']:.4f}" if "validation_loss" in state else "",
            f"infill {state['validation_infill_loss']:.4f}"
            if "validation_infill_loss" in state
            else "",
            f"lr {state['lr']:.2e}" if "lr" in state else "",
            f"{state['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in state else "",
            f"MFU {state['mfu']:.0%}" if "mfu" in state else "",
            f"{duration(eta)} left" if eta is not None else "",
        ]
        return "  ".join(part for part in parts if part)

    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=_console(stderr=True)) as bar:
            task = bar.add_task("starting", total=steps)

            def show(record: dict[str, Any]) -> None:
                if "skipped" in record:
                    bar.console.print(f"left out {record['skipped']}")
                    return
                bar.update(task, completed=record["step"], description=line(record))

            yield show
        return

    def tell(record: dict[str, Any]) -> None:
        nonlocal last
        if "skipped" in record:
            warn(f"left out {record['skipped']}")
            return
        text = line(record)
        due = time.monotonic() - last >= PLAIN_EVERY_S or "validation_loss" in record
        if due or record["step"] == steps:
            last = time.monotonic()
            note(f"step {record['step']}/{steps}  {text}")

    yield tell


@contextlib.contextmanager
def stages() -> Iterator[Callable[[Progress], None]]:
    """Show the stages of data preparation: a bar on a terminal, lines elsewhere.

    Yields:
        a function to call as partitions get done.
    """
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=_console(stderr=True)) as bars:
            tasks: dict[str, TaskID] = {}

            def show(now: Progress) -> None:
                if now.stage not in tasks:
                    tasks[now.stage] = bars.add_task(now.stage, total=now.total)
                bars.update(tasks[now.stage], completed=now.done, total=now.total)

            yield show
        return

    last = 0.0

    def tell(now: Progress) -> None:
        nonlocal last
        if now.done == now.total or time.monotonic() - last >= PLAIN_EVERY_S:
            last = time.monotonic()
            resumed = f" ({now.resumed} were done before)" if now.resumed else ""
            note(f"{now.stage} {now.done}/{now.total}{resumed}")

    yield tell
