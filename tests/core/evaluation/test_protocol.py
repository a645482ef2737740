"""The presets against the paper's text, and what a user's changes do to them."""

import dataclasses

import pytest

from codecria.core.evaluation.benchmarks.protocol import PRESETS, Changes, Protocol, freeze
from codecria.data.errors import UsageError


def frozen(preset: str = "paper-greedy", **changes: object) -> Protocol:
    return freeze(
        "humaneval",
        "completion",
        preset,
        Changes(**changes),  # type: ignore[arg-type]
        eos_ends=True,
        shots=(),
        labels=(),
        source="a prompt",
    )


@pytest.mark.parametrize(
    ("name", "temperature", "top_p", "samples", "ks"),
    [
        ("paper-greedy", 0.0, 1.0, 1, (1,)),
        ("paper-sampled", 0.8, 0.95, 200, (1, 10, 100)),
        ("table5", 0.1, 0.95, 200, (1, 10, 100)),
        ("sweep-0.1", 0.1, 0.95, 200, (1, 10, 100)),
        ("sweep-0.4", 0.4, 0.95, 200, (1, 10, 100)),
        ("sweep-0.6", 0.6, 0.95, 200, (1, 10, 100)),
        ("sweep-0.8", 0.8, 0.95, 200, (1, 10, 100)),
    ],
)
def test_presets_say_what_the_paper_says(
    name: str, temperature: float, top_p: float, samples: int, ks: tuple[int, ...]
) -> None:
    found = PRESETS[name]
    assert (found.temperature, found.top_p, found.samples, found.ks) == (
        temperature,
        top_p,
        samples,
        ks,
    )
    assert "Code Llama" in found.source


def test_a_protocol_names_what_differs_from_its_preset_and_only_that() -> None:
    protocol = frozen("paper-sampled", temperature=0.2, top_p=0.95, samples=20)
    assert protocol.changed == ("samples", "temperature")
    assert (protocol.preset, protocol.temperature, protocol.top_p) == ("paper-sampled", 0.2, 0.95)
    assert protocol.ks == (1, 10), "pass@100 needs a hundred samples"
    assert frozen().changed == ()


def test_a_protocol_cannot_be_changed_and_goes_into_json_whole() -> None:
    protocol = frozen()
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.temperature = 1.0  # type: ignore[misc]
    assert protocol.as_json().keys() == {f.name for f in dataclasses.fields(Protocol)}
    assert protocol.as_json()["sources"] == [PRESETS["paper-greedy"].source, "a prompt"]


@pytest.mark.parametrize(
    ("preset", "changes", "named"),
    [
        ("paper", {}, "'paper'"),
        ("paper-greedy", {"samples": 5}, "5 greedy samples"),
        ("paper-sampled", {"temperature": 0.0}, "200 greedy samples"),
        ("paper-greedy", {"samples": 0}, "--samples-per-task 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    preset: str, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        frozen(preset, **changes)
