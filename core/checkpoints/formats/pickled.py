"""The tensors of a .pth, mapped from the file without PyTorch.

torch writes a zip: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the bytes of each
storage, stored as they are. Reading one takes four harmless callables, and no other is ever looked
up, so nothing in a file is executed. What is not of this plain form is left to torch's own loader,
which also says what is wrong with a file.
"""

from __future__ import annotations

import math
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_STORAGES = {  # torch's class of a storage -> the type's name
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
}
_MOST_PICKLE = 64 << 20  # bytes of a description: a 70b model's has 100 kB
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: lengths of name and extra field


@dataclass(frozen=True, slots=True)
class Pickled:
    """A tensor of a file.

    Attributes:
        dtype: as everyone names it.
        data: mapped; bfloat16 as uint16.
    """

    dtype: str
    data: npt.NDArray[Any]


class _Odd(Exception):
    """The file is not of the plain form."""


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class _Described:
    storage: _Storage
    start: int
    shape: tuple[int, ...]


def read_pickled(path: Path) -> dict[str, Pickled] | None:
    """The tensors of a file by name; None where it is not of the plain form, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = {member.filename: member for member in archive.infolist()}
            [top] = [
                name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")
            ]
            if members[f"{top}/data.pkl"].file_size > _MOST_PICKLE:
                return None
            order = f"{top}/byteorder"
            if order in members and archive.read(order) != b"little":
                return None
            with archive.open(f"{top}/data.pkl") as description:
                found = _Unpickler(description).load()
            # Private pages: torch may be given the memory, and must be able to write.
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return {name: _placed(one, top, members, memory) for name, one in _checked(found)}
    except (
        _Odd, pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError,
        KeyError, AttributeError, IndexError, struct.error, NotImplementedError, OverflowError,
    ):  # fmt: skip
        return None


def _checked(found: Any) -> list[tuple[str, _Described]]:
    """The items of a dictionary of tensors."""
    if not isinstance(found, dict):
        raise _Odd
    if not all(isinstance(n, str) and isinstance(t, _Described) for n, t in found.items()):
        raise _Odd
    return list(found.items())


def _placed(
    one: _Described, top: str, members: Mapping[str, zipfile.ZipInfo], memory: mmap.mmap
) -> Pickled:
    """A tensor where its bytes lie."""
    member = members[f"{top}/data/{one.storage.key}"]
    name, extra = _LOCAL_HEADER.unpack_from(memory, member.header_offset)
    dtype = np.dtype("uint16" if one.storage.dtype == "bfloat16" else one.storage.dtype)
    start = member.header_offset + _LOCAL_HEADER.size + name + extra
    count = math.prod(one.shape)
    if (
        member.compress_type != zipfile.ZIP_STORED
        or member.file_size < (one.start + count) * dtype.itemsize
        or start + member.file_size > len(memory)
        or start % dtype.itemsize
    ):
        raise _Odd
    at = start + one.start * dtype.itemsize
    flat = np.frombuffer(memory, dtype, count, at) if count else np.empty(0, dtype)
    return Pickled(one.storage.dtype, flat.reshape(one.shape))


class _Unpickler(pickle.Unpickler):
    """Reads a description; only what makes tensors and dictionaries can be named in it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """One of the four callables, or a type's name."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _Odd

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, which the pickle names by its member."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or dtype not in _STORAGES.values() or not isinstance(key, str):
            raise _Odd
        return _Storage(dtype, key, int(count))


def _tensor(
    storage: Any, start: Any, shape: Any, strides: Any, *_: Any
) -> _Described:  # torch's further arguments: gradients, hooks
    """What `_rebuild_tensor_v2` would make, if its elements lie one after the other."""
    size, expected = 1, list[int]()
    for length in reversed(shape):
        expected.insert(0, size)
        size *= length
    even = all(a == b or n == 1 for a, b, n in zip(strides, expected, shape, strict=True))
    positive = start >= 0 and all(length >= 0 for length in shape)
    if not isinstance(storage, _Storage) or not positive or (size and not even):
        raise _Odd
    return _Described(storage, int(start), tuple(int(length) for length in shape))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor
