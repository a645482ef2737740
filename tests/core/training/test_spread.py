"""Plans for several devices: worked examples, the batch's shares, and what fits."""

from typing import Any

import pytest

from codecria.core.model.config import PAPER_MODELS, preset
from codecria.core.training.plan import memory_bytes
from codecria.core.training.recipes import RECIPES, recipe_for
from codecria.core.training.spread import (
    SpreadPlan,
    layer_parameters,
    link_bytes,
    needed,
    plan_spread,
    spread_memory,
)
from codecria.data.errors import UsageError
from codecria.data.quantities import parse_bytes


def plan(size: str, *, recipe: str = "pretrain", **changes: Any) -> SpreadPlan:
    options = {"devices": 64, "device_memory": 80 * 10**9, "micro_batch_size": 1}
    options |= {"dtype": "bfloat16", "recompute": True} | changes
    return plan_spread(recipe_for(recipe, size), preset(size), **options)


def test_the_parts_of_7b_on_64_devices() -> None:
    # A layer: 4 matrices of 4,096 x 4,096, 3 of 4,096 x 11,008, 2 norms. Outside: 2 x 32,016 rows.
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    vocabulary = 32_016 * 4096
    assert layer_parameters(preset("7b")) == (layer, 2 * vocabulary + 4096)
    memory = plan("7b").memory
    assert memory["weights"] == memory["gradients"] == 4 * 6_738_546_688 // 64
    assert memory["optimizer moments"] == 8 * 6_738_546_688 // 64
    assert memory["gathered weights"] == 4 * (2 * vocabulary + 4096 + 2 * layer)
    assert memory["gathered gradients"] == 4 * (2 * layer + vocabulary)
    assert memory["bfloat16 copies"] == 2 * (layer + vocabulary)
    kept = plan("7b", recompute=False).memory
    assert kept["bfloat16 copies"] == 2 * (32 * layer + vocabulary)


def test_a_pass_receives_layers_twice_and_sends_each_gradient_once() -> None:
    layer, outside = layer_parameters(preset("7b"))
    found = plan("7b", micro_batch_size=2)  # 1,024 rows: 16 a device, 8 passes
    assert found.gathered == 8 * (4 * (2 * 32 * layer + outside) * 63 // 64)
    assert found.reduced == 8 * (4 * (32 * layer + outside) * 63 // 64)
    assert link_bytes(preset("7b"), devices=1, passes=8) == (0, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_device_needs_what_the_plan_of_one_says(dtype: str) -> None:
    config = preset("7b")
    alone = memory_bytes(config, 4096, 2, dtype)
    split = spread_memory(config, 4096, 2, dtype, devices=1, recompute=False)
    assert {part: split[part] for part in alone} == alone
    assert set(split) - set(alone) == ({"bfloat16 copies"} if dtype == "bfloat16" else set())


PLANNED = [
    (recipe, size)
    for recipe, size in RECIPES
    if recipe in ("pretrain", "fim", "lcft", "instruct") and size in PAPER_MODELS
]


@pytest.mark.parametrize(("recipe", "size"), PLANNED)
def test_what_is_said_to_fit_fits_and_the_next_larger_does_not(recipe: str, size: str) -> None:
    found = plan(size, recipe=recipe, devices=16)
    fitting = found.fitting
    if fitting is None:
        assert not found.fits
        return
    how = {"micro_batch_size": fitting.micro_batch_size, "recompute": fitting.recompute}
    again = plan(size, recipe=recipe, devices=16, **how)
    assert again.fits
    assert needed(again.memory) <= 80 * 10**9
    if fitting.micro_batch_size < recipe_for(recipe, size).rows // 16:
        assert not plan(size, recipe=recipe, devices=16, **how | {"micro_batch_size": 10**9}).fits


def test_a_70b_fits_64_devices_of_80_gb_only_where_activations_are_recomputed() -> None:
    assert plan("70b").fits
    assert not plan("70b", recompute=False).fits
    assert plan("70b", devices=2).fitting is None


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UsageError, match="1024 rows cannot be shared equally by 3 devices"):
        plan("7b", devices=3)


@pytest.mark.parametrize("text", ["80GB", "80G", "80gb", "80e9", "80_000_000_000"])
def test_memory_is_written_as_people_write_it(text: str) -> None:
    assert parse_bytes(text) == 80 * 10**9
