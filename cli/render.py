"""How results and progress look; the only module that uses rich.

stdout carries the payload alone. Notes, warnings and progress go to stderr: a live bar on a
terminal, a plain line now and then elsewhere, so that logs stay readable.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID

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
    """Write one readable JSON document to stdout; numbers that are not finite become null."""
    from codecria.data.files import finite

    print(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def emit_json_line(value: Any) -> None:
    """Write one JSON document on a line of its own to stdout, as `emit_json` does."""
    from codecria.data.files import finite

    print(json.dumps(finite(value), ensure_ascii=False, allow_nan=False), flush=True)


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
        shown.add_column(column, overflow="fold")  # a narrow terminal hides nothing
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    console = _console(stderr=not to_stdout)
    if console.is_terminal:
        console.print(shown)
        return
    with console.capture() as text:
        console.print(shown)
    for line in text.get().splitlines():  # rich fills them up with spaces
        print(line.rstrip(), file=sys.stdout if to_stdout else sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "3 min 20 s", "5 h 7 min", "12 d 3 h", "1,200 y 40 d"."""
    whole = round(seconds)
    for unit, size, smaller, part in (
        ("y", 31_536_000, "d", 86_400),
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size:,} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def _live() -> bool:
    """Whether stderr can show a bar that moves: a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _bars(*columns: ProgressColumn) -> Bars:
    """Bars on stderr; what is written to a terminal's stdout meanwhile stands above them.

    A stdout that is a file or a pipe is left alone: rich would send its lines to the terminal.
    """
    from rich.progress import Progress as Bars

    return Bars(
        *columns,
        console=_console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),
        disable=_quiet,
        expand=True,
    )


def metrics_text(record: dict[str, Any], seconds_left: float | None) -> str:
    """The figures of a metrics record in one line, what matters most first.

    >>> metrics_text({"step": 5, "loss": 2.5, "tokens_per_s": 1250.0}, 61.0)
    '1 min 1 s left  loss 2.5000  1,250 tokens/s'
    """
    figures = (
        (f"{duration(seconds_left)} left" if seconds_left is not None else "", True),
        ("loss {loss:.4f}", record.get("loss") is not None),
        ("infill {infill_loss:.4f}", record.get("infill_loss") is not None),
        ("validation {validation_loss:.4f}", record.get("validation_loss") is not None),
        ("infill {validation_infill_loss:.4f}", record.get("validation_infill_loss") is not None),
        ("{tokens_per_s:,.0f} tokens/s", record.get("tokens_per_s") is not None),
        ("MFU {mfu:.0%}", record.get("mfu") is not None),
        ("lr {lr:.2e}", record.get("lr") is not None),
    )
    return "  ".join(text.format(**record) for text, there in figures if text and there)


@contextlib.contextmanager
def training_progress(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show the metrics records of a run: a bar on a terminal, lines elsewhere.

    Args:
        steps: of the whole run.

    Yields:
        a function to call with each record.
    """
    speed: dict[str, float] = {}  # of the latest record that has it

    def seconds_left(record: dict[str, Any]) -> float | None:
        if record.get("tokens_per_s"):
            speed["s_per_step"] = record["tokens"] / max(record["step"], 1) / record["tokens_per_s"]
        left = steps - record["step"]
        return left * speed["s_per_step"] if speed and left > 0 else None

    with _training_bar(steps) if _live() else _training_lines(steps) as show:

        def tell(record: dict[str, Any]) -> None:
            if "skipped" in record:
                warn(f"left out {record['skipped']}")
            else:
                show(record, metrics_text(record, seconds_left(record)))

        yield tell


Show = Callable[[dict[str, Any], str], None]


@contextlib.contextmanager
def _training_bar(steps: int) -> Iterator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.table import Column

    # The text takes what is left of the line, so that bar and count stay at any width.
    text = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16, table_column=Column(no_wrap=True, min_width=16)),
        TextColumn("{task.description}", table_column=text),
    )
    latest: dict[str, Any] = {}
    with _bars(*columns) as bars:
        task = bars.add_task("starting", total=steps)

        def show(record: dict[str, Any], text: str) -> None:
            # A validation comes in a record of its own; the bar keeps its last figure.
            latest.update({k: v for k, v in record.items() if isinstance(v, int | float)})
            left = text.split("  ", 1)[0] if " left" in text else ""
            shown = "  ".join(part for part in (left, metrics_text(latest, None)) if part)
            bars.update(task, completed=record["step"], description=shown)

        yield show


@contextlib.contextmanager
def _training_lines(steps: int) -> Iterator[Show]:
    last = 0.0

    def show(record: dict[str, Any], text: str) -> None:
        nonlocal last
        due = time.monotonic() - last >= PLAIN_EVERY_S or "validation_loss" in record
        if due or record["step"] == steps:
            last = time.monotonic()
            note(f"step {record['step']}/{steps}  {text}")

    yield show


@contextlib.contextmanager
def stages() -> Iterator[Callable[[Progress], None]]:
    """Show the stages of long work: a bar on a terminal, lines elsewhere.

    Yields:
        a function to call as parts of a stage get done.
    """
    if _live():
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with _bars(*columns) as bars:
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
            resumed = f" ({now.resumed} done by an earlier run)" if now.resumed else ""
            note(f"{now.stage} {now.done}/{now.total}{resumed}")

    yield tell
