"""What a step takes on each of several devices, between which a run's weights are split.

As `parallel.shard` does it: a device keeps its part of each weight, gradient and moment in float32.
A layer's weights are gathered before its forward and again before its backward, those outside of
the layers once a pass; gradients are summed after each pass. Every figure is a function of shapes:
no device is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codecria.core.model.config import ModelConfig
from codecria.data.errors import UsageError

from .plan import memory_bytes
from .recipes import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """A way to compute that fits a device.

    Attributes:
        micro_batch_size: rows of one forward pass.
        recompute: whether activations are recomputed in backward.
    """

    micro_batch_size: int
    recompute: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadPlan:
    """What a step takes on each device.

    Attributes:
        devices: how many share the run.
        micro_batch_size, recompute, dtype: how each computes.
        memory: bytes on a device, by part.
        gathered, reduced: bytes that a device receives of weights, and sends of gradients, a step.
        device_memory: bytes that a device has; None if unknown.
        fitting: the largest micro-batch that fits it; None if none does, or it is unknown.
    """

    devices: int
    micro_batch_size: int
    recompute: bool
    dtype: str
    memory: Mapping[str, int]
    gathered: int
    reduced: int
    device_memory: int | None
    fitting: Fitting | None

    @property
    def fits(self) -> bool | None:
        """Whether a device holds it; None if its memory is unknown."""
        return None if self.device_memory is None else needed(self.memory) <= self.device_memory

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        fitting = self.fitting
        return {
            "devices": self.devices,
            "micro_batch_size": self.micro_batch_size,
            "recompute": self.recompute,
            "dtype": self.dtype,
            "memory_bytes": dict(self.memory) | {"total": sum(self.memory.values())},
            "needed_bytes": needed(self.memory),
            "gathered_bytes": self.gathered,
            "reduced_bytes": self.reduced,
            "device_memory": self.device_memory,
            "fits": self.fits,
            "fitting": None
            if fitting is None
            else {"micro_batch_size": fitting.micro_batch_size, "recompute": fitting.recompute},
        }


def needed(memory: Mapping[str, int]) -> int:
    """Bytes that a device needs: eager execution keeps activations about twice (`memory_bytes`)."""
    return sum(memory.values()) + memory["activations"]


def layer_parameters(config: ModelConfig) -> tuple[int, int]:
    """Weights of one layer, and those outside of the layers: embedding, last norm, output."""
    outside = config.vocab_size * config.dim * (1 if config.tied else 2) + config.dim
    return (config.parameters - outside) // config.n_layers, outside


def spread_memory(
    config: ModelConfig,
    context: int,
    micro_batch_size: int,
    dtype: str,
    *,
    devices: int,
    recompute: bool,
) -> dict[str, int]:
    """Bytes of a step on each of `devices`, by part.

    Gathered are the weights outside of the layers, from forward to the end of backward, and two
    layers (one in use, the next on its way), with the gradients of one layer before and in their
    sum, and the embedding's. In bfloat16, backward needs each matrix's whole copy from forward on,
    2 bytes a weight, which no number of devices makes smaller; where activations are recomputed, a
    layer's copies and the output's live only as long as they are used.

    Args:
        config, context, micro_batch_size, dtype, recompute: as in `memory_bytes`.
        devices: how many share the run.
    """
    alone = memory_bytes(config, context, micro_batch_size, dtype, recompute=recompute)
    layer, outside = layer_parameters(config)
    split = {
        part: -(-alone[part] // devices) for part in ("weights", "gradients", "optimizer moments")
    }
    if devices > 1:
        split["gathered weights"] = 4 * (outside + 2 * layer)
        split["gathered gradients"] = 4 * (2 * layer + config.vocab_size * config.dim)
    if dtype == "bfloat16":
        layers = 1 if recompute else config.n_layers
        split["bfloat16 copies"] = 2 * (layers * layer + config.vocab_size * config.dim)
    return split | {"activations": alone["activations"], "loss chunks": alone["loss chunks"]}


def link_bytes(config: ModelConfig, *, devices: int, passes: int) -> tuple[int, int]:
    """Bytes of a step that a device receives of weights (all-gather), and sends of gradients
    (reduce-scatter), in float32.

    Args:
        config: the shape.
        devices: how many share the run.
        passes: forward and backward passes of a step on each.
    """
    layer, outside = layer_parameters(config)
    layers = config.n_layers * layer
    gathered = 4 * (2 * layers + outside) * (devices - 1) // devices
    reduced = 4 * (layers + outside) * (devices - 1) // devices
    return passes * gathered, passes * reduced


def plan_spread(
    recipe: Recipe,
    config: ModelConfig,
    *,
    devices: int,
    device_memory: int | None,
    micro_batch_size: int,
    dtype: str,
    recompute: bool,
) -> SpreadPlan:
    """Plan a step on several devices.

    Raises:
        UsageError: the batch cannot be shared equally.
    """
    if recipe.rows % devices:
        raise UsageError(
            f"a batch of {recipe.rows} rows cannot be shared equally by {devices} devices",
            hint=f"use a divisor of {recipe.rows}, or --set batch_tokens",
        )
    share = recipe.rows // devices

    def memory(way: Fitting) -> dict[str, int]:
        return spread_memory(
            config,
            recipe.context,
            way.micro_batch_size,
            dtype,
            devices=devices,
            recompute=way.recompute,
        )

    asked = Fitting(micro_batch_size=min(micro_batch_size, share), recompute=recompute)
    ways = [
        Fitting(micro_batch_size=rows, recompute=again)
        for again in (False, True)
        for rows in range(share, 0, -1)
        if share % rows == 0
    ]
    fitting = None
    if device_memory is not None:
        fitting = next((way for way in ways if needed(memory(way)) <= device_memory), None)
    gathered, reduced = link_bytes(
        config, devices=devices, passes=-(-share // asked.micro_batch_size)
    )
    return SpreadPlan(
        devices=devices,
        micro_batch_size=asked.micro_batch_size,
        recompute=recompute,
        dtype=dtype,
        memory=memory(asked),
        gathered=gathered,
        reduced=reduced,
        device_memory=device_memory,
        fitting=fitting,
    )
