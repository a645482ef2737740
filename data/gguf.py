"""The container of GGUF, llama.cpp's one-file format: metadata, tensors, and where they lie.

    magic, version, number of tensors, number of metadata entries
    entries     key, type, value; arrays of one type
    tensors     name, shape (fastest dimension first), type, offset
    data        every tensor at a multiple of general.alignment

The file is mapped: opening reads the head alone. What a file claims is checked against its length
before anything is allocated. Versions 2 and 3, little-endian. The types' values are decoded in
core/checkpoints/formats/gguf/types.py; this module knows their sizes.

Source of the layout: docs/gguf.md of ggml; of the sizes: ggml-common.h.
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .files import refuse_lfs_pointer

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_ENTRY_BYTES = 8 + 4 + 1  # the smallest metadata entry: an empty key, its type, one byte
_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # the smallest description of a tensor

# Types of metadata values, by their number, as struct writes them.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_UINT32, _INT32, _FLOAT32 = 4, 5, 6
_KINDS = {np.uint32: _UINT32, np.int32: _INT32, np.float32: _FLOAT32}  # of arrays


@dataclass(frozen=True, slots=True)
class TensorType:
    """How values lie in a file.

    Attributes:
        name: ggml's.
        number: that stands for it in a file.
        block: values that share a scale, or 1.
        block_bytes: of a block.
    """

    name: str
    number: int
    block: int
    block_bytes: int


_TYPES = {
    number: TensorType(name, number, block, size)
    for name, number, block, size in (
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34),
        ("Q8_1", 9, 32, 40),
        ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
        ("Q8_K", 15, 256, 292),
        ("IQ2_XXS", 16, 256, 66),
        ("IQ2_XS", 17, 256, 74),
        ("IQ3_XXS", 18, 256, 98),
        ("IQ1_S", 19, 256, 50),
        ("IQ4_NL", 20, 32, 18),
        ("IQ3_S", 21, 256, 110),
        ("IQ2_S", 22, 256, 82),
        ("IQ4_XS", 23, 256, 136),
        ("I8", 24, 1, 1),
        ("I16", 25, 1, 2),
        ("I32", 26, 1, 4),
        ("I64", 27, 1, 8),
        ("F64", 28, 1, 8),
        ("IQ1_M", 29, 256, 56),
        ("BF16", 30, 1, 2),
        ("TQ1_0", 34, 256, 54),
        ("TQ2_0", 35, 256, 66),
        ("MXFP4", 39, 32, 17),
        ("NVFP4", 40, 64, 36),
        ("Q1_0", 41, 128, 18),
    )
}
TYPES: Mapping[str, TensorType] = {kind.name: kind for kind in _TYPES.values()}


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the file describes it.

    Attributes:
        shape: slowest dimension first, as numpy has it.
        type: of its values.
        start: first byte in the file.
        bytes: it has.
    """

    shape: tuple[int, ...]
    type: TensorType
    start: int
    bytes: int


class GgufFile:
    """An open file: its metadata, and its tensors mapped.

    Attributes:
        path: of the file.
        metadata: values by key; arrays of numbers are numpy arrays, of strings lists.
        tensors: by name, in the file's order.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and read its head.

        Raises:
            UserError: it is no GGUF file, damaged or incomplete, or of a version or type that
                cannot be read.
        """
        self.path = path
        refuse_lfs_pointer(path)
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        head = _Head(path, self._map)
        try:
            self.metadata, self.tensors = head.read()
        except UnicodeDecodeError as error:
            head.damaged(f"a name is not UTF-8 ({error.reason})")

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """(bytes,) A tensor as it lies in the file, mapped and read-only."""
        tensor = self.tensors[name]
        return np.frombuffer(self._map, dtype=np.uint8, count=tensor.bytes, offset=tensor.start)


class _Head:
    """Reads the head of a file, every length checked against what is left of it."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self._path = path
        self._data = data
        self._at = 0

    def damaged(self, why: str) -> NoReturn:
        """Refuse the file.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self._path} is damaged or incomplete: {why}",
            hint="download or convert the model again",
        )

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The metadata and the tensors.

        Raises:
            UserError: as `GgufFile`.
        """
        if self._data[: len(MAGIC)] != MAGIC:
            raise UserError(
                f"{self._path} is not a GGUF file: it begins with {bytes(self._data[:4])!r}"
            )
        self._at = len(MAGIC)
        version = self._number("<I")
        if version not in _VERSIONS:
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            raise UserError(
                f"{self._path} is a big-endian GGUF file, only little-endian ones are read"
                if big_endian
                else f"{self._path} is of GGUF version {version}, only 2 and 3 are read",
                hint="convert the model again, with a current llama.cpp",
            )
        tensors, entries = self._number("<Q"), self._number("<Q")
        if entries * _ENTRY_BYTES + tensors * _TENSOR_BYTES > len(self._data):
            self.damaged(
                f"it claims {entries} metadata entries and {tensors} tensors in"
                f" {len(self._data)} bytes"
            )
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in metadata:
                self.damaged(f"{key} is there twice")
            metadata[key] = self._value(self._number("<I"), key)
        described = [self._described() for _ in range(tensors)]
        return metadata, self._placed(described, metadata)

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        if self._at + size > len(self._data):
            self.damaged(f"it ends within its head, at byte {len(self._data)}")
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return value

    def _string(self) -> str:
        length = self._number("<Q")
        if length > len(self._data) - self._at:
            self.damaged(f"a name of {length} bytes begins at byte {self._at}")
        text = self._data[self._at : self._at + length]
        self._at += length
        return text.decode()

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._form(kind, key))
        inner, count = self._number("<I"), self._number("<Q")
        if inner == _ARRAY:
            self.damaged(f"{key} is an array of arrays")
        size = 8 if inner == _STRING else struct.calcsize(self._form(inner, key))
        if count * size > len(self._data) - self._at:
            self.damaged(f"{key} claims {count} values")
        if inner == _STRING:
            return self._strings(count)
        values = np.frombuffer(
            self._data, dtype=np.dtype(self._form(inner, key)), count=count, offset=self._at
        ).copy()
        self._at += count * size
        return values

    def _strings(self, count: int) -> list[str]:
        """`count` strings: one loop, as a vocabulary has hundreds of thousands."""
        found, data, at, end = [], self._data, self._at, len(self._data)
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                self.damaged(f"it ends within its head, at byte {end}")
            (length,) = length_at(data, at)
            at += 8
            if length > end - at:
                self.damaged(f"a string of {length} bytes begins at byte {at}")
            found.append(data[at : at + length].decode())
            at += length
        self._at = at
        return found

    def _form(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            self.damaged(f"{key} is of the unknown type {kind}")
        return _SCALARS[kind]

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape slowest first, number of the type, offset) of the next tensor."""
        name = self._string()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            self.damaged(f"{name} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        return name, shape[::-1], self._number("<I"), self._number("<Q")

    def _placed(
        self, described: Sequence[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
    ) -> dict[str, Tensor]:
        alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self.damaged(f"{ALIGNMENT_KEY} is {alignment}, no power of two")
        first = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, number, offset in described:
            kind = _TYPES.get(number)
            if kind is None:
                raise UserError(
                    f"{self._path}: {name} is of the type {number}, which codecria does not know",
                    hint="the file is damaged, or made by a newer llama.cpp:"
                    " use another quantisation of the model",
                )
            if name in tensors:
                self.damaged(f"{name} is there twice")
            if shape[-1] % kind.block:
                self.damaged(
                    f"{name} has rows of {shape[-1]} values, {kind.name} needs"
                    f" a multiple of {kind.block}"
                )
            size = math.prod(shape) // kind.block * kind.block_bytes
            start = first + offset
            if offset % alignment:
                self.damaged(f"{name} is not aligned to {alignment} bytes")
            if start + size > len(self._data):
                self.damaged(f"{name} ends at byte {start + size} of {len(self._data)}")
            tensors[name] = Tensor(shape, kind, start, size)
        self._refuse_overlaps(tensors)
        return tensors

    def _refuse_overlaps(self, tensors: Mapping[str, Tensor]) -> None:
        ordered = sorted(tensors.items(), key=lambda entry: entry[1].start)
        for (before, left), (after, right) in itertools.pairwise(ordered):
            if left.start + left.bytes > right.start:
                self.damaged(f"{before} and {after} overlap")


Entry = str | bool | int | float | Sequence[str] | npt.NDArray[Any]
Planned = Mapping[str, tuple[tuple[int, ...], TensorType]]  # shape, slowest first, and type


def write_head(file: IO[bytes], metadata: Mapping[str, Entry], planned: Planned) -> None:
    """Write everything up to the first tensor's data.

    Whole numbers are written as uint32, floats as float32, arrays in their own type.

    Args:
        file: at its start.
        metadata: values by key.
        planned: the tensors, in the order their data will follow, each padded by `padding`.
    """
    file.write(MAGIC + struct.pack("<IQQ", _VERSIONS[-1], len(planned), len(metadata)))
    for key, value in metadata.items():
        file.write(_text(key) + _entry(value))
    offset = 0
    for name, (shape, kind) in planned.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        file.write(_text(name) + dimensions + struct.pack("<IQ", kind.number, offset))
        offset += tensor_bytes(shape, kind)
        offset += len(padding(offset))
    file.write(padding(file.tell()))


def tensor_bytes(shape: Sequence[int], kind: TensorType) -> int:
    """Bytes of a tensor's data.

    >>> tensor_bytes((2, 64), TYPES["Q8_0"])  # 4 blocks of 34 bytes
    136
    """
    return math.prod(shape) // kind.block * kind.block_bytes


def padding(length: int) -> bytes:
    """The zeros that follow `length` bytes."""
    return bytes(-length % DEFAULT_ALIGNMENT)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _entry(value: Entry) -> bytes:
    """A metadata value after its key: its type, then itself."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, np.ndarray):
        kind = _KINDS[value.dtype.type]
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + value.tobytes()
    head = struct.pack("<IIQ", _ARRAY, _STRING, len(value))
    return head + b"".join(map(_text, value))
