"""What a path holds that is not a checkpoint folder: each kind is named, with what to do about it.

A Hugging Face cache folder is followed to its snapshot; everything else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.files import is_lfs_pointer, read_json

from .ends import CONFIG_NAME
from .formats.meta import PARAMS_NAME

ADAPTER_NAME = "adapter_config.json"
NEEDED = "name a folder in the Hugging Face layout or Meta's, a GGUF file, or the --out of a run"
_QUANTISED = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "compressed-tensors": "compressed-tensors",
}
# How the names of a quantised layer's tensors end, which no Llama's weight does.
_QUANTISED_ENDS = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_format": "bitsandbytes",
    ".weight_scale": "FP8",
    ".weight_scale_inv": "FP8",
    ".weight_packed": "compressed-tensors",
}
_QUANTISED_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".zst", ".7z")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def snapshot_of(path: Path) -> Path | None:
    """The checkpoint folder within a Hugging Face cache folder (models--org--name).

    It is the snapshot that refs/main names, or the only one; None where there are no snapshots.

    Raises:
        UserError: there are several, and nothing selects one.
    """
    found = sorted(p for p in (path / "snapshots").glob("*") if p.is_dir())
    if not found:
        return None
    main = path / "refs" / "main"
    named = path / "snapshots" / main.read_text().strip() if main.is_file() else None
    if named in found:
        return named
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{path} is a Hugging Face cache folder with {len(found)} snapshots",
        hint=f"name one of them, such as {found[0]}",
    )


def not_a_checkpoint(path: Path) -> UserError:
    """The error for a path that holds no checkpoint: what it is, and what to do."""
    if path.is_dir():
        what, hint = _folder(path)
    elif path.is_file():
        what, hint = _file(path)
    else:
        what, hint = "does not exist", NEEDED
        if len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists():
            hint = (
                f"a model of the Hugging Face hub is downloaded first:"
                f" hf download {path} --local-dir {path.name}"
            )
    return UserError(f"{path} is not a checkpoint: it {what}", hint=hint)


def _file(path: Path) -> tuple[str, str]:
    name, suffix = path.name, path.suffix.lower()
    folder = f"name its folder: {path.parent}"
    if is_lfs_pointer(path):
        return "is a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository"
    if suffix == ".gguf":
        return "is no GGUF file, whatever its name: it does not begin as one", "download it again"
    if suffix == ".safetensors":
        missing = "" if (path.parent / CONFIG_NAME).is_file() else f", with a {CONFIG_NAME} in it"
        return "is a weights file, one part of a checkpoint", folder + missing
    if suffix in _PICKLES:
        if (path.parent / PARAMS_NAME).is_file():
            return "is a weights file, one part of a checkpoint", folder
        return "is a PyTorch file", "get the model's safetensors files and its config.json"
    if name in (CONFIG_NAME, PARAMS_NAME) or name.endswith(".index.json"):
        return "is one file of a checkpoint", folder
    if name.startswith("tokenizer"):
        return "is a tokenizer", "name the folder of a model"
    if suffix in _ARCHIVES:
        return "is an archive", "unpack it and name the folder"
    return "is a file", NEEDED


def _folder(path: Path) -> tuple[str, str]:
    names = sorted(entry.name for entry in path.iterdir())
    if ADAPTER_NAME in names:
        return _adapter(path)
    cached = [name for name in names if name.startswith("models--")]
    if cached:
        some = f"name one of its {len(cached)} models, such as {path / cached[0]}"
        return "is a Hugging Face cache of models", some
    if path.name.startswith("models--"):
        return "is a Hugging Face cache folder without a snapshot", "download the model again"
    if any(name.endswith(".gguf") for name in names):
        files = [name for name in names if name.endswith(".gguf")]
        return "holds GGUF files", f"name one of them, such as {path / files[0]}"
    if "manifest.json" in names or "sets.json" in names:
        return "holds prepared data", "name a model; data is given by --data"
    if "run.json" in names:
        return (
            "is a run that has no checkpoint yet",
            "rerun its command to resume it, or wait until it has saved one",
        )
    if any(name.endswith((".safetensors", *_PICKLES)) for name in names):
        return f"holds weights but no {CONFIG_NAME}", f"copy the model's {CONFIG_NAME} there"
    inner = [name for name in names if (path / name / CONFIG_NAME).is_file()]
    if inner:
        return f"has no {CONFIG_NAME}, a folder in it has", f"name {path / inner[0]}"
    return f"has no {CONFIG_NAME} and no {PARAMS_NAME}", NEEDED


def _adapter(path: Path) -> tuple[str, str]:
    raw = read_json(path / ADAPTER_NAME)
    base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
    return (
        "is an adapter (PEFT)" + (f" of {base}" if base else "") + ", not a whole model",
        f"name its base beside it: --model BASE --adapter {path}",
    )


def refuse_quantised(folder: Path, raw: Mapping[str, Any], names: Iterable[str] = ()) -> None:
    """Refuse a folder of quantised weights.

    Args:
        folder: of the checkpoint.
        raw: its config.json.
        names: of its weights, as the files have them.

    Raises:
        UserError: config.json, a file beside it or a weight's name shows that they are quantised.
    """
    kind = None
    for key in ("quantization_config", "compression_config"):
        if isinstance(found := raw.get(key), Mapping):
            method = str(found.get("quant_method", "an unnamed method"))
            kind = _QUANTISED.get(method, method)
    for name, method in _QUANTISED_FILES.items():
        if kind is None and (folder / name).is_file():
            kind = method
    for name in names:
        end = next((end for end in _QUANTISED_ENDS if name.endswith(end)), None)
        if kind is None and end is not None:
            kind = _QUANTISED_ENDS[end]
    if kind is not None:
        raise UserError(
            f"{folder} holds quantised weights ({kind}), which are not read",
            hint="use the model they were made from, in float16, bfloat16 or float32",
        )
