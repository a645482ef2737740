"""How fast this machine trains: one short step on random tokens, in at most a few seconds.

A plan needs the speed of training, not the peak of matrix products: small models reach a fifth of
that peak or less. The figure is of this moment, and wavers on a shared machine.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from codecria.core.machine import matmul_flops
from codecria.core.model.attention import choose_backend
from codecria.core.model.batch import batch_loss
from codecria.core.model.config import ModelConfig
from codecria.core.model.dtypes import DTYPES
from codecria.core.model.transformer import Transformer
from codecria.data.rows.loader import stack
from codecria.data.rows.rows import Row

WIDEST = 1_024  # wider models are probed at this width: they reach at least its share of the peak
LAYERS = 2  # of models too large to probe whole
WHOLE_BELOW = 20_000_000  # parameters of a model that is probed whole
STEP_FLOPS = 6e10  # of one probe step on a CPU, about: half a second to two
CUDA_STEP_FLOPS = 6e12
SLOW_S = 6.0  # a probe step that would take longer is not run


@lru_cache(maxsize=4)
def measured_rate(config: ModelConfig, dtype: str, device: torch.device) -> float:
    """FLOP/s of a training step of a model's shape, counted as plans count them.

    Args:
        config: the shape; of large ones, a few layers of a smaller width are measured.
        dtype: of matrix products.
        device: where.
    """
    if device.type == "cpu" and dtype != "float32":
        peak = matmul_flops(DTYPES[dtype], device)
        if peak < STEP_FLOPS / SLOW_S:
            return peak  # without hardware for the type, products are all that a step waits for
    shape = _shape(config)
    budget = STEP_FLOPS if device.type == "cpu" else CUDA_STEP_FLOPS
    T = int(min(512, config.max_context, max(32, budget / shape.training_flops(256))))
    with device:
        model = Transformer(shape)
    model.initialise(0)
    model.train().requires_grad_(True)
    ids = np.arange(T, dtype=np.int32) % shape.vocab_size
    rows = 1 if device.type == "cpu" else 8
    row = Row(ids, ids, (T,), np.zeros(T, dtype=np.uint8))
    batch = stack([row] * rows, document_mask=False)

    def step() -> float:
        begin = time.perf_counter()
        with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32"):
            loss, _ = batch_loss(
                model,
                batch,
                device=device,
                backend=choose_backend(device)[0],
                count=batch.n_targets,
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    step()  # first touch, lazy initialisation
    return rows * T * shape.training_flops(T) / step()


def _shape(config: ModelConfig) -> ModelConfig:
    """A shape that can be probed in a second or two."""
    if config.parameters < WHOLE_BELOW:
        return config
    if config.dim <= WIDEST:
        return replace(config, n_layers=min(config.n_layers, LAYERS))
    heads = WIDEST // config.head_dim
    return replace(
        config,
        dim=WIDEST,
        n_layers=LAYERS,
        n_heads=heads,
        n_kv_heads=max(1, heads * config.n_kv_heads // config.n_heads),
        hidden_dim=max(32, config.hidden_dim * WIDEST // config.dim // 32 * 32),
    )
