"""Parts of weights, read from every layout: the same numbers as in the whole model."""

from pathlib import Path

import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.formats.weights import Box
from codecria.core.checkpoints.parts import PartReader, read_parts
from codecria.core.checkpoints.saving import publish
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from tests.meta_layout import NARROW, meta_folder

CPU = torch.device("cpu")
LAYOUTS = ("one file", "several files", "7b", "13b", "34b", "70b")


@pytest.fixture(params=LAYOUTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """A small model on disk: ours in one or several files, and Meta's of one to eight ranks."""
    layout = request.param
    if layout in NARROW:
        ranks, config = NARROW[layout]
        meta_folder(tmp_path / "model", config, ranks=ranks)
        return Checkpoint.open(tmp_path / "model")
    model = Transformer(NARROW["34b"][1])
    model.initialise(3)
    publish(
        tmp_path / "model",
        model,
        dtype=torch.float32,
        tokenizer=None,
        lineage={},
        max_shard_bytes=5_000_000_000 if layout == "one file" else 100_000,
    )
    return Checkpoint.open(tmp_path / "model")


def test_any_box_of_a_weight_is_that_of_the_whole_model(checkpoint: Checkpoint) -> None:
    # Kills: rows of other heads, rows in the stored order, columns of another rank.
    whole = load_model(checkpoint, device=CPU)
    for name, weight in whole.named_parameters():
        for parts in (1, 3, 7):
            for axis in range(weight.ndim):
                start = 0
                for chunk in weight.detach().chunk(parts, axis):
                    size = chunk.shape[axis]
                    box: Box = tuple(
                        slice(start, start + size) if n == axis else slice(0, length)
                        for n, length in enumerate(weight.shape)
                    )
                    found = torch.empty(chunk.shape)
                    checkpoint.weights.read_box(name, checkpoint.config, box, found)
                    assert torch.equal(found, chunk.float()), f"{name} {box}"
                    start += size


def test_one_process_reads_every_weight_whole(checkpoint: Checkpoint) -> None:
    wanted = dict(load_model(checkpoint, device=CPU).named_parameters())
    found = {name: torch.full(tuple(w.shape), 7.0) for name, w in wanted.items()}
    read_parts(found, lambda n, box, to: checkpoint.weights.read_box(n, checkpoint.config, box, to))
    assert all(torch.equal(found[name], weight.float()) for name, weight in wanted.items())


def test_a_users_error_while_reading_comes_out_as_it_was() -> None:
    def fail(name: str, box: Box, target: torch.Tensor) -> None:
        raise UserError(f"{name} is damaged", hint="get it again")

    with pytest.raises(UserError, match="norm is damaged") as caught:
        read_parts({"norm": torch.ones(2)}, fail)
    assert caught.value.hint == "get it again"
    assert not PartReader.validate_checkpoint_id("norm")
