"""What happened to every candidate: the funnel, the reasons with examples, counts by source.

A `Tally` is filled by each partition, written as JSON into its marker, and merged in the order of
the partitions, so the report is the same for any number of workers and any partition size. Its
law, checked at every run: what was found = what passed every step + what was dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from .sources import Reason

# The steps every candidate passes, in order. A new step gets its place here and nowhere else.
STEPS = ("found", "named", "read", "language", "quality", "unique")
EXAMPLES = 5


class Tally:
    """Counts of documents and bytes; everything in it is plain JSON."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.reasons: dict[str, dict[str, dict[str, Any]]] = {}  # by step, then by reason
        self.folders: dict[str, int] = {}
        self.sources: dict[str, list[int]] = {}
        self.languages: dict[str, list[int]] = {}

    def found(self, source: str, size: int) -> None:
        """A candidate of a source, with its bytes there."""
        self.passed("found", size)
        _add(self.sources, source, [1, size])

    def passed(self, step: str, size: int) -> None:
        """A candidate passed a step, and has this many bytes now."""
        _add(self.steps, step, [1, size])

    def read(self, language: str, size: int) -> None:
        """A candidate became a document, of this language and size."""
        self.passed("read", size)
        _add(self.languages, language, [1, size])

    def dropped(self, step: str, reason: Reason, size: int, example: str) -> None:
        """A step dropped a candidate of this size; the first few are kept as examples."""
        _add_drops(self._drops(step, reason.value), 1, size, [example])

    def _drops(self, step: str, reason: str) -> dict[str, Any]:
        by_reason = self.reasons.setdefault(step, {})
        return by_reason.setdefault(reason, {"documents": 0, "bytes": 0, "examples": []})

    def wants_example(self, step: str, reason: Reason) -> bool:
        """Whether another example would be kept; some cost work to make."""
        return len(self._drops(step, reason.value)["examples"]) < EXAMPLES

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
        }

    def merge(self, other: dict[str, Any]) -> None:
        """Add another tally's JSON; examples stay in the order of merging."""
        for name in ("steps", "sources", "languages"):
            for key, counts in other[name].items():
                _add(getattr(self, name), key, counts)
        for reason, count in other["folders"].items():
            self.folders[reason] = self.folders.get(reason, 0) + count
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
    tally: Tally, counts: Sequence[dict[str, Any]], identity: dict[str, Any]
) -> dict[str, Any]:
    """The report: a funnel over all steps, what was dropped and why, and what was kept.

    Args:
        tally: merged over all partitions.
        counts: what `passes.tokens_partition` gave for each partition.
        identity: the recipe and the inputs, whose order the sources have here too.
    """
    splits: dict[str, list[int]] = {}
    kept_sources: dict[str, dict[str, list[int]]] = {name: {} for name in identity["inputs"]}
    kept_languages: dict[str, list[int]] = {}
    licences: dict[str, list[int]] = {}
    lossy = [0, 0]
    for result in counts:
        for split, by_source in result["kept"].items():
            for source, by_language in by_source.items():
                for language, three in by_language.items():
                    _add(splits, split, three)
                    _add(kept_sources[source], split, three)
                    _add(kept_languages, language, three)
        for licence, three in result["licences"].items():
            _add(licences, licence, three)
        lossy = [a + b for a, b in zip(lossy, result["lossy"], strict=True)]
    nothing = [0, 0, 0]
    return {
        "format": "codecria-report",
        "version": 1,
        "funnel": [{"step": step, **_named(tally.steps.get(step, [0, 0]))} for step in STEPS],
        "dropped": tally.reasons,
        "skipped_folders": tally.folders,
        "splits": {split: _named(three) for split, three in splits.items()},
        "sources": {
            name: {
                "found": _named(tally.sources.get(name, [0, 0])),
                **{split: _named(kept.get(split, nothing)) for split in ("train", "validation")},
            }
            for name, kept in kept_sources.items()
        },
        "languages": {
            language: {"read": _named(read), "kept": _named(kept_languages.get(language, nothing))}
            for language, read in sorted(tally.languages.items())
        },
        "licences": {licence or "unknown": _named(three) for licence, three in licences.items()},
        "roundtrip_lossy": _named(lossy),
        "identity": identity,
    }


def _named(counts: Sequence[int]) -> dict[str, int]:
    """Counts under their names: documents, bytes and, where there are three, tokens."""
    return dict(zip(UNITS, counts, strict=False))
