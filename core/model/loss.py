"""Cross-entropy of the next token without ever holding all logits.

The logits of a batch are its largest tensor by far (4,096 tokens of a 32,000-piece vocabulary: half
a gigabyte in float32, and twice that again in backward). Here the output matrix is applied to a
chunk of tokens at a time, and the chunk's gradient is taken at once, while its logits are in cache.

With tensor parallelism each process has a part of the vocabulary's rows (tensor_parallel.py): it
scores those, and three numbers a token go between the processes.

Shapes: N tokens, C = dim, V vocabulary, or this process's part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from codecria.data.rows.rows import IGNORE

CHUNK_BYTES = 32 << 20  # logits of one chunk in float32


def chunk_rows(vocab_size: int) -> int:
    """Tokens whose float32 logits fill one chunk; at least 64, so that products stay efficient."""
    return max(64, CHUNK_BYTES // (4 * vocab_size))


@dataclass(frozen=True, slots=True)
class VocabularyPart:
    """The rows of the output matrix that this process has, of a group that shares them.

    Attributes:
        start: its first id.
        rows: how many ids it has.
        total: how many all have together.
        group: the processes.
    """

    start: int
    rows: int
    total: int
    group: distributed.ProcessGroup


def vocabulary_part(vocab_size: int, rank: int, group: distributed.ProcessGroup) -> VocabularyPart:
    """The part of a vocabulary that one process of a group has, as DTensor cuts.

    All but the last have V / n ids, rounded up; the last may have fewer.
    """
    share = -(-vocab_size // group.size())
    start = min(rank * share, vocab_size)
    return VocabularyPart(start, min(share, vocab_size - start), vocab_size, group)


def _losses_of_all(z: Tensor, t: Tensor, p: Tensor) -> Tensor:
    """The losses of a chunk that has scores of the whole vocabulary.

    Args:
        z: (n,V) scores.
        t: (n,1) targets, any id where there is none.
        p: (n,V) float32, where d loss / d z = softmax - onehot goes.

    Returns:
        (n,1) losses in nats.
    """
    torch.softmax(z, -1, dtype=p.dtype, out=p)
    # log sum exp z = z_i - log p_i for any i; the best i keeps p_i above 1 / V.
    best, where = z.max(-1, keepdim=True)
    lse = best.to(p.dtype) - p.gather(1, where).log_()
    losses = lse - z.gather(1, t).to(p.dtype)
    p.scatter_add_(1, t, p.new_full((), -1.0).expand(t.shape))
    return losses


def _losses_of_part(z: Tensor, t: Tensor, p: Tensor, part: VocabularyPart) -> Tensor:
    """The losses of a chunk whose scores are of a part of the vocabulary, see `_losses_of_all`."""
    own = t - part.start
    known = (own >= 0) & (own < part.rows)
    own = own.clamp(0, part.rows - 1)
    best = z.max(-1, keepdim=True)[0].to(p.dtype)
    distributed.all_reduce(best, op=distributed.ReduceOp.MAX, group=part.group)
    torch.sub(z, best, out=p).exp_()
    scores = torch.where(known, z.gather(1, own).to(p.dtype), 0.0)
    sums = torch.cat((p.sum(-1, keepdim=True), scores), dim=1)
    distributed.all_reduce(sums, group=part.group)
    total, score = sums[:, :1], sums[:, 1:]
    p.div_(total).scatter_add_(1, own, -known.to(p.dtype))
    losses: Tensor = best + total.log() - score
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over counted tokens, with its gradients computed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float,
        part: VocabularyPart | None,
        new_rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        N, V = len(targets), len(weight)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(N, dtype=exact, device=hidden.device)
        # Of the matrix all rows are trained, or the last alone, or none.
        first = V if new_rows is None else V - len(new_rows)
        trained = weight if new_rows is None else new_rows
        with_weight = ctx.needs_input_grad[1] or ctx.needs_input_grad[5]
        with_grad = ctx.needs_input_grad[0] or with_weight
        matrix = weight.to(hidden.dtype)
        if new_rows is not None:
            matrix = torch.cat([matrix[:first], new_rows.to(hidden.dtype)])
        grad_hidden = torch.empty_like(hidden) if with_grad else None
        grad_weight = torch.zeros_like(trained, dtype=exact) if with_weight else None
        rows = min(chunk_rows(V), N)
        # One pair of buffers serves every chunk: fresh ones would be mapped page by page each time.
        scores = hidden.new_empty(rows, V)
        shares = torch.empty(rows, V, dtype=exact, device=hidden.device)
        for start in range(0, N, rows):
            chunk = slice(start, min(start + rows, N))
            h, t = hidden[chunk], targets[chunk]
            size = len(t)
            counted = (t != IGNORE).unsqueeze(1)
            safe = t.clamp(min=0).unsqueeze(1)
            z, p = scores[:size], shares[:size]
            torch.mm(h, matrix.T, out=z)
            found = (
                _losses_of_all(z, safe, p) if part is None else _losses_of_part(z, safe, p, part)
            )
            losses[chunk] = (found * counted).squeeze(1)
            if grad_hidden is not None:
                # d loss / d z = p - onehot; the scale and the mask go onto the narrow factors.
                grad = p.to(hidden.dtype)
                factor = (counted * scale).to(hidden.dtype)
                torch.mul(grad @ matrix, factor, out=grad_hidden[chunk])
                if grad_weight is None:
                    continue
                if new_rows is not None:
                    grad = grad[:, first:]
                if hidden.dtype == exact:
                    grad_weight.addmm_(grad.T, h * factor)
                else:
                    grad_weight += (grad.T @ (h * factor)).float()
        ctx.for_rows = new_rows is not None
        ctx.save_for_backward(
            grad_hidden, None if grad_weight is None else grad_weight.to(trained.dtype)
        )
        ctx.mark_non_differentiable(losses)
        return losses.sum() * scale, losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad: Tensor,
        grad_losses: Tensor,  # noqa: ARG004
    ) -> tuple[Tensor, Tensor | None, None, None, None, Tensor | None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight.mul_(grad)
        both = (None, grad_weight) if ctx.for_rows else (grad_weight, None)
        return grad_hidden.mul_(grad), both[0], None, None, None, both[1]


def masked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    count: int,
    part: VocabularyPart | None = None,
    new_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean loss over the counted targets, the mean taken over `count` of them.

    Pass the count of the whole step, not of this micro-batch: then the sum over micro-batches (and
    devices) is the step's mean, and masks need no special case.

    Args:
        hidden: (N,C) hidden states after the final norm.
        weight: (V,C) output matrix, or the part of it that this process has.
        targets: (N,) the next token's id, IGNORE where there is no loss.
        count: what the sum is divided by.
        part: which part that is. Every process of its group calls this on the same tokens; the
            loss is the whole one in each, the gradient of `hidden` that of its part alone.
        new_rows: (n,C) that stand for the last rows of `weight`; they get the gradient. Of a part
            that has none of them, n is 0.

    Returns:
        the loss, a float32 scalar with gradient (backward may be called once: its buffers are
        reused), and the (N,) per-token losses in nats, without gradient and zero where ignored.
    """
    loss, losses = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, 1.0 / max(count, 1), part, new_rows
    )
    return loss, losses
