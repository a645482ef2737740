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
compiled graph. On CUDA xformers' block-diagonal mask does the same. What follows from the documents
alone is computed once a batch, not once a layer.

With grouped queries the CPU kernels read each key-value head in place, for all its query heads. On
CUDA the heads are copied: the backward of xformers takes no grouped heads.

Generation reads a key-value cache (core/inference/cache.py): a chunk of a prompt sees the whole
past and, causally, itself; decoded tokens see their sequence's past and each other's.

Shapes: B batch, T tokens, S cached tokens, H query heads, K key-value heads, D head dimension,
M = B * T packed tokens.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
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
    return "xformers", "the block-diagonal kernels of xformers"


def _xformers() -> Any:
    """xformers' attention module, imported late: it costs seconds and exists on few platforms."""
    # Its compiled extras are not used here; a build for another CUDA warns of them in five lines.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers.ops import fmha

    return fmha


class PackedAttention:
    """Attention while training: causal within each document of the packed batch.

    One object serves one batch, in all layers and both directions.

    Args:
        offsets: (N,) int32, every document's border in the batch's rows laid end to end, first 0,
            last M, then padded with M to any length; None makes each row one document.
        backend: the kernel, from `choose_backend`.
    """

    def __init__(self, offsets: Tensor | None, backend: Backend = "sdpa") -> None:
        self.offsets = offsets
        self.backend = backend
        self._spans: list[tuple[int, int]] | None = None
        self._mask: Any = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """(B,T,H,D), (B,T,K,D), (B,T,K,D) -> (B,T,H,D)."""
        B, T, H, D = q.shape
        K = k.shape[2]
        offsets = self.offsets
        if q.device.type != "cpu":
            k, v, K = repeat_heads(k, H), repeat_heads(v, H), H
            if self.backend == "xformers" or offsets is not None:
                return _documents_on_cuda(self, q, k, v)
        if offsets is None and K == H:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        if offsets is None:
            offsets = torch.arange(0, B * T + 1, T, dtype=torch.int32)
        out: Tensor = segment_attention(
            q.reshape(B * T, H, D), k.reshape(B * T, K, D), v.reshape(B * T, K, D), offsets
        )[0]
        return out.view(B, T, H, D)

    def spans(self, B: int, T: int) -> list[tuple[int, int]]:
        """The [start, stop) places of every document of B rows of T tokens."""
        if self._spans is None:
            whole = [(n * T, n * T + T) for n in range(B)]
            self._spans = whole if self.offsets is None else _segments(self.offsets)
        return self._spans

    def mask(self, B: int, T: int, device: torch.device) -> Any:
        """xformers' block-diagonal causal mask of B rows of T tokens."""
        if self._mask is None:
            lengths = [b - a for a, b in self.spans(B, T)]
            bias = _xformers().attn_bias.BlockDiagonalCausalMask
            self._mask = bias.from_seqlens(lengths, device=device)
        return self._mask


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
    last = int(torch.searchsorted(offsets, offsets[-1]))  # the rest is padding, often most of it
    borders = offsets[: last + 1].tolist()
    return [(a, b) for a, b in itertools.pairwise(borders) if b > a]


def _grouped(x: Tensor, K: int, G: int) -> Tensor:
    """One document's heads as the kernel takes them, keys in place: (n,H or K,D) -> (K,G,n,D)."""
    n, heads, D = x.shape
    return x.view(n, K, heads // K, D).permute(1, 2, 0, 3).expand(K, G, n, D)


def _ungrouped(x: Tensor) -> Tensor:
    """The reverse: (K,G,n,D) -> (n,K G,D)."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


@library.custom_op("codecria::segment_attention", mutates_args=())
def segment_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention within each span of a packed sequence, on a CPU.

    Args:
        q: (M,H,D).
        k, v: (M,K,D), each of their heads serving H/K neighbouring query heads.
        offsets: the spans' borders, see `PackedAttention`.

    Returns:
        out (M,H,D), and the log-sum-exp of each query's scores (H,M), which backward needs.
    """
    M, H, _ = q.shape
    K, G = k.shape[1], H // k.shape[1]
    out = torch.empty_like(q)
    lse = torch.empty(H, M, dtype=torch.float32)
    for a, b in _segments(offsets):
        o, s = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(_grouped(x[a:b], K, G) for x in (q, k, v)), 0.0, True
        )
        out[a:b] = _ungrouped(o)
        lse[:, a:b] = s.flatten(0, 1)
    return out, lse


@library.custom_op("codecria::segment_attention_backward", mutates_args=())
def _segment_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `segment_attention` for q, k and v, span by span."""
    H, K = q.shape[1], k.shape[1]
    G = H // K
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for a, b in _segments(offsets):
        g, qs, ks, vs, os = (_grouped(x[a:b], K, G) for x in (grad, q, k, v, out))
        scores = lse[:, a:b].view(K, G, b - a).contiguous()
        gq, gk, gv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, qs, ks, vs, os, scores, 0.0, True
        )
        dq[a:b] = _ungrouped(gq)
        # Summed in the order of copied heads: the bits are equal but for documents of few tokens.
        dk[a:b], dv[a:b] = (x.permute(2, 0, 1, 3).contiguous().sum(2) for x in (gk, gv))
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


def _each_document_on_cuda(attend: PackedAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Packed causal attention on CUDA, as many heads each: (B,T,H,D) thrice -> (B,T,H,D)."""
    B, T, H, D = q.shape
    if attend.backend == "xformers":
        packed = (x.reshape(1, B * T, H, D) for x in (q, k, v))
        mask = attend.mask(B, T, q.device)
        whole: Tensor = _xformers().memory_efficient_attention(*packed, attn_bias=mask)
        return whole.view(B, T, H, D)
    q, k, v = (x.reshape(B * T, H, D) for x in (q, k, v))
    parts = []
    for a, b in attend.spans(B, T):
        qs, ks, vs = (x[a:b].transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1,H,b-a,D)
        parts.append(F.scaled_dot_product_attention(qs, ks, vs, is_causal=True)[0].transpose(0, 1))
    return torch.cat(parts).view(B, T, H, D)


_documents_on_cuda: Callable[[PackedAttention, Tensor, Tensor, Tensor], Tensor]
_documents_on_cuda = _each_document_on_cuda


def leave_uncompiled() -> None:
    """Keep torch.compile out of the calls that differ from batch to batch on CUDA.

    `transformer.compiled` calls it. It is not a decorator, because that loads the whole compiler,
    two seconds, for every command.
    """
    global _documents_on_cuda
    _documents_on_cuda = torch.compiler.disable(_each_document_on_cuda)  # type: ignore[no-untyped-call]


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
    if q.device.type != "cpu":  # the CPU kernel reads grouped heads in place
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    if past == 0:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)
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


def length_mask(lengths: Tensor, S: int) -> Tensor:
    """Which of S cached keys each query sees, for `attend_few`: (B,T) -> (B,1,T,S), boolean."""
    return (torch.arange(S, device=lengths.device) < lengths.unsqueeze(-1)).unsqueeze(1)


def attend_few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """A few decoded tokens a sequence against its cached keys.

    The query heads of one key-value head stand as queries of one call, so grouped-query attention
    reads each key once.

    Args:
        q: (B,T,H,D).
        k, v: (B,K,S,D), the cache up to the longest sequence, the new tokens included.
        mask: (B,1,T,S) from `length_mask`, built once for all layers; None when all queries see
            all S keys.

    Returns:
        (B,T,H,D)
    """
    B, T, H, D = q.shape
    K = k.shape[1]
    G = H // K
    grouped = q.view(B, T, K, G, D).transpose(1, 2).reshape(B, K, T * G, D)
    if mask is not None and T > 1 and G > 1:
        mask = mask.repeat_interleave(G, dim=2)  # (B,1,T G,S)
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
    return out.view(B, K, T, G, D).transpose(1, 2).reshape(B, T, H, D)
