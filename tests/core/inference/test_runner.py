"""What the engine may rely on, for every runner: equal to one full forward, whatever the order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.checkpoints.formats.layout import hugging_face_name
from codecria.core.inference import torch_runner
from codecria.core.inference.runner import Runner, Scores
from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.core.native import kernels
from codecria.core.native.runner import NativeRunner

SHAPES = {
    "multi-head": ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=4, hidden_dim=48, vocab_size=61, max_context=64
    ),
    "grouped-query": ModelConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=1,
        hidden_dim=48,
        vocab_size=61,
        max_context=64,
        rope_theta=1e6,
    ),
}
TOLERANCE = 1e-4  # float32, scores of deviation about 0.5


@pytest.fixture(params=sorted(SHAPES), scope="module")
def model(request: pytest.FixtureRequest) -> Transformer:
    model = Transformer(SHAPES[request.param])
    model.initialise(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0 if weight.ndim == 2 else 1.0)
    return model.eval()


def native_runner(model: Transformer) -> Runner:
    weights = {hugging_face_name(name): p.detach().numpy() for name, p in model.named_parameters()}
    return NativeRunner(model.config, weights, kernels.load(), dtype="float32", threads=2)


@pytest.fixture(params=[TorchRunner, native_runner], ids=["torch", "native"])
def new_runner(request: pytest.FixtureRequest, model: Transformer) -> Callable[[], Runner]:
    return lambda: request.param(model)


def full(model: Transformer, ids: list[int]) -> Scores:
    """(T,V) scores after each token of a sequence, by the reference forward."""
    with torch.no_grad():
        hidden = model(
            torch.tensor([ids]), torch.arange(len(ids)).unsqueeze(0), PackedAttention(None)
        )
        return model.logits(hidden)[0].numpy()  # type: ignore[no-any-return]


def tokens(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 61, n).tolist()  # type: ignore[no-any-return]


def close(found: Scores, expected: Scores) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_decoding_one_by_one_equals_the_full_forward(
    new_runner: Callable[[], Runner], model: Transformer
) -> None:
    ids = tokens(1, 24)
    runner = new_runner()
    runner.reserve(1, 24)
    found = [runner.prefill(0, [ids[:10]]).copy()]
    found += [runner.decode(0, [[token]]).copy() for token in ids[10:]]
    close(np.concatenate(found), full(model, ids)[9:])
    assert list(runner.lengths) == [24]


def test_ragged_prompts_equal_each_prompt_alone(
    new_runner: Callable[[], Runner], model: Transformer
) -> None:
    # Kills: padding that is attended to, one length used for all sequences.
    prompts = [tokens(n, n) for n in (3, 31, 1, 8)]
    runner = new_runner()
    runner.reserve(5, 40)
    found = [runner.prefill(1, prompts).copy()]  # beside an empty row
    found += [runner.decode(1, [[t], [t + 1], [t + 2], [t + 3]]).copy() for t in range(4)]
    for row, prompt in enumerate(prompts):
        expected = full(model, [*prompt, *(t + row for t in range(4))])
        close(np.stack([scores[row] for scores in found]), expected[len(prompt) - 1 :])


@pytest.mark.parametrize("chunk", [4, 100])
def test_a_prompt_may_come_in_parts_and_be_read_in_chunks(
    new_runner: Callable[[], Runner],
    model: Transformer,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_runner, "PREFILL_CHUNK", chunk)
    prompts = [tokens(1, 23), tokens(2, 9)]
    runner = new_runner()
    runner.reserve(2, 24)
    close(
        runner.prefill(0, [prompts[0][:10], prompts[1][:2]]),
        np.stack([full(model, prompts[0])[9], full(model, prompts[1])[1]]),
    )
    found = runner.prefill(0, [prompts[0][10:], prompts[1][2:]])
    close(found, np.stack([full(model, prompt)[-1] for prompt in prompts]))


steps = st.lists(
    st.tuples(
        st.lists(st.integers(1, 5), min_size=3, max_size=3),  # drafts a row
        st.lists(st.integers(0, 4), min_size=3, max_size=3),  # how many of them are rejected
    ),
    min_size=1,
    max_size=4,
)


@given(plan=steps, seed=st.integers(0, 9))
def test_drafts_score_as_one_by_one_and_rejected_ones_leave_no_trace(
    model: Transformer, plan: list[tuple[list[int], list[int]]], seed: int
) -> None:
    # Kills: a rejected draft that is still seen, scores in the wrong order, one row's mask.
    runner = TorchRunner(model)
    rows = [tokens(seed, 4), tokens(seed + 1, 9), tokens(seed + 2, 1)]
    runner.reserve(3, 40)
    runner.prefill(0, rows)
    for number, (counts, rejected) in enumerate(plan):
        drafts = [tokens(100 * number + n, count) for n, count in enumerate(counts)]
        found = runner.decode(0, drafts)
        assert len(found) == sum(counts)
        start = 0
        for row, draft in enumerate(drafts):
            expected = full(model, rows[row] + draft)[len(rows[row]) :]
            close(found[start : start + len(draft)], expected)
            start += len(draft)
            accepted = max(1, len(draft) - rejected[row])
            rows[row] = rows[row] + draft[:accepted]
            runner.truncate(row, len(rows[row]))
    assert list(runner.lengths) == [len(row) for row in rows]


def test_rows_are_copied_and_kept_with_their_sequences(
    new_runner: Callable[[], Runner], model: Transformer
) -> None:
    prompts = [tokens(1, 5), tokens(2, 7)]
    runner = new_runner()
    runner.reserve(4, 16)
    runner.prefill(0, prompts)
    runner.copy_rows(2, [1, 0])
    assert list(runner.lengths) == [5, 7, 7, 5]
    runner.keep([2, 0])
    assert list(runner.lengths) == [7, 5, 0, 0]
    found = runner.decode(0, [[3], [4]])
    close(found, np.stack([full(model, [*prompts[1], 3])[-1], full(model, [*prompts[0], 4])[-1]]))
    runner.keep([])
    close(runner.prefill(0, [prompts[1]]), full(model, prompts[1])[-1:])


def test_reserving_more_keeps_what_is_there(
    new_runner: Callable[[], Runner], model: Transformer
) -> None:
    ids = tokens(1, 6)
    runner = new_runner()
    runner.reserve(1, 7)
    runner.prefill(0, [ids])
    runner.reserve(3, 50)
    assert runner.rows >= 3
    assert runner.positions >= 50
    close(runner.decode(0, [[9]]), full(model, [*ids, 9])[-1:])


def test_a_restored_span_continues_as_if_it_had_been_read(
    new_runner: Callable[[], Runner], model: Transformer
) -> None:
    # Kills: keys and values mixed up, a span put at another position, another row overwritten.
    ids = tokens(1, 20)
    runner = new_runner()
    runner.reserve(2, 32)
    runner.prefill(0, [ids])
    parts = [runner.snapshot(0, 0, 8), runner.snapshot(0, 8, 16)]
    runner.keep([])
    other = tokens(2, 12)
    runner.prefill(0, [other])
    runner.restore(1, 0, parts[0])
    runner.restore(1, 8, np.frombuffer(parts[1].tobytes(), dtype=np.uint8))
    assert list(runner.lengths)[:2] == [12, 16]
    close(runner.prefill(1, [ids[16:]]), full(model, ids)[-1:])
    close(runner.decode(0, [[5], [6]])[0], full(model, [*other, 5])[-1])


def test_what_lies_in_unused_memory_does_not_reach_the_scores(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kills: a cache of unset memory, where a masked NaN still spoils the sum.
    def poisoned(*shape: object, **options: object) -> torch.Tensor:
        return torch.full(*shape, float("nan"), **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", poisoned)
    runner = TorchRunner(model)
    runner.reserve(2, 12)
    runner.prefill(0, [[1, 2, 3, 4], [5]])
    for _ in range(3):
        assert np.isfinite(runner.decode(0, [[6], [7]])).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_scores_as_the_cpu_does(model: Transformer) -> None:
    twin = Transformer(model.config)
    twin.load_state_dict(model.state_dict())
    found = []
    for runner in (TorchRunner(model), TorchRunner(twin.cuda().eval())):
        runner.reserve(2, 32)
        scores = [runner.prefill(0, [tokens(1, 9), tokens(2, 4)])]
        scores.append(runner.decode(0, [[1, 2, 3], [4]]))
        span = runner.snapshot(0, 0, 9)
        runner.truncate(0, 0)
        runner.restore(0, 0, span)
        scores.append(runner.decode(0, [[5], [6]]))
        found.append(np.concatenate(scores))
    np.testing.assert_allclose(found[0], found[1], atol=5e-3, rtol=0)
