"""Reading a checkpoint in parts: every process reads the box of each weight that it holds.

PyTorch's distributed checkpoint plans who reads what, from the placements of the tensors that are
to be filled, whatever mesh they are on. The files are those of `Weights`, of any format: no process
holds a whole model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from codecria.core.checkpoints.formats.weights import Box
from codecria.data.errors import ReportedElsewhere, UserError

Fill = Callable[[str, Box, Tensor], None]  # a weight's name, what of it, where to
ALONE_WARNING = "torch.distributed is disabled"  # of a run of one process, which is no mistake


class PartReader(StorageReader):
    """Gives PyTorch's distributed checkpoint what a function reads.

    Args:
        shapes: of the whole of every weight, by name.
        fill: reads a box of a weight into a tensor of the box's shape, of any type and device.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], fill: Fill) -> None:
        self.shapes = shapes
        self.fill = fill

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one reading to the next."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        """No path names what a function reads."""
        return False

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """Every weight as one chunk: any box of it can be read."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(),
                    torch.Size(shape),
                    [ChunkStorageMetadata(torch.Size([0] * len(shape)), torch.Size(shape))],
                )
                for name, shape in self.shapes.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None:
        """Nothing needs setting up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what this process holds, one box after the other."""
        for item in plan.items:
            box = tuple(
                slice(start, start + length)
                for start, length in zip(item.storage_offsets, item.lengths, strict=True)
            )
            target = planner.resolve_tensor(item)
            self.fill(item.storage_index.fqn, box, target)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def read_parts(tensors: MutableMapping[str, Tensor], fill: Fill, group: Any = None) -> None:
    """Fill tensors, of which this process may hold parts; every process calls it.

    Args:
        tensors: by name, the same names in every process; filled in place.
        fill: as for `PartReader`; called for the parts that this process holds.
        group: the processes, as a group whose collectives take CPU tensors; None for one alone.

    Raises:
        UserError: a process could not read its parts; every process raises.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=ALONE_WARNING)
        try:
            load(
                values,
                storage_reader=PartReader(shapes, fill),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=group,
                no_dist=group is None,
            )
        except CheckpointException as error:
            raise cause_of(error, group) from error


def cause_of(error: CheckpointException, group: Any) -> BaseException:
    """What to raise for the failures that distributed checkpoint reports to every process.

    The main process reports a user's error, the others end without a word; any other error is
    raised as it is.
    """
    for failure, _ in error.failures.values():
        if isinstance(failure, UserError):
            if group is None or torch.distributed.get_rank() == 0:
                return failure
            return ReportedElsewhere(failure)
        if isinstance(failure, Exception):
            return failure
    return error
