"""The engine: what a batch decodes is what each prompt decodes alone, whenever it comes or goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import Engine, complete
from codecria.core.inference.healing import Opening
from codecria.core.inference.sampling import Sampling
from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from tests.core.inference.letters import CONFIG, END, Letters, letter_model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return letter_model()


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 25), min_size=1, max_size=40).map(tuple),  # the prompt
        st.integers(1, 12),  # its longest completion
        st.sampled_from([0.0, 0.8, 1.5]),  # its temperature
        st.integers(0, 3),  # its seed
        st.sampled_from([(), ("ab",), ("c", "xyz")]),  # its stop strings
        st.integers(0, 6),  # the step before which it comes
        st.one_of(st.none(), st.integers(0, 5)),  # and after how many more it is cancelled
    ),
    min_size=1,
    max_size=7,
)


@given(asked=requests, batch=st.integers(1, 5))
def test_a_sequence_does_not_depend_on_when_it_comes_or_on_what_goes(
    model: Transformer, asked: list[tuple], batch: int
) -> None:
    # Kills: rows of the cache mixed up when one ends, another's limits, stops or random numbers.
    engine = Engine(TorchRunner(model), Letters, batch=batch)
    texts: dict[int, str] = {}
    done: dict[int, Completion] = {}
    numbers: dict[int, int] = {}
    cancelled: dict[int, int] = {}
    step = 0
    while step < 8 or engine.busy:
        for n, (prompt, most, temperature, seed, stops, comes, leaves) in enumerate(asked):
            if comes == step:
                numbers[n] = engine.add(
                    prompt,
                    sampling=Sampling(temperature=temperature, seed=seed),
                    limits=Limits(max_tokens=most, stops=stops),
                    ends=frozenset({END}),
                )
            if leaves is not None and comes + leaves == step and numbers[n] not in done:
                engine.cancel(numbers[n])
                cancelled[numbers[n]] = step
        for number, event in engine.step():
            assert number not in done
            assert number not in cancelled
            if isinstance(event, str):
                texts[number] = texts.get(number, "") + event
            else:
                done[number] = event
        step += 1
    assert not engine.step()
    for n, (prompt, most, temperature, seed, stops, _, _) in enumerate(asked):
        [alone] = [
            event
            for _, event in complete(
                TorchRunner(model),
                prompt,
                new_stream=Letters,
                sampling=Sampling(temperature=temperature, seed=seed),
                limits=Limits(max_tokens=most, stops=stops),
                ends=frozenset({END}),
            )
            if isinstance(event, Completion)
        ]
        shown = texts.get(numbers[n], "")
        if numbers[n] in cancelled:
            assert alone.text.startswith(shown)
        else:
            found = done[numbers[n]]
            assert (found.text, found.ids, found.finish_reason, shown) == (
                alone.text,
                alone.ids,
                alone.finish_reason,
                alone.text,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cache_may_be_of_another_type_than_the_weights(
    model: Transformer, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    twin = Transformer(CONFIG).to(dtype).eval()
    twin.load_state_dict(model.state_dict())
    prompts, scores = [[1, 5, 9, 20, 4, 2], [7, 7]], []
    for stored in (cache_dtype, dtype):
        runner = TorchRunner(twin, cache_dtype=stored)
        runner.reserve(2, 12)
        runner.prefill(0, prompts)
        scores.append(runner.decode(0, [[3], [11]]))
        assert runner.cache.keys.dtype == stored
    error = np.abs(scores[0] - scores[1]).max() / scores[1].std()
    assert error < (1e-9 if cache_dtype == dtype else 0.05)
    engine = Engine(TorchRunner(twin, cache_dtype=cache_dtype), Letters)
    for prompt in prompts:
        engine.add(prompt, sampling=Sampling(), limits=Limits(max_tokens=4), ends=frozenset())
    assert sum(isinstance(event, Completion) for _, event in engine.run()) == 2


def test_banned_ids_are_drawn_only_where_they_end(model: Transformer) -> None:
    banned = frozenset(range(4, 26))  # a few letters are left
    engine = Engine(TorchRunner(model), Letters, banned=banned, batch=64)
    ends = {}
    for seed in range(40):
        end = frozenset({5}) if seed % 2 else frozenset({END})
        number = engine.add(
            [1, 2],
            sampling=Sampling(temperature=30.0, seed=seed),
            limits=Limits(max_tokens=30),
            ends=end,
        )
        ends[number] = end
    reasons = {end: set[str]() for end in ends.values()}
    for number, event in engine.run():
        if isinstance(event, Completion):
            assert set(event.ids) <= {0, 1, 2, 3} - ends[number]
            reasons[ends[number]].add(event.finish_reason)
    assert all("stop" in found for found in reasons.values())


def test_ids_beyond_the_pieces_cannot_end_a_healed_completion(model: Transformer) -> None:
    pieces = tuple(bytes([ord("a") + n]) for n in range(10))  # the model has 16 rows more
    opening = Opening(text=b"ca", pieces=pieces)
    for seed in range(20):
        events = complete(
            TorchRunner(model),
            [1, 2],
            new_stream=Letters,
            sampling=Sampling(temperature=5.0, seed=seed),
            limits=Limits(max_tokens=8),
            ends=frozenset({END}),
            opening=opening,
            banned=range(10, 26),
        )
        [done] = [event for _, event in events if isinstance(event, Completion)]
        assert done.ids[:2] == (2, 0)
        assert max(done.ids) < 10


def test_an_opening_that_no_token_continues_is_given_up(model: Transformer) -> None:
    opening = Opening(text=b"ab", pieces=(b"", b"a", b"x"))
    events = complete(
        TorchRunner(model),
        [1],
        new_stream=Letters,
        sampling=Sampling(),
        limits=Limits(max_tokens=3),
        ends=frozenset(),
        opening=opening,
    )
    assert any(isinstance(event, Completion) for _, event in events)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_not_finite_end_in_one_clear_error(bad: float, temperature: float) -> None:
    broken = Transformer(CONFIG)
    broken.initialise(0)
    with torch.no_grad():
        broken.output.weight[7, 0] = bad
    with pytest.raises(UserError, match="the model's scores are not finite") as refused:
        list(
            complete(
                TorchRunner(broken.eval()),
                [1, 2],
                new_stream=Letters,
                sampling=Sampling(temperature=temperature),
                limits=Limits(max_tokens=4),
                ends=frozenset(),
                banned=(7,),
            )
        )
    assert "--dtype float32" in str(refused.value.hint)
