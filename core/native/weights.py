"""The weights as kernels take them: in place where they can be, else converted or packed.

A matrix stays where it lies, mapped from its file, if it has the wanted type and a shape that the
kernels take as it is (inputs divisible by 32, and outputs by 16 where it is not packed). Otherwise
it is converted in memory. Everything a matrix is made of is kept alive by `Matrix.data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from codecria.core.model.config import ModelConfig

from .embedding import BF16_ROWS, F16_ROWS, F32_ROWS, Q4_ROWS, Q8_ROWS
from .kernels import Kernels
from .packing import (
    BLOCK,
    GROUP,
    Bytes,
    Floats,
    PackedKind,
    as_float32,
    pack,
    packed_shape,
    unpack,
)
from .record import LAYER_FIELDS

Dtype = Literal["float32", "bfloat16", "q8", "q4"]
KINDS: dict[Dtype, int] = {"float32": 0, "bfloat16": 1, "q8": 2, "q4": 3}  # as products.py has them
EMBEDDING_KINDS = {  # by numpy's name of the type, or the packed kind
    "float32": F32_ROWS, "uint16": BF16_ROWS, "float16": F16_ROWS, "q8": Q8_ROWS, "q4": Q4_ROWS
}  # fmt: skip
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
MATRICES = {  # of a layer
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "hidden_norm": "post_attention_layernorm"}


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(N,C) of a layer's matrices, by the names of `MATRICES`."""
    D, F, E = config.dim, config.hidden_dim, config.head_dim
    Q, K = config.n_heads * E, config.n_kv_heads * E
    return {
        "query": (Q, D), "key": (K, D), "value": (K, D), "out": (D, Q),
        "gate": (F, D), "up": (F, D), "down": (D, F),
    }  # fmt: skip


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(N,C) of all matrices by Hugging Face name."""
    names = [EMBEDDING] if config.tied else [EMBEDDING, HEAD]
    found = dict.fromkeys(names, (config.vocab_size, config.dim))
    for layer in range(config.n_layers):
        for name, shape in layer_shapes(config).items():
            found[f"model.layers.{layer}.{MATRICES[name]}.weight"] = shape
    return found


def head_dtype(dtype: Dtype) -> Dtype:
    """Type of the output matrix beside others of a type: 4 bits cost most there, so q4 has 8."""
    return "q8" if dtype == "q4" else dtype


class Packed(NamedTuple):
    """A matrix that was stored packed (packing.py)."""

    kind: PackedKind
    data: Bytes  # (B,G,S)


# By Hugging Face name: float32, float16, bfloat16 as uint16, or packed. May be read when asked for.
Weight = npt.NDArray[Any] | Packed
Weights = Mapping[str, Weight]


class Matrix(NamedTuple):
    """A matrix as a kernel takes it."""

    kind: int
    data: npt.NDArray[Any]

    @property
    def address(self) -> int:
        """Where it lies."""
        return int(self.data.ctypes.data)


def to_bfloat16(weights: Floats) -> npt.NDArray[np.uint16]:
    """Finite float32 rounded to bfloat16, ties to even, as uint16."""
    bits = weights.view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)


def matrix(
    weight: Weight, dtype: Dtype, rows: int, columns: int, kernels: Kernels | None = None
) -> Matrix:
    """A weight of N rows and C columns in a type; what is stored packed stays so in a packed type.

    Args:
        weight: (N,C), or packed.
        dtype: the wanted type; with "q8" or "q4" what is stored in either is taken as it is.
        rows, columns: N and C.
        kernels: pack faster than numpy.
    """
    if isinstance(weight, Packed):
        if dtype in ("q8", "q4"):
            return Matrix(KINDS[weight.kind], np.ascontiguousarray(weight.data))
        weight = unpack(weight.kind, weight.data, rows, columns)
    assert weight.shape == (rows, columns), (weight.shape, rows, columns)
    if dtype == "q8" or dtype == "q4":
        return Matrix(KINDS[dtype], _packed(dtype, weight, kernels))
    if dtype == "float32":
        data: npt.NDArray[Any] = as_float32(weight)
    else:
        data = weight if weight.dtype == np.uint16 else _rounded(as_float32(weight), kernels)
    padding = ((0, -rows % BLOCK), (0, -columns % GROUP))
    if padding != ((0, 0), (0, 0)):
        data = np.pad(data, padding)
    return Matrix(KINDS[dtype], np.ascontiguousarray(data))


def _rounded(weight: Floats, kernels: Kernels | None) -> npt.NDArray[np.uint16]:
    """`to_bfloat16`, by the kernels where they can."""
    if kernels is None or weight.size % 16:
        return to_bfloat16(weight)
    weight, found = np.ascontiguousarray(weight), np.empty(weight.shape, np.uint16)
    kernels.round_bf16(weight.ctypes.data, weight.size, found.ctypes.data)
    return found


def _packed(kind: PackedKind, weight: npt.NDArray[Any], kernels: Kernels | None) -> Bytes:
    """`packing.pack`, by the kernels where they can."""
    rows, columns = weight.shape
    kernel = kernels.pack.get((kind, weight.dtype.name)) if kernels is not None else None
    if kernel is None or columns % GROUP:
        return pack(kind, weight)
    weight = np.ascontiguousarray(weight)
    packed = np.empty(packed_shape(kind, rows, columns), np.uint8)
    scratch = np.empty(GROUP, np.uint8)
    whole = rows // BLOCK
    # A part at a time: the kernel holds no lock, and an interrupt waits for its end.
    for first in range(0, whole, 256):
        count = min(256, whole - first)
        source, to = weight[first * BLOCK :].ctypes.data, packed[first:].ctypes.data
        kernel(source, columns, count, to, scratch.ctypes.data)
    if whole * BLOCK < rows:
        packed[whole:] = pack(kind, weight[whole * BLOCK :])
    return packed


def _embedding(weight: Weight) -> Matrix:
    """(V,D) -> (V, D padded to 32), or packed: the rows that tokens are looked up in, as stored."""
    if isinstance(weight, Packed):
        return Matrix(EMBEDDING_KINDS[weight.kind], np.ascontiguousarray(weight.data))
    if weight.shape[1] % GROUP:
        weight = np.pad(weight, ((0, 0), (0, -weight.shape[1] % GROUP)))
    return Matrix(EMBEDDING_KINDS[weight.dtype.name], np.ascontiguousarray(weight))


class PreparedWeights:
    """All weights of a model, and the table of its layers that the record points to.

    The matrices of the layers are in `table`, the output matrix is `head`, (V,D); `embedding` is
    (V, D padded to 32) or packed, as stored.

    Args:
        config: the model's shape.
        weights: by Hugging Face name.
        dtype: type of the matrices.
        kernels: pack them.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, dtype: Dtype, kernels: Kernels
    ) -> None:
        self._weights = weights
        its_shapes = layer_shapes(config)
        self._kept: list[npt.NDArray[Any]] = []
        self.table = np.zeros((config.n_layers, len(LAYER_FIELDS)), np.int64)
        for layer in range(config.n_layers):
            prefix = f"model.layers.{layer}."
            for name, theirs in MATRICES.items():
                found = matrix(
                    weights[f"{prefix}{theirs}.weight"], dtype, *its_shapes[name], kernels
                )
                self._kept.append(found.data)
                self.table[layer, LAYER_FIELDS.index(name)] = found.address
                self.table[layer, LAYER_FIELDS.index(f"{name}_kind")] = found.kind
            for name, theirs in NORMS.items():
                norm = self._norm(f"{prefix}{theirs}.weight")
                self.table[layer, LAYER_FIELDS.index(name)] = norm.ctypes.data
        self.final_norm = self._norm(NORM)
        # What is tied may be there once more, packed, beside the embedding as it is stored.
        head = EMBEDDING if config.tied and HEAD not in weights else HEAD
        self.head = matrix(weights[head], head_dtype(dtype), config.vocab_size, config.dim, kernels)
        self.embedding = _embedding(weights[EMBEDDING])

    @property
    def packed(self) -> bool:
        """Whether the matrices are packed."""
        return self.head.kind >= KINDS["q8"]

    def _norm(self, name: str) -> Floats:
        """A norm's weights with zeros up to a multiple of 32."""
        weight = self._weights[name]
        assert not isinstance(weight, Packed), name
        dense = as_float32(np.asarray(weight))
        norm = np.pad(dense, (0, -len(dense) % GROUP)).astype(np.float32)
        self._kept.append(norm)
        return norm
