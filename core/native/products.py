"""Products of weights and inputs: a few rows of a matrix with one, a few or many tokens.

Kinds of weights, and what the inputs of a token are prepared to (`prepare`):

    F32     rows as stored               float32
    BF16    rows as stored               float32, the even ones of 32 before the odd (a word of
                                         weights holds one of each); for prompts in order, and
                                         rounded to bfloat16 where vectors are wide
    Q8, Q4  packed (packing.py)          signed bytes in groups of 32, rounded, and for each group
                                         16 bytes: scale, and what the codes' offset adds for Q8
                                         and for Q4 (minus 128 or 8 times the sum of the bytes)

The result of a token and row is one fixed sequence of operations, however many tokens and threads
there are: alone, in a batch or in a draft, a token has the same scores to the last bit. In BF16
prompts have kernels of their own (stored_products.py), which is the one difference.

Shapes: T tokens, G groups of 32 inputs. Sizes and distances are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import lanes, packed_products, stored_products
from .emit import BYTES, F32, FLOATS, SHORTS, Code, Function, Program, Value
from .packed_products import GROUP_RECORD
from .packing import GROUP_BYTES

F32_KIND, BF16_KIND, Q8_KIND, Q4_KIND = range(4)
# How inputs are prepared: for kinds 0 and 1, for packed ones, and for BF16 with many tokens.
F32_INPUTS, BF16_INPUTS, PACKED_INPUTS, ROUNDED_INPUTS = range(4)
# Bytes of weights that all tokens use before the next ones are read: they stay in the second cache,
# which is 1 MB or more beside wide vectors, else often 256 KB.
_KEPT_BYTES = {True: 1024 * 1024, False: 160 * 1024}


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
            vector = c.load(source + i * 4, FLOATS)
            if program.target.wide:
                c.store(to + i * 2, lanes.bf16_bits(vector).narrow(SHORTS))
            else:
                c.store(to + i * 4, vector)
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
    packed, stored = packed_products.tiles(program.target), stored_products.tiles(program.target)
    few = {
        F32_KIND: {n: stored_products.define(program, n, "f32") for n in stored},
        BF16_KIND: {n: stored_products.define(program, n, "bf16") for n in stored},
        Q8_KIND: {n: packed_products.define(program, n, 8) for n in packed},
        Q4_KIND: {n: packed_products.define(program, n, 4) for n in packed},
    }
    many = stored_products.define_prompt(program)

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
        with c.either(how.equals(ROUNDED_INPUTS)) as (prompt, exact):
            with prompt:
                c.call(
                    many, weights, inputs, distance, tokens, length, first, last, outputs,
                    output_distance, scratch,
                )  # fmt: skip
            with exact:
                for one, kernels in few.items():
                    with c.when(kind.equals(one)):
                        _by_parts(
                            c, kernels, _block_bytes(one, length), weights, inputs, distance,
                            tokens, length, first, last, outputs, output_distance,
                        )  # fmt: skip

    return product


def _block_bytes(kind: int, length: Value) -> Value:
    """Bytes of a block of 16 rows."""
    if kind in (F32_KIND, BF16_KIND):
        return length * (64 if kind == F32_KIND else 32)
    return (length >> 5) * GROUP_BYTES["q8" if kind == Q8_KIND else "q4"]


def _by_parts(
    c: Code,
    kernels: dict[int, Function],
    block_bytes: Value,
    weights: Value,
    inputs: Value,
    distance: Value,
    tokens: Value,
    length: Value,
    first: Value,
    last: Value,
    outputs: Value,
    output_distance: Value,
) -> None:
    """Blocks of rows that the cache keeps, each with all tokens, some at a time."""
    part = c.larger(c.number(_KEPT_BYTES[c.program.target.wide]) // block_bytes, 1)
    with c.loop(first, last, part) as low:
        high = c.smaller(low + part, last)
        token = c.variable(c.number(0))
        for count, kernel in kernels.items():
            # As many as there are of the largest, few of each other.
            with c.loop(0, (tokens - token.value) // count):
                t = token.value
                c.call(
                    kernel, weights, inputs + t * distance, distance, length, low, high,
                    outputs + t * output_distance, output_distance,
                )  # fmt: skip
                token.set(t + count)
