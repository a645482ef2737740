"""The probe of training speed: small shapes whole, large ones by a shape of bounded cost."""

import pytest
import torch

from codecria.core.model.config import MODELS, ModelConfig
from codecria.core.training.probe import WHOLE_BELOW, WIDEST, _shape, measured_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", MODELS)
def test_what_is_probed_is_a_shape_of_bounded_cost(size: str) -> None:
    config = MODELS[size]
    shape = _shape(config)
    if config.parameters < WHOLE_BELOW:
        assert shape == config
    assert shape.dim <= WIDEST
    assert shape.parameters < 120e6
    assert shape.head_dim == config.head_dim
    assert shape.vocab_size == config.vocab_size
    assert shape.n_heads % shape.n_kv_heads == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rate_is_a_positive_number_of_flops(dtype: str) -> None:
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=64, vocab_size=500, max_context=64
    )
    assert 1e4 < measured_rate(config, dtype, CPU) < 1e14
