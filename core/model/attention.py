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

No mask is ever materialised: spans.py has the kernels. What follows from the documents alone is
computed once a batch, not once a layer.

Generation reads a key-value cache (core/inference/cache.py): a chunk of a prompt sees the whole
past and, causally, itself; decoded tokens see their sequence's past and each other's.

Shapes: B batch, T tokens, S cached tokens, H query heads, K key-value heads, D head dimension,
M = B * T packed tokens.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from codecria.data.errors import UserError

from .spans import (
    Backend,
    SpanAttention,
    repeat_heads,
    spans_on_cpu,
    spans_on_cuda,
    xformers_attention,
)


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
        xformers_attention()
    except ImportError as error:
        if requested == "xformers":
            raise UserError(
                f"xformers cannot be imported: {error}",
                hint="pip install 'xformers>=0.0.34,<0.0.36'",
            ) from error
        return "sdpa", f"xformers cannot be imported: {error}"
    return "xformers", "the block-diagonal kernels of xformers"


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
        self._within: SpanAttention | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """(B,T,H,D), (B,T,K,D), (B,T,K,D) -> (B,T,H,D)."""
        B, T, H, _ = q.shape
        K = k.shape[2]
        offsets = self.offsets
        if q.device.type != "cpu":
            if self.backend == "xformers" or offsets is not None:
                return spans_on_cuda(self.within(B, T), q, k, v)
            k, v, K = repeat_heads(k, H), repeat_heads(v, H), H
        if offsets is None and K == H:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        if offsets is None:
            offsets = torch.arange(0, B * T + 1, T, dtype=torch.int32)
        starts, stops = offsets[:-1], offsets[1:]
        return spans_on_cpu(q, k, v, torch.stack((starts, stops, starts, starts)))

    def within(self, B: int, T: int) -> SpanAttention:
        """The spans of B rows of T tokens, made once."""
        if self._within is None:
            whole = [(n * T, n * T + T) for n in range(B)]
            borders = whole if self.offsets is None else _borders(self.offsets)
            self._within = SpanAttention([(a, b, a, a) for a, b in borders], self.backend)
        return self._within


def _borders(offsets: Tensor) -> list[tuple[int, int]]:
    """The non-empty [start, stop) spans between neighbouring offsets."""
    last = int(torch.searchsorted(offsets, offsets[-1]))  # the rest is padding, often most of it
    borders = offsets[: last + 1].tolist()
    return [(a, b) for a, b in itertools.pairwise(borders) if b > a]


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
