"""Runs that random kills cut, each time in other worlds: three processes, one, two by two."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codecria.core.training.run import METRICS_NAME
from tests.core.training.launch import Launch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_launches")]
STEPS = 8
WORLDS = (
    (3, "dp=3"), (3, "cp=3"), (3, "tp=3"), (2, "dp=2"), (2, "tp=2"), (2, "cp=2"), (1, "auto"),
)  # fmt: skip
# Where a process dies, and up to which call of the place.
PLACES = {
    "save": 60, "step": 5, "evaluate": 5, "publish": 1, "finish": 1, "snapshot": 5, "clip": 5
}  # fmt: skip
LAUNCHES = 4  # that end badly, at most

# Arguments: shards, folder, mesh, place, which call of it, the rank that dies there.
CHILD = f"""
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from codecria.core.checkpoints import saving
from codecria.core.model.config import MODELS
from codecria.core.training import faults, resume, trainer
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import agreed, run_stage
from codecria.core.training.world import joined
from codecria.data.errors import ReportedElsewhere, UserError

shards, out, mesh, place, call, whom = sys.argv[1:]
torch.set_num_threads(1)
faults.GRACE_S = 2.0
MODELS["1m"] = replace(MODELS["1m"], dim=24, n_layers=2, n_heads=6, n_kv_heads=6, hidden_dim=48)
places = {{
    "save": (saving, "_write_box"), "step": (trainer.Trainer, "step"),
    "evaluate": (trainer.Trainer, "_loss"), "publish": (trainer, "publish_contents"),
    "finish": (saving.SafetensorsWriter, "finish"), "snapshot": (resume.Saver, "start"),
    "clip": (trainer, "clip_gradients"),
}}
if os.environ["RANK"] == whom:
    owner, name = places[place]
    function, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def struck(*arguments, **named):
        if next(calls) == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(owner, name, struck)
try:
    with joined(torch.device("cpu"), timeout_s=60) as world:
        request = StageRequest(
            recipe="pretrain", size="1m", data=[shards], steps={STEPS}, any_init=True, mesh=mesh,
            micro_batch_size=1, device="cpu", dtype="float32", compile="off", save_every=1,
            eval_every=2, eval_rows=4, log_every=1,
            changes={{"context": 96, "batch_tokens": 576, "peak_lr": 5e-3, "warmup_steps": 2}},
        )
        found = world.main_first(lambda: resolve(request, out=Path(out)))
        stage, ranks = agreed(found, world)
        run_stage(stage, Path(out), report=lambda _: None, warn=lambda _: None,
                  started=lambda _: None, world=ranks)
except ReportedElsewhere:
    os._exit(3)
except UserError as error:
    print(error.message, flush=True)
    os._exit(1)
os._exit(0)
"""


def launched(
    shards: Path,
    out: Path,
    size: int,
    mesh: str,
    place: str = "step",
    call: int = 0,
    whom: int = -1,
) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each process of a launch."""
    words = [str(shards), str(out), mesh, place, str(call), str(whom)]
    return Launch([["-c", CHILD, *words]] * size).end(120)


@pytest.fixture(scope="module")
def whole(shards: Path, warm_launches: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing cuts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ((status, _, errors),) = launched(shards, out, 1, "auto")
    assert status == 0, errors
    return out


@pytest.mark.parametrize("seed", range(3))
def test_a_run_survives_kills_in_any_place_and_ends_as_if_there_had_been_none(
    seed: int, shards: Path, whole: Path, tmp_path: Path
) -> None:
    # Kills: a process that waits for a dead one, a torn save, a step counted twice or never.
    draw, out = random.Random(seed), tmp_path / "run"
    for _ in range(LAUNCHES):
        size, mesh = draw.choice(WORLDS)
        place = draw.choice(sorted(PLACES))
        call, whom = draw.randint(1, PLACES[place]), draw.randrange(size)
        ends = launched(shards, out, size, mesh, place, call, whom)
        statuses = [status for status, _, _ in ends]
        where = (mesh, place, call, whom, ends)
        if not any(statuses):
            break  # the place was passed less often
        assert statuses[whom] == -signal.SIGKILL, where
        if size > 1:
            first = 0 if whom else 1
            assert statuses[first] == 1, where
            named = f"process {whom} of {size} ended, or did not answer within 60 s\n"
            assert ends[first][1] == named, where
            assert {*statuses} <= {1, 3, -signal.SIGKILL}, where
    ((status, _, errors),) = launched(shards, out, 1, "auto")
    assert status == 0, errors
    assert_same_end(whole, out)


def assert_same_end(one: Path, other: Path) -> None:
    """The same records and weights but for the order of sums, and nothing left over."""
    records = [
        [json.loads(line) for line in (run / METRICS_NAME).read_text().splitlines()]
        for run in (one, other)
    ]
    assert [record["step"] for record in records[0]] == [record["step"] for record in records[1]]
    for a, b in zip(*records, strict=True):
        for key in {"loss", "grad_norm", "validation_loss"} & a.keys():
            assert b[key] == pytest.approx(a[key], rel=2e-5), (a["step"], key)
    weights, others = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-6, rtol=1e-4, msg=name)
    assert not list(other.rglob(".tmp*"))
