"""Counts of what happened to every candidate, made by each partition and merged in their order.

So the report is the same for any number of workers and any partition size. The law, checked at
every run: what was found = what passed every step + what was dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

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
        add(self.sources, source, [1, size])

    def passed(self, step: str, size: int, language: str | None = None) -> None:
        """A candidate passed a step, and has this many bytes now."""
        add(self.steps, step, [1, size])
        if language is not None:
            add(self.languages.setdefault(language, {}), step, [1, size])

    def read(self, language: str, licence: str | None, size: int) -> None:
        """A candidate became a document, of this language, licence and size."""
        self.passed("read", size, language)
        add(self.licences, licence or "", [1, size])

    def redacted(self, findings: dict[str, int]) -> None:
        """Secrets and addresses in one document were replaced: rule -> how many."""
        for rule, count in findings.items():
            add(self.redactions, rule, [1, count])

    def leaked(self, problem: str) -> None:
        """A document holds an evaluation problem."""
        self.problems[problem] = self.problems.get(problem, 0) + 1

    def dropped(self, step: str, reason: str, size: int, example: str) -> None:
        """A step dropped a candidate of this size; the first few are kept as examples."""
        _add_drops(self._drops(step, str(reason)), 1, size, [example])

    def _drops(self, step: str, reason: str) -> dict[str, Any]:
        by_reason = self.reasons.setdefault(step, {})
        return by_reason.setdefault(reason, {"documents": 0, "bytes": 0, "examples": []})

    def folder(self, reason: str) -> None:
        """A folder was not entered."""
        self.folders[str(reason)] = self.folders.get(str(reason), 0) + 1

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
                add(getattr(self, name), key, counts)
        for language, by_step in other["languages"].items():
            for step, counts in by_step.items():
                add(self.languages.setdefault(language, {}), step, counts)
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

    def check(self, steps: Sequence[str]) -> None:
        """Assert that nothing was lost without a reason, at any of these steps."""
        for before, step in itertools.pairwise(steps):
            gone = sum(drops["documents"] for drops in self.reasons.get(step, {}).values())
            assert self.count(before) == self.count(step) + gone, (
                f"{self.count(before)} documents before {step!r}, {self.count(step)} after it, "
                f"{gone} dropped by it"
            )


def _add_drops(drops: dict[str, Any], count: int, size: int, examples: list[str]) -> None:
    drops["documents"] += count
    drops["bytes"] += size
    drops["examples"] = (drops["examples"] + examples)[:EXAMPLES]


def add(counts: dict[str, list[int]], key: str, more: list[int]) -> None:
    """Add to the counts under a key."""
    have = counts.get(key, [0] * len(more))
    counts[key] = [a + b for a, b in zip(have, more, strict=True)]
