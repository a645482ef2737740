"""The container of GGUF: what is written is read, and nothing that is damaged gets through."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.gguf import TYPES, Entry, GgufFile, padding, write_head

METADATA: dict[str, Entry] = {
    "general.architecture": "llama",
    "a.number": 7,
    "a.float": 0.5,
    "a.switch": True,
    "names": ["", "é", "x" * 300],
    "scores": np.array([1.5, -1e9], dtype=np.float32),
    "kinds": np.array([-1, 3], dtype=np.int32),
}
PLANNED = {"a": ((2, 64), TYPES["Q8_0"]), "b": ((3,), TYPES["F32"])}


def content() -> bytes:
    """A whole file of two tensors."""
    file = io.BytesIO()
    write_head(file, METADATA, PLANNED)
    for size in (136, 12):
        file.write(bytes(range(size)) + padding(size))
    return file.getvalue()


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return path


def test_what_is_written_is_read_by_us_and_by_the_gguf_package(tmp_path: Path) -> None:
    path = saved(tmp_path, content())
    mine = GgufFile(path)
    oracle = pytest.importorskip("gguf").GGUFReader(path)
    for key, value in METADATA.items():
        found = mine.metadata[key]
        assert np.array_equal(found, value), key
        assert np.array_equal(oracle.fields[key].contents(), value), key
    for tensor in oracle.tensors:
        assert tuple(reversed(tensor.shape.tolist())) == PLANNED[tensor.name][0]
        assert np.array_equal(mine.raw(tensor.name), tensor.data.view(np.uint8).reshape(-1))


def test_the_types_have_the_sizes_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for kind, size in gguf.GGML_QUANT_SIZES.items():
        mine = TYPES[kind.name]
        assert (mine.number, (mine.block, mine.block_bytes)) == (kind.value, size), kind.name


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new, 1)


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


# The description of tensor "a": name, dimensions, shape fastest first, type, offset.
A = number(1) + b"a" + struct.pack("<IQQIQ", 2, 64, 2, 8, 0)
B = number(1) + b"b" + struct.pack("<IQIQ", 1, 3, 0, 160)
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is not a GGUF file"),
    "magic": (replaced(b"GGUF", b"GGML"), "is not a GGUF file: it begins with b'GGML'"),
    "version": (replaced(b"GGUF\3", b"GGUF\1"), "of GGUF version 1, only 2 and 3 are read"),
    "big endian": (replaced(b"GGUF\3\0\0\0", b"GGUF\0\0\0\3"), "is a big-endian GGUF file"),
    "tensors": (lambda d: d[:8] + number(1 << 62) + d[16:], "claims 7 metadata entries and 46"),
    "entries": (lambda d: d[:16] + number(1 << 40) + d[24:], "claims 1099511627776 metadata"),
    "head cut": (lambda d: d[:60], "damaged or incomplete"),
    "data cut": (lambda d: d[:-40], "b ends at byte"),
    "long name": (replaced(number(8) + b"a.number", number(1 << 50) + b"a.number"), "a name of"),
    "long list": (replaced(struct.pack("<IQ", 5, 2), struct.pack("<IQ", 5, 1 << 60)), "claims"),
    "list of lists": (replaced(struct.pack("<IIQ", 9, 5, 2), struct.pack("<IIQ", 9, 9, 2)), "arr"),
    "unknown value": (replaced(b"a.number\4", b"a.number\x63"), "a.number is of the unknown type"),
    "key twice": (replaced(b"kinds", b"names"), "names is there twice"),
    "not text": (replaced(b"kinds", b"kin\xff\xff"), "a name is not UTF-8"),
    "tensor twice": (replaced(B, B.replace(b"b", b"a", 1)), "a is there twice"),
    "dimensions": (replaced(A, A.replace(b"\2\0\0\0", b"\x63\0\0\0", 1)), "a has 99 dimensions"),
    "huge": (replaced(B, B.replace(number(3), number(1 << 60))), "b ends at byte"),
    "type": (
        replaced(A, A.replace(struct.pack("<I", 8) + number(0), struct.pack("<I", 99) + number(0))),
        "a is of the type 99, which codecria does not know",
    ),
    "ragged": (replaced(A, A.replace(number(64), number(63), 1)), "a has rows of 63 values"),
    "overlap": (replaced(B, B.replace(number(160), number(128))), "a and b overlap"),
    "unaligned": (replaced(B, B.replace(number(160), number(161))), "b is not aligned"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    data = damage(content())
    assert data != content(), "the damage changes something"
    with pytest.raises(UserError, match=message) as caught:
        GgufFile(saved(tmp_path, data))
    assert "\n" not in caught.value.message


@given(
    at=st.integers(0, len(content()) - 1),
    value=st.integers(0, 255),
    length=st.integers(0, len(content())),
)
def test_no_damage_ends_in_anything_but_an_error_for_the_user(
    at: int, value: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(content())
    data[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(bytes(data[:length]) if length % 2 else bytes(data))
    try:
        opened = GgufFile(path)
    except UserError:
        return
    for name, tensor in opened.tensors.items():
        assert len(opened.raw(name)) == tensor.bytes
