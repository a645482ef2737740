"""Processes that share every layer of a model: the first leads, the others do what it does.

The leader runs the engine. It alone draws tokens, drafts and ends sequences, and tells the others
each call of the runner through the store; so nothing has to be decided twice, and nothing in it may
differ by time. All compute: their sums go through the group's collectives.

    leader     engine -> SplitRunner.decode(...) -> tells, computes its part, gathers the scores
    others                                          hear, compute theirs
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import Store

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.generator import Generator, path_of
from codecria.core.inference.loading import Compute, torch_dtype
from codecria.core.inference.runner import Runner, Scores, Snapshot
from codecria.core.inference.sharing import ALONE, Work, never
from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.model.config import ModelConfig
from codecria.core.model.dtypes import DTYPES
from codecria.core.model.tensor_inference import InferenceSplit, split_for_inference
from codecria.core.model.transformer import Transformer
from codecria.core.training.mesh import check_split

from .jobs import put

KEPT = 1_000  # commands that stay in the store: nobody is so many calls behind

Hear = Callable[[str], bytes | None]


@dataclass(slots=True)
class Team:
    """The processes that share the layers, seen from one of them.

    Attributes:
        rank: of this process among them; 0 leads.
        group: its collectives.
        device: where this process computes.
        store: where commands go, under a name of this team.
        models: those that were loaded, by the number that commands name them by.
        told: how many commands were given, or heard.
    """

    rank: int
    group: ProcessGroup
    device: torch.device
    store: Store
    models: dict[int, Generator] = field(default_factory=dict)
    loads: int = 0
    told: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def tell(self, *command: Any) -> None:
        """Give the others a command; does nothing in them."""
        if not self.leads:
            return
        put(self.store, f"command/{self.told}", command)
        self.told += 1
        if self.told > KEPT:
            self.store.delete_key(f"command/{self.told - KEPT - 1}")

    def load(self, checkpoint: Checkpoint, compute: Compute) -> Runner:
        """Load this process's part of a checkpoint; all of them do.

        Raises:
            UserError: the model cannot be split over so many.
        """
        check_split(checkpoint.config, self.group.size())
        self.tell("load", path_of(checkpoint), replace(compute, sharing=ALONE))
        number, self.loads = self.loads, self.loads + 1
        split = InferenceSplit(self.rank, self.group, checkpoint.config.vocab_size)
        model = _split_model(checkpoint, compute, split, self.device)
        local = TorchRunner(model.eval(), cache_dtype=DTYPES.get(compute.cache_dtype))
        return SplitRunner(local, split, self, number)

    def work(self, generator: Generator, work: Work[Any, Any], item: Any) -> Any:
        """Do work that calls the model itself, with all of them."""
        runner = generator.runner
        assert isinstance(runner, SplitRunner), "its layers are shared"
        self.tell("work", runner.number, work, item)
        return work(generator, item, never)

    def follow(self, hear: Hear, load: Callable[[Path, Compute], Generator]) -> None:
        """Do what the leader tells, until it ends.

        Args:
            hear: waits for a key of the team's; None once the launch ends.
            load: loads a checkpoint, in this team.
        """
        while (heard := hear(f"command/{self.told}")) is not None:
            self.told += 1
            match pickle.loads(heard):
                case ("load", path, compute):
                    number = self.loads
                    self.models[number] = load(path, compute)
                case ("work", number, work, item):
                    work(self.models[number], item, never)
                case ("call", number, name, arguments):
                    getattr(self.models[number].runner, name)(*arguments)
                case ("end",):
                    return


def _split_model(
    checkpoint: Checkpoint, compute: Compute, split: InferenceSplit, device: torch.device
) -> Transformer:
    """A model with this process's part of every weight, read from the files part by part."""
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    with torch.device("meta"):
        model = Transformer(checkpoint.config)

    def read(name: str, box: tuple[slice, ...], target: torch.Tensor) -> None:
        checkpoint.weights.read_box(name, checkpoint.config, box, target)

    dtype = torch_dtype(compute.dtype, checkpoint, device)
    split_for_inference(model, split, read, device=device, dtype=dtype)
    return model


class SplitRunner:
    """A runner that all processes of a team call alike; see `Runner` for what the methods do.

    Scores are whole in the leader alone.

    Args:
        local: of this process's part of the model.
        split: this process's place.
        team: the processes.
        number: that commands name the model by.
    """

    def __init__(self, local: TorchRunner, split: InferenceSplit, team: Team, number: int) -> None:
        self._local, self._split, self._team, self.number = local, split, team, number

    def _tell(self, name: str, *arguments: Any) -> None:
        self._team.tell("call", self.number, name, arguments)

    @property
    def model(self) -> Transformer:
        """This process's part of the model."""
        return self._local.model

    @property
    def config(self) -> ModelConfig:
        """The shape of the whole model."""
        return self._local.config

    @property
    def layout(self) -> str:
        """What decides its snapshots beside the model's files: they are of the whole cache."""
        return self._local.layout

    @property
    def tolerance(self) -> float:
        """Most that a score of several tokens at once differs from that of single ones."""
        return self._local.tolerance

    @property
    def lengths(self) -> Sequence[int]:
        """Positions filled, one number a reserved row."""
        return self._local.lengths

    @property
    def rows(self) -> int:
        """Rows reserved."""
        return self._local.rows

    @property
    def positions(self) -> int:
        """Positions reserved a row."""
        return self._local.positions

    def reserve(self, rows: int, positions: int) -> None:
        """Have room for at least so many rows and positions, and keep what the rows hold."""
        self._tell("reserve", rows, positions)
        self._local.reserve(rows, positions)

    def prefill(self, row: int, prompts: Sequence[Sequence[int]]) -> Scores:
        """Append prompts to the rows from `row` on, and score the token after each: (B,V)."""
        self._tell("prefill", row, prompts)
        return self._local.prefill(row, prompts)

    def decode(self, row: int, tokens: Sequence[Sequence[int]]) -> Scores:
        """Append tokens to the rows from `row` on, and score what follows each: (N,V)."""
        self._tell("decode", row, tokens)
        return self._local.decode(row, tokens)

    def truncate(self, row: int, length: int) -> None:
        """Forget the positions of a row from `length` on."""
        self._tell("truncate", row, length)
        self._local.truncate(row, length)

    def copy_rows(self, start: int, sources: Sequence[int]) -> None:
        """Make the rows from `start` on continue the sequences of the rows `sources`."""
        self._tell("copy_rows", start, list(sources))
        self._local.copy_rows(start, sources)

    def keep(self, rows: Sequence[int]) -> None:
        """Move these rows to the front, in this order, and empty all others."""
        self._tell("keep", list(rows))
        self._local.keep(rows)

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """The keys and values of positions start to stop of a row: of all heads in the leader."""
        self._tell("snapshot", row, start, stop)
        own = torch.from_numpy(self._local.snapshot(row, start, stop).copy())
        parts = [torch.empty_like(own) for _ in range(self._split.size)]
        given = parts if self._team.leads else None
        distributed.gather(own, given, group=self._team.group, group_dst=0)
        # (tp, 2 L, K / tp ...) -> (2 L, tp, K / tp ...)
        lines = 2 * self.config.n_layers
        whole: Snapshot = torch.stack([part.view(lines, -1) for part in parts], dim=1).numpy()
        return whole.reshape(-1)

    def restore(self, row: int, start: int, snapshot: Snapshot) -> None:
        """Put a snapshot of the leader's into a row from position `start` on, and end it there."""
        self._tell("restore_part", row, start, len(snapshot))
        self.restore_part(row, start, len(snapshot), snapshot)

    def restore_part(
        self, row: int, start: int, size: int, snapshot: Snapshot | None = None
    ) -> None:
        """Put this process's heads of a snapshot into a row.

        Args:
            row, start: see `restore`.
            size: bytes of the snapshot.
            snapshot: given in the leader.
        """
        own = torch.empty(size // self._split.size, dtype=torch.uint8)
        parts = None
        if snapshot is not None:
            lines = torch.from_numpy(np.array(snapshot)).view(
                2 * self.config.n_layers, self._split.size, -1
            )
            parts = [lines[:, rank].contiguous().view(-1) for rank in range(self._split.size)]
        distributed.scatter(own, parts, group=self._team.group, group_src=0)
        self._local.restore(row, start, own.numpy())
