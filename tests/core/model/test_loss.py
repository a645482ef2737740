"""The chunked loss against torch's cross-entropy on whole logits, value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from codecria.core.model import loss as loss_module
from codecria.core.model.loss import chunk_rows, masked_cross_entropy
from codecria.data.rows.rows import IGNORE


def case(N: int, C: int, V: int, ignored: float, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, C, generator=generator).requires_grad_()
    weight = torch.randn(V, C, generator=generator).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = IGNORE
    return hidden, weight, targets


@settings(max_examples=30, deadline=None)
@given(
    N=st.integers(1, 200),
    V=st.integers(2, 50),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_chunked_loss_is_torchs_cross_entropy(
    N: int, V: int, ignored: float, seed: int
) -> None:
    # Kills: a chunk left out, masked targets counted, the scale applied twice.
    hidden, weight, targets = case(N, 6, V, ignored, seed)
    count = max(1, int((targets != IGNORE).sum()))
    mine, each = masked_cross_entropy(hidden, weight, targets, count=count)
    mine.backward()
    got = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    reference = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="none")
    (reference.sum() / count).backward()
    torch.testing.assert_close(each, reference.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine, reference.sum() / count, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(got, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (64 * 4 * 40, 1 << 25):
        monkeypatch.setattr(loss_module, "CHUNK_BYTES", size)
        hidden, weight, targets = case(300, 8, 40, 0.2, 1)
        mine, _ = masked_cross_entropy(hidden, weight, targets, count=10)
        mine.backward()
        results.append((mine.detach(), hidden.grad, weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    hidden, weight, targets = case(90, 8, 20, 0.4, 2)
    count = int((targets != IGNORE).sum())
    whole, _ = masked_cross_entropy(hidden, weight, targets, count=count)
    parts = [
        masked_cross_entropy(hidden[a : a + 30], weight, targets[a : a + 30], count=count)[0]
        for a in (0, 30, 60)
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=1e-5)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    hidden = torch.tensor([[200.0], [-200.0]]).requires_grad_()
    weight = torch.tensor([[1.0], [-1.0], [0.0]]).requires_grad_()
    mine, each = masked_cross_entropy(hidden, weight, torch.tensor([1, 1]), count=2)
    mine.backward()
    torch.testing.assert_close(each, torch.tensor([400.0, 0.0]))
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_a_bfloat16_model_is_scored_in_float32() -> None:
    hidden, weight, targets = case(50, 16, 30, 0.0, 3)
    half = hidden.detach().bfloat16().requires_grad_()
    mine, _ = masked_cross_entropy(half, weight, targets, count=50)
    mine.backward()
    reference, _ = masked_cross_entropy(hidden, weight, targets, count=50)
    assert mine.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert mine.item() == pytest.approx(reference.item(), rel=2e-2)


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, targets = case(10, 4, 9, 0.0, 4)
    with torch.no_grad():
        mine, _ = masked_cross_entropy(hidden, weight, targets, count=10)
    assert not mine.requires_grad


def test_chunks_fit_their_budget_at_the_papers_vocabulary() -> None:
    assert chunk_rows(32_000) == 262
    assert chunk_rows(10**9) == 64
