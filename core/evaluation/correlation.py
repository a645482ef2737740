"""Do models that are good in one language do well in another (Code Llama, figure 3)?

Pearson's correlation of the scores of two languages over checkpoints, with the number of
checkpoints and a 95 % interval by Fisher's transformation. The paper gives neither; of eight
checkpoints an interval is still wide, so they are always shown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecria.data.errors import UserError
from codecria.data.files import read_json

from .benchmarks.estimate import Z
from .report import _metas

ENOUGH = 8  # checkpoints; with fewer, a coefficient says little
SCORE = "pass@1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """How the scores of two languages go together.

    Attributes:
        a, b: the languages.
        n: checkpoints that have both scores.
        r: Pearson's coefficient; None where one language's scores are all equal.
        low, high: its 95 % interval; None of fewer than four checkpoints.
    """

    a: str
    b: str
    n: int
    r: float | None
    low: float | None
    high: float | None


def correlate(scores: Mapping[str, Mapping[str, float]]) -> list[Coefficient]:
    """The coefficients of every pair of languages.

    Args:
        scores: by language and checkpoint.
    """
    found = []
    for a, b in itertools.combinations(scores, 2):
        both = sorted(scores[a].keys() & scores[b].keys())
        r = pearson([scores[a][m] for m in both], [scores[b][m] for m in both])
        low, high = (None, None) if r is None else fisher_interval(r, len(both))
        found.append(Coefficient(a=a, b=b, n=len(both), r=r, low=low, high=high))
    return found


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation; None of fewer than two pairs, or where one side does not vary.

    >>> pearson([1, 2, 3], [2, 4, 6]), pearson([1, 1], [0, 1])
    (1.0, None)
    """
    if len(x) < 2:
        return None
    a, b = (np.array(side, dtype=np.float64) - np.mean(side) for side in (x, y))
    spread = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return None if spread == 0 else max(-1.0, min(1.0, float((a * b).sum()) / spread))


def fisher_interval(r: float, n: int) -> tuple[float | None, float | None]:
    """The 95 % interval of a correlation of n pairs; None of fewer than four.

    >>> low, high = fisher_interval(0.9, 8)
    >>> round(low, 3), round(high, 3)
    (0.533, 0.982)
    """
    if n < 4:
        return None, None
    if abs(r) == 1:
        return r, r
    middle, half = math.atanh(r), Z / math.sqrt(n - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


def scores_by_language(paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """The pass@1 of each language and checkpoint, from results of one language each.

    Raises:
        UserError: a path is no result, or fewer than two languages are there.
    """
    scores: dict[str, dict[str, float]] = {}
    for path in _metas(paths):
        meta: Any = read_json(path)
        if not isinstance(meta, dict) or len(meta.get("languages", ())) != 1:
            continue
        found = meta.get("summary", {}).get("pass", {}).get(SCORE)
        if found is not None and "model_digest" in meta:
            scores.setdefault(meta["languages"][0], {})[meta["model_digest"]] = found["value"]
    if len(scores) < 2:
        raise UserError(
            f"results of {len(scores)} languages are there, and two are compared",
            hint="make them with `codecria evaluate multipl-e` or `humaneval-x`, and --out",
        )
    return scores
