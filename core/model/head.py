"""The end of the network: hidden states to logits, or to the loss without holding all logits.

The output matrix is read here alone, within the model's `forward`. A sharded matrix is whole only
there, so nothing outside may multiply by it.

Shapes: B rows, T tokens, C = dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .loss import VocabularyPart, masked_cross_entropy


@dataclass(frozen=True, slots=True)
class Targets:
    """What the loss of a forward pass is taken over.

    Attributes:
        ids: (B,T) the next token at each place, IGNORE where there is no loss.
        count: the number of targets that the sum of losses is divided by; that of the whole step,
            so that micro-batches and devices add up to its mean.
    """

    ids: Tensor
    count: int


class Head(nn.Module):
    """Multiplies hidden states by the output matrix.

    It holds no weight: the matrix is passed in, as it is the embedding in tied models.
    """

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Targets | None = None,
        part: VocabularyPart | None = None,
        new_rows: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, or with targets the loss.

        Args:
            hidden: (B,T,C) after the final norm; (...,C) for logits.
            weight: (V,C) output matrix.
            targets: what to compute the loss of.
            part: which rows of the matrix `weight` has, where processes share them.
            new_rows: (n,C) that stand for the last rows of the matrix, with targets.

        Returns:
            (...,V) float32 logits; or the loss, a float32 scalar with gradient, and the (B T,)
            losses of the tokens in nats, without gradient and zero where there is no target.
        """
        if targets is None:
            return F.linear(hidden, weight).float()
        return _loss(hidden, weight, targets, part, new_rows)


def _chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Targets,
    part: VocabularyPart | None,
    new_rows: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss in the type that matrix products are computed in, see `Head`."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return masked_cross_entropy(
            hidden.flatten(0, 1),
            weight,
            targets.ids.flatten(),
            count=targets.count,
            part=part,
            new_rows=new_rows,
        )


_loss: Callable[
    [Tensor, Tensor, Targets, VocabularyPart | None, Tensor | None], tuple[Tensor, Tensor]
] = _chunked_loss


def leave_uncompiled() -> None:
    """Keep torch.compile out of the loss: its loop reuses two buffers, and its count changes.

    `transformer.compiled` calls it, see `spans.leave_uncompiled`.
    """
    global _loss
    _loss = torch.compiler.disable(_chunked_loss)  # type: ignore[no-untyped-call]
