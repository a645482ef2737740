"""What there is to read, and how it is cut: from sources to partitions of bounded size.

Nothing is opened here but what must be to cut it; reading is the first pass (`read_pass.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.files import atomic_write, digest_bytes

from . import languages
from . import sources as inputs
from .drops import DropWriter
from .filters import Languages
from .reasons import Reason
from .recipe import PrepareRecipe
from .sources import Source
from .tally import Tally
from .units import InputFile, Unit, split
from .walk import Skip

FILE_OVERHEAD_BYTES = 1 << 10  # so that a partition also bounds the number of its files


def group_of(source: str, language: str, group_by: str) -> str:
    """The shard set a document goes to, "" where all go to one.

    By kind, prose and text of no known language are apart from code, as the paper's mixture has
    natural language apart (section 2.2).

    >>> group_of("src", "Markdown", "kind")
    'prose'
    """
    match group_by:
        case "none":
            return ""
        case "source":
            return source
        case "language":
            return language.replace("/", "-")
        case _:
            if language == languages.UNKNOWN:
                return language
            return "prose" if languages.language_class(language) == "prose" else "code"


def candidates(source: Source, recipe: PrepareRecipe) -> Iterator[InputFile | Skip]:
    """`inputs.scan`, with files in unwanted languages skipped by their names."""
    wanted = recipe.filters[Languages.key]
    for found in inputs.scan(source, max_bytes=recipe.max_bytes):
        if (
            isinstance(found, InputFile)
            and wanted is not None
            and found.language is not None
            and not languages.possible_by_path(found.relative) & set(wanted)
        ):
            yield Skip(
                source=found.source,
                relative=found.relative,
                reason=Reason.LANGUAGE_UNWANTED,
                bytes=found.bytes,
            )
        else:
            yield found


def survey(
    sources: Sequence[Source], recipe: PrepareRecipe, spooled: dict[str, str] | None = None
) -> dict[str, Any]:
    """What would be read, from names, sizes and times alone; also the identity of the inputs.

    Args:
        sources: with standard input spooled, or left out.
        recipe: for its languages and size limit.
        spooled: source name -> digest of its content, which then stands for the file's time.

    Returns:
        {"sources": {name: {files, bytes, kinds, digest}}, "skipped": {reason: {files, bytes}},
        "skipped_folders": {reason: count}}.

    Raises:
        UserError: there is nothing to read.
    """
    result: dict[str, Any] = {"sources": {}, "skipped": {}, "skipped_folders": {}}
    for source in sources:
        state = hashlib.blake2b(digest_size=16)
        entry: dict[str, Any] = {"files": 0, "bytes": 0, "kinds": {}}
        for found in candidates(source, recipe):
            if isinstance(found, InputFile):
                stamp = (spooled or {}).get(source.name) or found.mtime_ns
                state.update(f"{found.relative}\0{found.bytes}\0{stamp}\n".encode())
                entry["files"] += 1
                entry["bytes"] += found.bytes
                kind = (
                    found.kind if found.compression is None else f"{found.kind}.{found.compression}"
                )
                entry["kinds"][kind] = entry["kinds"].get(kind, 0) + 1
            elif found.folder:
                folders = result["skipped_folders"]
                folders[str(found.reason)] = folders.get(str(found.reason), 0) + 1
            else:
                skipped = result["skipped"].setdefault(str(found.reason), {"files": 0, "bytes": 0})
                skipped["files"] += 1
                skipped["bytes"] += found.bytes
        entry["digest"] = state.hexdigest()
        result["sources"][source.name] = entry
    if not any(entry["files"] for entry in result["sources"].values()):
        counts = {r: s["files"] for r, s in result["skipped"].items()} | result["skipped_folders"]
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
        raise UserError(
            "there is nothing to read in " + ", ".join(result["sources"]),
            hint=f"skipped: {why}" if why else "the sources are empty",
        )
    return result


def partitions(
    sources: Sequence[Source],
    recipe: PrepareRecipe,
    *,
    partition_bytes: int,
    tally: Tally,
    dropped: DropWriter,
) -> Iterator[list[Unit]]:
    """The input in order, cut into pieces of about `partition_bytes`; skips are tallied."""
    units: list[Unit] = []
    weight = 0
    for source in sources:
        for found in candidates(source, recipe):
            if isinstance(found, Skip):
                name = f"{found.source}/{found.relative}"
                if found.folder:
                    tally.folder(found.reason)
                else:
                    tally.found(found.source, found.bytes)
                    tally.dropped("named", found.reason, found.bytes, name)
                dropped.add(
                    identity=name,
                    source=found.source,
                    path=found.relative,
                    step="named",
                    verdict=found.reason,
                    size=found.bytes,
                )
                continue
            for unit in split(found, unit_bytes=partition_bytes):
                cost = unit.weight + FILE_OVERHEAD_BYTES
                if units and weight + cost > partition_bytes:
                    yield units
                    units, weight = [], 0
                units.append(unit)
                weight += cost
    if units:
        yield units


def save_plan(path: Path, units: Sequence[Unit]) -> str:
    """Write a partition's units; their digest."""
    entries = [
        {**asdict(unit), "file": {**asdict(unit.file), "path": str(unit.file.path)}}
        for unit in units
    ]
    content = json.dumps(entries).encode()  # escaped: file names may hold what is not text
    atomic_write(path, content)
    return digest_bytes(content)


def load_plan(path: Path) -> list[Unit]:
    """The units that `save_plan` wrote."""

    def unit(entry: dict[str, Any]) -> Unit:
        file = entry["file"]
        return Unit(**{**entry, "file": InputFile(**{**file, "path": Path(file["path"])})})

    return [unit(entry) for entry in json.loads(path.read_bytes())]
