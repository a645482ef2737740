"""`codecria recipes`: the numbers of every training stage, and checks of override files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import render
from .commands import QuickGroup
from .options import AsJson, complete_recipes, complete_sizes

HELP = """Show the numbers of every training stage, or check a file that overrides them.

Examples:
  codecria recipes list
  codecria recipes show lcft 7b
  codecria recipes validate my.toml --name fim --size 15m
"""

SHOW_HELP = """Show every field of a recipe, and which figures the paper does not give.

Example: codecria recipes show pretrain 7b
"""

VALIDATE_HELP = """Check a TOML file of recipe fields against a recipe.

Example: codecria recipes validate my.toml --name pretrain --size 7b
"""


def register(app: typer.Typer) -> None:
    """Add the group and its three verbs to the command line."""
    group = typer.Typer(help=HELP, no_args_is_help=True, cls=QuickGroup)
    group.command("list", help="List all recipes with their main figures.")(list_recipes)
    group.command("show", help=SHOW_HELP)(show)
    group.command("validate", help=VALIDATE_HELP)(validate)
    app.add_typer(group, name="recipes")


def list_recipes(as_json: AsJson = False) -> None:
    """Print one row for each recipe."""
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
    name: Annotated[
        str, typer.Argument(help="Recipe, such as pretrain.", autocompletion=complete_recipes)
    ],
    size: Annotated[
        str, typer.Argument(help="Model size, such as 7b.", autocompletion=complete_sizes)
    ],
    as_json: AsJson = False,
) -> None:
    """Print every field of one recipe."""
    from codecria.core.training.recipes import recipe_for

    fields = _as_json(recipe_for(name, size))
    if as_json:
        render.emit_json(fields)
        return
    marks = dict.fromkeys(fields["stand_ins"], "  (not in the paper: a stand-in)")
    if "tokens" in marks:
        marks["steps"] = marks["tokens"]
    if "batch_tokens" in marks:
        marks["rows"] = marks["batch_tokens"]
    rows = [
        (key, f"{value}{marks.get(key, '')}")
        for key, value in fields.items()
        if key not in ("mixture", "stand_ins")
    ]
    rows += [(f"mixture: {m['name']}", f"{m['share']:.0%}") for m in fields["mixture"]]
    render.table(f"{name} {size}", ["field", "value"], rows, to_stdout=True)


def validate(
    file: Annotated[Path, typer.Argument(help="TOML file with recipe fields at its top level.")],
    name: Annotated[
        str, typer.Option(help="Recipe to check against.", autocompletion=complete_recipes)
    ] = "pretrain",
    size: Annotated[
        str, typer.Option(help="Model size to check against.", autocompletion=complete_sizes)
    ] = "7b",
    as_json: AsJson = False,
) -> None:
    """Apply the file's fields to the recipe; report what is wrong with them."""
    import tomllib

    from codecria.core.training.overrides import override
    from codecria.core.training.recipes import recipe_for
    from codecria.data.errors import UsageError, UserError

    try:
        changes = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    fields = _as_json(override(recipe_for(name, size), changes))
    if as_json:
        render.emit_json(fields)
    else:
        render.note(f"{file} is valid for {name} {size}: {fields['steps']:,} steps")


def _as_json(recipe: Any) -> dict[str, Any]:
    """A recipe's fields and derived numbers as JSON values."""
    from dataclasses import asdict

    return asdict(recipe) | {"steps": recipe.steps, "rows": recipe.rows}
