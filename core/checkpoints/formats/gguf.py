"""GGUF, the one-file format of llama.cpp: written weight by weight, and read back to be compared.

The `gguf` package knows the container and its quantisation; what a Code Llama model must say in it
is here: the rotary base, the infilling and end ids, sentinels that no text can yield, the chat
template. wq and wk keep Meta's order of rows, as llama.cpp's own converter makes it. Norms are
float32 in every file, as there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codecria.core.model.config import ModelConfig
from codecria.core.model.rope import Llama3Scaling, llama3_divisors
from codecria.data.errors import UserError
from codecria.data.tokenizer.model_file import UNUSED, USER_DEFINED
from codecria.data.tokenizer.tokenizer import Tokenizer

from .layout import RotaryOrder, gguf_name, shapes_of
from .weights import Stored, Weights

MAGIC = b"GGUF"
BLOCK = 32  # weights that share a scale in Q8_0
LINEAGE_KEY = "codecria.lineage"
ENDS_KEY = "codecria.end_ids"  # all of them: llama.cpp's keys hold three at most
ROPE_KEY = "codecria.llama3_scaling"  # as config.json has it: llama.cpp's tensor holds the result
ROPE_TENSOR = "rope_freqs.weight"
_END_KEYS = ("eos", "eot", "eom")
_CHUNK_BYTES = 64 << 20  # of float32 that are quantised at once
_READABLE = frozenset({"F32", "F16", "BF16", "Q8_0"})  # what is written


class GgufType(StrEnum):
    """How matrices are kept."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


_OF_TORCH = {
    torch.float32: GgufType.F32,
    torch.float16: GgufType.F16,
    torch.bfloat16: GgufType.BF16,
}


def type_of(dtype: torch.dtype) -> GgufType:
    """The type that keeps weights as they are."""
    return _OF_TORCH.get(dtype, GgufType.F32)


def package() -> Any:
    """The `gguf` package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError(
            "GGUF files need the package gguf, which is not installed",
            hint="pip install 'codecria[gguf]'",
        ) from error
    return gguf


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


def write_gguf(
    path: Path,
    facts: GgufFacts,
    tokenizer: Tokenizer,
    kind: GgufType,
    read: Callable[[str], Tensor],
) -> None:
    """Write a model to a file, one weight in memory at a time.

    Args:
        path: of the file.
        facts: shape, name, template and lineage.
        tokenizer: with at most as many pieces as the embedding has rows.
        kind: of the matrices.
        read: gives a weight by our name, wq and wk with neighbouring pairs.

    Raises:
        UserError: the gguf package is missing, or the shape does not fit the type.
    """
    gguf = package()
    shapes = shapes_of(facts.config)
    if kind is GgufType.Q8_0:
        odd = [s for s in shapes.values() if len(s) == 2 and s[1] % BLOCK]
        if odd:
            raise UserError(
                f"Q8_0 needs rows of a multiple of {BLOCK}, and the model has rows of {odd[0][1]}",
                hint="choose --dtype float16",
            )
    writer = gguf.GGUFWriter(None, "llama")
    _add_shape(writer, gguf, facts, kind)
    _add_vocabulary(writer, facts.config.vocab_size, tokenizer)
    _add_ends(writer, facts.config, facts.ends, tokenizer)
    if facts.chat_template:
        writer.add_chat_template(facts.chat_template)
    divisors = _divisors(facts.config)
    if divisors is not None:
        writer.add_tensor_info(
            ROPE_TENSOR,
            divisors.shape,
            divisors.dtype,
            divisors.nbytes,
            gguf.GGMLQuantizationType.F32,
        )
    for ours, shape in shapes.items():
        quantisation = _quantisation(gguf, kind, shape)
        block, size = gguf.GGML_QUANT_SIZES[quantisation]
        count = int(torch.Size(shape).numel())
        writer.add_tensor_info(
            gguf_name(ours), shape, np.dtype(np.float32), count // block * size, quantisation
        )
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        for ours, shape in shapes.items():
            tensor = read(ours)
            assert tensor.shape == shape, ours
            writer.write_tensor_data(_encoded(gguf, tensor, _quantisation(gguf, kind, shape)))
    finally:
        writer.close()


def _divisors(config: ModelConfig) -> np.ndarray[Any, Any] | None:
    """(D/2,) what llama.cpp divides the rotary frequencies by; None where it divides by nothing."""
    if config.llama3 is None:
        return None
    return np.array(
        llama3_divisors(config.llama3, config.rope_theta, config.head_dim), dtype=np.float32
    )


def _quantisation(gguf: Any, kind: GgufType, shape: tuple[int, ...]) -> Any:
    types = gguf.GGMLQuantizationType
    return types.F32 if len(shape) == 1 else types[kind.name]


def _encoded(gguf: Any, tensor: Tensor, quantisation: Any) -> np.ndarray[Any, Any]:
    types = gguf.GGMLQuantizationType
    dtypes = {types.F32: torch.float32, types.F16: torch.float16, types.BF16: torch.bfloat16}
    if quantisation in dtypes:
        plain = tensor.to(dtypes[quantisation]).contiguous()
        if plain.dtype == torch.bfloat16:
            return plain.view(torch.int16).numpy()
        return plain.numpy()
    rows = max(1, _CHUNK_BYTES // 4 // tensor.shape[1])
    parts = [
        gguf.quants.quantize(tensor[start : start + rows].float().numpy(), quantisation)
        for start in range(0, len(tensor), rows)
    ]
    return np.concatenate(parts)


def _add_shape(writer: Any, gguf: Any, facts: GgufFacts, kind: GgufType) -> None:
    config = facts.config
    writer.add_name(facts.name)
    file_types = {
        GgufType.F32: gguf.LlamaFileType.ALL_F32,
        GgufType.F16: gguf.LlamaFileType.MOSTLY_F16,
        GgufType.BF16: gguf.LlamaFileType.MOSTLY_BF16,
        GgufType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_file_type(file_types[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scale != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scale)
    if config.llama3 is not None:
        writer.add_string(ROPE_KEY, json.dumps(config.llama3.to_hugging_face(), sort_keys=True))
    if facts.lineage:
        writer.add_string(LINEAGE_KEY, json.dumps(facts.lineage, sort_keys=True))


def _add_vocabulary(writer: Any, rows: int, tokenizer: Tokenizer) -> None:
    """Pieces, scores and types, and the ids with a meaning, under their older names too."""
    pieces = tokenizer.vocabulary()
    # Rows of the embedding that no piece has.
    pieces += [(f"[PAD{i}]", 0.0, UNUSED) for i in range(len(pieces), rows)]
    for i in tokenizer.added:  # as llama.cpp's converter does
        piece, score, kind = pieces[i]
        pieces[i] = (piece, score, USER_DEFINED if kind == UNUSED else kind)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(tokenizer.adds_space)
    if tokenizer.infill is not None:
        ids = tokenizer.infill
        for older, newer, number in (
            ("prefix", "fim_pre", ids.prefix),
            ("suffix", "fim_suf", ids.suffix),
            ("middle", "fim_mid", ids.middle),
        ):
            writer.add_uint32(f"tokenizer.ggml.{older}_token_id", number)
            writer.add_uint32(f"tokenizer.ggml.{newer}_token_id", number)


def _add_ends(writer: Any, config: ModelConfig, ends: Sequence[int], tokenizer: Tokenizer) -> None:
    """BOS, EOS and the other ends: llama.cpp has one key each for a turn's and a message's end."""
    for number, add in (
        (config.bos_id, writer.add_bos_token_id),
        (config.eos_id, writer.add_eos_token_id),
    ):
        if number >= 0:
            add(number)
    # What ends a turn, beside EOS: an answer of the 70b form, or a middle.
    first = [tokenizer.step_id, None if tokenizer.infill is None else tokenizer.infill.end]
    others = dict.fromkeys(i for i in (*first, *ends) if i is not None and i != config.eos_id)
    for number, add in zip(
        others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(number)
    if ends:
        writer.add_array(ENDS_KEY, list(ends))


class GgufWeights(Weights):
    """Weights in a GGUF file; quantised ones as float32."""

    rotary_order: RotaryOrder = "interleaved"
    readable = _READABLE

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            UserError: it is damaged, or of another architecture.
        """
        gguf = package()
        self.files = [path]
        try:
            self._reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is damaged or incomplete: {error}", hint="convert the model again"
            ) from error
        self.facts = _facts(self._reader, path, tied="output.weight" not in self._tensors)
        if ROPE_TENSOR in self._tensors or self.facts.config.llama3 is not None:
            self._check_divisors(path)
        ours = {gguf_name(name): name for name in shapes_of(self.facts.config)}
        self._names = {ours.get(name, name): name for name in self._tensors if name != ROPE_TENSOR}
        self.stored = {
            key: Stored(
                tuple(int(n) for n in reversed(self._tensors[name].shape.tolist())),
                self._tensors[name].tensor_type.name,
            )
            for key, name in self._names.items()
        }

    def _check_divisors(self, path: Path) -> None:
        """That the rotary divisors are those of the scaling, which is Llama 3.1's if unnamed."""
        found = self._tensors.get(ROPE_TENSOR)
        given = np.array([] if found is None else found.data, dtype=np.float32)
        config = self.facts.config
        if config.llama3 is None and len(given):
            scaling = Llama3Scaling(
                factor=_shortest(given.max()),
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_context=8192,
            )
            config = replace(config, llama3=scaling)
            self.facts = replace(self.facts, config=config)
        expected = _divisors(config)
        assert expected is not None, "the shape names a scaling"
        if given.shape != expected.shape or not np.allclose(given, expected, rtol=1e-4):
            raise UserError(
                f"{path}: the factors of its rotary frequencies ({ROPE_TENSOR}) are not those of"
                f" Llama 3.1",
                hint="only none, linear and llama3 rotary scaling can be read",
            )

    def name(self, ours: str) -> str:
        """llama.cpp's name."""
        return self._names.get(ours) or gguf_name(ours)

    def raw(self, ours: str) -> Tensor:
        """A weight; what is quantised comes as float32."""
        gguf = package()
        tensor = self._tensors[self._names[ours]]
        shape = self.stored[ours].shape
        types = gguf.GGMLQuantizationType
        if tensor.tensor_type == types.BF16:
            words = np.array(tensor.data).view(np.int16)
            return torch.from_numpy(words).view(torch.bfloat16).view(shape)
        if tensor.tensor_type in (types.F32, types.F16):
            return torch.from_numpy(np.array(tensor.data)).view(shape)
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).view(shape)

    def special_ids(self) -> dict[str, int]:
        """The ids with a meaning, by the names they have in the file."""
        fields = self._reader.fields
        prefix, suffix = "tokenizer.ggml.", "_token_id"
        return {
            name.removeprefix(prefix).removesuffix(suffix): int(field.contents())
            for name, field in fields.items()
            if name.startswith(prefix) and name.endswith(suffix)
        }


def _facts(reader: Any, path: Path, *, tied: bool) -> GgufFacts:
    def field(name: str, default: Any = None) -> Any:
        found = reader.fields.get(name)
        return default if found is None else found.contents()

    architecture = field("general.architecture")
    if architecture != "llama":
        raise UserError(f"{path} is of the architecture {architecture!r}, only 'llama' can be read")
    kind = field("llama.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UserError(
            f"{path}: rotary scaling {kind!r} is not supported, only none, 'linear' and 'llama3'"
        )
    try:
        heads = int(field("llama.attention.head_count"))
        scaling = json.loads(field(ROPE_KEY, "null"))
        config = ModelConfig(
            dim=int(field("llama.embedding_length")),
            n_layers=int(field("llama.block_count")),
            n_heads=heads,
            n_kv_heads=int(field("llama.attention.head_count_kv", heads)),
            hidden_dim=int(field("llama.feed_forward_length")),
            vocab_size=int(field("llama.vocab_size") or len(field("tokenizer.ggml.tokens", []))),
            norm_eps=_shortest(field("llama.attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=_shortest(field("llama.rope.freq_base", 1e4)),
            rope_scale=_shortest(
                field("llama.rope.scaling.factor", 1.0) if kind == "linear" else 1.0
            ),
            llama3=None
            if scaling is None
            else Llama3Scaling.from_hugging_face(scaling, where=f"{path}: {ROPE_KEY}"),
            max_context=int(field("llama.context_length")),
            tied=tied,
            bos_id=int(field("tokenizer.ggml.bos_token_id", 1)),
            eos_id=int(field("tokenizer.ggml.eos_token_id", 2)),
        )
        named = [field(f"tokenizer.ggml.{key}_token_id", -1) for key in _END_KEYS]
        ends = dict.fromkeys(int(i) for i in (*named, *field(ENDS_KEY, ())))
        lineage = json.loads(field(LINEAGE_KEY, "{}"))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} lacks a field of its shape, or has a wrong one: {error}"
        ) from error
    return GgufFacts(
        config=config,
        name=str(field("general.name", path.stem)),
        chat_template=str(field("tokenizer.chat_template", "")),
        lineage=lineage,
        ends=tuple(i for i in ends if 0 <= i < config.vocab_size),
    )


def _shortest(value: Any) -> float:
    """The number a float32 was written from: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value)))


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def quantisation_error(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """How far Q8_0 may move each value: half a step of its block, and the scale's own rounding.

    Args:
        weight: (R,C) of R rows, with C a multiple of 32.

    Yields:
        (rows, the bound of each of their values), a part of the rows at a time.
    """
    rows = max(1, _CHUNK_BYTES // 4 // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].float()
        largest = part.view(len(part), -1, BLOCK).abs().amax(-1, keepdim=True)
        # Half a step of 1/127 of the largest value, plus a scale in float16: 2^-11 of each value,
        # and its smallest step where the scale itself is tiny.
        bound = largest * (0.5 / 127 + 2**-11) + 127 * 2**-25
        yield slice(start, start + len(part)), bound.expand(-1, -1, BLOCK).reshape(part.shape)
