"""`codecria prepare-data`: from sources to a shard set."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codecria.data.errors import ExitStatus, Interrupted, UsageError

from . import render

if TYPE_CHECKING:
    from codecria.data.intake import PrepareRecipe
    from codecria.data.sources import Source

HELP = """Turn source code into shards of token ids to train on.

Sources are folders, single files, .jsonl (also .gz, .zst) and .parquet files, or - for JSON lines
on standard input; NAME=PATH names a source. Files are filtered, exact duplicates removed, and what
is left is tokenised, shuffled and split. A run that was stopped goes on where it was; a run that
is finished does nothing.

Example: codecria prepare-data ~/src more=rows.parquet --train-tokenizer --out shards
"""

MEBI = 1 << 20
STEP_LABELS = {
    "named": "name and size",
    "read": "readable",
    "unique": "no exact duplicate",
}


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("prepare-data", help=HELP)(prepare_data)


def prepare_data(
    sources: Annotated[
        list[str], typer.Argument(metavar="[NAME=]PATH...", help="What to read, - for stdin.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards.", file_okay=False)],
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.model, or a folder that holds one.")
    ] = None,
    train_tokenizer: Annotated[
        bool, typer.Option("--train-tokenizer", help="Train a tokenizer on the documents kept.")
    ] = False,
    vocab_size: Annotated[int, typer.Option(help="Pieces of a trained tokenizer.", min=2)] = 32_000,
    languages: Annotated[
        str, typer.Option(metavar="NAME,...", help="Keep only these languages, e.g. python,c++.")
    ] = "",
    dedup: Annotated[
        Literal["exact", "none"], typer.Option(help="Which duplicates to remove.")
    ] = "exact",
    quality: Annotated[
        bool, typer.Option("--quality/--no-quality", help="Drop generated, minified, odd files.")
    ] = True,
    validation_share: Annotated[
        float,
        typer.Option(help="Share to validate on, at least one document a source.", min=0, max=0.5),
    ] = 0.005,
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override any field of the recipe, e.g. quality.programming.longest_line=2000.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes; 0 for one a core. Changes no byte.", min=0)
    ] = 0,
    partition_mb: Annotated[
        int | None,
        typer.Option(help="Input a process works on at once [default: up to 64].", min=1),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Damaged input is an error, not a counted skip.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an output made from other inputs or settings.")
    ] = False,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Leave the files between the stages in OUT/.work.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read, and write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout.")
    ] = False,
) -> None:
    """Parse the options, run, and show the report."""
    from joblib import cpu_count

    from codecria.data.intake import PrepareRecipe, override
    from codecria.data.languages import parse_languages
    from codecria.data.prepare import prepare
    from codecria.data.sources import parse_sources

    if not dry_run and (tokenizer is None) != train_tokenizer:
        raise UsageError(
            "both --tokenizer and --train-tokenizer were given"
            if train_tokenizer
            else "no tokenizer was given",
            hint="give either --tokenizer PATH, or --train-tokenizer [--vocab-size N]",
        )
    names = [name.strip() for name in languages.split(",") if name.strip()]
    recipe = PrepareRecipe(
        languages=parse_languages(names) if names else None,
        dedup=dedup,
        validation_share=validation_share,
        seed=seed,
        vocab_size=vocab_size if train_tokenizer else None,
    )
    recipe = override(recipe, [*(settings or ()), *(() if quality else ("quality=null",))])
    wanted = parse_sources(sources)
    if dry_run:
        _show_survey([replace(source, without=out) for source in wanted], recipe, as_json=as_json)
        return
    with _stoppable(), render.stages() as progress:
        outcome = prepare(
            wanted,
            out,
            recipe,
            model=tokenizer,
            workers=workers or cpu_count(),
            partition_bytes=partition_mb * MEBI if partition_mb else None,
            strict=strict,
            force=force,
            keep_work=keep_work,
            stdin=sys.stdin.buffer,
            progress=progress,
        )
    if as_json:
        render.emit_json(outcome.report)
    else:
        _show_report(outcome.report)
    if outcome.unchanged:
        render.note(f"{out} is finished: nothing to do")
    else:
        render.note(f"wrote {out}")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run in order, its workers too; what is done stays done."""
    statuses = {
        signal.SIGINT: ExitStatus.INTERRUPTED,
        signal.SIGTERM: ExitStatus.TERMINATED,
    }

    def stop(number: int, _: object) -> None:
        message = "stopped: the same command goes on from here"
        raise Interrupted(statuses[signal.Signals(number)], message)

    before = {number: signal.signal(number, stop) for number in statuses}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_survey(sources: list[Source], recipe: PrepareRecipe, *, as_json: bool) -> None:
    """What would be read; standard input cannot be looked at without using it up."""
    from codecria.data.intake import survey

    paths = [source for source in sources if source.path is not None]
    nothing: dict[str, Any] = {"sources": {}, "skipped": {}, "skipped_folders": {}}
    found = survey(paths, recipe) if paths else nothing
    if as_json:
        render.emit_json(found)
        return
    rows = [
        (
            name,
            f"{entry['files']:,}",
            _megabytes(entry["bytes"]),
            ", ".join(f"{kind} {count:,}" for kind, count in sorted(entry["kinds"].items())),
        )
        for name, entry in found["sources"].items()
    ]
    rows += [(source.name, "?", "?", "jsonl on stdin") for source in sources if source.path is None]
    render.table("to be read", ["source", "files", "MB", "kinds"], rows, to_stdout=True)
    skips = [
        (reason, f"{entry['files']:,} files", _megabytes(entry["bytes"]))
        for reason, entry in sorted(found["skipped"].items())
    ] + [
        (reason, f"{count:,} folders", "")
        for reason, count in sorted(found["skipped_folders"].items())
    ]
    if skips:
        render.table("to be skipped", ["reason", "", "MB"], skips, to_stdout=True)


def _show_report(report: dict[str, Any]) -> None:
    """The funnel with what each step dropped, and what was kept."""
    rows = []
    for step in report["funnel"]:
        dropped = report["dropped"].get(step["step"], {})
        by_count = sorted(dropped.items(), key=lambda item: -item[1]["documents"])
        why = ", ".join(f"{reason} {drops['documents']:,}" for reason, drops in by_count)
        label = STEP_LABELS.get(step["step"], step["step"])
        rows.append((label, f"{step['documents']:,}", _megabytes(step["bytes"]), "", why))
    rows += [
        (split, f"{n['documents']:,}", _megabytes(n["bytes"]), f"{n['tokens']:,}", "")
        for split, n in sorted(report["splits"].items())
    ]
    render.table("prepared", ["step", "documents", "MB", "tokens", "dropped"], rows)
    folders = report["skipped_folders"]
    if folders:
        named = ", ".join(f"{reason} {count:,}" for reason, count in sorted(folders.items()))
        render.note(f"folders not entered: {named}")
    lossy = report["roundtrip_lossy"]["documents"]
    if lossy:
        render.note(f"{lossy:,} documents do not survive decoding and will never be infilled")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"
