"""Folders of packed weights: the Hugging Face layout with matrices in 8 or 4 bits a weight.

    config.json         quantization_config names the method "codecria", the layout and the types
    model.safetensors   a matrix is (B,G,S) bytes of core/native/packing.py under its usual name;
                        norms are float32

The CPU kernels read the bytes as they lie, mapped; everything else reads `raw`, which decodes them.
Other tools refuse such a folder by its quantisation method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codecria.core.model.config import ModelConfig
from codecria.core.native.packing import (
    GROUP,
    GROUP_BYTES,
    LAYOUT,
    PackedKind,
    pack,
    packed_shape,
    unpack,
)
from codecria.data.errors import UserError

from .layout import shapes_of
from .weights import FLOATS, SafetensorsWeights, Stored

if TYPE_CHECKING:
    from torch import Tensor

METHOD = "codecria"
CONFIG_KEY = "quantization_config"
_KINDS: Mapping[int, PackedKind] = {size: kind for kind, size in GROUP_BYTES.items()}


def quantisation_of(kinds: Mapping[str, PackedKind]) -> dict[str, Any]:
    """The object of config.json, from the types of all matrices by name."""
    return {
        "quant_method": METHOD,
        "layout": LAYOUT,
        "group_size": GROUP,
        "types": sorted(set(kinds.values())),
    }


def is_packed(raw: Mapping[str, Any], *, where: str) -> bool:
    """Whether a config.json is of a folder of packed weights.

    Raises:
        UserError: it is, in a layout that this version cannot read.
    """
    found = raw.get(CONFIG_KEY)
    if not isinstance(found, Mapping) or found.get("quant_method") != METHOD:
        return False
    if found.get("layout") != LAYOUT:
        raise UserError(
            f"{where}: the weights are packed in layout {found.get('layout')!r}, this version of"
            f" codecria reads layout {LAYOUT}",
            hint="convert the model that they were packed from again",
        )
    return True


class PackedWeights(SafetensorsWeights):
    """Weights in a folder whose matrices are packed."""

    mapped = False  # what `raw` gives is decoded
    readable = FLOATS | set(GROUP_BYTES)

    def __init__(self, placed: Mapping[str, Path], config: ModelConfig) -> None:
        """Open the files' headers.

        Args:
            placed: the file of each weight, by its Hugging Face name.
            config: of the model: the shapes of the matrices before they were padded.

        Raises:
            UserError: as `SafetensorsWeights`.
        """
        super().__init__(placed)
        shapes = shapes_of(config)
        self._kinds: dict[str, PackedKind] = {}
        for ours, part in list(self.stored.items()):
            kind = _KINDS.get(part.shape[-1]) if len(part.shape) == 3 else None
            shape = shapes.get(ours)
            if kind is None or shape is None or part.dtype != "uint8":
                continue
            # Another shape than the model's is shown as stored, so that it is a problem.
            if packed_shape(kind, *shape) == part.shape:
                self._kinds[ours] = kind
        self._bytes = self.stored
        self.stored = {
            ours: Stored(shapes[ours], self._kinds[ours]) if ours in self._kinds else part
            for ours, part in self._bytes.items()
        }

    def packed_kind(self, ours: str) -> PackedKind | None:
        """The type of a packed matrix."""
        return self._kinds.get(ours)

    def packed(self, ours: str) -> tuple[PackedKind, npt.NDArray[np.uint8]] | None:
        """The type and the (B,G,S) bytes of a matrix, mapped; None for a weight in full precision.

        Raises:
            UserError: the file is damaged or incomplete.
        """
        if ours not in self._kinds:
            return None
        return self._kinds[ours], self.mapped_as(ours, self._bytes[ours])

    def array(self, ours: str) -> npt.NDArray[Any]:
        """A weight; what is packed comes as float32.

        Raises:
            UserError: the file is damaged or incomplete.
        """
        found = self.packed(ours)
        if found is None:
            return super().array(ours)
        rows, columns = self.stored[ours].shape
        return unpack(*found, rows, columns)

    def raw(self, ours: str) -> Tensor:
        """As `array`.

        Raises:
            UserError: the file is damaged or incomplete.
        """
        import torch

        return super().raw(ours) if ours not in self._kinds else torch.from_numpy(self.array(ours))


def pack_tensor(
    kind: PackedKind, weight: Tensor, importance: npt.NDArray[np.float32] | None
) -> Tensor:
    """(N,C) -> (B,G,S) bytes; importance (C,) as `packing.quantize` takes it."""
    import torch

    values = weight.contiguous()
    if weight.dtype == torch.bfloat16:
        return torch.from_numpy(pack(kind, values.view(torch.uint16).numpy(), importance))
    return torch.from_numpy(pack(kind, values.float().numpy(), importance))
