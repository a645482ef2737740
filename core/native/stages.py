"""One step through the model: its stages, and the threads that share them.

A step takes T tokens of any rows through all layers. It is cut in stages, and a stage in shares
that can be computed in any order by any thread:

    layer:  normalise | queries, keys, values | rotate and store | attention | prepare | add output
            | normalise | gate and up, SwiGLU | add down
    end:    normalise what gets scores | scores

The main thread opens a stage by giving every thread a range of its shares. A thread takes its own
range one after another, so that it reads the weights in one run (a CPU needs a microsecond after a
jump to read ahead again), then what is left of the others'. The main thread takes part, so a helper
that the system has not scheduled holds nothing up unless it is in the middle of a share. When
nothing is left it waits for the shares that helpers have begun, closes the stage and opens the
next. `OPENED` counts both: it is odd while a stage is open.

        ticket of a range = stage << 40 | end << 20 | next share: adding one takes a share
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from . import attention, lanes, products
from .emit import F32, FLOATS, I32, I64, Code, Function, Program, Value, Variable
from .fields import Fields, LayerFields
from .record import DONE, LAYER_BYTES, OPENED, PARKED, QUIT, STAGES, THREAD_BYTES, TICKET

TOKEN_SHARE = 16  # tokens that a thread normalises, or stores, at a time: a block of the keys
_LOW = (1 << 20) - 1
_PATIENCE = 2_000  # looks before a waiting thread gives its core away for a moment


@dataclass(frozen=True, slots=True)
class _Share:
    """What a stage's code gets: the record's fields, the layer's, and which share it is."""

    f: Fields
    record: Value
    layer: Value
    number: Value
    scratch: Value

    def layer_fields(self) -> LayerFields:
        """The layer's line in the table."""
        return LayerFields(self.f.code, self.f.table + self.layer * LAYER_BYTES)


Count = Callable[[Code, Fields], Value]
Run = Callable[[Code, _Share], None]


def define(program: Program) -> None:
    """Write all kernels and the two functions that Python calls.

    forward(record, first, last): stages of a step, in the calling thread and the helpers.
    help(record, thread, looks): takes shares until nothing was open for `looks` looks, then says
    that this thread sleeps, and returns.
    """
    stages = _Stages(program)
    count, run = _dispatch(program, stages)
    work = _work(program, run)
    _forward(program, count, run, work)
    _help(program, work)


class _Stages:
    """The code of each stage: how many shares it has, and one of them."""

    def __init__(self, program: Program) -> None:
        self.products = products.define(program)
        self.attention = [
            attention.define(program, cache)
            for cache in (attention.F32_CACHE, attention.BF16_CACHE, attention.Q8_CACHE)
        ]
        self.norm = _norm(program, self.products.prepare)
        self.of_layer: list[tuple[Count, Run]] = [
            (_by_tokens, lambda c, s: self.normalise(c, s, s.layer_fields().attention_norm)),
            (
                lambda _, f: _ceil(f.query_blocks + f.key_blocks * 2, f.query_share),
                self.queries_keys_values,
            ),
            (_by_tokens, self.store),
            (lambda _, f: f.items * f.kv_heads, self.attend),
            (_by_tokens, self.prepare_mixed),
            (lambda _, f: _ceil(f.width_blocks, f.out_share), self.add_output),
            (_by_tokens, lambda c, s: self.normalise(c, s, s.layer_fields().hidden_norm)),
            (lambda _, f: _ceil(f.hidden_blocks, f.hidden_share), self.gate_and_up),
            (lambda _, f: _ceil(f.width_blocks, f.out_share), self.add_down),
        ]
        self.at_end: list[tuple[Count, Run]] = [
            (lambda _, f: _ceil(f.scored, TOKEN_SHARE), self.normalise_scored),
            (
                lambda c, f: c.select(
                    f.scored > 0, _ceil(f.vocab_blocks, f.head_share), c.number(0)
                ),
                self.score,
            ),
        ]

    def normalise(self, c: Code, s: _Share, weights: Value) -> None:
        """RMSNorm of some tokens, prepared for the products."""
        f = s.f
        with _tokens_of(c, s, f.tokens) as token:
            line = f.x + token * f.width * 4
            to = f.inputs + token * f.inputs_distance
            c.call(self.norm, s.record, line, weights, f.body_how, to, s.scratch)

    def normalise_scored(self, c: Code, s: _Share) -> None:
        """The last norm, of the tokens that get scores, side by side."""
        f = s.f
        with _tokens_of(c, s, f.scored) as place:
            line = f.x + c.load(f.scored_at + (place << 3), I64) * f.width * 4
            to = f.inputs + place * f.inputs_distance
            c.call(self.norm, s.record, line, f.final_norm, f.head_how, to, s.scratch)

    def queries_keys_values(self, c: Code, s: _Share) -> None:
        """Blocks of the three matrices as if they were one."""
        f, layer = s.f, s.layer_fields()
        Q, K = f.query_blocks, f.key_blocks
        first, last = _blocks(c, s, f.query_share, Q + K * 2)
        for kind, weights, start, size in (
            (layer.query_kind, layer.query, c.number(0), Q),
            (layer.key_kind, layer.key, Q, K),
            (layer.value_kind, layer.value, Q + K, K),
        ):
            low = c.larger(first - start, 0)
            high = c.smaller(last - start, size)
            with c.when(low < high):
                self._product(
                    c, s, kind, weights, (f.inputs, f.inputs_distance, f.width), low, high,
                    (f.qkv + (start << 6), f.qkv_distance),
                )  # fmt: skip

    def store(self, c: Code, s: _Share) -> None:
        """Rotate some tokens' queries and keys, write keys and values to the cache."""
        f = s.f
        with _tokens_of(c, s, f.tokens) as token:
            for cache, kernels in enumerate(self.attention):
                with c.when(f.cache_kind.equals(cache)):
                    c.call(kernels.store, s.record, s.layer, token)

    def attend(self, c: Code, s: _Share) -> None:
        """Attention of up to 16 tokens of a row, of one key-value head.

        Head by head, so that its keys and values are still in the cache for the next tokens.
        """
        f = s.f
        item, head = s.number % f.items, s.number // f.items
        for cache, kernels in enumerate(self.attention):
            with c.when(f.cache_kind.equals(cache)):
                c.call(kernels.attend, s.record, s.layer, item, head, s.scratch)

    def prepare_mixed(self, c: Code, s: _Share) -> None:
        """What attention gave, prepared for the products."""
        f = s.f
        with _tokens_of(c, s, f.tokens) as token:
            c.call(
                self.products.prepare, f.body_how, f.mixed + token * f.mixed_width * 4,
                f.mixed_width, f.mixed_inputs + token * f.mixed_distance, 0, f.mixed_width,
            )  # fmt: skip

    def add_output(self, c: Code, s: _Share) -> None:
        """Attention's output matrix, added to the residual stream."""
        f, layer = s.f, s.layer_fields()
        inputs = (f.mixed_inputs, f.mixed_distance, f.mixed_width)
        self._add(c, s, layer.out_kind, layer.out, inputs)

    def gate_and_up(self, c: Code, s: _Share) -> None:
        """silu(gate) * up of some blocks, prepared for the products."""
        f, layer = s.f, s.layer_fields()
        first, last = _blocks(c, s, f.hidden_share, f.hidden_blocks)
        inputs = (f.inputs, f.inputs_distance, f.width)
        gates, ups = (f.gates, f.hidden_distance), (f.ups, f.hidden_distance)
        self._product(c, s, layer.gate_kind, layer.gate, inputs, first, last, gates)
        self._product(c, s, layer.up_kind, layer.up, inputs, first, last, ups)
        # A last block without a neighbour: what stands behind it is zero, and stays so.
        end = ((last + 1) & -2) << 4
        with c.loop(0, f.tokens) as token:
            line = token * f.hidden_distance
            with c.loop(first << 6, last << 6, 64) as i:
                gate, up = c.load(gates[0] + line + i, FLOATS), c.load(ups[0] + line + i, FLOATS)
                c.store(gates[0] + line + i, lanes.silu(c, gate) * up)
            c.call(
                self.products.prepare, f.body_how, gates[0] + line, f.hidden,
                f.hidden_inputs + token * f.hidden_inputs_distance, first << 4, end,
            )  # fmt: skip

    def add_down(self, c: Code, s: _Share) -> None:
        """The down matrix, added to the residual stream."""
        f, layer = s.f, s.layer_fields()
        inputs = (f.hidden_inputs, f.hidden_inputs_distance, f.hidden)
        self._add(c, s, layer.down_kind, layer.down, inputs)

    def score(self, c: Code, s: _Share) -> None:
        """Blocks of the output matrix."""
        f = s.f
        first, last = _blocks(c, s, f.head_share, f.vocab_blocks)
        c.call(
            self.products.product, f.head_kind, f.head_how, f.head_weights, f.inputs,
            f.inputs_distance, f.scored, f.width, first, last, f.logits, f.logits_distance,
            s.scratch,
        )  # fmt: skip

    def _product(
        self,
        c: Code,
        s: _Share,
        kind: Value,
        weights: Value,
        inputs: tuple[Value, Value, Value],
        first: Value,
        last: Value,
        outputs: tuple[Value, Value],
    ) -> None:
        address, distance, length = inputs
        c.call(
            self.products.product, kind, s.f.body_how, weights, address, distance, s.f.tokens,
            length, first, last, *outputs, s.scratch,
        )  # fmt: skip

    def _add(
        self, c: Code, s: _Share, kind: Value, weights: Value, inputs: tuple[Value, Value, Value]
    ) -> None:
        f = s.f
        first, last = _blocks(c, s, f.out_share, f.width_blocks)
        self._product(c, s, kind, weights, inputs, first, last, (f.added, f.width << 2))
        with c.loop(0, f.tokens) as token:
            place = token * f.width * 4
            x, line = f.x + place, f.added + place
            with c.loop(first << 6, last << 6, 64) as i:
                c.store(x + i, c.load(x + i, FLOATS) + c.load(line + i, FLOATS))


def _norm(program: Program, prepare: Function) -> Function:
    @program.define("norm", arguments=6)
    def norm(
        c: Code, record: Value, line: Value, weights: Value, how: Value, to: Value, scratch: Value
    ) -> None:
        f = Fields(c, record)
        size = f.width << 2
        squares = c.variable(lanes.zeros(c))
        with c.loop(0, size, 64) as i:
            x = c.load(line + i, FLOATS)
            squares.set(lanes.fma(c, x, x, squares.value))
        mean = lanes.sum_of(squares.value) / c.float_of(f.dim)
        eps = f.eps.narrow(I32).cast(F32)
        scale = c.splat(c.constant(F32, 1.0) / lanes.square_root(c, mean + eps))
        with c.loop(0, size, 64) as i:
            x = c.load(line + i, FLOATS)
            c.store(scratch + i, x * scale * c.load(weights + i, FLOATS))
        c.call(prepare, how, scratch, f.width, to, 0, f.width)

    return norm


def _ceil(number: Value, share: Value | int) -> Value:
    return (number + share - 1) // share


def _by_tokens(_: Code, f: Fields) -> Value:
    return _ceil(f.tokens, TOKEN_SHARE)


def _tokens_of(c: Code, s: _Share, tokens: Value) -> AbstractContextManager[Value]:
    """A loop over the tokens that a share is."""
    first = s.number * TOKEN_SHARE
    return c.loop(first, c.smaller(first + TOKEN_SHARE, tokens))


def _blocks(c: Code, s: _Share, share: Value, blocks: Value) -> tuple[Value, Value]:
    """The blocks of a matrix that a share is."""
    first = s.number * share
    return first, c.smaller(first + share, blocks)


def _dispatch(program: Program, stages: _Stages) -> tuple[Function, Function]:
    """The shares of a stage by its number, and one share of it."""

    @program.define("shares_of", arguments=2)
    def shares_of(c: Code, record: Value, stage: Value) -> Value:
        f = Fields(c, record)
        result = c.variable(c.number(0))
        ended = stage >= f.layers * STAGES
        kind = c.select(ended, stage - f.layers * STAGES + STAGES, stage % STAGES)
        for number, (count, _) in enumerate([*stages.of_layer, *stages.at_end]):
            with c.when(kind.equals(number)):
                result.set(count(c, f))
        return result.value

    @program.define("run_share", arguments=4)
    def run_share(c: Code, record: Value, stage: Value, share: Value, thread: Value) -> None:
        f = Fields(c, record)
        scratch = f.scratch + thread * f.scratch_distance
        ended = stage >= f.layers * STAGES
        kind = c.select(ended, stage - f.layers * STAGES + STAGES, stage % STAGES)
        for number, (_, run) in enumerate([*stages.of_layer, *stages.at_end]):
            with c.when(kind.equals(number)):
                run(c, _Share(f, record, stage // STAGES, share, scratch))

    return shares_of, run_share


def _work(program: Program, run_share: Function) -> Function:
    """work(record, thread): take shares of the open stage until none is left; how many it took.

    The thread's own range comes first, then those of the threads after it.
    """

    @program.define("work", arguments=2)
    def work(c: Code, record: Value, thread: Value) -> Value:
        f = Fields(c, record)
        done = c.variable(c.number(0))
        with c.loop(0, f.threads) as after:
            owner = thread + after
            owner = c.select(owner < f.threads, owner, owner - f.threads)
            ticket = record + TICKET + owner * THREAD_BYTES
            with c.repeat() as leave_if:
                # A look first: words that nobody writes stay in every core's cache.
                leave_if(_nothing_left(c.atomic_load(ticket)))
                taken = c.atomic_add(ticket, 1)
                leave_if(_nothing_left(taken))
                c.call(run_share, record, taken >> 40, taken & _LOW, thread)
                done.set(done.value + 1)
        return done.value

    return work


def _nothing_left(ticket: Value) -> Value:
    return (ticket & _LOW) >= ((ticket >> 20) & _LOW)


def _forward(program: Program, shares_of: Function, run_share: Function, work: Function) -> None:
    @program.define("forward", arguments=3, public=True)
    def forward(c: Code, record: Value, first: Value, last: Value) -> None:
        f = Fields(c, record)
        shared = f.threads > 1
        with c.loop(first, last) as stage:
            shares = c.call(shares_of, record, stage)
            with c.either(shared) as (together, alone):
                with together, c.either(shares > 1) as (many, one):
                    with many:
                        _open(c, record, stage, shares, work)
                    with one, c.loop(0, shares) as share:
                        c.call(run_share, record, stage, share, 0)
                with alone, c.loop(0, shares) as share:
                    c.call(run_share, record, stage, share, 0)


def _open(c: Code, record: Value, stage: Value, shares: Value, work: Function) -> None:
    """Open a stage, take shares of it, wait for those that helpers have begun, and close it."""
    threads = Fields(c, record).threads
    c.atomic_store(record + DONE, c.number(0))
    first = c.variable(c.number(0))
    with c.loop(0, threads) as thread:
        end = (thread + 1) * shares // threads
        ticket = (stage << 40) | (end << 20) | first.value
        c.atomic_store(record + TICKET + thread * THREAD_BYTES, ticket)
        first.set(end)
    c.atomic_add(record + OPENED, 1)
    mine = c.call(work, record, 0)
    looks = c.variable(c.number(0))
    with c.repeat() as leave_if:
        leave_if(c.atomic_load(record + DONE) + mine >= shares)
        _wait(c, looks)
    c.atomic_add(record + OPENED, 1)


def _wait(c: Code, looks: Variable) -> None:
    """Spare the core; after many looks let another thread have it."""
    looks.set(looks.value + 1)
    with c.either((looks.value % _PATIENCE).equals(0)) as (often, seldom):
        with often:
            c.intrinsic("sched_yield", I32)
        with seldom:
            c.pause()


def _help(program: Program, work: Function) -> None:
    @program.define("help", arguments=3, public=True)
    def help_(c: Code, record: Value, thread: Value, looks: Value) -> None:
        f = Fields(c, record)
        idle, looks_since = c.variable(c.number(0)), c.variable(c.number(0))
        seen = c.variable(c.number(0))  # what was open when nothing was left of it
        with c.repeat() as leave_if:
            opened = c.atomic_load(record + OPENED)
            is_open = (opened & 1).equals(1) & (thread < f.threads)
            with c.either(is_open & opened.compare("!=", seen.value)) as (new, nothing):
                with new:
                    c.atomic_add(record + DONE, c.call(work, record, thread))
                    seen.set(opened)
                    idle.set(c.number(0))
                with nothing:
                    # While others still work on a stage the next one is near: do not fall asleep.
                    with c.when(is_open.equals(0)):
                        idle.set(idle.value + 1)
                    _wait(c, looks_since)
            leave_if((idle.value + c.atomic_load(record + QUIT)) > looks)
        c.atomic_store(record + PARKED + thread * THREAD_BYTES, c.number(1))
