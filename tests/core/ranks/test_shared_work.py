"""Evaluation and generation of several processes against one: the same bytes, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.core.ranks import all_shared
from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, random_model: Callable[..., Path]) -> Path:
    return random_model(tokenizer, max_context=256)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven tasks in HumanEval's form."""
    path: Path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    lines = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f"def f{n}(x):\n",
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(f):\n    assert f(1) == {1 + n}\n",
            "entry_point": f"f{n}",
        }
        for n in range(7)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def one(model: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes."""
    return all_shared.alone(model, tmp_path_factory.mktemp("one"), problems)


def cli(*words: object) -> list[str]:
    return ["-m", "codecria.cli", *map(str, words)]


SAMPLED = "--generate-only --preset paper-sampled --max-tokens 10 --batch 4"
CPU = "--device cpu --engine torch --dtype float32 --threads 1"


def sampled(problems: Path, model: Path, out: Path, samples: int) -> list[str]:
    """Samples of each task, in batches that may hold those of two tasks."""
    words = ("evaluate", "humaneval", "--problems", problems, "-m", model, "-o", out, "-n", samples)
    return cli(*words, *SAMPLED.split(), *CPU.split())


def alone(command: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def together(command: Sequence[str], size: int) -> str:
    """What the main process of several prints; the others print nothing."""
    found = Launch([command] * size).end()
    assert [status for status, _, _ in found] == [0] * size, found
    assert all(streams == ("", "") for _, *rest in found[1:] for streams in [tuple(rest)]), found
    return found[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "size"), [("dp=2", 2), ("dp=2,tp=2", 4)])
def test_several_processes_make_what_one_makes(
    mesh: str, size: int, one: dict[str, Any], model: Path, problems: Path, tmp_path: Path
) -> None:
    # Kills: batches by process, results as they come; heads or ids of the wrong part, sums left
    # out, tokens drawn apart, keys restored to other heads.
    together([all_shared.__file__, *map(str, (model, tmp_path, problems)), mesh], size)
    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("samples", "replies", "cached"):
        assert found[name] == one[name], name
    assert len(found["samples"].splitlines()) == 21
    if mesh == "dp=2":
        assert found["figures"] == one["figures"]
    else:
        assert found["figures"] == pytest.approx(one["figures"], rel=1e-4)


@pytest.mark.slow
def test_three_processes_write_the_file_of_one_and_two_resume_it(
    one: dict[str, Any], problems: Path, model: Path, tmp_path: Path
) -> None:
    # Kills: members of a batch that depend on what is known or on the number of processes.
    shared = tmp_path / "shared.jsonl"
    together(sampled(problems, model, shared, 3), 3)
    assert shared.read_text() == one["samples"]
    lines = shared.read_bytes().splitlines(keepends=True)
    shared.write_bytes(b"".join(lines[:9]) + lines[9][:20])  # within a batch, and within a line
    together(sampled(problems, model, shared, 3), 2)
    assert shared.read_text() == one["samples"]


def made_by(folder: Path) -> dict[str, Any]:
    """The lines of all files of a self-instruct run, times aside.

    Programs run beside each other, so their journals have the order in which they end.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line.pop("seconds", None)
        if path.name == "probes.jsonl" or path.parent.name == "verdicts":
            lines.sort(key=lambda line: str(line["id"]))
        found[str(path.relative_to(folder))] = lines
    return found


@pytest.mark.slow
def test_self_instruct_keeps_the_same_journals_whatever_the_number_of_processes(
    tokenizer: Tokenizer, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    # Kills: answers in the order in which they come, samples drawn by process.
    model = random_model(tokenizer, max_context=4096)  # the prompts are long
    tests = tmp_path / "tests.jsonl"
    lines = [
        {
            "question": f"Write a function f{n} that adds {n}.",
            "tests": [f"assert f{n}({m}) == {m + n}" for m in (1, 2, 5)],
        }
        for n in range(1, 6)
    ]
    tests.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def command(out: Path) -> list[str]:
        words = ("self-instruct", "-m", model, "--tests-file", tests, "-o", out)
        few = "--solutions 3 --set solutions_tokens=8 --prompt-form few-shot --batch 2"
        return cli(*words, *few.split(), *CPU.split())

    alone(command(tmp_path / "1"))
    wanted = made_by(tmp_path / "1")
    assert len({reply["text"] for reply in wanted["replies/solutions.jsonl"]}) == 15
    for size in (2, 3):
        together(command(tmp_path / str(size)), size)
        assert made_by(tmp_path / str(size)) == wanted


@pytest.mark.slow
def test_processes_that_share_the_layers_say_what_one_says(model: Path) -> None:
    words = ("generate", "-m", model, "def f(x):", "--max-tokens", 20, "-n", 2, "-t", 0.9)
    command = cli(*words, *CPU.split())
    assert together([*command, "--mesh", "tp=2"], 2) == alone(command)


# The command line, with less patience for a process that falls silent.
HASTY = """
from codecria.core.ranks import pulse
from codecria.cli.app import main
pulse.SILENCE_S = 6.0
main()
"""
GONE = "of 2 ended, or did not answer within"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number", "statuses", "message"),
    [
        (1, signal.SIGTERM, (143, 143), "stopped with"),
        (0, signal.SIGTERM, (143, 143), "stopped with"),
        (1, signal.SIGSTOP, (1, -9), f"error: process 1 {GONE} 6 s"),
        (0, signal.SIGKILL, (-9, 1), f"error: process 0 {GONE}"),
    ],
)
def test_a_process_that_ends_or_hangs_ends_all_with_one_message_and_nothing_is_lost(
    whom: int,
    number: signal.Signals,
    statuses: tuple[int, int],
    message: str,
    problems: Path,
    model: Path,
    tmp_path: Path,
) -> None:
    # Kills: a wait without end, a message of every process, a torn result.
    out = tmp_path / "out.jsonl"
    # Not warm: a signal that stops a process cannot be passed on.
    words = ["-c", HASTY, *sampled(problems, model, out, 20_000)[2:]]
    launch = Launch([words] * 2, python=sys.executable)
    deadline = time.monotonic() + 120
    while not out.exists() or out.read_text().count("\n") < 20:
        assert time.monotonic() < deadline, launch.end(1)
        time.sleep(0.02)
    launch.processes[whom].send_signal(number)
    if number == signal.SIGSTOP:
        launch.processes[0].wait(60)
        os.kill(launch.processes[whom].pid, signal.SIGKILL)
    found = launch.end(90)
    assert tuple(status for status, _, _ in found) == statuses, found
    reporter = 1 if whom == 0 and number == signal.SIGKILL else 0
    assert message in found[reporter][2], found
    if reporter == 0:
        assert found[1][2] == "", "one process reports"
    numbers = [json.loads(line)["sample"] for line in out.read_text().splitlines()]
    assert numbers == list(range(len(numbers)))


@pytest.mark.slow
def test_a_mesh_that_does_not_fit_is_refused_by_one_process(model: Path) -> None:
    words = cli("generate", "-m", model, "x", "--mesh", "dp=2")
    statuses, _, errors = zip(*Launch([words] * 2).end(), strict=True)
    assert statuses == (2, 2)
    assert "dp shares prompts, and there is one" in errors[0]
    assert errors[1] == ""
