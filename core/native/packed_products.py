"""Rows of packed weights with a few tokens: blocks of 16 rows, one lane is one row.

A group of 32 inputs gives whole numbers, which are exact, then one product with the scales. How the
whole numbers come about depends on the CPU's level:

    VNNI    unsigned codes with signed inputs, four products a lane; what the codes' offset adds
            was computed with the inputs (products.py) and is where the sum starts
    neon    like VNNI, but both sides are signed: q8 without its offset, and nothing to correct
    avx2    only pairs of products, in 16 bits: q8 takes |w| and the input with w's sign, at most
            2 * 128 * 127 a pair; q4's are so small, 2 * 15 * 127, that 16 bits hold a whole group
    plain   like VNNI, by multiplications of wider numbers
"""

from __future__ import annotations

from . import lanes
from .cpu import Target
from .emit import F32, I32, INTS, PAIRS, Code, Function, Program, Value
from .lanes import fma
from .packing import GROUP_BYTES

GROUP_RECORD = 16  # bytes of a group's scale and corrections, see products.py
_Q8_CORRECTION, _Q4_CORRECTION = 4, 8  # places of the corrections in them
# Bytes, measured best on Zen 4 and 5. One token reads the weights once: lines that are marked so
# leave the cache that cores share to what is read again, a seventh less time at 110m (Zen 4).
_AHEAD = 4352
_NIBBLES = 0x0F0F0F0F


def tiles(target: Target) -> tuple[int, ...]:
    """Tokens that one pass over the weights serves: as many as there are registers for sums."""
    if target.wide:
        return 8, 4, 2, 1
    return (2, 1) if target.level == "plain" else (4, 2, 1)


def define(program: Program, tokens: int, bits: int) -> Function:
    """Write the kernel of a number of tokens and of bits.

    Its arguments: weights, inputs, their distance, length, first and last block, outputs, their
    distance.
    """
    size = GROUP_BYTES["q8" if bits == 8 else "q4"]

    @program.define(f"rows_q{bits}_{tokens}", arguments=8)
    def rows(
        c: Code,
        weights: Value,
        inputs: Value,
        distance: Value,
        length: Value,
        first: Value,
        last: Value,
        outputs: Value,
        output_distance: Value,
    ) -> None:
        groups = length >> 5
        token = [inputs + distance * t for t in range(tokens)]
        with c.loop(first, last) as block:
            start = weights + block * groups * size
            sums = [c.variable(lanes.zeros(c)) for _ in range(tokens)]
            with c.loop(0, groups) as group:
                w = start + group * size
                codes = [x + (group << 5) for x in token]
                records = [x + length + group * GROUP_RECORD for x in token]
                for line in range(0, size - 32, 64):
                    c.prefetch(w + line + _AHEAD, "once" if tokens == 1 else "all")
                totals = _totals(c, bits, w, codes, records)
                scales = lanes.load_half(c, w + size - 32)
                for t in range(tokens):
                    scale = scales * c.load_splat(records[t], F32)
                    sums[t].set(fma(c, totals[t].to_float(), scale, sums[t].value))
            for t in range(tokens):
                c.store(outputs + output_distance * t + (block << 6), sums[t].value)

    return rows


def _totals(c: Code, bits: int, w: Value, codes: list[Value], records: list[Value]) -> list[Value]:
    """The sums of a group's products: a whole number for each of 16 rows, for each token.

    Args:
        c: the function being written.
        bits: 8 or 4.
        w: address of the group's codes.
        codes: addresses of the inputs.
        records: addresses of their corrections.
    """
    if c.program.target.level == "avx2":
        return _signed_totals(c, w, codes) if bits == 8 else _small_totals(c, w, codes, records)
    correction = _Q8_CORRECTION if bits == 8 else _Q4_CORRECTION
    shifted = bits == 8 and lanes.signed_only(c.program.target)
    totals = [
        c.constant(INTS, 0) if shifted else c.load_splat(record + correction, I32)
        for record in records
    ]
    for place in range(0, 512 if bits == 8 else 256, 64):
        word = c.load(w + place, INTS)
        if shifted:
            word = lanes.signed_codes(word).cast(INTS)
        halves = [(0, word)] if bits == 8 else [(0, word & _NIBBLES), (16, (word >> 4) & _NIBBLES)]
        for half, part in halves:
            for t, code in enumerate(codes):
                x = c.load_splat(code + (place // 16 + half), I32)
                totals[t] = lanes.dot4(c, totals[t], part, x)
    return totals


def _signed_totals(c: Code, w: Value, codes: list[Value]) -> list[Value]:
    """q8 with AVX2: signs go to the inputs, as one side of the instruction is unsigned.

    A loop, as LLVM keeps too much in registers where all of a group is written out.
    """
    totals = [c.variable(c.constant(INTS, 0)) for _ in codes]
    with c.loop(0, 512, 64) as place:
        signed = lanes.signed_codes(c.load(w + place, INTS))
        sizes = lanes.byte_sizes(c, signed)
        for total, code in zip(totals, codes, strict=True):
            x = lanes.with_signs(c, c.load_splat(code + (place >> 4), I32), signed)
            total.set(total.value + lanes.sum_pairs(c, lanes.dot2_bytes(c, sizes, x)))
    return [total.value for total in totals]


def _small_totals(c: Code, w: Value, codes: list[Value], records: list[Value]) -> list[Value]:
    """q4 with AVX2: a group is added up in 16 bits."""
    sums = [c.variable(c.constant(PAIRS, 0)) for _ in codes]
    with c.loop(0, 256, 64) as place:
        word = c.load(w + place, INTS)
        low, high = word & _NIBBLES, (word >> 4) & _NIBBLES
        for total, code in zip(sums, codes, strict=True):
            for half, part in ((0, low), (16, high)):
                x = c.load_splat(code + (place >> 4) + half, I32)
                total.set(total.value + lanes.dot2_bytes(c, part, x))
    return [
        lanes.sum_pairs(c, total.value) + c.load_splat(record + _Q4_CORRECTION, I32)
        for total, record in zip(sums, records, strict=True)
    ]
