"""Losses and gradients of several processes against one, however they share the work.

In float64 the gap is that of float64's rounding, so what is left of it in float32 is rounding too:
the order of sums differs, and nothing else.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from codecria.core.model.config import ModelConfig
from codecria.core.training.mesh import Mesh, check_mesh, parse_mesh
from codecria.core.training.recipes import recipe_for
from codecria.data.errors import UsageError
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")

# Key-value heads are fewer than heads, no count of processes divides the vocabulary, documents
# cross the chunks of a row, and no two rows have as many targets.
GRADIENTS = """
import gc, os, sys
from dataclasses import replace
import numpy as np, torch
from codecria.core.model.batch import batch_loss
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.core.training.adapters import attach
from codecria.core.training.mesh import parse_mesh
from codecria.core.training.optim import build_optimizer, trained_weights
from codecria.core.training.parallel import (
    clip_gradients, context_split, shard, sum_gradients, whole,
)
from codecria.core.training.recipes import recipe_for
from codecria.core.training.world import joined
from codecria.data.rows.rows import IGNORE, Counts, Row
from codecria.data.rows.loader import stack

torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)

def model(tied, dtype, known_rows=None):
    made = Transformer(ModelConfig(dim=24, n_layers=2, n_heads=6, n_kv_heads=2, hidden_dim=34,
                                   vocab_size=41, tied=tied))
    made.initialise(5)
    if known_rows is not None:  # an adapter, whose weights all matter
        recipe = replace(recipe_for("fim", "1m"), lora_rank=3)
        attach(made, recipe, dtype=torch.float32, known_rows=known_rows)
        torch.manual_seed(7)
        for weight in made.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, 0.0, 0.3)
    return made.to(dtype)

def rows():
    draws = np.random.default_rng(0)
    for n in range(4):
        ids, targets = draws.integers(0, 41, (2, 16)).astype(np.int32)
        targets[: 3 * n] = IGNORE
        yield Row(ids, targets, (3, 1, 12 - 2 * n, 2 * n)[: 4 if n else 3],
                  np.zeros(16, dtype=np.uint8))

def gradients(made, batch, count, dtype, split=None, once=False):
    total = torch.zeros((), dtype=torch.float64)
    parts = batch.split(1)  # accumulated over passes
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for number, part in enumerate(parts, start=1):
            sum_gradients(made, now=not once or number == len(parts))
            loss, _ = batch_loss(made, part, device=torch.device("cpu"), backend="sdpa",
                                 count=count, split=split)
            loss.backward()
            total += loss.detach()
    return total

def compare(world, tied, masked, dtype, tolerance, known_rows=None):
    batch = stack(list(rows()), document_mask=masked)
    stored = torch.float32 if dtype == torch.bfloat16 else dtype
    one, many = model(tied, stored, known_rows), model(tied, stored, known_rows)
    one.recompute = many.recompute = masked
    shard(many, world, dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    share = 4 // world.mesh.dp
    own = stack(list(rows())[world.dp_rank * share :][:share], document_mask=masked)
    split = context_split(world)
    if split is not None:
        own = own.at(split.places(16))
    count = int(world.total(torch.tensor(own.n_targets)))
    assert count == batch.n_targets, (count, batch.n_targets)
    wanted = gradients(one, batch, count, dtype)
    found = world.total(gradients(many, own, count, dtype, split, once=masked))
    torch.testing.assert_close(found, wanted, atol=0, rtol=tolerance)
    for clipped in (False, True):
        for (name, mine), theirs in zip(many.named_parameters(), one.parameters(), strict=True):
            assert mine.requires_grad == theirs.requires_grad, name
            if not mine.requires_grad:
                assert mine.grad is None, f"{name} is frozen"
                continue
            # No matrix is whole anywhere; with tp, half of an adapter is.
            if world.mesh.tp == 1 or (mine.ndim == 2 and known_rows is None):
                assert mine.to_local().numel() < mine.numel(), f"{name} is whole"
            gap = (whole(mine.grad) - theirs.grad).abs().max() / theirs.grad.abs().max()
            assert gap < tolerance, f"{name}: {gap:.2g}"
        norms = [clip_gradients(each.parameters(), 0.01) for each in (one, many)]
        torch.testing.assert_close(norms[1], norms[0], atol=0, rtol=tolerance)

def objects_after(steps, weights, optimizer):
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        clip_gradients(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    gc.collect()
    return len(gc.get_objects())

with joined(torch.device("cpu"), timeout_s=60) as base:
    which, *meshes = sys.argv[1:]
    for text in meshes:
        world = base.arranged(parse_mesh(text, base.size))
        many = model(True, torch.float32)
        shard(many, world)
        weights = trained_weights(many)
        optimizer = build_optimizer(weights, recipe_for("pretrain", "1m"))
        counts = [objects_after(n, list(weights.values()), optimizer) for n in (5, 1, 20)]
        assert counts[2] - counts[1] < 20, f"{text}: a step leaves objects behind: {counts}"
        cases = (
            (True, True, torch.float64, 1e-13),
            (False, True, torch.float64, 1e-13),
            (False, False, torch.float64, 1e-13),
            (True, False, torch.float32, 2e-6),
            (False, True, torch.bfloat16, 2e-2),
        )
        if which == "adapters":
            exact = torch.float64
            cases = ((True, True, exact, 1e-12, 38), (False, False, exact, 1e-12, 19))
        for tied, masked, dtype, tolerance, *known_rows in cases:
            try:
                compare(world, tied, masked, dtype, tolerance, *known_rows)
            except AssertionError as error:
                case = f"{text}, {tied=} {masked=} {dtype} {known_rows}"
                raise AssertionError(f"{case}: {error}") from error
    print("equal", flush=True)
os._exit(0)  # as the command ends: gloo's threads may abort while Python takes them down
"""


def compare(size: int, *meshes: str, which: str = "weights") -> None:
    for status, output, errors in Launch([["-c", GRADIENTS, which, *meshes]] * size).end():
        assert status == 0, errors
        assert (output, errors) == ("equal\n", "")


def test_losses_and_gradients_of_two_processes_are_those_of_one() -> None:
    # Kills: means for sums, a count of targets of one process, a part's norm, tokens whose keys
    # are of the wrong place, masked documents that see each other across a border of chunks.
    compare(2, "dp=2", "tp=2", "cp=2")


@pytest.mark.slow
def test_losses_and_gradients_of_adapters_are_those_of_one_process() -> None:
    # Kills: A or B split by the other side, a sum over processes taken twice, new rows that lie
    # across two parts of the vocabulary, activations recomputed in another shape.
    compare(2, "tp=2", "cp=2", which="adapters")


@pytest.mark.slow
def test_losses_and_gradients_of_four_processes_are_those_of_one() -> None:
    compare(4, "dp=2,tp=2", "tp=2,cp=2", "dp=2,cp=2", "cp=4")


# Three stages by one process, and by two on each mesh; their metrics must agree.
TRAINED = """
import os, sys
from pathlib import Path
import torch
from codecria.core.training.meter import read_metrics
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import agreed, run_stage
from codecria.core.training.world import ALONE, joined

shards, dialogs, folder, *meshes = sys.argv[1:]
torch.set_num_threads(1)
common = dict(steps=3, any_init=True, micro_batch_size=4, device="cpu", dtype="float32",
              compile="off", recompute="on", save_every=100, eval_every=3, eval_rows=5,
              log_every=1, changes={"context": 64, "batch_tokens": 512, "peak_lr": 5e-3,
                                    "warmup_steps": 1})
base = Path(folder) / "pretrain-one" / "model"
stages = {
    "pretrain": dict(size="1m", data=[shards]),
    "fim": dict(init=base, data=[shards]),
    "instruct": dict(init=base, dialogs=[dialogs], replay=[f"{shards}=0.5"]),
}
warned = []
TIMED = ("tokens_per_s", "mfu", "data_wait_s", "step_s", "memory_gb")
SEVERAL = {"compute_s", "slowest"}  # which one process alone has not

def train(recipe, mesh, world):
    request = StageRequest(recipe=recipe, mesh=mesh or "auto", **common, **stages[recipe])
    out = Path(folder) / f"{recipe}-{mesh or 'one'}"
    stage, world = agreed(world.main_first(lambda: resolve(request, out=out)), world)
    run_stage(stage, out, report=lambda _: None, warn=warned.append, started=lambda _: None,
              world=world)
    return read_metrics(out / "metrics.jsonl")

def compare(name, found, wanted):
    if isinstance(wanted, dict):
        assert found.keys() - SEVERAL == wanted.keys(), name
        for key in wanted:
            if key not in TIMED:
                compare(f"{name} {key}", found[key], wanted[key])
    elif isinstance(wanted, float):
        assert abs(found - wanted) <= 2e-5 * abs(wanted), f"{name}: {found} for {wanted}"
    else:
        assert found == wanted, f"{name}: {found} for {wanted}"

with joined(torch.device("cpu"), timeout_s=60) as world:
    for recipe in stages:
        if world.is_main:
            wanted = train(recipe, "", ALONE)
        world.barrier()
        for mesh in meshes:
            found = train(recipe, mesh, world)
            if world.is_main:
                assert any("validation_loss" in record for record in wanted)
                for mine, theirs in zip(found, wanted, strict=True):
                    compare(f"{recipe} {mesh} step {theirs['step']}", mine, theirs)
    assert warned == []
    print("equal", flush=True)
os._exit(0)  # as the command ends: gloo's threads may abort while Python takes them down
"""


@pytest.mark.slow
def test_metrics_of_every_layout_are_those_of_one_process(
    tokenizer: Tokenizer, corpus: list[str], shard_writer: Any, tmp_path: Path
) -> None:
    # Kills: documents counted once by each process that shares a row, losses of a kind by another
    # process's places, validation rows of other ranks, weights that change with the mesh.
    shards, chats = tmp_path / "code", tmp_path / "chats.jsonl"
    documents = [tokenizer.encode(text[:1500], bos=True, eos=True) for text in corpus]
    shard_writer(shards, documents, tokenizer)
    dialogs = [{"instruction": f"{n}?", "output": f"{n}."} for n in range(40)]
    chats.write_text("".join(json.dumps(dialog) + "\n" for dialog in dialogs))
    words = [str(path) for path in (shards, chats, tmp_path)]
    found = Launch([["-c", TRAINED, *words, "dp=2", "tp=2", "cp=2"]] * 2).end()
    for status, output, errors in found:
        assert (status, output) == (0, "equal\n"), errors


def test_a_mesh_is_written_as_its_axes_and_dp_is_what_the_others_leave() -> None:
    assert parse_mesh("auto", 8) is None
    assert parse_mesh("dp=2,tp=4", 8) == Mesh(dp=2, tp=4)
    assert parse_mesh("cp=2, tp=2", 8) == Mesh(dp=2, cp=2, tp=2)
    assert parse_mesh("tp=1", 1) == Mesh()
    assert str(Mesh(dp=8, tp=2)) == "dp=8,cp=1,tp=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dp=2,tp=2", "is for 4 processes, and there are 8"),
        ("tp=3", "3 does not divide 8 processes"),
        ("pp=2", "'pp=2' is not one of dp=N, tp=N, cp=N"),
        ("tp=0", "'tp=0' is not one of"),
        ("tp", "'tp' is not one of"),
        ("", "'' is not one of"),
        ("tp=2,tp=4", "tp is there twice"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_mesh(text, 8)


def test_what_a_mesh_cannot_divide_is_refused() -> None:
    recipe = recipe_for("pretrain", "15m")
    model = ModelConfig(dim=48, n_layers=1, n_heads=6, n_kv_heads=2, hidden_dim=100, vocab_size=5)
    check_mesh(Mesh(dp=2, tp=2, cp=2), recipe, model)
    for mesh, message in (
        (Mesh(dp=7), "rows cannot be shared equally by dp=7"),
        (Mesh(cp=3), "cannot be cut for cp=3 and tp=1: 6 does not divide them"),
        (Mesh(tp=4), r"does not divide the model's n_heads 6 and n_kv_heads 2 and vocab_size 5"),
    ):
        with pytest.raises(UsageError, match=message):
            check_mesh(mesh, recipe, model)


def test_neighbours_in_tp_have_neighbouring_ranks() -> None:
    places = [Mesh(dp=2, cp=2, tp=2).place(rank) for rank in range(8)]
    assert places == [(d, c, t) for d in (0, 1) for c in (0, 1) for t in (0, 1)]
