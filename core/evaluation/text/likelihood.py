"""How likely a model finds given continuations of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from codecria.core.inference.generator import Generator
from codecria.core.inference.runner import Runner, Scores
from codecria.core.inference.sharing import Stopped

Continued = tuple[list[int], list[list[int]]]  # a prompt's ids, and those of its continuations
CONTINUATIONS = 16  # read side by side, after one prefill of the prompt


def log_likelihoods(
    runner: Runner, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """The log-probability of each continuation, in nats, summed over its tokens.

    Args:
        runner: of the model; what its rows hold is lost.
        prompt: token ids, BOS first.
        continuations: token ids, at least one each.
    """
    longest = max(map(len, continuations))
    found: list[float] = []
    for start in range(0, len(continuations), CONTINUATIONS):
        part = continuations[start : start + CONTINUATIONS]
        runner.keep([])
        runner.reserve(len(part), len(prompt) + longest)
        first = _log_softmax(runner.prefill(0, [prompt]))[0]
        runner.copy_rows(0, [0] * len(part))
        after = _log_softmax(runner.decode(0, part))
        place = 0
        for ids in part:
            rest = after[place : place + len(ids) - 1]
            each = rest[np.arange(len(ids) - 1), list(ids[1:])]
            found.append(float(first[ids[0]] + each.sum(dtype=np.float64)))
            place += len(ids)
    runner.keep([])
    return found


def batch_likelihoods(
    generator: Generator, asked: Sequence[Continued], stopped: Stopped
) -> list[list[float]]:
    """The log-probabilities of the continuations of several prompts; a `Work`."""
    found: list[list[float]] = []
    for prompt, continuations in asked:
        if stopped():
            return []
        some = bool(continuations)
        found.append(log_likelihoods(generator.runner, prompt, continuations) if some else [])
    return found


def _log_softmax(scores: Scores) -> npt.NDArray[np.float64]:
    wide = scores.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide
