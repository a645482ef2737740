"""`PrepareRecipe`: everything besides the sources that decides what the shards hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from codecria.data.errors import UsageError

from . import filters
from .near import DEFAULT as DEFAULT_NEAR
from .near import Near
from .units import MAX_RECORD_BYTES

OPTIONS_OF_THEIR_OWN = ("tokenizer", "vocab_size", "benchmarks")  # not for --set


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRecipe:
    """Everything besides the sources that decides what the shards hold.

    In JSON the filters' settings stand beside the other fields, each under its key.

    Attributes:
        filters: the settings of each filter of `filters.FILTERS`, by key.
        benchmarks: digest of the problems to keep out, or None for none.
        dedup: "near" (and exact), "exact" or "none".
        near: what counts as a near-duplicate.
        group_by: "none" makes one shard set, "source", "kind" and "language" one of each.
        validation_share: of the documents, by hash of their text; each source with two documents
            or more gives at least one. 0 makes no validation split.
        seed: random seed of the shuffle.
        shard_bytes: of text, in a shard.
        tokenizer: digest of the model given, or None to train one.
        vocab_size: pieces of a tokenizer trained here.
        sample_bytes: of text that the tokenizer is trained on, at most.
    """

    filters: Mapping[str, Any] = field(default_factory=filters.defaults)
    benchmarks: str | None = None
    dedup: Literal["near", "exact", "none"] = "near"
    near: Near = DEFAULT_NEAR
    group_by: Literal["none", "source", "kind", "language"] = "none"
    validation_share: float = 0.005
    seed: int = 0
    shard_bytes: int = 256 << 20
    tokenizer: str | None = None
    vocab_size: int | None = None
    sample_bytes: int = 64 << 20

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: naming the field and its range.
        """
        if not 0 <= self.validation_share <= 0.5:
            raise ValueError(f"validation_share is {self.validation_share}, not within 0 and 0.5")
        for name in ("shard_bytes", "sample_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not at least 1")

    @property
    def max_bytes(self) -> int:
        """Larger files are not opened."""
        limits = self.filters[filters.QualityLimits.key]
        return limits.max_bytes if limits else MAX_RECORD_BYTES

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON, the filters' settings among them."""
        chosen = {key: filters.plain(settings) for key, settings in self.filters.items()}
        names = (f.name for f in fields(self) if f.name != "filters")
        return chosen | {name: filters.plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The recipe that `to_json` gave; filters that it does not name have their defaults.

        Raises:
            UsageError: a value does not fit its field, or there is no such field.
        """
        rest = dict(values)
        chosen: dict[str, Any] = {}
        name = ""
        try:
            for each in filters.FILTERS:
                name = each.key
                value = rest.pop(each.key) if each.key in rest else filters.plain(each.default)
                chosen[each.key] = TypeAdapter(each.kind).validate_python(value)
            name = ""
            return TypeAdapter(cls).validate_python({**rest, "filters": chosen})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join([*([name] if name else ()), *map(str, first["loc"])])
            raise UsageError(
                f"--set {place or 'values'}: {first['msg']}",
                hint="the fields are listed in docs/prepare-data.md",
            ) from error


def field_names() -> list[str]:
    """Every field that `override` knows, dotted."""

    def leaves(value: Any, name: str) -> list[str]:
        if not isinstance(value, dict):
            return [name]
        below = (leaves(inner, f"{name}.{key}" if name else key) for key, inner in value.items())
        return [leaf for each in below for leaf in each]

    names = leaves(PrepareRecipe().to_json(), "")
    return [name for name in names if name not in OPTIONS_OF_THEIR_OWN]


def override(recipe: PrepareRecipe, settings: Sequence[str]) -> PrepareRecipe:
    """The recipe with `KEY=VALUE` settings applied; keys may be dotted, values are JSON or text.

    Raises:
        UsageError: a setting has no `=`, names no field, or its value does not fit.
    """
    values = recipe.to_json()
    fixed = {name: values.pop(name) for name in OPTIONS_OF_THEIR_OWN}
    for setting in settings:
        key, separator, written = setting.partition("=")
        *parents, name = key.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not separator or not isinstance(place, dict) or name not in place:
            known = list(place if isinstance(place, dict) else values)
            near = get_close_matches(name, known, n=1)
            raise UsageError(
                f"--set {setting}: the recipe has no such field",
                hint=(f"did you mean {near[0]}? " if near else "") + "fields: " + ", ".join(known),
            )
        try:
            place[name] = json.loads(written)
        except ValueError:
            place[name] = written
    return PrepareRecipe.from_json(values | fixed)
