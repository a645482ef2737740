"""The loss of a batch of rows: one function for training, validation and evaluation.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codecria.data.rows.loader import Batch
from codecria.data.rows.rows import IGNORE, KINDS

from .attention import Attend, PackedAttention, pack_offsets
from .context_parallel import ContextSplit, SplitAttention
from .head import Targets
from .spans import Backend


def batch_loss(
    forward: Callable[..., Any],
    batch: Batch,
    *,
    device: torch.device,
    backend: Backend,
    count: int = 1,
    split: ContextSplit | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and that of each of its targets.

    Args:
        forward: a `Transformer`, or what torch.compile makes of it.
        batch: B rows of T tokens, whose segments say what attention crosses.
        device: where the model is.
        backend: the attention kernel.
        count: what the sum of the losses is divided by.
        split: the places of the rows that the batch holds, where processes share its rows; each of
            them calls this.

    Returns:
        the loss, a float32 scalar with gradient, and (B T,) losses in nats, zero where there is no
        target.
    """
    ids, positions, targets = (
        torch.from_numpy(array).to(device, torch.int64)
        for array in (batch.ids, batch.positions, batch.targets)
    )
    attend: Attend
    if split is not None:
        whole = [(ids.shape[1] * split.size,)] * len(ids)
        attend = SplitAttention(split, batch.segments or whole, backend)
    else:
        offsets = None
        if batch.segments is not None:
            offsets = pack_offsets(batch.segments, size=ids.numel() + 1)
        attend = PackedAttention(offsets, backend)
    loss, each = forward(ids, positions, attend, Targets(targets, count))
    return loss, each


def loss_by_kind(each: Tensor, batch: Batch) -> Tensor:
    """The sum of losses and the count of targets, of plain, PSM and SPM text and dialogs: (4,2).

    Args:
        each: (B T,) losses in nats, zero where there is no target.
        batch: the rows they are of.
    """
    kinds = torch.from_numpy(batch.kinds).flatten().to(each.device)
    counted = torch.from_numpy(batch.targets != IGNORE).flatten().to(each.device)
    sums = []
    for kind in range(KINDS):
        here = kinds == kind
        sums.append(torch.stack([(each * here).double().sum(), (counted & here).double().sum()]))
    return torch.stack(sums)


def mean_loss(by_kind: Tensor, kinds: slice) -> float | None:
    """The mean loss in nats over the targets of some kinds, None where there are none."""
    total, count = by_kind[kinds].sum(0).tolist()
    return total / count if count else None
