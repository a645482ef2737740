"""What decides the data a self-instruct run makes, beside its models and prompts.

The paper gives the counts: 50 questions a request, 5 tests, 10 solutions, one test shown, the first
solution that passes kept (section 2.6 and appendix G.1). It gives no temperatures, no limits and no
filters of tests; those are fields with defaults of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

from codecria.data.errors import UsageError
from codecria.data.formats.answers import RULES, Rule

STAGES = ("questions", "tests", "solutions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The recipe of one run.

    Attributes:
        questions: asked for in all.
        per_request: asked for at a time, as one numbered list.
        tests: asked for of each question.
        solutions: drawn of each question.
        seed: of every draw.
        questions_temperature, tests_temperature, solutions_temperature: 0 is greedy.
        top_p: nucleus, of every stage.
        questions_tokens, tests_tokens, solutions_tokens: longest answer of each stage.
        near_dedup: Jaccard similarity of word sets from which questions count as one; 0 for never.
        least_tests: valid tests that a question needs; with one, none is hidden from solutions.
        probe_tests: drop tests that trivially wrong solutions pass.
        drop_flaky: run what passed twice more in fresh processes, and drop what then fails.
        dedup_solutions: run solutions of one question that have the same syntax tree once.
        extraction: how code is found in an answer. "best" takes the block that defines what the
            tests call, of several the last that parses; "simple", the paper preset's, what is
            between the tags, else in the first code fence, else all of it.
    """

    questions: int = 100
    per_request: int = 50
    tests: int = 5
    solutions: int = 10
    seed: int = 0
    questions_temperature: float = 1.0
    tests_temperature: float = 0.2
    solutions_temperature: float = 0.8
    top_p: float = 0.95
    questions_tokens: int = 4_096
    tests_tokens: int = 512
    solutions_tokens: int = 512
    near_dedup: float = 0.0
    least_tests: int = 2
    probe_tests: bool = True
    drop_flaky: bool = True
    dedup_solutions: bool = True
    extraction: str = "best"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: one makes no sense.
        """
        for name in ("questions", "per_request", "tests", "solutions", "least_tests"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, and must be at least 1")
        for name in STAGES:
            if getattr(self, f"{name}_tokens") < 1:
                raise UsageError(f"{name}_tokens must be at least 1")
            if not self.temperature(name) >= 0:
                raise UsageError(f"{name}_temperature is {self.temperature(name):g}, below 0")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p:g} is not in (0, 1]")
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"the seed {self.seed} is not in 0 .. 2^32 - 1")
        if not 0 <= self.near_dedup <= 1:
            raise UsageError(f"near_dedup {self.near_dedup:g} is a similarity from 0 to 1")
        if self.extraction not in RULES:
            raise UsageError(
                f"extraction={self.extraction} is no rule", hint="rules: " + ", ".join(RULES)
            )
        if self.solutions > 1 and self.solutions_temperature == 0:
            raise UsageError(
                f"{self.solutions} greedy solutions of a question are all the same",
                hint="--set solutions_temperature=0.8, or --solutions 1",
            )

    def temperature(self, stage: str) -> float:
        """Of the answers of a stage; 0 is greedy."""
        temperature: float = getattr(self, f"{stage}_temperature")
        return temperature

    def max_tokens(self, stage: str) -> int:
        """The longest answer of a stage, in tokens."""
        tokens: int = getattr(self, f"{stage}_tokens")
        return tokens

    @property
    def rule(self) -> Rule:
        """How code is found in an answer."""
        return "simple" if self.extraction == "simple" else "best"

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


PRESETS: dict[str, Settings] = {
    # DECISIONS: nothing that the paper does not describe.
    "paper": Settings(
        questions=62_000,
        least_tests=1,
        probe_tests=False,
        drop_flaky=False,
        dedup_solutions=False,
        extraction="simple",
    ),
    "verified": Settings(),
}


def settings_of(preset: str, changes: Mapping[str, Any]) -> Settings:
    """A preset with changes.

    Args:
        preset: a name in `PRESETS`.
        changes: by field; text is read as the field's type.

    Raises:
        UsageError: there is no such preset or field, or a value makes no sense.
    """
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", hint="presets: " + ", ".join(PRESETS))
    types = get_type_hints(Settings)
    known = [field.name for field in fields(Settings)]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise UsageError(f"there is no field {name!r}", hint="fields: " + ", ".join(known))
        values[name] = _read(name, value, types[name])
    return replace(PRESETS[preset], **values)


def _read(name: str, value: Any, kind: type) -> Any:
    """A field's value, from text where it is text."""
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False}
    try:
        return words[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError) as error:
        wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
        raise UsageError(f"{name}={value} is not {wanted}") from error
