"""A run killed at any moment, also within a save, ends with the same weights as an unbroken one."""

import json
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.machine import compiler_available

# A process that trains and ends itself with SIGKILL at a chosen moment: no handler runs, no buffer
# is flushed, and the parent needs no clock.
CHILD = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from codecria.core import machine
from codecria.core.checkpoints import saving
from codecria.core.model.config import MODELS
from codecria.core.training import resume, trainer
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import run_stage

shards, out, compiled, where, when, init, recipe, dialogs, lora = sys.argv[1:]
when = int(when)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function):
    # The when-th call is never made.
    calls = iter(range(1, 1000))
    return lambda *a, **k: die() if next(calls) == when else function(*a, **k)

if where == "moments":        # weights are written, the optimiser's moments are not all
    saving._write_box = dying(saving._write_box)
elif where == "rename":       # the folder is whole, and not yet in its place
    resume.atomic_write_json = dying(resume.atomic_write_json)
elif where == "publish":
    trainer.publish_contents = die
elif where == "step":
    step = trainer.Trainer.step
    trainer.Trainer.step = lambda self, n, batch: die() if n == when else step(self, n, batch)

tiny = replace(MODELS["1m"], dim=16, n_layers=2, n_heads=2, n_kv_heads=2, hidden_dim=32)
MODELS["1m"] = tiny
machine.matmul_flops = lambda *_: 1e11
request = StageRequest(
    recipe=recipe, data=[] if dialogs else [shards], steps=9, any_init=True,
    dialogs=[dialogs] if dialogs else [], replay=[shards] if dialogs else [],
    size=None if init else "1m", init=Path(init) if init else None, device="cpu", dtype="float32",
    lora=int(lora) or None,
    changes={"context": 32, "batch_tokens": 128, "peak_lr": 5e-3},
    save_every=2, eval_every=100, eval_rows=2, log_every=1, compile=compiled,
)
stage = resolve(request, out=Path(out))
run_stage(stage, Path(out), report=lambda _: None, warn=sys.exit, started=lambda _: None)
"""


def run(
    python: str,
    shards: Path,
    out: Path,
    *,
    compiled: str,
    where: str = "",
    when: int = 0,
    init: Path | None = None,
    recipe: str = "pretrain",
    dialogs: Path | None = None,
    lora: int = 0,
) -> int:
    """Train in a process of its own; its return code, negative after a signal.

    Args:
        python: the command that runs it.
        shards, out: the data and the run.
        compiled: "on" or "off".
        where, when: the moment of death, as the child reads it.
        init: the checkpoint to start from, instead of fresh weights.
        recipe: the stage.
        dialogs: what to tune on; the shards are replayed then.
        lora: rank of an adapter that is trained instead of the weights.
    """
    arguments = [str(shards), str(out), compiled, where, str(when), str(init or "")]
    arguments += [recipe, str(dialogs or ""), str(lora)]
    done = subprocess.run(
        [python, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def weights(out: Path) -> dict[str, torch.Tensor]:
    if (out / "adapter").is_dir():
        return load_file(out / "adapter" / "adapter_model.safetensors")
    model = load_model(Checkpoint.open(out / "model"), device=torch.device("cpu"))
    return dict(model.named_parameters())


def assert_same_end(whole: Path, killed: Path) -> None:
    mine, theirs = weights(whole), weights(killed)
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different, f"{len(different)} of {len(mine)} weights differ: {different[:3]}"
    metrics = [(out / "metrics.jsonl").read_text().count("\n") for out in (whole, killed)]
    assert metrics[0] == metrics[1]
    leftovers = [path.name for path in killed.rglob(".tmp-*")]
    assert not leftovers


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_an_unbroken_one(
    warm_python: str, shards: Path, tmp_path: Path
) -> None:
    # Kills: a resumed sum in another order, a half-written folder taken for a checkpoint.
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(warm_python, shards, whole, compiled="off") == 0
    at = random.Random(torch.initial_seed()).randrange(1, 5)
    deaths = [("step", at), ("moments", 40), ("rename", 1), ("publish", 0)]
    for where, when in deaths:
        code = run(warm_python, shards, killed, compiled="off", where=where, when=when)
        assert code == -signal.SIGKILL, f"the run outlived {where} {when}"
    assert run(warm_python, shards, killed, compiled="off") == 0
    assert_same_end(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fim", "lcft", "instruct", "adapter"])
def test_a_later_stage_killed_again_and_again_ends_like_an_unbroken_one(
    recipe: str, warm_python: str, shards: Path, tmp_path: Path
) -> None:
    # Kills: new embedding rows drawn anew on resume, cuts or packings that depend on what came
    # before, dialogs encoded by half.
    base, whole, killed = (tmp_path / name for name in ("base", "whole", "killed"))
    dialogs = None
    if recipe == "instruct":
        dialogs = tmp_path / "chats.jsonl"
        records = [{"instruction": f"{n}?", "output": f"{n}."} for n in range(60)]
        dialogs.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(warm_python, shards, base, compiled="off") == 0
    options: dict[str, Any] = {"init": base, "recipe": recipe, "dialogs": dialogs}
    if recipe == "adapter":
        options |= {"recipe": "fim", "lora": 4}
    assert run(warm_python, shards, whole, compiled="off", **options) == 0
    deaths = [("step", 1), ("publish", 0)]
    if recipe == "adapter":  # whose saved steps have another form
        deaths[1:1] = [("step", 5), ("moments", 40)]
    for where, when in deaths:
        code = run(warm_python, shards, killed, compiled="off", where=where, when=when, **options)
        assert code == -signal.SIGKILL, f"the run outlived {where} {when}"
    assert run(warm_python, shards, killed, compiled="off", **options) == 0
    assert_same_end(whole, killed)


@pytest.mark.slow
@pytest.mark.skipif(not compiler_available(), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_killed_in_the_middle_ends_like_an_unbroken_one(
    warm_python: str, shards: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(warm_python, shards, whole, compiled="on") == 0
    assert run(warm_python, shards, killed, compiled="on", where="step", when=5) == -signal.SIGKILL
    assert run(warm_python, shards, killed, compiled="on") == 0
    assert_same_end(whole, killed)
