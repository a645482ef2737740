"""Weights before the first step, on several processes: equal to one's, and never whole in any."""

from pathlib import Path

import pytest
import torch

from codecria.core.checkpoints.saving import publish
from codecria.core.model import transformer
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from tests.core.training.launch import Launch
from tests.meta_layout import NARROW, meta_folder

# Each process fills its parts and compares them with a model that one process fills alone.
STARTED = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.model import transformer
from codecria.core.training.initial import initial_model
from codecria.core.training.mesh import Mesh
from codecria.core.training.parallel import whole
from codecria.core.training.recipes import recipe_for
from codecria.core.training.run import RunConfig
from codecria.core.training.start import FromCheckpoint, FromScratch
from codecria.core.training.world import ALONE, joined

def run(config):
    fields = dict.fromkeys(RunConfig.__dataclass_fields__)
    return RunConfig(**fields | {"model": config, "recipe": recipe_for("fim", "7b"),
                                 "dtype": "float32"})

with joined(torch.device("cpu"), timeout_s=60) as world:
    transformer.DRAWN = 500 * (1 + world.rank)  # numbers at once, of matrices of up to 2,200
    for number, word in enumerate(sys.argv[1:]):
        if number == 0 and world.size == 4:  # Meta's, whose heads two can share
            world = world.arranged(Mesh(dp=2, tp=2))
        elif number:
            world = world.arranged(Mesh(dp=world.size))
        checkpoint = Checkpoint.open(Path(word))
        start, config = FromCheckpoint(checkpoint), checkpoint.config
        wider = replace(config, vocab_size=config.vocab_size + 13)
        for shape, come in ((config, start), (wider, start), (wider, FromScratch("1m"))):
            options = dict(known_rows=config.vocab_size, device=world.device)
            one = initial_model(run(shape), come, **options)
            split = initial_model(run(shape), come, world=world, **options)
            wanted = dict(one.named_parameters())
            for name, weight in split.named_parameters():
                assert weight.to_local().numel() < weight.numel(), f"{name} is whole"
                assert torch.equal(whole(weight), wanted[name]), f"{word} {name}"
    print("equal", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("size", [2, 4])
def test_weights_do_not_depend_on_the_number_of_processes(size: int, tmp_path: Path) -> None:
    # Kills: parts drawn one by one, rows of Meta's order, new rows of a part's mean, blocks of
    # draws that are cut otherwise.
    meta, ours = tmp_path / "meta", tmp_path / "ours"
    meta_folder(meta, NARROW["34b"][1], ranks=4)
    # Sizes that do not divide by the number of processes.
    model = Transformer(
        ModelConfig(dim=30, n_layers=2, n_heads=5, n_kv_heads=5, hidden_dim=37, vocab_size=61)
    )
    model.initialise(1)
    publish(ours, model, dtype=torch.float32, tokenizer=None, lineage={}, max_shard_bytes=20_000)
    for status, output, errors in Launch([["-c", STARTED, str(meta), str(ours)]] * size).end():
        assert status == 0, errors
        assert output == "equal\n"


def test_fresh_weights_are_those_of_whole_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    # Kills: blocks that PyTorch draws in another way than the whole.
    config = ModelConfig(dim=20, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=37, vocab_size=203)
    model = Transformer(config)
    for drawn in (1, 700, 10_000):
        monkeypatch.setattr(transformer, "DRAWN", drawn)
        model.initialise(3)
        whole = torch.Generator().manual_seed(3)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                deviation = 0.02 / (2**0.5 if name.endswith(("wo.weight", "w2.weight")) else 1)
                wanted = torch.empty(weight.shape).normal_(0.0, deviation, generator=whole)
                assert torch.equal(weight, wanted), (name, drawn)


# The growth of a process's memory at its peak, in MB, while it gets its part of a large model.
PEAK = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed.checkpoint, torch.distributed.fsdp
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.training.initial import initial_model
from codecria.core.training.recipes import recipe_for
from codecria.core.training.run import RunConfig
from codecria.core.training.start import FromCheckpoint, FromScratch
from codecria.core.training.world import joined

def kib(key):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(key))

with joined(torch.device("cpu"), timeout_s=120) as world:
    checkpoint = Checkpoint.open(Path(sys.argv[1]))
    start = FromScratch("1m") if sys.argv[2] == "fresh" else FromCheckpoint(checkpoint)
    fields = dict.fromkeys(RunConfig.__dataclass_fields__)
    config, known = checkpoint.config, checkpoint.config.vocab_size
    if sys.argv[2] == "grown":  # by rows of new pieces
        config = replace(config, vocab_size=known + 16)
    fields |= {"model": config, "recipe": recipe_for("fim", "7b"), "dtype": "float32"}
    run = RunConfig(**fields)
    world.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = kib("VmRSS")
    model = initial_model(run, start, known_rows=known, device=world.device, world=world)
    world.barrier()
    print(round((kib("VmHWM") - before) / 1024), flush=True)
os._exit(0)
"""


DEEP = ModelConfig(
    dim=1024, n_layers=6, n_heads=16, n_kv_heads=16, hidden_dim=2752, vocab_size=1_000
)
# Of a large vocabulary, whose two matrices are nearly all there is.
FLAT = ModelConfig(
    dim=512, n_layers=1, n_heads=8, n_kv_heads=8, hidden_dim=1376, vocab_size=128_000
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "start", "config"),
    [(2, "meta", DEEP), (4, "ours", DEEP), (2, "fresh", FLAT), (2, "grown", FLAT)],
)
def test_no_process_holds_the_whole_model_at_the_start(
    size: int, start: str, config: ModelConfig, tmp_path: Path
) -> None:
    # Kills: a matrix drawn whole in every process, or copied to another type.
    folder = tmp_path / "model"
    if start == "meta":
        meta_folder(folder, config, ranks=2, dtype=torch.float32)
    else:
        model = Transformer(config)
        model.initialise(0)
        publish(folder, model, dtype=torch.float32, tokenizer=None, lineage={})
    whole_mb = 4 * config.parameters / 2**20
    assert whole_mb > 290
    embedding_mb = 4 * config.vocab_size * config.dim / 2**20
    layers_mb = 4 * config.hidden_dim * config.dim / 2**20  # the largest matrix of a layer
    for status, output, errors in Launch([["-c", PEAK, str(folder), start]] * size).end():
        assert status == 0, errors
        # Its part, a part of the embedding and a few matrices on their way in, and what libraries
        # need.
        assert int(output) < (whole_mb + embedding_mb) / size + 4 * layers_mb + 40
