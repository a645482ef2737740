"""Many prompts through one engine: each text is what its prompt writes alone, in fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.refill import Request, completions
from codecria.core.inference.runner import Runner, Scores
from codecria.core.inference.sampling import Sampling

ENGINES = ("native", "torch")


@pytest.fixture(scope="module")
def generators(small_model: Path) -> dict[str, Generator]:
    return {
        name: Generator.load(small_model, engine=name, device="cpu", threads=1)  # type: ignore[arg-type]
        for name in ENGINES
    }


class Counting:
    """A runner that counts its steps and the tokens of prompts it reads."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.steps = self.read = self.decoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def prefill(self, row: int, prompts: Sequence[Sequence[int]]) -> Scores:
        self.read += sum(map(len, prompts))
        return self._runner.prefill(row, prompts)

    def decode(self, row: int, tokens: Sequence[Sequence[int]]) -> Scores:
        self.steps += 1
        self.decoded += len(tokens)
        return self._runner.decode(row, tokens)


def counting(generator: Generator) -> tuple[Generator, Counting]:
    runner = Counting(generator.runner)
    return Generator(runner, generator.tokenizer, generator.ends), runner  # type: ignore[arg-type]


def request(item: tuple[int, int, int]) -> Request | None:
    """Of (prompt, sample, longest completion); the model cannot be asked without a prompt."""
    prompt, sample, most = item
    if not prompt:
        return None
    return Request(
        prompt=[1, *range(300, 300 + prompt)],
        sampling=Sampling(temperature=0.8, top_p=0.95, seed=prompt),
        limits=Limits(max_tokens=most),
        ends=frozenset({2}),
        sample=sample,
    )


def alone(generator: Generator, item: tuple[int, int, int]) -> tuple[int, ...] | None:
    asked = request(item)
    if asked is None:
        return None
    engine = generator.engine(batch=1)
    engine.add(
        asked.prompt,
        sampling=asked.sampling,
        limits=asked.limits,
        ends=asked.ends,
        sample=asked.sample,
    )
    [found] = [event.ids for _, event in engine.run() if isinstance(event, Completion)]
    return found


items = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(1, 12))
asked = st.lists(st.lists(items, max_size=4), max_size=6)


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=asked, batch=st.integers(1, 5), window=st.integers(1, 3), data=st.data())
def test_every_group_comes_in_order_with_what_each_prompt_writes_alone(
    generators: dict[str, Generator],
    name: str,
    groups: list[list[tuple[int, int, int]]],
    batch: int,
    window: int,
    data: st.DataObject,
) -> None:
    # Kills: a row that is mixed up when another sequence takes its place, a random number drawn by
    # place and not by sample, scores of another prompt that a sequence begins with.
    generator = generators[name]
    known = data.draw(st.sets(items))
    found = list(
        completions(
            generator,
            iter(groups),
            request,
            is_missing=lambda item: item not in known,
            batch=batch,
            window=window,
        )
    )
    missing = [[item for item in group if item not in known] for group in groups]
    assert [[item for item, _ in group] for group in found] == [group for group in missing if group]
    for group in found:
        for item, said in group:
            assert (None if said is None else said.ids) == alone(generator, item)


@pytest.mark.parametrize("name", ENGINES)
def test_no_sequence_waits_for_others_to_end_and_samples_share_their_prompt(
    generators: dict[str, Generator], name: str
) -> None:
    generator, runner = counting(generators[name])
    lengths = [2, 30, 3, 4, 2, 3, 28, 2, 3, 2, 4, 3]
    part = [(20, number, length) for number, length in enumerate(lengths)]
    groups = [part[start : start + 4] for start in range(0, len(part), 4)]
    whole = sum(max(length for *_, length in group) for group in groups)
    found = [pair for group in completions(generator, groups, request, batch=4) for pair in group]
    taken = [len(said.ids) for _, said in found if said is not None]
    assert runner.decoded <= sum(taken), "what had ended was decoded"
    assert runner.steps < 0.6 * whole
    assert runner.read == 21, "a prompt that is being continued was read again"


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_comes_once_it_is_stopped_and_little_is_asked_ahead(
    generators: dict[str, Generator], name: str
) -> None:
    pulled = []

    def groups() -> Any:
        for number in range(1_000):
            pulled.append(number)
            yield [(1, number, 3), (2, number, 3)]

    steps = iter(range(1_000))
    found = list(
        completions(
            generators[name], groups(), request, batch=4, window=2, stopped=lambda: next(steps) > 6
        )
    )
    assert 0 < len(found) < 8
    assert len(pulled) < 12
