"""From scores to the next token: greedy, temperature, top-k, nucleus; seeded per sample.

Shapes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codecria.data.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: the scores are divided by it; 0 takes the best token (greedy).
        top_p: keep the smallest set of best tokens that holds this much probability (nucleus).
        top_k: keep this many best tokens; 0 keeps all.
        seed: sample number n of a prompt draws from a generator seeded with (seed, n), whatever is
            generated beside it.
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
        if self.temperature < 0:
            raise UsageError(f"the temperature {self.temperature} is negative", hint="0 is greedy")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p} is not in (0, 1]", hint="1 keeps every token")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} is negative", hint="0 keeps every token")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"the seed {self.seed} is not in 0 .. 2^32 - 1")

    def generator(self, sample: int) -> torch.Generator:
        """The source of randomness of sample number `sample`."""
        return torch.Generator().manual_seed((self.seed << 24) + sample)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution the next token is drawn from: temperature, then top-k, then nucleus.

    A token stays in the nucleus while the mass of the better ones does not exceed top_p, as in the
    release (PAPER section 3), so the best token always stays.

    Args:
        logits: (V,) float32 scores.
        sampling: with a temperature above zero.

    Returns:
        (V,) probabilities that sum to one.
    """
    p = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k or sampling.top_p < 1:
        best, order = p.sort(descending=True, stable=True)
        if sampling.top_k:
            best[sampling.top_k :] = 0
        if sampling.top_p < 1:
            best = best / best.sum()
            best[best.cumsum(-1) - best > sampling.top_p] = 0
        p = torch.zeros_like(p).scatter_(0, order, best)
    return p / p.sum()


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token's id from its (V,) scores.

    The draw is made by exponential clocks on the CPU: argmax p / e with e ~ Exp(1) picks token i
    with probability p_i, reads the generator exactly once per token, and needs no further sort.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits.float().cpu(), sampling)
    clocks = torch.empty_like(p).exponential_(generator=generator)
    return int((p / clocks).argmax())
