"""A small model whose tokens are the letters of the alphabet."""

from __future__ import annotations

import torch

from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=26, max_context=64
)
END = 3


def letter_model(config: ModelConfig = CONFIG) -> Transformer:
    """Random weights, large enough that it says different things."""
    model = Transformer(config)
    model.initialise(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0 if weight.ndim == 2 else 1.0)
    return model.eval()


class Letters:
    """A stream that writes token n as the n-th letter."""

    def push(self, token: int) -> str:
        return chr(ord("a") + token)

    def finish(self) -> str:
        return ""
