"""Converting weights as they are loaded: the bytes that numpy makes, many times as fast."""

from __future__ import annotations

from llvmlite import ir

from . import lanes
from .emit import BYTES, F32, FLOATS, I16, I32, SHORTS, Code, Program, Value
from .packing import GROUP_BYTES, PackedKind

Source = str  # numpy's name of an array's type; bfloat16 comes as uint16
SOURCES: dict[Source, int] = {"float32": 4, "uint16": 2, "float16": 2}  # and its bytes


def define(program: Program) -> None:
    """Write the functions that Python calls.

    round_bf16: (float32 weights, number, bfloat16 weights), in sixteens.
    pack_q8_TYPE and pack_q4_TYPE: (weights, columns, blocks, packed, scratch): the bytes of
    `packing.pack`. Weights are row after row, whole blocks of 16 rows, columns a multiple of 32.
    The plain level has no instruction that makes float16, and gets no such functions.
    """

    @program.define("round_bf16", arguments=3, public=True)
    def round_bf16(c: Code, weights: Value, number: Value, to: Value) -> None:
        with c.loop(0, number, 16) as i:
            bits = lanes.bf16_bits(c.load(weights + i * 4, FLOATS))
            c.store(to + i * 2, bits.narrow(SHORTS))

    if program.target.level == "plain":
        return
    for kind in GROUP_BYTES:
        for source in SOURCES:
            _define(program, kind, source)


def _define(program: Program, kind: PackedKind, source: Source) -> None:
    size, width = GROUP_BYTES[kind], SOURCES[source]

    @program.define(f"pack_{kind}_{source}", arguments=5, public=True)
    def pack(
        c: Code, weights: Value, columns: Value, blocks: Value, packed: Value, scratch: Value
    ) -> None:
        groups = columns >> 5
        with c.loop(0, blocks) as block, c.loop(0, 16) as row:
            line = weights + (block * 16 + row) * columns * width
            with c.loop(0, groups) as group:
                start = line + (group << 5) * width
                low, high = (_load(c, source, start + 16 * half * width) for half in range(2))
                to = packed + (block * groups + group) * size
                inverse = c.splat(_scale(c, kind, low, high, to + size - 32 + row * 2))
                _write(c, kind, [low * inverse, high * inverse], to + row * 4, scratch)


def _load(c: Code, source: Source, address: Value) -> Value:
    if source == "float32":
        return c.load(address, FLOATS)
    return lanes.load_bf16(c, address) if source == "uint16" else lanes.load_half(c, address)


def _scale(c: Code, kind: PackedKind, low: Value, high: Value, to: Value) -> Value:
    """Write a group's scale as float16; returns one over it, or zero."""
    most = lanes.peak_of(c, lanes.largest(c, low, high))
    zero = c.constant(FLOATS, 0.0)
    least = lanes.peak_of(c, lanes.largest(c, zero - low, zero - high))  # times -1
    if kind == "q8":
        scale = c.select(most > least, most, least) / 127.0
    else:
        scale = c.select(most >= least, most, c.constant(F32, 0.0) - least) / -8.0
    half = Value(c, c.builder.fptrunc(scale.ir, ir.HalfType()))
    c.store(to, half.cast(I16))
    stored = Value(c, c.builder.fpext(half.ir, F32))
    nothing = stored.equals(0.0)
    return c.select(nothing, c.constant(F32, 0.0), c.constant(F32, 1.0) / stored)


def _write(c: Code, kind: PackedKind, halves: list[Value], to: Value, scratch: Value) -> None:
    """Round 32 weights to codes, and put each four of them where the layout wants them."""
    offset, low, high = (128, -127.0, 127.0) if kind == "q8" else (8, -8.0, 7.0)
    codes = []
    for half in halves:
        rounded = lanes.rounded(c, half)
        kept = lanes.smallest(
            c, lanes.largest(c, rounded, c.constant(FLOATS, low)), c.constant(FLOATS, high)
        )
        codes.append(kept.to_int() + offset)
    if kind == "q4":
        codes = [codes[0] | (codes[1] << 4)]
    for place, part in enumerate(codes):
        c.store(scratch + 16 * place, part.narrow(BYTES))
    for four in range(4 * len(codes)):
        c.store(to + 64 * four, c.load(scratch + 4 * four, I32))
