"""A share of a row's queries against all keys: each process's part is that of whole attention."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codecria.core.model.attention import choose_backend
from codecria.core.model.context_parallel import ContextSplit
from codecria.core.model.spans import Backend, SpanAttention, _each_span_on_cuda
from tests.core.model.test_attention import GPU, documents_mask, draw, naive


def shares(
    rows: list[list[int]], P: int, backend: Backend = "sdpa"
) -> list[tuple[Tensor, SpanAttention]]:
    """The places and the attention of each of P processes."""
    found = []
    for rank in range(P):
        split = ContextSplit(rank, P, None)
        places = torch.from_numpy(split.places(sum(rows[0]))).long()
        found.append((places, SpanAttention(split.spans(rows), backend)))
    return found


def cut(borders: list[int], T: int) -> list[int]:
    """Documents of a row of T tokens that begin at 0 and at the borders."""
    places = [0, *sorted({b % T for b in borders} - {0}), T]
    return [b - a for a, b in itertools.pairwise(places)]


@settings(max_examples=40, deadline=None)
@given(
    P=st.sampled_from([1, 2, 4]),
    chunk=st.integers(1, 4),
    borders=st.lists(st.lists(st.integers(0, 31), max_size=5), min_size=1, max_size=2),
    heads=st.sampled_from([(4, 4), (4, 2)]),
)
def test_the_shares_of_a_row_attend_as_under_a_materialised_mask(
    P: int, chunk: int, borders: list[list[int]], heads: tuple[int, int]
) -> None:
    # Kills: queries that see the future, or another document; keys whose gradient one share has.
    T = 2 * P * chunk
    rows = [cut(b, T) for b in borders]
    q = draw(len(rows), T, heads[0], 8, dtype=torch.float64)
    k, v = (draw(len(rows), T, heads[1], 8, dtype=torch.float64) for _ in range(2))
    whole = naive(q, k, v, documents_mask(rows))
    weight = torch.linspace(-1, 1, whole.numel(), dtype=torch.float64).view(whole.shape)
    wanted = torch.autograd.grad((whole * weight).sum(), (q, k, v))
    for attend in (SpanAttention.__call__, _each_span_on_cuda):  # the latter's PyTorch attention
        total = torch.zeros((), dtype=torch.float64)
        for places, within in shares(rows, P):
            out = attend(within, q[:, places], k, v)
            torch.testing.assert_close(out, whole[:, places])
            total = total + (out * weight[:, places]).sum()
        found = torch.autograd.grad(total, (q, k, v))
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rows", [[[8], [8]], [[3, 5], [1, 7]]])
def test_the_mask_given_to_xformers_shows_each_query_its_keys(rows: list[list[int]]) -> None:
    pytest.importorskip("xformers.ops")
    seen = torch.block_diag(*documents_mask(rows)).bool()
    for places, within in shares(rows, 2, "xformers"):
        _, keys = within.lengths
        mask = within.mask(torch.device("cpu")).materialize((len(rows) * 4, sum(keys)))
        packed = torch.cat(
            [
                torch.arange(first, first + n)
                for (_, _, first, _), n in zip(within.spans, keys, strict=True)
            ]
        )
        queries = torch.cat([places + 8 * n for n in range(len(rows))])
        blocks = torch.zeros(len(queries), len(packed), dtype=torch.bool)
        start = 0
        for (a, b, _, _), n in zip(within.spans, keys, strict=True):
            blocks[a:b, start : start + n] = True
            start += n
        assert torch.equal(mask == 0, blocks & seen[queries][:, packed])


def test_head_and_tail_give_every_process_as_many_keys_to_see() -> None:
    sums = [sum(keys) for _, within in shares([[64]], 4) for _, keys in [within.lengths]]
    pairs = [int((places + 1).sum()) for places, _ in shares([[64]], 4)]
    assert len(set(sums)) == 1
    assert len(set(pairs)) == 1


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("backend", ["xformers", "sdpa"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_cuda_shares_agree_with_a_materialised_mask(backend: str, n_kv_heads: int) -> None:
    rows = [[5, 11, 16], [32]]
    options = {"device": "cuda", "dtype": torch.bfloat16}
    q = draw(2, 32, 4, 32, **options)
    k, v = (draw(2, 32, n_kv_heads, 32, **options) for _ in range(2))
    chosen, _ = choose_backend(q.device, backend)
    whole = naive(q, k, v, documents_mask(rows).cuda())
    wanted = torch.autograd.grad(whole.sum(), (q, k, v))
    total = torch.zeros((), device="cuda")
    for places, within in shares(rows, 4, chosen):
        out = within(q[:, places.cuda()], k, v)
        torch.testing.assert_close(out, whole[:, places.cuda()], atol=5e-2, rtol=5e-2)
        total = total + out.float().sum()
    for mine, theirs in zip(torch.autograd.grad(total, (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=5e-2, rtol=5e-2)
