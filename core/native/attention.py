"""Rotary positions, the key-value cache and attention, for one token and for chunks of a prompt.

The cache of a layer, row of the batch and key-value head holds P positions (a multiple of 16) of E
numbers. Keys lie in blocks of 16 positions, transposed, (P/16, E, 16), so that a vector is one
number of 16 keys; values lie position by position, (P, E padded to 16). Kinds of cache:

    F32_CACHE   as computed
    BF16_CACHE  rounded to bfloat16
    Q8_CACHE    signed bytes and one float32 scale for each key and each value

A query's result does not depend on the queries beside it, nor on how a prompt was cut in chunks.

Shapes: T tokens, H heads, K key-value heads, E numbers of a head, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from . import lanes
from .emit import (
    BYTES,
    F32,
    FLOATS,
    I8,
    I16,
    I32,
    I64,
    INTS,
    SHORTS,
    Code,
    Function,
    Program,
    Value,
    Variable,
)
from .fields import Fields
from .lanes import fma

F32_CACHE, BF16_CACHE, Q8_CACHE = range(3)
CACHE_BYTES = {F32_CACHE: 4, BF16_CACHE: 2, Q8_CACHE: 1}
QUERIES = (8, 4, 2, 1)  # that are served by one pass over keys and values
POSITIONS = 128  # that are served together where a pass takes its queries some at a time
_NOTHING = -3e38  # the score of a key that a query does not see


@dataclass(frozen=True, slots=True)
class Attention:
    """The functions that stages call, for one kind of cache.

    Attributes:
        store: (record, layer, token): turns a token's queries and keys to its position and writes
            its keys and values.
        attend: (record, layer, item, kv head, scratch): an item's tokens with all their past.
    """

    store: Function
    attend: Function


def define(program: Program, cache: int) -> Attention:
    """Write the kernels for one kind of cache."""
    return Attention(_store(program, cache), _attend(program, cache))


def _head_place(f: Fields, layer: Value, row: Value, head: Value) -> Value:
    """The number of a layer's row's head among all of the cache."""
    return (layer * f.cache_rows + row) * f.kv_heads + head


def _store(program: Program, cache: int) -> Function:
    size = CACHE_BYTES[cache]

    @program.define(f"store_{cache}", arguments=3)
    def store(c: Code, record: Value, layer: Value, token: Value) -> None:
        f = Fields(c, record)
        place = token << 3
        row = c.load(f.token_row + place, I64)
        position = c.load(f.token_position + place, I64)
        E = f.head_dim
        turns = f.rope + position * E * 4
        line = f.qkv + token * f.qkv_distance
        with c.loop(0, f.heads) as head:
            _rotate(c, line + head * E * 4, E, turns)
        with c.loop(0, f.kv_heads) as head:
            key = line + (f.query_blocks << 6) + head * E * 4
            value = line + ((f.query_blocks + f.key_blocks) << 6) + head * E * 4
            _rotate(c, key, E, turns)
            at = _head_place(f, layer, row, head) * f.cache_positions
            # Key i of a block's position p lies at (i * 16 + p).
            keys = f.keys + (at * E + (position >> 4) * E * 16 + (position & 15)) * size
            values = f.values + (at + position) * f.value_width * size
            key_scale = value_scale = None
            if cache == Q8_CACHE:
                scales = (at + position) << 2
                key_scale = _scale(c, key, E, f.key_scales + scales)
                value_scale = _scale(c, value, E, f.value_scales + scales)
            with c.loop(0, E) as i:
                _write(c, cache, keys + i * 16 * size, c.load(key + i * 4, F32), key_scale)
            with c.loop(0, E & -16, 16) as i:
                vector = c.load(value + i * 4, FLOATS)
                _write_vector(c, cache, values + i * size, vector, value_scale)
            with c.loop(E & -16, E) as i:
                _write(c, cache, values + i * size, c.load(value + i * 4, F32), value_scale)

    return store


def _rotate(c: Code, x: Value, E: Value, turns: Value) -> None:
    """Turn pairs (i, i + E/2) by the angles of the position, in place."""
    half = E * 2  # bytes

    def step(i: Value, kind: object) -> None:
        a, b = c.load(x + i, kind), c.load(x + half + i, kind)
        cos, sin = c.load(turns + i, kind), c.load(turns + half + i, kind)
        c.store(x + i, a * cos - b * sin)
        c.store(x + half + i, b * cos + a * sin)

    whole = half & -64
    with c.loop(0, whole, 64) as i:
        step(i, FLOATS)
    with c.loop(whole, half, 4) as i:
        step(i, F32)


def _scale(c: Code, x: Value, E: Value, to: Value) -> Value:
    """Write the scale of a key or value of E floats; returns its inverse in all lanes."""
    peak = c.variable(c.constant(F32, 0.0))
    with c.loop(0, E) as i:
        number = c.intrinsic("llvm.fabs.f32", F32, c.load(x + i * 4, F32))
        peak.set(lanes.largest(c, number, peak.value))
    c.store(to, peak.value * (1 / 127))
    zero = c.constant(F32, 0.0)
    return c.select(peak.value > 0.0, c.constant(F32, 127.0) / peak.value, zero)


def _write(c: Code, cache: int, to: Value, number: Value, inverse: Value | None) -> None:
    """One number of a key or value. Scalars go through a vector: the same rounding as there."""
    if cache == F32_CACHE:
        c.store(to, number)
    elif cache == BF16_CACHE:
        bits = number.cast(I32)
        c.store(to, ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).narrow(I16))
    else:
        assert inverse is not None
        code = lanes.rounded(c, c.splat(number * inverse)).to_int()
        c.store(to, code.lane(0).narrow(I8))


def _write_vector(c: Code, cache: int, to: Value, vector: Value, inverse: Value | None) -> None:
    if cache == F32_CACHE:
        c.store(to, vector)
    elif cache == BF16_CACHE:
        c.store(to, lanes.bf16_bits(vector).narrow(SHORTS))
    else:
        assert inverse is not None
        c.store(to, lanes.rounded(c, vector * c.splat(inverse)).to_int().narrow(BYTES))


def _attend(program: Program, cache: int) -> Function:
    passes = {count: _pass(program, cache, count) for count in QUERIES}

    @program.define(f"attend_{cache}", arguments=5)
    def attend(
        c: Code, record: Value, layer: Value, item: Value, head: Value, scratch: Value
    ) -> None:
        f = Fields(c, record)
        entry = f.item_table + (item << 5)
        # All query heads of this key-value head, token by token.
        queries = c.load(entry + 8, I64) * (f.heads // f.kv_heads)
        done = c.variable(c.number(0))
        for count in QUERIES:
            with c.loop(0, (queries - done.value) // count):
                c.call(passes[count], record, layer, entry, head, done.value, scratch)
                done.set(done.value + count)

    return attend


def _pass(program: Program, cache: int, count: int) -> Function:
    """`count` queries with all keys and values they see.

    Scores are kept for all positions, in the thread's scratch; then the softmax, then the values.
    Where registers do not hold the sums of all queries, they are served some at a time, for as many
    positions as the first cache keeps.

        scratch:  scores of each query | one vector | sums of each query, as wide as a value
    """

    @program.define(f"attend_{cache}_{count}", arguments=6)
    def attend(
        c: Code,
        record: Value,
        layer: Value,
        entry: Value,
        head: Value,
        first: Value,
        scratch: Value,
    ) -> None:
        f = Fields(c, record)
        E = f.head_dim
        token, row, start = (c.load(entry + place, I64) for place in (0, 16, 24))
        group = f.heads // f.kv_heads
        at = _head_place(f, layer, row, head) * f.cache_positions
        spare = scratch + f.scores_distance * max(QUERIES)
        queries = []
        for n in range(count):
            t = (first + n) // group
            place = (head * group + (first + n) % group) * E * 4
            queries.append(
                _Query(
                    numbers=f.qkv + (token + t) * f.qkv_distance + place,
                    output=f.mixed + (token + t) * f.mixed_width * 4 + place,
                    limit=start + t + 1,
                    scores=scratch + f.scores_distance * n,
                    sums=spare + 64 + f.value_width * 4 * n,
                    peak=c.variable(c.constant(FLOATS, _NOTHING)),
                )
            )
        stop = queries[-1].limit  # the last query sees most
        tile = count if program.target.wide else min(count, 2)
        tiles = [queries[n : n + tile] for n in range(0, count, tile)]
        part = stop if tile == count else c.number(POSITIONS)
        with c.loop(0, stop, part) as low:
            high = c.smaller(low + part, stop)
            for some in tiles:
                _score(c, f, cache, at, some, low, high)
        shares = [_softmax(c, f, cache, at, query, stop) for query in queries]
        with c.loop(0, stop, part) as low:
            high = c.smaller(low + part, stop)
            for some in tiles:
                _mix(c, f, cache, at, some, low, high)
        for query, share in zip(queries, shares, strict=True):
            with c.loop(0, f.value_width, 16) as i:
                vector = _ordered(c, cache, c.load(query.sums + i * 4, FLOATS)) * share
                _put(c, query.output, i, E, vector, spare)

    return attend


@dataclass(frozen=True, slots=True)
class _Query:
    """One head's query of one token; all but the peak are addresses.

    Attributes:
        numbers: E of them.
        output: E numbers.
        limit: how many keys it sees.
        scores: of all keys.
        sums: of the values, so far.
        peak: the largest score of every 16th key.
    """

    numbers: Value
    output: Value
    limit: Value
    scores: Value
    sums: Value
    peak: Variable


def _load(c: Code, cache: int, address: Value) -> Value:
    """16 numbers of the cache, as `_ordered` takes them; of Q8_CACHE without their scales."""
    if cache == F32_CACHE:
        return c.load(address, FLOATS)
    if cache == Q8_CACHE:
        return lanes.load_int8(c, address)
    wide = c.program.target.wide
    return lanes.load_bf16(c, address) if wide else lanes.load_bf16_apart(c, address)


def _ordered(c: Code, cache: int, vector: Value) -> Value:
    """What was computed lane by lane with what `_load` gives, in the order of the cache."""
    apart = cache == BF16_CACHE and not c.program.target.wide
    return lanes.rejoined(vector) if apart else vector


def _score(
    c: Code, f: Fields, cache: int, at: Value, queries: list[_Query], low: Value, high: Value
) -> None:
    """Write the scores of keys low to high, and keep the largest of each query."""
    size, E = CACHE_BYTES[cache], f.head_dim
    scale = c.splat(c.constant(F32, 1.0) / lanes.square_root(c, c.float_of(E)))
    numbers = Value(c, ir.Constant(INTS, list(range(16))))
    with c.loop(low, high, 16) as block:
        keys = f.keys + (at + block) * E * size
        # Even and odd numbers apart: two chains of additions, of which one need not wait.
        even, odd = ([c.variable(lanes.zeros(c)) for _ in queries] for _ in range(2))
        with c.loop(0, E, 2) as i:
            for k, sums in enumerate((even, odd)):
                part = _load(c, cache, keys + (i + k) * 16 * size)
                for query, total in zip(queries, sums, strict=True):
                    x = c.load_splat(query.numbers + i * 4 + k * 4, F32)
                    total.set(fma(c, part, x, total.value))
        if cache == Q8_CACHE:
            key_scales = c.load(f.key_scales + ((at + block) << 2), FLOATS) * scale
        else:
            key_scales = scale
        for query, one, other in zip(queries, even, odd, strict=True):
            score = _ordered(c, cache, one.value + other.value) * key_scales
            seen = numbers < c.splat((query.limit - block).narrow(I32))
            score = c.select(seen, score, c.constant(FLOATS, _NOTHING))
            c.store(query.scores + block * 4, score)
            query.peak.set(lanes.largest(c, score, query.peak.value))


def _softmax(c: Code, f: Fields, cache: int, at: Value, query: _Query, stop: Value) -> Value:
    """Scores become e^(score - peak), times the value's scale; returns one over their sum."""
    total = c.variable(lanes.zeros(c))
    most = c.splat(lanes.peak_of(c, query.peak.value))
    with c.loop(0, stop, 16) as block:
        weight = lanes.exp(c, c.load(query.scores + block * 4, FLOATS) - most)
        total.set(total.value + weight)
        if cache == Q8_CACHE:
            weight = weight * c.load(f.value_scales + ((at + block) << 2), FLOATS)
        c.store(query.scores + block * 4, weight)
    return c.splat(c.constant(F32, 1.0) / lanes.sum_of(total.value))


def _mix(
    c: Code, f: Fields, cache: int, at: Value, queries: list[_Query], low: Value, high: Value
) -> None:
    """Add values low to high, weighted by the scores, some vectors of a value at a time."""
    size, width = CACHE_BYTES[cache], f.value_width
    values = f.values + at * width * size
    # As many sums as registers hold; fewer queries leave some for additions to overlap.
    most = 16 // max(len(queries), 4) if c.program.target.wide else 4 // len(queries)
    done = c.variable(c.number(0))  # of the numbers of a value
    for vectors in (most, 1):
        with c.loop(0, (width - done.value) // (16 * vectors)):
            start = done.value
            places = [
                [query.sums + (start + 16 * v) * 4 for v in range(vectors)] for query in queries
            ]
            sums = [[c.variable(lanes.zeros(c)) for _ in range(vectors)] for _ in queries]
            with c.when(low > 0):
                for line, some in zip(places, sums, strict=True):
                    for place, total in zip(line, some, strict=True):
                        total.set(c.load(place, FLOATS))
            with c.loop(low, high) as position:
                place = values + (position * width + start) * size
                parts = [_load(c, cache, place + 16 * v * size) for v in range(vectors)]
                for query, some in zip(queries, sums, strict=True):
                    weight = c.load_splat(query.scores + position * 4, F32)
                    for part, total in zip(parts, some, strict=True):
                        total.set(fma(c, part, weight, total.value))
            for line, some in zip(places, sums, strict=True):
                for place, total in zip(line, some, strict=True):
                    c.store(place, total.value)
            done.set(start + 16 * vectors)


def _put(c: Code, output: Value, start: Value, E: Value, vector: Value, spare: Value) -> None:
    """Numbers start.. of an output of E: no more of them, as another head's stand behind."""
    with c.either(E - start >= 16) as (whole, part):
        with whole:
            c.store(output + start * 4, vector)
        with part:
            c.store(spare, vector)
            with c.loop(0, E - start) as i:
                c.store(output + (start + i) * 4, c.load(spare + i * 4, F32))
