"""Scaling of the rotary positions: what config.json says of it, and by what each frequency changes.

    none      frequency i is theta^(-2i/D)
    linear    divided by one factor: positions are closer together (Code Llama, section 2.4, cites
              it as the alternative to a larger theta)
    llama3    divided by a factor where the wave is long, kept where it is short, and between them
              in between (Llama 3.1's models)

Other kinds (yarn, dynamic, longrope) are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from codecria.data.errors import UserError

KEYS = ("rope_scaling", "rope_parameters")  # of transformers 4 and of 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling of the rotary frequencies, as config.json names its numbers.

    Attributes:
        factor: divides the frequencies of long waves.
        low_freq_factor: a wave is long above original_context / low_freq_factor tokens.
        high_freq_factor: a wave is short below original_context / high_freq_factor tokens.
        original_context: tokens the model was trained on before it was scaled.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: they make no sense together.
        """
        if not (
            1 <= self.factor < math.inf
            and 0 < self.low_freq_factor < self.high_freq_factor < math.inf
            and self.original_context >= 1
        ):
            raise UserError(
                f"llama3 rotary scaling with factor {self.factor}, low_freq_factor"
                f" {self.low_freq_factor}, high_freq_factor {self.high_freq_factor} and"
                f" original_max_position_embeddings {self.original_context} makes no sense",
                hint="it needs factor >= 1 and 0 < low_freq_factor < high_freq_factor",
            )

    @classmethod
    def from_hugging_face(cls, raw: Mapping[str, Any], *, where: str) -> Llama3Scaling:
        """Read the object of a config.json.

        Raises:
            UserError: a number is missing, or is none.
        """
        return cls(
            factor=_number(raw, "factor", where),
            low_freq_factor=_number(raw, "low_freq_factor", where),
            high_freq_factor=_number(raw, "high_freq_factor", where),
            original_context=int(_number(raw, "original_max_position_embeddings", where)),
        )

    def to_hugging_face(self) -> dict[str, Any]:
        """The object of a config.json."""
        return {
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_context,
        }


@cache
def llama3_divisors(scaling: Llama3Scaling, theta: float, head_dim: int) -> tuple[float, ...]:
    """(D/2,) what each rotary frequency is divided by, from 1 to the factor."""
    longest = scaling.original_context / scaling.low_freq_factor
    shortest = scaling.original_context / scaling.high_freq_factor
    divisors = []
    for pair in range(head_dim // 2):
        wave = 2 * math.pi * theta ** (2 * pair / head_dim)  # tokens of a whole turn
        if wave < shortest:
            divisors.append(1.0)
        elif wave > longest:
            divisors.append(scaling.factor)
        else:
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            kept = (scaling.original_context / wave - low) / (high - low)
            divisors.append(1 / ((1 - kept) / scaling.factor + kept))
    return tuple(divisors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """What a config.json says of rotary positions.

    Attributes:
        theta: base of the frequencies.
        scale: positions are divided by this; 1 is none.
        llama3: the other kind of scaling, or None.
    """

    theta: float
    scale: float = 1.0
    llama3: Llama3Scaling | None = None

    def to_hugging_face(self) -> dict[str, Any]:
        """The fields of config.json: for transformers 4, vLLM and llama.cpp, and for 5."""
        kind: dict[str, Any] = {"rope_type": "default"}
        if self.llama3 is not None:
            kind = self.llama3.to_hugging_face()
        elif self.scale != 1.0:
            kind = {"rope_type": "linear", "factor": self.scale}
        scaled = kind["rope_type"] != "default"
        return {
            "rope_theta": self.theta,
            "rope_scaling": {"type": kind["rope_type"]} | kind if scaled else None,
            "rope_parameters": kind | {"rope_theta": self.theta},
        }


def rope_of(raw: Mapping[str, Any], *, where: str) -> Rope:
    """Read the rotary positions of a config.json, of transformers 4 or 5.

    Args:
        raw: the parsed file.
        where: its path, for messages.

    Raises:
        UserError: the scaling is of another kind or incomplete, or two places disagree.
    """
    objects = {key: _object(raw, key, where) for key in KEYS if raw.get(key) not in (None, {})}
    thetas = {
        key: _number(of, "rope_theta", where)
        for key, of in (("rope_theta", raw), *objects.items())
        if of.get("rope_theta") is not None
    }
    theta = next(iter(thetas.values()), 1e4)  # transformers' own default
    kinds = {key: _kind(of, theta, f"{where}: {key}") for key, of in objects.items()}
    if len(set(thetas.values())) > 1:
        raise _disagree(where, {f"{k}'s rope_theta": f"{v:g}" for k, v in thetas.items()})
    if len(set(kinds.values())) > 1:
        raise _disagree(where, {key: _said(kind) for key, kind in kinds.items()})
    return next(iter(kinds.values()), Rope(theta=theta))


def _kind(of: Mapping[str, Any], theta: float, where: str) -> Rope:
    names = {of[key] for key in ("rope_type", "type") if of.get(key) is not None}
    if len(names) > 1:
        raise UserError(f"{where}: rope_type and type disagree", hint="write the same in both")
    kind = next(iter(names), "default")
    if kind == "llama3":
        return Rope(theta=theta, llama3=Llama3Scaling.from_hugging_face(of, where=where))
    if kind == "linear":
        return Rope(theta=theta, scale=_number(of, "factor", where))
    if kind != "default":
        raise UserError(
            f"{where}: rotary scaling {kind!r} is not supported, only none, 'linear' and 'llama3'",
            hint="the model would be read wrongly beyond its first positions",
        )
    if of.get("factor") not in (None, 1):
        raise UserError(
            f"{where}: factor {of['factor']!r} without a rope_type",
            hint='add "rope_type": "linear", or remove the factor',
        )
    return Rope(theta=theta)


def _said(rope: Rope) -> str:
    if rope.llama3 is not None:
        return f"llama3 by {rope.llama3.factor:g}"
    return "none" if rope.scale == 1.0 else f"linear by {rope.scale:g}"


def _disagree(where: str, said: Mapping[str, str]) -> UserError:
    return UserError(
        f"{where}: two places disagree on the rotary positions: "
        + ", ".join(f"{key} is {value}" for key, value in said.items()),
        hint="write the same in both, or remove one",
    )


def _object(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = raw[key]
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: {key} = {value!r} is not an object",
            hint='such as {"rope_type": "linear", "factor": 4.0}',
        )
    for inner in ("full_attention", "sliding_attention"):
        if inner in value:
            raise UserError(
                f"{where}: {key} differs by layer ({inner}), which no Llama 2 model has"
            )
    if value.get("partial_rotary_factor") not in (None, 1):
        raise UserError(
            f"{where}: partial_rotary_factor = {value['partial_rotary_factor']!r} is not part of"
            f" the Llama 2 architecture"
        )
    return value


def _number(raw: Mapping[str, Any], key: str, where: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        what = f"{key} is missing" if value is None else f"{key} = {value!r} is not a number"
        raise UserError(f"{where}: {what}")
    return float(value)
