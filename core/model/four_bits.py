"""Matrices in 4 bits: blocks of 64 values, each a code into 16 levels and a scale of its block.

    block       w0 w1 w2 w3 ... w63                    float
    scale       max |w|                                float16
    codes       w0 | w1 << 4, w2 | w3 << 4, ...        32 bytes; each the nearest of the levels

4.25 bits a value. The levels are those of NF4 (QLoRA, Dettmers et al. 2023, appendix E): quantiles
of the normal distribution, so that each is used about equally often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 64  # values of one scale, as in QLoRA
BITS = 4 + 16 / BLOCK  # of a value, its share of the scale included
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in 4 bits.

    Args:
        weight: of any shape and float type; values are taken in the order of its rows.

    Returns:
        (blocks, 32) uint8 codes and (blocks,) float16 scales; the last block is filled with zeros.
    """
    flat = weight.detach().float().flatten()
    flat = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1).clamp(max=65504.0).half()
    levels = torch.tensor(LEVELS, device=flat.device)
    borders = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(flat / scales.float().clamp_min(1e-12).unsqueeze(1), borders)
    pairs = codes.to(torch.uint8).view(-1, BLOCK // 2, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, scales


def dequantise(codes: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The matrix that codes and scales stand for, in a float type."""
    levels = torch.tensor(LEVELS, dtype=dtype, device=codes.device)
    # All 256 pairs of levels: one look-up gives two values.
    table = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], dim=1)
    values = F.embedding(codes.int(), table).flatten(1) * scales.to(dtype).unsqueeze(1)
    size = torch.Size(shape).numel()
    return values.flatten()[:size].view(shape)


class _Product(torch.autograd.Function):
    """x W^T with W in 4 bits; W is dequantised again in backward instead of being kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.shape = shape
        return F.linear(x, dequantise(codes, scales, shape, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        return grad @ dequantise(codes, scales, ctx.shape, grad.dtype), None, None, None


def linear(x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """(..., in) -> (..., out) with a frozen (out, in) matrix in 4 bits, as `F.linear` computes."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    product: Tensor = _Product.apply(x, codes, scales, shape)  # type: ignore[no-untyped-call]
    return product
