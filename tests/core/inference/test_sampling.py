"""Drawing tokens: the kept set by brute force, the frequencies by counting."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.inference.sampling import Sampling, distribution, draw
from codecria.data.errors import UsageError

Row = npt.NDArray[np.float32]


def one(logits: Row, sampling: Sampling, generator: np.random.Generator | None) -> int:
    """A draw for one sequence."""
    [token] = draw(logits[None], [sampling], [generator])
    return token


def probabilities(logits: Row, sampling: Sampling) -> npt.NDArray[np.float64]:
    """The distribution over the whole vocabulary."""
    found = distribution(logits, sampling)
    p = np.zeros(len(logits))
    p[slice(None) if found.ids is None else found.ids] = found.weights
    return p / p.sum()


def softmax(logits: Row, temperature: float) -> list[float]:
    # In float32, as scores that differ less count as equal.
    weights = np.exp((logits - logits.max()) / np.float32(temperature))
    p = weights.astype(np.float64)
    return (p / p.sum()).tolist()  # type: ignore[no-any-return]


def row(values: list[float]) -> Row:
    return np.array(values, dtype=np.float32)


scores = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12).map(row)


@given(
    logits=scores,
    temperature=st.floats(0.1, 3),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, 5),
)
def test_what_is_kept_is_what_brute_force_keeps(
    logits: Row, temperature: float, top_p: float, top_k: int
) -> None:
    # Kills: a nucleus that leaves out the token that crosses top_p, top-k after the nucleus.
    p = softmax(logits, temperature)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    allowed = order[:top_k] if top_k else order
    mass = sum(p[i] for i in allowed)
    better = [sum(p[j] for j in allowed[:n]) / mass for n in range(len(allowed))]
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    got = probabilities(logits, sampling)
    found = {i for i in range(len(p)) if got[i] > 0}
    # A sum in float32 that meets top_p to its last digits may fall on either side.
    surely = {i for i, m in zip(allowed, better, strict=True) if m < top_p - 1e-5 and p[i] > 1e-30}
    perhaps = {i for i, m in zip(allowed, better, strict=True) if m <= top_p + 1e-5}
    assert surely <= found <= perhaps
    assert max(p) in {p[i] for i in found}
    if top_p == 1:  # of equal scores the first ids are kept; a nucleus may differ by rounding
        assert found <= set(allowed)


@given(
    distinct=st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=4),
    times=st.integers(1, 600),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 300]),
)
def test_of_equal_scores_the_first_ids_are_kept(
    distinct: list[float], times: int, top_p: float, top_k: int
) -> None:
    # Kills: a partition that keeps any of the tokens with the last kept score, or all of them.
    logits = row(distinct * times)
    got = probabilities(logits, Sampling(temperature=1.0, top_p=top_p, top_k=top_k))
    kept = set(np.flatnonzero(got).tolist())
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert kept == set(order[: len(kept)])
    assert len(kept) <= (top_k or len(logits))


def test_a_nucleus_of_a_large_vocabulary_is_what_a_whole_sort_keeps() -> None:
    # Kills: candidates chosen by too high a threshold.
    rng = np.random.default_rng(0)
    for scale in (0.01, 1.0, 4.0):
        logits = row((rng.standard_normal(5_000) * scale).tolist())
        p = np.array(softmax(logits, 1.0))
        for top_p in (0.05, 0.5, 0.95, 0.9999):
            found = distribution(logits, Sampling(temperature=1.0, top_p=top_p))
            ordered = np.sort(p)[::-1]
            expected = int((ordered.cumsum() - ordered <= top_p).sum())
            assert found.ids is not None
            assert abs(len(found.ids) - expected) <= 1 + expected // 1000
            assert p[found.ids].min() >= ordered[len(found.ids) - 1] * (1 - 1e-6)


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0]), min_size=1, max_size=700),
    u=st.one_of(st.floats(0, 1, exclude_max=True), st.just(1 - 2.0**-53)),
)
def test_a_token_without_probability_is_never_drawn(weights: list[float], u: float) -> None:
    # Kills: a border of two blocks that takes the last, impossible token of the first.
    if not any(weights):
        return
    with np.errstate(divide="ignore"):
        found = distribution(np.log(row(weights)), Sampling(temperature=1.0))
    token = found.token_at(u)
    assert weights[token] > 0
    before, total = sum(weights[:token]), sum(weights)
    assert before / total - 1e-6 <= u <= (before + weights[token]) / total + 1e-6


def test_greedy_takes_the_best_token() -> None:
    assert one(row([0.0, 3.0, 1.0]), Sampling(), Sampling().generator(0)) == 1


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    generator = sampling.generator(0)
    logits = np.log(row([0.5, 0.3, 0.2]))
    n = 4_000
    counts = np.bincount([one(logits, sampling, generator) for _ in range(n)], minlength=3)
    # Five standard deviations: fails once in about a million seeds, and the seed is fixed.
    for count, p in zip(counts.tolist(), (0.5, 0.3, 0.2), strict=True):
        assert abs(count - n * p) < 5 * (n * p * (1 - p)) ** 0.5


def test_samples_of_one_seed_differ_and_repeat() -> None:
    sampling = Sampling(temperature=1.0, seed=9)
    logits = np.zeros(1000, dtype=np.float32)
    first, again, other = (one(logits, sampling, sampling.generator(n)) for n in (0, 0, 1))
    assert first == again != other


settings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-6, 1e-3, 0.7, 1.0, 30.0, 1e30]),
    top_p=st.sampled_from([1e-40, 0.3, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 10**12]),
    seed=st.integers(0, 2**32 - 1),
)
extreme = st.sampled_from([0.0, 1e-30, 1.0, 88.0, 1e4, -1e4, 3e38, -3e38, -np.inf])


@given(
    rows=st.lists(
        st.tuples(st.lists(extreme, min_size=5, max_size=5), settings), min_size=1, max_size=6
    )
)
def test_a_batch_draws_what_each_row_draws_alone_whatever_the_scores(
    rows: list[tuple[list[float], Sampling]],
) -> None:
    # Kills: one row's temperature or generator used for another, NaN where scores overflow.
    rows = [(logits, s) for logits, s in rows if max(logits) > -np.inf]
    if not rows:
        return
    logits = np.array([logits for logits, _ in rows], dtype=np.float32)
    samplings = [sampling for _, sampling in rows]
    together = draw(logits, samplings, [s.generator(n) for n, s in enumerate(samplings)])
    for n, (given_row, sampling) in enumerate(rows):
        assert one(logits[n], sampling, sampling.generator(n)) == together[n]
        assert given_row[together[n]] > -np.inf, "a token that must not be drawn"
        if sampling.temperature == 0:
            assert given_row[together[n]] == max(given_row)
            continue
        p = probabilities(logits[n], sampling)
        assert np.isfinite(p).all()
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
