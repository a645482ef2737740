"""The optimiser and its schedule: AdamW, linear warm-up, then cosine or constant and decay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from .recipes import Recipe


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of step `step`, counted from 0.

    Rises linearly over the warm-up and reaches the peak at its last step. The "cosine" schedule
    falls along half a cosine to peak x min_lr_ratio at the run's last step (Code Llama, section
    2.6). The "wsd" schedule stays at the peak, and falls linearly to the same floor over the run's
    last part: until then it does not depend on the length of the run, so a run may be extended.
    """
    if step < recipe.warmup_steps:
        return recipe.peak_lr * (step + 1) / recipe.warmup_steps
    floor = recipe.min_lr_ratio
    if recipe.schedule == "wsd":
        if step < recipe.decay_start:
            return recipe.peak_lr
        left = (recipe.steps - 1 - step) / max(1, recipe.steps - recipe.decay_start)
        return recipe.peak_lr * (floor + (1 - floor) * max(0.0, left))
    decay = max(1, recipe.steps - 1 - recipe.warmup_steps)
    done = min(1.0, (step - recipe.warmup_steps) / decay)
    return recipe.peak_lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training changes, by name: those that ask for a gradient.

    The rest is frozen. Names that the model's shape does not know (adapters) are weights like any.
    """
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build_optimizer(weights: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over some weights; matrices decay, norms do not.

    Args:
        weights: float32, from `trained_weights`.
        recipe: gives betas, epsilon and weight decay.
    """
    matrices = [w for w in weights.values() if w.ndim >= 2]
    vectors = [w for w in weights.values() if w.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=recipe.peak_lr, betas=recipe.betas, eps=recipe.eps, fused=True
    )
