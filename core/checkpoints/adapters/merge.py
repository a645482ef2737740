"""Merged weights: what a base matrix and its adapter make together, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from codecria.core.checkpoints.formats.layout import EMBEDDING, OUTPUT
from codecria.data.errors import UserError

from .folder import Adapter, Array

SAMPLED, EACH = 64, 8  # weights of a base that are sampled, and values of each
SAME_WITHIN = 0.01  # relative: what rounding to another type changes; other models differ by more


def merged(ours: str, weight: npt.NDArray[np.floating], adapter: Adapter, vocab_size: int) -> Array:
    """One weight of the adapted model, in float32: its rows replaced, and scale B A added.

    An engine that knows no adapters asks for each weight by name as it loads:

        weights = {name: merged(name, base[name], adapter, V) for name in shapes_of(config)}

    Args:
        ours: our name of the weight.
        weight: of the base, rows of wq and wk in the half-split order.
        adapter: opened.
        vocab_size: rows of the embedding and the output matrix in the adapted model.
    """
    result = np.asarray(weight, dtype=np.float32)
    if ours in (EMBEDDING, OUTPUT) and len(result) < vocab_size:
        grown = np.zeros((vocab_size, result.shape[1]), dtype=np.float32)
        grown[: len(result)] = result
        result = grown
    if (replaced := adapter.rows.get(ours)) is not None:
        ids, values = replaced
        result = result.copy()
        result[ids] = values
    if (pair := adapter.pairs.get(ours)) is not None:
        result = result + np.float32(pair.scale) * (pair.b @ pair.a)
    return result


def widened(array: npt.NDArray[Any], dtype: str) -> Array:
    """A stored weight in float32.

    Args:
        array: from `Weights.array`: bfloat16 as the bits of its values.
        dtype: as stored.
    """
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, dtype=np.float32)


def narrowed(array: Array, dtype: str) -> npt.NDArray[Any]:
    """The inverse of `widened`, rounded to the nearest even."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return array.astype(dtype, copy=False)


def sample(weights: Iterable[tuple[str, npt.NDArray[np.floating]]]) -> dict[str, list[float]]:
    """A few values of a few weights, by which a base is recognised in any type.

    Args:
        weights: our name and content of each sampled weight, see `sampled_names`.
    """
    return {
        name: [float(f"{value:.6g}") for value in np.ravel(weight[..., :EACH])[:EACH].tolist()]
        for name, weight in weights
    }


def sampled_names(names: Iterable[str]) -> list[str]:
    """Up to `SAMPLED` of the names of a model's weights, spread evenly."""
    listed = list(names)
    step = max(1, -(-len(listed) // SAMPLED))
    return listed[::step]


def check_base(adapter: Adapter, found: Mapping[str, list[float]], base: str) -> None:
    """Check by the recorded sample that a base is the one that the adapter was trained from.

    Args:
        adapter: opened; one made elsewhere records nothing, and passes.
        found: a sample of the base.
        base: its name, for the message.

    Raises:
        UserError: it is another model.
    """
    recorded = adapter.base.get("sample")
    if not isinstance(recorded, dict) or recorded.keys() != found.keys():
        return
    one = np.concatenate([np.array(recorded[name]) for name in recorded])
    other = np.concatenate([np.array(found[name]) for name in recorded])
    if not np.linalg.norm(one - other) <= SAME_WITHIN * np.linalg.norm(one):
        raise UserError(
            f"{adapter.folder} was trained from another model than {base}",
            hint=f"name the base it was trained from: {adapter.base.get('path', 'not recorded')}",
        )
