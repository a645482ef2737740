"""A base model and its adapter as a checkpoint's weights, merged one at a time as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from codecria.core.checkpoints.formats.layout import (
    EMBEDDING,
    OUTPUT,
    RotaryOrder,
    reordered,
    rotary_heads,
    shapes_of,
)
from codecria.core.checkpoints.formats.weights import FLOATS, Stored, Weights
from codecria.core.model.config import ModelConfig

from .folder import CONFIG_NAME, WEIGHTS_NAME, Adapter
from .merge import check_base, merged, narrowed, sample, sampled_names, widened

if TYPE_CHECKING:
    from torch import Tensor


class MergedWeights(Weights):
    """The weights of a base with an adapter merged into them, in the base's types.

    Args:
        base: weights of the base model.
        base_config: its shape.
        adapter: opened.
        config: the shape of the adapted model.
    """

    rotary_order: RotaryOrder = "half_split"
    mapped = False

    def __init__(
        self, base: Weights, base_config: ModelConfig, adapter: Adapter, config: ModelConfig
    ) -> None:
        self.base = base
        self.base_config = base_config
        self.adapter = adapter
        self.config = config
        # The configuration scales what the weights hold.
        self.files = [*base.files, adapter.folder / CONFIG_NAME, adapter.folder / WEIGHTS_NAME]
        self.readable = base.readable | FLOATS
        stored = {
            name: Stored(
                (config.vocab_size, *part.shape[1:]) if name in (EMBEDDING, OUTPUT) else part.shape,
                # Blocks cannot be changed by themselves: merged, they are float32.
                part.dtype if part.dtype in FLOATS else "float32",
            )
            for name, part in base.stored.items()
        }
        if not config.tied and base_config.tied:
            stored[OUTPUT] = stored[EMBEDDING]
        self.stored = stored

    def name(self, ours: str) -> str:
        """What the base's format calls it."""
        return self.base.name(ours)

    def of_base(self, ours: str) -> npt.NDArray[Any]:
        """The base's own, where it has one; a tied output matrix is the embedding."""
        own = EMBEDDING if ours == OUTPUT and self.base_config.tied else ours
        heads = rotary_heads(own, self.base_config)
        array = self.base.array(own)
        return reordered(array, heads, source=self.base.rotary_order, target=self.rotary_order)

    def touches(self, ours: str) -> bool:
        """Whether the adapter changes a weight."""
        grows = self.config.vocab_size > self.base_config.vocab_size
        return (
            ours in self.adapter.pairs
            or ours in self.adapter.rows
            or (grows and ours in (EMBEDDING, OUTPUT))
            or (ours == OUTPUT and self.base_config.tied)
        )

    def array(self, ours: str) -> npt.NDArray[Any]:
        """A merged weight in the base's type, in the order that our model uses; no PyTorch.

        Raises:
            UserError: the file that holds the base's is damaged.
        """
        array = self.of_base(ours)
        if not self.touches(ours):
            return array
        dtype = self.stored[ours].dtype
        result = merged(ours, widened(array, dtype), self.adapter, self.config.vocab_size)
        return narrowed(result, dtype)

    def raw(self, ours: str) -> Tensor:
        """The same as a tensor.

        Raises:
            UserError: as `array`.
        """
        import torch

        if not self.touches(ours):
            return self.base.read(ours, self.base_config)
        tensor = torch.from_numpy(self.array(ours))
        return tensor.view(torch.bfloat16) if self.stored[ours].dtype == "bfloat16" else tensor

    @contextmanager
    def borrow(self, ours: str) -> Iterator[Tensor]:
        """`raw` for the length of a block; what is mapped from the base is given back."""
        if self.touches(ours):
            yield self.raw(ours)
            return
        with self.base.borrow(ours) as raw:
            yield self.base.ordered(raw, ours, self.base_config, self.rotary_order)


class UnmergedWeights(MergedWeights):
    """The same with the matrices of the layers as the base has them: the pairs lie beside them.

    Args:
        merged: the weights of the adapted model.
        four_bits: the layers' matrices as training in 4 bits saw them.
    """

    def __init__(self, merged: MergedWeights, *, four_bits: bool = False) -> None:
        self.four_bits = four_bits
        super().__init__(merged.base, merged.base_config, merged.adapter, merged.config)

    def raw(self, ours: str) -> Tensor:
        """A weight of the base; the embedding and the output matrix with their rows replaced.

        Raises:
            UserError: the file that holds it is damaged.
        """
        import torch

        from codecria.core.model.four_bits import dequantise, quantise

        if ours in (EMBEDDING, OUTPUT):
            without = replace(self.adapter, pairs={})
            table = widened(self.of_base(ours), self.stored[ours].dtype)
            return torch.from_numpy(merged(ours, table, without, self.config.vocab_size))
        weight = self.base.read(ours, self.base_config)
        if self.four_bits and weight.ndim == 2:
            return dequantise(*quantise(weight), tuple(weight.shape), torch.float32)
        return weight

    def touches(self, ours: str) -> bool:  # noqa: ARG002 - what `raw` makes is not mapped
        """Whether `raw` makes a weight of its own."""
        return True


def base_sample(weights: Weights, config: ModelConfig) -> dict[str, list[float]]:
    """A few values of a base, by which it is recognised, see `merge.sample`."""
    names = sampled_names(name for name in shapes_of(config) if name in weights.stored)
    # The first row has the same place in either order of pairs.
    rows = {name: widened(weights.array(name)[:1], weights.stored[name].dtype) for name in names}
    return sample(rows.items())


def adapted(
    base: Weights, base_config: ModelConfig, adapter: Adapter, where: str
) -> tuple[ModelConfig, MergedWeights]:
    """The shape and the weights of a base with its adapter.

    Args:
        base, base_config: of the base model.
        adapter: opened.
        where: the base, for messages.

    Raises:
        UserError: the adapter belongs to another model.
    """
    config = adapter.config(base_config)
    check_base(adapter, base_sample(base, base_config), where)
    return config, MergedWeights(base, base_config, adapter, config)
