"""From scores to the next token: greedy, temperature, top-k, nucleus; seeded per sample.

All engines draw with these functions: a seed and equal scores give equal tokens.

Shapes: B sequences, V vocabulary, K tokens that may be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codecria.data.errors import UsageError

from .runner import Scores

if TYPE_CHECKING:
    from numpy.random import Generator

BLOCK = 256  # weights that are summed first, so that few sums are searched
LEAST_TEMPERATURE = 1e-6  # scores divided by less may exceed float32; it is greedy long before


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: the scores are divided by it; 0 takes the best token (greedy).
        top_p: keep the smallest set of best tokens that holds this much probability (nucleus).
        top_k: keep this many best tokens; 0 keeps all.
        seed: sample n of a prompt has a random generator of its own, seeded with (seed, n).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a value is out of range.
        """
        if not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf):
            raise UsageError(
                f"a temperature of {self.temperature} cannot be sampled at",
                hint=f"0 is greedy; otherwise give {LEAST_TEMPERATURE} or more, usually up to 2",
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(
                f"top-p {self.top_p} is not above 0 and at most 1", hint="1 keeps every token"
            )
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} is negative", hint="0 keeps every token")
        if not 0 <= self.seed < 2**32:
            raise UsageError(
                f"the seed {self.seed} is out of range", hint="give one from 0 to 4294967295"
            )

    def generator(self, sample: int) -> Generator | None:
        """The random generator of sample number `sample`; None when greedy, which draws none."""
        if self.temperature == 0:
            return None
        from numpy.random import Generator, Philox  # 20 ms, which a greedy run saves

        return Generator(Philox(key=np.array([self.seed, sample], dtype=np.uint64)))


@dataclass(frozen=True, slots=True)
class Distribution:
    """What the next token is drawn from.

    Attributes:
        ids: (K,) tokens that may be drawn, ascending; None stands for all.
        weights: (K,) their probabilities up to a common factor.
    """

    ids: npt.NDArray[np.intp] | None
    weights: npt.NDArray[np.float32]

    def token_at(self, u: float) -> int:
        """The token where the cumulative probability in the order of ids passes `u`.

        Scores that differ in their last digits give the same token for almost every `u`.

        Args:
            u: from 0 up to, but not including, 1.
        """
        sums = np.add.reduceat(
            self.weights, np.arange(0, len(self.weights), BLOCK), dtype=np.float64
        ).cumsum()
        mass = u * sums[-1]
        block = min(int(sums.searchsorted(mass, "right")), len(sums) - 1)
        inner = self.weights[block * BLOCK : (block + 1) * BLOCK].cumsum(dtype=np.float64)
        rest = mass - (sums[block - 1] if block else 0.0)
        # Rounding may put the rest at the end of the block: its last token that has a weight.
        place = int(inner.searchsorted(min(rest, np.nextafter(inner[-1], 0)), "right"))
        place += block * BLOCK
        return place if self.ids is None else int(self.ids[place])


def distribution(scores: Scores, sampling: Sampling) -> Distribution:
    """The distribution of the next token: temperature, then top-k, then nucleus.

    A token stays in the nucleus while the mass of the better ones does not exceed top_p, as in the
    release (PAPER section 3), so the best token always stays. Of equal scores the lower id is the
    better one.

    Args:
        scores: (V,) not NaN, one of them finite; -inf for a token that must not be drawn.
        sampling: its temperature is above zero.
    """
    with np.errstate(over="ignore", under="ignore"):
        scaled = (scores - scores.max()) / np.float32(min(sampling.temperature, 1e38))
        weights = np.exp(scaled)
    ids: npt.NDArray[np.intp] | None = None
    if 0 < sampling.top_k < len(weights):
        ids = _best(weights, sampling.top_k)
        weights = weights[ids]
    if sampling.top_p < 1:
        total = float(weights.sum(dtype=np.float64))
        # All tokens below this have less than 1 - top_p together: the nucleus ends before them.
        few = np.flatnonzero(weights >= (1 - sampling.top_p) / len(weights) * total * 0.999)
        ordered = np.sort(weights[few])[::-1].astype(np.float64)
        better = ordered.cumsum() - ordered
        few = few[_best(weights[few], int((better <= sampling.top_p * total).sum()))]
        ids = few if ids is None else ids[few]
        weights = weights[few]
    return Distribution(ids, weights)


def _best(weights: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.intp]:
    """The places of the n largest weights, ascending; of equal ones the first."""
    if n >= len(weights):
        return np.arange(len(weights))
    least = np.partition(weights, len(weights) - n)[len(weights) - n]
    chosen = weights > least
    equal = np.flatnonzero(weights == least)
    chosen[equal[: n - int(chosen.sum())]] = True
    return np.flatnonzero(chosen)


def draw(
    scores: Scores, samplings: Sequence[Sampling], generators: Sequence[Generator | None]
) -> list[int]:
    """The next token of each sequence.

    Each token reads its sequence's generator once, whatever the scores are.

    Args:
        scores: (B,V) not NaN; -inf for a token that must not be drawn.
        samplings, generators: one a row, the generators as `Sampling.generator` makes them.
    """
    tokens: list[int] = scores.argmax(-1).tolist()
    for row, generator in enumerate(generators):
        if generator is not None:
            found = distribution(scores[row], samplings[row])
            tokens[row] = found.token_at(generator.random())
    return tokens
