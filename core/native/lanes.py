"""Arithmetic on vectors of 16 lanes: what kernels compute with, for every level of CPU.

All results are the same for every caller and order of threads: sums of lanes are taken in one fixed
order, and nothing depends on how many tokens stand side by side.
"""

from __future__ import annotations

from llvmlite import ir

from .cpu import Target
from .emit import (
    BYTES,
    CODES,
    F32,
    FLOATS,
    I8,
    I16,
    I32,
    INTS,
    LANES,
    PAIRS,
    SHORTS,
    Code,
    Value,
)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BF16_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def zeros(c: Code) -> Value:
    """16 zeros."""
    return c.constant(FLOATS, 0.0)


def fma(c: Code, x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once where the CPU can."""
    kind = "v16f32" if x.type == FLOATS else "f32"
    return c.intrinsic(f"llvm.fmuladd.{kind}", x.type, x, y, z)


def largest(c: Code, x: Value, y: Value) -> Value:
    """The larger of two floats, lane by lane; y where one is NaN."""
    return c.select(x > y, x, y)


def smallest(c: Code, x: Value, y: Value) -> Value:
    """The smaller of two floats, lane by lane; y where one is NaN."""
    return c.select(x < y, x, y)


def magnitude(c: Code, x: Value) -> Value:
    """Absolute values."""
    return c.intrinsic("llvm.fabs.v16f32", FLOATS, x)


def rounded(c: Code, x: Value) -> Value:
    """The nearest whole numbers, ties to even, of magnitudes below 2^22."""
    shift = c.constant(FLOATS, 12582912.0)  # 1.5 * 2^23: what is below one falls off the end
    return (x + shift) - shift


def sum_of(x: Value) -> Value:
    """The sum of 16 lanes as a scalar, by halves."""
    for width in (8, 4, 2, 1):
        x = x.lanes(range(width)) + x.lanes(range(width, 2 * width))
    return x.lane(0)


def peak_of(c: Code, x: Value) -> Value:
    """The largest of 16 floats as a scalar."""
    for width in (8, 4, 2, 1):
        x = largest(c, x.lanes(range(width)), x.lanes(range(width, 2 * width)))
    return x.lane(0)


def exp(c: Code, x: Value) -> Value:
    """e^x within 2 units of the last place; exactly zero below -87.

    Cephes' expf: x = n ln 2 + r, a polynomial of r, and n into the exponent.
    """
    below = x < -87.0
    x = smallest(c, largest(c, x, c.constant(FLOATS, -87.0)), c.constant(FLOATS, 88.0))
    n = rounded(c, x * 1.4426950408889634)
    r = fma(c, n, c.constant(FLOATS, -0.693145751953125), x)
    r = fma(c, n, c.constant(FLOATS, -1.428606765330187e-06), r)
    p = c.constant(FLOATS, 1.9875691500e-4)
    for coefficient in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        p = fma(c, p, r, c.constant(FLOATS, coefficient))
    p = fma(c, p * r, r, r) + 1.0
    power = ((n.to_int() + 127) << 23).cast(FLOATS)
    return c.select(below, zeros(c), p * power)


def silu(c: Code, x: Value) -> Value:
    """x / (1 + e^-x)."""
    return x / (exp(c, c.constant(FLOATS, 0.0) - x) + 1.0)


def square_root(c: Code, x: Value) -> Value:
    """Of a scalar."""
    return c.intrinsic("llvm.sqrt.f32", F32, x)


def load_bf16(c: Code, address: Value) -> Value:
    """16 bfloat16 numbers."""
    return (c.load(address, SHORTS).widen(INTS, signed=False) << 16).cast(FLOATS)


def load_bf16_apart(c: Code, address: Value) -> Value:
    """16 bfloat16 numbers, the even ones before the odd: quicker where vectors are not wide."""
    pairs = c.load(address, ir.VectorType(I32, LANES // 2))
    even, odd = ((pairs << 16), (pairs & -65536))
    return even.lanes(range(LANES), odd).cast(FLOATS)


def rejoined(x: Value) -> Value:
    """16 lanes in order, of which the even ones stood before the odd."""
    return x.lanes([place // 2 + LANES // 2 * (place % 2) for place in range(LANES)])


def load_int8(c: Code, address: Value) -> Value:
    """16 signed bytes as floats."""
    return c.load(address, BYTES).widen(INTS, signed=True).to_float()


def load_half(c: Code, address: Value) -> Value:
    """16 finite float16 numbers."""
    if c.program.target.level != "plain":
        halves = c.load(address, ir.VectorType(ir.HalfType(), LANES))
        return Value(c, c.builder.fpext(halves.ir, FLOATS))
    bits = c.load(address, SHORTS).widen(INTS, signed=False)
    # Exponent and mantissa at float32's place, 112 powers of two too small; subnormals come right.
    size = ((bits & 0x7FFF) << 13).cast(FLOATS) * 2.0**112
    return (size.cast(INTS) | ((bits & 0x8000) << 16)).cast(FLOATS)


def bf16_bits(x: Value) -> Value:
    """Finite floats rounded to bfloat16, ties to even, in the low halves of 16 integers."""
    bits = x.cast(INTS)
    return (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16


def halves_of_pairs(x: Value) -> tuple[Value, Value]:
    """16 pairs of bfloat16 -> the first of each pair, the second of each, as floats."""
    return (x << 16).cast(FLOATS), (x & -65536).cast(FLOATS)


def signed_only(target: Target) -> bool:
    """Whether `dot4` takes no byte above 127."""
    return target.level == "neon-dot"


def dot4(c: Code, total: Value, unsigned: Value, signed: Value) -> Value:
    """total + the products of 4 unsigned and 4 signed bytes, in each of 16 lanes.

    Where `signed_only` says so, the unsigned ones are taken as signed too: none may exceed 127.
    """
    target = c.program.target
    if target.level.startswith("avx512"):
        return c.intrinsic("llvm.x86.avx512.vpdpbusd.512", INTS, total, unsigned, signed)
    if target.level == "avx2-vnni":
        # The name also of AVX-VNNI's.
        return _by_halves(c, "llvm.x86.avx512.vpdpbusd.256", I32, 8, total, unsigned, signed)
    if target.level == "neon-dot":
        return _sdot(c, total, unsigned.cast(CODES), signed.cast(CODES))
    # Even and odd bytes as 16-bit numbers: no product or sum of two can overflow 32 bits.
    u, s = unsigned.cast(PAIRS), signed.cast(PAIRS)
    even_u, odd_u = u & 255, u >> 8
    even_s, odd_s = _sign_extended(c, s << 8), _sign_extended(c, s)
    return total + _dot2(even_u, even_s) + _dot2(odd_u, odd_s)


def _sdot(c: Code, total: Value, x: Value, y: Value) -> Value:
    """total + the products of 4 signed bytes (AArch64), in quarters of 4 lanes."""
    kind, parts = ir.VectorType(I32, 4), list[Value]()
    for first in range(0, LANES, 4):
        some = [v.lanes(range(4 * first, 4 * first + 16)) for v in (x, y)]
        before = total.lanes(range(first, first + 4))
        parts.append(c.intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", kind, before, *some))
    low, high = (parts[n].lanes(range(8), parts[n + 1]) for n in (0, 2))
    return low.lanes(range(LANES), high)


def _sign_extended(c: Code, x: Value) -> Value:
    """The high bytes of 32 halves, signed."""
    return Value(c, c.builder.ashr(x.ir, c.constant(PAIRS, 8).ir))


def _dot2(x: Value, y: Value) -> Value:
    """The products of 32 pairs of 16-bit numbers, two added in each of 16 lanes."""
    wide = ir.VectorType(I32, 32)
    products = x.widen(wide, signed=True) * y.widen(wide, signed=True)
    return products.lanes(range(0, 32, 2)) + products.lanes(range(1, 32, 2))


def _by_halves(c: Code, name: str, element: object, count: int, *vectors: Value) -> Value:
    """An operation of AVX2 on each half of some vectors; it gives `count` elements."""
    kind, parts = ir.VectorType(element, count), []
    for half in range(2):
        some = (v.lanes(range(half * v.count // 2, (half + 1) * v.count // 2)) for v in vectors)
        parts.append(c.intrinsic(name, kind, *some))
    return parts[0].lanes(range(2 * count), parts[1])


def signed_codes(word: Value) -> Value:
    """16 times 4 codes, which are stored plus 128, as signed bytes."""
    return word.cast(CODES) + -128


def byte_sizes(c: Code, x: Value) -> Value:
    """Absolute values of signed bytes, unsigned: that of -128 is 128."""
    return c.intrinsic("llvm.abs.v64i8", CODES, x, c.constant(ir.IntType(1), 0))


def with_signs(c: Code, x: Value, by: Value) -> Value:
    """Signed bytes x, negated where those of `by` are negative, zero where they are zero (AVX2)."""
    return _by_halves(c, "llvm.x86.avx2.psign.b", I8, 32, x.cast(CODES), by)


def dot2_bytes(c: Code, unsigned: Value, signed: Value) -> Value:
    """Products of bytes, two added in each of 32 lanes of 16 bits, which must hold them (AVX2)."""
    x, y = unsigned.cast(CODES), signed.cast(CODES)
    return _by_halves(c, "llvm.x86.avx2.pmadd.ub.sw", I16, 16, x, y)


def sum_pairs(c: Code, x: Value) -> Value:
    """32 lanes of 16 bits added in pairs, in 16 lanes of 32 bits (AVX2)."""
    return _by_halves(c, "llvm.x86.avx2.pmadd.wd", I32, 8, x, c.constant(PAIRS, 1))


def dot_bf16(c: Code, total: Value, x: Value, y: Value) -> Value:
    """total + the products of 2 bfloat16 numbers, in each of 16 lanes."""
    if c.program.target.level == "avx512-bf16":
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        return c.intrinsic(name, FLOATS, total, x.cast(_BF16_PAIRS), y.cast(_BF16_PAIRS))
    (x0, x1), (y0, y1) = halves_of_pairs(x), halves_of_pairs(y)
    return fma(c, x1, y1, fma(c, x0, y0, total))


def transpose(rows: list[Value]) -> list[Value]:
    """16 vectors of 16 integers with rows and columns exchanged."""
    rows = list(rows)
    for step in (8, 4, 2, 1):
        low = [16 + lane - step if lane & step else lane for lane in range(16)]
        high = [16 + lane if lane & step else lane + step for lane in range(16)]
        for i in range(16):
            if not i & step:
                x, y = rows[i], rows[i + step]
                rows[i], rows[i + step] = x.lanes(low, y), x.lanes(high, y)
    return rows
