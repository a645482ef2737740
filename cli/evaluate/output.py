"""What `codecria evaluate TASK` shows of its benchmarks: the table, the picture, the gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from .. import render
from ..picture import drawing


def show(summaries: Sequence[dict[str, Any]]) -> None:
    """The summaries as a table, with what qualifies them."""
    rows = []
    for summary in summaries:
        ends = ", ".join(f"{n} {word}" for word, n in summary.get("results", {}).items())
        rows.append(
            (
                summary["title"],
                _how(summary.get("protocol") or {}),
                _tasks(summary),
                f"{summary['samples']:,}",
                "\n".join(_scores(summary)) or "-",
                ends or "not run",
            )
        )
    columns = ["", "how", "tasks", "samples", "score, 95%", "results"]
    render.table(f"{summaries[0]['problems']['file']}", columns, rows, to_stdout=True)
    for summary in summaries:
        for reason in summary["partial"]:
            render.note(f"partial: {reason}")
        for label in summary["labels"]:
            render.note(f"note: {label}")


def _how(protocol: dict[str, Any]) -> str:
    """The prompt form and how samples were drawn."""
    if not protocol:
        return "samples of a file"
    if protocol["temperature"] == 0:
        return f"{protocol['form']}, greedy"
    return f"{protocol['form']}, T {protocol['temperature']:g}, p {protocol['top_p']:g}"


def _scores(summary: dict[str, Any]) -> list[str]:
    """A line for each score: of all tasks, with what was not confirmed, and of each level."""
    unconfirmed = summary.get("pass_with_unconfirmed", {})
    lines = [f"{name} {_interval(found)}" for name, found in summary["pass"].items()]
    lines += [f"{name} {one['value']:.1%} with unconfirmed" for name, one in unconfirmed.items()]
    for level, found in summary.get("by_level", {}).items():
        lines += [f"{level} {name} {_interval(one)}" for name, one in found["pass"].items()]
    return lines


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _tasks(summary: dict[str, Any]) -> str:
    """How many tasks are scored, and of how many."""
    scored = summary.get("scored_tasks", summary["tasks"])
    known = f"{summary['tasks']:,}"
    return known if scored == summary["tasks"] else f"{scored:,} of {known}"


def draw(summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """pass@k over temperature, a line for each k and form, with its intervals."""
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for summary in summaries:
        protocol = summary["protocol"]
        for name, found in summary["pass"].items():
            label = f"{name}, {protocol['form']}"
            lines.setdefault(label, []).append((protocol["temperature"], found))
    with drawing(path, width=6.0, height=4.5) as figure:
        axis = figure.subplots()
        for label, points in lines.items():
            over = [temperature for temperature, _ in points]
            [line] = axis.plot(over, [found["value"] for _, found in points], "o-", label=label)
            low, high = ([found[end] for _, found in points] for end in ("low", "high"))
            axis.fill_between(over, low, high, alpha=0.2, color=line.get_color())
        axis.set_xlabel("temperature")
        axis.set_ylabel("share of tasks solved, 95 % interval")
        axis.set_title(summaries[0]["title"])
        axis.legend()


def gate(summaries: Sequence[dict[str, Any]], least: float) -> None:
    """End with 3 where a score is below the threshold."""
    from codecria.data.errors import ExitStatus

    for summary in summaries:
        found = summary["pass"].get("pass@1")
        if found is None or found["value"] < least:
            value = "unknown" if found is None else f"{found['value']:.1%}"
            render.note(f"pass@1 is {value}, --fail-under asks for {least:.1%}")
            raise typer.Exit(ExitStatus.GATE)
