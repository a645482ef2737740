"""The filters that every document passes, one after another; a new one is a class in this list.

A filter is a class with what `Filter` names: the recipe's field, the step in the funnel, its
settings with their defaults, what a user can do about each reason, and the decision about a batch
of documents. Listed in `FILTERS`, it has its field in the recipe (`--set KEY.FIELD=VALUE`, `--set
KEY=null` turns it off), its line in the report, its reasons in `dropped.parquet` and `--explain`,
and its part in the digest by which a resumed run knows what is still good.

    class FewTodos:
        key = step = "todos"
        label = "few to-dos"
        kind, default, version = Todos | None, Todos(most=20), 1
        remedies = {"many-todos": "--set todos.most=N"}

        def __init__(self, settings: Todos | None, inputs: Inputs) -> None:
            self.settings = settings

        def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision: ...

A step that must see all documents at once is no filter: it scatters keys and joins them, as exact
dedup does (`survivors.py`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import pyarrow as pa

from . import decontaminate, licences, quality, redact
from .decontaminate import Decontamination
from .quality import Quality
from .reasons import Reason, Verdict
from .redact import Redaction
from .tally import Tally

Verdicts: TypeAlias = list[Verdict | None]
Decision: TypeAlias = tuple[pa.RecordBatch, Verdicts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What filters may read besides documents.

    Attributes:
        problems: the index of evaluation problems to keep out, or None.
        benchmarks: its digest.
    """

    problems: Path | None = None
    benchmarks: str | None = None


class Filter(Protocol):
    """What a filter has.

    Attributes:
        key: its field in the recipe.
        step: its line in the funnel.
        label: how tables call that line.
        kind: the type of its settings, as pydantic reads them.
        default: its settings where the user gives none.
        version: raise it when the same settings decide otherwise than before.
        remedies: for each reason, what a user can do to keep such documents.
    """

    key: ClassVar[str]
    step: ClassVar[str]
    label: ClassVar[str]
    kind: ClassVar[Any]
    default: ClassVar[Any]
    version: ClassVar[int]
    remedies: ClassVar[Mapping[str, str]]

    def __init__(self, settings: Any, inputs: Inputs) -> None:
        """Made once a partition, with the settings of the recipe."""

    def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision:
        """The batch, changed or not, and for each row why it is dropped, or None."""
        ...


def _all(batch: pa.RecordBatch) -> Decision:
    return batch, [None] * batch.num_rows


class Languages:
    """Keeps documents of the wanted languages."""

    key: ClassVar[str] = "languages"
    step: ClassVar[str] = "language"
    label: ClassVar[str] = "language"
    kind: ClassVar[Any] = tuple[str, ...] | None
    default: ClassVar[Any] = None
    version: ClassVar[int] = 1
    remedies: ClassVar[Mapping[str, str]] = {
        Reason.LANGUAGE_UNWANTED: "add its language to --languages"
    }

    def __init__(self, settings: tuple[str, ...] | None, inputs: Inputs) -> None:  # noqa: ARG002
        self.wanted = settings

    def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision:  # noqa: ARG002
        """By the document's language."""
        if self.wanted is None:
            return _all(batch)
        return batch, [
            None if name in self.wanted else Verdict(Reason.LANGUAGE_UNWANTED, name)
            for name in batch.column("language").to_pylist()
        ]


class Licences:
    """Keeps documents under the wanted licences."""

    key: ClassVar[str] = "licences"
    step: ClassVar[str] = "licence"
    label: ClassVar[str] = "licence"
    kind: ClassVar[Any] = tuple[str, ...] | None
    default: ClassVar[Any] = None
    version: ClassVar[int] = 2
    remedies: ClassVar[Mapping[str, str]] = {
        Reason.LICENCE_UNKNOWN: "add unknown to --licenses",
        Reason.LICENCE_UNWANTED: "add its licence to --licenses",
    }

    def __init__(self, settings: tuple[str, ...] | None, inputs: Inputs) -> None:  # noqa: ARG002
        self.wanted = licences.Wanted(names=settings) if settings is not None else None

    def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision:  # noqa: ARG002
        """By the document's licence."""
        if self.wanted is None:
            return _all(batch)
        return batch, [
            None
            if self.wanted.allows(found)
            else Verdict(Reason.LICENCE_UNKNOWN)
            if found is None
            else Verdict(Reason.LICENCE_UNWANTED, found)
            for found in batch.column("licence").to_pylist()
        ]


class QualityLimits:
    """Drops generated, minified and odd files; without limits, empty ones alone."""

    key: ClassVar[str] = "quality"
    step: ClassVar[str] = "quality"
    label: ClassVar[str] = "quality"
    kind: ClassVar[Any] = Quality | None
    default: ClassVar[Any] = quality.DEFAULT
    version: ClassVar[int] = 1
    remedies: ClassVar[Mapping[str, str]] = {
        Reason.TOO_LARGE: "--set quality.max_bytes=N",
        Reason.TOO_SHORT: "--set quality.min_characters=N",
        Reason.GENERATED: "--set quality.generated_lines=0, where its text says so",
        Reason.LINE_TOO_LONG: "--set quality.CLASS.longest_line=N",
        Reason.LINES_TOO_LONG: "--set quality.CLASS.mean_line=N",
        Reason.FEW_ALPHANUMERIC: "--set quality.CLASS.alphanumeric_share=X",
    }

    def __init__(self, settings: Quality | None, inputs: Inputs) -> None:  # noqa: ARG002
        self.limits = settings

    def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision:  # noqa: ARG002
        """By the limits of the class of the document's language."""
        texts, found = batch.column("text").to_pylist(), batch.column("language").to_pylist()
        if self.limits is None:
            return batch, [None if text else Verdict(Reason.EMPTY) for text in texts]
        return batch, [
            quality.judge(text, language, self.limits)
            for text, language in zip(texts, found, strict=True)
        ]


class Secrets:
    """Replaces secrets and e-mail addresses; drops nothing."""

    key: ClassVar[str] = "redaction"
    step: ClassVar[str] = "redacted"
    label: ClassVar[str] = "secrets replaced"
    kind: ClassVar[Any] = Redaction | None
    default: ClassVar[Any] = redact.DEFAULT
    version: ClassVar[int] = 2
    remedies: ClassVar[Mapping[str, str]] = {}

    def __init__(self, settings: Redaction | None, inputs: Inputs) -> None:  # noqa: ARG002
        self.recipe = settings

    def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision:
        """The batch with texts and notes changed where something was found."""
        if self.recipe is None:
            return _all(batch)
        texts = batch.column("text").to_pylist()
        notes: list[str | None] = [None] * len(texts)
        for i, text in enumerate(texts):
            texts[i], findings = redact.redact(text, self.recipe)
            if findings:
                tally.redacted(findings)
                notes[i] = ", ".join(f"{rule} {count}" for rule, count in sorted(findings.items()))
        if any(notes):
            batch = _with_column(batch, "text", texts)
            batch = _with_column(batch, "redactions", notes)
        return _all(batch)


def _with_column(batch: pa.RecordBatch, name: str, values: Sequence[Any]) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    return batch.set_column(index, batch.schema.field(index), pa.array(values, pa.string()))


class Problems:
    """Drops documents that hold a problem of an evaluation set."""

    key: ClassVar[str] = "decontamination"
    step: ClassVar[str] = "decontaminated"
    label: ClassVar[str] = "no evaluation problem"
    kind: ClassVar[Any] = Decontamination
    default: ClassVar[Any] = decontaminate.DEFAULT
    version: ClassVar[int] = 1
    remedies: ClassVar[Mapping[str, str]] = {
        Reason.BENCHMARK: "nothing: evaluation problems stay out of training data"
    }

    def __init__(self, settings: Decontamination, inputs: Inputs) -> None:  # noqa: ARG002
        """The settings are in the index already."""
        self.index = None
        if inputs.problems is not None:
            assert inputs.benchmarks is not None, "problems to keep out, but no digest of them"
            self.index = _index(inputs.problems, inputs.benchmarks)

    def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision:
        """By the runs of words and code that a document shares with problems."""
        if self.index is None:
            return _all(batch)
        hits = self.index.hits(batch.column("text"))
        leaked = batch.column("text").filter(pa.array([hit is not None for hit in hits]))
        for found in self.index.problems_in(leaked):
            for problem in found:
                tally.leaked(problem)
        return batch, [None if hit is None else Verdict(Reason.BENCHMARK, hit) for hit in hits]


@functools.lru_cache(maxsize=1)
def _index(path: Path, digest: str) -> decontaminate.Index:
    index = decontaminate.Index.load(path)
    assert index.digest == digest, f"{path} changed to {index.digest}"
    return index


# In the order in which documents pass them; each sees only what the ones before it kept.
FILTERS: tuple[type[Filter], ...] = (Languages, Licences, QualityLimits, Secrets, Problems)


def steps() -> tuple[str, ...]:
    """The steps every candidate passes, in order."""
    return ("found", "named", "read", *(f.step for f in FILTERS), "unique", "distinct")


def labels() -> dict[str, str]:
    """How tables call the steps, where not by their names."""
    return {
        "named": "name and size",
        "read": "readable",
        **{f.step: f.label for f in FILTERS},
        "unique": "no exact duplicate",
        "distinct": "no near-duplicate",
    }


def defaults() -> dict[str, Any]:
    """The settings of all filters where the user gives none, by key."""
    return {f.key: f.default for f in FILTERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """All filters with their settings, as a partition needs them: small and picklable.

    Attributes:
        filters: the classes, in order.
        settings: of each, by key.
        inputs: what they read.
    """

    filters: tuple[type[Filter], ...]
    settings: Mapping[str, Any]
    inputs: Inputs

    def make(self) -> list[Filter]:
        """The filters, ready."""
        return [f(self.settings[f.key], self.inputs) for f in self.filters]

    @property
    def identity(self) -> list[Any]:
        """All that decides what the filters keep, as JSON: whatever `make` passes is in here."""
        chosen = [[f.key, f.version, plain(self.settings[f.key])] for f in self.filters]
        return [*chosen, self.inputs.benchmarks]


def plain(value: Any) -> Any:
    """Settings as they come back from a JSON file."""
    shown = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(shown))
