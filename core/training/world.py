"""The processes that train one run together: one, or those that torchrun has started.

A run folder has one writer, the main process. The others learn from it what it read or wrote, and a
mistake that it finds ends all of them. With one process everything here does nothing.

`joined` knows the processes, which share the rows of a batch; where a run asks for another way
(mesh.py), they are `arranged` so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from codecria.core.machine import launched_processes, versions
from codecria.data.errors import ReportedElsewhere, UserError
from codecria.data.identity import differences

from .faults import Failures
from .mesh import ONE, Mesh
from .request import PROCESS_TIMEOUT_S

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run and the place of this one.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        device: where this process computes.
        files: a group of its own for reading and writing checkpoints, so that a save in the
            background and training do not wait for each other's messages; None alone.
        mesh: how they share the work; by rows, until they are `arranged` otherwise.
        weights: the processes by ("fsdp", "tp"), where a run's weights are split; without tp only
            by "fsdp". None for a process that is alone.
        context_group: the processes that share this one's rows along their tokens; None without cp.
    """

    rank: int
    size: int
    device: torch.device
    files: ProcessGroup | None = None
    mesh: Mesh = ONE
    weights: DeviceMesh | None = field(default=None, compare=False, repr=False)
    context_group: ProcessGroup | None = field(default=None, compare=False, repr=False)

    def arranged(self, mesh: Mesh) -> World:
        """The same processes, sharing the work as a mesh says. All of them call this, once a run.

        Args:
            mesh: for as many processes as there are.
        """
        assert mesh.size == self.size, f"{mesh} for {self.size} processes"
        if self.size == 1:
            return self
        kind, context = self.device.type, None
        if mesh.tp == 1:
            weights = init_device_mesh(kind, (self.size,), mesh_dim_names=("fsdp",))
        else:
            shape = (mesh.token_parts, mesh.tp)
            weights = init_device_mesh(kind, shape, mesh_dim_names=("fsdp", "tp"))
        if mesh.cp > 1:
            shape3 = (mesh.dp, mesh.cp, mesh.tp)
            context = init_device_mesh(kind, shape3, mesh_dim_names=("dp", "cp", "tp"))
        return replace(
            self,
            mesh=mesh,
            weights=weights,
            context_group=None if context is None else context.get_group("cp"),
        )

    @property
    def dp_rank(self) -> int:
        """Which share of a batch's rows this process has."""
        return self.mesh.place(self.rank)[0]

    @property
    def cp_rank(self) -> int:
        """Which share of its rows' tokens this process has."""
        return self.mesh.place(self.rank)[1]

    @property
    def tp_rank(self) -> int:
        """Which share of a layer's heads and widths this process computes."""
        return self.mesh.place(self.rank)[2]

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            distributed.barrier()

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes that see other tokens, of the same shape and type.

        Those that see the same tokens (tp) have the same value, and it counts once.
        """
        group = None if self.mesh.tp == 1 or self.weights is None else self.weights.get_group(0)
        return self._reduced(value, distributed.ReduceOp.SUM, group)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest over all processes of each of some numbers."""
        value = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return list(self._reduced(value, distributed.ReduceOp.MAX).tolist())

    def _reduced(self, value: Tensor, how: Any, group: ProcessGroup | None = None) -> Tensor:
        if self.size == 1:
            return value
        value = value.clone()
        distributed.all_reduce(value, op=how, group=group)
        return value

    def from_main(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def from_all(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def require_alike(self, facts: Mapping[str, Any], *, what: str) -> None:
        """Check that all processes have the same facts as the main one.

        Args:
            facts: of this process, as JSON values.
            what: of a process that has others; such as "has other data than process 0".

        Raises:
            UserError: in every process, with the ranks that differ and how.
        """
        found = self.from_all(dict(facts))
        differing: dict[tuple[str, ...], list[int]] = {}
        for rank, theirs in enumerate(found):
            if changed := differences(found[0], theirs):
                differing.setdefault(tuple(changed), []).append(rank)
        if not differing:
            return
        groups = [f"{_processes(ranks)} {what}" for ranks in differing.values()]
        error = UserError(
            "; ".join(
                f"{group}: {', '.join(changed)}"
                for group, changed in zip(groups, differing, strict=True)
            ),
            hint="give every machine the same data, checkpoint, options and versions",
        )
        raise error if self.is_main else ReportedElsewhere(error)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in the main process alone, while the others wait.

        Returns:
            what it returned, in every process.

        Raises:
            UserError: the main process raised it; every process does then.
        """
        result: tuple[Literal["value", "error", "crash"], Any] = ("crash", None)
        try:
            if self.is_main:
                result = ("value", work())
        except UserError as error:
            result = ("error", error)
        finally:  # a crash goes its way here, once the others know
            kind, value = self.from_main(result)
        if kind == "error":
            if self.is_main:
                raise value
            raise ReportedElsewhere(value)
        if kind == "crash":
            raise ReportedElsewhere(UserError("the main process failed", hint="see its error"))
        found: T = value
        return found

    def main_first(self, work: Callable[[], T]) -> T:
        """Do something in every process, the main one before the others: it fills the caches."""
        if self.size == 1:
            return work()
        mine: T | None = None

        def first() -> None:
            nonlocal mine
            mine = work()

        self.on_main(first)
        if self.is_main:
            assert mine is not None, "the work of `main_first` returns a value"
            return mine
        return work()


ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Connection:
    """The store of a launch, where processes find each other.

    Attributes:
        store: keys that all processes see, under a name of this start.
        rank: of this process.
        size: how many there are.
        failures: what they write about their ends.
    """

    store: Store
    rank: int
    size: int
    failures: Failures


def connect(timeout_s: float = PROCESS_TIMEOUT_S) -> Connection:
    """Connect to the store of the launch.

    Args:
        timeout_s: how long this process waits for the store, and for keys in it.
    """
    timeout = timedelta(seconds=timeout_s)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    # A connection of its own: a wait of the engine for a key would hold up the heartbeat.
    failures = Failures(PrefixStore(f"ends-{_attempt()}", store.clone()), rank, size)
    return Connection(PrefixStore(_attempt(), store), rank, size, failures)


@contextlib.contextmanager
def joined(device: torch.device, *, timeout_s: float = PROCESS_TIMEOUT_S) -> Iterator[World]:
    """Join the other processes of the launch; with one process, `World` of one.

    Args:
        device: what to compute on; of CUDA devices each process takes the one of its local rank.
        timeout_s: how long a process waits for the others before it fails; then all end.

    Raises:
        UserError: another process ended, did not answer in time, or is of another version. One
            process of them raises what is to be reported, the others `ReportedElsewhere`.
    """
    if launched_processes() == 1:
        yield World(0, 1, device)
        return
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    link = connect(timeout_s)
    failures = link.failures
    distributed.init_process_group(
        backend, store=link.store, rank=link.rank, world_size=link.size, timeout=timeout
    )

    def ended(_: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, ReportedElsewhere):
            lost = isinstance(error, RuntimeError) and connection_lost(error)
            raise failures.reported(error, lost=lost, timeout_s=timeout_s) from error

    with contextlib.ExitStack() as stack:
        stack.callback(distributed.destroy_process_group)
        stack.push(ended)
        stack.enter_context(failures.beating())
        files = distributed.new_group(backend="gloo", timeout=timeout)
        size = distributed.get_world_size()
        alike = World(distributed.get_rank(), size, device, files)
        alike.require_alike(_versions(), what="would run another version than process 0")
        yield alike.arranged(Mesh(dp=size))
        distributed.barrier()  # nobody leaves while another still waits for it


def _versions() -> dict[str, str | None]:
    """What must be the same everywhere: a process of another version computes something else."""
    return {"codecria": versions()["codecria"], "torch": torch.__version__}


def _processes(ranks: Sequence[int]) -> str:
    """Processes by their ranks, three or more neighbours as a range.

    >>> _processes([1]), _processes([1, 2]), _processes([1, 2, 3, 6])
    ('process 1', 'processes 1, 2', 'processes 1 to 3, 6')
    """
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    words = [
        f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in spans
    ]
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(words)}"


def _attempt() -> str:
    """What sets the addresses of this start apart from those of the start before a restart.

    torchrun's store outlives its processes, so after a restart they would connect to the dead ones.
    Each agent counts its own restarts: of several agents the counts may differ and are left out.
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return "attempt"
    return f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def connection_lost(error: RuntimeError) -> bool:
    """Whether an error is of the connection to other processes; gloo's has no type of its own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
