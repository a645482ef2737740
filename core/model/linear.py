"""The one linear layer of the model: in full precision, the seam for quantised and sharded."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """A matrix product without bias, as everywhere in Llama (PAPER section 1).

    Args:
        in_features: width of the input.
        out_features: width of the output; `weight` is (out_features, in_features).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Leave the weights unset: the model draws them, or reads them."""
