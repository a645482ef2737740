"""The weights of a GGUF file, mapped; quantised ones are decoded when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codecria.core.checkpoints.formats.layout import (
    RotaryOrder,
    gguf_name,
    reordered,
    rotary_heads,
    shapes_of,
)
from codecria.core.checkpoints.formats.weights import FLOATS, Stored, Weights
from codecria.core.model.config import ModelConfig
from codecria.core.model.rope import Llama3Scaling, llama3_divisors
from codecria.core.native.packing import GROUP, PackedKind, arrange
from codecria.data.errors import UserError
from codecria.data.gguf import GgufFile
from codecria.data.tokenizer import gguf as vocabulary

from .facts import ROPE_TENSOR, GgufFacts, facts_of, shortest
from .types import READABLE, codes_and_scales, dequantised

if TYPE_CHECKING:
    from torch import Tensor

_PACKED: Mapping[str, PackedKind] = {"Q8_0": "q8", "Q4_0": "q4"}
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class GgufWeights(Weights):
    """Weights in a GGUF file.

    Attributes:
        file: the open file.
        facts: shape, ends, template and lineage.
        tokenizer_obstacle: why its tokenizer cannot be read; None when it can.
    """

    rotary_order: RotaryOrder = "interleaved"
    readable = FLOATS | READABLE

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            UserError: it is damaged, or of another architecture.
        """
        self.files = [path]
        self.file = GgufFile(path)
        tensors = self.file.tensors
        self.facts: GgufFacts = facts_of(
            self.file.metadata, path, tied="output.weight" not in tensors
        )
        self.tokenizer_obstacle = vocabulary.obstacle(self.file.metadata)
        if ROPE_TENSOR in tensors or self.facts.config.llama3 is not None:
            self._check_divisors(path)
        ours = {gguf_name(name): name for name in shapes_of(self.facts.config)}
        self._names = {ours.get(name, name): name for name in tensors if name != ROPE_TENSOR}
        self.stored = {
            key: Stored(
                tensors[name].shape,
                _FLOATS.get(tensors[name].type.name, tensors[name].type.name),
            )
            for key, name in self._names.items()
        }

    def _check_divisors(self, path: Path) -> None:
        """That the rotary divisors are those of the scaling, which is Llama 3.1's if unnamed."""
        tensor = self.file.tensors.get(ROPE_TENSOR)
        given = np.array([], dtype=np.float32)
        if tensor is not None and tensor.type.name == "F32":
            given = self.file.raw(ROPE_TENSOR).view(np.float32)
        config = self.facts.config
        if config.llama3 is None and len(given):
            scaling = Llama3Scaling(
                factor=shortest(given.max()),
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_context=8192,
            )
            config = replace(config, llama3=scaling)
            self.facts = replace(self.facts, config=config)
        expected = divisors(config)
        if (
            expected is None
            or given.shape != expected.shape
            or not np.allclose(given, expected, rtol=1e-4)
        ):
            raise UserError(
                f"{path}: the factors of its rotary frequencies ({ROPE_TENSOR}) are not those of"
                f" Llama 3.1",
                hint="only none, linear and llama3 rotary scaling can be read",
            )

    def name(self, ours: str) -> str:
        """llama.cpp's name."""
        return self._names.get(ours) or gguf_name(ours)

    def array(self, ours: str) -> npt.NDArray[Any]:
        """A weight as stored, mapped: float32, float16, or bfloat16 as uint16; else as float32."""
        raw, stored = self.file.raw(self._names[ours]), self.stored[ours]
        plain = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
        if stored.dtype in plain:
            return raw.view(plain[stored.dtype]).reshape(stored.shape)
        return dequantised(raw, stored.dtype, stored.shape)

    def packed_kind(self, ours: str) -> PackedKind | None:
        """The type of a matrix in Q8_0 or Q4_0."""
        stored = self.stored[ours]
        return _PACKED.get(stored.dtype) if len(stored.shape) == 2 else None

    def packed(self, ours: str) -> tuple[PackedKind, npt.NDArray[np.uint8]] | None:
        """A matrix in Q8_0 or Q4_0 as the kernels take it, with our model's order of rows.

        The codes and scales are the file's own. None for every other weight.
        """
        kind = self.packed_kind(ours)
        if kind is None:
            return None
        heads = rotary_heads(ours, self.facts.config)
        codes, scales = codes_and_scales(kind, self.file.raw(self._names[ours]))
        rows = len(scales) * GROUP // self.stored[ours].shape[1]
        return kind, arrange(
            kind,
            reordered(codes.reshape(rows, -1), heads, source="interleaved", target="half_split"),
            reordered(scales.reshape(rows, -1), heads, source="interleaved", target="half_split"),
        )

    def raw(self, ours: str) -> Tensor:
        """A weight; what is quantised comes as float32."""
        import torch

        found = torch.from_numpy(np.array(self.array(ours)))
        return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found

    def special_ids(self) -> dict[str, int]:
        """The ids with a meaning, by the names they have in the file."""
        prefix, suffix = "tokenizer.ggml.", "_token_id"
        return {
            name.removeprefix(prefix).removesuffix(suffix): int(value)
            for name, value in self.file.metadata.items()
            if name.startswith(prefix) and name.endswith(suffix)
        }


def divisors(config: ModelConfig) -> npt.NDArray[np.float32] | None:
    """(D/2,) what llama.cpp divides the rotary frequencies by; None where it divides by nothing."""
    if config.llama3 is None:
        return None
    return np.array(
        llama3_divisors(config.llama3, config.rope_theta, config.head_dim), dtype=np.float32
    )
