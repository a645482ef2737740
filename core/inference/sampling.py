"""From scores to the next token: greedy, temperature, top-k, nucleus; seeded per sample.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codecria.data.errors import UsageError

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

    def generator(self, sample: int) -> torch.Generator:
        """The source of randomness of sample number `sample`."""
        return torch.Generator().manual_seed((self.seed << 24) + sample)


def probabilities(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The distributions the next tokens are drawn from: temperature, then top-k, then nucleus.

    A token stays in the nucleus while the mass of the better ones does not exceed top_p, as in the
    release (PAPER section 3), so the best token always stays.

    Args:
        logits: (B,V) float32 scores, not NaN; -inf for a token that must not be drawn.
        samplings: one a row, with temperatures above zero.

    Returns:
        (B,V) probabilities; each row sums to one.
    """
    B, V = logits.shape

    def column(values: Iterable[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(list(values), dtype=dtype).view(B, 1).to(logits.device)

    scaled = logits / column(s.temperature for s in samplings)
    most = torch.finfo(torch.float32).max  # a huge score over a low temperature exceeds it
    scaled = scaled.clamp_(-most, most).masked_fill_(logits.isneginf(), -math.inf)
    p = torch.softmax(scaled, dim=-1)
    cut_k = any(s.top_k for s in samplings)
    cut_p = any(s.top_p < 1 for s in samplings)
    if cut_k or cut_p:
        best, order = p.sort(dim=-1, descending=True, stable=True)
        if cut_k:
            kept = column((min(s.top_k or V, V) for s in samplings), torch.int64)
            best = best * (torch.arange(V, device=logits.device) < kept)
        if cut_p:
            best = best / best.sum(-1, keepdim=True)
            # Without a nucleus nothing goes, also where rounding makes the mass exceed one.
            mass = column(s.top_p if s.top_p < 1 else math.inf for s in samplings)
            best = best.masked_fill(best.cumsum(-1) - best > mass, 0)
        p = torch.zeros_like(p).scatter_(-1, order, best)
    return p / p.sum(-1, keepdim=True)


def draw(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> list[int]:
    """The next token of each sequence from their (B,V) scores.

    A draw is made by exponential clocks: argmax p / e with e ~ Exp(1) picks token i with
    probability p_i, reads the row's generator exactly once per token, and needs no further sort.
    The clocks are made on the CPU, so that a seed means the same on every device.

    Args:
        logits: (B,V) float32, not NaN; -inf for a token that must not be drawn.
        samplings, generators: one a row.
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if rows:
        clocks = torch.empty(len(rows), logits.shape[1])
        for place, row in enumerate(rows):
            clocks[place].exponential_(generator=generators[row])
        chosen = logits if len(rows) == len(samplings) else logits[rows]
        p = probabilities(chosen, [samplings[row] for row in rows])
        # A clock of zero would make 0 / 0 of a token that must not be drawn.
        clocks = clocks.clamp_min_(torch.finfo(torch.float32).tiny).to(p.device)
        for row, token in zip(rows, (p / clocks).argmax(-1).tolist(), strict=True):
            tokens[row] = token
    return tokens
