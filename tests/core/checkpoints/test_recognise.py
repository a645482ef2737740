"""What is no checkpoint is named, with what to do about it, in whatever verb it is given to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.formats.chat_template import TEMPLATES, template_note
from codecria.core.inference.generator import Generator
from codecria.core.inspect import describe
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    shutil.copytree(small_model, folder)
    return folder


def edit(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def adapter(folder: Path) -> Path:
    for file in folder.glob("*"):
        file.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


def only(folder: Path, name: str, content: bytes = b"x") -> Path:
    for file in folder.glob("*"):
        file.unlink()
    (folder / name).write_bytes(content)
    return folder


def pointer(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(POINTER)
    return folder


def renamed(folder: Path, ending: str) -> Path:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.self_attn.q_proj" + ending] = torch.zeros(4, dtype=torch.int32)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def quantised(method: str) -> Callable[[Path], Path]:
    return lambda f: edit(f, quantization_config={"quant_method": method, "bits": 4})


CASES: list[tuple[Callable[[Path], Path], str]] = [
    (lambda f: file(f, "m.gguf", b"nothing"), "m.gguf is not a checkpoint: it is no GGUF file"),
    (lambda f: file(f, "ggml-model", b"GGUF...."), "of GGUF version 774778414, only 2 and 3"),
    (lambda f: f / "model.safetensors", "it is a weights file, one part of a checkpoint"),
    (lambda f: file(f, "pytorch_model.bin", b"x"), "it is a PyTorch file"),
    (lambda f: f / "config.json", "it is one file of a checkpoint"),
    (lambda f: file(f, "model.zip", b"PK"), "it is an archive"),
    (lambda f: file(f, "big.safetensors", POINTER), "it is a Git LFS pointer, not the file itself"),
    (lambda f: pointer(f, "model.safetensors"), "model.safetensors is a Git LFS pointer"),
    (quantised("gptq"), r"holds quantised weights \(GPTQ\), which are not read"),
    (quantised("awq"), r"holds quantised weights \(AWQ\)"),
    (quantised("bitsandbytes"), r"holds quantised weights \(bitsandbytes\)"),
    (quantised("fp8"), r"holds quantised weights \(FP8\)"),
    (quantised("compressed-tensors"), r"holds quantised weights \(compressed-tensors\)"),
    (quantised("hqq"), r"holds quantised weights \(hqq\)"),
    (lambda f: renamed(f, ".qweight"), r"holds quantised weights \(GPTQ or AWQ\)"),
    (lambda f: renamed(f, ".weight.absmax"), r"holds quantised weights \(bitsandbytes\)"),
    (lambda f: renamed(f, ".weight_scale_inv"), r"holds quantised weights \(FP8\)"),
    (lambda f: file(f, "quantize_config.json", b"{}").parent, r"quantised weights \(GPTQ\)"),
    (adapter, r"it is an adapter \(PEFT\) of org/base, not a whole model"),
    (lambda f: only(f, "q4.gguf"), "it holds GGUF files"),
    (lambda f: only(f, "model.safetensors"), "it holds weights but no config.json"),
    (lambda f: only(f, "run.json"), "it is a run that has no checkpoint yet"),
    (lambda f: f.parent, "a folder in it has"),
    (lambda f: f / "nothing", "it does not exist"),
    (lambda _: Path("codellama/CodeLlama-7b-hf"), "it does not exist"),
]


@pytest.mark.parametrize(("make", "message"), CASES)
def test_each_kind_is_named(make: Callable[[Path], Path], message: str, model: Path) -> None:
    path = make(model)
    with pytest.raises(UserError, match=message) as error:
        Generator.load(path, device="cpu", dtype="auto")
    assert "\n" not in error.value.message
    assert error.value.hint
    with pytest.raises(UserError, match=message):
        convert(Request(source=path, out=model.parent / "out", layout=Layout.HF))


def test_a_hub_name_says_how_to_download_it(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        Checkpoint.open(Path("codellama/CodeLlama-7b-hf"))
    assert "hf download codellama/CodeLlama-7b-hf --local-dir" in str(error.value.hint)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin.safetensors"])
def test_inspect_names_a_weights_file(name: str, model: Path) -> None:
    path = file(model, name, (model / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="is a weights file"):
        describe(path, verify=False)


def test_inspect_names_an_adapter(model: Path) -> None:
    with pytest.raises(UserError, match="is an adapter of a kind that is not read"):
        describe(adapter(model), verify=False)


def cache(model: Path, folder: Path, *revisions: str) -> Path:
    root = folder / "models--org--small"
    for revision in revisions:
        shutil.copytree(model, root / "snapshots" / revision)
    return root


def test_a_cache_folder_means_its_only_snapshot(model: Path, tmp_path: Path) -> None:
    root = cache(model, tmp_path, "abc")
    assert Checkpoint.open(root).folder == root / "snapshots" / "abc"
    assert describe(root, verify=False)["kind"] == "checkpoint"


def test_of_several_snapshots_main_is_meant_or_none(model: Path, tmp_path: Path) -> None:
    root = cache(model, tmp_path, "abc", "def")
    with pytest.raises(UserError, match="with 2 snapshots") as error:
        Checkpoint.open(root)
    assert str(root / "snapshots" / "abc") in str(error.value.hint)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("def")
    assert Checkpoint.open(root).folder.name == "def"


def test_the_root_of_a_cache_names_its_models(model: Path, tmp_path: Path) -> None:
    cache(model, tmp_path / "hub", "abc")
    with pytest.raises(UserError, match="is a Hugging Face cache of models") as error:
        Checkpoint.open(tmp_path / "hub")
    assert "models--org--small" in str(error.value.hint)


def test_a_tokenizer_that_is_a_pointer_is_named(model: Path) -> None:
    pointer(model, "tokenizer.model")
    with pytest.raises(UserError, match=r"tokenizer.model is a Git LFS pointer"):
        Generator.load(model, device="cpu", dtype="auto")


@pytest.mark.parametrize(
    ("template", "told"),
    [("", False), (TEMPLATES["llama2"], False), ("<|im_start|>{{ x }}", True), ("[INST]", True)],
)
def test_a_foreign_chat_template_is_reported(
    template: str, told: bool, tokenizer: Tokenizer
) -> None:
    found = template_note(template, tokenizer)
    assert (found is not None) == told
    if found is not None:
        assert "[INST] ... [/INST]" in found
