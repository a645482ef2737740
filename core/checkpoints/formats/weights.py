"""Where a checkpoint's weights lie: the one interface that all formats are read through.

Weights are known by our names, whatever a format calls them, and read one at a time: a checkpoint
may be many times larger than the memory. Opening one and reading it as numpy arrays imports no
PyTorch; reading tensors does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import mmap
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from codecria.core.model.config import ModelConfig
from codecria.core.native.packing import PackedKind
from codecria.data.errors import UserError
from codecria.data.files import refuse_lfs_pointer

from .layout import (
    OUTPUT,
    RotaryOrder,
    hugging_face_name,
    our_name,
    reordered,
    rotary_heads,
    shapes_of,
)

if TYPE_CHECKING:
    from torch import Tensor

# What safetensors calls a type -> everyone's name of it.
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
Box = tuple[slice, ...]  # a range of each dimension, with start and stop
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight as it lies on disk, its parts joined.

    Attributes:
        shape: of the whole.
        dtype: as everyone names it: "float32", "bfloat16", "Q8_0".
    """

    shape: tuple[int, ...]
    dtype: str


class Weights(ABC):
    """The weights of one checkpoint.

    Attributes:
        files: that hold them.
        stored: every weight of the checkpoint by our name; those that no Llama has, by their own.
        rotary_order: the order of the rows of wq and wk.
        mapped: whether `raw` gives tensors that lie in a file's mapping.
        readable: types that can be read; others need a scale that lies beside them.
    """

    files: Sequence[Path]
    stored: Mapping[str, Stored]
    rotary_order: RotaryOrder
    mapped: bool = False
    readable: frozenset[str] = FLOATS

    @abstractmethod
    def raw(self, ours: str) -> Tensor:
        """A weight in the order it is stored in, mapped from disk where the format allows.

        Raises:
            UserError: the file that holds it is damaged or incomplete.
        """

    def array(self, ours: str) -> npt.NDArray[Any]:
        """`raw` as a numpy array of the stored type, bfloat16 as the uint16 of its bits.

        It is mapped, and must not be written to, where the format allows.

        Raises:
            UserError: as `raw`.
        """
        import torch

        tensor = self.raw(ours)
        return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()

    def packed_kind(self, ours: str) -> PackedKind | None:  # noqa: ARG002
        """The type of a matrix that `packed` gives; None for any other weight."""
        return None

    def packed(self, ours: str) -> tuple[PackedKind, npt.NDArray[np.uint8]] | None:  # noqa: ARG002
        """The type and the bytes of a matrix that is stored packed; None for any other weight.

        Raises:
            UserError: as `raw`.
        """
        return None

    @abstractmethod
    def name(self, ours: str) -> str:
        """What the format calls a weight."""

    def read(
        self, ours: str, config: ModelConfig, *, rotary_order: RotaryOrder = "half_split"
    ) -> Tensor:
        """A weight with the rows of wq and wk in the order asked for, our model's by default.

        Raises:
            UserError: as `raw`.
        """
        return self.ordered(self.raw(ours), ours, config, rotary_order)

    def ordered(
        self, raw: Tensor, ours: str, config: ModelConfig, rotary_order: RotaryOrder
    ) -> Tensor:
        """What `raw` or `borrow` gives for a weight, with its rows in the order asked for."""
        heads = rotary_heads(ours, config)
        return reordered(raw, heads, source=self.rotary_order, target=rotary_order)

    @contextlib.contextmanager
    def borrow(self, ours: str) -> Iterator[Tensor]:
        """`raw` for the length of a block, after which its memory is given back.

        Raises:
            UserError: as `raw`.
        """
        tensor = self.raw(ours)
        yield tensor
        if self.mapped:
            forget([tensor])

    @contextlib.contextmanager
    def borrow_box(self, ours: str, box: Box) -> Iterator[Tensor]:
        """A box of `raw` for the length of a block; only that is read, where files are mapped.

        Raises:
            UserError: as `raw`.
        """
        with self.borrow(ours) as tensor:
            yield tensor[box]

    def read_box(self, ours: str, config: ModelConfig, box: Box, target: Tensor) -> None:
        """Copy a box of a weight, in our model's order of rows, to a tensor of the box's shape.

        Where the stored order differs, the whole heads are read in which the box has rows.

        Raises:
            UserError: as `raw`.
        """
        heads = rotary_heads(ours, config)
        if not heads or self.rotary_order == "half_split":
            with self.borrow_box(ours, box) as part:
                target.copy_(part)
            return
        rows, D = box[0], config.head_dim
        first, last = rows.start // D, -(-rows.stop // D)
        with self.borrow_box(ours, (slice(first * D, last * D), *box[1:])) as part:
            ordered = reordered(part, last - first, source=self.rotary_order, target="half_split")
            target.copy_(ordered[rows.start - first * D : rows.stop - first * D])

    def not_finite(self) -> list[str]:
        """Read every weight and name those that hold infinities or no numbers.

        Raises:
            UserError: as `raw`.
        """
        lines = []
        for ours in self.stored:
            with self.borrow(ours) as tensor:
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    lines.append(f"{self.name(ours)} holds values that are not finite")
        return lines

    def problems(self, config: ModelConfig) -> list[str]:
        """What is missing, unexpected or of the wrong shape, one line each; empty when sound."""
        expected = shapes_of(config)
        found = self.stored
        lines = [f"{self.name(ours)} is missing" for ours in expected if ours not in found]
        lines += [
            f"{self.name(ours)} is of type {found[ours].dtype}: quantised weights are not read"
            for ours in expected
            if ours in found and found[ours].dtype not in self.readable
        ]
        lines += [
            f"{self.name(ours)} is not part of the model"
            for ours in sorted(found.keys() - expected.keys())
            if not (config.tied and ours == OUTPUT)  # a copy of the tied matrix
        ]
        lines += [
            f"{self.name(ours)} has shape {found[ours].shape}, the model's is {shape}"
            for ours, shape in expected.items()
            if ours in found and found[ours].shape != shape
        ]
        return lines


class SafetensorsWeights(Weights):
    """Weights in safetensors files, under the Hugging Face names."""

    rotary_order: RotaryOrder = "half_split"
    mapped = True

    def __init__(self, placed: Mapping[str, Path]) -> None:
        """Open the files' headers.

        Args:
            placed: the file of each weight, by its Hugging Face name.

        Raises:
            UserError: a file is damaged, or lacks a weight that is placed in it.
        """
        self.files = sorted(set(placed.values()))
        for path in self.files:
            refuse_lfs_pointer(path)
        headers = {path: _header(path) for path in self.files}
        for name, path in sorted(placed.items()):
            if name not in headers[path]:
                raise _damaged(path, f"it has no {name}")
        self._placed = {
            ours: (name, path)
            for name, path in sorted(placed.items())
            if (ours := _our_name(name)) is not None
        }
        self.stored = {ours: headers[path][name] for ours, (name, path) in self._placed.items()}
        self._mapped_files: dict[Path, tuple[mmap.mmap, Mapping[str, int]]] = {}

    def name(self, ours: str) -> str:
        """The Hugging Face name."""
        return self._placed[ours][0] if ours in self._placed else hugging_face_name(ours)

    def raw(self, ours: str) -> Tensor:
        """A weight, mapped from its file.

        Raises:
            UserError: the file is damaged or incomplete.
        """
        name, path = self._placed[ours]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        return tensor

    def array(self, ours: str) -> npt.NDArray[Any]:
        """A weight, mapped from its file; see `Weights.array`.

        Raises:
            UserError: the file is damaged or incomplete.
        """
        return self.mapped_as(ours, self.stored[ours])

    def mapped_as(self, ours: str, stored: Stored) -> npt.NDArray[Any]:
        """The bytes of a weight, mapped, as an array of a shape and type that has as many.

        Raises:
            UserError: the file is damaged or incomplete.
        """
        name, path = self._placed[ours]
        try:
            if path not in self._mapped_files:
                self._mapped_files[path] = _map(path)
        except OSError as error:
            raise _damaged(path, error) from error
        memory, starts = self._mapped_files[path]
        dtype = np.dtype("uint16" if stored.dtype == "bfloat16" else stored.dtype)
        count = math.prod(stored.shape)
        # An empty weight may begin at the file's end, where frombuffer refuses to start.
        flat = np.frombuffer(memory, dtype, count, starts[name]) if count else np.empty(0, dtype)
        return flat.reshape(stored.shape)


def _map(path: Path) -> tuple[mmap.mmap, Mapping[str, int]]:
    """A file whose header `_header` has checked, mapped, and where each weight in it begins."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8 : 8 + length])
    header.pop("__metadata__", None)
    return memory, {name: 8 + length + part["data_offsets"][0] for name, part in header.items()}


def names_in(path: Path) -> list[str]:
    """The names of the weights in a safetensors file.

    Raises:
        UserError: it is damaged or incomplete.
    """
    refuse_lfs_pointer(path)
    return list(_header(path))


def _header(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="np") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                part = file.get_slice(name)
                kind = str(part.get_dtype())
                found[name] = Stored(tuple(part.get_shape()), SAFETENSORS_TYPES.get(kind, kind))
            return found
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> UserError:
    return UserError(
        f"{path} is damaged or incomplete: {error}", hint="download or convert the model again"
    )


def _our_name(name: str) -> str | None:
    """Our name of a Hugging Face one; None for old rotary tables, which hold nothing.

    What no Llama has keeps its own name.
    """
    if name.endswith("rotary_emb.inv_freq"):
        return None
    return our_name(name) or name


def forget(tensors: Iterable[Tensor]) -> None:
    """Give back the memory of tensors that are mapped from files and unchanged.

    Pages of a mapped file count as the process's memory until the kernel wants them; a walk through
    a large checkpoint would look as if it held the whole. Read again, they come from the disk. On
    other tensors it would erase them. Without Linux it does nothing.
    """
    for tensor in tensors:
        forget_memory(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def forget_memory(start: int, size: int) -> None:
    """`forget` of some bytes at an address."""
    if not sys.platform.startswith("linux"):
        return
    end = start + size
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of these bytes alone
    if end - first >= mmap.PAGESIZE:
        whole = (end - first) // mmap.PAGESIZE * mmap.PAGESIZE
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
