"""What a run computes with, where the request leaves it open: type, compilation, batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from codecria.core import machine
from codecria.core.model.attention import choose_backend
from codecria.core.model.config import ModelConfig
from codecria.core.model.dtypes import DTYPES
from codecria.data.errors import UsageError, UserError

from .mesh import Mesh, parse_mesh
from .plan import training_seconds
from .recipes import Recipe
from .request import StageRequest, Switch
from .spread import Way, spread_memory

# Tokens of one forward pass on a CPU: more do not make products faster and cost memory.
CPU_MICRO_TOKENS = 8_192
CUDA_MICRO_TOKENS = 32_768

MEMORY_SHARE = 0.6  # of the device's; where a run would take more, activations are recomputed

# torch.compile costs 20 to 30 s at first and saved 2 to 23 % of a float32 step on two AVX2 cores,
# the more the smaller the model (docs/training.md). With bfloat16 products the rest of a step
# weighs more, and so does fusing it.
COMPILE_PAYS_AFTER_S = {"float32": 600.0, "bfloat16": 180.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run computes.

    Attributes:
        device: where it runs.
        dtype: of matrix products.
        peak_flops: measured matrix-product peak in that type, FLOP/s.
        micro_batch_size: rows of one forward pass.
        compiled: whether torch.compile is used.
        attention: the attention backend.
        why_attention: why that one.
        recompute: whether activations are recomputed in backward.
        accumulate: whether several processes sum gradients once a step, not once a pass.
    """

    device: torch.device
    dtype: str
    peak_flops: float
    micro_batch_size: int
    compiled: bool
    attention: str
    why_attention: str
    recompute: bool
    accumulate: bool = False


def settle(
    request: StageRequest, recipe: Recipe, model: ModelConfig, *, before: dict[str, Any]
) -> Settings:
    """Settle what the request leaves to the machine.

    Args:
        request: what was asked for.
        recipe, model: what is trained.
        before: what the run's earlier start settled (`run.json`), which it keeps; or empty.

    Raises:
        UserError: the machine lacks what was asked for.
        UsageError: a value is unknown, or does not go with the recipe.
    """
    device = machine.choose_device(request.device)
    dtype = _dtype(request.dtype, device)
    peak = machine.matmul_flops(DTYPES[dtype], device)
    attention, why = choose_backend(device, request.attention)
    micro_batch_size = _micro_batch_size(
        request.micro_batch_size, before.get("micro_batch_size"), recipe, device
    )
    flops = (
        model.training_flops(recipe.context, frozen=recipe.lora_rank > 0)
        * recipe.steps
        * recipe.batch_tokens
    )
    compiled = _switch("--compile", request.compile, before.get("compiled"))
    if compiled is None:
        seconds = training_seconds(flops, peak)
        pays = seconds is not None and seconds > COMPILE_PAYS_AFTER_S[dtype]
        compiled = pays and machine.compiler_available()
    elif request.compile == "on" and (problem := machine.compiler_problem()):
        raise UserError(f"--compile on: {problem}", hint="install one, or leave --compile away")
    recompute = _switch("--recompute", request.recompute, before.get("recompute"))
    if recompute is None:
        recompute = _needs_recompute(request, model, recipe, micro_batch_size, dtype, device)
    return Settings(
        device=device,
        dtype=dtype,
        peak_flops=peak,
        micro_batch_size=micro_batch_size,
        compiled=compiled,
        attention=attention,
        why_attention=why,
        recompute=recompute,
    )


def _dtype(requested: str, device: torch.device) -> str:
    if requested == "auto":
        return "bfloat16" if machine.bf16_pays(device) else "float32"
    if requested not in ("float32", "bfloat16"):
        raise UsageError(f"cannot train in {requested!r}", hint="use auto, float32 or bfloat16")
    return requested


def _switch(option: str, requested: Switch, before: bool | None) -> bool | None:
    """On, off, or None where neither the request nor the run's earlier start says."""
    if requested not in ("auto", "on", "off"):
        raise UsageError(f"{option} is {requested!r}", hint="use auto, on or off")
    # Measured peaks vary: a resumed run keeps what it began with.
    return before if requested == "auto" else requested == "on"


def _needs_recompute(
    request: StageRequest,
    model: ModelConfig,
    recipe: Recipe,
    micro_batch_size: int,
    dtype: str,
    device: torch.device,
) -> bool:
    """Whether a device's part of the step would take too much of its memory otherwise."""
    processes = machine.launched_processes()
    asked = None if processes == 1 else parse_mesh(request.mesh, processes)  # else for a plan
    mesh = asked or Mesh(dp=processes)
    way = Way(mesh=mesh, micro_batch_size=micro_batch_size, recompute=False, dtype=dtype)
    need = sum(spread_memory(model, recipe.context, way, recipe).values())
    return need > MEMORY_SHARE * memory_share(device)


def memory_share(device: torch.device) -> float:
    """Bytes of memory that this process may use: its GPU's, or its share of the machine's."""
    size = machine.memory_size(device)
    return size if device.type == "cuda" else size / machine.local_processes()


def _micro_batch_size(
    requested: int | None, before: int | None, recipe: Recipe, device: torch.device
) -> int:
    """Rows of one forward pass: asked for, as before, or the largest divisor that fits."""
    if requested is not None:
        if recipe.rows % requested:
            raise UsageError(
                f"--micro-batch-size {requested} does not divide the batch of {recipe.rows} rows",
                hint=f"use a divisor of {recipe.rows}",
            )
        return requested
    if before is not None and recipe.rows % before == 0:
        return before
    budget = CPU_MICRO_TOKENS if device.type == "cpu" else CUDA_MICRO_TOKENS
    fitting = max(1, budget // recipe.context)
    return max(n for n in range(1, min(fitting, recipe.rows) + 1) if recipe.rows % n == 0)
