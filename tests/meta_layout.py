"""Folders in Meta's layout, written as its own trainer would, for the tests of what reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from codecria.core.checkpoints.formats.layout import meta_name, shapes_of
from codecria.core.checkpoints.formats.meta import width_rule
from codecria.core.model.config import ModelConfig

# Structurally as the paper's, a hundredth as wide: (ranks, shape).
NARROW = {
    "7b": (
        1,
        ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=4, hidden_dim=256, vocab_size=112),
    ),
    "13b": (
        2,
        ModelConfig(dim=80, n_layers=2, n_heads=10, n_kv_heads=10, hidden_dim=256, vocab_size=112),
    ),
    "34b": (
        4,
        ModelConfig(dim=128, n_layers=3, n_heads=16, n_kv_heads=4, hidden_dim=512, vocab_size=96),
    ),
    "70b": (
        8,
        ModelConfig(dim=128, n_layers=2, n_heads=16, n_kv_heads=8, hidden_dim=4096, vocab_size=112),
    ),
}


def meta_parts(weights: dict[str, torch.Tensor], ranks: int) -> list[dict[str, torch.Tensor]]:
    """Split weights under Meta's names as its trainer lays them out; written for the tests."""
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, weight in weights.items():
        if any(key in name for key in ("wq", "wk", "wv", "w1", "w3", "output")):
            pieces = weight.chunk(ranks, 0)
        elif any(key in name for key in ("wo", "w2", "tok_embeddings")):
            pieces = weight.chunk(ranks, 1)
        else:
            pieces = (weight,) * ranks
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    for part in parts:
        part["rope.freqs"] = torch.ones(4)
    return parts


def meta_folder(
    path: Path,
    config: ModelConfig,
    *,
    ranks: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    tokenizer: Path | None = None,
    **params: object,
) -> dict[str, torch.Tensor]:
    """A folder as Meta releases them, of random weights, which are returned whole."""
    draws = torch.Generator().manual_seed(seed)
    weights = {}
    for ours, shape in shapes_of(config).items():
        scale = 1.0 if len(shape) == 1 else 0.3 / math.sqrt(shape[1] / 16)
        value = torch.randn(shape, generator=draws) * scale + (1.0 if len(shape) == 1 else 0.0)
        weights[meta_name(ours)] = value.to(dtype)
    path.mkdir(parents=True)
    for rank, part in enumerate(meta_parts(weights, ranks)):
        torch.save(part, path / f"consolidated.{rank:02d}.pth")
    multiple_of, multiplier = width_rule(config.dim, config.hidden_dim)
    told: dict[str, object] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
    }
    if multiplier is not None:
        told["ffn_dim_multiplier"] = multiplier
    if config.n_kv_heads != config.n_heads:
        told["n_kv_heads"] = config.n_kv_heads
    if config.rope_theta != 1e4:
        told["rope_theta"] = config.rope_theta
    (path / "params.json").write_text(json.dumps(told | params))
    if tokenizer is not None:
        (path / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return weights
