"""What stands beside the results of an evaluation: what they are of, and the score."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codecria.core.inference.generator import Generator
from codecria.core.training.run import environment

from . import references as known_solutions
from . import tasks
from .execution import Sandbox, limits_json
from .problems import Problem, ProblemSet
from .protocol import Protocol
from .references import Reference
from .registry import TASKS, Task
from .remote import Remote
from .results import Results
from .samples import SampleFile
from .scoring import summarise

if TYPE_CHECKING:
    from .evaluate import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who wrote the samples: a model here (`generator`) or elsewhere (`remote`), or a file."""

    facts: dict[str, Any]
    generator: Generator | None = None
    remote: Remote | None = None
    file: SampleFile | None = None


@dataclass(slots=True, kw_only=True)
class Bench:
    """Where programs run, with what is known of the tasks."""

    sandbox: Sandbox
    references: dict[str, Reference]
    limits_s: dict[str, float]
    left_out: dict[str, str]


def facts_of(
    request: Request,
    task: Task,
    protocol: Protocol,
    found: ProblemSet,
    subject: Subject,
    bench: Bench | None,
) -> dict[str, Any]:
    """What a result is of: all that a reader needs to judge the score or to repeat it."""
    facts: dict[str, Any] = {"task": task.name, "title": task.title}
    if subject.file is None:
        facts["protocol"] = protocol.as_json()
    facts |= subject.facts
    facts["problems"] = {
        "file": str(request.problems),
        "digest": found.digest(),
        "tasks": len(found.problems),
    }
    facts["languages"] = sorted({problem.language for problem in found.problems})
    if task.levels or task.dated:
        facts["choice"] = {
            "levels": list(request.choice.levels),
            "since": request.choice.since,
            "until": request.choice.until,
        }
    if bench is not None:
        facts["sandbox"] = {
            "tier": str(bench.sandbox.tier),
            "limits": limits_json(bench.sandbox.limits),
            "confirm": str(bench.sandbox.config.confirm),
            "packages": dict(bench.sandbox.config.allowed().versions),
        }
        facts["references"] = {
            "run": len(bench.references),
            "passed": sum(r.passed is True for r in bench.references.values()),
            "unconfirmed": known_solutions.unconfirmed(bench.references, bench.sandbox),
            "left_out": bench.left_out,
        }
        facts["longer_limits_s"] = {
            i: s for i, s in bench.limits_s.items() if s != bench.sandbox.limits.wall_s
        }
    facts["environment"] = environment() | {
        "codecria": importlib.metadata.version("codecria"),
        "python": platform.python_version(),
    }
    return facts


def identity_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The flat facts that must be the same to go on with a result."""
    flat: dict[str, Any] = {"task": facts["task"]}
    for name in ("model_digest", "samples_digest", "computed_by"):
        flat[name] = facts.get(name, "")
    prose = ("labels", "sources", "changed", "preset", "ks")  # none of these changes a sample
    for key, value in (facts.get("protocol") or {}).items():
        if key not in prose:
            flat[f"protocol.{key}"] = value
    flat["problems.digest"] = facts["problems"]["digest"]
    flat["scored"] = "sandbox" in facts
    for key, value in facts.get("sandbox", {}).items():
        if key in ("limits", "packages"):
            flat |= {f"sandbox.{key}.{name}": part for name, part in value.items()}
        else:
            flat[f"sandbox.{key}"] = value
    return flat


def summary_of(
    request: Request,
    task: Task,
    facts: Mapping[str, Any],
    found: ProblemSet,
    asked: Sequence[Problem],
    protocol: Protocol,
    subject: Subject,
    bench: Bench | None,
    kept: Results,
) -> dict[str, Any]:
    """The score with all that qualifies it."""
    ids = [problem.task_id for problem in asked]
    whole = _whole(found, request)
    reasons = []
    left_out = bench.left_out if bench is not None else {}
    if len(asked) + len(left_out) < whole:
        reasons.append(f"{len(asked) + len(left_out)} of {whole} tasks asked for")
    if left_out:
        reasons.append(f"{len(left_out)} tasks left out: their references do not pass here")
    totals: dict[str, Any]
    if bench is None:
        lines = [kept.lines[key] for key in own_keys(kept, asked)]
        totals = {"tasks": len(asked), "samples": len(lines), "pass": {}}
    else:
        ks = (
            request.changes.ks or TASKS[request.task].ks
            if subject.file is not None
            else protocol.ks
        )
        totals = summarise(kept.lines, ids, ks=ks)
        totals["by_level"] = _by_level(task, asked, kept, ks)
        if totals["scored_tasks"] < totals["tasks"]:
            reasons.append(f"{totals['tasks'] - totals['scored_tasks']} tasks have no verdict")
    reasons += [_too_few_reason(*one) for one in totals.get("too_few_samples", {}).items()]
    labels = list((facts.get("protocol") or {}).get("labels", ()))
    if totals.get("unconfirmed"):
        labels.append(_unconfirmed_label(totals))
    return dict(facts) | totals | {"partial": reasons, "labels": labels}


def _by_level(
    task: Task, asked: Sequence[Problem], kept: Results, ks: Sequence[int]
) -> dict[str, Any]:
    """The score of each level of difficulty, of suites that have some."""
    found = {}
    for level in task.levels:
        ids = [problem.task_id for problem in asked if problem.level == level]
        if ids:
            one = summarise(kept.lines, ids, ks=ks)
            found[level] = {"tasks": len(ids), "samples": one["samples"], "pass": one["pass"]}
    return found


def _too_few_reason(name: str, tasks: Mapping[str, int]) -> str:
    """Why pass@k is not estimated, where some tasks have samples for it."""
    first, count = next(iter(tasks.items()))
    more = f", and {len(tasks) - 1} more tasks have too few" if len(tasks) > 1 else ""
    return f"no {name}: {first} has {count} samples{more}"


def _unconfirmed_label(summary: Mapping[str, Any]) -> str:
    """What a reader of a score must know of passes that were seen in one process alone."""
    count, apart = summary["unconfirmed"], summary["results"].get("unconfirmed", 0)
    if apart:
        return f"{apart} unconfirmed passes are counted apart: the references fail in two processes"
    return f"{count} passes are unconfirmed: solution and tests ran in one process"


def _whole(found: ProblemSet, request: Request) -> int:
    """How many tasks the split has, without a choice among them."""
    choice = tasks.Choice(split=request.choice.split)
    return len(tasks.select(TASKS[request.task], found, choice))


def own_keys(kept: Results, asked: Sequence[Problem]) -> list[tuple[str, int]]:
    """The keys of the results that are of these problems."""
    wanted = {problem.task_id for problem in asked}
    return [key for key in kept.lines if key[0] in wanted]
