"""What a score says: pass@k without bias, how sure it is, and whether two models differ.

Tasks are the unit of chance: intervals and comparisons resample tasks, since the samples of one
task are alike. Counts are n samples of a task, c of them correct.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000  # of a bootstrap: its limits then vary by about 1 % of the interval's width
LEVEL = 0.95
Z = 1.959963984540054  # the normal distribution's 97.5 % point
Floats = npt.NDArray[np.float64]


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k samples is correct, 1 - C(n-c,k) / C(n,k), without bias.

    In the product form of Chen et al. 2021 (figure 3), which no large number enters.

    Args:
        n: samples drawn of a task.
        c: of them correct.
        k: how many are looked at, at most n.

    >>> pass_at_k(5, 1, 1)
    0.2
    """
    assert 0 <= c <= n, f"{c} of {n} are correct"
    assert 1 <= k <= n, f"pass@{k} of {n} samples"
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A share with its 95 % interval.

    Attributes:
        method: how the interval was made: "wilson", "wilson over samples" or "bootstrap".
    """

    value: float
    low: float
    high: float
    method: str

    def as_json(self) -> dict[str, object]:
        """The estimate as JSON values."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "method": self.method,
            "level": LEVEL,
        }


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, right also near 0 and 1.

    >>> low, high = wilson(0, 164)
    >>> low, round(high, 3)
    (0.0, 0.023)
    """
    assert 0 <= correct <= n > 0, f"{correct} of {n}"
    share, z2 = correct / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == n else min(1.0, middle + half)
    return low, high


def estimate(counts: Sequence[tuple[int, int]], k: int, *, seed: int = 0) -> Estimate | None:
    """pass@k over tasks with its interval.

    Args:
        counts: (n, c) of each task.
        k: samples looked at.
        seed: of the bootstrap.

    Returns:
        None where there is no task, or one has fewer than k samples. With one sample a task the
        interval is Wilson's, else a bootstrap's over tasks; but where all tasks are alike that has
        nothing to resample, and Wilson's over tasks says how much is still unknown. Of a single
        task the samples are what is left to chance: see `_of_one_task`.
    """
    if not counts or min(n for n, _ in counts) < k:
        return None
    each = np.array([pass_at_k(n, c, k) for n, c in counts])
    if len(counts) == 1 and counts[0][0] > 1:
        low, high = _of_one_task(*counts[0], k)
        return Estimate(value=float(each[0]), low=low, high=high, method="wilson over samples")
    if all(n == 1 for n, _ in counts) or each.max() == each.min():
        low, high = wilson(float(each.sum()), len(counts))
        return Estimate(value=float(each.mean()), low=low, high=high, method="wilson")
    low, high = bootstrap(each, seed=seed)
    return Estimate(value=float(each.mean()), low=low, high=high, method="bootstrap")


def _of_one_task(n: int, c: int, k: int) -> tuple[float, float]:
    """The 95 % interval of one task's pass@k.

    Wilson's interval of the share of right samples, and of each end the chance that one of k
    samples drawn at that rate is right.
    """
    low, high = (1 - (1 - share) ** k for share in wilson(c, n))
    value = pass_at_k(n, c, k)
    return min(low, value), max(high, value)


def bootstrap(each: Floats, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over tasks, by percentiles of resampled means.

    Args:
        each: (tasks,) a value a task.
        seed: repeats the interval.
    """
    low, high = np.quantile(_resampled(each, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(each: Floats, seed: int) -> Floats:
    """(RESAMPLES,) means of tasks drawn with replacement."""
    generator = np.random.default_rng(seed)
    n = len(each)
    rows = max(1, 4_000_000 // n)  # of one block, which bounds the memory
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, rows):
        stop = min(start + rows, RESAMPLES)
        means[start:stop] = each[generator.integers(0, n, size=(stop - start, n))].mean(axis=1)
    return means


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """B against A on the same tasks.

    Attributes:
        tasks: how many both were measured on.
        a, b: mean pass@k of each.
        difference: b - a.
        low, high: its 95 % interval, a bootstrap's over pairs.
        p: probability of a difference at least as large, if there were none.
        test: "mcnemar exact" with one sample a task, "fisher exact" of one task with several
            samples, else "paired bootstrap".
        only_a, only_b: with one sample a task, the tasks that one of them alone solved.
    """

    tasks: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    test: str
    only_a: int | None = None
    only_b: int | None = None


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact test: the two-sided p of how the tasks split that one alone solved.

    >>> mcnemar(0, 0), mcnemar(0, 5)
    (1.0, 0.0625)
    """
    n, least = only_a + only_b, min(only_a, only_b)
    tail: float = sum(math.comb(n, i) for i in range(least + 1)) / 2**n
    return min(1.0, 2 * tail)


def fisher(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Fisher's exact test: the two-sided p of two shares, each (n, c), being this far apart.

    >>> round(fisher((10, 1), (10, 9)), 6)
    0.001093
    """
    (n, c), (m, d) = a, b
    total = math.comb(n + m, c + d)
    ways = [math.comb(n, i) * math.comb(m, c + d - i) for i in range(c + d + 1)]
    return min(1.0, sum(way for way in ways if way <= ways[c]) / total)


def _compare_one_task(a: tuple[int, int], b: tuple[int, int], k: int) -> Comparison:
    """Of one task there is nothing to resample: its samples are compared.

    The interval of the difference is Newcombe's, from the ends of both intervals (Newcombe 1998,
    "Interval estimation for the difference between independent proportions", method 10).
    """
    one, other = pass_at_k(*a, k), pass_at_k(*b, k)
    (low_a, high_a), (low_b, high_b) = _of_one_task(*a, k), _of_one_task(*b, k)
    difference = other - one
    return Comparison(
        tasks=1,
        a=one,
        b=other,
        difference=difference,
        low=difference - math.hypot(other - low_b, high_a - one),
        high=difference + math.hypot(high_b - other, one - low_a),
        p=fisher(a, b),
        test="fisher exact",
    )


def compare(
    a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]], k: int, *, seed: int = 0
) -> Comparison:
    """Whether B passes more than A.

    Args:
        a, b: (n, c) of each task, the same tasks in the same order, each with at least k samples.
        k: samples looked at.
        seed: of the bootstrap.
    """
    assert 0 < len(a) == len(b), f"{len(a)} tasks against {len(b)}"
    if len(a) == 1 and a[0][0] + b[0][0] > 2:
        return _compare_one_task(a[0], b[0], k)
    first, second = (np.array([pass_at_k(n, c, k) for n, c in side]) for side in (a, b))
    change = second - first
    means = _resampled(change, seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(change.mean())
    only_a: int | None = None
    only_b: int | None = None
    if all(n == 1 for n, _ in (*a, *b)):
        only_a, only_b = int((change < 0).sum()), int((change > 0).sum())
        p, test = mcnemar(only_a, only_b), "mcnemar exact"
    else:
        # One more on either side: a p of 0 would claim more than the resamples can show.
        either = min((means <= 0).sum(), (means >= 0).sum()) + 1
        p, test = min(1.0, 2.0 * float(either) / (RESAMPLES + 1)), "paired bootstrap"
    return Comparison(
        tasks=len(a),
        a=float(first.mean()),
        b=float(second.mean()),
        difference=mean,
        low=float(low),
        high=float(high),
        p=p,
        test=test,
        only_a=only_a,
        only_b=only_b,
    )
