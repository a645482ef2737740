"""What happened to every candidate: the funnel, the reasons with examples, counts by source.

A `Tally` is filled by each partition, written as JSON into its marker, and merged in the order of
the partitions, so the report is the same for any number of workers and any partition size. Its
law, checked at every run: what was found = what passed every step + what was dropped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .reasons import Reason

# The steps every candidate passes, in order. A new step gets its place here and nowhere else.
STEPS = (
    "found",
    "named",
    "read",
    "language",
    "licence",
    "quality",
    "redacted",
    "decontaminated",
    "unique",
    "distinct",
)
EXAMPLES = 5


class Tally:
    """Counts of documents and bytes; everything in it is plain JSON."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.reasons: dict[str, dict[str, dict[str, Any]]] = {}  # by step, then by reason
        self.folders: dict[str, int] = {}
        self.sources: dict[str, list[int]] = {}
        self.languages: dict[str, dict[str, list[int]]] = {}  # from step "read" on
        self.licences: dict[str, list[int]] = {}  # as read
        self.redactions: dict[str, list[int]] = {}  # rule -> documents, findings
        self.problems: dict[str, int] = {}  # evaluation problem -> documents that hold it

    def found(self, source: str, size: int) -> None:
        """A candidate of a source, with its bytes there."""
        self.passed("found", size)
        _add(self.sources, source, [1, size])

    def passed(self, step: str, size: int, language: str | None = None) -> None:
        """A candidate passed a step, and has this many bytes now."""
        _add(self.steps, step, [1, size])
        if language is not None:
            _add(self.languages.setdefault(language, {}), step, [1, size])

    def read(self, language: str, licence: str | None, size: int) -> None:
        """A candidate became a document, of this language, licence and size."""
        self.passed("read", size, language)
        _add(self.licences, licence or "", [1, size])

    def redacted(self, findings: dict[str, int]) -> None:
        """Secrets and addresses in one document were replaced: rule -> how many."""
        for rule, count in findings.items():
            _add(self.redactions, rule, [1, count])

    def leaked(self, problem: str) -> None:
        """A document holds an evaluation problem."""
        self.problems[problem] = self.problems.get(problem, 0) + 1

    def dropped(self, step: str, reason: Reason, size: int, example: str) -> None:
        """A step dropped a candidate of this size; the first few are kept as examples."""
        _add_drops(self._drops(step, reason.value), 1, size, [example])

    def _drops(self, step: str, reason: str) -> dict[str, Any]:
        by_reason = self.reasons.setdefault(step, {})
        return by_reason.setdefault(reason, {"documents": 0, "bytes": 0, "examples": []})

    def folder(self, reason: Reason) -> None:
        """A folder was not entered."""
        self.folders[reason.value] = self.folders.get(reason.value, 0) + 1

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {
            "steps": self.steps,
            "reasons": self.reasons,
            "folders": self.folders,
            "sources": self.sources,
            "languages": self.languages,
            "licences": self.licences,
            "redactions": self.redactions,
            "problems": self.problems,
        }

    def merge(self, other: dict[str, Any]) -> None:
        """Add another tally's JSON; examples stay in the order of merging."""
        for name in ("steps", "sources", "licences", "redactions"):
            for key, counts in other[name].items():
                _add(getattr(self, name), key, counts)
        for language, by_step in other["languages"].items():
            for step, counts in by_step.items():
                _add(self.languages.setdefault(language, {}), step, counts)
        for mine, theirs in ((self.folders, "folders"), (self.problems, "problems")):
            for key, count in other[theirs].items():
                mine[key] = mine.get(key, 0) + count
        for step, by_reason in other["reasons"].items():
            for reason, drops in by_reason.items():
                ours = self._drops(step, reason)
                _add_drops(ours, drops["documents"], drops["bytes"], drops["examples"])

    def count(self, step: str) -> int:
        """How many documents passed a step."""
        return self.steps.get(step, [0, 0])[0]

    def check(self) -> None:
        """Assert that nothing was lost without a reason, at any step."""
        for before, step in itertools.pairwise(STEPS):
            gone = sum(drops["documents"] for drops in self.reasons.get(step, {}).values())
            assert self.count(before) == self.count(step) + gone, (
                f"{self.count(before)} documents before {step!r}, {self.count(step)} after it, "
                f"{gone} dropped by it"
            )


def _add_drops(drops: dict[str, Any], count: int, size: int, examples: list[str]) -> None:
    drops["documents"] += count
    drops["bytes"] += size
    drops["examples"] = (drops["examples"] + examples)[:EXAMPLES]


def totals(reasons: dict[str, dict[str, dict[str, Any]]]) -> dict[str, int]:
    """Reason -> documents dropped for it at any step, most first."""
    counts: dict[str, int] = {}
    for by_reason in reasons.values():
        for reason, drops in by_reason.items():
            counts[reason] = counts.get(reason, 0) + drops["documents"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _add(counts: dict[str, list[int]], key: str, more: list[int]) -> None:
    have = counts.get(key, [0] * len(more))
    counts[key] = [a + b for a, b in zip(have, more, strict=True)]


UNITS = ("documents", "bytes", "tokens")


def make_report(
    tally: Tally,
    counts: Sequence[dict[str, Any]],
    identity: dict[str, Any],
    benchmarks: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The report: a funnel over all steps, what was dropped and why, and what was kept.

    Args:
        tally: merged over all partitions.
        counts: what `passes.tokens_partition` gave for each partition.
        identity: the recipe and the inputs, whose order the sources have here too.
        benchmarks: what was decontaminated against, if anything.
    """
    tables = kept_tables(counts)
    lossy = [sum(column) for column in zip(*(result["lossy"] for result in counts), strict=True)]
    nothing = _named([0, 0, 0])
    no_source = dict.fromkeys(("train", "validation"), nothing)
    return {
        "format": "codecria-report",
        "version": 2,
        "funnel": {step: _named(tally.steps.get(step, [0, 0])) for step in STEPS},
        "dropped": tally.reasons,
        "skipped_folders": tally.folders,
        "redacted": {
            rule: {"documents": documents, "findings": findings}
            for rule, (documents, findings) in sorted(tally.redactions.items())
        },
        "benchmarks": {
            **({"files": benchmarks} if benchmarks else {}),
            "hits": dict(sorted(tally.problems.items(), key=lambda item: (-item[1], item[0]))),
        },
        "splits": tables.splits,
        "groups": tables.groups,
        "sources": {
            name: {
                "found": _named(tally.sources.get(name, [0, 0])),
                **tables.sources.get(name, no_source),
            }
            for name in identity["inputs"]
        },
        "languages": {
            language: {
                **{step: _named(by_step[step]) for step in STEPS if step in by_step},
                "kept": tables.languages.get(language, nothing),
            }
            for language, by_step in sorted(tally.languages.items())
        },
        "licences": {
            licence or "unknown": {
                "read": _named(read),
                "kept": tables.licences.get(licence or "unknown", nothing),
            }
            for licence, read in sorted(tally.licences.items(), key=lambda item: -item[1][0])
        },
        "roundtrip_lossy": _named(lossy or [0, 0]),
        "identity": identity,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTables:
    """What was kept, as documents, bytes and tokens.

    Attributes:
        groups, splits, languages, licences: by name; a licence nobody told is "unknown".
        sources: by name, then by split, both splits always there.
    """

    groups: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]
    sources: dict[str, dict[str, dict[str, int]]]
    languages: dict[str, dict[str, int]]
    licences: dict[str, dict[str, int]]


def kept_tables(counts: Sequence[dict[str, Any]], only: str | None = None) -> KeptTables:
    """The tables of what `passes.tokens_partition` counted, of one group or of all."""
    groups: dict[str, list[int]] = {}
    splits: dict[str, list[int]] = {}
    sources: dict[str, dict[str, list[int]]] = {}
    languages: dict[str, list[int]] = {}
    licences: dict[str, list[int]] = {}
    for result in counts:
        for key, three in result["kept"].items():
            group, split, source, language, licence = json.loads(key)
            if only is not None and group != only:
                continue
            _add(groups, group, three)
            _add(splits, split, three)
            _add(sources.setdefault(source, {}), split, three)
            _add(languages, language, three)
            _add(licences, licence or "unknown", three)

    def named(table: dict[str, list[int]]) -> dict[str, dict[str, int]]:
        return {name: _named(three) for name, three in sorted(table.items())}

    both = {"train": [0, 0, 0], "validation": [0, 0, 0]}
    return KeptTables(
        groups=named(groups),
        splits=named(splits),
        sources={name: named(both | by_split) for name, by_split in sources.items()},
        languages=named(languages),
        licences=named(licences),
    )


OF_THE_OLDER = ("format", "version", "identity", "files")  # are not added up


def merge_reports(old: Any, new: Any) -> Any:
    """The report of a shard set after more was appended: counts add up, examples stay few.

    >>> merge_reports({"a": 1, "examples": [1, 2, 3]}, {"a": 2, "b": 3, "examples": [4, 5, 6]})
    {'a': 3, 'examples': [1, 2, 3, 4, 5], 'b': 3}
    """
    if isinstance(old, dict):
        return old | {
            key: merge_reports(old[key], value) if key in old else value
            for key, value in new.items()
            if key not in OF_THE_OLDER or key not in old
        }
    if isinstance(old, list):
        return (old + new)[:EXAMPLES]
    return old + new


def _named(counts: Sequence[int]) -> dict[str, int]:
    """Counts under their names: documents, bytes and, where there are three, tokens."""
    return dict(zip(UNITS, counts, strict=False))
