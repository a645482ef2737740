"""The CPU engine's scores: against plain numpy, against PyTorch, and against themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.model.config import ModelConfig
from codecria.core.model.rope import Llama3Scaling
from codecria.core.model.transformer import Transformer
from codecria.core.native import kernels
from codecria.core.native.check import random_weights, reference, rounded_weights
from codecria.core.native.cpu import NEEDS
from codecria.core.native.key_values import CacheDtype
from codecria.core.native.packing import PackedKind, as_float32, pack, unpack
from codecria.core.native.runner import ROUNDED_TOKENS, NativeRunner
from codecria.core.native.weights import (
    EMBEDDING,
    HEAD,
    Dtype,
    Packed,
    Weight,
    matrix,
    to_bfloat16,
)
from tests.core.native.models import torch_model

SMALL = ModelConfig(
    dim=96, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=72, vocab_size=90, max_context=64
)
# Largest error of a score, in units of the scores' deviation, against the same rounded weights.
TOLERANCE: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.05, "q8": 0.15, "q4": 0.15}
DTYPES: tuple[Dtype, ...] = tuple(TOLERANCE)
# By their outputs' last bit. In bfloat16 a long prompt is rounded, see the runner's module.
EXACT = [d for d in DTYPES if d != "bfloat16"]


def runner_of(
    config: ModelConfig,
    dtype: Dtype,
    *,
    threads: int = 1,
    cache: CacheDtype | None = None,
    level: str | None = None,
    seed: int = 0,
    rows: int = 4,
    positions: int = 64,
) -> NativeRunner:
    runner = NativeRunner(
        config,
        random_weights(config, seed),
        kernels.load(level=level),
        dtype=dtype,
        cache_dtype=cache,
        threads=threads,
    )
    runner.reserve(rows, positions)
    return runner


def off_by(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / expected.std())


def some_ids(count: int, config: ModelConfig = SMALL, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, count).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    groups=st.integers(1, 4),
    per_group=st.integers(1, 9),
    half_head=st.integers(1, 20),
    hidden=st.integers(1, 150),
    vocab=st.integers(2, 150),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
def test_scores_are_those_of_the_rounded_weights_for_models_of_any_shape(
    dtype: Dtype, groups: int, per_group: int, half_head: int, hidden: int, vocab: int, tied: bool,
    seed: int,
) -> None:  # fmt: skip
    heads = groups * per_group
    config = ModelConfig(
        dim=heads * 2 * half_head, n_layers=1, n_heads=heads, n_kv_heads=groups,
        hidden_dim=hidden, vocab_size=vocab, tied=tied,
    )  # fmt: skip
    ids = some_ids(ROUNDED_TOKENS + 3, config, seed)
    runner = runner_of(config, dtype, seed=seed, threads=1 + seed % 2)
    weights = rounded_weights(random_weights(config, seed), dtype)
    expected = reference(config, weights, ids)
    found = [runner.prefill(0, [ids[:-2]]), runner.decode(0, [ids[-2:]])]
    error = np.abs(np.concatenate([part.copy() for part in found]) - expected[-3:]).max()
    # Scores of a model this small can nearly cancel: the error is seen beside their terms.
    scale = max(float(expected.std()), 0.3)
    assert error / scale < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("head_dim", [48, 64, 80, 128])
@pytest.mark.parametrize("vocab", [32_000, 32_016, 4_112])
def test_the_head_dimensions_and_vocabularies_of_real_models(head_dim: int, vocab: int) -> None:
    config = ModelConfig(
        dim=2 * head_dim, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=128, vocab_size=vocab
    )
    ids = some_ids(5, config)
    runner = runner_of(config, "q8")
    expected = reference(config, rounded_weights(random_weights(config), "q8"), ids)
    assert off_by(runner.decode(0, [ids]), expected) < TOLERANCE["q8"]


ROTATIONS = {
    "plain": SMALL,
    "theta 1e6": replace(SMALL, rope_theta=1e6),
    "linear": replace(SMALL, rope_scale=4.0),
    "llama3": replace(
        SMALL,
        rope_theta=5e5,
        llama3=Llama3Scaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16
        ),
    ),
    "tied": replace(SMALL, tied=True),
}


@pytest.mark.parametrize("name", sorted(ROTATIONS))
@torch.no_grad()
def test_float32_scores_are_pytorchs(name: str) -> None:
    config = ROTATIONS[name]
    model = torch_model(config, random_weights(config))
    ours, theirs = runner_of(config, "float32", positions=300), TorchRunner(model)
    theirs.reserve(1, 300)
    ids = some_ids(290)
    assert off_by(ours.prefill(0, [ids]), theirs.prefill(0, [ids])) < 1e-4
    assert off_by(ours.decode(0, [ids[:5]]), theirs.decode(0, [ids[:5]])) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("level", list(NEEDS))
def test_the_code_of_every_level_of_cpu_gives_the_same_scores(level: str) -> None:
    """A level that this CPU has not got falls back to the next, which is then tested twice."""
    ids = some_ids(40)
    for dtype in DTYPES:
        expected = reference(SMALL, rounded_weights(random_weights(SMALL), dtype), ids)
        for cache in ("float32", "bfloat16", "q8"):
            runner = runner_of(SMALL, dtype, cache=cache, level=level)
            found = [
                part.copy()
                for part in (
                    runner.prefill(0, [ids[:20]]),
                    runner.decode(0, [ids[20:21]]),
                    runner.decode(0, [ids[21:]]),
                )
            ]
            tolerance = TOLERANCE[dtype] if cache != "q8" else 0.15
            tolerance = max(tolerance, 0.05 if cache == "bfloat16" else 0)
            assert off_by(np.concatenate(found), expected[19:]) < tolerance, (dtype, cache)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=6)
def test_scores_are_the_same_bits_alone_in_a_batch_and_for_any_threads(
    dtype: Dtype, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
    drafts = data.draw(st.lists(st.integers(1, 9), min_size=len(lengths), max_size=len(lengths)))
    prompts = [some_ids(length, seed=n) for n, length in enumerate(lengths)]
    more = [some_ids(count, seed=100 + n) for n, count in enumerate(drafts)]
    together = runner_of(SMALL, dtype, threads=data.draw(st.sampled_from([1, 2, 3, 7])))
    first = together.prefill(0, prompts).copy()
    then = together.decode(0, more).copy()
    for row, (prompt, some) in enumerate(zip(prompts, more, strict=True)):
        alone = runner_of(SMALL, dtype, threads=1)
        assert (alone.prefill(0, [prompt])[0] == first[row]).all()
        start = sum(map(len, more[:row]))
        for place, token in enumerate(some):
            assert (alone.decode(0, [[token]])[0] == then[start + place]).all()


@pytest.mark.parametrize("dtype", EXACT)
def test_a_prompt_scores_the_same_bits_read_at_once_or_token_by_token(dtype: Dtype) -> None:
    ids = some_ids(600)
    at_once = runner_of(SMALL, dtype, positions=600)
    one_by_one = runner_of(SMALL, dtype, positions=600)
    expected = [one_by_one.decode(0, [[token]])[0].copy() for token in ids][-1]
    assert (at_once.prefill(0, [ids])[0] == expected).all()


@pytest.mark.parametrize("cache", ["float32", "bfloat16", "q8"])
@settings(max_examples=5)
@given(length=st.integers(100, 300), more=st.integers(1, 20), half_head=st.integers(1, 40))
def test_long_attention_scores_the_same_bits_for_any_number_of_queries(
    cache: CacheDtype, length: int, more: int, half_head: int
) -> None:
    """More positions than are served together, and as many queries as there are tiles of them."""
    config = replace(SMALL, dim=8 * half_head, n_heads=4, n_kv_heads=4)
    ids = some_ids(length + more, config)
    some, one = (runner_of(config, "q8", cache=cache, positions=320) for _ in range(2))
    for runner in (some, one):
        runner.prefill(0, [ids[:length]])
    expected = [one.decode(0, [[token]])[0].copy() for token in ids[length:]]
    assert (some.decode(0, [ids[length:]]) == np.array(expected)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=4)
@given(tokens=st.integers(2, 20), threads=st.integers(1, 2), vocab=st.integers(3_000, 4_200))
def test_matrices_larger_than_the_cache_score_the_same_bits_in_a_batch(
    dtype: Dtype, tokens: int, threads: int, vocab: int
) -> None:
    """A share of the output matrix is cut in parts, of which each is used for all tokens."""
    config = ModelConfig(
        dim=320, n_layers=1, n_heads=5, n_kv_heads=5, hidden_dim=96, vocab_size=vocab
    )
    ids = some_ids(tokens, config)
    some, one = (runner_of(config, dtype, threads=n) for n in (threads, 1))
    expected = [one.decode(0, [[token]])[0].copy() for token in ids]
    assert (some.decode(0, [ids]) == np.array(expected)).all()


@settings(max_examples=12)
@given(
    tokens=st.integers(ROUNDED_TOKENS, 40),
    groups=st.integers(1, 20),
    blocks=st.integers(1, 11),
    threads=st.integers(1, 2),
)
def test_prompts_in_bfloat16_score_as_numpy_does_for_any_panels(
    tokens: int, groups: int, blocks: int, threads: int
) -> None:
    """Inputs of one panel and of several, blocks of rows that fill the last one or do not."""
    config = ModelConfig(
        dim=32 * groups, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=16 * blocks, vocab_size=50
    )
    ids = some_ids(tokens, config)
    runner = runner_of(config, "bfloat16", threads=threads)
    expected = reference(config, rounded_weights(random_weights(config), "bfloat16"), ids)
    assert off_by(runner.prefill(0, [ids]), expected[-1:]) < 2 * TOLERANCE["bfloat16"]


def test_q4_has_its_output_matrix_in_8_bits_as_packed_folders_have() -> None:
    for config in (SMALL, replace(SMALL, tied=True)):
        runner = runner_of(config, "q4")
        weights = random_weights(config)
        head = matrix(weights.get(HEAD, weights[EMBEDDING]), "q8", config.vocab_size, config.dim)
        assert runner.weights.head.kind == head.kind
        assert (runner.weights.head.data == head.data).all()


@torch.no_grad()
@pytest.mark.parametrize("cache", ["float32", "bfloat16", "q8"])
@settings(max_examples=15)
@given(data=st.data())
def test_any_schedule_of_calls_gives_pytorchs_scores(
    cache: CacheDtype, data: st.DataObject
) -> None:
    """Prefill, decode, truncate, copy, keep, snapshot and restore in any order."""
    model = _MODEL
    ours, theirs = runner_of(SMALL, "float32", cache=cache), TorchRunner(model)
    theirs.reserve(4, 64)
    tolerance = {"float32": 1e-4, "bfloat16": 0.05, "q8": 0.1}[cache]
    number = st.integers(0, SMALL.vocab_size - 1)
    for _ in range(data.draw(st.integers(1, 8))):
        filled = [row for row, length in enumerate(theirs.lengths) if length]
        action = data.draw(
            st.sampled_from(
                ["prefill", "decode"] + ["truncate", "copy", "keep", "snap"] * bool(filled)
            )
        )
        if action in ("prefill", "decode"):
            row = data.draw(st.integers(0, 3))
            count = data.draw(st.integers(1, 4 - row))
            room = 64 - max(theirs.lengths[row : row + count])
            if not room:
                continue
            sizes = [data.draw(st.integers(1, min(room, 25))) for _ in range(count)]
            tokens = [data.draw(st.lists(number, min_size=n, max_size=n)) for n in sizes]
            call = [getattr(runner, action)(row, tokens) for runner in (ours, theirs)]
            assert off_by(*call) < tolerance
        elif action == "truncate":
            row = data.draw(st.sampled_from(filled))
            length = data.draw(st.integers(0, theirs.lengths[row]))
            ours.truncate(row, length), theirs.truncate(row, length)
        elif action == "copy":
            start = data.draw(st.integers(0, 3))
            sources = data.draw(st.lists(st.sampled_from(filled), min_size=1, max_size=4 - start))
            ours.copy_rows(start, sources), theirs.copy_rows(start, sources)
        elif action == "keep":
            kept = data.draw(st.lists(st.sampled_from(filled), unique=True))
            ours.keep(kept), theirs.keep(kept)
        else:
            row = data.draw(st.sampled_from(filled))
            stop = theirs.lengths[row]
            start = data.draw(st.integers(0, stop - 1))
            for runner in (ours, theirs):
                saved = runner.snapshot(row, start, stop)
                runner.truncate(row, start)
                runner.decode(row, [[1]])  # something else in its place
                runner.restore(row, start, saved)
        assert list(ours.lengths) == list(theirs.lengths)


_MODEL: Transformer = torch_model(SMALL, random_weights(SMALL))


def test_reserving_more_keeps_what_the_rows_hold() -> None:
    ids = some_ids(30)
    small, large = runner_of(SMALL, "q8", rows=1, positions=20), runner_of(SMALL, "q8")
    for runner in (small, large):
        runner.prefill(0, [ids[:19]])
    small.reserve(3, 1000)
    assert small.positions >= 1000
    assert (small.decode(0, [ids[19:]]) == large.decode(0, [ids[19:]])).all()


@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_weights_that_were_packed_before_give_the_same_bits(kind: Dtype) -> None:
    assert kind in ("q8", "q4")
    config = replace(SMALL, tied=True)
    weights = random_weights(config)
    embedding = weights["model.embed_tokens.weight"]
    packed = {
        name: Packed(kind, pack(kind, weight))
        if weight.ndim == 2 and weight is not embedding
        else weight
        for name, weight in weights.items()
    }
    ids = some_ids(20)
    runners = [
        NativeRunner(config, some, kernels.load(), dtype=kind, threads=1)
        for some in (weights, packed)
    ]
    for runner in runners:
        runner.reserve(1, 20)
    assert (runners[0].prefill(0, [ids]) == runners[1].prefill(0, [ids])).all()
    unpacked = NativeRunner(config, packed, kernels.load(), dtype="float32", threads=1)
    unpacked.reserve(1, 20)
    expected = reference(config, rounded_weights(weights, kind) | {HEAD: embedding}, ids)
    assert off_by(unpacked.decode(0, [ids]), expected) < 1e-4


def test_an_embedding_that_is_stored_packed_is_looked_up_and_scored() -> None:
    config = replace(SMALL, tied=True)
    weights = dict(random_weights(config))
    name = "model.embed_tokens.weight"
    rounded = rounded_weights(weights, "q8")[HEAD]
    packed = weights | {name: Packed("q8", pack("q8", weights[name]))}
    ids = some_ids(10)
    runner = NativeRunner(config, packed, kernels.load(), dtype="q8", threads=1)
    runner.reserve(1, 10)
    expected = reference(config, rounded_weights(weights | {name: rounded}, "q8"), ids)
    assert off_by(runner.decode(0, [ids]), expected) < TOLERANCE["q8"]


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "q8", "q4"])
@given(dim=st.sampled_from([32, 64, 72, 96]), seed=st.integers(0, 99))
@settings(max_examples=6)
def test_an_embedding_is_looked_up_as_exactly_as_it_is_stored(
    stored: str, dim: int, seed: int
) -> None:
    config = replace(SMALL, dim=dim, n_heads=2, n_kv_heads=1)
    weights: dict[str, Weight] = dict(random_weights(config, seed))
    table = cast("np.ndarray", weights[EMBEDDING])
    weights.setdefault(HEAD, table)
    if stored == "float16":
        kept: Weight = table.astype(np.float16)
        exact = kept.astype(np.float32)
    elif stored == "bfloat16":
        kept = to_bfloat16(table)
        exact = as_float32(kept)
    else:
        kind: PackedKind = "q8" if stored == "q8" else "q4"
        kept = Packed(kind, pack(kind, table))
        exact = unpack(kind, kept.data, *table.shape)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, 20).tolist()
    scores = []
    for embedding in (kept, exact):
        its_weights = weights | {EMBEDDING: embedding}
        runner = NativeRunner(config, its_weights, kernels.load(), dtype="float32", threads=1)
        runner.reserve(1, 20)
        scores.append(runner.decode(0, [ids]))
    assert (scores[0] == scores[1]).all()


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    runner = NativeRunner(SMALL, random_weights(SMALL), kernels.load(), dtype="q8", threads=1)
    runner.reserve(1, 8)
    for wrong in (SMALL.vocab_size, -1):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            runner.prefill(0, [[1, wrong]])
    assert list(runner.lengths) == [0]


def test_stored_bfloat16_is_used_where_it_lies() -> None:
    config = replace(SMALL, hidden_dim=64, vocab_size=96)
    weights = {name: to_bfloat16(weight) for name, weight in random_weights(config).items()}
    runner = NativeRunner(config, weights, kernels.load(), dtype="bfloat16", threads=1)
    mapped = [runner.weights.table[0, 0], runner.weights.head.address]
    names = ("model.layers.0.self_attn.q_proj.weight", HEAD)
    assert mapped == [weights[name].ctypes.data for name in names]


def test_a_prompt_interrupted_between_layers_leaves_the_row_as_it_was() -> None:
    ids, loaded = some_ids(40), kernels.load()
    calls = []

    def interrupted(record: int, first: int, last: int) -> None:
        calls.append(first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        loaded.forward(record, first, last)

    runner = NativeRunner(
        SMALL,
        random_weights(SMALL),
        replace(loaded, forward=interrupted),
        dtype="q8",
        threads=2,
    )
    runner.reserve(1, 64)
    with pytest.raises(KeyboardInterrupt):
        runner.prefill(0, [ids])
    assert list(runner.lengths) == [0]
    assert (runner.prefill(0, [ids]) == runner_of(SMALL, "q8").prefill(0, [ids])).all()
