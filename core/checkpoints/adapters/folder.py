"""Adapter folders in PEFT's layout, read and written without PyTorch.

    adapter_config.json           rank, alpha, which matrices
    adapter_model.safetensors     A and B of each matrix; rows of new pieces
    codecria.json                 lineage; the base: digest, path, a sample of its values; the shape
                                  of the adapted model, rotary base included (ours alone)
    tokenizer.model               of the adapted model, with its other files

The result is W + scale B A for each matrix W, where A is (rank, in), B (out, rank), and the scale
alpha / rank. Rows of the embedding and the output matrix may be replaced as a whole.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codecria.core.checkpoints.ends import LINEAGE_NAME
from codecria.core.checkpoints.formats.layout import (
    EMBEDDING,
    OUTPUT,
    hugging_face_name,
    our_name,
    shapes_of,
)
from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError
from codecria.data.files import digest_file, read_json, refuse_lfs_pointer

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_KEY = "base"  # in codecria.json: what the adapter belongs to
PUBLISHED_ADAPTER = "adapter"  # in a run folder
_PREFIX = "base_model.model."  # PEFT's, before the name in the Hugging Face model
_ROWS = ".token_adapter.trainable_tokens_delta"
_TYPES: Mapping[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}

# What PEFT can do and is not done here: by field of adapter_config.json, the values that ask for
# nothing.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "target_parameters": (None, []),
    "use_bdlora": (None, False),
}

# Ways to begin an adapter that change the base too: it belongs to that base, which is not saved.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The adapter of one matrix.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        scale: of their product.
    """

    a: Array
    b: Array
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter folder, read.

    Attributes:
        folder: where it lies.
        pairs: by our name of the matrix they change.
        rows: by our name of the embedding or the output matrix: which rows, and (n,C) their values.
        record: what codecria.json says; empty for adapters made elsewhere.
        base_name: the base model as adapter_config.json names it.
    """

    folder: Path
    pairs: Mapping[str, Pair]
    rows: Mapping[str, tuple[npt.NDArray[np.int64], Array]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    base_name: str = ""

    @classmethod
    def open(cls, path: Path) -> Adapter:
        """Open an adapter folder, or the newest one of a run folder.

        Raises:
            UserError: there is none, it is damaged, or it is of a kind that is not read.
        """
        folder = adapter_folder(path)
        if folder is None:
            raise UserError(
                f"{path} holds no adapter: there is no {CONFIG_NAME} in it",
                hint="name a folder that --lora or PEFT has written",
            )
        config = read_json(folder / CONFIG_NAME)
        if not isinstance(config, dict):
            raise UserError(f"{folder / CONFIG_NAME} is not a JSON object")
        _refuse_other_kinds(config, folder)
        tensors = read_arrays(folder / WEIGHTS_NAME)
        pairs, rows = _sorted_out(tensors, config, folder)
        path = folder / LINEAGE_NAME
        record = read_json(path) if path.is_file() else {}
        return cls(
            folder=folder,
            pairs=pairs,
            rows=rows,
            record=record if isinstance(record, dict) else {},
            base_name=str(config.get("base_model_name_or_path") or ""),
        )

    @property
    def base(self) -> dict[str, Any]:
        """What codecria.json says of the base; empty for adapters made elsewhere."""
        found = self.record.get(ADAPTER_KEY)
        return found if isinstance(found, dict) else {}

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max((len(pair.a) for pair in self.pairs.values()), default=0)

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        matrices = sum(pair.a.size + pair.b.size for pair in self.pairs.values())
        return matrices + sum(values.size for _, values in self.rows.values())

    def config(self, base: ModelConfig) -> ModelConfig:
        """The shape of the adapted model.

        Args:
            base: of the base model.

        Raises:
            UserError: the adapter is of a model of another shape.
        """
        recorded = self.record.get("model")
        if isinstance(recorded, dict):
            config = ModelConfig.from_record(recorded)
        else:
            highest = max((int(ids.max()) for ids, _ in self.rows.values() if len(ids)), default=-1)
            # An output matrix that is changed for itself is no longer the embedding.
            tied = base.tied and OUTPUT not in self.pairs and OUTPUT not in self.rows
            config = replace(base, vocab_size=max(base.vocab_size, highest + 1), tied=tied)
        shapes = shapes_of(config)
        for name, pair in self.pairs.items():
            shape = (pair.b.shape[0], pair.a.shape[1])
            if shapes.get(name) != shape:
                raise UserError(
                    f"{self.folder} has an adapter of {shape} for {hugging_face_name(name)},"
                    f" which is {shapes.get(name, 'no part of the model')}",
                    hint="the adapter belongs to another model",
                )
        of_base = shapes_of(replace(base, vocab_size=config.vocab_size, tied=config.tied))
        if of_base != shapes:
            raise UserError(
                f"{self.folder} is of a model of another shape than the base",
                hint="name the checkpoint that the adapter was trained from",
            )
        return config

    def problems(self) -> list[str]:
        """What is not as it was written, one line each, by the digests in codecria.json."""
        lines = []
        for name, expected in sorted(dict(self.record.get("files") or {}).items()):
            path = self.folder / name
            if not path.is_file():
                lines.append(f"{name} is missing")
            elif digest_file(path) != expected:
                lines.append(f"{name} is not the file that was written")
        arrays = [array for pair in self.pairs.values() for array in (pair.a, pair.b)]
        arrays += [values for _, values in self.rows.values()]
        if not all(np.isfinite(array).all() for array in arrays):
            lines.append(f"{WEIGHTS_NAME} holds values that are not finite")
        return lines


def adapter_folder(path: Path) -> Path | None:
    """The adapter folder that a path means: itself, or the newest of a run; None without one."""
    steps = sorted((path / "checkpoints").glob("step-*"))
    places = [path, path / PUBLISHED_ADAPTER, *steps[-1:]]
    return next((place for place in places if (place / CONFIG_NAME).is_file()), None)


def with_adapter(model: Path, adapter: Path | None) -> Path:
    """The path by which `Checkpoint.open` finds a model with an adapter: MODEL+ADAPTER."""
    return model if adapter is None else Path(f"{model}+{adapter}")


def split_adapter(path: Path) -> tuple[Path, Path | None]:
    """A model and its adapter out of MODEL+ADAPTER; a path that exists is taken as it is."""
    text = str(path)
    places = [n for n, character in enumerate(text) if character == "+"]
    if path.exists() or not places:
        return path, None
    halves = [(Path(text[:n]), Path(text[n + 1 :])) for n in places]
    return next((pair for pair in halves if pair[0].exists()), halves[0])


def peft_config(
    *,
    rank: int,
    alpha: float,
    matrices: list[str],
    base: str,
    rows: Mapping[str, range],
) -> dict[str, Any]:
    """The content of adapter_config.json.

    Args:
        rank, alpha: of all matrices.
        matrices: our names of those that have an adapter.
        base: path of the base model.
        rows: by our name of the embedding or the output matrix, the rows that are replaced.
    """
    modules = {hugging_face_name(name).removesuffix(".weight") for name in matrices}
    tokens = {
        hugging_face_name(name).removesuffix(".weight").removeprefix("model."): list(ids)
        for name, ids in rows.items()
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "trainable_token_indices": tokens or None,
    }


def peft_names(ours: str) -> tuple[str, str]:
    """PEFT's names of A and B of one of our matrices."""
    module = _PREFIX + hugging_face_name(ours).removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def peft_rows_name(ours: str) -> str:
    """PEFT's name of the replaced rows of the embedding or the output matrix."""
    return _PREFIX + hugging_face_name(ours).removesuffix(".weight") + _ROWS


def _refuse_other_kinds(config: Mapping[str, Any], folder: Path) -> None:
    asked = [
        f"{name} = {config[name]!r}"
        for name, plain in _PLAIN.items()
        if name in config and config[name] not in plain
    ]
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_BASE):
        asked.append(f"init_lora_weights = {begun!r}, which changes the base")
    saved = set(config.get("modules_to_save") or ()) - {"embed_tokens", "lm_head"}
    asked += [f"modules_to_save = {sorted(saved)}"] if saved else []
    if asked or "r" not in config:
        raise UserError(
            f"{folder} is an adapter of a kind that is not read: {', '.join(asked) or 'no rank'}",
            hint="plain LoRA is read; merge the adapter in PEFT: model.merge_and_unload()",
        )


def _sorted_out(
    tensors: Mapping[str, Array], config: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Pair], dict[str, tuple[npt.NDArray[np.int64], Array]]]:
    """Pairs and rows by our names.

    Raises:
        UserError: a weight is of no known kind, or its counterpart is missing.
    """
    halves: dict[str, dict[str, Array]] = {}
    rows: dict[str, tuple[npt.NDArray[np.int64], Array]] = {}
    for name, array in tensors.items():
        inner = name.removeprefix(_PREFIX).removeprefix("base_model.model.")
        half = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", inner)
        whole = re.fullmatch(
            r"(?:model\.)?(embed_tokens|lm_head)"
            r"(?:\.modules_to_save)?(?:\.default)?(?:\.base_layer)?\.weight",
            inner,
        )
        if half is not None and (ours := our_name(f"{half[1]}.weight")) is not None:
            halves.setdefault(ours, {})[half[2]] = array
        elif inner.endswith(_ROWS):
            module = inner.removesuffix(_ROWS)
            ours = our_name(f"{module}.weight")
            ids = _row_ids(config, module.rpartition(".")[2])
            if ours not in (EMBEDDING, OUTPUT) or ids is None or len(ids) != len(array):
                raise _unknown(folder, name)
            rows[ours] = (np.array(ids, dtype=np.int64), array)
        elif whole is not None:
            ours = EMBEDDING if whole[1] == "embed_tokens" else OUTPUT
            rows.setdefault(ours, (np.arange(len(array)), array))
        else:
            raise _unknown(folder, name)
    for ours, pair in halves.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise UserError(
                f"{folder / WEIGHTS_NAME} is incomplete: the A and B of"
                f" {hugging_face_name(ours)} do not belong together"
            )
    pairs = {
        ours: Pair(a=pair["A"], b=pair["B"], scale=_scale(config, ours, len(pair["A"])))
        for ours, pair in halves.items()
    }
    return pairs, rows


def _row_ids(config: Mapping[str, Any], module: str) -> list[int] | None:
    listed = config.get("trainable_token_indices")
    if isinstance(listed, dict):
        found = listed.get(module) or listed.get(f"model.{module}")
        return list(found) if found is not None else None
    return list(listed) if listed is not None and module == "embed_tokens" else None


def _scale(config: Mapping[str, Any], ours: str, rank: int) -> float:
    """Alpha over rank, or over its root (rsLoRA), with PEFT's patterns for single modules."""
    module = hugging_face_name(ours).removesuffix(".weight")
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in dict(config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _unknown(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder / WEIGHTS_NAME} holds {name}, which is no part of a LoRA adapter of a Llama",
        hint="merge the adapter in PEFT: model.merge_and_unload()",
    )


def read_arrays(path: Path) -> dict[str, Array]:
    """The tensors of a small safetensors file in float32, by name.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing",
            hint="adapters saved as .bin are not read: save them again in PEFT",
        )
    refuse_lfs_pointer(path)
    try:
        content = path.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        found = {}
        for name, part in sorted(header.items()):
            if name == "__metadata__":
                continue
            first, last = part["data_offsets"]
            raw = memoryview(content)[8 + length + first : 8 + length + last]
            if part["dtype"] == "BF16":  # the upper half of a float32
                bits = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
                values = bits.view(np.float32)
            else:
                values = np.frombuffer(raw, dtype=_TYPES[part["dtype"]])
            found[name] = values.astype(np.float32).reshape(part["shape"])
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise UserError(
            f"{path} is damaged or incomplete: {error}", hint="download or make it again"
        ) from error
    return found
