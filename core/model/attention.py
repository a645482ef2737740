"""The one attention seam: who sees whom, and with which kernel it is computed.

Training packs documents into rows; a query sees the keys of its own document up to itself:

    row      a a a b b c c c         documents a, b, c
             x . . . . . . .         offsets 0 3 5 8: every border, the batch's rows laid end to end
             x x . . . . . .
             x x x . . . . .         without offsets the whole row counts as one document
             . . . x . . . .
             . . . x x . . .
             . . . . . x . .
             . . . . . x x .
             . . . . . x x x

No mask is ever materialised. On a CPU each document is one call of PyTorch's flash kernel, inside
a custom operator that torch.compile does not look into, so documents of any length share one
compiled graph. On CUDA xformers' block-diagonal mask does the same. Generation reads a key-value
cache (core/inference/cache.py): a chunk of a prompt sees the whole past
and, causally, itself; one decoded token sees its sequence's past.

Shapes: B batch, T tokens, S cached tokens, H query heads, K key-value heads, D head dimension,
M = B * T packed tokens.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, library
from torch.nn import functional as F

from codecria.data.errors import UserError

Backend = Literal["sdpa", "xformers"]


class Attend(Protocol):
    """How one layer's queries meet keys: (B,T,H,D), (B,T,K,D), (B,T,K,D) -> (B,T,H,D)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend in layer number `layer`."""
        ...


def choose_backend(device: torch.device, requested: str = "auto") -> tuple[Backend, str]:
    """The attention backend for a device, and why it was chosen.

    Args:
        device: where the model runs.
        requested: "auto", "sdpa" or "xformers".

    Returns:
        the backend and one sentence that says why.

    Raises:
        UserError: the requested backend does not exist or cannot run here.
    """
    if requested not in ("auto", "sdpa", "xformers"):
        raise UserError(
            f"there is no attention backend {requested!r}", hint="choose auto, sdpa or xformers"
        )
    if requested == "sdpa":
        return "sdpa", "asked for"
    if device.type != "cuda":
        if requested == "xformers":
            raise UserError(
                f"xformers has no attention kernel for {device.type}", hint="use --attention sdpa"
            )
        return "sdpa", f"PyTorch's flash kernel: xformers has none for {device.type}"
    try:
        _xformers()
    except ImportError as error:
        if requested == "xformers":
            raise UserError(
                f"xformers cannot be imported: {error}",
                hint="pip install 'xformers>=0.0.34,<0.0.36'",
            ) from error
        return "sdpa", f"xformers cannot be imported: {error}"
    _leave_uncompiled()
    return "xformers", "the block-diagonal kernels of xformers"


def _xformers() -> Any:
    """xformers' attention module, imported late: it costs seconds and exists on few platforms."""
    # Its compiled extras are not used here; a build for another CUDA warns of them in five lines.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers.ops import fmha

    return fmha


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Attention while training: causal within each document of the packed batch.

    Attributes:
        offsets: (N,) int32, every document's border in the batch's rows laid end to end, first 0,
            last M, then padded with M to any length; None makes each row one document.
        backend: the kernel, from `choose_backend`.
    """

    offsets: Tensor | None
    backend: Backend = "sdpa"

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """(B,T,H,D), (B,T,K,D), (B,T,K,D) -> (B,T,H,D)."""
        B, T, H, D = q.shape
        k, v = repeat_heads(k, H), repeat_heads(v, H)
        if self.backend == "xformers":
            packed: Tensor = _packed(q, k, v, self.offsets)
            return packed
        if self.offsets is None:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        if q.device.type != "cpu":
            return _loop_over_documents(q, k, v, self.offsets)
        flat = (B * T, H, D)
        out: Tensor = segment_attention(
            q.reshape(flat), k.reshape(flat), v.reshape(flat), self.offsets
        )[0]
        return out.view(B, T, H, D)


def pack_offsets(rows: list[list[int]] | tuple[tuple[int, ...], ...], *, size: int) -> Tensor:
    """The padded offsets of `PackedAttention` from each row's document lengths.

    Args:
        rows: for each row of the batch the lengths of its documents; their sum is T.
        size: length of the result. A constant one (M + 1 always suffices) keeps a compiled graph.

    Returns:
        (size,) int32 on the CPU: [0, 3, 5, 8, 8, 8] for [[3, 2, 3]] and size 6.
    """
    lengths = torch.tensor([n for row in rows for n in row], dtype=torch.int64)
    borders = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    assert len(borders) <= size, f"{len(borders)} borders do not fit {size} places"
    return F.pad(borders, (0, size - len(borders)), value=int(borders[-1])).to(torch.int32)


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """Repeat grouped key-value heads: (B,T,K,D) -> (B,T,H,D), each K serving H/K neighbours."""
    K = x.shape[2]
    return x if n_heads == K else x.repeat_interleave(n_heads // K, dim=2)


def _segments(offsets: Tensor) -> list[tuple[int, int]]:
    """The non-empty [start, stop) spans between neighbouring offsets."""
    borders = offsets.tolist()
    return [(a, b) for a, b in itertools.pairwise(borders) if b > a]


@library.custom_op("codecria::segment_attention", mutates_args=())
def segment_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention within each span of a packed sequence, on a CPU.

    Args:
        q, k, v: (M,H,D), all with the same heads.
        offsets: the spans' borders, see `PackedAttention`.

    Returns:
        out (M,H,D), and the log-sum-exp of each query's scores (H,M), which backward needs.
    """
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)
    for a, b in _segments(offsets):
        o, s = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(x[a:b].transpose(0, 1).unsqueeze(0) for x in (q, k, v)), 0.0, True
        )
        out[a:b] = o[0].transpose(0, 1)
        lse[:, a:b] = s[0]
    return out, lse


@library.custom_op("codecria::segment_attention_backward", mutates_args=())
def _segment_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `segment_attention` for q, k and v, span by span."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for a, b in _segments(offsets):
        g, qs, ks, vs, os = (x[a:b].transpose(0, 1).unsqueeze(0) for x in (grad, q, k, v, out))
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, qs, ks, vs, os, lse[:, a:b].unsqueeze(0).contiguous(), 0.0, True
        )
        for target, value in zip((dq, dk, dv), grads, strict=True):
            target[a:b] = value[0].transpose(0, 1)
    return dq, dk, dv


@segment_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@_segment_attention_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,  # noqa: ARG001
    lse: Tensor,  # noqa: ARG001
    offsets: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)


def _backward(
    ctx: Any,
    grad_out: Tensor,
    grad_lse: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, None]:
    q, k, v, out, lse, offsets = ctx.saved_tensors
    grads = _segment_attention_backward(grad_out.contiguous(), q, k, v, out, lse, offsets)
    return (*grads, None)


segment_attention.register_autograd(_backward, setup_context=_remember)


def _loop_over_documents(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """The same as `segment_attention` with PyTorch's public function, where xformers is absent."""
    B, T, H, D = q.shape
    q, k, v = (x.reshape(B * T, H, D) for x in (q, k, v))
    parts = []
    for a, b in _segments(offsets):
        qs, ks, vs = (x[a:b].transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1,H,b-a,D)
        parts.append(F.scaled_dot_product_attention(qs, ks, vs, is_causal=True)[0].transpose(0, 1))
    return torch.cat(parts).view(B, T, H, D)


def _xformers_packed(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None) -> Tensor:
    """Packed causal attention by xformers, forward and backward."""
    B, T, H, D = q.shape
    packed = (x.reshape(1, B * T, H, D) for x in (q, k, v))
    mask = xformers_mask(B, T, offsets)
    out: Tensor = _xformers().memory_efficient_attention(*packed, attn_bias=mask)
    return out.view(B, T, H, D)


_packed: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = _xformers_packed


def _leave_uncompiled() -> None:
    """Keep torch.compile out of the xformers call.

    When the backend is chosen, not as a decorator: that would load the whole compiler, two seconds,
    for every command.
    """
    global _packed
    _packed = torch.compiler.disable(_xformers_packed)  # type: ignore[no-untyped-call]


def xformers_mask(B: int, T: int, offsets: Tensor | None) -> Any:
    """xformers' block-diagonal causal mask of B packed rows of T tokens.

    Args:
        B, T: rows and tokens of the batch.
        offsets: the documents' borders, see `PackedAttention`; None makes each row one document.
    """
    lengths = [T] * B if offsets is None else [b - a for a, b in _segments(offsets)]
    return _xformers().attn_bias.BlockDiagonalCausalMask.from_seqlens(lengths)


def attend_with_past(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """A chunk of a prompt: every query sees the `past` and, causally, its own chunk.

    The two parts are computed apart by the flash kernel and joined by their log-sum-exp, so memory
    stays linear in the chunk however long the past is. For inference only: no gradient.

    Args:
        q: (B,T,H,D), the chunk's queries.
        k, v: (B,K,S,D) in the cache's order, S = past + T.
        past: number of keys before the chunk.

    Returns:
        (B,T,H,D)
    """
    H = q.shape[2]
    q = q.transpose(1, 2)
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    if past == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    out_own, lse_own = _flash(q, k[:, :, past:], v[:, :, past:], is_causal=True)
    out_before, lse_before = _flash(q, k[:, :, :past], v[:, :, :past], is_causal=False)
    total = torch.logaddexp(lse_own, lse_before)  # (B,H,T)
    out = out_own * (lse_own - total).exp().unsqueeze(-1) + out_before * (
        lse_before - total
    ).exp().unsqueeze(-1)
    return out.to(q.dtype).transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Flash attention that also returns its log-sum-exp: (B,H,T,D) float32 and (B,H,T)."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal
        )
    else:
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal
        )[:2]
        lse = lse[:, :, : q.shape[2]]  # this kernel pads it to a multiple of 32
    return out.float(), lse


def attend_one(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """One decoded token a sequence against its cached keys.

    The query heads of one key-value head stand as queries of one call, so grouped-query attention
    reads each key once.

    Args:
        q: (B,1,H,D).
        k, v: (B,K,S,D), the cache up to the longest sequence, the new token included.
        lengths: (B,) how many keys each sequence has; None when all have S.

    Returns:
        (B,1,H,D)
    """
    B, _, H, D = q.shape
    K, S = k.shape[1], k.shape[2]
    mask = None
    if lengths is not None:
        mask = (torch.arange(S, device=q.device) < lengths.view(B, 1)).view(B, 1, 1, S)
    out = F.scaled_dot_product_attention(q.view(B, K, H // K, D), k, v, attn_mask=mask)
    return out.reshape(B, 1, H, D)
