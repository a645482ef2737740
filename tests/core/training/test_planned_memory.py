"""What a plan says of activations is what autograd keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from codecria.core.model.batch import batch_loss
from codecria.core.model.config import preset
from codecria.core.model.transformer import Transformer
from codecria.core.training.plan import memory_bytes
from codecria.data.rows.loader import stack
from codecria.data.rows.rows import Row

CONTEXT = 64


def kept_of(layers: int, dtype: str, n_kv_heads: int) -> int:
    """Bytes that a forward pass keeps for backward, beside the weights themselves."""
    config = replace(preset("1m"), n_layers=layers, n_kv_heads=n_kv_heads)
    model = Transformer(config).train()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, CONTEXT)).astype(np.int32)
    row = Row(ids[0], ids[1], (CONTEXT,), np.zeros(CONTEXT, dtype=np.uint8))
    kept: dict[int, Tensor] = {}  # by storage, alive so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        batch_loss(
            model,
            stack([row], document_mask=True),
            device=torch.device("cpu"),
            backend="sdpa",
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_a_layer_keeps_what_the_plan_says(dtype: str, n_kv_heads: int) -> None:
    config = replace(preset("1m"), n_layers=1, n_kv_heads=n_kv_heads)
    two = replace(config, n_layers=2)
    assert config.n_heads % n_kv_heads == 0
    planned = [memory_bytes(one, CONTEXT, 1, dtype)["activations"] for one in (config, two)]
    measured = [kept_of(layers, dtype, n_kv_heads) for layers in (1, 2)]
    copies = 2 * (two.parameters - config.parameters) if dtype == "bfloat16" else 0
    a_layer = measured[1] - measured[0] - copies
    assert a_layer == pytest.approx(planned[1] - planned[0], rel=0.02)
