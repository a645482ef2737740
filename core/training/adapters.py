"""Training an adapter: the base is frozen, and what is trained lies beside it.

    layers.0.attention.wq.weight      frozen: in the type of matrix products, or in 4 bits
    layers.0.attention.wq.lora_a      trained, float32, with moments
    layers.0.attention.wq.lora_b      likewise
    new_embeddings, new_outputs       trained where the stage has added pieces to the vocabulary

Only what is trained is saved, as an adapter folder (core/checkpoints/adapters/folder.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codecria.core.checkpoints.adapters.folder import (
    ADAPTER_KEY,
    CONFIG_NAME,
    WEIGHTS_NAME,
    peft_config,
    peft_names,
    peft_rows_name,
)
from codecria.core.checkpoints.adapters.weights import base_sample
from codecria.core.checkpoints.checkpoint import TOKENIZER_NAME, Checkpoint
from codecria.core.checkpoints.formats.chat_template import template_for
from codecria.core.checkpoints.formats.hugging_face import write_tokenizer
from codecria.core.checkpoints.formats.layout import EMBEDDING, OUTPUT, shapes_of
from codecria.core.checkpoints.saving import Contents, planned_of
from codecria.core.checkpoints.writing import write_lineage
from codecria.core.model.config import ModelConfig
from codecria.core.model.four_bits import BITS
from codecria.core.model.linear import Linear, fresh_adapter
from codecria.core.model.transformer import Transformer
from codecria.data.files import atomic_write_json, digest_file
from codecria.data.rows.rows import keyed
from codecria.data.tokenizer.tokenizer import Tokenizer

from .recipes import Recipe

_PARTS = {
    "all": ("attention", "feed_forward"),
    "attention": ("attention",),
    "mlp": ("feed_forward",),
}
NEW_ROWS = {"new_embeddings": EMBEDDING, "new_outputs": OUTPUT}


def adapted_matrices(config: ModelConfig, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Shape of each matrix that gets an adapter, by our name."""
    C, kv, F = config.dim, config.n_kv_heads * config.head_dim, config.hidden_dim
    shapes = {
        "attention": {"wq": (C, C), "wk": (kv, C), "wv": (kv, C), "wo": (C, C)},
        "feed_forward": {"w1": (F, C), "w2": (C, F), "w3": (F, C)},
    }
    return {
        f"layers.{layer}.{part}.{matrix}.weight": shape
        for layer in range(config.n_layers)
        for part in _PARTS[recipe.lora_layers]
        for matrix, shape in shapes[part].items()
    }


def trained_parameters(config: ModelConfig, recipe: Recipe, new_rows: int) -> int:
    """Weights that an adapter trains.

    Args:
        config: the shape.
        recipe: gives rank and matrices.
        new_rows: of the embedding and the output matrix.
    """
    matrices = adapted_matrices(config, recipe).values()
    tables = 1 if config.tied else 2
    return recipe.lora_rank * sum(map(sum, matrices)) + tables * new_rows * config.dim


def base_bytes(config: ModelConfig, recipe: Recipe, dtype: str) -> int:
    """Bytes of the frozen base on a device.

    Args:
        config: the shape.
        recipe: says whether its layers are in 4 bits.
        dtype: of matrix products, in which matrices are kept otherwise.
    """
    table = config.vocab_size * config.dim
    tables = table * (1 if config.tied else 2)
    size = 4 if dtype == "float32" else 2
    output = 0 if config.tied else size * table
    layers = four_bit_bytes(config) if recipe.qlora else size * (config.parameters - tables)
    return layers + output + 4 * table


def four_bit_bytes(config: ModelConfig) -> int:
    """Bytes of the layers in 4 bits, which every process of `--qlora` has whole."""
    tables = config.vocab_size * config.dim * (1 if config.tied else 2)
    return int((config.parameters - tables) * BITS / 8)


def attach(model: Transformer, recipe: Recipe, *, dtype: torch.dtype, known_rows: int) -> None:
    """Freeze a model and make place for an adapter, which `draws` fills.

    Args:
        model: float32, with or without weights; its matrices become `dtype`.
        recipe: gives rank, alpha, matrices and seed, and whether the layers are in 4 bits, which
            `fill_four_bits` fills.
        dtype: of matrix products: rounding to it is what they do in any case.
        known_rows: rows of the embeddings that the base has trained; the others are trained here.
    """
    model.requires_grad_(requires_grad=False)
    if recipe.qlora:
        for ours in four_bit_matrices(model.config):
            _matrix(model, ours).make_four_bits()
    for ours in shapes_of(model.config):
        module = model.get_submodule(ours.rpartition(".")[0])
        if isinstance(module, Linear) and not module.quantised:
            module.weight.data = module.weight.data.to(dtype)
    device = model.tok_embeddings.device
    for ours, (rows, columns) in adapted_matrices(model.config, recipe).items():
        a = torch.empty(recipe.lora_rank, columns, device=device)
        b = torch.empty(rows, recipe.lora_rank, device=device)
        _matrix(model, ours).adapt(a, b, recipe.lora_alpha / recipe.lora_rank)
    if model.config.vocab_size > known_rows:
        model.train_last_rows(model.config.vocab_size - known_rows)


def draws(model: Transformer, recipe: Recipe) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The weights of a fresh adapter, which changes nothing yet.

    Args:
        model: from `attach`.
        recipe: gives the seed; each matrix has draws of its own.

    Yields:
        each weight, and what to give it: the whole, float32, on the CPU.
    """
    for ours, (rows, columns) in adapted_matrices(model.config, recipe).items():
        seeded = torch.Generator().manual_seed(keyed("adapter", recipe.seed, ours) >> 1)
        module = _matrix(model, ours)
        assert module.lora_a is not None, f"{ours} has no adapter"
        assert module.lora_b is not None, f"{ours} has no adapter"
        a, b = fresh_adapter(columns, rows, recipe.lora_rank, seeded)
        yield module.lora_a, a
        yield module.lora_b, b


def four_bit_matrices(config: ModelConfig) -> list[str]:
    """The matrices that `--qlora` keeps in 4 bits: those of the layers."""
    shapes = shapes_of(config)
    return [name for name in shapes if name.startswith("layers.") and len(shapes[name]) == 2]


def fill_four_bits(model: Transformer, name: str, weight: Tensor) -> None:
    """Put a whole matrix into its place in a model from `attach`."""
    _matrix(model, name).quantise(weight)


def _matrix(model: Transformer, ours: str) -> Linear:
    module = model.get_submodule(ours.removesuffix(".weight"))
    assert isinstance(module, Linear), f"{ours} is no matrix of a layer"
    return module


def base_record(checkpoint: Checkpoint, digest: str, *, four_bits: bool) -> dict[str, Any]:
    """What an adapter records of its base.

    Args:
        checkpoint: the base.
        digest: of its shape and weights.
        four_bits: training has its matrices in 4 bits.
    """
    path = checkpoint.tokenizer_path
    return {
        "path": str(checkpoint.folder.resolve()),
        "digest": digest,
        "tokenizer": Tokenizer.load(path).digest if path is not None else None,
        "rope_theta": checkpoint.config.rope_theta,
        "four_bits": four_bits,
        "sample": base_sample(checkpoint.weights, checkpoint.config),
    }


def peft_tensors(trained: Mapping[str, Any]) -> dict[str, str]:
    """Our names of the trained weights, by PEFT's."""
    found = {}
    for name in trained:
        if name in NEW_ROWS:
            found[peft_rows_name(NEW_ROWS[name])] = name
            continue
        module, _, leaf = name.rpartition(".")
        a, b = peft_names(f"{module}.weight")
        found[a if leaf == "lora_a" else b] = name
    return dict(sorted(found.items()))


def adapter_contents(
    model: Transformer,
    recipe: Recipe,
    trained: Mapping[str, Tensor],
    *,
    tokenizer: Path | None,
    lineage: Mapping[str, Any],
    base: Mapping[str, Any],
) -> Contents:
    """The folder of a model's adapter, as PEFT lays it out.

    Args:
        model: gives the shape.
        recipe: gives rank, alpha and matrices.
        trained: the trained weights, of which this process may hold parts.
        tokenizer: the tokenizer.model of the adapted model.
        lineage: what the adapter was made from.
        base: from `base_record`.
    """
    tensors = {theirs: trained[ours] for theirs, ours in peft_tensors(trained).items()}
    rows = {
        ours: range(model.config.vocab_size - len(trained[name]), model.config.vocab_size)
        for name, ours in NEW_ROWS.items()
        if name in trained
    }

    def beside(folder: Path, digests: dict[str, str]) -> None:
        atomic_write_json(
            folder / CONFIG_NAME,
            peft_config(
                rank=recipe.lora_rank,
                alpha=recipe.lora_alpha,
                matrices=list(adapted_matrices(model.config, recipe)),
                base=str(base.get("path", "")),
                rows=rows,
            ),
        )
        own = {WEIGHTS_NAME: digests[WEIGHTS_NAME]}
        if tokenizer is not None:
            known = Tokenizer.load(tokenizer)
            write_tokenizer(folder, known, model.config, template_for(known, lineage))
            own[TOKENIZER_NAME] = digest_file(folder / TOKENIZER_NAME)
        write_lineage(folder, {**lineage, ADAPTER_KEY: dict(base)}, model.config, own)

    return Contents(tensors, {WEIGHTS_NAME: planned_of(tensors, torch.float32)}, beside)
