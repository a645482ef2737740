"""The report: the funnel, the reasons with examples, counts by source, language and licence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .filters import steps
from .tally import EXAMPLES, Tally, add


def totals(reasons: dict[str, dict[str, dict[str, Any]]]) -> dict[str, int]:
    """Reason -> documents dropped for it at any step, most first."""
    counts: dict[str, int] = {}
    for by_reason in reasons.values():
        for reason, drops in by_reason.items():
            counts[reason] = counts.get(reason, 0) + drops["documents"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


UNITS = ("documents", "bytes", "tokens")
TIMED = ("read", "exact dedup", "near dedup", "tokenizer", "tokens", "shards")  # in `seconds`


def in_order(report: dict[str, Any]) -> dict[str, Any]:
    """A report in the order in which it is shown, whether it was just made or read from its file.

    Steps and stages come as they run, problems and licences by their count, all else by name.
    """
    ordered: dict[str, Any] = _by_name(report)
    for table, names in (("funnel", steps()), ("dropped", steps()), ("seconds", TIMED)):
        if table in ordered:
            ordered[table] = _first(ordered[table], names)
    for language, counts in ordered["languages"].items():
        ordered["languages"][language] = _first(counts, steps())
    hits = ordered["benchmarks"]["hits"]
    ordered["benchmarks"]["hits"] = dict(sorted(hits.items(), key=lambda item: -item[1]))
    licences = ordered["licences"].items()
    ordered["licences"] = dict(sorted(licences, key=lambda item: -item[1]["read"]["documents"]))
    return ordered


def _by_name(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _by_name(value[name]) for name in sorted(value)}
    return [_by_name(item) for item in value] if isinstance(value, list | tuple) else value


def _first(table: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A table with some names first, in their order."""
    return {name: table[name] for name in names if name in table} | table


def make_report(
    tally: Tally,
    counts: Sequence[dict[str, Any]],
    identity: dict[str, Any],
    benchmarks: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The report: a funnel over all steps, what was dropped and why, and what was kept.

    Args:
        tally: merged over all partitions.
        counts: what `token_passes.tokens_partition` gave for each partition.
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
        "funnel": {step: _named(tally.steps.get(step, [0, 0])) for step in steps()},
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
                **{step: _named(by_step[step]) for step in steps() if step in by_step},
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
        groups, splits, languages, licences: by name; a document without one is "unknown".
        sources: by name, then by split, both splits always there.
    """

    groups: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]
    sources: dict[str, dict[str, dict[str, int]]]
    languages: dict[str, dict[str, int]]
    licences: dict[str, dict[str, int]]


def kept_tables(counts: Sequence[dict[str, Any]], only: str | None = None) -> KeptTables:
    """The tables of what `token_passes.tokens_partition` counted, of one group or of all."""
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
            add(groups, group, three)
            add(splits, split, three)
            add(sources.setdefault(source, {}), split, three)
            add(languages, language, three)
            add(licences, licence or "unknown", three)

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
