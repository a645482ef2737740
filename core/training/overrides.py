"""A recipe with fields replaced: what `--set`, `--tokens`, `--steps` and TOML files ask for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from codecria.core.model.config import SMALL_MODELS, preset
from codecria.data.errors import UsageError
from codecria.data.quantities import parse_count

from .recipes import Recipe, recipe_for, warmup_for

_FIXED = {"name", "size", "summary", "source", "follows", "mixture", "stand_ins"}
CHANGEABLE = sorted({f.name for f in fields(Recipe)} - _FIXED)  # what `--set` can change


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with fields replaced, values given as text or as parsed TOML.

    When the length of a small recipe's run changes and its warm-up is not given, the warm-up
    follows by the same rule.

    Raises:
        UsageError: naming every unknown field, wrong type and violated condition.
    """
    unknown = sorted(changes.keys() - {*CHANGEABLE})
    if unknown:
        near = get_close_matches(unknown[0], CHANGEABLE, 1)
        raise UsageError(
            f"a recipe has no field {', '.join(map(repr, unknown))}",
            hint=f"did you mean {near[0]}?" if near else "fields: " + ", ".join(CHANGEABLE),
        )
    values = {key: _parsed(key, value) for key, value in changes.items()}
    try:
        changed = TypeAdapter(Recipe).validate_python(asdict(recipe) | values)
    except ValidationError as error:
        raise UsageError("; ".join(_wrong(found) for found in error.errors())) from error
    if changed.lora_rank and not recipe.lora_rank:
        changed = replace(changed, **adapter_defaults(changed, changes))
    if recipe.size in SMALL_MODELS and "warmup_steps" not in changes:
        changed = replace(changed, warmup_steps=warmup_for(changed.steps))
    problems = changed.problems()
    if problems:
        raise UsageError("; ".join(problems), hint=f"in the recipe {recipe.name} {recipe.size}")
    return changed


_WANTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}


def _wrong(found: ErrorDetails) -> str:
    """What is wrong with a field's value, of those that validation found."""
    wanted = _WANTED.get(found["type"]) or found.get("ctx", {}).get("expected")
    why = f"is not {wanted}" if wanted else f"is refused: {found['msg']}"
    return f"{found['loc'][0]} = {found['input']!r} {why}"


def adapter_defaults(recipe: Recipe, given: Collection[str]) -> dict[str, Any]:
    """What training an adapter changes of a recipe, beyond what is given.

    LoRA Without Regret (Schulman et al. 2025): ten times the rate of full fine-tuning, which of
    Llamas is about 5e-5 (2000 / width)^0.781, and no weight decay. Rates of pretraining are higher
    than that: they are cut to ten times it.
    """
    highest = 10 * 5e-5 * (2_000 / preset(recipe.size).dim) ** 0.781
    rate = float(f"{min(10 * recipe.peak_lr, highest):.2g}")
    values = {"peak_lr": rate, "weight_decay": 0.0, "warmup_steps": warmup_for(recipe.steps)}
    return {name: value for name, value in values.items() if name not in given}


def _parsed(field: str, value: Any) -> Any:
    """A field's value in the form that validation takes: counts such as 64K as numbers."""
    if field == "betas":
        return _split(value)
    if isinstance(value, str) and Recipe.__annotations__[field].split(" ")[0] == "int":
        # Anything else than a count is for validation to refuse, with the field's name.
        with suppress(UsageError):
            return parse_count(value)
    return value


def requested(
    name: str, size: str, changes: Mapping[str, Any], *, tokens: int | None, steps: int | None
) -> Recipe:
    """A recipe with fields replaced, for so many tokens or steps where either is given.

    Raises:
        UsageError: there is none, or the changes do not go together.
    """
    recipe = recipe_for(name, size)
    changes = dict(changes)
    if tokens is not None:
        changes["tokens"] = tokens
    if steps is not None:
        # The batch may be among the changes: ask for it before turning steps into tokens.
        changes["tokens"] = steps * override(recipe, changes).batch_tokens
    return override(recipe, changes)


def _split(value: Any) -> Any:
    """Betas written as "0.9,0.95"."""
    return value.split(",") if isinstance(value, str) else value
