"""Reading the record inside a kernel: `Fields(c, record).dim`."""

from __future__ import annotations

from dataclasses import dataclass

from .emit import I64, Code, Value
from .record import LAYER_FIELDS, OFFSETS


@dataclass(frozen=True, slots=True)
class Fields:
    """A record's words by name, read where they are named.

    Attributes:
        code: the function being written.
        address: the record's.
    """

    code: Code
    address: Value

    def __getattr__(self, name: str) -> Value:
        if name not in OFFSETS:
            raise AttributeError(name)
        return self.code.load(self.address + OFFSETS[name], I64)


@dataclass(frozen=True, slots=True)
class LayerFields:
    """A layer's words by name.

    Attributes:
        code: the function being written.
        address: of the layer's line in the table.
    """

    code: Code
    address: Value

    def __getattr__(self, name: str) -> Value:
        if name not in LAYER_FIELDS:
            raise AttributeError(name)
        return self.code.load(self.address + 8 * LAYER_FIELDS.index(name), I64)
