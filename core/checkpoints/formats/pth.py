"""The .pth files of Meta's layout: read without running anything, written a weight at a time."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codecria.data.errors import UserError
from codecria.data.files import refuse_lfs_pointer

from .pickled import Pickled, read_pickled

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ALIGNMENT = 64  # of a tensor's bytes within the file, as torch writes them


def read_pickle(path: Path, *, mapped: bool) -> dict[str, Pickled]:
    """The tensors of a .pth; nothing in it is ever executed.

    PyTorch is asked where the file is not as it writes them today, or damaged.

    Args:
        path: of the file.
        mapped: leave them in the file until they are read.

    Raises:
        UserError: it is damaged, or holds anything but tensors.
    """
    refuse_lfs_pointer(path)
    plain = read_pickled(path) if mapped else None
    if plain is not None:
        return plain
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        unsafe = "Unsupported" in str(error) or "GLOBAL" in str(error)
        raise UserError(
            f"{path} is refused: it holds more than tensors, and loading it could run a program"
            if unsafe
            else f"{path} is damaged or incomplete: {reason}",
            hint="get the model from a source you trust",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or "it ends early").splitlines()[0]
        raise UserError(
            f"{path} is damaged or incomplete: {reason}", hint="download the model again"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in found.items()
    ):
        raise UserError(
            f"{path} is not a dictionary of tensors", hint="it is not a model in Meta's layout"
        )
    return {name: _pickled(tensor.detach()) for name, tensor in found.items()}


def _pickled(tensor: Tensor) -> Pickled:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype.itemsize == 1:  # also types that numpy has not got
        tensor = tensor.view(torch.uint8)
    return Pickled(dtype, tensor.numpy())


def as_tensor(part: Pickled) -> Tensor:
    """The same memory as PyTorch takes it."""
    import torch

    found = torch.from_numpy(part.data)
    return found.view(torch.bfloat16) if part.dtype == "bfloat16" else found


class _Storage:
    """Stands for a tensor's bytes in the pickle."""

    def __init__(self, kind: type, key: str, numel: int) -> None:
        self.persistent_id = ("storage", kind, key, "cpu", numel)


class _Entry:
    """Pickles as a tensor does whose bytes lie in a record of their own."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        stride: list[int] = []
        size = 1
        for length in reversed(self.shape):
            stride.insert(0, size)
            size *= length
        from torch._utils import _rebuild_tensor_v2 as rebuild

        return rebuild, (self.storage, 0, self.shape, tuple(stride), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        return value.persistent_id if isinstance(value, _Storage) else None


_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
}


def write_pickle(
    path: Path,
    weights: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    read: Callable[[str], Tensor],
) -> None:
    """Write a file that torch.load reads, one weight in memory at a time.

    torch.save takes all weights at once. The format is its own: a zip, uncompressed, of a pickle
    and a record of bytes for each weight, each aligned so that it can be mapped.

    Args:
        path: of the file.
        weights: shape and type by name, in the order they are written in.
        read: gives a weight of that shape and type.
    """
    import torch

    entries: OrderedDict[str, _Entry] = OrderedDict()
    for number, (name, (shape, dtype)) in enumerate(weights.items()):
        kind = getattr(torch, _STORAGES[str(dtype).removeprefix("torch.")])
        storage = _Storage(kind, str(number), math.prod(shape))
        entries[name] = _Entry(storage, shape)
    top = path.stem.replace(".", "_")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(_record(f"{top}/data.pkl"), "w") as file:
            _Pickler(file, protocol=2).dump(entries)
        archive.writestr(_record(f"{top}/byteorder"), b"little")
        for number, name in enumerate(weights):
            shape, dtype = weights[name]
            tensor = read(name)
            assert tensor.shape == shape, name
            assert tensor.dtype == dtype, name
            content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            record = _record(f"{top}/data/{number}")
            record.file_size = len(content)
            _align(record, archive.start_dir)
            with archive.open(record, "w", force_zip64=True) as file:
                file.write(content)
        archive.writestr(_record(f"{top}/version"), b"3\n")


def _record(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # a fixed date: the same weights give the same file


def _align(record: zipfile.ZipInfo, offset: int) -> None:
    """Pad the record's header so that its content begins on a border.

    A header has 30 bytes, the name, 20 of the 64-bit sizes, and 4 of the padding's own.
    """
    start = offset + 30 + len(record.filename) + 20 + 4
    padding = -start % _ALIGNMENT
    record.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # "FB", as torch's own
