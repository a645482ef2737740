"""Packed weights in the cache: the same bits, mapped; and what happens when they cannot be kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.saving import publish
from codecria.core.inference import packed_cache
from codecria.core.inference.loading import Compute, load_runner
from codecria.core.inference.runner import Scores
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.core.native.kernels import load as load_kernels
from codecria.data.tokenizer.tokenizer import Tokenizer

IDS = [1, 5, 9, 33, 7]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; kernels stay where the session has them."""
    load_kernels()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codecria" / "packed"


@pytest.fixture(scope="module")
def make(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("packed") / "model"
        config = ModelConfig(
            dim=64,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            hidden_dim=96,
            vocab_size=tokenizer.vocab_size,
            max_context=64,
            tied=kind == "tied",
        )
        model = Transformer(config)
        model.initialise(0)
        publish(folder, model, dtype=torch.float32, tokenizer=tokenizer.path, lineage={})
        if kind in ("q8", "q4"):
            out = folder.with_name(f"{kind}.gguf")
            convert(Request(source=folder, out=out, layout=Layout.GGUF, dtype=kind, verify=False))
            return out
        return folder

    return made


def scores(model: Path, *, keep: bool = True, dtype: str = "q4") -> tuple[Scores, list[str]]:
    """The scores after a prompt, and what was said."""
    said: list[str] = []
    compute = Compute(device="cpu", engine="native", dtype=dtype, keep_packed=keep, threads=1)
    runner = load_runner(Checkpoint.open(model), compute, said.append)
    runner.reserve(1, 16)
    return runner.prefill(0, [IDS]).copy(), said


@pytest.mark.parametrize("kind", ["plain", "tied", "q8", "q4"])
def test_kept_weights_give_the_same_bits_and_are_packed_once(
    kind: str, make: Callable[..., Path], cache: Path
) -> None:
    model = make(kind)
    expected, _ = scores(model, keep=False)
    first, said = scores(model)
    assert len(said) == 1
    assert said[0].startswith("packing the weights, once for this model")
    second, nothing = scores(model)
    assert nothing == []
    assert (first == expected).all()
    assert (second == expected).all()
    [file] = cache.glob("*.safetensors")
    assert packed_cache.survey()["bytes"] == file.stat().st_size
    _, other = scores(model, dtype="q8")
    assert len(other) == 1, "another type is another file"


def test_a_changed_file_is_verified_and_a_damaged_one_packed_again(
    make: Callable[..., Path], cache: Path
) -> None:
    model = make("plain")
    expected, _ = scores(model)
    [file] = cache.glob("*.safetensors")
    os.utime(file)  # copied, or restored from a backup
    found, said = scores(model)
    assert said == []
    assert (found == expected).all()
    content = bytearray(file.read_bytes())
    content[-100] ^= 255
    file.write_bytes(content)
    found, said = scores(model)
    assert said[0].startswith(f"{file} is damaged")
    assert said[1].startswith("packing the weights")
    assert (found == expected).all()
    file.with_suffix(".json").write_text("{")  # nobody knows what it should hold
    assert (scores(model)[0] == expected).all()
    assert scores(model)[1] == []


def test_another_model_at_the_same_place_is_not_taken_for_it(
    make: Callable[..., Path], cache: Path
) -> None:
    model = make("plain")
    before, _ = scores(model)
    from safetensors.numpy import load_file, save_file

    path = model / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "q_proj" in name)
    save_file(weights | {name: np.flip(weights[name], 0).copy()}, path)
    after, said = scores(model)
    assert said[0].startswith("packing the weights")
    assert (after == scores(model, keep=False)[0]).all()
    assert not (after == before).all()
    assert len(list(cache.glob("*.safetensors"))) == 2


def test_what_has_no_room_is_packed_in_memory_and_old_files_go(
    make: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("plain")
    expected, _ = scores(model)
    [file] = cache.glob("*.safetensors")
    size = file.stat().st_size
    checkpoint = Checkpoint.open(model)
    kernels = load_kernels()
    from codecria.core.inference.loading import _ByName

    said: list[str] = []
    weights = _ByName(checkpoint)
    assert (
        packed_cache.kept(checkpoint, weights, "q8", kernels, said.append, most_bytes=10) is weights
    )
    assert "more than the cache's limit" in said[-1]
    assert file.exists(), "nothing is removed for what has no room anyway"
    packed_cache.kept(checkpoint, weights, "q8", kernels, said.append, most_bytes=3 * size)
    assert len(list(cache.glob("*.safetensors"))) == 2
    [other] = set(cache.glob("*.safetensors")) - {file}
    other.unlink()
    packed_cache.kept(checkpoint, weights, "q8", kernels, said.append, most_bytes=2 * size)
    assert set(cache.glob("*.safetensors")) == {other}, "the one that was used last stays"
    for path in cache.glob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr(packed_cache, "SPARE_BYTES", 1 << 60)  # a full disk
    found, told = scores(model)
    assert (found == expected).all()
    assert len(told) == 1
    assert told[0].startswith("the packed weights are not kept:")
    assert "free" in told[0]


PROGRAM = """
import json, resource, sys
from pathlib import Path
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.loading import Compute, load_runner
if int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
said = []
compute = Compute(device="cpu", engine="native", dtype="q4", keep_packed=True, threads=1)
runner = load_runner(Checkpoint.open(Path(sys.argv[1])), compute, said.append)
runner.reserve(1, 16)
print(json.dumps([runner.prefill(0, [[1, 5, 9, 33, 7]]).tolist(), said]))
"""


def started(model: Path, cache: Path, kernels: Path, limit: int = 0) -> subprocess.Popen[str]:
    (cache.parent / "kernels").parent.mkdir(parents=True, exist_ok=True)
    if not (cache.parent / "kernels").exists():
        (cache.parent / "kernels").symlink_to(kernels)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(model), str(limit)], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_pack_at_once_and_a_write_that_fails(
    make: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("plain")
    with monkeypatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME")
        from codecria.core.native import kept

        kernels = kept.cache_folder()
    expected = scores(model, keep=False)[0].tolist()
    failing = started(model, cache, kernels, limit=20_000)
    found, said = json.loads(failing.communicate(timeout=120)[0])
    assert failing.returncode == 0
    assert found == expected
    assert "the packed weights are not kept: cannot write" in said[-1]
    assert not list(cache.glob("*.safetensors"))
    several = [started(model, cache, kernels) for _ in range(2)]
    told = []
    for process in several:
        found, said = json.loads(process.communicate(timeout=120)[0])
        assert process.returncode == 0
        assert found == expected
        told += said
    assert sum(line.startswith("packing the weights") for line in told) == 1
    assert len(list(cache.glob("*.safetensors"))) == 1
    assert not list(cache.glob(".tmp-*"))


def test_what_is_not_packed_is_not_kept(make: Callable[..., Path], cache: Path) -> None:
    _, said = scores(make("plain"), dtype="float32")
    assert said == ["weights are float32: --keep-packed keeps those of --dtype q8 or q4"]
    assert not cache.exists()
