"""The engine's runner on a CPU, with kernels of its own: no torch.

Weights are read where they are mapped, or packed when they are loaded; the key-value cache is
bfloat16 unless the weights are float32. To the last bit, scores do not depend on the number of
threads, on what is computed beside a sequence, or on how it was cut into calls. One exception: in
bfloat16, prompts of `ROUNDED_TOKENS` or more have kernels of their own, which are several times as
fast, so a prompt read at once differs a little from one read in parts.

Shapes: B sequences, T tokens, N tokens of all sequences together, D = dim, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from codecria.core.inference.runner import Scores, Snapshot
from codecria.core.model.config import ModelConfig
from codecria.core.model.rope import llama3_divisors

from .kernels import Kernels
from .key_values import CacheDtype, KeyValues
from .packing import LAYOUT, Floats
from .record import END_STAGES, STAGES, Record
from .threads import Helpers, ThreadTuner, available_threads
from .weights import Dtype, PreparedWeights, Weights

CHUNK_TOKENS = 512  # of prompts that go through the layers together; bounds their memory
LONG_STEP_TOKENS = 16  # a step of more returns to Python after every layer, for Ctrl-C
ITEM_TOKENS = 16  # of a row whose attention is one share, see record.py
ROUNDED_TOKENS = 16
# Blocks of 16 rows that a thread takes at a time, even numbers; measured on 15m to 1b.
SHARES = {"query_share": 4, "out_share": 4, "hidden_share": 8, "head_share": 64}
# A step of few tokens waits for the memory, not the cores: each thread's part of a matrix is cut in
# as many shares only, if those are larger. Fewer were as fast, 16 were not faster (110m, q8).
FEW_TOKENS, FEW_SHARES = 8, 4
# How inputs are prepared, see products.py
_EXACT, _ROUNDED = {0: 0, 1: 1, 2: 2, 3: 2}, {0: 0, 1: 3, 2: 2, 3: 2}
_SPARE = 256  # bytes behind every line, which kernels may read and write


class NativeRunner:
    """A model with its key-value cache on this CPU; see `Runner` for what the methods do.

    Args:
        config: the model's shape.
        weights: by Hugging Face name.
        kernels: see kernels.py.
        dtype: type of the matrices.
        cache_dtype: type of the key-value cache; None takes float32 with float32 weights, else
            bfloat16.
        threads: take part in every step; None takes what is available and adapts to other
            programs' load.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kernels: Kernels,
        *,
        dtype: Dtype,
        cache_dtype: CacheDtype | None = None,
        threads: int | None = None,
    ) -> None:
        self._config = config
        self.dtype, self.cache_dtype = dtype, cache_dtype or _cache_dtype(dtype)
        self.weights = PreparedWeights(config, weights, dtype, kernels)
        self.tuner = ThreadTuner(threads or available_threads(), fixed=threads is not None)
        self._kernels = kernels
        self._record = Record(self.tuner.most)
        self._helpers = Helpers(kernels, self._record, self.tuner.most - 1)
        self._chunk = CHUNK_TOKENS
        self._shares_of = (False, 0)  # few tokens, threads: what the record's shares are for
        self._memory: list[npt.NDArray[Any]] = []
        self._describe_model()
        self._allocate()
        self._frequencies = _frequencies(config)
        self._rope = np.zeros((0, config.head_dim), np.float32)
        self._cache = KeyValues(config, self.cache_dtype, 0, 0)

    # The Runner's methods

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self._config

    @property
    def layout(self) -> str:
        """What decides its snapshots beside the model's files."""
        return f"native {LAYOUT} {self.dtype} {self.cache_dtype}"

    @property
    def tolerance(self) -> float:
        """None: several tokens at once have the scores of single ones, to the last bit."""
        return 0.0

    @property
    def lengths(self) -> Sequence[int]:
        """Positions filled, one number a reserved row."""
        return self._cache.lengths

    @property
    def rows(self) -> int:
        """Rows reserved."""
        return self._cache.rows

    @property
    def positions(self) -> int:
        """Positions reserved a row."""
        return self._cache.positions

    def reserve(self, rows: int, positions: int) -> None:
        """Have room for at least so many rows and positions, and keep what the rows hold."""
        if rows > self.rows or positions > self.positions:
            rows, positions = max(rows, self.rows), max(positions, self.positions)
            if not any(self.lengths):
                self._cache = KeyValues(self.config, self.cache_dtype, 0, 0)  # free it first
            self._cache = self._cache.resized(rows, positions)
            self._cache.enter(self._record)
            self._extend_rope(self.positions)

    def prefill(self, row: int, prompts: Sequence[Sequence[int]]) -> Scores:
        """Append prompts to the rows from `row` on, and score the token after each: (B,V)."""
        scores = np.empty((len(prompts), self._vocab), np.float32)
        how = _ROUNDED if self.dtype == "bfloat16" else _EXACT
        # Which way a prompt goes must not depend on the others.
        long = [len(prompt) >= ROUNDED_TOKENS for prompt in prompts]
        for wanted, its_how in ((True, how), (False, _EXACT)):
            places = [place for place, found in enumerate(long) if found == wanted]
            if places:
                rows = [row + place for place in places]
                some = [prompts[place] for place in places]
                scores[places] = self._run(rows, some, its_how, every=False)
        return scores[:, : self.config.vocab_size]

    def decode(self, row: int, tokens: Sequence[Sequence[int]]) -> Scores:
        """Append tokens to the rows from `row` on, and score what follows each: (N,V)."""
        rows = range(row, row + len(tokens))
        count, tuner = sum(map(len, tokens)), self.tuner
        start = time.perf_counter()
        scores = self._run(rows, tokens, _EXACT, every=True, threads=tuner.choose())
        tuner.measured(count, time.perf_counter() - start)
        return scores[:, : self.config.vocab_size]

    def truncate(self, row: int, length: int) -> None:
        """Forget the positions of a row from `length` on."""
        assert length <= self.lengths[row], f"row {row} has {self.lengths[row]}"
        self._cache.lengths[row] = length

    def copy_rows(self, start: int, sources: Sequence[int]) -> None:
        """Make the rows from `start` on continue the sequences of the rows `sources`."""
        self._cache.copy_rows(start, sources)

    def keep(self, rows: Sequence[int]) -> None:
        """Move these rows to the front, in this order, and empty all others."""
        self._cache.keep(rows)

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """The keys and values of positions start to stop of a row, to `restore` later."""
        return self._cache.snapshot(row, start, stop)

    def restore(self, row: int, start: int, snapshot: Snapshot) -> None:
        """Put a snapshot into a row from position `start` on, and end it there."""
        assert start <= self.lengths[row], f"row {row} has {self.lengths[row]}"
        self._cache.restore(row, start, snapshot)

    def close(self) -> None:
        """End the helper threads; the next step starts others. They end with the runner anyway."""
        self._helpers.stop()

    # A step

    def _run(
        self,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        how: dict[int, int],
        *,
        every: bool,
        threads: int | None = None,
    ) -> Scores:
        """Append tokens to rows, and score every one of them or the last of each row.

        Returns:
            (N or B, V padded to 16), valid until the next step.
        """
        lengths, record = self._cache.lengths, self._record
        record.threads = threads or self.tuner.threads
        self._set_shares(sum(map(len, tokens)), record.threads)
        record.body_how, record.head_how = how[self._body_kind], _EXACT[self.weights.head.kind]
        scores = self._room_for_scores(sum(map(len, tokens)) if every else len(rows))
        waiting: list[tuple[int, int, Sequence[int], bool]] = []  # row, position, ids, scored
        for row, ids in zip(rows, tokens, strict=True):
            start = lengths[row]
            assert start + len(ids) <= self.positions, (start, len(ids), self.positions)
            waiting.append((row, start, ids, True))
        done = 0
        for part in _chunks(waiting, self._chunk):
            done += self._step(part, scores[done:], every=every)
            for row, start, ids, _ in part:
                lengths[row] = start + len(ids)
        return scores

    def _step(
        self, part: list[tuple[int, int, Sequence[int], bool]], scores: Scores, *, every: bool
    ) -> int:
        """One pass through the layers; returns how many tokens were scored."""
        record, ids = self._record, list[int]()
        count = item = scored = 0
        for row, start, some, ends in part:
            size = len(some)
            stop = count + size
            ids.extend(some)
            self._token_row[count:stop] = row
            self._token_position[count:stop] = self._numbers[start : start + size]
            for first in range(0, size, ITEM_TOKENS):
                taken = min(ITEM_TOKENS, size - first)
                self._items[item] = (count + first, taken, row, start + first)
                item += 1
            if every:
                self._scored_at[scored : scored + size] = self._numbers[count:stop]
                scored += size
            elif ends:
                self._scored_at[scored] = stop - 1
                scored += 1
            count = stop
        if min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise IndexError(f"a token outside the vocabulary of {self.config.vocab_size}")
        self._ids[:count] = ids
        record.tokens, record.items, record.scored = count, item, scored
        record.logits = scores.ctypes.data
        self._kernels.embed(record.address)
        stages = self.config.n_layers * STAGES + END_STAGES
        # Ctrl-C is noticed between calls, and nothing has changed then: lengths count what is done.
        size = STAGES if count > LONG_STEP_TOKENS else stages
        for first in range(0, stages, size):
            # Before every call: a helper that found nothing to do meanwhile has gone to sleep.
            self._helpers.wake(record.threads - 1)
            self._kernels.forward(record.address, first, min(first + size, stages))
        return scored

    # Memory

    def _describe_model(self) -> None:
        """Write the sizes of the model into the record."""
        config, record, weights = self.config, self._record, self.weights
        D, E = config.dim, config.head_dim
        record.layers, record.dim, record.width = config.n_layers, D, _up(D, 32)
        record.eps = int(np.float32(config.norm_eps).view(np.int32))
        record.heads, record.kv_heads = config.n_heads, config.n_kv_heads
        record.head_dim, record.value_width = E, _up(E, 16)
        record.hidden, record.mixed_width = _up(config.hidden_dim, 32), _up(config.n_heads * E, 32)
        record.query_blocks = _up(config.n_heads * E, 16) // 16
        record.key_blocks = _up(config.n_kv_heads * E, 16) // 16
        record.width_blocks = _up(D, 16) // 16
        record.hidden_blocks = _up(config.hidden_dim, 16) // 16
        record.vocab_blocks = _up(config.vocab_size, 16) // 16
        record.table, record.final_norm = weights.table.ctypes.data, weights.final_norm.ctypes.data
        record.head_weights, record.head_kind = weights.head.address, weights.head.kind
        record.embedding, record.embedding_kind = weights.embedding.address, weights.embedding.kind
        self._body_kind = {"float32": 0, "bfloat16": 1, "q8": 2, "q4": 2}[self.dtype]
        self._vocab = record.vocab_blocks * 16

    def _set_shares(self, tokens: int, threads: int) -> None:
        """How much of each matrix a thread takes at a time in a step of so many tokens."""
        few = tokens <= FEW_TOKENS
        if (few, threads) == self._shares_of:
            return
        self._shares_of, record = (few, threads), self._record
        for name, blocks in (
            ("query_share", record.query_blocks + 2 * record.key_blocks),
            ("out_share", record.width_blocks),
            ("hidden_share", record.hidden_blocks),
            ("head_share", record.vocab_blocks),
        ):
            large = _up(blocks, 2 * FEW_SHARES * threads) // (FEW_SHARES * threads)
            setattr(record, name, max(SHARES[name], large) if few else SHARES[name])

    def _allocate(self) -> None:
        """Memory for one chunk of tokens: zeros, which cost nothing before they are written."""
        record, T = self._record, self._chunk
        D, F, M = record.width, record.hidden, record.mixed_width
        qkv = (record.query_blocks + 2 * record.key_blocks) * 64
        for name, distance, size in (
            ("x", "", D * 4),
            ("inputs", "inputs_distance", 4 * D + 64),
            ("qkv", "qkv_distance", qkv),
            ("mixed", "", M * 4),
            ("mixed_inputs", "mixed_distance", 4 * M + 64),
            ("gates", "hidden_distance", F * 4),
            ("ups", "", F * 4),
            ("hidden_inputs", "hidden_inputs_distance", 4 * F + 64),
            ("added", "", D * 4),
        ):
            self._lines(name, T, size)
            if distance:
                setattr(record, distance, size)
        self._ids, self._token_row, self._token_position, self._scored_at, items = (
            self._lines(name, T, words * 8).view(np.int64)
            for name, words in (
                ("token_ids", 1),
                ("token_row", 1),
                ("token_position", 1),
                ("scored_at", 1),
                ("item_table", 4),
            )
        )
        self._items = items.reshape(T, 4)
        self._scores = np.empty((0, self._vocab), np.float32)
        record.logits_distance = self._vocab * 4

    def _lines(self, name: str, count: int, size: int) -> npt.NDArray[np.uint8]:
        """Zeroed memory of some lines, at an address of the record."""
        array = _aligned(count * size)
        self._memory.append(array)
        setattr(self._record, name, array.ctypes.data)
        return array

    def _extend_rope(self, positions: int) -> None:
        """Cosines and sines of every position, and memory for the scores of as many keys."""
        if positions <= len(self._rope):
            return
        self._numbers = np.arange(max(positions, self._chunk), dtype=np.int64)
        angles = np.arange(positions, dtype=np.float32)[:, None] * self._frequencies
        self._rope = np.concatenate([np.cos(angles), np.sin(angles)], 1)  # (P,E)
        record = self._record
        record.rope = self._rope.ctypes.data
        # Scratch of a thread: scores of 8 queries, one vector and 8 sums; or other kernels' lines.
        record.scores_distance = _up(positions, 16) * 4 + 64
        attention = 8 * (record.scores_distance + record.value_width * 4) + 64
        size = max(attention, record.width * 4, 2 * 16 * 1024 * 2)
        record.scratch_distance = _up(size, 64) + _SPARE
        self._scratch = _aligned(record.scratch_distance * self.tuner.most)
        record.scratch = self._scratch.ctypes.data

    def _room_for_scores(self, count: int) -> Scores:
        """(N,V padded) for the scores of a call."""
        if count > len(self._scores):
            self._scores = np.empty((count, self._vocab), np.float32)
        return self._scores[:count]


def _cache_dtype(dtype: Dtype) -> CacheDtype:
    return "float32" if dtype == "float32" else "bfloat16"


def _frequencies(config: ModelConfig) -> Floats:
    """(E/2,) angles of one position, as the Transformer computes them."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.power(np.float32(config.rope_theta), exponents)
    if config.rope_scale != 1.0:
        frequencies = frequencies / np.float32(config.rope_scale)
    if config.llama3 is not None:
        divisors = llama3_divisors(config.llama3, config.rope_theta, config.head_dim)
        frequencies = frequencies / np.array(divisors, np.float32)
    found: Floats = frequencies.astype(np.float32)
    return found


def _chunks(
    waiting: list[tuple[int, int, Sequence[int], bool]], most: int
) -> list[list[tuple[int, int, Sequence[int], bool]]]:
    """Tokens in order, in parts of at most so many; what is cut off ends in a later part."""
    chunks: list[list[tuple[int, int, Sequence[int], bool]]] = [[]]
    room = most
    for row, start, ids, _ in waiting:
        first = 0
        while first < len(ids):
            if not room:
                chunks.append([])
                room = most
            taken = ids[first : first + room]
            last = first + len(taken) == len(ids)
            chunks[-1].append((row, start + first, taken, last))
            first, room = first + len(taken), room - len(taken)
    return chunks


def _up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """Zeroed bytes that begin at a line of the cache."""
    memory = np.zeros(size + 64 + _SPARE, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]
