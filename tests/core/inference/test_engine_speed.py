"""What makes the engine faster changes nothing: drafts, cached prefixes, prompts read in chunks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.draft_gate import Acceptance, Gate
from codecria.core.inference.drafting import Draft, Sources
from codecria.core.inference.engine import Engine, complete
from codecria.core.inference.prefix_cache import BLOCK, PrefixCache
from codecria.core.inference.sampling import Sampling
from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.model.transformer import Transformer
from tests.core.inference import letters
from tests.core.inference.letters import END, Letters, letter_model

CONFIG = replace(letters.CONFIG, max_context=256)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return letter_model(CONFIG)


class Eager(Gate):
    """A gate that lets drafts through, each of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def length(self, acceptance: Acceptance, draft: Draft, others: int) -> int:  # noqa: ARG002
        self.asked += 1
        return min(len(draft.tokens), self.asked % 7)


def alone(model: Transformer, prompt: tuple[int, ...], sampling: Sampling, limits: Limits) -> tuple:
    """A completion without anything that makes it faster."""
    [found] = [
        event
        for _, event in complete(
            TorchRunner(model),
            prompt,
            new_stream=Letters,
            sampling=sampling,
            limits=limits,
            ends=frozenset({END}),
        )
        if isinstance(event, Completion)
    ]
    return found.text, found.ids, found.finish_reason


def engine_of(model: Transformer, **settings: object) -> Engine:
    engine = Engine(TorchRunner(model), Letters, **settings)  # type: ignore[arg-type]
    engine._gate = Eager()
    return engine


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 25), min_size=1, max_size=40).map(tuple),
        st.integers(1, 3),  # how often the prompt repeats it
        st.integers(1, 40),  # the longest completion
        st.sampled_from([0.0, 0.0, 0.8]),  # the temperature
        st.sampled_from([(), ("ab",), ("c", "xyz")]),  # the stop strings
        st.integers(0, 5),  # the step before which it comes
        st.booleans(),  # whether its answer is predicted
        st.one_of(st.none(), st.integers(0, 5)),  # after how many steps it is cancelled
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=20)
@given(asked=requests, chunk=st.sampled_from([None, 5, 33]), cached=st.booleans())
def test_drafts_chunks_and_cached_prefixes_change_no_text(
    model: Transformer, asked: list[tuple], chunk: int | None, cached: bool
) -> None:
    # Kills: a wrong draft that stays, rows that are mixed up while another prompt is being read,
    # a block of another prompt, a random number that a rejected draft has used up.
    engine = engine_of(model, batch=3, chunk=chunk, cache=PrefixCache() if cached else None)
    expected = [
        alone(model, p * times, Sampling(temperature=t, seed=1), Limits(max_tokens=most, stops=s))
        for p, times, most, t, s, *_ in asked
    ]
    for _ in range(2):  # the second time from the cache
        numbers: dict[int, int] = {}
        done: dict[int, Completion] = {}
        step = 0
        while step < 12 or engine.busy:
            for n, (p, times, most, t, s, comes, predicted, leaves) in enumerate(asked):
                if comes == step:
                    numbers[n] = engine.add(
                        p * times,
                        sampling=Sampling(temperature=t, seed=1),
                        limits=Limits(max_tokens=most, stops=s),
                        ends=frozenset({END}),
                        sources=Sources(
                            history=p * times, prediction=expected[n][1] if predicted else ()
                        ),
                    )
                if leaves is not None and comes + leaves == step:
                    engine.cancel(numbers[n])
            for number, event in engine.step():
                if isinstance(event, Completion):
                    done[number] = event
            step += 1
        for n, (text, ids, reason) in enumerate(expected):
            found = done.get(numbers[n])
            if found is None:
                assert asked[n][-1] is not None, "it was not cancelled"
            else:
                assert (found.text, found.ids, found.finish_reason) == (text, ids, reason)
        assert not any(engine._runner.lengths), "a row was not freed"


def test_a_repetitive_answer_takes_fewer_passes_and_says_so(model: Transformer) -> None:
    prompt = (5, 9, 20, 4, 2, 8, 8, 1)
    text, ids, _ = alone(model, prompt, Sampling(), Limits(max_tokens=60))
    engine = engine_of(model)
    engine.add(
        prompt,
        sampling=Sampling(),
        limits=Limits(max_tokens=60),
        ends=frozenset({END}),
        sources=Sources(history=prompt, prediction=ids),
    )
    steps, found = 0, None
    while engine.busy:
        steps += 1
        found = next((e for _, e in engine.step() if isinstance(e, Completion)), None)
    assert found is not None
    assert found.text == text
    assert steps < len(ids) / 2
    assert found.accepted == found.drafted > len(ids) / 2


def test_scores_too_close_to_call_are_computed_alone(model: Transformer) -> None:
    class Vague(TorchRunner):
        tolerance = 1e9  # everything is too close

    prompt = (5, 9, 20, 4, 2)
    text, ids, _ = alone(model, prompt, Sampling(), Limits(max_tokens=20))
    engine = Engine(Vague(model), Letters)
    engine._gate = Eager()
    engine.add(
        prompt,
        sampling=Sampling(),
        limits=Limits(max_tokens=20),
        ends=frozenset({END}),
        sources=Sources(history=prompt, prediction=ids),
    )
    [found] = [event for _, event in engine.run() if isinstance(event, Completion)]
    assert found.text == text
    assert found.accepted == 0


def test_sampling_with_drafts_has_the_distribution_without(model: Transformer) -> None:
    # The second token's counts over many seeds, the first one drafted, rightly or not.
    prompt, sampling = (5, 9, 20), Sampling(temperature=1.0)
    counts = np.zeros((2, 26))
    for drafts in (False, True):
        for seed in range(120):
            engine = engine_of(model)
            engine.add(
                prompt,
                sampling=Sampling(temperature=sampling.temperature, seed=seed),
                limits=Limits(max_tokens=3),
                ends=frozenset(),
                sources=Sources(history=prompt, prediction=(7, seed % 26, 7)) if drafts else None,
            )
            [found] = [event for _, event in engine.run() if isinstance(event, Completion)]
            counts[int(drafts), found.ids[1]] += 1
    assert (counts[0] == counts[1]).all()  # token by token: the same random numbers


def test_reading_alone_fills_the_cache_and_generates_nothing(model: Transformer) -> None:
    cache = PrefixCache()
    engine = engine_of(model, cache=cache, chunk=16)
    prompt = tuple(n % 20 for n in range(2 * BLOCK + 3))
    options = {"sampling": Sampling(), "limits": Limits(max_tokens=4), "ends": frozenset({END})}
    engine.add(prompt, read_only=True, **options)
    [found] = [event for _, event in engine.run()]
    assert isinstance(found, Completion)
    assert (found.ids, found.text, found.cached_tokens) == ((), "", 0)
    engine.add(prompt, **options)
    [found] = [event for _, event in engine.run() if isinstance(event, Completion)]
    assert found.cached_tokens == 2 * BLOCK
    assert (found.text, found.ids, found.finish_reason) == alone(
        model, prompt, Sampling(), Limits(max_tokens=4)
    )


def test_what_is_ended_early_gives_what_there_is(model: Transformer) -> None:
    cache = PrefixCache()
    engine = engine_of(model, cache=cache, chunk=BLOCK)
    prompt = tuple(n % 20 for n in range(5 * BLOCK))
    options = {"sampling": Sampling(), "limits": Limits(max_tokens=50), "ends": frozenset()}
    number = engine.add(prompt, **options)
    for _ in range(4):
        assert engine.step() == []  # still reading
    assert engine.first_at(number) is None
    [(_, early)] = engine.end(number)
    assert isinstance(early, Completion)
    assert (early.text, early.finish_reason) == ("", "length")
    assert not engine.busy
    number = engine.add(prompt, **options)
    texts = ""
    for _ in range(8):
        texts += "".join(event for _, event in engine.step() if isinstance(event, str))
    assert engine.first_at(number) is not None
    *_, (_, late) = engine.end(number)
    assert isinstance(late, Completion)
    assert late.cached_tokens == 4 * BLOCK  # what was read before it was ended the first time
    assert late.text == texts
    assert not engine.busy
    assert not any(engine._runner.lengths)
    assert engine.end(number) == []


def test_scores_are_those_of_the_tokens(model: Transformer) -> None:
    prompt = (5, 9, 20)
    engine = engine_of(model)
    engine.add(
        prompt,
        sampling=Sampling(),
        limits=Limits(max_tokens=8),
        ends=frozenset({END}),
        top_scores=3,
    )
    [found] = [event for _, event in engine.run() if isinstance(event, Completion)]
    runner = TorchRunner(model)
    runner.reserve(1, 20)
    scores = runner.prefill(0, [prompt])[0].astype(np.float64)
    logs = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
    first = found.scores[0]
    assert first.token == found.ids[0] == int(logs.argmax())
    assert first.logprob == pytest.approx(logs.max(), abs=1e-5)
    assert [t for t, _ in first.top] == np.argsort(-logs, kind="stable")[:3].tolist()
    assert len(found.scores) >= len(found.ids)
