"""Published checkpoints: a folder in the Hugging Face Llama layout, whole or absent.

    config.json                    the shape (core/config.py)
    model.safetensors              weights under the Hugging Face names, or several files
    model.safetensors.index.json   and which file holds which weight, where they are several
    tokenizer.model                with tokenizer_config.json and generation_config.json
    README.md                      the model card of a finished run (core/card.py)
    codecria.json                  lineage: recipe, step, data digest, parent; digests of the files
                                   (ours alone)

transformers, vLLM and llama.cpp's converter open it as it is, and the checkpoints they publish open
here. Weights are mapped from disk: nothing is copied until it is used or converted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from codecria.data.errors import UserError
from codecria.data.files import (
    atomic_folder,
    atomic_write_json,
    digest_bytes,
    digest_file,
    digest_json,
    read_json,
    require_free_space,
)

from .config import ModelConfig
from .model import Transformer

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAME = "tokenizer.model"
LINEAGE_NAME = "codecria.json"
CARD_NAME = "README.md"  # where people and model hubs look for it
DIGESTS_KEY = "files"
MAX_SHARD_BYTES = 5_000_000_000  # the size at which the ecosystem starts another file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Our names (Llama's) against the layout's, in the embedding, the blocks and the head.
_OUTER = {
    "tok_embeddings": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}


def disk_name(ours: str) -> str:
    """The Hugging Face name of one of our weights: norm.weight -> model.norm.weight."""
    if ours in _OUTER:
        return _OUTER[ours]
    layers, number, inner = ours.split(".", 2)
    assert layers == "layers", f"{ours} is not a weight of the model"
    return f"model.layers.{number}.{_INNER[inner]}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that was found to be a checkpoint; open one with `Checkpoint.open`.

    Attributes:
        folder: where it lies.
        config: its shape.
        files: for each weight's name on disk, the file that holds it.
    """

    folder: Path
    config: ModelConfig
    files: Mapping[str, Path]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a checkpoint folder, or the one published in a run folder.

        Raises:
            UserError: it is none, or parts of it are missing.
        """
        folder = resolve(path)
        return cls(folder, read_config(folder), _weight_files(folder))

    @property
    def tokenizer_path(self) -> Path | None:
        """Its tokenizer.model, if it has one."""
        path = self.folder / TOKENIZER_NAME
        return path if path.is_file() else None

    def lineage(self) -> dict[str, Any]:
        """What it was made from, as recorded in codecria.json; empty for others' checkpoints."""
        return {key: value for key, value in self._page().items() if key != DIGESTS_KEY}

    def _page(self) -> dict[str, Any]:
        path = self.folder / LINEAGE_NAME
        value = read_json(path) if path.is_file() else {}
        return value if isinstance(value, dict) else {}

    def verify(self) -> list[str]:
        """Read every weight and list what is not as it was written, or is no number.

        Raises:
            UserError: a weights file is damaged or incomplete.
        """
        digests = self._page().get(DIGESTS_KEY, {})
        lines = []
        for name, wanted in sorted(digests.items()):
            path = self.folder / name
            if not path.is_file():
                lines.append(f"{name} is missing")
            elif digest_file(path) != wanted:
                lines.append(f"{name} is not the file that was written")
        lines += [
            f"{name} holds values that are not finite"
            for name, tensor in self.tensors()
            if tensor.is_floating_point() and not bool(tensor.isfinite().all())
        ]
        return lines

    def digest(self) -> str:
        """The digest of its shape and weights, files read whole."""
        names = sorted({path.name: path for path in self.files.values()}.items())
        parts = [digest_json(self.config.to_hugging_face(dtype="")).encode()]
        parts += [digest_file(path).encode() for _, path in names]
        return digest_bytes(*parts)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by its name on disk, mapped from its file.

        Raises:
            UserError: a file is damaged or lacks a weight the index places in it.
        """
        by_file: dict[Path, list[str]] = {}
        for name, path in sorted(self.files.items()):
            by_file.setdefault(path, []).append(name)
        for path, names in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in names:
                        yield name, file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every weight, by its name on disk, from the files' headers alone.

        Raises:
            UserError: a file is damaged or lacks a weight the index places in it.
        """
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        for path in sorted(set(self.files.values())):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                        part = file.get_slice(name)
                        found[name] = (tuple(part.get_shape()), str(part.get_dtype()))
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error
        return found

    def problems(self) -> list[str]:
        """What is missing, unexpected or of the wrong shape, one line each; empty when sound."""
        with torch.device("meta"):
            model = Transformer(self.config)
        wanted = {disk_name(n): tuple(p.shape) for n, p in model.named_parameters()}
        found = self.shapes()
        lines = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
        lines += [
            f"{name} is not part of the model"
            for name in sorted(found.keys() - wanted.keys())
            if not _ignorable(name, self.config)
        ]
        lines += [
            f"{name} has shape {found[name][0]}, the model's is {wanted[name]}"
            for name in sorted(found.keys() & wanted.keys())
            if found[name][0] != wanted[name]
        ]
        return lines


def read_config(folder: Path) -> ModelConfig:
    """The shape that the config.json of a checkpoint folder tells.

    Raises:
        UserError: the file is missing or damaged, or asks for what Llama 2 has not.
    """
    path = folder / CONFIG_NAME
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object")
    return ModelConfig.from_hugging_face(raw, where=str(path))


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged or incomplete: {error}", hint="download or convert the model again"
    )


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Weights that hold nothing: old rotary tables, and the copy of a tied output matrix."""
    return name.endswith("rotary_emb.inv_freq") or (config.tied and name == _OUTER["output.weight"])


def resolve(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the newest one of a run folder.

    Raises:
        UserError: there is none.
    """
    if (path / CONFIG_NAME).is_file():
        return path
    if (path / "model" / CONFIG_NAME).is_file():
        return path / "model"
    steps = sorted((path / "checkpoints").glob("step-*"))
    if steps and (steps[-1] / CONFIG_NAME).is_file():
        return steps[-1]
    what = "has no config.json" if path.is_dir() else "does not exist"
    raise UserError(
        f"{path} is not a checkpoint: it {what}",
        hint="name a folder in the Hugging Face layout, or the --out of a finished run",
    )


def _weight_files(folder: Path) -> dict[str, Path]:
    """Which file holds which weight, checked to be there."""
    index_path, single = folder / INDEX_NAME, folder / WEIGHTS_NAME
    if index_path.is_file():
        index = read_json(index_path)
        placed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(placed, dict) or not placed:
            raise UserError(f"{index_path} has no weight_map")
        files = {str(name): folder / str(file) for name, file in placed.items()}
        absent = sorted({path.name for path in files.values() if not path.is_file()})
        if absent:
            raise UserError(
                f"{folder} is incomplete: {', '.join(absent)} missing",
                hint="download or convert the model again",
            )
        return files
    if not single.is_file():
        raise UserError(
            f"{folder} has a config.json but no weights ({WEIGHTS_NAME})",
            hint="weights in other formats must be converted to safetensors first",
        )
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (SafetensorError, OSError) as error:
        raise _damaged(single, error) from error


def load_model(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype | None = None
) -> Transformer:
    """Build the model and give it the checkpoint's weights.

    On the CPU, in the type they are stored in, weights are mapped from disk and cost no memory
    until read. Such a model must not be trained: convert it or copy its weights first.

    Args:
        checkpoint: an opened one.
        device: where the weights go.
        dtype: convert floating weights to this; None keeps the stored type.

    Raises:
        UserError: weights are missing, unexpected or of another shape.
    """
    problems = checkpoint.problems()
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"{checkpoint.folder} does not fit its config.json: {'; '.join(problems[:3])}{more}",
            hint="the files are of different models, or damaged: get them again",
        )
    with torch.device("meta"):
        model = Transformer(checkpoint.config)
    ours = {disk_name(name): name for name, _ in model.named_parameters()}
    for name, tensor in checkpoint.tensors():
        if name not in ours:
            continue
        owner, _, leaf = ours[name].rpartition(".")
        weight = nn.Parameter(tensor.to(device=device, dtype=dtype), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, weight)
    return model


def write_checkpoint(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    tokenizer: Path | None,
    lineage: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Fill `folder` with a checkpoint; make it appear whole with `publish` or `atomic_folder`.

    Args:
        folder: existing and empty.
        weights: (our name, tensor) of every parameter, in any order, read once each.
        config: the model's shape.
        dtype: type of the weights on disk.
        tokenizer: the tokenizer.model to put beside them.
        lineage: what the checkpoint was made from, JSON values.
        max_shard_bytes: a weights file is closed before it would exceed this.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = total = 0
    for ours, tensor in weights:
        value = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        size = value.numel() * value.element_size()
        if filled and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][disk_name(ours)] = value
        filled += size
        total += size
    names = [
        WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        placed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        atomic_write_json(
            folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": placed}
        )
    named = str(dtype).removeprefix("torch.")
    atomic_write_json(folder / CONFIG_NAME, config.to_hugging_face(dtype=named))
    frame = {"bos_token_id": config.bos_id, "eos_token_id": config.eos_id}
    atomic_write_json(folder / "generation_config.json", frame)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / TOKENIZER_NAME)
        atomic_write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "clean_up_tokenization_spaces": False,
                "legacy": True,  # SentencePiece's own treatment of text after a special token
                "model_max_length": config.max_context,
            },
        )
        names.append(TOKENIZER_NAME)
    digests = {name: digest_file(folder / name) for name in names}
    atomic_write_json(folder / LINEAGE_NAME, dict(lineage) | {DIGESTS_KEY: digests})


def publish(
    path: Path,
    model: Transformer,
    *,
    dtype: torch.dtype,
    tokenizer: Path | None,
    lineage: Mapping[str, Any],
    card: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a checkpoint folder that appears whole or not at all.

    Args:
        path: the folder; an older one is replaced.
        model, dtype, tokenizer, lineage, max_shard_bytes: as for `write_checkpoint`.
        card: the model card, or none.

    Raises:
        UserError: it cannot be written, for lack of space for example; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = model.config.parameters * torch.empty((), dtype=dtype).element_size()
    require_free_space(path.parent, int(size * 1.05) + (8 << 20))
    with atomic_folder(path) as folder:
        write_checkpoint(
            folder,
            model.named_parameters(),
            model.config,
            dtype=dtype,
            tokenizer=tokenizer,
            lineage=lineage,
            max_shard_bytes=max_shard_bytes,
        )
        if card:
            (folder / CARD_NAME).write_text(card, encoding="utf-8")
