"""What the inputs of each matrix are worth: the weights of the error that 4-bit rounding minimises.

A short text of code (parity.PROBE_TEXT, some 250 tokens) is read once, one layer in memory at a
time. More text gains little: see docs/convert.md for figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codecria.core.checkpoints import parity
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.model.config import ModelConfig
from codecria.data.tokenizer.tokenizer import Tokenizer

Importance = Mapping[str, npt.NDArray[np.float32]]  # (C,) of each matrix, by our name
_WINDOW = 512  # tokens read at most
_FLOOR = 1e-3  # of the mean: what an input is worth at least, since the text is short


def importance(
    source: Checkpoint,
    config: ModelConfig,
    tokenizer: Tokenizer,
    on_layer: Callable[[int], None] | None = None,
) -> Importance:
    """Mean square of each input of each matrix over the text.

    Args:
        source: the checkpoint that is converted.
        config: its shape.
        tokenizer: its tokenizer.
        on_layer: called as each layer is done.

    Raises:
        UserError: a weights file is damaged.
    """
    found: dict[str, npt.NDArray[np.float32]] = {}

    def watch(name: str, x: Tensor) -> None:
        squares = x.flatten(0, -2).double().pow(2).mean(0)
        squares = squares.clamp(min=_FLOOR * float(squares.mean()))
        found[name] = squares.float().numpy()

    length = min(_WINDOW, config.max_context)
    ids = torch.tensor([parity.probe_ids(tokenizer)[:length]])
    positions = torch.arange(ids.shape[1])[None]
    view = parity.View(config=config, rotary_order=source.weights.rotary_order)
    parity.logits(source.weights, [view], ids, positions, on_layer, on_input=watch)
    return found
