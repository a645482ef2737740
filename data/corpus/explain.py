"""Why a document is in a shard set or is not, from what the run that made it wrote down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codecria.data.errors import UserError
from codecria.data.files import read_json
from codecria.data.rows import shards

from . import drops, filters
from .reasons import Reason

MOST = 5  # documents explained at once

# What a user can do about the reasons of other steps; each filter brings its own.
_REMEDIES: dict[str, str] = {
    Reason.VENDORED: "name the folder as a source of its own",
    Reason.HIDDEN: "name the folder as a source of its own",
    Reason.IGNORED: "take it out of .gitignore, or name it as a source of its own",
    Reason.LINKED_OUTSIDE: "--follow-links",
    Reason.RECORDS_AMONG_CODE: "name the file as a source of its own",
    Reason.BESIDE_RECORDS: "name the file as a source of its own",
    Reason.LANGUAGE_UNKNOWN: "rename it, or give it as a record with a language",
    Reason.EXACT_DUPLICATE: "--dedup none",
    Reason.NEAR_DUPLICATE: "--dedup exact, or --set near.threshold=X",
}


def remedies() -> dict[str, str]:
    """What a user can do about each reason; what is not here cannot be helped."""
    return _REMEDIES | {
        reason: text for f in filters.FILTERS for reason, text in f.remedies.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What became of one candidate.

    Attributes:
        id: of the document, or of a folder, which ends in /.
        kept: whether it is in the shards.
        facts: what is known of it, JSON values.
        lines: the same for people, at most five.
    """

    id: str
    kept: bool
    facts: dict[str, Any]
    lines: tuple[str, ...]


def explain(out: Path, name: str) -> list[Explanation]:
    """What became of the documents a name means, the first few of them.

    Args:
        out: a finished shard set, or the folder of several.
        name: an id, a path within a source, or a path on disk that ends in one.

    Raises:
        UserError: no such document was seen, or the set keeps no record of what it dropped.
    """
    path = out / drops.NAME
    sets = shards.sets_in(out)
    if not path.is_file() or not all((s / shards.MANIFEST_NAME).exists() for s in sets.values()):
        raise UserError(
            f"{out} is not a finished shard set with a record of what was dropped",
            hint="make it with `codecria prepare-data`",
        )
    wanted = name.removeprefix("./").rstrip("/")
    found = [*_kept(sets, wanted), *_dropped(path, wanted)]
    if not found:
        sources = ", ".join(read_json(out / "report.json")["identity"]["inputs"])
        raise UserError(
            f"{name} was not seen when {out} was made",
            hint=f"name a path within one of its sources: {sources}",
        )
    exact = [one for one in found if one.id.rstrip("/") == wanted]
    return exact or found[:MOST]


def _matches(batch: pa.RecordBatch, wanted: str) -> list[int]:
    """The rows whose id or path is the name, ends in it, or is what the name ends in."""
    parts = wanted.strip("/").split("/")
    tails = pa.array(["/".join(parts[i:]) for i in range(len(parts))])
    hit = pc.equal(batch.column("id"), wanted)
    for column in ("id", "path"):
        values = pc.ascii_rtrim(batch.column(column), characters="/")
        hit = pc.or_(hit, pc.ends_with(values, pattern=f"/{wanted}"))
        # A bare file name would mean every file called so: a longer tail must agree.
        hit = pc.or_(hit, pc.is_in(values, value_set=tails[: max(1, len(parts) - 1)]))
    return [i for i, found in enumerate(hit.to_pylist()) if found]


def _kept(sets: dict[str, Path], wanted: str) -> Iterator[Explanation]:
    for folder in sets.values():
        manifest = shards.read_manifest(folder)
        for split in manifest.splits:
            opened = shards.ShardSet.open(folder, split)
            first = 0
            for shard in opened.manifest.splits[split].shards:
                with pq.ParquetFile(folder / f"{shard.name}.parquet") as file:
                    for batch in file.iter_batches():
                        for row in _matches(batch, wanted):
                            known = batch.slice(row, 1).to_pylist()[0]
                            yield _explain_kept(known, folder, opened, first + row)
                        first += batch.num_rows


def _explain_kept(
    known: dict[str, Any], folder: Path, opened: shards.ShardSet, number: int
) -> Explanation:
    tokens = opened.length(number)
    facts = known | {"split": opened.split, "document": number, "tokens": tokens}
    lossy = opened.flags(number) & shards.ROUNDTRIP_LOSSY
    replaced = known.get("redactions") or "nothing"
    show = f"codecria inspect {folder} --document {number}"
    if opened.split != "train":
        show += f" --split {opened.split}"
    lines = (
        f"{known['id']}: kept, document {number} of {opened.split} in {folder}",
        _known_line(known) + f", {tokens:,} tokens",
        "passed " + ", ".join(filters.steps()[1:]),
        f"redacted: {replaced}" + ("; does not survive decoding, never infilled" if lossy else ""),
        f"see it with: {show}",
    )
    return Explanation(id=known["id"], kept=True, facts=facts, lines=lines)


def _dropped(path: Path, wanted: str) -> Iterator[Explanation]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in _matches(batch, wanted) + _folders(batch, wanted):
                yield _explain_dropped(batch.slice(row, 1).to_pylist()[0])


def _folders(batch: pa.RecordBatch, wanted: str) -> list[int]:
    """The rows that are folders above what the name means."""
    parts = wanted.strip("/").split("/")
    above = {
        "/".join(parts[i:j]) + "/" for i in range(len(parts)) for j in range(i + 1, len(parts))
    }
    values = pa.array(sorted(above), pa.string())
    hit = pc.or_(
        pc.is_in(batch.column("id"), value_set=values),
        pc.is_in(batch.column("path"), value_set=values),
    )
    return [i for i, found in enumerate(hit.to_pylist()) if found]


def _explain_dropped(known: dict[str, Any]) -> Explanation:
    step, reason = known["step"], known["reason"]
    what = "not entered" if known["path"].endswith("/") else "dropped"
    steps = filters.steps()
    before = steps[1 : steps.index(step)]
    lines = [f"{known['id']}: {what} at step {step}: {reason}"]
    if known["detail"]:
        lines.append(known["detail"])
    lines.append(_known_line(known))
    lines.append("passed " + (", ".join(before) or "nothing before"))
    if remedy := remedies().get(reason):
        lines.append(f"to keep such documents: {remedy}")
    return Explanation(id=known["id"], kept=False, facts=known, lines=tuple(lines))


def _known_line(known: dict[str, Any]) -> str:
    parts = [f"source {known['source']}"]
    if known["language"]:
        parts.append(f"language {known['language']}")
        parts.append(f"licence {known['licence'] or 'unknown'}")
    return ", ".join([*parts, f"{known['bytes']:,} bytes"])


def shown(explanations: Sequence[Explanation]) -> str:
    """The explanations as text, an empty line between them."""
    return "\n\n".join("\n".join(one.lines) for one in explanations)
