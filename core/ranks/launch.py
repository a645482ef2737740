"""The processes of a torchrun launch that share evaluation and generation.

    main process     runs the command: reads, writes, judges, reports, and computes too
    the others       parse no options: they do the jobs that the main process posts (jobs.py)

With tensor parallelism, tp neighbours are a team (team.py) and its first process takes the jobs.
The main process ends all of them with one message when one dies, hangs or is asked to end.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore

from codecria.core import machine
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.generator import Generator
from codecria.core.inference.loading import Compute
from codecria.core.inference.runner import Runner
from codecria.core.inference.sharing import Item, Loaded, Result, Sharing, Stopped, Work, in_turn
from codecria.core.training.faults import (
    BEAT_S,
    GRACE_S,
    RESUME,
    STOPPED,
    Failures,
    gone,
    no_termination,
    wait_for,
)
from codecria.core.training.mesh import Mesh
from codecria.core.training.request import PROCESS_TIMEOUT_S
from codecria.core.training.world import Connection, connect, connection_lost
from codecria.data.errors import (
    ExitStatus,
    Interrupted,
    ReportedElsewhere,
    UserError,
)

from .jobs import LOOK_S, Board, Desk, Job, put
from .pulse import Pulse, Watch
from .team import Team

AHEAD = 3  # jobs that are posted for each process that takes some, so that none waits for the next
POLL_S = 0.01
SAME = ("codecria", "torch")  # whose versions must be the same in all processes


@dataclass(slots=True, kw_only=True)
class Ranks:
    """The launch as its main process sees it; see `Sharing` for `map` and `split`.

    Attributes:
        link: to the others.
        board: of jobs.
        mesh: how they share the work, once it is arranged.
        team: those that share the layers with this one, if there are more.
        timeout_s: how long a process waits for another.
    """

    link: Connection
    board: Board
    timeout_s: float
    mesh: Mesh = field(default_factory=Mesh)
    team: Team | None = None
    # Of the jobs whose results are still to be given: how to do them here, and what came of them.
    _open: dict[int, Callable[[], Any]] = field(default_factory=dict)
    _done: dict[int, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.link.size

    @property
    def dp(self) -> int:
        """How many teams, or processes, take jobs."""
        return self.mesh.dp

    @property
    def tp(self) -> int:
        """How many processes share each layer."""
        return self.mesh.tp

    @property
    def neighbours(self) -> int:
        """How many processes of this machine share its cores and its memory."""
        return machine.local_processes()

    def arrange(self, mesh: Mesh, device: torch.device) -> None:
        """Share the work as a mesh says; once, before a model is loaded.

        Args:
            mesh: dp and tp, for as many processes as there are.
            device: what they compute on.

        Raises:
            UserError: another process has other versions, or there are too few GPUs.
        """
        if device.type == "cuda" and torch.cuda.device_count() < self.neighbours:
            raise UserError(
                f"{self.neighbours} processes need as many GPUs, and there are"
                f" {torch.cuda.device_count()}",
                hint="torchrun --nproc-per-node N starts N processes",
            )
        for rank in range(1, self.size):
            key = f"ready/{rank}"
            # In Python, so that a signal ends it.
            while not self.link.store.check([key]):
                time.sleep(POLL_S)
            _check_versions(rank, json.loads(self.link.store.get(key)))
        self.mesh = mesh
        put(self.link.store, "arranged", (mesh, device.type))
        self.team = _team(self.link, mesh, device.type, self.timeout_s)

    def map(
        self,
        generator: Generator,
        work: Work[Item, Result],
        items: Iterable[Item],
        stopped: Stopped,
        *,
        together: bool,
    ) -> Iterator[Result]:
        """What comes of work on each item, in order, wherever it is done."""

        def here(item: Item) -> Result:
            return _perform(self.team, generator, work, item, stopped, together)

        if self.mesh.dp == 1:
            yield from in_turn(here, items, stopped)
            return
        model = generator.loaded
        assert model is not None, "nobody else can load it"
        order: deque[int] = deque()
        source = iter(items)
        try:
            while True:
                for item in _few(source, AHEAD * self.mesh.dp - len(order)):
                    number = self.board.post(Job(model, work, item, together))
                    self._open[number] = functools.partial(here, item)
                    order.append(number)
                if not order:
                    return
                while order[0] not in self._done:
                    if stopped():
                        return
                    if not self._advance(order[0]):
                        time.sleep(POLL_S)
                first = order.popleft()
                del self._open[first]
                yield self._done.pop(first)
        finally:
            with contextlib.suppress(RuntimeError):  # the store may have gone
                for number in order:
                    self.board.withdraw(number)
                    self._open.pop(number, None)
                    self._done.pop(number, None)

    def _advance(self, wanted: int) -> bool:
        """See whether a job is done, or do the next one that nobody has taken, whosever it is."""
        if self.board.is_done(wanted):
            self._done[wanted] = self.board.result(wanted)
            return True
        number = self.board.take()
        if number is None:
            return False
        if number in self._open:  # else it was withdrawn
            self._done[number] = self._open[number]()
            self.board.forget(number)
        return True

    def split(self, checkpoint: Checkpoint, compute: Compute) -> Runner:
        """Load this process's part of a checkpoint, as the others of its team do."""
        assert self.team is not None, "nobody shares the layers"
        return self.team.load(checkpoint, compute)


def _few(items: Iterator[Item], count: int) -> Iterator[Item]:
    for _ in range(count):
        try:
            yield next(items)
        except StopIteration:
            return


def _perform(
    team: Team | None,
    generator: Generator,
    work: Work[Item, Result],
    item: Item,
    stopped: Stopped,
    together: bool,
) -> Result:
    """Do one job in this process, and in those that share its layers."""
    if team is not None and together:
        found: Result = team.work(generator, work, item)
        return found
    return work(generator, item, stopped)


def _team(link: Connection, mesh: Mesh, kind: str, timeout_s: float) -> Team | None:
    """The processes that share this one's layers; every process of the launch calls it."""
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if mesh.tp == 1:
        return None
    timeout = timedelta(seconds=timeout_s)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        store=PrefixStore("groups", link.store),
        rank=link.rank,
        world_size=link.size,
        timeout=timeout,
    )
    found = None
    for first in range(0, link.size, mesh.tp):
        members = list(range(first, first + mesh.tp))
        group = distributed.new_group(members, timeout=timeout)
        if link.rank in members:
            store = PrefixStore(f"team/{first}", link.store)
            found = Team(rank=link.rank - first, group=group, device=device, store=store)
    return found


def _leave() -> None:
    """End what `_team` began."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _versions() -> dict[str, str | None]:
    found = machine.versions()
    return {name: found[name] for name in SAME}


def _check_versions(rank: int, theirs: dict[str, str | None]) -> None:
    """Check that another process has the versions of this one.

    Raises:
        UserError: it has others.
    """
    for name, version in _versions().items():
        if theirs.get(name) != version:
            raise UserError(
                f"process {rank} has {name} {theirs.get(name)}, process 0 has {version}",
                hint="install the same on every machine",
            )


# --- the main process -----------------------------------------------------------------------------


class _Lookout:
    """Ends the main process's work when another process has ended or hangs.

    It signals this process as if a person had asked it to end, so that what is done is kept; the
    reason is then in `failed`, unless the other was asked to end.
    """

    def __init__(self, failures: Failures, watch: Watch) -> None:
        self.failed: UserError | None = None
        self._failures, self._watch = failures, watch
        self._stop = threading.Event()

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look after the others within the block."""
        threading.Thread(target=self._look, name="lookout", daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()

    def _look(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store may go before
            while not self._stop.wait(BEAT_S):
                ended, self.failed = self._found()
                if ended:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    def _found(self) -> tuple[bool, UserError | None]:
        """Whether another process has ended, and what there is to report."""
        failures = self._failures
        for rank in failures.heard():
            if rank:
                return True, _said(failures, rank)
        lost = self._watch.lost()
        if lost is None:
            return False, None
        rank, limit_s = lost
        return True, gone([rank], failures.size, limit_s)

    def dead(self) -> UserError | None:
        """After a signal: the error of a process that died, as torchrun signals all others then."""
        failures = self._failures
        before = self._watch.beats()

        def silent() -> list[int]:
            beats, heard = self._watch.beats(), failures.heard()
            return [r for r in before if r not in heard and beats[r] == before[r]]

        wait_for(lambda: not silent(), GRACE_S)
        for rank in failures.heard():
            if rank and (error := _said(failures, rank)):
                return error
        ended = silent()
        return gone(ended, failures.size, GRACE_S) if ended else None


def _said(failures: Failures, rank: int) -> UserError | None:
    """What a process wrote of its end, as an error; None where it was asked to end."""
    word = failures.word_of(rank)
    if word == STOPPED:
        return None
    return UserError(
        f"process {rank} of {failures.size}: {word or 'lost its connection'}", hint=RESUME
    )


@contextlib.contextmanager
def leading(*, timeout_s: float = PROCESS_TIMEOUT_S) -> Iterator[Ranks]:
    """Be the main process of a launch within the block; SIGTERM must raise `Interrupted` there.

    Args:
        timeout_s: how long processes wait for each other.

    Raises:
        UserError: another process ended or hangs; instead of what broke off the block.
    """
    link = connect(timeout_s)
    failures = link.failures
    board = Board(link.store)
    watch = Watch(failures.store, range(1, link.size), timeout_s)
    lookout = _Lookout(failures, watch)
    ranks = Ranks(link=link, board=board, timeout_s=timeout_s)

    def ended(_: object, error: BaseException | None, __: object) -> None:
        found = error
        with no_termination(), contextlib.suppress(RuntimeError):  # the store may have gone
            found = _why(error, lookout, failures, timeout_s)
            if isinstance(found, Exception):
                failures.reported(found, lost=False, timeout_s=timeout_s)
            board.close(_status(found))
            if ranks.team is not None:
                ranks.team.tell("end")
            if lookout.failed is None:  # a store in this process goes with it
                present = watch.beats()
                wait_for(lambda: all(link.store.check([f"left/{r}"]) for r in present), GRACE_S)
        if found is not None and found is not error:
            raise found from error

    with contextlib.ExitStack() as stack:
        stack.callback(_leave)
        stack.enter_context(failures.beating())
        stack.enter_context(Pulse(failures.store, 0).beating())
        stack.push(ended)
        stack.enter_context(lookout.looking())
        yield ranks


def _status(error: BaseException | None) -> int:
    """The exit status of what a block ended with."""
    return 0 if error is None else int(getattr(error, "status", ExitStatus.FAILED))


def _why(
    error: BaseException | None, lookout: _Lookout, failures: Failures, timeout_s: float
) -> BaseException | None:
    """Why the block really broke off."""
    if isinstance(error, RuntimeError) and connection_lost(error):
        return failures.reported(error, lost=True, timeout_s=timeout_s)
    if isinstance(error, Interrupted) and error.status == ExitStatus.TERMINATED:
        return lookout.failed or lookout.dead() or error
    return error


# --- the others -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Member:
    """How a process that is not the main one sees sharing: by itself, or with its team."""

    team: Team | None
    tp: int
    neighbours: int
    dp: int = 1

    def map(
        self,
        generator: Generator,
        work: Work[Item, Result],
        items: Iterable[Item],
        stopped: Stopped,
        *,
        together: bool,
    ) -> Iterator[Result]:
        """One item after the other."""
        return in_turn(
            lambda item: _perform(self.team, generator, work, item, stopped, together),
            items,
            stopped,
        )

    def split(self, checkpoint: Checkpoint, compute: Compute) -> Runner:
        """Load this process's part of a checkpoint."""
        assert self.team is not None, "nobody shares the layers"
        return self.team.load(checkpoint, compute)


class _Helper:
    """A process that does jobs until the main process has ended.

    Args:
        link: to the others.
        pulse: of this process.
        timeout_s: how long it waits for another.
    """

    def __init__(self, link: Connection, pulse: Pulse, timeout_s: float) -> None:
        self._link, self._pulse, self._timeout_s = link, pulse, timeout_s
        self._desk = Desk(link.store)
        self._watch = Watch(link.failures.store, [0], timeout_s)
        self._looked = time.monotonic()
        self._models: dict[Loaded, Generator] = {}
        self.team: Team | None = None
        self._sharing: Sharing = _Member(None, 1, machine.local_processes())

    def serve(self) -> int:
        """Do jobs; the status that the main process ends with."""
        store = self._link.store
        store.set(f"ready/{self._link.rank}", json.dumps(_versions()))
        arranged = self._desk.wait("arranged", self._check)
        if arranged is not None:
            mesh, kind = pickle.loads(arranged)
            self.team = _team(self._link, mesh, kind, self._timeout_s)
            self._sharing = _Member(self.team, mesh.tp, machine.local_processes())
            if self.team is not None and not self.team.leads:
                self.team.follow(self._hear, self._load)
            else:
                self._work()
        while (status := self._desk.status) is None:
            self._check()
            time.sleep(POLL_S)
        store.set(f"left/{self._link.rank}", "")
        return status

    def _work(self) -> None:
        while (taken := self._desk.take(self._check)) is not None:
            number, job = taken
            result: Any
            with self._pulse.busy():
                try:
                    generator = self._generator(job.model)
                    result = _perform(
                        self.team, generator, job.work, job.item, self._stopped, job.together
                    )
                except UserError as error:
                    result = error
            self._desk.hand_in(number, result)
        if self.team is not None:
            self.team.tell("end")

    def _generator(self, model: Loaded) -> Generator:
        """A model, loaded when it is first asked for.

        Raises:
            UserError: it cannot be loaded, or is another one here than in the main process.
        """
        if model not in self._models:
            found = self._load(model.path, model.compute)
            if found.loaded is None or found.loaded.facts != model.facts:
                raise UserError(
                    f"process {self._link.rank} has another model at {model.path} than process 0",
                    hint="all processes must see the same files, on machines of one kind",
                )
            self._models[model] = found
        return self._models[model]

    def _load(self, path: Path, compute: Compute) -> Generator:
        return Generator.computed(path, replace(compute, sharing=self._sharing))

    def _hear(self, key: str) -> bytes | None:
        assert self.team is not None, "alone"
        return self._desk.wait(key, self._check, self.team.store)

    def _check(self) -> None:
        """Check that the main process lives.

        Raises:
            ConnectionError: it does not.
        """
        if self._watch.lost() is not None:
            raise ConnectionError("the main process does not answer")

    def _stopped(self) -> bool:
        """Whether a job is in vain; called at each of its steps."""
        self._pulse.step()
        if time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        self._check()
        return self._desk.status is not None


def helping(*, timeout_s: float = PROCESS_TIMEOUT_S) -> int:
    """Be one of the other processes of a launch, until the main process has ended.

    Args:
        timeout_s: how long processes wait for each other.

    Returns:
        the status that it has ended with.

    Raises:
        UserError: it is gone and this process is to report it; in the others `ReportedElsewhere`.
        Interrupted: by a signal, which the main process learns of.
    """
    link = connect(timeout_s)
    pulse = Pulse(link.failures.store, link.rank)
    helper = _Helper(link, pulse, timeout_s)

    def ended(_: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ReportedElsewhere):
            return
        lost = isinstance(error, ConnectionError) or (
            isinstance(error, RuntimeError) and connection_lost(error)
        )
        found = link.failures.reported(error, lost=lost, timeout_s=timeout_s)
        if isinstance(found, Interrupted) and link.rank == 1 and not link.failures.main_lives():
            found = gone([0], link.size, GRACE_S)  # torchrun signals the others when one died
        raise found from error

    with contextlib.ExitStack() as stack:
        stack.callback(_leave)
        stack.enter_context(pulse.beating())
        stack.push(ended)
        return helper.serve()
