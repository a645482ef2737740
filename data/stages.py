"""Map a pure function over partitions, so that finished partitions are never done again.

A stage is a function from a job to a JSON value; what else it makes are files whose names it gets.
When a job is done, a marker file `NNNNN.json` records the digest of the job's inputs and the value.
A later run finds the marker, compares the digest, and takes the value from it. Jobs share nothing,
so any number of processes gives the same values in the same order.

A killed run leaves its workers behind for a while. Each job therefore holds a shared lock while it
runs, and checks that its run is still the one in charge: a new run waits for the jobs under way,
takes charge, and jobs of the old one no longer start. So no late worker overwrites newer files.

The only place that starts processes: another runner (a cluster) is another joblib backend.
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from .errors import UserError
from .files import atomic_write_json, read_json, write_error

IDLE_S = 15  # workers outlive a killed run, and end by themselves after so long without work

Payload = TypeVar("Payload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[Payload]):
    """One partition's work in one stage.

    Attributes:
        inputs: digest of everything the result depends on.
        output: where its files go: names are made from it by adding an ending.
        payload: what the stage's function needs, small and picklable.
    """

    inputs: str
    output: Path
    payload: Payload

    @property
    def marker(self) -> Path:
        """The file that says this job is done."""
        return self.output.with_suffix(".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is: jobs done of all, and how many of these an earlier run had done."""

    stage: str
    done: int
    total: int
    resumed: int


class Superseded(Exception):
    """Raised in a worker of a killed run: another run has taken charge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """The right of one run to write in its work folder; made by `take_charge`."""

    path: Path
    token: str

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from taking charge.

        Raises:
            Superseded: one already has.
        """
        with self.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if file.read() != self.token:
                raise Superseded
            yield


def take_charge(folder: Path) -> Charge:
    """Take charge of a work folder, waiting for jobs that a killed run left under way."""
    charge = Charge(path=folder / "run", token=uuid.uuid4().hex)
    try:
        with charge.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(charge.token)
    except OSError as error:
        raise write_error(charge.path, error) from error
    return charge


def run_stage(
    name: str,
    function: Callable[[Path, Payload], Any],
    jobs: Sequence[Job[Payload]],
    *,
    charge: Charge,
    workers: int,
    report: Callable[[Progress], None],
    check: Callable[[Any], None] = lambda _: None,
) -> list[Any]:
    """The results of all jobs in order; those already done are not done again.

    Args:
        name: for progress.
        function: called with a job's output path and payload; importable, as processes call it.
        jobs: independent of each other.
        charge: this run's, over the folder the jobs write to.
        workers: processes; 1 computes in this one.
        report: called at the start and after each job.
        check: called with each result as it comes, also an old one; may raise to stop.

    Raises:
        UserError: from the function or `check`, or a worker process was killed.
    """
    results: list[Any] = [None] * len(jobs)
    waiting = []
    for i, job in enumerate(jobs):
        found = _finished(job)
        if found is None:
            waiting.append(i)
        else:
            results[i] = found[0]
            check(found[0])
    resumed = done = len(jobs) - len(waiting)
    report(Progress(stage=name, done=done, total=len(jobs), resumed=resumed))
    with contextlib.closing(
        _map(partial(_run, function, charge), jobs, waiting, workers)
    ) as coming:
        for i, result in coming:
            check(result)
            results[i] = result
            done += 1
            report(Progress(stage=name, done=done, total=len(jobs), resumed=resumed))
    return results


def _finished(job: Job[Any]) -> tuple[Any] | None:
    """The value of a job that is done, in a tuple since the value may be None."""
    if not job.marker.exists():
        return None
    marker = read_json(job.marker)
    return (marker["result"],) if marker["inputs"] == job.inputs else None


def _map(
    run: Callable[[int, Job[Payload]], tuple[int, Any]],
    jobs: Sequence[Job[Payload]],
    waiting: Sequence[int],
    workers: int,
) -> Generator[tuple[int, Any], None, None]:
    """(number, result) of the waiting jobs, as they are done."""
    if workers == 1 or len(waiting) < 2:
        for i in waiting:
            yield run(i, jobs[i])
        return
    parallel = joblib.Parallel(
        n_jobs=workers,
        batch_size=1,
        pre_dispatch=2 * workers,
        return_as="generator_unordered",
        idle_worker_timeout=IDLE_S,
    )
    try:
        with warnings.catch_warnings():
            # When a result stops the run, the tasks then cancelled are no news.
            warnings.filterwarnings("ignore", message=".*have been cancelled", module="joblib")
            yield from parallel(joblib.delayed(run)(i, jobs[i]) for i in waiting)
    except TerminatedWorkerError as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory",
            hint="run it again, it resumes; fewer --workers or smaller --partition-mb need less",
        ) from error


def _run(
    function: Callable[[Path, Payload], Any], charge: Charge, number: int, job: Job[Payload]
) -> tuple[int, Any]:
    """Compute one job; its marker is the last thing written."""
    with charge.held():
        result = function(job.output, job.payload)
        atomic_write_json(job.marker, {"inputs": job.inputs, "result": result})
    return number, result
