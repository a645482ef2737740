"""`codecria inspect`: describes a folder and lists what is missing or corrupt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import options, render

HELP = """Describe shards, runs, models, adapters, GGUF files and tokenizers, and list faults.

The exit status is 1 if something is missing or corrupt.

Example: codecria inspect shards --document 0
"""

MOST_PARTS = 16  # shown of one fact; --json prints all


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("inspect", help=HELP)(inspect)


def inspect(
    path: Annotated[Path, typer.Argument(help="Folder, GGUF file or tokenizer.model.")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all content and compare it with the recorded digests."),
    ] = False,
    document: Annotated[
        int | None, typer.Option(help="Print the document of this number in a shard set.")
    ] = None,
    split: Annotated[
        Literal["train", "validation"], typer.Option(help="Split that --document counts in.")
    ] = "train",
    adapter: options.Adapter = None,
    as_json: options.AsJson = False,
) -> None:
    """Describe the path."""
    from codecria.core.inspect import describe, document_text

    if document is not None:
        text, known = document_text(path, document, split)
        if as_json:
            render.emit_json(known | {"text": text})
        else:
            render.note(json.dumps(known, ensure_ascii=False))
            sys.stdout.write(text)
        return
    described = describe(path, verify=verify, adapter=adapter)
    if as_json:
        render.emit_json(described)
    else:
        facts = dict(described["facts"])
        lineage = facts.pop("lineage", None)
        rows = [(name.replace("_", " "), _shown(value)) for name, value in facts.items()]
        render.table(f"{described['kind']} {described['path']}", ["", ""], rows, to_stdout=True)
        if lineage:
            for line in _drawn(lineage):
                render.output(line)
        for line in described["problems"]:
            render.warn(line)
    if described["problems"]:
        raise typer.Exit(code=1)


def _drawn(lineage: dict[str, Any]) -> list[str]:
    """The stages a checkpoint went through, oldest first, each below the one before it."""
    from codecria.core.training.card import stages_of

    stages = stages_of(lineage)
    first = stages[0].get("parent")
    lines = [f"lineage: a checkpoint {first[:12]}" if first else "lineage: fresh weights"]
    for depth, stage in enumerate(stages):
        facts = [
            f"{stage.get('recipe', 'unknown')} {stage.get('size', '')}".rstrip(),
            f"{stage.get('tokens', 0):,} tokens in {stage.get('step', 0):,} steps",
            "data " + " ".join(digest[:12] for digest in stage.get("data", [])),
        ]
        rate = stage.get("objective", {}).get("infill_rate")
        facts += [f"infilling {rate:.0%}"] if rate else []
        lines.append("  " + "   " * depth + "└─ " + ", ".join(facts))
    return lines


def _shown(value: object) -> str:
    """A fact on one line, a part of one in brackets where it has parts of its own."""
    if isinstance(value, dict):
        parts = [
            f"{key} ({_shown(part)})" if isinstance(part, dict) else f"{key} {_shown(part)}"
            for key, part in value.items()
        ]
        return _joined(parts)
    if isinstance(value, list):
        return _joined([_shown(part) for part in value])
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _joined(parts: list[str]) -> str:
    more = len(parts) - MOST_PARTS
    shown = parts if more <= 0 else [*parts[:MOST_PARTS], f"and {more} more"]
    return ", ".join(shown) or "none"
