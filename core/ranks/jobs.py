"""Jobs in the store of a launch: one process posts them, each is taken by whoever is free.

    taken       how many were taken; the next to be taken has this number
    job/N       what is to be done
    done/N      what came of it
    end         the main process has ended, with this status

A job may be taken before it is posted: its taker waits for it. Values are pickled, as in PyTorch's
own collectives of objects: processes of one launch trust each other.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed.distributed_c10d import Store

from codecria.core.inference.sharing import Loaded, Work
from codecria.data.errors import UserError

FIRST_PAUSE_S, LAST_PAUSE_S = 1e-4, 5e-3  # between looks for a key: ever longer ones
LOOK_S = 0.5  # between looks at whether the launch goes on
NOTHING = None  # instead of a job that is not wanted any more
END = "end"


@dataclass(frozen=True, slots=True)
class Job:
    """One item of work.

    Attributes:
        model: that it needs.
        work: a function at the top level of a module.
        item: what it is done for.
        together: see `Generator.map`.
    """

    model: Loaded
    work: Work[Any, Any]
    item: Any
    together: bool


def put(store: Store, key: str, value: object) -> None:
    """Set a key to a pickled value; the store takes bytes, though it is typed for text."""
    store.set(key, pickle.dumps(value))  # type: ignore[arg-type]


class Board:
    """The main process's side: it posts jobs, and takes some itself.

    Args:
        store: of the launch.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._posted = 0
        self._own: int | None = None  # a number that this process took, perhaps ahead of its job

    def post(self, job: Job) -> int:
        """Post a job; its number."""
        number, self._posted = self._posted, self._posted + 1
        if number != self._own:
            put(self._store, f"job/{number}", job)
        return number

    def take(self) -> int | None:
        """The number of a posted job that is now this process's; None if all are taken."""
        if self._own is None:
            self._own = self._store.add("taken", 1) - 1
        if self._own >= self._posted:
            return None
        number, self._own = self._own, None
        return number

    def is_done(self, number: int) -> bool:
        """Whether another process has done a job."""
        return self._store.check([f"done/{number}"])

    def result(self, number: int) -> Any:
        """What came of a job that is done.

        Raises:
            UserError: that the work raised.
        """
        found = pickle.loads(self._store.get(f"done/{number}"))
        self.forget(number)
        if isinstance(found, UserError):
            raise found
        return found

    def withdraw(self, number: int) -> None:
        """A job is not wanted any more."""
        put(self._store, f"job/{number}", NOTHING)

    def forget(self, number: int) -> None:
        """Remove what the store holds of a job."""
        for key in (f"job/{number}", f"done/{number}"):
            self._store.delete_key(key)

    def close(self, status: int) -> None:
        """Let the others end with a status: none has to wait for a job any more."""
        self._store.set(END, str(status))
        for number in range(self._posted, self._store.add("taken", 0)):
            put(self._store, f"job/{number}", NOTHING)


class Desk:
    """Another process's side: it takes jobs until the main process has ended.

    Args:
        store: of the launch.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def status(self) -> int | None:
        """The status that the main process has ended with; None while it goes on."""
        return int(self._store.get(END)) if self._store.check([END]) else None

    def wait(self, key: str, check: Callable[[], None], store: Store | None = None) -> bytes | None:
        """The value of a key once it is set; None if the main process has ended.

        Args:
            key: that is waited for.
            check: called every half a second; what it raises is raised here.
            store: where the key is, if it is another view of the launch's.
        """
        # Polled: the store's own wait holds up signals, and writes to stderr when it gives up.
        store = store or self._store
        pause_s, looked = FIRST_PAUSE_S, time.monotonic()
        while not store.check([key]):
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                check()
            if self.status is not None:
                return None
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, LAST_PAUSE_S)
        return bytes(store.get(key))

    def take(self, check: Callable[[], None]) -> tuple[int, Job] | None:
        """The next job and its number; None once the main process has ended."""
        while True:
            number = self._store.add("taken", 1) - 1
            found = self.wait(f"job/{number}", check)
            if found is None:
                return None
            job = pickle.loads(found)
            if job is not NOTHING:
                return number, job

    def hand_in(self, number: int, result: Any) -> None:
        """Give back what came of a job: a value, or the error that it raised."""
        put(self._store, f"done/{number}", result)
