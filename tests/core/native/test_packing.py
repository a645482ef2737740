"""The packed layout: what is stored, and what comes back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.native import kernels
from codecria.core.native.packing import (
    GROUP_BYTES,
    PackedKind,
    arrange,
    as_float32,
    codes_of,
    pack,
    packed_shape,
    quantize,
    unpack,
)
from codecria.core.native.weights import matrix as weight_matrix
from codecria.core.native.weights import to_bfloat16

KINDS: tuple[PackedKind, ...] = ("q8", "q4")


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@given(rows=st.integers(1, 70), columns=st.integers(1, 130), seed=st.integers(0, 99))
def test_unpacked_weights_are_within_half_a_step_of_the_packed_ones(
    kind: PackedKind, rows: int, columns: int, seed: int
) -> None:
    weights = matrix(rows, columns, seed)
    packed = pack(kind, weights)
    assert packed.shape == packed_shape(kind, rows, columns)
    back = unpack(kind, packed, rows, columns)
    padded = np.pad(np.abs(weights), ((0, 0), (0, -columns % 32)))
    peaks = padded.reshape(rows, -1, 32).max(-1).repeat(32, axis=1)[:, :columns]
    # One side of q4 ends at 7/8 of the peak, where the error is a whole step.
    bound = peaks * (0.51 / 127 if kind == "q8" else 1.01 / 8)
    assert (np.abs(back - weights) <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_packing_what_was_unpacked_changes_no_byte(kind: PackedKind) -> None:
    packed = pack(kind, matrix(48, 96))
    assert (pack(kind, unpack(kind, packed, 48, 96)) == packed).all()


def test_bytes_of_layout_1_lie_where_the_description_says() -> None:
    codes = np.arange(16 * 64, dtype=np.int64).reshape(16, 64)
    scales = np.arange(32, dtype=np.float16).reshape(16, 2)
    q8 = arrange("q8", (codes % 200 - 100).astype(np.int8), scales)
    q4 = arrange("q4", (codes % 16 - 8).astype(np.int8), scales)
    for group in range(2):
        for row in range(16):
            for column in range(32):
                code = int(codes[row, group * 32 + column])
                place = column // 4 * 64 + row * 4 + column % 4
                assert q8[0, group, place] == code % 200 - 100 + 128
                byte = int(q4[0, group, column % 16 // 4 * 64 + row * 4 + column % 4])
                assert (byte >> 4 if column >= 16 else byte & 15) == code % 16
            for packed, start in ((q8, 512), (q4, 256)):
                stored = packed[0, group, start + 2 * row : start + 2 * row + 2].copy()
                assert stored.view("<f2")[0] == row * 2 + group
    assert (q8.shape[2], q4.shape[2]) == (GROUP_BYTES["q8"], GROUP_BYTES["q4"])


def test_codes_of_other_programs_come_back_as_they_were() -> None:
    codes = np.full((3, 32), -128, np.int8)  # quantize() never makes it, GGUF files may hold it
    scales = np.full((3, 1), 0.5, np.float16)
    back, again = codes_of("q8", arrange("q8", codes, scales))
    assert (back[:3] == codes).all()
    assert not back[3:].any()
    assert (again[:3] == scales).all()


def test_bfloat16_and_float16_weights_are_read_as_such() -> None:
    weights = np.array([[1.5, -2.0, 0.25, 3.0]], np.float32)
    bfloat16 = (weights.view(np.uint32) >> 16).astype(np.uint16)
    assert (as_float32(bfloat16) == weights).all()
    assert (pack("q8", bfloat16) == pack("q8", weights)).all()
    assert (pack("q8", weights.astype(np.float16)) == pack("q8", weights)).all()


def test_groups_of_zeros_have_a_scale_of_zero() -> None:
    codes, scales = quantize("q4", np.zeros((1, 32), np.float32))
    assert not codes.any()
    assert not scales.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "uint16", "float16"])
@given(rows=st.integers(1, 70), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_kernels_pack_the_same_bytes_as_numpy(
    kind: PackedKind, dtype: str, rows: int, groups: int, seed: int
) -> None:
    weights = matrix(rows, 32 * groups, seed)
    weights *= np.random.default_rng(seed).choice([0, 1e-6, 1, 1e3], (rows, 1)).astype(np.float32)
    some = to_bfloat16(weights) if dtype == "uint16" else weights.astype(dtype)
    found = weight_matrix(some, kind, rows, 32 * groups, kernels.load())
    assert (found.data == pack(kind, some)).all()


def test_kernels_round_to_bfloat16_as_numpy_does() -> None:
    weights = matrix(16, 64) * np.float32(1e-3)
    found = weight_matrix(weights, "bfloat16", 16, 64, kernels.load())
    assert (found.data == to_bfloat16(weights)).all()
