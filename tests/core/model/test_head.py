"""The loss that `forward` computes against torch's, of logits that are all held."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from codecria.core.model.attention import PackedAttention
from codecria.core.model.batch import batch_loss, loss_by_kind, mean_loss
from codecria.core.model.config import ModelConfig
from codecria.core.model.head import Targets
from codecria.core.model.transformer import Transformer
from codecria.data.rows.loader import Batch
from codecria.data.rows.rows import IGNORE

SHAPE = ModelConfig(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=32, vocab_size=40)
CPU = torch.device("cpu")


def fresh(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialise(0)
    return model


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, positions and targets of two rows of nine tokens, a third of them without loss."""
    generator = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(40, (2, 9), generator=generator) for _ in range(2))
    targets[:, ::3] = IGNORE
    return ids, torch.arange(9).expand(2, 9), targets


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_within_forward_is_that_of_all_logits_with_the_same_gradients(tied: bool) -> None:
    # Kills: the loss of another matrix than `logits` multiplies by, a count that is not applied.
    ids, positions, targets = drawn()
    gradients = []
    for within in (True, False):
        model = fresh(replace(SHAPE, tied=tied))
        if within:
            loss, each = model(ids, positions, PackedAttention(None), Targets(targets, count=7))
            assert each.shape == (18,)
        else:
            logits = model.logits(model(ids, positions, PackedAttention(None)))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / 7
        loss.backward()
        gradients.append({name: w.grad for name, w in model.named_parameters()} | {"loss": loss})
    for name, reference in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], reference, atol=1e-6, rtol=1e-4)


def test_the_loss_of_a_batch_is_the_mean_of_its_kinds() -> None:
    ids, positions, targets = (x.numpy().astype(np.int32) for x in drawn())
    kinds = np.repeat([[0], [3]], 9, axis=1).astype(np.uint8)
    batch = Batch(ids, targets, positions, ((4, 5), (9,)), int((targets != IGNORE).sum()), kinds)
    model = fresh(SHAPE)
    loss, each = batch_loss(model, batch, device=CPU, backend="sdpa", count=batch.n_targets)
    by_kind = loss_by_kind(each, batch)
    assert mean_loss(by_kind, slice(None)) == pytest.approx(loss.item(), rel=1e-6)
    assert by_kind[:, 1].tolist() == [6.0, 0.0, 0.0, 6.0]
    assert mean_loss(by_kind, slice(1, 3)) is None
