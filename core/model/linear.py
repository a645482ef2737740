"""The one linear layer of the model: in full precision, the seam for quantised and sharded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """A matrix product without bias, as everywhere in Llama (PAPER section 1).

    Args:
        in_features: width of the input.
        out_features: width of the output; `weight` is (out_features, in_features).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight)
