"""Map a pure function over partitions, so that finished partitions are never done again.

A stage is a function from a job to a JSON value; what else it makes are files whose names it gets.
When a job is done, a marker file `NNNNN.json` records the digest of the job's inputs and the value.
A later run finds the marker, compares the digest, and takes the value from it. Jobs share nothing,
so any number of processes gives the same values in the same order.

A killed run leaves its workers behind for a while. Each job therefore holds a shared lock while it
runs, and checks that its run is still the one in lease: a new run waits for the jobs under way,
takes lease, and jobs of the old one no longer start. So no late worker overwrites newer files.

The only place that starts processes. What maps the jobs is a `Mapper`: joblib's pool on this
machine, or a Ray or Dask cluster over a folder that all its machines see.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import socket
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from codecria.data.errors import UserError
from codecria.data.files import atomic_write_json, read_json, write_error
from codecria.data.progress import Progress

CONNECT_S = 10  # a cluster's scheduler answers within it
IDLE_S = 15  # workers outlive a killed run, and end by themselves after so long without work

Payload = TypeVar("Payload")
Runner = Literal["processes", "ray", "dask"]


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


class Superseded(Exception):
    """Raised in a worker of a killed run: another run has taken lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLease:
    """The right of one run to write in its work folder; made by `acquire`."""

    path: Path
    token: str

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from taking lease.

        Raises:
            Superseded: one already has.
        """
        with self.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if file.read() != self.token:
                raise Superseded
            yield


def acquire(folder: Path) -> RunLease:
    """Acquire the lease of a work folder, waiting for jobs that a killed run left under way."""
    lease = RunLease(path=folder / "run", token=uuid.uuid4().hex)
    try:
        with lease.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(lease.token)
    except OSError as error:
        raise write_error(lease.path, error) from error
    return lease


Run = Callable[[int, Job[Any]], tuple[int, Any]]
Results = Generator[tuple[int, Any], None, None]  # (number, result), as they are done
Mapper = Callable[[Run, Sequence[Job[Any]], Sequence[int]], Results]


def run_stage(
    name: str,
    function: Callable[[Path, Payload], Any],
    jobs: Sequence[Job[Payload]],
    *,
    lease: RunLease,
    mapper: Mapper,
    report: Callable[[Progress], None],
    check: Callable[[Any], None] = lambda _: None,
) -> list[Any]:
    """The results of all jobs in order; those already done are not done again.

    Args:
        name: for progress.
        function: called with a job's output path and payload; importable, as processes call it.
        jobs: independent of each other.
        lease: this run's, over the folder the jobs write to.
        mapper: from `connect`.
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
    run = partial(_run, function, lease)
    with contextlib.closing(mapper(run, jobs, waiting)) as coming:
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


@contextlib.contextmanager
def connect(runner: Runner, *, workers: int, address: str | None = None) -> Iterator[Mapper]:
    """What maps jobs: processes here, or a Ray or Dask cluster, let go of at the end.

    Args:
        runner: which.
        workers: processes on this machine; a cluster elsewhere has its own.
        address: of a running cluster; None starts one on this machine.

    Raises:
        UserError: the library is not installed, or the cluster does not answer.
    """
    if runner == "processes":
        yield partial(_map_processes, workers)
        return
    with contextlib.ExitStack() as stack:
        try:
            mapper = (_ray if runner == "ray" else _dask)(stack, address, workers)
        except ImportError as error:
            package = "ray" if runner == "ray" else "distributed"
            raise UserError(
                f"--runner {runner}: {error}", hint=f"install it: pip install {package}"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no {runner} cluster at {address or 'this machine'}: {error}",
                hint="check the address of its scheduler",
            ) from error
        yield mapper


def _map_processes(
    workers: int, run: Run, jobs: Sequence[Job[Any]], waiting: Sequence[int]
) -> Results:
    """In a pool of processes, or in this one if that is as well."""
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


def end_processes() -> None:
    """End the pool's processes, so that the next stage starts without what the last one holds.

    The pool stays from stage to stage, since starting it takes a second; but a tokenizer's caches
    and the allocator's free lists stay with it.
    """
    get_reusable_executor().shutdown(wait=True)


# Ray and Dask are spoken to directly: through joblib's backends results come only when all are
# there (Ray), so that a damaged record stops nothing and no progress is seen.


def _ray(stack: contextlib.ExitStack, address: str | None, workers: int) -> Mapper:
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(num_cpus=workers, include_dashboard=False, **quiet)
    else:
        host, _, port = address.rpartition(":")
        if host and "/" not in host:
            # Ray itself tries for minutes, and then ends the process without a word.
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, **quiet)
    stack.callback(ray.shutdown)
    remote = ray.remote(max_retries=2)(_call)

    def mapped(run: Run, jobs: Sequence[Job[Any]], waiting: Sequence[int]) -> Results:
        shared = ray.put(run)
        pending = [remote.remote(shared, i, jobs[i]) for i in waiting]
        try:
            while pending:
                done, pending = ray.wait(pending)
                try:
                    yield from ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    raise UserError(
                        f"a worker of the Ray cluster failed: {error}",
                        hint="run it again, it resumes",
                    ) from error
        finally:
            for task in pending:
                ray.cancel(task)

    return mapped


def _dask(stack: contextlib.ExitStack, address: str | None, workers: int) -> Mapper:
    from distributed import Client, KilledWorker, LocalCluster, as_completed

    if address is None:
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            host="127.0.0.1",
            silence_logs=logging.ERROR,
        )
        stack.enter_context(local)
        address = local.scheduler_address
    client = stack.enter_context(Client(address, timeout=CONNECT_S))

    def mapped(run: Run, jobs: Sequence[Job[Any]], waiting: Sequence[int]) -> Results:
        # Each job writes files: the same call made twice is not the same result.
        futures = [client.submit(_call, run, i, jobs[i], pure=False) for i in waiting]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KilledWorker as error:
            raise UserError(
                f"a worker of the Dask cluster was killed: {error}", hint="run it again, it resumes"
            ) from error
        finally:
            client.cancel(futures)

    return mapped


def _call(run: Run, number: int, job: Job[Any]) -> tuple[int, Any]:
    return run(number, job)


def _run(
    function: Callable[[Path, Payload], Any], lease: RunLease, number: int, job: Job[Payload]
) -> tuple[int, Any]:
    """Compute one job; its marker is the last thing written."""
    with lease.held():
        result = function(job.output, job.payload)
        atomic_write_json(job.marker, {"inputs": job.inputs, "result": result})
    return number, result
