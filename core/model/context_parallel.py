"""Context parallelism: the processes of a group share the tokens of each row.

A row is cut into twice as many chunks as there are processes, and each has one from the head and
one from the tail: a late token sees many keys and an early one few, so all have as much to do.

    4 processes     0 1 2 3 3 2 1 0         inputs, targets and positions are cut alike

A layer's keys and values are gathered from all processes, in the order of the row, and each
process attends from its own queries to those it may see. In backward, the gradients of keys and
values are summed and each process gets those of its own tokens.

Shapes: P processes, B rows, T tokens of a row, t = T / P of this process, c = T / 2P of a chunk,
H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from codecria.data.rows.rows import Ids

from .spans import Backend, Span, SpanAttention

# PyTorch 2.13 renamed both; the older names still work there, with a warning.
_all_gather = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)
_reduce_scatter = getattr(distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor)


@dataclass(frozen=True, slots=True)
class ContextSplit:
    """This process's share of each row.

    Attributes:
        rank: its number in the group, from 0.
        size: P.
        group: the processes that share the rows.
    """

    rank: int
    size: int
    group: distributed.ProcessGroup | None

    def chunks(self, T: int) -> tuple[int, int]:
        """Where its two chunks of c tokens begin in a row of T."""
        assert T % (2 * self.size) == 0, f"{T} tokens in {2 * self.size} chunks"
        c = T // (2 * self.size)
        return self.rank * c, (2 * self.size - 1 - self.rank) * c

    def places(self, T: int) -> Ids:
        """(t,) its places in a row of T tokens.

        >>> ContextSplit(1, 2, None).places(8).tolist()
        [2, 3, 4, 5]
        """
        c = T // (2 * self.size)
        found: Ids = np.concatenate([np.arange(a, a + c) for a in self.chunks(T)])
        return found

    def spans(self, rows: Sequence[Sequence[int]]) -> list[Span]:
        """What its queries see: see `SpanAttention`.

        Args:
            rows: the lengths of the stretches that attention stays within, of each row.
        """
        T = sum(rows[0])
        c = T // (2 * self.size)
        found = []
        for n, lengths in enumerate(rows):
            stops = list(itertools.accumulate(lengths))
            for half, chunk in enumerate(self.chunks(T)):
                place = n * 2 * c + half * c - chunk  # of a query, less its place in the row
                for start, stop in zip([0, *stops], stops, strict=False):
                    a, b = max(start, chunk), min(stop, chunk + c)
                    if a < b:
                        found.append((place + a, place + b, n * T + start, n * T + a))
        return found


class _Gather(torch.autograd.Function):
    """Keys and values of this process's tokens to those of all: (2,B,t,K,D) -> (2,B,T,K,D)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, split: ContextSplit) -> Tensor:
        ctx.split = split
        P, (_, B, t, K, D) = split.size, own.shape
        parts = own.new_empty(P, 2, B, 2, t // 2, K, D)
        _all_gather(parts.view(-1), own.contiguous().view(-1), group=split.group)
        heads, tails = parts.unbind(3)
        chunks = torch.cat((heads, tails.flip(0)))  # (2P,2,B,c,K,D) in the order of the row
        return chunks.permute(1, 2, 0, 3, 4, 5).reshape(2, B, P * t, K, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        P, (_, B, T, K, D) = ctx.split.size, grad.shape
        chunks = grad.view(2, B, 2 * P, T // (2 * P), K, D).permute(2, 0, 1, 3, 4, 5)
        parts = torch.stack((chunks[:P], chunks[P:].flip(0)), dim=3).contiguous()
        own = grad.new_empty(2, B, T // P, K, D)
        _reduce_scatter(own.view(-1), parts.view(-1), group=ctx.split.group)
        return own, None


class SplitAttention:
    """Attention of this process's queries to the keys of whole rows, see `PackedAttention`.

    Args:
        split: this process's share.
        rows: the lengths of the stretches that attention stays within, of each row.
        backend: the kernel.
    """

    def __init__(
        self, split: ContextSplit, rows: Sequence[Sequence[int]], backend: Backend
    ) -> None:
        self.split = split
        self.within = SpanAttention(split.spans(rows), backend)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """(B,t,H,D), (B,t,K,D), (B,t,K,D) -> (B,t,H,D)."""
        return _gathered(self, q, k, v)


def _gather_and_attend(attend: SplitAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    both: Tensor = _Gather.apply(torch.stack((k, v)), attend.split)  # type: ignore[no-untyped-call]
    return attend.within(q, *both.unbind(0))


_gathered: Callable[[SplitAttention, Tensor, Tensor, Tensor], Tensor] = _gather_and_attend


def leave_uncompiled() -> None:
    """Keep torch.compile out of what is sent between processes, see `spans.leave_uncompiled`."""
    global _gathered
    _gathered = torch.compiler.disable(_gather_and_attend)  # type: ignore[no-untyped-call]
