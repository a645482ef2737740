"""Looking tokens up in the embedding, as exact as it is stored.

Rows are float32, bfloat16 or float16, one after another and of a width that 32 divides, or packed
(packing.py).
"""

from __future__ import annotations

from . import lanes
from .emit import F32, FLOATS, I8, I32, I64, Code, Program, Value
from .fields import Fields
from .packing import GROUP_BYTES

F32_ROWS, BF16_ROWS, Q8_ROWS, Q4_ROWS, F16_ROWS = range(5)  # the first four as in products.py
_ROW_BYTES = {F32_ROWS: 4, BF16_ROWS: 2, F16_ROWS: 2}  # of a number


def define(program: Program) -> None:
    """Write the function that Python calls.

    embed(record): the rows of the step's T tokens to their lines in `x`, (T, width) float32.
    """

    @program.define("embed", arguments=1, public=True)
    def embed(c: Code, record: Value) -> None:
        f = Fields(c, record)
        width, rows, scratch = f.width, f.embedding, f.scratch
        with c.loop(0, f.tokens) as token:
            row = c.load(f.token_ids + (token << 3), I64)
            to = f.x + token * width * 4
            for kind, size in _ROW_BYTES.items():
                with c.when(f.embedding_kind.equals(kind)), c.loop(0, width, 16) as i:
                    place = rows + (row * width + i) * size
                    c.store(to + i * 4, _load(c, kind, place))
            for kind in (Q8_ROWS, Q4_ROWS):
                with c.when(f.embedding_kind.equals(kind)):
                    _unpack_row(c, kind, rows, row, width >> 5, to, scratch)


def _load(c: Code, kind: int, address: Value) -> Value:
    """16 numbers of a row."""
    if kind == F32_ROWS:
        return c.load(address, FLOATS)
    return lanes.load_bf16(c, address) if kind == BF16_ROWS else lanes.load_half(c, address)


def _unpack_row(
    c: Code, kind: int, packed: Value, row: Value, groups: Value, to: Value, scratch: Value
) -> None:
    """A row of a packed matrix, 32 numbers a group: codes times their scales.

    Args:
        c: the function being written.
        kind: Q8_ROWS or Q4_ROWS.
        packed: address of the matrix.
        row: its number.
        groups: of a row.
        to: address of the float32 result.
        scratch: address of 16 floats.
    """
    size = GROUP_BYTES["q8" if kind == Q8_ROWS else "q4"]
    block, lane = row >> 4, row & 15
    with c.loop(0, groups) as group:
        w = packed + (block * groups + group) * size
        c.store(scratch, lanes.load_half(c, w + size - 32))
        scale = c.load(scratch + lane * 4, F32)
        with c.loop(0, 32) as i:
            four = i >> 2 if kind == Q8_ROWS else (i >> 2) & 3
            code = c.load(w + four * 64 + lane * 4 + (i & 3), I8).widen(I32, signed=False)
            if kind == Q4_ROWS:
                code = c.select(i < 16, code & 15, code >> 4)
            offset = 128 if kind == Q8_ROWS else 8
            c.store(to + (group * 32 + i) * 4, (code - offset).to_float() * scale)
