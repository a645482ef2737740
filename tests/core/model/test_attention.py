"""The attention seam against a materialised mask, forward and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, library

from codecria.core.model.attention import (
    PackedAttention,
    attend_few,
    attend_with_past,
    choose_backend,
    length_mask,
    pack_offsets,
    repeat_heads,
)
from codecria.data.errors import UserError

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def naive(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention under a materialised mask `seen` (B,T,S): (B,T,H,D) x (B,S,K,D) -> (B,T,H,D)."""
    k, v = repeat_heads(k, q.shape[2]), repeat_heads(v, q.shape[2])
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen.unsqueeze(1), float("-inf"))
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


def documents_mask(rows: list[list[int]]) -> Tensor:
    """Who sees whom in packed rows: (B,T,T), causal within a document."""
    T = sum(rows[0])
    masks = []
    for row in rows:
        document = torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row))
        same = document[:, None] == document[None, :]
        masks.append(same & torch.ones(T, T).tril().bool())
    return torch.stack(masks)


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()


def with_gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


rows_of_documents = st.integers(1, 24).flatmap(
    lambda T: st.lists(
        st.lists(st.integers(1, 9), min_size=T, max_size=T).map(lambda sizes: cut_to(sizes, T)),
        min_size=1,
        max_size=3,
    )
)


def cut_to(sizes: list[int], total: int) -> list[int]:
    """The first sizes that together make exactly `total`, the last one cut."""
    kept: list[int] = []
    while sum(kept) < total:
        kept.append(min(sizes[len(kept)], total - sum(kept)))
    return kept


@settings(max_examples=40, deadline=None)
@given(rows=rows_of_documents, heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]))
def test_packed_documents_attend_as_under_a_materialised_mask(
    rows: list[list[int]], heads: tuple[int, int]
) -> None:
    # Kills: dropping the document borders, an off-by-one border, averaging grouped gradients.
    H, K = heads
    B, T = len(rows), sum(rows[0])
    q, k, v = draw(B, T, H, 8), draw(B, T, K, 8), draw(B, T, K, 8)
    offsets = pack_offsets(rows, size=B * T + 1)
    ours = with_gradients(PackedAttention(offsets)(0, q, k, v), q, k, v)
    theirs = with_gradients(naive(q, k, v, documents_mask(rows)), q, k, v)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_plain_rows_attend_causally_over_the_whole_window(n_kv_heads: int) -> None:
    q, k, v = draw(2, 17, 4, 8), draw(2, 17, n_kv_heads, 8), draw(2, 17, n_kv_heads, 8)
    ours = with_gradients(PackedAttention(None)(0, q, k, v), q, k, v)
    theirs = with_gradients(naive(q, k, v, documents_mask([[17], [17]])), q, k, v)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-5, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(rows=rows_of_documents, heads=st.sampled_from([(4, 4), (4, 2), (6, 1), (8, 2), (16, 1)]))
def test_grouped_heads_give_the_numbers_of_copied_heads(
    rows: list[list[int]], heads: tuple[int, int]
) -> None:
    # Kills: groups of heads that are not neighbours, gradients of a group left out or doubled.
    B, T = len(rows), sum(rows[0])
    for offsets in (pack_offsets(rows, size=B * T + 1), None):
        ours, copied = grouped_and_copied(B, T, heads, offsets)
        for mine, reference in zip(ours, copied, strict=True):
            torch.testing.assert_close(mine, reference, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [(8, 2), (16, 1), (32, 4)])
def test_grouped_heads_of_documents_of_usual_size_give_the_same_bits(
    heads: tuple[int, int],
) -> None:
    for offsets in (pack_offsets([[100, 70], [170]], size=341), None):
        for mine, reference in zip(*grouped_and_copied(2, 170, heads, offsets), strict=True):
            assert torch.equal(mine, reference), (mine - reference).abs().max().item()


def grouped_and_copied(
    B: int, T: int, heads: tuple[int, int], offsets: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of q, k and v, with keys in place and with keys copied."""
    H, K = heads
    q, k, v = draw(B, T, H, 8), draw(B, T, K, 8), draw(B, T, K, 8)
    attend = PackedAttention(offsets)
    copied = attend(0, q, repeat_heads(k, H), repeat_heads(v, H))
    return with_gradients(attend(0, q, k, v), q, k, v), with_gradients(copied, q, k, v)


@pytest.mark.parametrize("n_kv_heads", [2, 1])
def test_no_tensor_of_all_heads_is_made_of_grouped_keys(n_kv_heads: int) -> None:
    # Kills: keys and values copied for each query head.
    q, k, v = draw(1, 64, 4, 8), draw(1, 64, n_kv_heads, 8), draw(1, 64, n_kv_heads, 8)
    for offsets in (pack_offsets([[30, 34]], size=65), None):
        out = PackedAttention(offsets)(0, q, k, v)
        saved = [x for x in out.grad_fn.next_functions[0][0].saved_tensors if x.dim() == 3]  # type: ignore[union-attr]
        heads = sorted(x.shape[1] for x in saved)
        assert heads == [n_kv_heads, n_kv_heads, 4, 4], f"saved for backward: {heads}"


def test_what_follows_from_the_documents_is_made_once_a_batch() -> None:
    pytest.importorskip("xformers.ops")
    attend = PackedAttention(pack_offsets([[3, 2, 3], [8]], size=17))
    within = attend.within(2, 8)
    assert within is attend.within(2, 8)
    assert within.mask(CPU) is within.mask(CPU)
    assert [span[:2] for span in within.spans] == [(0, 3), (3, 5), (5, 8), (8, 16)]
    assert PackedAttention(None).within(2, 8).spans == [(0, 8, 0, 0), (8, 16, 8, 8)]


@pytest.mark.parametrize("n_kv_heads", [2, 1])
def test_the_segment_operator_is_sound_for_autograd_and_compilation(n_kv_heads: int) -> None:
    q, k, v = draw(12, 2, 8), draw(12, n_kv_heads, 8), draw(12, n_kv_heads, 8)
    table = torch.tensor([[0, 5, 12], [5, 12, 12], [0, 2, 2], [0, 5, 2]], dtype=torch.int32)
    library.opcheck(
        torch.ops.codecria.segment_attention.default,
        (q, k, v, table),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@settings(max_examples=30, deadline=None)
@given(past=st.integers(0, 20), chunk=st.integers(1, 12), heads=st.sampled_from([(4, 4), (4, 2)]))
def test_a_chunk_sees_the_whole_past_and_itself_causally(
    past: int, chunk: int, heads: tuple[int, int]
) -> None:
    H, K = heads
    q, k, v = draw(2, chunk, H, 8), draw(2, past + chunk, K, 8), draw(2, past + chunk, K, 8)
    seen = torch.ones(chunk, past + chunk).tril(past).bool().expand(2, -1, -1)
    with torch.no_grad():
        ours = attend_with_past(q, k.transpose(1, 2), v.transpose(1, 2), past)
    torch.testing.assert_close(ours, naive(q, k, v, seen), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_one_token_sees_its_own_sequence_alone(n_kv_heads: int) -> None:
    q, k, v = draw(3, 1, 4, 8), draw(3, 9, n_kv_heads, 8), draw(3, 9, n_kv_heads, 8)
    lengths = torch.tensor([9, 1, 4])[:, None]
    seen = (torch.arange(9) < lengths).unsqueeze(1)
    with torch.no_grad():
        ours = attend_few(q, k.transpose(1, 2), v.transpose(1, 2), length_mask(lengths, 9))
        even = attend_few(q, k.transpose(1, 2), v.transpose(1, 2), None)
    torch.testing.assert_close(ours, naive(q, k, v, seen), atol=2e-5, rtol=1e-4)
    everything = torch.ones(3, 1, 9).bool()
    torch.testing.assert_close(even, naive(q, k, v, everything), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_several_tokens_see_their_own_sequence_and_each_other(n_kv_heads: int) -> None:
    # Kills: query heads of a group and tokens in the wrong order, one token's mask for another.
    q, k, v = draw(2, 3, 4, 8), draw(2, 9, n_kv_heads, 8), draw(2, 9, n_kv_heads, 8)
    lengths = torch.tensor([[7, 8, 9], [1, 2, 3]])
    seen = torch.arange(9) < lengths[..., None]
    with torch.no_grad():
        ours = attend_few(q, k.transpose(1, 2), v.transpose(1, 2), length_mask(lengths, 9))
    torch.testing.assert_close(ours, naive(q, k, v, seen), atol=2e-5, rtol=1e-4)


def test_the_backend_is_chosen_with_a_reason_and_refused_with_a_hint() -> None:
    backend, why = choose_backend(CPU)
    assert backend == "sdpa"
    assert "cpu" in why
    with pytest.raises(UserError, match="no attention kernel for cpu"):
        choose_backend(CPU, "xformers")
    with pytest.raises(UserError, match="no attention backend 'flash'"):
        choose_backend(CPU, "flash")


def test_the_mask_given_to_xformers_is_the_documents_mask() -> None:
    pytest.importorskip("xformers.ops")
    rows = [[3, 2, 3], [8]]
    within = PackedAttention(pack_offsets(rows, size=17)).within(2, 8)
    mask = within.mask(CPU).materialize((16, 16))
    apart = torch.block_diag(*documents_mask(rows)).bool()
    assert torch.equal(mask == 0, apart)
    whole = PackedAttention(None).within(2, 8).mask(CPU).materialize((16, 16))
    assert torch.equal(whole == 0, torch.block_diag(*documents_mask([[8], [8]])).bool())


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("backend", ["xformers", "sdpa"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_cuda_backends_agree_with_a_materialised_mask(backend: str, n_kv_heads: int) -> None:
    rows = [[5, 11, 16], [32]]
    q = draw(2, 32, 4, 32, device="cuda", dtype=torch.bfloat16)
    k, v = (draw(2, 32, n_kv_heads, 32, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    chosen, _ = choose_backend(q.device, backend)
    offsets = pack_offsets(rows, size=65)
    ours = with_gradients(PackedAttention(offsets, chosen)(0, q, k, v), q, k, v)
    theirs = with_gradients(naive(q, k, v, documents_mask(rows).cuda()), q, k, v)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=5e-2, rtol=5e-2)
