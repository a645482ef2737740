"""`codecria recipes`: what each stage will do, and whether a file of overrides is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import render
from .commands import QuickGroup

HELP = "List, show and check the numbers of every training stage."


def register(app: typer.Typer) -> None:
    """Add the verb and its three parts to the command line."""
    group = typer.Typer(help=HELP, no_args_is_help=True, cls=QuickGroup)
    group.command("list", help="List every recipe with its main numbers.")(list_recipes)
    group.command("show", help="Show one recipe whole. Example: codecria recipes show pretrain 7b")(
        show
    )
    group.command("validate", help="Check a TOML file of recipe fields against a recipe.")(validate)
    app.add_typer(group, name="recipes")


AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def list_recipes(as_json: AsJson = False) -> None:
    """A row a recipe."""
    from codecria.core.training.recipes import RECIPES

    if as_json:
        render.emit_json([_as_json(recipe) for recipe in RECIPES.values()])
        return
    render.table(
        "recipes",
        ["recipe", "size", "tokens", "steps", "context", "batch tokens", "peak lr", "source"],
        [
            (
                r.name,
                r.size,
                f"{r.tokens:,}",
                f"{r.steps:,}",
                f"{r.context:,}",
                f"{r.batch_tokens:,}",
                f"{r.peak_lr:g}",
                r.source,
            )
            for r in RECIPES.values()
        ],
        to_stdout=True,
    )


def show(
    name: Annotated[str, typer.Argument(help="Stage, such as pretrain.")],
    size: Annotated[str, typer.Argument(help="Model size, such as 7b.")],
    as_json: AsJson = False,
) -> None:
    """Every field of one recipe."""
    from codecria.core.training.recipes import recipe_for

    told = _as_json(recipe_for(name, size))
    if as_json:
        render.emit_json(told)
        return
    marks = dict.fromkeys(told["stand_ins"], "  (not in the paper: stands in)")
    if "tokens" in marks:
        marks["steps"] = marks["tokens"]
    if "batch_tokens" in marks:
        marks["rows"] = marks["batch_tokens"]
    rows = [
        (key, f"{value}{marks.get(key, '')}")
        for key, value in told.items()
        if key not in ("mixture", "stand_ins")
    ]
    rows += [(f"mixture: {m['name']}", f"{m['share']:.0%}") for m in told["mixture"]]
    render.table(f"{name} {size}", ["field", "value"], rows, to_stdout=True)


def validate(
    file: Annotated[Path, typer.Argument(help="TOML: recipe fields at the top level.")],
    name: Annotated[str, typer.Option(help="Stage the fields are for.")] = "pretrain",
    size: Annotated[str, typer.Option(help="Model size the fields are for.")] = "7b",
    as_json: AsJson = False,
) -> None:
    """The recipe with the file's fields, or what is wrong with them."""
    import tomllib

    from codecria.core.training.recipes import override, recipe_for
    from codecria.data.errors import UsageError, UserError

    try:
        changes = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    told = _as_json(override(recipe_for(name, size), changes))
    if as_json:
        render.emit_json(told)
    else:
        render.note(f"{file} is sound for {name} {size}: {told['steps']:,} steps")


def _as_json(recipe: Any) -> dict[str, Any]:
    """A recipe's fields and derived numbers as JSON values."""
    from dataclasses import asdict

    return asdict(recipe) | {"steps": recipe.steps, "rows": recipe.rows}
