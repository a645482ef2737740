"""Processes that die, hang or fail: the others end in bounded time, and one reports."""

import os
import signal

import pytest

from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")

# Processes that exchange sums until one of them is struck.
STRUCK = """
import os, signal, sys, time, torch
from datetime import timedelta
from torch.distributed import TCPStore
from codecria.core.training import faults
from codecria.core.training.world import joined
from codecria.data.errors import ReportedElsewhere, UserError

how, whom, timeout_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
faults.GRACE_S = 1.0
# How long the others took to import torch is no part of what a process waits for.
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
store, size = TCPStore(*place, is_master=False), int(os.environ["WORLD_SIZE"])
store.set("imported " + os.environ["RANK"], "")
store.wait([f"imported {rank}" for rank in range(size)], timedelta(seconds=120))
try:
    with joined(torch.device("cpu"), timeout_s=timeout_s) as world:
        world.barrier()
        for n in range(1_000_000):
            if n == 20 and world.rank == whom:
                if how == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "hang":
                    time.sleep(300)
                if how == "fail":
                    raise UserError("shard 7 is damaged")
            world.largest([n])
            time.sleep(0.005)
except ReportedElsewhere:
    print("silent", flush=True)
except UserError as error:
    print(error.message, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("how", "whom", "size", "message"),
    [
        ("die", 2, 3, "process 2 of 3 ended, or did not answer within 120 s"),
        ("die", 0, 2, "process 0 of 2 ended, or did not answer within 120 s"),
        ("fail", 1, 2, "process 1 of 2: shard 7 is damaged"),
        ("fail", 0, 2, "shard 7 is damaged"),
        ("hang", 1, 2, "process 1 of 2 ended, or did not answer within 8 s"),
    ],
)
def test_one_process_reports_which_one_failed(how: str, whom: int, size: int, message: str) -> None:
    # Kills: a report of every process, none when the main one is gone, a wait without end.
    timeout_s = "8" if how == "hang" else "120"
    launch = Launch([["-c", STRUCK, how, str(whom), timeout_s]] * size)
    if how == "hang":
        reporter = launch.processes[0]
        reporter.wait(120)
        os.kill(launch.processes[1].pid, signal.SIGKILL)
    found = launch.end(120)
    said = [output.strip() for _, output, _ in found]
    reporter_rank = 1 if (how, whom) == ("die", 0) else 0
    assert said[reporter_rank] == message, found
    for rank, words in enumerate(said):
        if rank != reporter_rank and not (rank == whom and how in ("die", "hang")):
            assert words == "silent", found
