"""Cross-entropy of the next token without ever holding all logits.

The logits of a batch are its largest tensor by far (4,096 tokens of a 32,000-piece vocabulary: half
a gigabyte in float32, and twice that again in backward). Here the output matrix is applied to a
chunk of tokens at a time, and the chunk's gradient is taken at once, while its logits are in cache.

Shapes: N tokens, C = dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from codecria.data.rows import IGNORE

CHUNK_BYTES = 32 << 20  # logits of one chunk in float32


def chunk_rows(vocab_size: int) -> int:
    """Tokens whose float32 logits fill one chunk; at least 64, so that products stay efficient."""
    return max(64, CHUNK_BYTES // (4 * vocab_size))


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over counted tokens, with its gradients computed in forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        losses = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
        with_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        matrix = weight.to(hidden.dtype)
        if with_grad:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(targets), step := chunk_rows(len(weight))):
            part = slice(start, start + step)
            h, t = hidden[part], targets[part]
            counted = t != IGNORE
            safe = t.clamp(min=0).unsqueeze(1)
            log_p = torch.log_softmax((h @ matrix.T).float(), dim=-1)
            losses[part] = log_p.gather(1, safe).squeeze(1).neg_() * counted
            if with_grad:
                # d loss / d logits = softmax - onehot, zero where the target does not count.
                grad = log_p.exp_()
                grad.scatter_add_(1, safe, grad.new_full((), -1.0).expand(safe.shape))
                grad.mul_(counted.unsqueeze(1) * scale)
                grad = grad.to(hidden.dtype)
                torch.mm(grad, matrix, out=grad_hidden[part])
                if hidden.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, h)
                else:
                    grad_weight += (grad.T @ h).float()
        if with_grad:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(losses)
        return losses.sum() * scale, losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad: Tensor,
        grad_losses: Tensor,  # noqa: ARG004
    ) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None, None


def masked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, count: int
) -> tuple[Tensor, Tensor]:
    """Mean loss over the counted targets, the mean taken over `count` of them.

    Pass the count of the whole step, not of this micro-batch: then the sum over micro-batches (and
    devices) is the step's mean, and masks need no special case.

    Args:
        hidden: (N,C) hidden states after the final norm.
        weight: (V,C) output matrix.
        targets: (N,) the next token's id, IGNORE where there is no loss.
        count: what the sum is divided by.

    Returns:
        the loss, a float32 scalar with gradient (backward may be called once: its buffers are
        reused), and the (N,) per-token losses in nats, without gradient and zero where ignored.
    """
    loss, losses = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, 1.0 / max(count, 1)
    )
    return loss, losses
