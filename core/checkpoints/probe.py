"""A check of weights against the files beside them: order of rows, theta, tokenizer.

Such faults change no shape and no recorded digest. But a trained model assigns plain code a low
loss, and a much higher one if its weights are read in a wrong way. The same short text is scored
with the settings in the files and with alternatives. An untrained model shows nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from codecria.core.checkpoints.formats.layout import RotaryOrder
from codecria.core.checkpoints.formats.weights import Weights
from codecria.core.model.config import ModelConfig
from codecria.data.tokenizer.tokenizer import Tokenizer

from .parity import View, logits, probe_ids

LEAST_TOKENS = 32  # fewer are no evidence
MOST_TOKENS = 256  # of the text: more makes the evidence no clearer, and large models slower
THETAS = (1e4, 1e6)  # Llama 2's, and Code Llama's after long-context fine-tuning
# A rival reading must be better by this many nats a token, and by so many standard errors of the
# paired differences: other readings of a sound model are worse, of an untrained one about as good.
LEAST_GAIN, LEAST_ERRORS = 0.05, 3.0
WORSE_THAN_CHANCE = 0.5  # nats a token above an even guess


@dataclass(frozen=True, slots=True)
class Rival:
    """Another way to read the weights, and what it would mean."""

    view: View
    meaning: str


def contradictions(weights: Weights, config: ModelConfig, tokenizer: Tokenizer) -> list[str]:
    """What the weights contradict, one line each; empty when nothing stands out.

    Args:
        weights: sound in their shapes.
        config: as the files declare it.
        tokenizer: with at most as many pieces as the model has rows.

    Raises:
        UserError: a weights file is damaged.
    """
    text = probe_ids(tokenizer)[: min(MOST_TOKENS, config.max_context)]
    if len(text) < LEAST_TOKENS:
        return []
    ids = torch.tensor([text])
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    declared = View(config=config, rotary_order=weights.rotary_order)
    rivals = _rivals(declared)
    scores = logits(weights, [declared, *(rival.view for rival in rivals)], ids, positions)
    own, *others = (_losses(score, ids) for score in scores)
    chance = math.log(config.vocab_size)
    if not own.mean() <= chance + WORSE_THAN_CHANCE:
        return [
            f"plain code costs {own.mean():.1f} nats a token, and an even guess {chance:.1f}:"
            " the tokenizer is of another vocabulary, or the weights are spoilt"
        ]
    better = [
        (float(other.mean()), rival)
        for other, rival in zip(others, rivals, strict=True)
        if _clearly_less(other, own)
    ]
    if not better:
        return []
    loss, rival = min(better, key=lambda pair: pair[0])
    return [f"{rival.meaning}: plain code then costs {loss:.2f} nats a token, not {own.mean():.2f}"]


def _rivals(declared: View) -> list[Rival]:
    swapped: RotaryOrder = "half_split" if declared.rotary_order == "interleaved" else "interleaved"
    whose = "the Hugging Face layout" if swapped == "half_split" else "Meta's layout"
    rivals = [
        Rival(
            replace(declared, rotary_order=swapped),
            f"the rows of wq and wk (q_proj, k_proj) seem to be in the order of {whose}",
        )
    ]
    for theta in THETAS:
        if theta != declared.config.rope_theta:
            changed = replace(declared.config, rope_theta=theta)
            rivals.append(
                Rival(
                    replace(declared, config=changed),
                    f"rope_theta is {declared.config.rope_theta:g}, and {theta:g} fits the weights"
                    " better",
                )
            )
    return rivals


def _losses(scores: Tensor, ids: Tensor) -> Tensor:
    """The cost of each token after the first, in nats."""
    return F.cross_entropy(scores[0, :-1], ids[0, 1:], reduction="none")


def _clearly_less(first: Tensor, second: Tensor) -> bool:
    gains = second - first
    error = gains.std() / math.sqrt(len(gains))
    return bool(gains.mean() > max(LEAST_GAIN, float(LEAST_ERRORS * error)))
