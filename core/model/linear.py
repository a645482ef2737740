"""The one linear layer of the model: in full precision or 4 bits, with or without an adapter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import four_bits


class Linear(nn.Linear):
    """A matrix product without bias, as everywhere in Llama (PAPER section 1).

    With an adapter (LoRA, Hu et al. 2021) it computes W x + scale B (A x), where A is
    (rank, in_features) and B is (out_features, rank).

    Args:
        in_features: width of the input.
        out_features: width of the output; `weight` is (out_features, in_features).
    """

    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None
    codes: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        self.scale = 0.0
        self.quantised = False

    def reset_parameters(self) -> None:
        """Leave the weights unset: the model draws them, or reads them."""

    def adapt(self, a: Tensor, b: Tensor, scale: float) -> None:
        """Add an adapter: A is (rank, in_features), B (out_features, rank)."""
        assert a.shape == (b.shape[1], self.in_features), f"A {a.shape}, B {b.shape}"
        assert len(b) == self.out_features, f"B {b.shape} of {self.out_features} outputs"
        self.lora_a, self.lora_b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def quantise(self) -> None:
        """Keep the matrix in 4 bits from now on; it can no longer be trained."""
        codes, scales = four_bits.quantise(self.weight)
        del self.weight
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.quantised = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.quantised:
            shape = (self.out_features, self.in_features)
            y = four_bits.linear(x, self.codes, self.scales, shape)
        else:
            y = F.linear(x, self.weight)
        if self.lora_a is None or self.lora_b is None:
            return y
        return y + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


def fresh_adapter(
    in_features: int, out_features: int, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A and B of an adapter before training: A uniform, B zero, so that it changes nothing yet.

    A's bound of 1 / sqrt(in_features) is PEFT's (Kaiming's with a = sqrt(5)).
    """
    bound = 1 / math.sqrt(in_features)
    a = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(out_features, rank)
