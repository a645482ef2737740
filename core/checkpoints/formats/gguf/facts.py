"""What the metadata of a GGUF file says of a Llama model: shape, end ids, chat template, lineage.

Keys that begin with "codecria." are ours, where llama.cpp has no place for a fact; its readers
ignore them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from codecria.core.model.config import ModelConfig
from codecria.core.model.rope import Llama3Scaling
from codecria.data.errors import UserError
from codecria.data.gguf import Entry
from codecria.data.tokenizer import gguf as vocabulary
from codecria.data.tokenizer.tokenizer import Tokenizer

ROPE_TENSOR = "rope_freqs.weight"  # what the rotary frequencies are divided by
_LINEAGE_KEY = "codecria.lineage"
_ENDS_KEY = "codecria.end_ids"  # all of them: llama.cpp's keys hold three at most
_ROPE_KEY = "codecria.llama3_scaling"  # as config.json has it: llama.cpp's tensor holds the result
_END_KEYS = ("eos", "eot", "eom")
_QUANTISATION_VERSION = 2  # GGML_QNT_VERSION in ggml.h


class GgufType(StrEnum):
    """How matrices are written."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    @property
    def quantised(self) -> bool:
        """Whether 32 values share a scale."""
        return self in (GgufType.Q8_0, GgufType.Q4_0)


# llama.cpp's numbers of whole files: enum llama_ftype in llama.h.
_FILE_TYPES = {
    GgufType.F32: 0,
    GgufType.F16: 1,
    GgufType.Q4_0: 2,
    GgufType.Q8_0: 7,
    GgufType.BF16: 32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """The metadata of a file.

    Attributes:
        config: the model's shape.
        name: of the model.
        chat_template: in Jinja, or empty.
        lineage: of the checkpoint.
        ends: ids that end a completion, EOS first.
    """

    config: ModelConfig
    name: str
    chat_template: str
    lineage: Mapping[str, Any]
    ends: tuple[int, ...] = ()


def facts_of(metadata: Mapping[str, Any], path: Path, *, tied: bool) -> GgufFacts:
    """Read the metadata of a file.

    Args:
        metadata: of the file.
        path: of the file, for messages and as the name of a model without one.
        tied: whether the file has no output matrix.

    Raises:
        UserError: it is of another architecture, or a field is missing or wrong.
    """
    _refuse_foreign(metadata, path)
    scaling = metadata.get("llama.rope.scaling.type", "none")
    old_factor = metadata.get("llama.rope.scale_linear", 1.0)  # of files from before mid 2023
    factor = metadata.get("llama.rope.scaling.factor", 1.0) if scaling == "linear" else old_factor
    try:
        heads = int(metadata["llama.attention.head_count"])
        llama3 = json.loads(metadata.get(_ROPE_KEY, "null"))
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        config = ModelConfig(
            dim=int(metadata["llama.embedding_length"]),
            n_layers=int(metadata["llama.block_count"]),
            n_heads=heads,
            n_kv_heads=int(metadata.get("llama.attention.head_count_kv", heads)),
            hidden_dim=int(metadata["llama.feed_forward_length"]),
            vocab_size=int(metadata.get("llama.vocab_size", len(tokens))),
            norm_eps=shortest(metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=shortest(metadata.get("llama.rope.freq_base", 1e4)),
            rope_scale=shortest(factor),
            llama3=None
            if llama3 is None
            else Llama3Scaling.from_hugging_face(llama3, where=f"{path}: {_ROPE_KEY}"),
            max_context=int(metadata["llama.context_length"]),
            tied=tied,
            bos_id=int(metadata.get("tokenizer.ggml.bos_token_id", 1)),
            eos_id=int(metadata.get("tokenizer.ggml.eos_token_id", 2)),
        )
        _check_heads(metadata, config, path)
        named = [metadata.get(f"tokenizer.ggml.{key}_token_id", -1) for key in _END_KEYS]
        ends = dict.fromkeys(int(i) for i in (*named, *metadata.get(_ENDS_KEY, ())))
        lineage = json.loads(metadata.get(_LINEAGE_KEY, "{}"))
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}, a field of the model's shape") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a wrong field of the model's shape: {error}") from error
    return GgufFacts(
        config=config,
        name=str(metadata.get("general.name", path.stem)),
        chat_template=str(metadata.get("tokenizer.chat_template", "")),
        lineage=lineage if isinstance(lineage, dict) else {},
        ends=tuple(i for i in ends if 0 <= i < config.vocab_size),
    )


def _refuse_foreign(metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse what is no plain Llama, or no whole one.

    Raises:
        UserError: it is none.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{path} is of the architecture {architecture!r}, only 'llama' can be read")
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise UserError(
            f"{path} is one of {parts} parts of a model",
            hint="join them with llama.cpp: llama-gguf-split --merge FIRST-PART OUT",
        )
    if metadata.get("llama.expert_count", 0):
        raise UserError(f"{path} is a mixture of experts, which is no Llama 2 architecture")
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UserError(
            f"{path}: rotary scaling {kind!r} is not supported, only none, 'linear' and 'llama3'"
        )


def _check_heads(metadata: Mapping[str, Any], config: ModelConfig, path: Path) -> None:
    """Refuse heads that are wider or narrower than dim / n_heads, or rotated in part.

    Raises:
        UserError: they are.
    """
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        width = metadata.get(f"llama.{key}", config.head_dim)
        if width != config.head_dim:
            raise UserError(
                f"{path}: llama.{key} is {width}, Llama 2's architecture has"
                f" {config.head_dim} there (embedding_length / head_count)"
            )


def entries(facts: GgufFacts, kind: GgufType, tokenizer: Tokenizer) -> dict[str, Entry]:
    """The metadata of a file that is written.

    Args:
        facts: of the model.
        kind: of the matrices.
        tokenizer: with at most as many pieces as the embedding has rows.
    """
    config = facts.config
    found: dict[str, Entry] = {
        "general.architecture": "llama",
        "general.name": facts.name,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": _QUANTISATION_VERSION,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_context,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "llama.rope.freq_base": float(config.rope_theta),
    }
    if config.rope_scale != 1.0:
        found["llama.rope.scaling.type"] = "linear"
        found["llama.rope.scaling.factor"] = float(config.rope_scale)
    if config.llama3 is not None:
        found[_ROPE_KEY] = json.dumps(config.llama3.to_hugging_face(), sort_keys=True)
    if facts.lineage:
        found[_LINEAGE_KEY] = json.dumps(facts.lineage, sort_keys=True)
    found |= vocabulary.entries(tokenizer, config.vocab_size)
    found |= _ends(config, facts.ends, tokenizer)
    if facts.chat_template:
        found["tokenizer.chat_template"] = facts.chat_template
    return found


def _ends(config: ModelConfig, ends: Sequence[int], tokenizer: Tokenizer) -> dict[str, Entry]:
    """BOS, EOS and the other ends: llama.cpp has one key each for a turn's and a message's end."""
    found: dict[str, Entry] = {}
    for key, number in (("bos", config.bos_id), ("eos", config.eos_id)):
        if number >= 0:
            found[f"tokenizer.ggml.{key}_token_id"] = number
    # What ends a turn, beside EOS: an answer of the 70b form, or a middle.
    first = [tokenizer.step_id, None if tokenizer.infill is None else tokenizer.infill.end]
    others = dict.fromkeys(i for i in (*first, *ends) if i is not None and i != config.eos_id)
    for key, number in zip(("eot", "eom"), others, strict=False):
        found[f"tokenizer.ggml.{key}_token_id"] = number
    if ends:
        found[_ENDS_KEY] = np.array(ends, dtype=np.uint32)
    return found


def shortest(value: Any) -> float:
    """The number a float32 was written from: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value)))
