"""Writing a GGUF file, one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codecria.core.checkpoints.formats.layout import gguf_name, shapes_of
from codecria.core.native.packing import GROUP, PackedKind, quantize
from codecria.data.errors import UserError
from codecria.data.files import write_error
from codecria.data.gguf import TYPES, TensorType, padding, tensor_bytes, write_head
from codecria.data.tokenizer.tokenizer import Tokenizer

from .facts import ROPE_TENSOR, GgufFacts, GgufType, entries
from .read import divisors

_CHUNK_BYTES = 64 << 20  # of float32 that are quantised at once
_TYPES: Mapping[PackedKind, str] = {"q8": "Q8_0", "q4": "Q4_0"}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def write_gguf(
    path: Path,
    facts: GgufFacts,
    tokenizer: Tokenizer,
    kind: GgufType,
    read: Callable[[str], Tensor],
    *,
    packed: Mapping[str, PackedKind] | None = None,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> None:
    """Write a model to a file, one weight in memory at a time.

    Args:
        path: of the file.
        facts: shape, name, template and lineage.
        tokenizer: with at most as many pieces as the embedding has rows.
        kind: of most matrices.
        read: gives a weight by our name, wq and wk with neighbouring pairs.
        packed: how each matrix is quantised, by our name.
        importance: (C,) of each matrix's inputs, by our name, for 4 bits (native/packing.py).

    Raises:
        UserError: the shape does not fit the type, or the file cannot be written.
    """
    shapes = shapes_of(facts.config)
    kinds = packed or {}
    if kinds:
        odd = [s for s in shapes.values() if len(s) == 2 and s[1] % GROUP]
        if odd:
            raise UserError(
                f"{kind.name} needs rows of a multiple of {GROUP}, and the model has rows of"
                f" {odd[0][1]}",
                hint="choose --dtype float16",
            )
    factors = divisors(facts.config)
    planned: dict[str, tuple[tuple[int, ...], TensorType]] = {}
    if factors is not None:
        planned[ROPE_TENSOR] = factors.shape, TYPES["F32"]
    for ours, shape in shapes.items():
        plain = "F32" if len(shape) == 1 else kind.name
        planned[gguf_name(ours)] = shape, TYPES[_TYPES[kinds[ours]] if ours in kinds else plain]
    try:
        with path.open("wb") as file:
            write_head(file, entries(facts, kind, tokenizer), planned)
            if factors is not None:
                file.write(factors.tobytes() + padding(factors.nbytes))
            for ours, shape in shapes.items():
                tensor = read(ours)
                assert tensor.shape == shape, ours
                _, stored = planned[gguf_name(ours)]
                for part in _encoded(tensor, stored.name, (importance or {}).get(ours)):
                    file.write(np.ascontiguousarray(part).data)
                file.write(padding(tensor_bytes(shape, stored)))
    except OSError as error:
        raise write_error(path, error) from error


def _encoded(
    tensor: Tensor, kind: str, importance: npt.NDArray[np.float32] | None
) -> Iterator[npt.NDArray[Any]]:
    """A weight as it lies in a file, a part at a time."""
    if kind in _PLAIN:
        plain = tensor.to(_PLAIN[kind]).contiguous()
        yield (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
        return
    rows = max(1, _CHUNK_BYTES // 4 // tensor.shape[1])
    for start in range(0, len(tensor), rows):
        yield _blocks(tensor[start : start + rows].float().numpy(), kind, importance)


def _blocks(
    weights: npt.NDArray[np.float32], kind: str, importance: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    """(N,C) -> (blocks, bytes of one): the scale, then 32 codes of a byte or half a byte each."""
    codes, scales = quantize("q8" if kind == "Q8_0" else "q4", weights, importance)
    codes = codes.reshape(-1, GROUP)
    if kind == "Q4_0":
        unsigned = (codes + 8).view(np.uint8)
        values = unsigned[:, : GROUP // 2] | unsigned[:, GROUP // 2 :] << 4
    else:
        values = codes.view(np.uint8)
    return np.concatenate([scales.reshape(-1, 1).astype("<f2").view(np.uint8), values], axis=1)
