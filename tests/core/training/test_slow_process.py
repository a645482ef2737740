"""Of several processes the slow one is seen: its wait for data, its computing, and its rank."""

import json
from pathlib import Path

import pytest

from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")

# Process 1 reads from a slow disk, then computes more than the other.
SLOW = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import agreed, run_stage
from codecria.core.training.world import joined
from codecria.data.rows.shards import ShardSet

shards, folder = sys.argv[1:]
torch.set_num_threads(1)

class SlowDisk(ShardSet):
    def tokens(self, start, stop):
        time.sleep(0.5)
        return super().tokens(start, stop)

def compute(*_):
    end = time.thread_time() + 0.4
    while time.thread_time() < end:
        pass

with joined(torch.device("cpu"), timeout_s=60) as world:
    for what in ("data", "compute"):
        request = StageRequest(
            recipe="pretrain", size="1m", data=[shards], steps=4, micro_batch_size=2, device="cpu",
            dtype="float32", compile="off", save_every=100, eval_every=100, log_every=2,
            changes={"context": 16, "batch_tokens": 64},
        )
        out = Path(folder) / what
        stage, ranks = agreed(world.main_first(lambda: resolve(request, out=out)), world)
        if world.rank == 1 and what == "data":
            slow = tuple(replace(source, shards=SlowDisk.open(source.shards.folder))
                         for source in stage.mixture.sources)
            stage = replace(stage, mixture=replace(stage.mixture, sources=slow))

        def started(trainer):
            if world.rank == 1 and what == "compute":
                trainer.model.register_forward_pre_hook(compute)

        run_stage(stage, out, report=lambda _: None, warn=sys.exit, started=started, world=ranks)
os._exit(0)
"""


@pytest.mark.slow
def test_a_slow_disk_and_a_slow_processor_are_told_apart_from_the_step(
    shards: Path, tmp_path: Path
) -> None:
    # Kills: a fast process's wait for the slow one taken for its own step.
    for status, _, errors in Launch([["-c", SLOW, str(shards), str(tmp_path)]] * 2).end(120):
        assert status == 0, errors
    for what in ("data", "compute"):
        lines = (tmp_path / what / "metrics.jsonl").read_text().splitlines()
        records = [record for line in lines if "loss" in (record := json.loads(line))]
        assert [record["step"] for record in records] == [2, 4]
        if what == "data":  # two rows a step, each read once or twice; while others compute, too
            assert sum(r["data_wait_s"] + r["step_s"] for r in records) / 2 >= 0.8, records
        for record in records:
            waited, computed = record["data_wait_s"], record["compute_s"]
            # One after the other they take the time from step to step: nothing counts twice.
            assert waited + record["step_s"] <= 1.05 * 64 / record["tokens_per_s"], record
            if what == "compute":
                assert record["slowest"] == 1, record
                assert 0.4 <= computed <= record["step_s"] * 1.05, record
