"""The packed layout of 8-bit and 4-bit weights: what the kernels stream and what lies on disk.

A matrix of N rows (outputs) and C columns (inputs) is quantised in groups of 32 neighbouring
columns of a row. A group has one float16 scale: weight = code * scale. Codes of q8 are -127..127,
of q4 -8..7; a q8 code of -128 (some GGUF files have it) is kept.

Layout 1. Rows stand in blocks of 16 and columns in groups of 32, both padded with zero weights, so
the array has shape (ceil(N/16), ceil(C/32), S) of bytes. The S bytes of a block's group:

    q8, S = 544: for each 4 columns c = 0, 4, .. 28, for each of the 16 rows: 4 bytes, code + 128
    q4, S = 288: for each 4 columns c = 0, 4, 8, 12, for each of the 16 rows: 4 bytes,
                 (code of column c + i) + 8 in the low 4 bits, that of column c + 16 + i in the high
    then for both: the scales of the 16 rows, float16, little endian

So one load of 64 bytes holds four inputs of 16 outputs (eight for q4), as dot-product instructions
take them, and weights and scales are one stream of 8.5 or 4.5 bits a weight.

Shapes: N rows, C columns, G groups of a row = ceil(C/32), B blocks of rows = ceil(N/16).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

LAYOUT = 1  # raise it when the bytes change: files of another layout must not be read
GROUP = 32  # columns that share a scale
BLOCK = 16  # rows that stand side by side
PackedKind = Literal["q8", "q4"]
GROUP_BYTES: dict[PackedKind, int] = {"q8": 544, "q4": 288}
# Bits of a weight in each type, scales included
BITS = {"float32": 32.0, "bfloat16": 16.0, "q8": 8.5, "q4": 4.5}
_SCALES = 2 * BLOCK  # bytes of a block's scales, at the end of a group
_LOW, _HIGH = -8, 7  # codes of q4
_FACTORS = np.linspace(0.8875, 1.1125, 5, dtype=np.float32)  # of a code, tried by _fitted
_STEP = 1 << 22  # weights quantised at a time: bounds the memory of packing
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def packed_shape(kind: PackedKind, rows: int, columns: int) -> tuple[int, int, int]:
    """Shape (B, G, S) of the packed bytes of an (N,C) matrix."""
    return -(-rows // BLOCK), -(-columns // GROUP), GROUP_BYTES[kind]


def as_float32(weights: npt.NDArray[Any]) -> Floats:
    """Weights as float32: from float32, float16, or bfloat16 stored as uint16."""
    if weights.dtype == np.uint16:
        return (weights.astype(np.uint32) << 16).view(np.float32)
    return weights.astype(np.float32, copy=False)


def quantize(
    kind: PackedKind, weights: Floats, importance: Floats | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Round each group to its nearest codes.

    q8 maps the largest magnitude to 127; q4 maps the weight of largest magnitude to -8, which uses
    all 16 codes (as Q4_0 of GGUF does). With the inputs' importance, q4 takes the scale of each
    group whose weighted squared error is least, see `_fitted`.

    Args:
        kind: "q8" or "q4".
        weights: (N,C), C divisible by 32.
        importance: (C,) mean square of each input; None to know nothing of them.

    Returns:
        (N,C) codes and (N,G) scales.
    """
    N, C = weights.shape
    grouped = weights.reshape(N, C // GROUP, GROUP)
    if kind == "q8":
        scales = np.abs(grouped).max(-1) / np.float32(127)
        low, high = -127, 127
    else:
        low, high = _LOW, _HIGH
        most, least = grouped.max(-1), grouped.min(-1)
        scales = np.where(most >= -least, most, least) / np.float32(low)
        if importance is not None:
            scales = _fitted(grouped, importance.reshape(C // GROUP, GROUP), scales)
    stored = scales.astype(np.float16)
    divisors = stored.astype(np.float32)
    inverse = np.divide(1, divisors, out=np.zeros_like(divisors), where=divisors != 0)
    codes = np.clip(np.rint(grouped * inverse[..., None]), low, high).astype(np.int8)
    return codes.reshape(N, C), stored


def _fitted(grouped: Floats, importance: Floats, scales: Floats) -> Floats:
    """The scale of each group with the least squared error, weighted by the inputs' importance.

    Codes are found with a few scales around the one that uses all of them; for the codes c of one,
    the best scale is sum(i w c) / sum(i c c), which leaves an error of sum(i w w) less
    sum(i w c)^2 / sum(i c c). (llama.cpp's make_qx_quants searches likewise.)

    Args:
        grouped: (N,G,32) weights w.
        importance: (G,32) i.
        scales: (N,G) that map the largest magnitude to -8.

    Returns:
        (N,G) scales.
    """
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    best, gain = scales, np.full_like(scales, -1)
    weighted = grouped * importance
    for factor in _FACTORS:
        codes = np.clip(np.rint(grouped * (inverse * factor)[..., None]), _LOW, _HIGH)
        along = np.einsum("ngk,ngk->ng", weighted, codes)
        square = np.einsum("ngk,ngk,gk->ng", codes, codes, importance)
        scale = np.divide(along, square, out=np.zeros_like(along), where=square > 0)
        better = along * scale > gain
        best, gain = np.where(better, scale, best), np.where(better, along * scale, gain)
    return best.astype(np.float32)


def arrange(
    kind: PackedKind, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]
) -> Bytes:
    """Codes and scales in the packed layout, for instance those of a GGUF file.

    Args:
        kind: "q8" or "q4".
        codes: (N,C), C divisible by 32, within the range of the kind.
        scales: (N,G).

    Returns:
        (B,G,S) bytes; rows are padded with zero weights.
    """
    N, C = codes.shape
    B, G, S = packed_shape(kind, N, C)
    if B * BLOCK != N:
        codes = np.concatenate([codes, np.zeros((B * BLOCK - N, C), np.int8)])
        scales = np.concatenate([scales, np.zeros((B * BLOCK - N, G), np.float16)])
    packed = np.empty((B, G, S), np.uint8)
    offset = 128 if kind == "q8" else 8
    unsigned = (codes.view(np.uint8) + np.uint8(offset)).reshape(B, BLOCK, G, GROUP)
    if kind == "q8":  # row, four columns at a time -> four columns at a time, row
        parts = unsigned.reshape(B, BLOCK, G, 8, 4).transpose(0, 2, 3, 1, 4)
        packed[:, :, :-_SCALES] = parts.reshape(B, G, 512)
    else:
        halves = unsigned.reshape(B, BLOCK, G, 2, 4, 4).transpose(3, 0, 2, 4, 1, 5)
        packed[:, :, :-_SCALES] = (halves[0] | halves[1] << 4).reshape(B, G, 256)
    ordered = scales.reshape(B, BLOCK, G).transpose(0, 2, 1).astype("<f2")
    packed[:, :, -_SCALES:] = np.ascontiguousarray(ordered).view(np.uint8)
    return packed


def pack(kind: PackedKind, weights: npt.NDArray[Any], importance: Floats | None = None) -> Bytes:
    """Quantise a matrix and arrange it, a part of the rows at a time.

    Args:
        kind: "q8" or "q4".
        weights: (N,C) float32, float16, or bfloat16 stored as uint16; may be memory-mapped.
        importance: (C,), see `quantize`.

    Returns:
        (B,G,S) bytes.
    """
    N, C = weights.shape
    packed = np.empty(packed_shape(kind, N, C), np.uint8)
    if importance is not None and C % GROUP:
        importance = np.pad(importance, (0, -C % GROUP))
    for first, last in _row_parts(N, C):
        part = as_float32(weights[first:last])
        if C % GROUP:
            part = np.pad(part, ((0, 0), (0, -C % GROUP)))
        packed[first // BLOCK : -(-last // BLOCK)] = arrange(
            kind, *quantize(kind, part, importance)
        )
    return packed


def codes_of(
    kind: PackedKind, packed: Bytes
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """The (16B,32G) codes and (16B,G) scales of packed bytes (B,G,S), padding included."""
    B, G, _ = packed.shape
    if kind == "q8":
        parts = packed[:, :, :-_SCALES].reshape(B, G, 8, BLOCK, 4)
        unsigned = parts.transpose(0, 3, 1, 2, 4).reshape(B * BLOCK, G * GROUP)
        codes = (unsigned - np.uint8(128)).view(np.int8)
    else:
        pairs = packed[:, :, :-_SCALES].reshape(B, G, 4, BLOCK, 4)
        halves = np.stack([pairs & 15, pairs >> 4], 2)  # (B, G, 2, 4, 16, 4)
        unsigned = halves.transpose(0, 4, 1, 2, 3, 5).reshape(B * BLOCK, G * GROUP)
        codes = unsigned.view(np.int8) - np.int8(8)
    scales = np.ascontiguousarray(packed[:, :, -_SCALES:]).view("<f2")  # (B, G, 16)
    return codes, scales.transpose(0, 2, 1).reshape(B * BLOCK, G)


def unpack(kind: PackedKind, packed: Bytes, rows: int, columns: int) -> Floats:
    """The (N,C) float32 weights that packed bytes (B,G,S) stand for."""
    out = np.empty((rows, columns), np.float32)
    for first, last in _row_parts(rows, columns):
        codes, scales = codes_of(kind, packed[first // BLOCK : -(-last // BLOCK)])
        grouped = codes.reshape(len(codes), -1, GROUP) * scales.astype(np.float32)[..., None]
        out[first:last] = grouped.reshape(codes.shape)[: last - first, :columns]
    return out


def _row_parts(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Parts of the rows that are whole blocks, the last one perhaps less."""
    step = max(1, _STEP // (BLOCK * columns)) * BLOCK
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
