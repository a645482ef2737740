"""Helper threads: they end, survive a fork, and their number follows the load."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np

from codecria.core.native import kernels
from codecria.core.native.check import CONFIG, random_weights
from codecria.core.native.runner import NativeRunner
from codecria.core.native.threads import FIRST, PERIOD, TRIAL, ThreadTuner

IDS = [(7 * n) % CONFIG.vocab_size for n in range(30)]


def new_runner(threads: int | None = 3) -> NativeRunner:
    runner = NativeRunner(
        CONFIG, random_weights(CONFIG), kernels.load(), dtype="q8", threads=threads
    )
    runner.reserve(1, 64)
    return runner


def helpers() -> int:
    return sum(thread.name.startswith("codecria-helper") for thread in threading.enumerate())


def test_helpers_end_with_their_runner_and_are_not_started_before_they_are_needed() -> None:
    gc.collect()
    before = helpers()
    runners = [new_runner() for _ in range(3)]
    assert helpers() == before
    scores = [runner.prefill(0, [IDS]).copy() for runner in runners]
    assert helpers() == before + 6
    assert (scores[0] == scores[1]).all()
    runners[0].close()
    assert helpers() == before + 4
    runners[0].truncate(0, 0)
    assert (runners[0].prefill(0, [IDS]) == scores[0]).all(), "a closed runner starts again"
    del runners
    gc.collect()
    assert helpers() == before


def test_helpers_are_awake_in_every_part_of_a_prompt() -> None:
    runner = new_runner()
    runner.prefill(0, [IDS])
    record, parked = runner._record, runner._helpers._parked
    forward, asleep = runner._kernels.forward, list[int]()

    def watched(*arguments: int) -> None:
        asleep.append(sum(record.words[place] for place in parked))
        forward(*arguments)
        end = time.monotonic() + 60  # as if there had been nothing to do for a while
        while not all(record.words[place] for place in parked) and time.monotonic() < end:
            time.sleep(0.001)

    runner._kernels = replace(runner._kernels, forward=watched)
    runner.truncate(0, 0)
    runner.prefill(0, [IDS])
    assert asleep == [0] * (CONFIG.n_layers + 1)


def test_runners_of_two_threads_at_once_do_not_disturb_each_other() -> None:
    found: list[np.ndarray] = []

    def work() -> None:
        runner = new_runner()
        runner.prefill(0, [IDS])
        found.append(np.concatenate([runner.decode(0, [[n]]).copy() for n in range(30)]))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


PROGRAM = """
import os, sys
from tests.core.native.test_threads import *
runner = new_runner()
first = runner.prefill(0, [IDS]).copy()
runner.truncate(0, 0)
child = os.fork()
again = runner.prefill(0, [IDS])
if not (again == first).all():
    sys.exit("other scores")
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_works_and_both_processes_end() -> None:
    root = os.path.dirname(os.path.abspath(__file__ + "/../../.."))  # noqa: PTH100, PTH120
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def steps(tuner: ThreadTuner, count: int, seconds: dict[int, float]) -> None:
    for _ in range(count):
        tuner.measured(1, seconds[tuner.choose()])


def test_fewer_threads_are_taken_while_they_are_quicker_and_more_when_they_are_again() -> None:
    tuner = ThreadTuner(4, fixed=False)
    steps(tuner, 400, {1: 2.0, 2: 1.2, 4: 1.0})
    assert tuner.threads == 4
    steps(tuner, 400, {1: 1.0, 2: 2.0, 4: 4.0})
    assert tuner.threads == 1
    steps(tuner, 600, {1: 2.0, 2: 1.2, 4: 1.0})
    assert tuner.threads == 4


def test_a_short_text_is_long_enough_to_find_that_fewer_threads_are_quicker() -> None:
    tuner = ThreadTuner(2, fixed=False)
    steps(tuner, FIRST + TRIAL, {1: 1.0, 2: 2.0})
    assert tuner.threads == 1


def test_trials_are_few_and_a_fixed_number_is_never_changed() -> None:
    tuner = ThreadTuner(2, fixed=False)
    chosen = []
    for _ in range(20 * PERIOD):
        chosen.append(tuner.choose())
        tuner.measured(1, {1: 2.0, 2: 1.0}[chosen[-1]])
    assert chosen.count(1) <= 20 * TRIAL
    fixed = ThreadTuner(2, fixed=True)
    steps(fixed, 200, {2: 9.0})
    assert fixed.choose() == 2


def test_steps_of_different_sizes_are_not_compared() -> None:
    tuner = ThreadTuner(2, fixed=False)
    for step in range(500):
        tokens = 1 + step // 10 % 2 * 8  # ten of one token, ten of nine
        tuner.measured(tokens, float(tokens) * {1: 1.3, 2: 1.0}[tuner.choose()])
    assert tuner.threads == 2
