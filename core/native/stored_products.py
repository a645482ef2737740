"""Rows of float32 and bfloat16 weights as they are stored, with a few tokens or a whole prompt.

A few tokens: a row with tokens, each with two vectors of sums, of which a lane is every 32nd input.
The result of a row and token is the same in every tile.

Prompts of bfloat16 (`define_prompt`): rows are transposed first, then one lane is one row.

    wide vectors    two blocks of rows in bfloat16 with inputs rounded to it, a pair of inputs at a
                    time, as the dot product of AVX-512 BF16 takes them
    others          float32 in panels of 256 inputs, which stay in the second cache, with six
                    tokens of float32, which stay in the first

    panel:  block | input | 16 rows
"""

from __future__ import annotations

from collections.abc import Callable

from . import lanes
from .cpu import Target
from .emit import F32, FLOATS, I32, INTS, Code, Function, Program, Value
from .lanes import fma

# Bytes that are fetched ahead for several tokens. With one the CPU itself does better (Zen 4), but
# for wide vectors of bfloat16: the second cache is filled ahead, for a tenth to a sixth less time.
_AHEAD = 8192
PAIR_COLUMNS = 1024  # inputs whose transposed weights stay in the caches
PANEL_COLUMNS, PANEL_BLOCKS = 256, 4  # of a panel
_UNROLLED = 4  # inputs written out in a panel's loop

Pair = Callable[[Code, Value], tuple[Value, Value]]  # 32 weights at an address, in two vectors


def tiles(target: Target) -> tuple[int, ...]:
    """Tokens that one pass over the weights serves: as many as there are registers for sums."""
    if target.wide:
        return 8, 4, 2, 1
    return (2, 1) if target.level == "plain" else (3, 2, 1)


def define(program: Program, tokens: int, name: str) -> Function:
    """Write the kernel of a number of tokens for weights of type "f32" or "bf16".

    Its arguments: weights, inputs, their distance, length, first and last block, outputs, their
    distance. Inputs are prepared as products.py says.
    """
    pair, width = (_pair_f32, 4) if name == "f32" else (_pair_bf16, 2)
    fetches = tokens > 1 or (name == "bf16" and program.target.wide)

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
        # One row at a time: beside a second row's, a CPU reads half as fast ahead (Zen 4).
        with c.loop(first << 4, last << 4) as row:
            start = weights + row * length * width
            sums = [[c.variable(lanes.zeros(c)) for _ in range(2)] for _ in token]
            with c.loop(0, length, 32) as i:
                address = start + i * width
                for line in range(0, 32 * width if fetches else 0, 64):
                    c.prefetch(address + line + _AHEAD, "second" if tokens == 1 else "all")
                for half, w in enumerate(pair(c, address)):
                    for x, total in zip(token, sums, strict=True):
                        values = c.load(x + i * 4 + half * 64, FLOATS)
                        total[half].set(fma(c, w, values, total[half].value))
            for t, (low, high) in enumerate(sums):
                place = outputs + output_distance * t + (row << 2)
                c.store(place, lanes.sum_of(low.value + high.value))

    return rows


def _pair_f32(c: Code, address: Value) -> tuple[Value, Value]:
    return c.load(address, FLOATS), c.load(address + 64, FLOATS)


def _pair_bf16(c: Code, address: Value) -> tuple[Value, Value]:
    return lanes.halves_of_pairs(c.load(address, INTS))


def define_prompt(program: Program) -> Function:
    """Write the kernel of bfloat16 with many tokens.

    Its arguments: those of `define` with the number of tokens before the length, and scratch at the
    end. Inputs are bfloat16 where vectors are wide, else float32.
    """
    wide = program.target.wide
    counts = (12, 4, 1) if wide else (2, 1) if program.target.level == "plain" else (6, 2, 1)
    tile = {count: (_pairs if wide else _panel)(program, count) for count in counts}
    write = _write_pairs if wide else _write_panel
    # Inputs and blocks that are transposed together; bytes of an input, in the inputs and in them.
    most, together = (PAIR_COLUMNS, 2) if wide else (PANEL_COLUMNS, PANEL_BLOCKS)
    width = 2 if wide else 4

    @program.define("prompt", arguments=10)
    def prompt(
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
        with c.loop(first, last, together) as block, c.loop(0, length, most) as start:
            columns = c.smaller(length - start, most)
            blocks = c.smaller(last - block, together)
            with c.loop(0, blocks) as which, c.loop(0, columns, 32) as i:
                source = weights + ((block + which) * length * 16 + start + i) * 2
                words = lanes.transpose([c.load(source + length * 2 * r, INTS) for r in range(16)])
                write(c, words, scratch, which, i, columns)
            token = c.variable(c.number(0))
            for count in counts:
                with c.loop(0, (tokens - token.value) // count):
                    t = token.value
                    c.call(
                        tile[count], scratch, inputs + t * distance + start * width, distance,
                        columns, outputs + t * output_distance + (block << 6), output_distance,
                        blocks, start,
                    )  # fmt: skip
                    token.set(t + count)

    return prompt


def _write_pairs(
    c: Code, words: list[Value], scratch: Value, which: Value, i: Value, _: Value
) -> None:
    """Pairs of inputs i.. of 16 rows, beside those of the other block."""
    for pair, word in enumerate(words):
        c.store(scratch + i * 64 + which * 64 + pair * 128, word)


def _write_panel(
    c: Code, words: list[Value], scratch: Value, which: Value, i: Value, columns: Value
) -> None:
    """Inputs i.. of 16 rows as float32."""
    to = scratch + (which * columns + i) * 64
    for pair, word in enumerate(words):
        for half, vector in enumerate(lanes.halves_of_pairs(word)):
            c.store(to + pair * 128 + half * 64, vector)


def _pairs(program: Program, tokens: int) -> Function:
    """Two transposed blocks of rows with some tokens, added to the columns before."""

    @program.define(f"pairs_{tokens}", arguments=8)
    def pairs(
        c: Code,
        weights: Value,
        inputs: Value,
        distance: Value,
        columns: Value,
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
        with c.loop(0, columns >> 1) as i:
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


def _panel(program: Program, tokens: int) -> Function:
    """The blocks of a panel with some tokens, added to the inputs before."""

    @program.define(f"panel_{tokens}", arguments=8)
    def panel(
        c: Code,
        weights: Value,
        inputs: Value,
        distance: Value,
        columns: Value,
        outputs: Value,
        output_distance: Value,
        blocks: Value,
        start: Value,
    ) -> None:
        token = [inputs + distance * t for t in range(tokens)]
        with c.loop(0, blocks) as block:
            places = [outputs + output_distance * t + (block << 6) for t in range(tokens)]
            rows = weights + block * columns * 64
            sums = [c.variable(lanes.zeros(c)) for _ in token]
            with c.when(start > 0):
                for place, total in zip(places, sums, strict=True):
                    total.set(c.load(place, FLOATS))
            with c.loop(0, columns, _UNROLLED) as i:
                for k in range(_UNROLLED):
                    w = c.load(rows + i * 64 + k * 64, FLOATS)
                    for x, total in zip(token, sums, strict=True):
                        total.set(fma(c, w, c.load_splat(x + i * 4 + k * 4, F32), total.value))
            for place, total in zip(places, sums, strict=True):
                c.store(place, total.value)

    return panel
