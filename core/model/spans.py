"""The kernels of attention in training: packed queries against spans of packed keys.

A span is a stretch of queries that sees the keys before it from some place on, and itself causally:

    keys          k k k k k k k k k k
    a document    . . x . . . . . . .      (2, 5, 2, 2): queries 2 to 4 are keys 2 to 4
                  . . x x . . . . . .
                  . . x x x . . . . .
    with a past   . . . . . x x x . .      (0, 2, 5, 7): queries 0 and 1 are keys 7 and 8, and
                  . . . . . x x x x .      see those from 5 on

On a CPU each span is one or two calls of PyTorch's flash kernel, inside a custom operator that
torch.compile does not look into, so documents of any length share one compiled graph. On CUDA
xformers' block-diagonal masks do the same, or PyTorch's attention span by span.

With grouped queries the CPU kernels read each key-value head in place, for all its query heads. On
CUDA the heads are copied: the backward of xformers takes no grouped heads.

Shapes: B batch, t query tokens, T key tokens, H query heads, K key-value heads, D head dimension,
M = B t packed queries, N = B T packed keys, n spans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, library
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

Backend = Literal["sdpa", "xformers"]

# The queries [0] to [1] of packed rows see the keys from [2] on: all before [3], and from there on
# causally, as the first query's own key is [3].
Span = tuple[int, int, int, int]


class SpanAttention:
    """Attention of packed queries to packed keys, span by span.

    Args:
        spans: they cover the queries in order.
        backend: the kernel, from `choose_backend`.
    """

    def __init__(self, spans: list[Span], backend: Backend) -> None:
        self.spans = spans
        self.backend = backend
        self._mask: Any = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B,t,H,D), (B,T,K,D), (B,T,K,D) -> (B,t,H,D)."""
        if q.device.type != "cpu":
            return spans_on_cuda(self, q, k, v)
        table = torch.tensor(self.spans, dtype=torch.int32).T.contiguous()
        return spans_on_cpu(q, k, v, table)

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """How many queries and how many keys each span has."""
        queries = [stop - start for start, stop, _, _ in self.spans]
        past = [own - first for _, _, first, own in self.spans]
        return queries, [n + before for n, before in zip(queries, past, strict=True)]

    def mask(self, device: torch.device) -> Any:
        """xformers' mask: block-diagonal, and causal from each block's last query and key back."""
        if self._mask is None:
            queries, keys = self.lengths
            bias = xformers_attention().attn_bias
            if queries == keys:
                self._mask = bias.BlockDiagonalCausalMask.from_seqlens(queries, device=device)
            else:
                kind = bias.BlockDiagonalCausalFromBottomRightMask
                self._mask = kind.from_seqlens(queries, keys, device=device)
        return self._mask


def spans_on_cpu(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Attention within the spans of a table (4,N): (B,t,H,D), (B,T,K,D) twice -> (B,t,H,D)."""
    out: Tensor = segment_attention(*(x.flatten(0, 1) for x in (q, k, v)), table)[0]
    return out.view(q.shape)


def xformers_attention() -> Any:
    """xformers' attention module, imported late: it costs seconds and exists on few platforms."""
    # Its compiled extras are not used here; a build for another CUDA warns of them in five lines.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers.ops import fmha

    return fmha


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """Repeat grouped key-value heads: (B,T,K,D) -> (B,T,H,D), each K serving H/K neighbours."""
    K = x.shape[2]
    return x if n_heads == K else x.repeat_interleave(n_heads // K, dim=2)


def _spans_of(table: Tensor) -> list[Span]:
    """The non-empty spans of a table (4,N), whose end may be padding."""
    last = int(torch.searchsorted(table[1], table[1, -1])) + 1
    return [span for span in zip(*table[:, :last].tolist(), strict=True) if span[1] > span[0]]


def _grouped(x: Tensor, K: int, G: int) -> Tensor:
    """One document's heads as the kernel takes them, keys in place: (n,H or K,D) -> (K,G,n,D)."""
    n, heads, D = x.shape
    return x.view(n, K, heads // K, D).permute(1, 2, 0, 3).expand(K, G, n, D)


def _ungrouped(x: Tensor) -> Tensor:
    """The reverse: (K,G,n,D) -> (n,K G,D)."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


@library.custom_op("codecria::segment_attention", mutates_args=())
def segment_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Attention within each span of packed queries and keys, on a CPU.

    Args:
        q: (M,H,D).
        k, v: (N,K,D), each of their heads serving H/K neighbouring query heads.
        table: (4,n) int32, the four numbers of each `Span`; the last ones may be empty.

    Returns:
        out (M,H,D), and the log-sum-exp of each query's scores (H,M), which backward needs.
    """
    M, H, _ = q.shape
    K, G = k.shape[1], H // k.shape[1]
    out = torch.empty_like(q)
    lse = torch.empty(H, M, dtype=torch.promote_types(q.dtype, torch.float32))
    for a, b, first, own in _spans_of(table):
        here = _grouped(q[a:b], K, G)
        keys = (_grouped(x[own : own + b - a], K, G) for x in (k, v))
        o, s = _flash_on_cpu(here, *keys, 0.0, True)
        if first < own:
            before = (_grouped(x[first:own], K, G) for x in (k, v))
            o_before, s_before = _flash_on_cpu(here, *before, 0.0, False)
            total = torch.logaddexp(s, s_before)
            shares = ((x - total).exp().unsqueeze(-1) for x in (s, s_before))
            o = (o * next(shares) + o_before * next(shares)).to(q.dtype)
            s = total
        out[a:b] = _ungrouped(o)
        lse[:, a:b] = s.flatten(0, 1)
    return out, lse


_flash_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@library.custom_op("codecria::segment_attention_backward", mutates_args=())
def _segment_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `segment_attention` for q, k and v, span by span."""
    H, K = q.shape[1], k.shape[1]
    G = H // K
    spans = _spans_of(table)
    dq = torch.empty_like(q)
    # Each key is in one span alone, or as in context parallelism, in none or in several.
    once = len(q) == len(k) and all(a == first == own for a, _, first, own in spans)
    dk, dv = (torch.empty_like(x) if once else torch.zeros_like(x) for x in (k, v))
    for a, b, first, own in spans:
        g, qs, os = (_grouped(x[a:b], K, G) for x in (grad, q, out))
        scores = lse[:, a:b].view(K, G, b - a).contiguous()
        for start, stop, causal in ((own, own + b - a, True), (first, own, False)):
            if start == stop:
                continue
            ks, vs = (_grouped(x[start:stop], K, G) for x in (k, v))
            # The sums of all the span's keys go in, so each part's gradients are its exact share.
            gq, gk, gv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g, qs, ks, vs, os, scores, 0.0, causal
            )
            # Summed in the order of copied heads: equal bits but for documents of few tokens.
            gk, gv = (x.permute(2, 0, 1, 3).contiguous().sum(2) for x in (gk, gv))
            if once:
                dq[a:b], dk[start:stop], dv[start:stop] = _ungrouped(gq), gk, gv
                continue
            dk[start:stop] += gk
            dv[start:stop] += gv
            if causal:
                dq[a:b] = _ungrouped(gq)
            else:
                dq[a:b] += _ungrouped(gq)
    return dq, dk, dv


@segment_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    exact = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=exact)


@_segment_attention_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,  # noqa: ARG001
    lse: Tensor,  # noqa: ARG001
    table: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table = inputs
    ctx.save_for_backward(q, k, v, *output, table)


def _backward(
    ctx: Any,
    grad_out: Tensor,
    grad_lse: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, None]:
    q, k, v, out, lse, table = ctx.saved_tensors
    grads = _segment_attention_backward(grad_out.contiguous(), q, k, v, out, lse, table)
    return (*grads, None)


segment_attention.register_autograd(_backward, setup_context=_remember)


def _each_span_on_cuda(attend: SpanAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within spans on CUDA: (B,t,H,D), (B,T,K,D), (B,T,K,D) -> (B,t,H,D)."""
    H = q.shape[2]
    k, v = repeat_heads(k, H), repeat_heads(v, H)
    packed, k, v = (x.flatten(0, 1) for x in (q, k, v))
    queries, keys = attend.lengths
    if attend.backend == "xformers":
        if queries != keys:  # its blocks lie end to end, here they overlap
            k, v = (
                torch.cat([x[first : own + b - a] for a, b, first, own in attend.spans])
                for x in (k, v)
            )
        whole: Tensor = xformers_attention().memory_efficient_attention(
            *(x.unsqueeze(0) for x in (packed, k, v)), attn_bias=attend.mask(q.device)
        )
        return whole.view(q.shape)
    parts = []
    for (a, b, first, _), n, m in zip(attend.spans, queries, keys, strict=True):
        spans = (packed[a:b], k[first : first + m], v[first : first + m])
        qs, ks, vs = (x.transpose(0, 1).unsqueeze(0) for x in spans)  # (1,H,n or m,D)
        if n == m:
            out = F.scaled_dot_product_attention(qs, ks, vs, is_causal=True)
        else:
            out = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=causal_lower_right(n, m))
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts).view(q.shape)


_spans_on_cuda: Callable[[SpanAttention, Tensor, Tensor, Tensor], Tensor] = _each_span_on_cuda


def spans_on_cuda(attend: SpanAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within spans on CUDA: (B,t,H,D), (B,T,K,D), (B,T,K,D) -> (B,t,H,D)."""
    return _spans_on_cuda(attend, q, k, v)


def leave_uncompiled() -> None:
    """Keep torch.compile out of the calls that differ from batch to batch on CUDA.

    `transformer.compiled` calls it. It is not a decorator, because that loads the whole compiler,
    two seconds, for every command.
    """
    global _spans_on_cuda
    _spans_on_cuda = torch.compiler.disable(_each_span_on_cuda)  # type: ignore[no-untyped-call]
