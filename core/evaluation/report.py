"""Results of many checkpoints in one table: models as rows, as in the paper's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.files import read_json

from .benchmarks.results import meta_path

SUFFIX = ".meta.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One score of one model.

    Attributes:
        value, low, high: of the score and of its 95 % interval.
        source: the result that it was read from.
        notes: what makes it less than the whole score.
    """

    value: float
    low: float
    high: float
    source: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One score: of an evaluation, asked in one way.

    Attributes:
        title: as people write it, such as "HumanEval pass@1".
        task, problems, form: what its command is made of.
    """

    title: str
    task: str
    problems: tuple[str, ...]
    form: str


@dataclass(slots=True)
class Report:
    """A table of scores.

    Attributes:
        models: the rows, in the order of the results: a digest, and the path that it was read by.
        columns: in the order of the results.
        cells: by digest and column.
        remarks: results that were passed over.
    """

    models: dict[str, str] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    cells: dict[tuple[str, Column], Cell] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def missing(self) -> Iterator[tuple[str, Column, str]]:
        """(model, column, the command that fills it) of each empty cell."""
        for digest, model in self.models.items():
            for column in self.columns:
                if (digest, column) not in self.cells:
                    yield model, column, command_for(model, column)

    def as_json(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {
            "columns": [column.title for column in self.columns],
            "models": [
                {
                    "model": model,
                    "digest": digest,
                    "scores": {
                        column.title: {
                            "value": cell.value,
                            "low": cell.low,
                            "high": cell.high,
                            "source": str(cell.source),
                            "notes": list(cell.notes),
                        }
                        for column in self.columns
                        if (cell := self.cells.get((digest, column))) is not None
                    },
                }
                for digest, model in self.models.items()
            ],
            "missing": [
                {"model": model, "score": column.title, "command": command}
                for model, column, command in self.missing()
            ],
            "remarks": self.remarks,
        }

    def as_markdown(self) -> str:
        """The table in Markdown, intervals in brackets, and what is missing below it."""
        titles = ["model", *(column.title for column in self.columns)]
        lines = [_row(titles), _row(["---", *("---:" for _ in self.columns)])]
        for digest, model in self.models.items():
            cells = [self.cells.get((digest, column)) for column in self.columns]
            lines.append(_row([model, *(shown(cell) for cell in cells)]))
        missing = list(self.missing())
        if missing:
            lines += ["", "Missing, and how to fill it:", ""]
            lines += [
                f"- {column.title} of {model}: `{command}`" for model, column, command in missing
            ]
        return "\n".join(lines) + "\n"


def shown(cell: Cell | None) -> str:
    """A score as people read it, in percent; a star marks one that has notes."""
    if cell is None:
        return "-"
    star = "*" if cell.notes else ""
    return f"{100 * cell.value:.1f}{star} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"


def command_for(model: str, column: Column) -> str:
    """The command that makes a score."""
    files = " ".join(f"--problems {path}" for path in column.problems)
    return f"codecria evaluate {column.task} {files} --model {model} --out FILE"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def collect(paths: Sequence[Path]) -> Report:
    """The scores in results, and in folders of them.

    Args:
        paths: files that `evaluate TASK --out` wrote, or folders that are searched for them.

    Raises:
        UserError: a path is no result, or there is none.
    """
    report = Report()
    for path in _metas(paths):
        meta = read_json(path)
        result = path.with_name(path.name.removesuffix(SUFFIX))
        if not isinstance(meta, dict) or "summary" not in meta:
            report.remarks.append(f"{result} is not complete; the same command goes on with it")
            continue
        if "model_digest" not in meta:
            report.remarks.append(f"{result} names no model")
            continue
        _take(report, result, meta)
    if not report.cells:
        raise UserError(
            "there is no complete result of a model in what was named",
            hint="make one with `codecria evaluate TASK --out FILE`",
        )
    return report


def _metas(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob(f"*{SUFFIX}"))
            continue
        meta = path if path.name.endswith(SUFFIX) else meta_path(path)
        if not meta.is_file():
            raise UserError(
                f"{path} is no result: there is no {meta.name} beside it",
                hint="make one with `codecria evaluate TASK --out FILE`",
            )
        yield meta


def _take(report: Report, result: Path, meta: Mapping[str, Any]) -> None:
    summary, protocol = meta["summary"], meta.get("protocol") or {}
    scores = summary.get("pass") or {
        name: found for name, found in summary.get("scores", {}).items() if name == summary["score"]
    }
    digest = meta["model_digest"]
    report.models.setdefault(digest, meta["model"])
    problems = meta["problems"]
    files = tuple(problems.get("files") or [problems["file"]])
    form = str(protocol.get("form", ""))
    for name, found in scores.items():
        column = Column(
            title=f"{meta['title']} {name}" + _how(meta, protocol),
            task=meta["task"],
            problems=files,
            form=form,
        )
        if column not in report.columns:
            report.columns.append(column)
        if (digest, column) in report.cells:
            report.remarks.append(
                f"{result} is passed over: {report.cells[digest, column].source} has the same score"
            )
            continue
        report.cells[digest, column] = Cell(
            value=found["value"],
            low=found["low"],
            high=found["high"],
            source=result,
            notes=tuple(summary.get("partial", ())),
        )


def _how(meta: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """What sets one column apart from others of its evaluation: languages, form, temperature."""
    parts = [name for name in meta.get("languages", ()) if meta["task"] in MULTILINGUAL]
    if (form := protocol.get("form")) not in (None, "completion", "few-shot", "choice"):
        parts.append(form)
    if protocol.get("temperature"):
        parts.append(f"T {protocol['temperature']:g}")
    return f" ({', '.join(parts)})" if parts else ""


MULTILINGUAL = ("humaneval-x", "multipl-e")  # evaluations with a file for each language
