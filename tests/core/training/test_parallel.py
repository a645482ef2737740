"""Two processes against one: losses, weights on disk, resuming, signals and refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")


def pretrain(shards: Path, out: Path, *more: str) -> list[str]:
    """A command that trains eight steps."""
    options = f"--steps 8 --save-every 3 --eval-every 4 --eval-rows 5 --log-every 1 {MACHINE}"
    changes = "--set context=32 --set batch_tokens=256 --set peak_lr=1e-3 --micro-batch-size 2"
    words = ["-m", "codecria.cli", "pretrain", "--data", str(shards), "--size", "1m"]
    return [*words, "--out", str(out), *options.split(), *changes.split(), *more]


MACHINE = "--device cpu --dtype float32 --compile off --threads 1"


def run(shards: Path, out: Path, *, size: int) -> None:
    """Train to the end, or from where it stopped."""
    command = pretrain(shards, out)
    if size == 1:
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *command], env=alone, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return
    for status, _, errors in Launch([command] * size).end():
        assert status == 0, errors


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def model_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_close_runs(one: Path, other: Path) -> None:
    """The same steps with the same losses and norms, but for the order of sums."""
    mine, theirs = records(one), records(other)
    assert [r["step"] for r in mine] == [r["step"] for r in theirs]
    for a, b in zip(mine, theirs, strict=True):
        for key in ("loss", "grad_norm", "validation_loss"):
            assert (key in a) == (key in b), f"step {a['step']} {key}"
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=2e-5), f"step {a['step']} {key}"
    weights = model_of(other)
    for name, weight in model_of(one).items():
        torch.testing.assert_close(weight, weights[name], atol=2e-5, rtol=1e-4, msg=name)


def adapt(shards: Path, base: Path, out: Path, *more: str) -> list[str]:
    """A command that trains an adapter for eight steps, with new infilling rows."""
    command = pretrain(shards, out, "--lora", "3", "--init", str(base), *more)
    place = command.index("--size")
    return ["-m", "codecria.cli", "fim", *command[3:place], *command[place + 2 :]]


# The command line, but that the second process sends itself a signal ahead of a step, once.
STRUCK = """
import os, sys
from pathlib import Path
from codecria.cli.app import main
from codecria.core.training.trainer import Trainer

once, number, at = Path(sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1))
step = Trainer.step

def struck(self, done, batch):
    if (done, self.world.rank) == (at, 1) and not once.exists():
        once.touch()
        os.kill(os.getpid(), number)
    return step(self, done, batch)

Trainer.step = struck
main()
"""


def struck(command: list[str], folder: Path, number: int, *, at: int) -> list[str]:
    """A command whose second process is sent a signal ahead of a step (from 0)."""
    script = folder / "struck.py"
    script.write_text(STRUCK)
    return [str(script), str(folder / "struck"), str(number), str(at), *command[2:]]


def signalled(shards: Path, out: Path, number: int, *more: str) -> list[tuple[int, str, str]]:
    """A run of two processes of which the second gets a signal after two steps."""
    command = pretrain(shards, out, *more)
    return Launch([struck(command, out.parent, number, at=2)] * 2).end()


def stopped(shards: Path, out: Path) -> None:
    """A run of which one process gets SIGTERM: both save and end."""
    found = signalled(shards, out, signal.SIGTERM)
    assert [status for status, _, _ in found] == [143, 143], found
    assert "stopped and saved at step" in found[0][2]
    assert all(errors == "" for _, _, errors in found[1:]), "only the main process reports"


@pytest.fixture(scope="module")
def enough(
    tokenizer: Tokenizer, corpus: list[str], shard_writer: Any, tmp_path_factory: Any
) -> Path:
    folder: Path = tmp_path_factory.mktemp("parallel") / "code"
    documents = [tokenizer.encode(text[:1500], bos=True, eos=True) for text in corpus]
    shard_writer(folder, documents, tokenizer)
    return folder


@pytest.fixture(scope="module")
def two(enough: Path, tmp_path_factory: Any) -> Path:
    """The run of two processes that nothing breaks."""
    out: Path = tmp_path_factory.mktemp("parallel") / "two"
    run(enough, out, size=2)
    return out


def assert_same_bits(one: Path, other: Path) -> None:
    mine, theirs = model_of(one), model_of(other)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [r.get("loss") for r in records(one)] == [r.get("loss") for r in records(other)]


@pytest.mark.slow
def test_two_processes_train_the_run_of_one_and_one_resumes_theirs(
    enough: Path, two: Path, tmp_path: Path
) -> None:
    # Kills: rows by process, a resumed row counter of one process, parts saved as wholes.
    one, cut = tmp_path / "one", tmp_path / "cut"
    run(enough, one, size=1)
    assert_close_runs(one, two)
    stopped(enough, cut)
    run(enough, cut, size=1)
    assert_close_runs(one, cut)


@pytest.mark.slow
def test_processes_that_would_train_different_runs_are_refused_in_one_line(
    enough: Path, tmp_path: Path
) -> None:
    # Kills: rows of two seeds in one batch, a message from every process.
    out = tmp_path / "run"
    different = [pretrain(enough, out), pretrain(enough, out, "--set", "seed=1")]
    uneven = [pretrain(enough, out)] * 3
    for version in ("9.8", "9.9"):
        installed = tmp_path / version / f"codecria-{version}.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text(f"Name: codecria\nVersion: {version}\n")
    mixed = [
        ["-c", INSTALLED, str(tmp_path / version), *uneven[0][2:]]
        for version in ("9.8", "9.9", "9.9")
    ]
    another = "processes 1, 2 would run another version than process 0: codecria: 9.8 -> 9.9"
    for commands, message, status in (
        (mixed, another, 1),
        (different, "process 1 would train another run than process 0: recipe.seed: 0 -> 1", 1),
        (uneven, "a batch of 8 rows cannot be shared equally by dp=3", 2),
    ):
        found = Launch(commands).end()
        assert [code for code, _, _ in found] == [status] * len(commands), found
        assert message in found[0][2]
        assert [errors for _, _, errors in found[1:]] == [""] * (len(commands) - 1)


# A process that finds codecria's version in a folder of its own.
INSTALLED = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("codecria.cli", run_name="__main__")
"""

# A process whose files may not grow beyond a size, as on a full disk: the writes then fail.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
runpy.run_module("codecria.cli", run_name="__main__")
"""


@pytest.mark.slow
def test_a_dead_process_or_a_full_disk_ends_all_with_one_error_and_the_run_resumes(
    enough: Path, two: Path, tmp_path: Path
) -> None:
    # Kills: a process that waits for a dead one, a half-written step, a lost older one.
    out = tmp_path / "run"
    (status, _, errors), (death, _, _) = signalled(
        enough, out, signal.SIGKILL, "--process-timeout", "77"
    )
    assert (status, death) == (1, -signal.SIGKILL)
    assert "error: process 1 of 2 ended, or did not answer within 77 s" in errors
    assert errors.count("error:") == 1
    assert not (out / "model").exists()

    before = contents(out / "checkpoints")
    command = pretrain(enough, out)
    for full in (0, 1):  # which process's disk is full
        commands = [command] * 2
        commands[full] = ["-c", LIMITED, *command[2:]]
        (status, _, errors), other = Launch(commands).end()
        assert (status, *other) == (1, 1, "", ""), errors
        assert errors.count("error:") == 1
        assert "Traceback" not in errors
        assert "cannot write" in errors
        assert contents(out / "checkpoints") == before

    run(enough, out, size=2)
    assert_same_bits(two, out)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_process_died_from_its_newest_checkpoint(
    enough: Path, two: Path, tmp_path: Path
) -> None:
    # Kills: processes that connect to those of the start before.
    out = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = struck(pretrain(enough, out), tmp_path, signal.SIGKILL, at=4)
    ((status, _, errors),) = Launch([[*torchrun, *command]]).end()
    assert status == 0, errors
    assert_same_bits(two, out)


# Two stages, each unbroken and each stopped twice, in one pair of processes. The ids that each
# process trains on are kept, step by step.
RESUMED = """
import json, os, sys
from pathlib import Path
import torch
from codecria.core.training import trainer
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import agreed, run_stage
from codecria.core.training.world import joined

base, shards, dialogs, folder = (Path(word) for word in sys.argv[1:])
torch.set_num_threads(1)
seen, stop = {}, None
step = trainer.Trainer.step

def recorded(self, number, batch):
    seen.setdefault(number, []).append((batch.ids.tolist(), batch.targets.tolist()))
    if number == stop and self.world.rank == 1:
        self.stop_requested = True
    return step(self, number, batch)

trainer.Trainer.step = recorded
common = dict(steps=9, any_init=True, micro_batch_size=4, device="cpu", dtype="float32",
              compile="off", save_every=100, eval_every=100, eval_rows=2, log_every=1,
              changes={"context": 32, "batch_tokens": 256, "peak_lr": 5e-3, "warmup_steps": 2})
stages = {
    "fim": dict(init=base, data=[str(shards)]),
    "instruct": dict(init=folder / "fim-whole", dialogs=[str(dialogs)], replay=[f"{shards}=0.6"]),
}
with joined(torch.device("cpu"), timeout_s=60) as world:
    for recipe, inputs in stages.items():
        kept = []
        for name, stops in (("whole", [None]), ("broken", [2, 6, None])):
            seen.clear()
            for stop in stops:
                request = StageRequest(recipe=recipe, **common, **inputs)
                out = folder / f"{recipe}-{name}"
                stage, ranks = agreed(world.main_first(lambda: resolve(request, out=out)), world)
                done = run_stage(stage, out, report=lambda _: None, warn=sys.stderr.write,
                                 started=lambda _: None, world=ranks)
                assert done.step == (9 if stop is None else stop + 1), (recipe, name, done)
            kept.append(dict(seen))
        assert sorted(kept[0]) == list(range(9))
        assert kept[0] == kept[1], f"{recipe}: other ids"
print("equal", flush=True)
os._exit(0)  # as the command ends: gloo's threads may abort while Python takes them down
"""


@pytest.mark.slow
def test_two_processes_resumed_twice_across_epochs_end_like_unbroken_ones(
    tokenizer: Tokenizer, corpus: list[str], shard_writer: Any, two: Path, tmp_path: Path
) -> None:
    # Kills: an epoch's order, cuts or packings that depend on where a process began.
    few = tmp_path / "few"
    documents = [tokenizer.encode(text, bos=True)[:100] for text in corpus if len(text) > 2000]
    shard_writer(few, documents[:6], tokenizer)
    chats = tmp_path / "chats.jsonl"
    dialogs = [{"instruction": f"{n}?", "output": f"{n}."} for n in range(19)]
    chats.write_text("".join(json.dumps(dialog) + "\n" for dialog in dialogs))
    words = [str(path) for path in (two / "model", few, chats, tmp_path)]
    found = Launch([["-c", RESUMED, *words]] * 2).end(120)
    assert [(status, output) for status, output, _ in found] == [(0, "equal\n")] * 2, found
    for recipe in ("fim", "instruct"):
        whole, broken = (tmp_path / f"{recipe}-{name}" for name in ("whole", "broken"))
        assert_same_bits(whole, broken)
        epochs = [r["epochs"] for r in records(whole) if "epochs" in r]
        for name in epochs[0]:  # the first stop is before a border, the second after it
            assert epochs[2][name] < 1 < epochs[6][name], (name, epochs)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bfloat16", "qlora", "tp"])
def test_an_adapter_of_two_processes_is_that_of_one(
    enough: Path, two: Path, tmp_path: Path, way: str
) -> None:
    # Kills: only the main process's part saved; a frozen base of another type than the adapter's.
    one, cut = tmp_path / "one", tmp_path / "cut"

    def command(out: Path, size: int) -> list[str]:
        more = {"bfloat16": ["--dtype", "bfloat16"], "qlora": ["--qlora"]}.get(way, [])
        if way == "tp":  # one pass a step: its many messages are slow on a busy machine
            more = ["--micro-batch-size", "8", *(["--mesh", "tp=2"] if size == 2 else [])]
        return adapt(enough, two, out, *more)

    def end(out: Path, size: int) -> None:
        for status, _, errors in Launch([command(out, size)] * size).end():
            assert status == 0, errors

    end(one, 1)
    found = Launch([struck(command(cut, 2), tmp_path, signal.SIGTERM, at=2)] * 2).end()
    assert [status for status, _, _ in found] == [143, 143], found
    end(cut, 2)
    mine, theirs = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, cut))
    assert mine.keys() == theirs.keys()
    rough = 5e-3 if way == "bfloat16" else 2e-5
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name], atol=rough, rtol=1e-3, msg=name)
