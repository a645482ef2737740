"""ggml's types: blocks of quantised values to float32.

Each decoder takes (N, bytes of a block) and gives (N, values of a block). d is a block's scale, m
its minimum, q the small integers. Types with a K have superblocks of 256 values, whose 8 or 16
groups have quantised scales of their own. The products are taken in llama.cpp's order, so that the
values are its own bit for bit.

Source: dequantize_row_* in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from codecria.core.native.packing import PackedKind
from codecria.data.gguf import TYPES

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_CHUNK_VALUES = 1 << 22  # decoded at once: temporaries stay within 100 MB
_NIBBLES = np.array([0, 4], dtype=np.uint8)
_PAIRS = np.array([0, 2, 4, 6], dtype=np.uint8)
_LOW_4, _LOW_1, _FOUR = np.uint8(15), np.uint8(1), np.uint8(4)
_BITS = np.arange(8, dtype=np.uint8)
# IQ4's sixteen values, denser around zero than even steps.
_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


def dequantised(raw: Bytes, kind: str, shape: tuple[int, ...]) -> Floats:
    """A tensor as float32.

    Args:
        raw: (bytes,) as it lies in the file.
        kind: its type, one of `READABLE`.
        shape: of the tensor.
    """
    found = TYPES[kind]
    blocks = raw.reshape(-1, found.block_bytes)
    values: Floats = np.empty((len(blocks), found.block), dtype=np.float32)
    step = max(1, _CHUNK_VALUES // found.block)
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale shows as such
        for start in range(0, len(blocks), step):
            values[start : start + step] = _DECODERS[kind](blocks[start : start + step])
    return values.reshape(shape)


def codes_and_scales(
    kind: PackedKind, raw: Bytes
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """The (N,32) codes and (N,) scales of N blocks of Q8_0 (q8) or Q4_0 (q4), as they lie."""
    blocks = raw.reshape(-1, TYPES["Q8_0" if kind == "q8" else "Q4_0"].block_bytes)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16)[:, 0]
    if kind == "q8":
        return blocks[:, 2:].view(np.int8), scales
    return _nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8), scales


def _half(blocks: Bytes, start: int) -> Floats:
    """(N,1) A float16 within each block."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _shifted(packed: Bytes, shifts: Bytes, width: int) -> Bytes:
    """(N, bytes) -> (N, bytes / width * shifts, width): every run of bytes, by each shift."""
    found: Bytes = packed.reshape(len(packed), -1, 1, width) >> shifts[:, None]
    return found.reshape(len(packed), -1, width)


def _nibbles(packed: Bytes) -> Bytes:
    """(N,16) -> (N,32): the low halves of 16 bytes, then the high ones."""
    return (_shifted(packed, _NIBBLES, 16) & _LOW_4).reshape(len(packed), 32)


def _fifth_bits(packed: Bytes) -> Bytes:
    """(N,4) -> (N,32): bit i belongs to value i, here as 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << _FOUR


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (q.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * q.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q2_k(blocks: Bytes) -> Floats:
    scales, d, m = blocks[:, :16], _half(blocks, 80), _half(blocks, 82)
    q = (_shifted(blocks[:, 16:80], _PAIRS, 32) & 3).reshape(-1, 16, 16)
    scale = (d * (scales & 15).astype(np.float32))[:, :, None]
    minimum = (m * (scales >> 4).astype(np.float32))[:, :, None]
    return (scale * q.astype(np.float32) - minimum).reshape(-1, 256)


def _q3_k(blocks: Bytes) -> Floats:
    high, low, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    # Six bits a scale: four of them in eight bytes, two in the four bytes after those.
    scales = _shifted(packed[:, :8], _NIBBLES, 8).reshape(-1, 16) & 15
    scales |= (_shifted(packed[:, 8:], _PAIRS, 4).reshape(-1, 16) & 3) << 4
    scale = _half(blocks, 108) * (scales.astype(np.float32) - 32)
    q = (_shifted(low, _PAIRS, 32) & 3).astype(np.float32)
    q -= np.where(_shifted(high, _BITS, 32) & 1, np.float32(0), np.float32(4))
    return (scale[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def _scales_and_minima(packed: Bytes) -> tuple[Floats, Floats]:
    """(N,12) -> (N,8) each: six bits a value; those of 4 to 7 lie in what 0 to 3 leave free."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 2 & 48)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 2 & 48)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _with_minima(blocks: Bytes, q: Bytes) -> Floats:
    """Q4_K and Q5_K from their integers, (N,8,32)."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales)[:, :, None]
    minimum = (_half(blocks, 2) * minima)[:, :, None]
    return (scale * q.astype(np.float32) - minimum).reshape(-1, 256)


def _q4_k(blocks: Bytes) -> Floats:
    return _with_minima(blocks, _shifted(blocks[:, 16:], _NIBBLES, 32) & _LOW_4)


def _q5_k(blocks: Bytes) -> Floats:
    low = _shifted(blocks[:, 48:], _NIBBLES, 32) & _LOW_4
    high = _shifted(blocks[:, 16:48], _BITS, 32) & _LOW_1
    return _with_minima(blocks, low | high << _FOUR)


def _q6_k(blocks: Bytes) -> Floats:
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    q = (_shifted(blocks[:, :128], _NIBBLES, 64) & 15).reshape(-1, 8, 32)
    q |= (_shifted(blocks[:, 128:192], _PAIRS, 32) & 3) << 4
    scale = (_half(blocks, 208) * scales)[:, :, None]
    return (scale * (q.reshape(-1, 16, 16).astype(np.float32) - 32)).reshape(-1, 256)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _IQ4[_nibbles(blocks[:, 2:])]


def _iq4_xs(blocks: Bytes) -> Floats:
    high = blocks[:, 2:4].copy().view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = (blocks[:, 4:8, None] >> _NIBBLES).reshape(-1, 8) & 15
    scale = _half(blocks, 0) * ((low | high.astype(np.uint8) << 4).astype(np.float32) - 32)
    q = _shifted(blocks[:, 8:], _NIBBLES, 16) & 15
    values: Floats = scale[:, :, None] * _IQ4[q.reshape(-1, 8, 32)]
    return values.reshape(-1, 256)


_DECODERS: Mapping[str, Callable[[Bytes], Floats]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
READABLE = frozenset(_DECODERS)
