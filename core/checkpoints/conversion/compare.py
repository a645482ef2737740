"""The comparison of a conversion's result with its source: shape, end ids, weights, logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from codecria.core.checkpoints import parity
from codecria.core.checkpoints.adapters.weights import MergedWeights, UnmergedWeights
from codecria.core.checkpoints.formats.layout import shapes_of
from codecria.core.checkpoints.formats.weights import Weights
from codecria.core.model.config import ModelConfig
from codecria.core.native.packing import PackedKind
from codecria.data.errors import UserError
from codecria.data.progress import Progress

from .plan import Plan, Report

# How far logits may be apart, relative to their size. Without a change of type only the order of
# sums differs; otherwise each weight is rounded by up to 2^-9 (bfloat16) or 1/254 (q8) of the
# largest beside it, and layers add it up. In 4 bits an untrained model's differ by half their size
# (measured), unrelated ones by 1.4 times.
TOLERANCE_SAME, TOLERANCE_ROUNDED, TOLERANCE_Q4 = 1e-3, 0.1, 1.0
# How far a row may be moved, relative to its length. In 8 bits: half a step of each value beside
# one that has 127. In 4 bits 0.35 likewise, and more where the error lies in inputs that are worth
# little. Another row's error is about 1.4.
_ROWS = 1024  # compared at once
ROW_TOLERANCE: Mapping[PackedKind, float] = {"q8": 0.025, "q4": 0.8}


def compare(
    plan: Plan, result: Weights, config: ModelConfig, ends: Collection[int], report: Report
) -> dict[str, Any]:
    """Read the result back and compare it with the source.

    Args:
        plan: what was to be written.
        result: weights of the result.
        config, ends: shape and end ids read back from it.
        report: called with the progress.

    Returns:
        JSON values: how many weights were compared, whether bit for bit, and how far the logits
        are apart.

    Raises:
        UserError: they differ.
    """
    if config != plan.config:
        declared, meant = asdict(config), asdict(plan.config)
        names = [n for n in declared if declared[n] != meant[n]]
        raise _differs("; ".join(f"{n} came back as {declared[n]}, not {meant[n]}" for n in names))
    if set(ends) != set(plan.ends):
        raise _differs(f"its end ids are {sorted(ends)}, the source's {sorted(plan.ends)}")
    problems = result.problems(config)
    if problems:
        raise _differs("; ".join(problems[:3]))
    shapes = shapes_of(config)
    for done, ours in enumerate(shapes, start=1):
        _compare_weight(plan, ours, result)
        report(Progress(stage="comparing", done=done, total=len(shapes)))
    facts: dict[str, Any] = {"weights": len(shapes), "exact": plan.kind is None}
    if not plan.request.verify:
        return facts
    facts |= _compare_logits(plan, result, report)
    if isinstance(plan.source.weights, MergedWeights):
        facts["adapter"] = _compare_adapter(plan, plan.source.weights, result)
    return facts


def _compare_weight(plan: Plan, ours: str, result: Weights) -> None:
    expected = plan.weight(ours, result.rotary_order)
    with result.borrow(ours) as found:
        kind = plan.packed.get(ours)
        if kind is not None:
            sound = all(
                _near(found[rows : rows + _ROWS], expected[rows : rows + _ROWS], kind)
                for rows in range(0, len(expected), _ROWS)
            )
        else:
            # Norms are float32 in GGUF; widening changes nothing.
            common = torch.promote_types(found.dtype, expected.dtype)
            sound = torch.equal(found.to(common), expected.to(common))
    if not sound:
        raise _differs(f"{result.name(ours)} is not what was written")


def _near(found: Tensor, expected: Tensor, kind: PackedKind) -> bool:
    """Whether quantised rows are those that were meant: (R,C) each."""
    wanted = expected.float()
    error = (found - wanted).norm(dim=1)
    return bool((error <= ROW_TOLERANCE[kind] * wanted.norm(dim=1) + 1e-6).all())


def _compare_logits(plan: Plan, result: Weights, report: Report) -> dict[str, Any]:
    ids, positions = parity.prompts(plan.config, plan.tokenizer)
    layers = plan.config.n_layers
    scores = []
    for number, weights in enumerate((plan.source.weights, result)):
        view = parity.View(config=plan.config, rotary_order=weights.rotary_order)
        offset = number * layers

        def on_layer(layer: int, offset: int = offset) -> None:
            report(Progress(stage="logits", done=offset + layer + 1, total=2 * layers))

        scores += parity.logits(weights, [view], ids, positions, on_layer)
    found = parity.difference(*scores)
    stored = plan.source.weights.stored
    same = plan.kind is None and all(
        stored[n].dtype == str(d).removeprefix("torch.") for n, d in plan.dtypes.items()
    )
    limit = TOLERANCE_SAME if same else TOLERANCE_ROUNDED
    if plan.kind == "q4":
        limit = TOLERANCE_Q4
    if not found.relative <= limit:  # also where it is not a number
        raise _differs(
            f"logits are {found.relative:.2g} apart relative to their size, {limit:g} is allowed"
        )
    return {"prompts": len(ids), "tokens": ids.numel(), "logits": asdict(found)}


def _compare_adapter(plan: Plan, source: MergedWeights, result: Weights) -> dict[str, Any]:
    """How far the merged model is from its base with the adapter beside it.

    Returns:
        JSON values: `effect` is what the adapter changes, `gap` what merging does, both as the
        norm of the logits' difference over their norm; `gap_four_bits` is the gap to the model that
        was trained, where that had its base in 4 bits.

    Raises:
        UserError: merging changed what the model computes.
    """
    ids, positions = parity.prompts(plan.config, plan.tokenizer)
    view = parity.View(config=plan.config, rotary_order="half_split")
    beside = UnmergedWeights(source)
    pairs = source.adapter.pairs
    (bare,) = parity.logits(beside, [view], ids, positions)
    (adapted,) = parity.logits(beside, [view], ids, positions, pairs=pairs)
    own = parity.View(config=plan.config, rotary_order=result.rotary_order)
    (merged,) = parity.logits(result, [own], ids, positions)
    facts = {
        "effect": parity.difference(bare, adapted).relative,
        "gap": parity.difference(adapted, merged).relative,
    }
    exact = plan.kind is None and {str(d) for d in plan.dtypes.values()} <= {"torch.float32"}
    limit = TOLERANCE_SAME if exact else TOLERANCE_ROUNDED
    if not facts["gap"] <= limit:
        raise _differs(
            f"merged, its logits are {facts['gap']:.2g} from those of base and adapter relative to"
            f" their size, {limit:g} is allowed"
        )
    if source.adapter.base.get("four_bits"):
        trained = UnmergedWeights(source, four_bits=True)
        (seen,) = parity.logits(trained, [view], ids, positions, pairs=pairs)
        facts["gap_four_bits"] = parity.difference(seen, merged).relative
    return facts


def _differs(why: str) -> UserError:
    return UserError(
        f"the result does not compute what the source does: {why}",
        hint="nothing was kept; please report this with the source's config",
    )
