"""`codecria prepare-data`: from sources to a shard set."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codecria.data.errors import UsageError

from . import render
from .options import INPUT, MACHINE, OUTPUT, AsJson
from .signals import ending_in_order

if TYPE_CHECKING:
    from codecria.data.corpus.recipe import PrepareRecipe
    from codecria.data.corpus.sources import Source

HELP = """Turn source code into shards of token ids to train on.

Sources are folders and git work trees, single files, JSON lines (plain or compressed) and .parquet
files, or - for JSON lines on standard input; NAME=PATH names a source. Generated, odd and unwanted
files and duplicates are dropped, secrets are replaced, near-duplicates and evaluation problems are
left out; the rest is tokenised, shuffled and split. Rerun the same command to resume a stopped run;
a finished run does nothing. --explain shows why a file was kept or dropped.

Example: codecria prepare-data ~/src more=rows.parquet --train-tokenizer --out shards

Example: codecria prepare-data code=~/src --tokenizer tokenizer.model --languages python,c++
--licenses permissive --decontaminate HumanEval.jsonl.gz --out shards

Example: codecria prepare-data --explain src/pkg/module.py --out shards
"""

# Help groups of this verb alone.
FILTERS = "Filters"
SHARDS = "Shards"
RUN = "Run"

MEBI = 1 << 20


def complete_languages(incomplete: str) -> list[str]:
    """Language names for the shell to complete, also after a comma."""
    from codecria.data.corpus.languages import table

    before, comma, last = incomplete.rpartition(",")
    names = (name for name in sorted(table().by_alias) if name.lower().startswith(last.lower()))
    return [f"{before}{comma}{name}" for name in names]


def complete_settings(incomplete: str) -> list[str]:
    """Fields of the recipe for --set, each with its `=`."""
    from codecria.data.corpus.recipe import field_names

    return [f"{name}=" for name in field_names() if name.startswith(incomplete)]


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("prepare-data", help=HELP)(prepare_data)


def prepare_data(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the shards.", file_okay=False),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]PATH...", help="What to read, - for stdin."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.model, or a folder that holds one.", rich_help_panel=INPUT),
    ] = None,
    train_tokenizer: Annotated[
        bool,
        typer.Option(
            "--train-tokenizer",
            help="Train a tokenizer on the documents kept.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    vocab_size: Annotated[
        int, typer.Option(help="Pieces of a trained tokenizer.", min=2, rich_help_panel=INPUT)
    ] = 32_000,
    append: Annotated[
        bool,
        typer.Option(
            "--append", help="Add the sources to the set at --out.", rich_help_panel=INPUT
        ),
    ] = False,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links",
            help="Also read links whose target lies outside a source.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Stop at damaged input instead of counting it.", rich_help_panel=INPUT
        ),
    ] = False,
    languages: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Keep only these languages, e.g. python,c++.",
            rich_help_panel=FILTERS,
            autocompletion=complete_languages,
        ),
    ] = "",
    licenses: Annotated[
        str,
        typer.Option(
            metavar="permissive|NAME,...|any",
            help="Keep only these licences; unknown keeps files that state none.",
            rich_help_panel=FILTERS,
        ),
    ] = "any",
    quality: Annotated[
        bool,
        typer.Option(
            "--quality/--no-quality",
            help="Drop generated, minified and odd files.",
            rich_help_panel=FILTERS,
        ),
    ] = True,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact/--no-redact",
            help="Replace secrets and e-mail addresses.",
            rich_help_panel=FILTERS,
        ),
    ] = True,
    decontaminate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Drop documents that hold a problem of this evaluation set; repeatable.",
            rich_help_panel=FILTERS,
        ),
    ] = None,
    dedup: Annotated[
        Literal["near", "exact", "none"],
        typer.Option(help="Which duplicates to drop.", rich_help_panel=FILTERS),
    ] = "near",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a recipe field, e.g. quality.programming.longest_line=2000; repeatable.",
            rich_help_panel=FILTERS,
            autocompletion=complete_settings,
        ),
    ] = None,
    group_by: Annotated[
        Literal["none", "source", "kind", "language"],
        typer.Option(
            help="One shard set for each (kind: code or prose), to mix in training.",
            rich_help_panel=SHARDS,
        ),
    ] = "none",
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME=W,...",
            help="Shares of the groups in training, e.g. code=85,prose=7.",
            rich_help_panel=SHARDS,
        ),
    ] = "",
    validation_share: Annotated[
        float,
        typer.Option(
            help="Share of the documents for validation, at least one of each source.",
            min=0,
            max=0.5,
            rich_help_panel=SHARDS,
        ),
    ] = 0.005,
    seed: Annotated[
        int, typer.Option(help="Random seed of the shuffle.", rich_help_panel=SHARDS)
    ] = 0,
    explain: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Show why this document was kept or dropped.",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List what would be read, and stop.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: AsJson = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace an output made from other inputs or settings.",
            rich_help_panel=RUN,
        ),
    ] = False,
    keep_work: Annotated[
        bool,
        typer.Option(
            "--keep-work", help="Keep the intermediate files in OUT/.work.", rich_help_panel=RUN
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            help="Worker processes; 0 is one per core. The output is the same.",
            min=0,
            rich_help_panel=MACHINE,
        ),
    ] = 0,
    runner: Annotated[
        Literal["processes", "ray", "dask"],
        typer.Option(
            help="Where the work runs; a cluster needs a shared folder.", rich_help_panel=MACHINE
        ),
    ] = "processes",
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the cluster [default: one on this machine].", rich_help_panel=MACHINE
        ),
    ] = None,
    partition_mb: Annotated[
        int | None,
        typer.Option(
            help="Input per partition, MB [default: up to 64].", min=1, rich_help_panel=MACHINE
        ),
    ] = None,
) -> None:
    """Parse the options, run, and show the report."""
    if explain:
        _explain(out, explain, as_json=as_json)
        return
    from joblib import cpu_count

    from codecria.data.corpus import filters
    from codecria.data.corpus.base import recipe_of
    from codecria.data.corpus.languages import parse_languages
    from codecria.data.corpus.licences import parse_wanted
    from codecria.data.corpus.prepare import prepare
    from codecria.data.corpus.recipe import PrepareRecipe, override
    from codecria.data.corpus.report import in_order
    from codecria.data.corpus.runner import Engine
    from codecria.data.corpus.sources import parse_sources

    if address is not None and runner == "processes":
        raise UsageError("--address is that of a cluster", hint="add --runner ray or dask")
    wanted = parse_sources(sources or [], follow_links=follow_links)
    if append:
        _refuse_own_recipe(context)
        recipe = recipe_of(out)
    else:
        if not dry_run and (tokenizer is None) != train_tokenizer:
            raise UsageError(
                "both --tokenizer and --train-tokenizer were given"
                if train_tokenizer
                else "no tokenizer was given",
                hint="give either --tokenizer PATH, or --train-tokenizer [--vocab-size N]",
            )
        names = [name.strip() for name in languages.split(",") if name.strip()]
        allowed = parse_wanted(licenses)
        recipe = PrepareRecipe(
            filters={
                **filters.defaults(),
                filters.Languages.key: parse_languages(names) if names else None,
                filters.Licences.key: allowed.names if allowed is not None else None,
            },
            dedup=dedup,
            group_by=group_by,
            validation_share=validation_share,
            seed=seed,
            vocab_size=vocab_size if train_tokenizer else None,
        )
        off = [name for name, on in (("quality", quality), ("redaction", redact)) if not on]
        recipe = override(recipe, [*(settings or ()), *(f"{name}=null" for name in off)])
    if dry_run:
        _show_survey([replace(source, without=out) for source in wanted], recipe, as_json=as_json)
        return
    with ending_in_order(), render.stages() as progress:
        outcome = prepare(
            wanted,
            out,
            recipe,
            model=tokenizer,
            benchmarks=decontaminate or (),
            weights=_parse_weights(weights),
            append=append,
            engine=Engine(
                workers=workers or cpu_count(),
                runner=runner,
                address=address,
                partition_bytes=partition_mb * MEBI if partition_mb else None,
                progress=progress,
            ),
            strict=strict,
            force=force,
            keep_work=keep_work,
            stdin=sys.stdin.buffer,
        )
    report = in_order(outcome.report)
    if as_json:
        render.emit_json(report)
    else:
        _show_report(report)
    if outcome.unchanged:
        render.note(f"{out} is finished: nothing to do")
    else:
        render.note(f"{'added to' if append else 'wrote'} {out}")


# What a set was made with; what is appended to it goes by the same.
RECIPE_OPTIONS = (
    "tokenizer",
    "train_tokenizer",
    "vocab_size",
    "languages",
    "licenses",
    "quality",
    "redact",
    "decontaminate",
    "dedup",
    "group_by",
    "validation_share",
    "seed",
    "settings",
    "force",
)


def _refuse_own_recipe(context: typer.Context) -> None:
    for name in RECIPE_OPTIONS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = {"settings": "set"}.get(name, name.replace("_", "-"))
            raise UsageError(
                f"--append goes by the recipe of the set: --{option} cannot be given with it",
                hint="leave it out, or make a new set",
            )


def _parse_weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = 0
        if not name or not 0 < weights[name] < float("inf"):
            raise UsageError(f"--weights: {part!r} is no NAME=NUMBER", hint="e.g. code=85,prose=7")
    return weights


def _explain(out: Path, name: str, *, as_json: bool) -> None:
    from codecria.data.corpus.explain import explain, shown

    found = explain(out, name)
    if as_json:
        render.emit_json([{"kept": one.kept, **one.facts} for one in found])
    else:
        sys.stdout.write(shown(found) + "\n")


def _show_survey(sources: list[Source], recipe: PrepareRecipe, *, as_json: bool) -> None:
    """What would be read; standard input cannot be looked at without using it up."""
    from codecria.data.corpus.intake import survey

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
    from codecria.data.corpus.filters import labels

    rows, label_of = [], labels()
    for step, counts in report["funnel"].items():
        dropped = report["dropped"].get(step, {})
        by_count = sorted(dropped.items(), key=lambda item: -item[1]["documents"])
        why = ", ".join(f"{reason} {drops['documents']:,}" for reason, drops in by_count)
        label = label_of.get(step, step)
        rows.append((label, f"{counts['documents']:,}", _megabytes(counts["bytes"]), "", why))
    kept = [*sorted(report["splits"].items())]
    if len(report["groups"]) > 1:
        kept = [*report["groups"].items(), *kept]
    rows += [
        (name, f"{n['documents']:,}", _megabytes(n["bytes"]), f"{n['tokens']:,}", "")
        for name, n in kept
    ]
    render.table("prepared", ["step", "documents", "MB", "tokens", "dropped"], rows)
    folders = report["skipped_folders"]
    if folders:
        named = ", ".join(f"{reason} {count:,}" for reason, count in sorted(folders.items()))
        render.note(f"folders not entered: {named}")
    if report["redacted"]:
        named = ", ".join(f"{rule} {n['findings']:,}" for rule, n in report["redacted"].items())
        render.note(f"replaced: {named}")
    hits = report["benchmarks"]["hits"]
    if hits:
        named = ", ".join(f"{problem} {count:,}" for problem, count in list(hits.items())[:5])
        more = f", and {len(hits) - 5:,} more problems" if len(hits) > 5 else ""
        render.note(f"evaluation problems met: {named}{more}")
    render.note("licences kept: " + _most(report["licences"]))
    lossy = report["roundtrip_lossy"]["documents"]
    if lossy:
        render.note(f"{lossy:,} documents do not survive decoding and will never be infilled")
    seconds = report["seconds"]
    read = report["funnel"]["read"]["bytes"] / 1e6
    each = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items())
    total = sum(seconds.values())
    render.note(f"{each}; {read / total:.1f} MB/s" if total else each)


def _most(licences: dict[str, dict[str, dict[str, int]]], most: int = 6) -> str:
    """The commonest licences with the documents kept under each."""
    kept = {name: counts["kept"]["documents"] for name, counts in licences.items()}
    named = sorted((item for item in kept.items() if item[1]), key=lambda item: -item[1])
    more = f", and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(f"{name} {count:,}" for name, count in named[:most]) + more


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"
