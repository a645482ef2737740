"""What there is to read, and how it is cut: from sources to partitions of bounded size.

Nothing is opened here but what must be to cut it; reading is the first pass (`passes.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from codecria.data.errors import UsageError, UserError
from codecria.data.files import atomic_write, digest_bytes

from . import languages
from . import sources as inputs
from .decontaminate import DEFAULT as DEFAULT_DECONTAMINATION
from .decontaminate import Decontamination
from .drops import DropWriter
from .near import DEFAULT as DEFAULT_NEAR
from .near import Near
from .quality import DEFAULT as DEFAULT_QUALITY
from .quality import Quality
from .reasons import Reason
from .redact import DEFAULT as DEFAULT_REDACTION
from .redact import Redaction
from .report import Tally
from .sources import Source
from .units import MAX_RECORD_BYTES, InputFile, Unit, split
from .walk import Skip

OPTIONS_OF_THEIR_OWN = ("tokenizer", "vocab_size", "benchmarks")  # not for --set
FILE_OVERHEAD_BYTES = 1 << 10  # so that a partition also bounds the number of its files


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRecipe:
    """Everything besides the sources that decides what the shards hold.

    Attributes:
        languages: canonical names to keep, or None for all.
        licences: those kept, as `licences.parse_wanted` names them, or None for any.
        quality: the filters' thresholds, or None for no quality filter.
        redaction: which secrets and addresses are replaced, or None for none.
        decontamination: what counts as holding an evaluation problem.
        benchmarks: digest of the problems to keep out, or None for none.
        dedup: "near" (and exact), "exact" or "none".
        near: what counts as a near-duplicate.
        group_by: "none" makes one shard set, "source", "kind" and "language" one of each.
        validation_share: of the documents, by hash of their text; each source with two documents
            or more gives at least one. 0 makes no validation split.
        seed: of the shuffle.
        shard_bytes: of text, in a shard.
        tokenizer: digest of the model given, or None to train one.
        vocab_size: pieces of a tokenizer trained here.
        sample_bytes: of text that the tokenizer is trained on, at most.
    """

    languages: tuple[str, ...] | None = None
    licences: tuple[str, ...] | None = None
    quality: Quality | None = DEFAULT_QUALITY
    redaction: Redaction | None = DEFAULT_REDACTION
    decontamination: Decontamination = DEFAULT_DECONTAMINATION
    benchmarks: str | None = None
    dedup: Literal["near", "exact", "none"] = "near"
    near: Near = DEFAULT_NEAR
    group_by: Literal["none", "source", "kind", "language"] = "none"
    validation_share: float = 0.005
    seed: int = 0
    shard_bytes: int = 256 << 20
    tokenizer: str | None = None
    vocab_size: int | None = None
    sample_bytes: int = 64 << 20

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: naming the field and its range.
        """
        if not 0 <= self.validation_share <= 0.5:
            raise ValueError(f"validation_share is {self.validation_share}, not within 0 and 0.5")
        for name in ("shard_bytes", "sample_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not at least 1")

    @property
    def max_bytes(self) -> int:
        """Larger files are not opened."""
        return self.quality.max_bytes if self.quality else MAX_RECORD_BYTES


def override(recipe: PrepareRecipe, settings: Sequence[str]) -> PrepareRecipe:
    """The recipe with `KEY=VALUE` settings applied; keys may be dotted, values are JSON or text.

    Raises:
        UsageError: a setting has no `=`, names no field, or its value does not fit.
    """
    values = asdict(recipe)
    fixed = {name: values.pop(name) for name in OPTIONS_OF_THEIR_OWN}
    for setting in settings:
        key, separator, written = setting.partition("=")
        *parents, field = key.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not separator or not isinstance(place, dict) or field not in place:
            raise UsageError(
                f"--set {setting}: the recipe has no such field",
                hint="fields: " + ", ".join(place if isinstance(place, dict) else values),
            )
        try:
            place[field] = json.loads(written)
        except ValueError:
            place[field] = written
    try:
        return TypeAdapter(PrepareRecipe).validate_python(values | fixed)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "values"
        raise UsageError(
            f"--set {name}: {first['msg']}", hint="the fields are listed in docs/prepare-data.md"
        ) from error


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
    for found in inputs.scan(source, max_bytes=recipe.max_bytes):
        if (
            isinstance(found, InputFile)
            and recipe.languages is not None
            and found.language is not None
            and not languages.possible_by_path(found.relative) & set(recipe.languages)
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
                folders[found.reason.value] = folders.get(found.reason.value, 0) + 1
            else:
                skipped = result["skipped"].setdefault(found.reason.value, {"files": 0, "bytes": 0})
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
