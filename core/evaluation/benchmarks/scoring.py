"""From samples to a score: every program is run with its tests, and counted by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .estimate import estimate
from .execution import Sandbox, is_unconfirmed, job_of, passed, result_of, run_all
from .problems import Problem
from .results import Key, Line
from .samples import Sample

KS = (1, 10, 100)  # of pass@k, where there are as many samples
NO_TEXT = "failed: the program holds a lone surrogate, which is no text"
# A pass in one process of a task whose own reference fails in two: it does not count as passed.
UNCONFIRMED = "unconfirmed: passed in one process; the reference fails in two"


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
    for sample in samples:
        if not sample.is_text:
            yield sample.as_json() | {"passed": False, "result": NO_TEXT}
    samples = [sample for sample in samples if sample.is_text]
    jobs = []
    for sample in samples:
        problem = problems[sample.task_id]
        jobs.append(job_of(problem, sample.source(problem), limits_s[sample.task_id]))
    for number, verdict in run_all(sandbox, jobs):
        problem = problems[samples[number].task_id]
        judged = {
            "passed": passed(verdict),
            "result": result_of(verdict),
            "verdict": verdict.as_json(),
        }
        if problem.language != "python" and not judged["passed"] and verdict.stderr:
            judged["stderr"] = verdict.stderr  # what the compiler or the runtime said
        if is_unconfirmed(verdict, problem.language, sandbox):
            judged |= {"passed": False, "result": UNCONFIRMED}
        yield samples[number].as_json() | judged


def too_long(sample: Sample) -> Line:
    """The line of a sample whose prompt did not fit the context: failed, and nothing ran."""
    return sample.as_json() | {"passed": False, "result": "failed: the prompt did not fit"}


def counts_of(
    lines: Mapping[Key, Line], task_ids: Sequence[str], *, unconfirmed: bool = False
) -> dict[str, tuple[int, int]]:
    """(n, c) of each task that has samples which could be run, in the tasks' order.

    Args:
        lines: of results.
        task_ids: asked for.
        unconfirmed: whether passes count that were seen in one process alone.
    """
    n: Counter[str] = Counter()
    c: Counter[str] = Counter()
    for (task_id, _), line in lines.items():
        if line["passed"] is not None:
            n[task_id] += 1
            c[task_id] += bool(line["passed"]) or (unconfirmed and _word(line) == "unconfirmed")
    return {task_id: (n[task_id], c[task_id]) for task_id in task_ids if n[task_id]}


def summarise(
    lines: Mapping[Key, Line], task_ids: Sequence[str], *, ks: Sequence[int] = KS
) -> dict[str, Any]:
    """pass@k with intervals, and how the samples ended.

    Args:
        lines: of these tasks, and perhaps of others, which do not count.
        task_ids: asked for.
        ks: of pass@k; those beyond the smallest number of samples are left out.

    Returns:
        among others `too_few_samples`, by "pass@k" the tasks that keep it from being estimated
        while others have samples enough; `unconfirmed`, the number of passes seen in one process
        alone, whether they count or not; and where some do not, `pass_with_unconfirmed`.
    """
    wanted = set(task_ids)
    own = {key: line for key, line in lines.items() if key[0] in wanted}
    counts = counts_of(own, task_ids)
    ends = Counter(_word(line) for line in own.values())
    found = {
        "tasks": len(task_ids),
        "scored_tasks": len(counts),
        "samples": len(own),
        "pass": _estimates(list(counts.values()), ks),
        "too_few_samples": _too_few(counts, ks),
        "solved_tasks": sum(c > 0 for _, c in counts.values()),
        "results": dict(sorted(ends.items())),
        "unconfirmed": sum(map(is_unconfirmed_pass, own.values())),
    }
    if ends["unconfirmed"]:
        with_them = counts_of(own, task_ids, unconfirmed=True)
        found["pass_with_unconfirmed"] = _estimates(list(with_them.values()), ks)
    return found


def _estimates(pairs: Sequence[tuple[int, int]], ks: Sequence[int]) -> dict[str, Any]:
    found = {f"pass@{k}": estimate(pairs, k) for k in ks}
    return {name: one.as_json() for name, one in found.items() if one is not None}


def _too_few(counts: Mapping[str, tuple[int, int]], ks: Sequence[int]) -> dict[str, dict[str, int]]:
    """Of each k that only some tasks have samples for, the others' numbers of samples."""
    found = {}
    for k in ks:
        few = {task_id: n for task_id, (n, _) in counts.items() if n < k}
        if few and len(few) < len(counts):
            found[f"pass@{k}"] = few
    return found


def is_unconfirmed_pass(line: Line) -> bool:
    """Whether a line's program passed, and not in two processes; False where nothing is known."""
    verdict = line.get("verdict")
    if not isinstance(verdict, dict):
        return False
    return verdict.get("outcome") == "passed" and not verdict.get("isolated", True)


def _word(line: Line) -> str:
    """How a sample ended, in a word."""
    verdict = line.get("verdict")
    if not isinstance(verdict, dict):
        too_long = line.get("finish_reason") == "prompt_too_long"
        return "passed" if line["passed"] else "prompt_too_long" if too_long else "failed"
    if verdict["outcome"] == "passed" and not line["passed"]:
        return "unconfirmed"
    return str(verdict["outcome"])
