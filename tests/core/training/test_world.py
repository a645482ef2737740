"""What processes tell each other: one process alone, and two that gloo connects."""

import pytest
import torch

from codecria.core.training.world import ALONE, World, joined
from codecria.data.errors import UserError
from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")

TWO = """
import os, sys, torch
from codecria.core.training.world import joined
from codecria.data.errors import UserError

with joined(torch.device("cpu"), timeout_s=120) as world:
    rank = world.rank
    assert (world.size, world.is_main) == (2, rank == 0)
    assert world.total(torch.tensor([1, rank])).tolist() == [2, 1]
    assert world.largest([rank, -rank, 0.5]) == [1.0, 0.0, 0.5]
    assert world.from_main({"rank": rank}) == {"rank": 0}
    order = []
    assert world.on_main(lambda: order.append(rank) or "made") == "made"
    assert order == ([0] if rank == 0 else [])
    assert world.main_first(lambda: (rank, "read")) == (rank, "read")

    def refuse():
        raise UserError("the disk is full", hint="free some space")

    for work in (world.on_main, world.main_first):
        try:
            work(refuse)
        except UserError as error:
            assert (error.message, error.hint) == ("the disk is full", "free some space")
        else:
            raise AssertionError("the error of the main process did not arrive")
    world.barrier()
    print(f"rank {rank} is done", flush=True)
os._exit(0)  # as the command ends: gloo's threads may abort while Python takes them down
"""


def test_two_processes_share_sums_values_and_errors() -> None:
    # Kills: an error of the main process that leaves the others waiting, work done by both.
    for rank, (status, output, errors) in enumerate(Launch([["-c", TWO]] * 2).end()):
        assert (status, output) == (0, f"rank {rank} is done\n"), errors


def test_one_process_is_the_main_one_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(torch.device("cpu")) as world:
        assert world == ALONE == World(0, 1, torch.device("cpu"))
    assert world.is_main
    world.barrier()
    value = torch.tensor([1.0, 2.0])
    assert world.total(value) is value
    assert world.largest([3, 4]) == [3.0, 4.0]
    assert world.from_main("x") == world.on_main(lambda: "x") == world.main_first(lambda: "x")

    def refuse() -> None:
        raise UserError("no", hint="")

    with pytest.raises(UserError, match="no"):
        world.on_main(refuse)
