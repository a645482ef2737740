"""The reference Transformer with weights that are given by Hugging Face name."""

from collections.abc import Mapping

import numpy as np
import torch

from codecria.core.checkpoints.formats.layout import hugging_face_name
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer


@torch.no_grad()
def torch_model(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> Transformer:
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(weights[hugging_face_name(name)]))
    return model.eval()
