"""A run goes on with other numbers of processes, and other meshes, and sees and learns the same."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codecria.core.machine import compiler_available
from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")

STEPS = 8

# Runs, or parts of runs, one after the other: NAME:RECIPE:MESH:COMPILE:STOP, where STOP is the step
# to stop after. Each process that has rows of its own writes down what it trains on.
CHILD = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from codecria.core.model.config import MODELS
from codecria.core.training import trainer
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import agreed, run_stage
from codecria.core.training.world import joined

shards, folder, steps, *parts = sys.argv[1:]
torch.set_num_threads(1)
step, stop, ids = trainer.Trainer.step, None, None
MODELS["1m"] = replace(MODELS["1m"], dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48)

def recorded(self, number, batch):
    if self.world.cp_rank == self.world.tp_rank == 0:
        entry = {"step": number, "part": self.world.dp_rank, "ids": batch.ids.tolist(),
                 "targets": batch.targets.tolist()}
        with ids.open("a") as file:
            file.write(json.dumps(entry) + "\\n")
    self.stop_requested = number + 1 == stop and self.world.rank == self.world.size - 1
    return step(self, number, batch)

trainer.Trainer.step = recorded
with joined(torch.device("cpu"), timeout_s=120) as world:
    for part in parts:
        name, recipe, mesh, compiled, last = part.split(":")
        stop = int(last)
        request = StageRequest(
            recipe=recipe, size="1m", data=[shards], steps=int(steps), any_init=True, mesh=mesh,
            micro_batch_size=1, device="cpu", dtype="float32", compile=compiled, save_every=100,
            eval_every=100, eval_rows=3, log_every=1,
            changes={"context": 64, "batch_tokens": 256, "peak_lr": 5e-3, "warmup_steps": 2},
        )
        out = Path(folder) / name
        ids = Path(folder) / f"{name}-{world.size}-{world.rank}.jsonl"
        stage, ranks = agreed(world.main_first(lambda: resolve(request, out=out)), world)
        done = run_stage(stage, out, report=lambda _: None, warn=print,
                         started=lambda _: None, world=ranks)
        assert done.step == stop, (part, done)
sys.stdout.flush()
os._exit(0)  # as the command ends: gloo's threads may abort while Python takes them down
"""


def go(shards: Path, folder: Path, size: int, *parts: str) -> str:
    """Carry out parts of runs in `size` processes; what the main one warned of."""
    words = [str(shards), str(folder), str(STEPS), *parts]
    found = Launch([["-c", CHILD, *words]] * size).end(400)
    for status, _, errors in found:
        assert status == 0, errors
    return found[0][1]


def rows(folder: Path, name: str) -> dict[int, list[Any]]:
    """The ids and targets of each step of a run, whoever had them."""
    found: dict[int, list[Any]] = defaultdict(list)
    for path in folder.glob(f"{name}-[0-9]*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[entry["step"]].append(entry)
    return {
        step: [
            list(zip(part["ids"], part["targets"], strict=True))
            for part in sorted(parts, key=lambda part: part["part"])
        ]
        for step, parts in found.items()
    }


def flat(parts: list[Any]) -> list[Any]:
    return [row for part in parts for row in part]


def assert_same_run(folder: Path, one: str, other: str) -> None:
    """The same ids a step, and losses, norms and weights but for the order of sums."""
    mine, theirs = rows(folder, one), rows(folder, other)
    assert sorted(mine) == sorted(theirs) == list(range(STEPS))
    for step in mine:
        assert flat(mine[step]) == flat(theirs[step]), f"{other}: other rows in step {step}"
    records = [
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in (one, other)
    ]
    for a, b in zip(*records, strict=True):
        assert a.keys() - b.keys() <= {"compute_s", "slowest"}
        for key in ("step", "loss", "grad_norm", "validation_loss"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=2e-5), f"step {a['step']} {key}"
    weights = load_file(folder / other / "model" / "model.safetensors")
    for name, weight in load_file(folder / one / "model" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_runs_on_four_two_and_one_processes_see_and_learn_the_same(
    shards: Path, tmp_path: Path
) -> None:
    # Kills: rows by rank, tokens of a row twice or never under cp, parts that do not reshard.
    go(shards, tmp_path, 4, "fewer:pretrain:dp=4:off:2", "square:pretrain:dp=2,tp=2:off:3")
    warned = go(
        shards,
        tmp_path,
        2,
        "fewer:pretrain:dp=2:off:4",
        "fewer:pretrain:tp=2:off:6",
        "square:pretrain:cp=2:off:5",
        "long:lcft:cp=2:off:3",
        "long:lcft:dp=2:off:4",
        f"long:lcft:cp=2:off:{STEPS}",
    )
    assert "resuming with processes: 4 -> 2: the last bits may differ" in warned
    assert "resuming with mesh: dp=1,cp=2,tp=1 -> dp=2,cp=1,tp=1" in warned
    ends = [f"{run}:off:{STEPS}" for run in ("fewer:pretrain:auto", "square:pretrain:auto")]
    whole = [f"{run}:off:{STEPS}" for run in ("one:pretrain:auto", "long-one:lcft:auto")]
    go(shards, tmp_path, 1, *ends, *whole)
    for name, one in (("fewer", "one"), ("square", "one"), ("long", "long-one")):
        assert_same_run(tmp_path, one, name)


@pytest.mark.slow
@pytest.mark.skipif(not compiler_available(), reason="torch.compile needs a C++ compiler")
def test_compiled_meshes_train_the_run_of_one_eager_process(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kills: a graph that takes gathered weights for its own, or sums in place of means; in a second
    # launch, which finds compiled code, the graph of another process.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    meshes = ("dp=2", "tp=2", "cp=2")
    go(shards, tmp_path, 2, *(f"{mesh[:2]}:pretrain:{mesh}:on:{STEPS}" for mesh in meshes))
    go(shards, tmp_path, 2, f"again:pretrain:tp=2:on:{STEPS}")
    go(shards, tmp_path, 1, f"one:pretrain:auto:off:{STEPS}")
    for name in ("dp", "tp", "cp", "again"):
        assert_same_run(tmp_path, "one", name)
