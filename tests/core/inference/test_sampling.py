"""Drawing tokens: the kept set by brute force, the frequencies by counting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.inference.sampling import Sampling, draw, probabilities
from codecria.data.errors import UsageError


def one(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A draw for one sequence."""
    [token] = draw(logits.unsqueeze(0), [sampling], [generator])
    return token


scores = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12).map(torch.tensor)


@given(
    logits=scores,
    temperature=st.floats(0.1, 3),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, 5),
)
def test_what_is_kept_is_what_brute_force_keeps(
    logits: torch.Tensor, temperature: float, top_p: float, top_k: int
) -> None:
    # Kills: a nucleus that leaves out the token that crosses top_p, top-k after the nucleus.
    p = torch.softmax(logits / temperature, -1).tolist()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    allowed = order[:top_k] if top_k else order
    mass = sum(p[i] for i in allowed)
    better = [sum(p[j] for j in allowed[:n]) / mass for n in range(len(allowed))]
    [got] = probabilities(
        logits.unsqueeze(0), [Sampling(temperature=temperature, top_p=top_p, top_k=top_k)]
    )
    assert got.sum().item() == pytest.approx(1, abs=1e-5)
    found = {i for i in range(len(p)) if got[i] > 0}
    # A sum in float32 that meets top_p to its last digits may fall on either side.
    surely = {i for i, m in zip(allowed, better, strict=True) if m < top_p - 1e-5 and p[i] > 1e-30}
    perhaps = {i for i, m in zip(allowed, better, strict=True) if m <= top_p + 1e-5}
    assert surely <= found <= perhaps
    assert order[0] in found


def test_greedy_takes_the_best_token() -> None:
    assert one(torch.tensor([0.0, 3.0, 1.0]), Sampling(), torch.Generator()) == 1


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    generator = sampling.generator(0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    n = 4_000
    counts = torch.bincount(
        torch.tensor([one(logits, sampling, generator) for _ in range(n)]), minlength=3
    )
    # Five standard deviations: fails once in about a million seeds, and the seed is fixed.
    for count, p in zip(counts.tolist(), (0.5, 0.3, 0.2), strict=True):
        assert abs(count - n * p) < 5 * (n * p * (1 - p)) ** 0.5


def test_samples_of_one_seed_differ_and_repeat() -> None:
    sampling = Sampling(temperature=1.0, seed=9)
    logits = torch.zeros(1000)
    first, again, other = (one(logits, sampling, sampling.generator(n)) for n in (0, 0, 1))
    assert first == again != other


settings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-6, 1e-3, 0.7, 1.0, 30.0, 1e30]),
    top_p=st.sampled_from([1e-40, 0.3, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 10**12]),
    seed=st.integers(0, 2**32 - 1),
)
extreme = st.sampled_from([0.0, 1e-30, 1.0, 88.0, 1e4, -1e4, 3e38, -3e38, -torch.inf])


@given(
    rows=st.lists(
        st.tuples(st.lists(extreme, min_size=5, max_size=5), settings), min_size=1, max_size=6
    )
)
def test_a_batch_draws_what_each_row_draws_alone_whatever_the_scores(
    rows: list[tuple[list[float], Sampling]],
) -> None:
    # Kills: one row's temperature or generator used for another, NaN where scores overflow.
    rows = [(logits, s) for logits, s in rows if max(logits) > -torch.inf]
    if not rows:
        return
    logits = torch.tensor([logits for logits, _ in rows])
    samplings = [sampling for _, sampling in rows]
    together = draw(logits, samplings, [s.generator(n) for n, s in enumerate(samplings)])
    for n, (row, sampling) in enumerate(rows):
        assert one(logits[n], sampling, sampling.generator(n)) == together[n]
        assert row[together[n]] > -torch.inf, "a token that must not be drawn"
        if sampling.temperature == 0:
            assert row[together[n]] == max(row)
            continue
        [p] = probabilities(logits[n : n + 1], [sampling])
        assert bool(p.isfinite().all())
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        if sampling.top_k == 1 or sampling.top_p == 1e-40:
            assert p[together[n]] == p.max()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-40},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": -0.5},
        {"top_p": float("nan")},
        {"top_p": float("inf")},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**32},
    ],
    ids=str,
)
def test_values_out_of_range_are_usage_errors(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError) as refused:
        Sampling(**settings)  # type: ignore[arg-type]
    assert refused.value.hint, "what to give instead"
