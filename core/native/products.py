"""Products of weights and inputs: a few rows of a matrix with one, a few or many tokens.

Kinds of weights, and what the inputs of a token are prepared to (`prepare`):

    F32     rows as stored               float32
    BF16    rows as stored               float32, the even ones of 32 before the odd (a word of
                                         weights holds one of each); for prompts rounded to bfloat16
    Q8, Q4  packed (packing.py)          signed bytes in groups of 32, rounded, and for each group
                                         16 bytes: scale, and what the codes' offset adds for Q8
                                         and for Q4 (minus 128 or 8 times the sum of the bytes)

The result of a token and row is one fixed sequence of operations, however many tokens and threads
there are: alone, in a batch or in a draft, a token has the same scores to the last bit. In BF16
prompts are rounded and single tokens are not, which is the one difference.

Shapes: T tokens, G groups of 32 inputs. Sizes and distances are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import lanes
from .emit import BYTES, F32, FLOATS, I32, INTS, SHORTS, Code, Function, Program, Value
from .lanes import fma
from .packing import GROUP_BYTES

F32_KIND, BF16_KIND, Q8_KIND, Q4_KIND = range(4)
# How inputs are prepared: for kinds 0 and 1, for packed ones, and for BF16 with many tokens.
F32_INPUTS, BF16_INPUTS, PACKED_INPUTS, ROUNDED_INPUTS = range(4)
TOKENS = (8, 4, 2, 1)  # tokens that one pass over the weights serves
GROUP_RECORD = 16  # bytes of a group's scale and corrections
_AHEAD_PACKED = 4352  # bytes; measured best with several tokens, which hide less by themselves
_AHEAD_ROWS = 8192
PAIR_COLUMNS = 1024  # inputs whose transposed weights stay in the caches
PAIR_SCRATCH = 2 * 16 * PAIR_COLUMNS * 2  # bytes of two transposed blocks of rows


Pair = Callable[[Code, Value], tuple[Value, Value]]  # 32 weights at an address, in two vectors


@dataclass(frozen=True, slots=True)
class Products:
    """The functions that stages call.

    Attributes:
        prepare: (how, from, length, to, first, last): inputs [first, last) of one token, multiples
            of 32 floats of which `length` is the whole, for the products.
        product: (kind, how, weights, inputs, input distance, T, length, first block, last block,
            outputs, output distance, scratch): blocks of 16 rows with all tokens, as float32.
    """

    prepare: Function
    product: Function


def define(program: Program) -> Products:
    """Write the kernels of all kinds and numbers of tokens."""
    return Products(_prepare(program), _product(program))


def input_bytes(length: int) -> int:
    """Bytes that a token's prepared inputs take at most; `length` is a multiple of 32."""
    # 64 more, so that tokens do not all fall on the same lines of the cache.
    return 4 * length + 64


def _prepare(program: Program) -> Function:
    @program.define("prepare", arguments=6)
    def prepare(
        c: Code, how: Value, source: Value, length: Value, to: Value, first: Value, last: Value
    ) -> None:
        with c.when(how.equals(F32_INPUTS)), c.loop(first * 4, last * 4, 64) as i:
            c.store(to + i, c.load(source + i, FLOATS))
        with c.when(how.equals(BF16_INPUTS)), c.loop(first * 4, last * 4, 128) as i:
            low, high = c.load(source + i, FLOATS), c.load(source + i + 64, FLOATS)
            c.store(to + i, low.lanes(range(0, 32, 2), high))
            c.store(to + i + 64, low.lanes(range(1, 32, 2), high))
        with c.when(how.equals(ROUNDED_INPUTS)), c.loop(first, last, 16) as i:
            bits = lanes.bf16_bits(c.load(source + i * 4, FLOATS))
            c.store(to + i * 2, bits.narrow(SHORTS))
        with c.when(how.equals(PACKED_INPUTS)), c.loop(first, last, 32) as i:
            _quantize_group(c, source + i * 4, to + i, to + length + (i >> 5) * GROUP_RECORD)

    return prepare


def _quantize_group(c: Code, source: Value, codes: Value, record: Value) -> None:
    low, high = c.load(source, FLOATS), c.load(source + 64, FLOATS)
    peak = lanes.peak_of(c, lanes.largest(c, lanes.magnitude(c, low), lanes.magnitude(c, high)))
    zero = c.constant(F32, 0.0)
    inverse = c.splat(c.select(peak > 0.0, c.constant(F32, 127.0) / peak, zero))
    a, b = (lanes.rounded(c, x * inverse).to_int() for x in (low, high))
    c.store(codes, a.narrow(BYTES))
    c.store(codes + 16, b.narrow(BYTES))
    total = lanes.sum_of(a + b)
    c.store(record, peak * (1 / 127))
    c.store(record + 4, total * -128)
    c.store(record + 8, total * -8)


def _product(program: Program) -> Function:
    few = {
        (kind, tokens): writer(program, tokens)
        for tokens in TOKENS
        for kind, writer in (
            (F32_KIND, _rows_f32),
            (BF16_KIND, _rows_bf16),
            (Q8_KIND, _rows_q8),
            (Q4_KIND, _rows_q4),
        )
    }
    many = _rounded(program)

    @program.define("product", arguments=12)
    def product(
        c: Code,
        kind: Value,
        how: Value,
        weights: Value,
        inputs: Value,
        distance: Value,
        tokens: Value,
        length: Value,
        first: Value,
        last: Value,
        outputs: Value,
        output_distance: Value,
        scratch: Value,
    ) -> None:
        with c.either(how.equals(ROUNDED_INPUTS)) as (rounded, exact):
            with rounded:
                c.call(
                    many, weights, inputs, distance, tokens, length, first, last, outputs,
                    output_distance, scratch,
                )  # fmt: skip
            with exact:
                token = c.variable(c.number(0))
                for count in TOKENS:
                    # As many as there are of the largest, at most one of each other.
                    with c.loop(0, (tokens - token.value) // count):
                        t = token.value
                        here, there = inputs + t * distance, outputs + t * output_distance
                        for one in (F32_KIND, BF16_KIND, Q8_KIND, Q4_KIND):
                            with c.when(kind.equals(one)):
                                c.call(
                                    few[one, count], weights, here, distance, length, first,
                                    last, there, output_distance,
                                )  # fmt: skip
                        token.set(t + count)

    return product


def _rows_q8(program: Program, tokens: int) -> Function:
    return _rows_packed(program, tokens, bits=8)


def _rows_q4(program: Program, tokens: int) -> Function:
    return _rows_packed(program, tokens, bits=4)


def _rows_packed(program: Program, tokens: int, bits: int) -> Function:
    """Blocks of 16 rows of packed weights: no sums across lanes, one lane is one row."""
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
                correction = 4 if bits == 8 else 8
                totals = [c.load_splat(record + correction, I32) for record in records]
                for part in range(0, size - 32, 64):
                    if tokens > 1:
                        c.prefetch(w + part + _AHEAD_PACKED)
                    word = c.load(w + part, INTS)
                    if bits == 8:
                        places = [(word, part // 16)]
                    else:
                        mask = 0x0F0F0F0F
                        places = [(word & mask, part // 16), ((word >> 4) & mask, part // 16 + 16)]
                    for half, place in places:
                        for t in range(tokens):
                            x = c.load_splat(codes[t] + place, I32)
                            totals[t] = lanes.dot4(c, totals[t], half, x)
                scales = lanes.load_half(c, w + size - 32)
                for t in range(tokens):
                    scale = scales * c.load_splat(records[t], F32)
                    sums[t].set(fma(c, totals[t].to_float(), scale, sums[t].value))
            for t in range(tokens):
                c.store(outputs + output_distance * t + (block << 6), sums[t].value)

    return rows


def _rows_f32(program: Program, tokens: int) -> Function:
    def pair(c: Code, address: Value) -> tuple[Value, Value]:
        return c.load(address, FLOATS), c.load(address + 64, FLOATS)

    return _rows_stored(program, tokens, "f32", 4, pair)


def _rows_bf16(program: Program, tokens: int) -> Function:
    def pair(c: Code, address: Value) -> tuple[Value, Value]:
        return lanes.halves_of_pairs(c.load(address, INTS))

    return _rows_stored(program, tokens, "bf16", 2, pair)


def _rows_stored(program: Program, tokens: int, name: str, width: int, pair: Pair) -> Function:
    """Weights as stored, two rows at a time: one lane is every 16th input, summed at the end."""
    both = 2

    @program.define(f"rows_{name}_{tokens}", arguments=8)
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
        token = [inputs + distance * t for t in range(tokens)]
        with c.loop(first << 4, last << 4, both) as row:
            starts = [weights + (row + r) * length * width for r in range(both)]
            sums = [[c.variable(lanes.zeros(c)) for _ in token] for _ in starts]
            with c.loop(0, length, 32) as i:
                values = [
                    (c.load(x + i * 4, FLOATS), c.load(x + i * 4 + 64, FLOATS)) for x in token
                ]
                for r, start in enumerate(starts):
                    address = start + i * width
                    for line in range(0, 32 * width, 64):
                        c.prefetch(address + line + _AHEAD_ROWS)
                    low, high = pair(c, address)
                    for t, (x, y) in enumerate(values):
                        sums[r][t].set(fma(c, high, y, fma(c, low, x, sums[r][t].value)))
            for r in range(both):
                for t in range(tokens):
                    place = outputs + output_distance * t + ((row + r) << 2)
                    c.store(place, lanes.sum_of(sums[r][t].value))

    return rows


def _rounded(program: Program) -> Function:
    """BF16 with many tokens: rows are transposed, then one lane is one row of two blocks."""
    counts = (12, 4, 1) if program.target.wide else (4, 1)
    pairs = {count: _pairs(program, count) for count in counts}

    @program.define("rounded", arguments=10)
    def rounded(
        c: Code,
        weights: Value,
        inputs: Value,
        distance: Value,
        tokens: Value,
        length: Value,
        first: Value,
        last: Value,
        outputs: Value,
        output_distance: Value,
        scratch: Value,
    ) -> None:
        with c.loop(first, last, 2) as block, c.loop(0, length, PAIR_COLUMNS) as start:
            columns = c.smaller(length - start, PAIR_COLUMNS)
            two = last - block > 1
            blocks = c.select(two, c.number(2), c.number(1))
            with c.loop(0, blocks) as which, c.loop(0, columns, 32) as i:
                source = weights + ((block + which) * length * 16 + start + i) * 2
                columns_of = lanes.transpose(
                    [c.load(source + length * 2 * r, INTS) for r in range(16)]
                )
                for pair, column in enumerate(columns_of):
                    c.store(scratch + i * 64 + which * 64 + pair * 128, column)
            token = c.variable(c.number(0))
            for count in counts:
                with c.loop(0, (tokens - token.value) // count):
                    t = token.value
                    c.call(
                        pairs[count], scratch, inputs + t * distance + start * 2, distance,
                        columns >> 1, outputs + t * output_distance + (block << 6),
                        output_distance, blocks, start,
                    )  # fmt: skip
                    token.set(t + count)

    return rounded


def _pairs(program: Program, tokens: int) -> Function:
    """Two transposed blocks of rows with some tokens, added to the columns before."""

    @program.define(f"pairs_{tokens}", arguments=8)
    def pairs(
        c: Code,
        weights: Value,
        inputs: Value,
        distance: Value,
        count: Value,
        outputs: Value,
        output_distance: Value,
        blocks: Value,
        start: Value,
    ) -> None:
        places = [outputs + output_distance * t for t in range(tokens)]
        sums = [[c.variable(lanes.zeros(c)) for _ in places] for _ in range(2)]
        with c.when(start > 0):
            for t, place in enumerate(places):
                sums[0][t].set(c.load(place, FLOATS))
            with c.when(blocks > 1):
                for t, place in enumerate(places):
                    sums[1][t].set(c.load(place + 64, FLOATS))
        with c.loop(0, count) as i:
            words = [c.load(weights + i * 128 + 64 * r, INTS) for r in range(2)]
            for t in range(tokens):
                x = c.load_splat(inputs + distance * t + i * 4, I32)
                for r in range(2):
                    sums[r][t].set(lanes.dot_bf16(c, sums[r][t].value, words[r], x))
        for t, place in enumerate(places):
            c.store(place, sums[0][t].value)
        with c.when(blocks > 1):
            for t, place in enumerate(places):
                c.store(place + 64, sums[1][t].value)

    return pairs
