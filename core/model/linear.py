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
        self.summed = False  # its input is split over processes, and their outputs are summed

    def reset_parameters(self) -> None:
        """Leave the weights unset: the model draws them, or reads them."""

    def adapt(self, a: Tensor, b: Tensor, scale: float) -> None:
        """Add an adapter: A is (rank, in_features), B (out_features, rank)."""
        assert a.shape == (b.shape[1], self.in_features), f"A {a.shape}, B {b.shape}"
        assert len(b) == self.out_features, f"B {b.shape} of {self.out_features} outputs"
        self.lora_a, self.lora_b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def make_four_bits(self) -> None:
        """Make place for the matrix in 4 bits instead of its own; it can no longer be trained."""
        blocks = -(-self.weight.numel() // four_bits.BLOCK)
        device = self.weight.device
        codes = torch.empty(blocks, four_bits.BLOCK // 2, dtype=torch.uint8, device=device)
        scales = torch.empty(blocks, dtype=torch.float16, device=device)
        del self.weight
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.quantised = True

    def quantise(self, weight: Tensor) -> None:
        """Put a matrix into 4 bits, in the place that `make_four_bits` made."""
        codes, scales = four_bits.quantise(weight)
        self.codes.copy_(codes)
        self.scales.copy_(scales)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.quantised:
            shape = (self.out_features, self.in_features)
            y = four_bits.linear(x, self.codes, self.scales, shape)
        else:
            y = _product(x, self.weight)
        if self.lora_a is None or self.lora_b is None:
            return y
        if self.summed:
            from .tensor_parallel import summed_adapter

            return y + summed_adapter(x, self.lora_a, self.lora_b, self.scale)
        return y + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T by one product of two matrices.

    PyTorch folds the rows and tokens of x only where W is trained or the strides of x invite it.
    Those of one row may differ when activations are computed again, which must give the same.
    """
    if weight.requires_grad or x.ndim < 3 or type(x) is not Tensor:
        return F.linear(x, weight)
    return F.linear(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)


def fresh_adapter(
    in_features: int, out_features: int, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A and B of an adapter before training: A uniform, B zero, so that it changes nothing yet.

    A's bound of 1 / sqrt(in_features) is PEFT's (Kaiming's with a = sqrt(5)).
    """
    bound = 1 / math.sqrt(in_features)
    a = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(out_features, rank)
