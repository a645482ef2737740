"""From samples to a score: every program is run with its tests, and counted by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .estimate import estimate
from .execution import Job, Sandbox, as_json, passed, program_of, result_of, run_all
from .problems import Problem
from .references import confirmed
from .results import Key, Line
from .samples import Sample

KS = (1, 10, 100)  # of pass@k, where there are as many samples


def score(
    samples: Sequence[Sample],
    problems: Mapping[str, Problem],
    sandbox: Sandbox,
    limits_s: Mapping[str, float],
) -> Iterator[Line]:
    """A line of results for every sample, as verdicts come.

    Args:
        samples: of these problems.
        problems: by id.
        sandbox: open.
        limits_s: how long each task's programs may take, by id.
    """
    jobs = []
    for sample in samples:
        problem = problems[sample.task_id]
        program = program_of(problem, sample.source(problem))
        jobs.append(Job(program, limits_s[sample.task_id]))
    for number, verdict in run_all(sandbox, jobs):
        problem = problems[samples[number].task_id]
        verdict = confirmed(problem, jobs[number], verdict, sandbox)
        told = {
            "passed": passed(verdict),
            "result": result_of(verdict),
            "verdict": as_json(verdict),
        }
        yield samples[number].as_json() | told


def unfit(sample: Sample) -> Line:
    """The line of a sample whose prompt did not fit the context: failed, and nothing ran."""
    return sample.as_json() | {"passed": False, "result": "failed: the prompt did not fit"}


def counts_of(lines: Mapping[Key, Line], task_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(n, c) of each task that has samples which could be run, in the tasks' order."""
    n: Counter[str] = Counter()
    c: Counter[str] = Counter()
    for (task_id, _), line in lines.items():
        if line["passed"] is not None:
            n[task_id] += 1
            c[task_id] += bool(line["passed"])
    return {task_id: (n[task_id], c[task_id]) for task_id in task_ids if n[task_id]}


def summarise(
    lines: Mapping[Key, Line], task_ids: Sequence[str], *, ks: Sequence[int] = KS
) -> dict[str, Any]:
    """pass@k with intervals, and how the samples ended.

    Args:
        lines: of these tasks, and perhaps of others, which do not count.
        task_ids: asked for.
        ks: of pass@k; those beyond the smallest number of samples are left out.
    """
    wanted = set(task_ids)
    own = {key: line for key, line in lines.items() if key[0] in wanted}
    counts = counts_of(own, task_ids)
    pairs = list(counts.values())
    told: dict[str, Any] = {}
    for k in ks:
        found = estimate(pairs, k)
        if found is not None:
            told[f"pass@{k}"] = found.as_json()
    ends = Counter(_word(line) for line in own.values())
    return {
        "tasks": len(task_ids),
        "scored_tasks": len(counts),
        "samples": len(own),
        "pass": told,
        "solved_tasks": sum(c > 0 for _, c in pairs),
        "results": dict(sorted(ends.items())),
    }


def _word(line: Line) -> str:
    """How a sample ended, in a word."""
    verdict = line.get("verdict")
    if isinstance(verdict, dict):
        return str(verdict["outcome"])
    return "passed" if line["passed"] else "unfit"
