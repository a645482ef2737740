"""`adapt`: nothing of the answers is trained on, it resumes, and its advice follows its figures."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codecria.cli import app as cli
from codecria.core.adaptation.proof import advice
from codecria.core.sandbox import bwrap, jail
from codecria.data.files import digest_file
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.git_repository import git

LATER = (
    "def later_{n}(value):\n    result = transform_{n}(value, depth={n})\n    return result + {n}\n"
)
SUMS = "def combined(first, second):\n    return first * 100 + second\n"
TEST = "from sums import combined\n\n\ndef test_combined():\n    assert combined(2, 3) == 203\n"
CONFINED = not jail.problem() or not bwrap.bwrap_problem()


def commit(folder: Path, day: int) -> None:
    git(folder, "add", "-A", day=day)
    git(folder, "commit", "-q", "-m", f"day {day}", day=day)


@pytest.fixture(scope="module")
def place(
    corpus: list[str],
    tokenizer: Tokenizer,
    random_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A repository, a folder of other code, and a model that can infill."""
    folder = tmp_path_factory.mktemp("adapt")
    repository = folder / "repo"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    for n, text in enumerate(corpus[:8]):
        (repository / f"module_{n}.py").write_text(text[:1500].rpartition("\n")[0] + "\n")
    (repository / os.fsdecode(b"no_utf8_\xff.py")).write_text(SUMS.replace("100", "1000"))
    (repository / "binary.py").write_bytes(b"\0" + SUMS.encode())
    (repository / "latin.py").write_bytes(b'word = "caf\xe9"\n')
    commit(repository, 1)
    (repository / "tests").mkdir()
    (repository / "tests" / "test_sums.py").write_text(TEST)
    (repository / "sums.py").write_text(SUMS)
    commit(repository, 2)
    for n in (2, 3):
        (repository / f"added_{n}.py").write_text(LATER.format(n=n))
        commit(repository, n)
    other = folder / "other"
    other.mkdir()
    for n in range(50):
        (other / f"other_{n}.py").write_text(corpus[10 + n % 20][:600] + f"\n\n# {n}\n")
    tokenizer.extend(folder / "tokenizer.model")
    model = random_model(Tokenizer.load(folder / "tokenizer.model"), max_context=96)
    shutil.copytree(model, folder / "model")
    return folder


@pytest.fixture
def adapt(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call `codecria adapt` within this process."""

    def call(out: Path, *more: str) -> tuple[int, str, str]:
        words = ["adapt", str(place / "repo"), "--init", str(place / "model"), "--out", str(out)]
        words += ["--since", "2026-03-02", "--rehearsal", str(place / "other"), "--limit", "3"]
        words += ["--steps", "4", "--set", "context=64", "--set", "batch_tokens=128"]
        words += ["--device", "cpu", "--dtype", "float32", *more]
        monkeypatch.setattr(sys, "argv", ["codecria", *words])
        capfd.readouterr()
        status = int(cli.run())
        sys.stdout.flush()
        return (status, *capfd.readouterr())

    return call


def test_it_learns_the_past_measures_what_came_later_and_resumes(
    place: Path, adapt: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    # Kills: answers in the data, rehearsal measured on what was rehearsed, a cut that moves.
    out = tmp_path / "out"
    status, _, errors = adapt(out, "--dry-run")
    assert status == 0, errors
    assert not out.exists()
    status, output, errors = adapt(out, "--json")
    assert status == 0, errors
    found = json.loads(output[output.index("{\n") :] if not output.startswith("{") else output)
    assert found["repo"]["before"][-1]["spans"] == found["repo"]["after"][-1]["spans"] > 3
    trained = (out / "repo.jsonl").read_text()
    assert "module_0" in trained
    assert "binary" not in trained, "why a file is left out is trained on"
    assert "latin" not in trained
    assert "transform_" not in trained, "an answer is in the training data"
    rehearsed = (out / "rehearsal.jsonl").read_text()
    lines = [json.loads(line) for line in (out / "proof.jsonl").read_text().splitlines()]
    ids = [line["key"] for line in lines if line.get("kind", "").startswith("answers ")]
    paths = {id.split(" ")[1].partition(":")[0] for id in ids if " other_" in id}
    assert paths
    assert not [path for path in paths if f'"{path}"' in rehearsed]
    if CONFINED:
        assert found["tests"]["spans"] >= 1
        assert found["repo"]["before"][-1]["passes"]["value"] == 0, "a random model's code passes"
    said = [json.loads(line) for line in (out / "spans.jsonl").read_text().splitlines()]
    assert len(said) == 2 * found["repo"]["before"][-1]["spans"]
    adapter = digest_file(out / "run" / "adapter" / "adapter_model.safetensors")
    # As if killed after training: the rest is made again, the same; a new commit moves nothing.
    (out / "report.json").unlink()
    kept = (out / "proof.jsonl").read_text().splitlines(keepends=True)
    (out / "proof.jsonl").write_text("".join(kept[: len(kept) // 2]))
    (place / "repo" / "newest.py").write_text(LATER.format(n=9))
    commit(place / "repo", 9)
    status, output, errors = adapt(out, "--json")
    assert status == 0, errors
    assert "nothing to do" in errors
    assert digest_file(out / "run" / "adapter" / "adapter_model.safetensors") == adapter
    assert json.loads((out / "report.json").read_text()) == found
    status, _, errors = adapt(out, "--limit", "1")
    assert status == 1
    assert "another adaptation: limit: 3 -> 1" in errors


def change(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_the_advice_follows_the_intervals() -> None:
    nothing = change(0.0, -0.1, 0.1)
    rest = {"kind": "all", "spans": 9, "exact": nothing, "similarity": nothing, "passes": None}
    better = rest | {"loss": change(-0.2, -0.3, -0.1)}
    assert advice(better, None, None)["use"]
    assert not advice(rest | {"loss": nothing}, None, None)["use"]
    assert not advice(better | {"exact": change(-0.1, -0.2, -0.01)}, None, None)["use"]
    assert not advice(better | {"passes": change(-0.1, -0.2, -0.01)}, None, None)["use"]
    forgot = advice(better, rest | {"loss": change(0.2, 0.1, 0.3)}, 2.0)
    assert forgot["use"]
    assert "+0.200" in forgot["forgot"]
    assert advice(better, rest | {"loss": change(0.01, 0.005, 0.02)}, 2.0)["forgot"] is None
