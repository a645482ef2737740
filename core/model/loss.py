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

from codecria.data.rows.rows import IGNORE

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
        N, V = len(targets), len(weight)
        losses = torch.empty(N, dtype=torch.float32, device=hidden.device)
        with_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        matrix = weight.to(hidden.dtype)
        if with_grad:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        rows = min(chunk_rows(V), N)
        # One pair of buffers serves every chunk: fresh ones would be mapped page by page each time.
        scores = hidden.new_empty(rows, V)
        shares = torch.empty(rows, V, dtype=torch.float32, device=hidden.device)
        for start in range(0, N, rows):
            part = slice(start, min(start + rows, N))
            h, t = hidden[part], targets[part]
            size = len(t)
            counted = (t != IGNORE).unsqueeze(1)
            safe = t.clamp(min=0).unsqueeze(1)
            z, p = scores[:size], shares[:size]
            torch.mm(h, matrix.T, out=z)
            torch.softmax(z, -1, dtype=torch.float32, out=p)
            # log sum exp z = z_i - log p_i for any i; the best i keeps p_i above 1 / V.
            best, where = z.max(-1, keepdim=True)
            lse = best.float() - p.gather(1, where).log_()
            losses[part] = ((lse - z.gather(1, safe).float()) * counted).squeeze(1)
            if with_grad:
                # d loss / d z = p - onehot; the scale and the mask go onto the narrow factors.
                p.scatter_add_(1, safe, p.new_full((), -1.0).expand(safe.shape))
                grad = p.to(hidden.dtype)
                factor = (counted * scale).to(hidden.dtype)
                torch.mul(grad @ matrix, factor, out=grad_hidden[part])
                if hidden.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, h * factor)
                else:
                    grad_weight += (grad.T @ (h * factor)).float()
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
