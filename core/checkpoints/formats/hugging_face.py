"""The Hugging Face Llama layout: safetensors written weight by weight, and a tokenizer's files.

safetensors' own writer takes all weights of a file at once; here one is in memory at a time, and
the file's digest is known when it ends, without reading it again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError
from codecria.data.files import (
    DIGEST_BYTES,
    atomic_write,
    atomic_write_json,
    read_json,
    write_error,
)
from codecria.data.tokenizer.model_file import MODEL_NAME
from codecria.data.tokenizer.tokenizer import Tokenizer

from .tokenizer_json import added_tokens, tokenizer_json
from .weights import SAFETENSORS_TYPES, names_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    # Shape and type by name, in the order in which they are written.
    Planned = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

MODEL_STEM = "model"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_JSON_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
GENERATION_NAME = "generation_config.json"
TEMPLATE_NAME = "chat_template.jinja"  # where transformers 5 writes what was in the config before
_ALIGNMENT = 8  # of the header, so that weights are aligned
_KINDS = {name: kind for kind, name in SAFETENSORS_TYPES.items()}


def write_weights(
    folder: Path, planned: Planned, read: Callable[[str], Tensor], *, max_shard_bytes: int
) -> dict[str, str]:
    """Write weights to one file, or to several with an index.

    Args:
        folder: existing.
        planned: shape and type of every weight, by its name in the files.
        read: gives a weight of that shape, in any type and on any device.
        max_shard_bytes: a file is closed before it would exceed this.

    Returns:
        the digest of every weights file, by its name.

    Raises:
        UserError: a file cannot be written.
    """
    digests = {}
    files = plan_files(planned, max_shard_bytes=max_shard_bytes)
    for name, shard in files.items():
        digests[name] = write_tensors(folder / name, shard, read)
    write_index(folder, files)
    return digests


def plan_files(
    planned: Planned, *, max_shard_bytes: int, stem: str = MODEL_STEM
) -> dict[str, Planned]:
    """Which file holds which tensors, in order.

    Args:
        planned: shape and type of every tensor, by its name in the files.
        max_shard_bytes: a file ends before it would exceed this.
        stem: of the files' names: model.safetensors, or model-00001-of-00002.safetensors.
    """
    shards: list[dict[str, tuple[tuple[int, ...], torch.dtype]]] = [{}]
    filled = 0
    for name, (shape, dtype) in planned.items():
        size = _bytes(shape, dtype)
        if filled and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {
        f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def write_index(folder: Path, files: Mapping[str, Planned], stem: str = MODEL_STEM) -> None:
    """Write which file holds which tensor, where they are several."""
    if len(files) > 1:
        placed = {key: name for name, shard in files.items() for key in shard}
        total = sum(_bytes(*what) for shard in files.values() for what in shard.values())
        atomic_write_json(
            folder / f"{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": placed},
        )


def header_of(planned: Planned) -> tuple[bytes, dict[str, int]]:
    """What a safetensors file begins with, and the offset of every tensor in the file.

    The offset after the last tensor, the size of the file, goes by the name "".
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends = {}
    end = 0
    for name, (shape, dtype) in planned.items():
        start, end = end, end + _bytes(shape, dtype)
        kind = _KINDS[str(dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        ends[name] = start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    first = len(text).to_bytes(8, "little") + text
    return first, {name: len(first) + start for name, start in (ends | {"": end}).items()}


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def write_tensors(path: Path, planned: Planned, read: Callable[[str], Tensor]) -> str:
    """Write one safetensors file, a tensor at a time.

    Args:
        path: of the file.
        planned, read: as for `write_weights`.

    Returns:
        the digest of the file.

    Raises:
        UserError: it cannot be written.
    """
    import torch

    first, _ = header_of(planned)
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with path.open("wb") as file:
            state.update(first)
            file.write(first)
            for name, (shape, dtype) in planned.items():
                tensor = read(name).detach().to(device="cpu", dtype=dtype).contiguous()
                assert tensor.shape == shape, name
                content = tensor.view(-1).view(torch.uint8).numpy().data
                state.update(content)
                file.write(content)
    except OSError as error:
        raise write_error(path, error) from error
    return state.hexdigest()


def write_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    config: ModelConfig,
    chat_template: str,
    named: Mapping[str, str] | None = None,
) -> None:
    """Put a tokenizer beside the weights, with what transformers and vLLM must know of it.

    Args:
        folder: of the checkpoint.
        tokenizer: whose model is written.
        config: the model's shape.
        chat_template: in Jinja, or empty.
        named: tokens with a use that the model itself does not name, such as "pad_token".
    """
    atomic_write(folder / MODEL_NAME, tokenizer.content)
    first, last = (
        tokenizer.pieces([config_id if 0 <= config_id < tokenizer.vocab_size else own])[0]
        for config_id, own in (
            (config.bos_id, max(tokenizer.bos_id, 0)),
            (config.eos_id, max(tokenizer.eos_id, 0)),
        )
    )
    settings: dict[str, Any] = dict(named or {}) | {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": first,
        "eos_token": last,
        "unk_token": tokenizer.pieces([max(tokenizer.unk_id, 0)])[0],
        "clean_up_tokenization_spaces": False,
        "legacy": True,  # SentencePiece's own treatment of text after a special token
        "model_max_length": config.max_context,
        "added_tokens_decoder": {str(token.pop("id")): token for token in added_tokens(tokenizer)},
    }
    content = _tokenizer_json(tokenizer.path, tokenizer.digest)
    if content is not None:
        atomic_write(folder / TOKENIZER_JSON_NAME, content)
        settings["tokenizer_class"] = (
            "PreTrainedTokenizerFast"  # which changes nothing in that file
        )
    if tokenizer.infill is not None:
        ids = tokenizer.infill
        names = ("prefix_token", "middle_token", "suffix_token", "eot_token")
        pieces = tokenizer.pieces([ids.prefix, ids.middle, ids.suffix, ids.end])
        settings |= dict(zip(names, pieces, strict=True))
    if chat_template:
        settings["chat_template"] = chat_template
    atomic_write_json(folder / TOKENIZER_CONFIG_NAME, settings)


@lru_cache(maxsize=4)  # it takes half a second, and every saved step of a run has one
def _tokenizer_json(path: Path, digest: str) -> bytes | None:  # noqa: ARG001 - the key
    content = tokenizer_json(Tokenizer.load(path))
    if content is None:
        return None
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def write_generation(folder: Path, config: ModelConfig, ends: Sequence[int]) -> None:
    """Write generation_config.json: the ids that begin and end a completion.

    Args:
        folder: of the checkpoint.
        config: names BOS.
        ends: the ids that end it, in any order, perhaps several times.
    """
    own = [config.eos_id] if config.eos_id >= 0 else []
    ids = list(dict.fromkeys([*own, *ends]))
    content = {
        "bos_token_id": config.bos_id if config.bos_id >= 0 else None,
        "eos_token_id": (ids[0] if len(ids) == 1 else ids) or None,
    }
    atomic_write_json(folder / GENERATION_NAME, content)


def read_chat_template(folder: Path) -> str:
    """The chat template of a checkpoint folder, from either place; empty where there is none.

    Raises:
        UserError: the file that should hold it is damaged.
    """
    own = folder / TEMPLATE_NAME
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"cannot read {own}: {error.strerror or error}") from error
    path = folder / TOKENIZER_CONFIG_NAME
    raw = read_json(path) if path.is_file() else {}
    template = raw.get("chat_template") if isinstance(raw, dict) else None
    if isinstance(template, list):  # several by name, as some checkpoints have
        found = {e.get("name"): e.get("template") for e in template if isinstance(e, dict)}
        template = found.get("default")
    return template if isinstance(template, str) else ""


def placed_weights(folder: Path) -> dict[str, Path]:
    """Which file holds which weight of a folder, checked to be there.

    Raises:
        UserError: a file is missing.
    """
    placed = placed_tensors(folder, MODEL_STEM)
    if placed is None:
        others = any(folder.glob("pytorch_model*.bin"))
        raise UserError(
            f"{folder} has a config.json but no weights ({WEIGHTS_NAME})",
            hint="get the safetensors files of the model: .bin files are not read"
            if others
            else "download or convert the model again",
        )
    return placed


def placed_tensors(folder: Path, stem: str) -> dict[str, Path] | None:
    """Which file holds which tensor, of one file or several with an index; None without any.

    Raises:
        UserError: the index or a file is damaged, or a file is missing.
    """
    index_path, single = (folder / f"{stem}.safetensors{end}" for end in (".index.json", ""))
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
    return dict.fromkeys(names_in(single), single) if single.is_file() else None
