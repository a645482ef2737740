"""The output folder and the work folder in it: what they are for, and whether they may be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from codecria.data.errors import UserError
from codecria.data.files import (
    atomic_write_json,
    atomic_writer,
    digest_file,
    read_json,
    temporary_beside,
)
from codecria.data.identity import differences, require_same
from codecria.data.rows import shards

from .reasons import DAMAGE
from .report import totals
from .sources import Source

WORK = ".work"
REPORT_NAME = "report.json"
PROBLEMS_NAME = "benchmarks.index"  # hashes of what was kept out, for what is appended
IDENTITY_NAME = "identity.json"  # in the work folder: what an unfinished run is making
BASE = "base"  # in the work folder: what was there before an append began
PIPELINE_VERSION = 3  # raise it when a pass's output changes for the same input


def plain(value: Any) -> Any:
    """The value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def refuse_strangers(out: Path) -> None:
    """Never fill, and with force never clear, a folder that holds somebody's own files."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file", hint="choose another --out")
    ours = is_complete(out) or (out / WORK).exists()
    if not ours and any(path.name != ".lock" for path in out.iterdir()):
        raise UserError(
            f"{out} is not empty and not a shard set", hint="choose a new folder for --out"
        )


def spool(
    sources: Sequence[Source], work: Path, stdin: IO[bytes] | None
) -> tuple[list[Source], dict[str, str]]:
    """Standard input as a file named by its content, so that a resumed run finds it unchanged."""
    spooled: dict[str, str] = {}
    ready = []
    for source in sources:
        if source.path is not None:
            ready.append(source)
            continue
        assert stdin is not None, "a source is standard input, but none was passed"
        temporary = work / "stdin" / "incoming"
        with atomic_writer(temporary) as file:
            shutil.copyfileobj(stdin, file, 1 << 20)
        digest = digest_file(temporary)
        path = work / "stdin" / digest / "stdin.jsonl"
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            temporary.unlink()  # the older file keeps its time, by which partitions know it
        else:
            temporary.replace(path)
        spooled[source.name] = digest
        ready.append(Source(name=source.name, path=path))
    return ready, spooled


def is_complete(out: Path) -> bool:
    """Whether a folder holds a finished shard set, or several."""
    return (out / shards.MANIFEST_NAME).exists() or (out / shards.SETS_NAME).exists()


def finished(out: Path, identity: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    """The report of the output if it is complete and the same; None if there is work to do."""
    if not is_complete(out):
        return None
    report: dict[str, Any] = read_json(out / REPORT_NAME)
    changed = differences(report["identity"], identity)
    if not force:
        require_same(
            out,
            changed,
            what="other shards",
            hint="choose another --out, or replace it with --force",
        )
    return None if changed else report


def claim(work: Path, identity: dict[str, Any], *, force: bool) -> None:
    """Mark the work folder with what it is for."""
    path = work / IDENTITY_NAME
    if path.exists() and not force:
        require_same(
            work.parent,
            differences(read_json(path), identity),
            what="another unfinished run",
            hint="choose another --out, or give the old run up with --force",
        )
    atomic_write_json(path, identity)


def refuse_damage(reasons: dict[str, Any], *, strict: bool) -> None:
    """Under `strict`, refuse damaged input.

    Raises:
        UserError: there is some; the first is shown.
    """
    if not strict:
        return
    counts = totals(reasons)
    damaged = [str(reason) for reason in DAMAGE if reason in counts]
    if damaged:
        more = sum(counts[reason] for reason in damaged) - 1
        example = next(
            by_reason[damaged[0]]["examples"][0]
            for by_reason in reasons.values()
            if damaged[0] in by_reason
        )
        raise UserError(
            f"{damaged[0]}: {example}" + f" (and {more} more)" * (more > 0),
            hint="mend or remove it, or leave out --strict to count it and go on",
        )


def place(source: Path, target: Path) -> None:
    """The file at `source`, whole, also at `target`: a link where the disk has them, else a copy.

    The source stays: a run killed while publishing publishes again.
    """
    target.parent.mkdir(exist_ok=True)
    temporary = temporary_beside(target)
    try:
        temporary.hardlink_to(source)
    except OSError:
        copy(source, target)
    else:
        temporary.replace(target)


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_writer(target) as file, source.open("rb") as content:
        shutil.copyfileobj(content, file, 1 << 20)
