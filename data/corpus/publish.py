"""The end of a run: shards, tokenizer, report and manifests appear in the output folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecria.data.errors import UsageError
from codecria.data.files import (
    atomic_write,
    atomic_write_json,
    write_error,
)
from codecria.data.rows import shards
from codecria.data.rows.shards import Manifest
from codecria.data.tokenizer.model_file import MODEL_NAME
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import drops, partition_files, survivors
from .base import Base
from .recipe import PrepareRecipe
from .report import kept_tables, merge_reports
from .sources import Source
from .work_folder import (
    BASE,
    PROBLEMS_NAME,
    REPORT_NAME,
    place,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """What makes the shards of a run appear in the output folder.

    Attributes:
        work: the work folder.
        sources, recipe, identity, onto, benchmarks, weights: as in `runner.Run`.
    """

    work: Path
    sources: tuple[Source, ...]
    recipe: PrepareRecipe
    identity: dict[str, Any]
    onto: Base | None
    benchmarks: dict[str, Any] | None
    weights: Mapping[str, float]

    def publish(
        self,
        out: Path,
        model: Path,
        facts: shards.TokenizerFacts,
        entries: dict[str, dict[str, list[shards.ShardEntry]]],
        counts: Sequence[dict[str, Any]],
        report: dict[str, Any],
        corpus: survivors.Corpus,
    ) -> dict[str, Any]:
        """Make the shard sets appear; the report of all that is then there.

        Without an older set, the old manifests go first. The new ones come last.
        """
        old = self.onto.manifests if self.onto is not None else {}
        if not old:
            _clear(out)
        new = [*entries]
        for group in new:
            folder = out / group
            for held in entries[group].values():
                for entry in held:
                    for part in entry.digests:
                        name = f"{entry.name}.{part}"
                        place(self.work / "shards" / group / name, folder / name)
            if not (folder / MODEL_NAME).exists() or not old:
                # Tokens that lie beside a Hugging Face tokenizer.model are within it here.
                content = Tokenizer.load(model).content
                atomic_write(folder / MODEL_NAME, content)
        new_partitions = range(corpus.old, corpus.partitions)
        files = [self.work / "plan" / "drops.arrow"] + [
            partition_files.drops_path(partition_files.partition_path(self.work / stage, i))
            for stage in ("read", "tokens")
            for i in new_partitions
        ]
        older = self.work / BASE / drops.NAME if old else None
        drops.publish(out / drops.NAME, files, older)
        if self.benchmarks is not None and not old:
            place(self.work / PROBLEMS_NAME, out / PROBLEMS_NAME)
        if self.onto is not None:
            report = merge_reports(self.onto.report, report)
            report["identity"] = self._merged_identity(self.onto.report["identity"])
        atomic_write_json(out / REPORT_NAME, report)
        for group, splits in entries.items():
            self._write_manifest(out / group, group, splits, facts, counts, old.get(group))
        if self.recipe.group_by != "none":
            weigh(out, self.recipe, sorted({*old, *new}), self.weights)
        return report

    def _merged_identity(self, old: dict[str, Any]) -> dict[str, Any]:
        appended = [*old.get("appended", []), sorted(self.identity["inputs"])]
        inputs = old["inputs"] | self.identity["inputs"]
        return old | {"inputs": inputs, "appended": appended}

    def _write_manifest(
        self,
        folder: Path,
        group: str,
        splits: dict[str, list[shards.ShardEntry]],
        facts: shards.TokenizerFacts,
        counts: Sequence[dict[str, Any]],
        old: Manifest | None,
    ) -> None:
        """The manifest of one group, over what was there and what is new."""
        tables = kept_tables(counts, group)
        names = [source.name for source in self.sources if source.name in tables.sources]
        sources = [{"name": name, **tables.sources[name]} for name in names]
        languages, licences = tables.languages, tables.licences
        joined: dict[str, list[shards.ShardEntry]] = {}
        if old is not None:
            sources = old.sources + sources
            languages = merge_reports(old.languages, languages)
            licences = merge_reports(old.licences, licences)
            joined = {split: list(held.shards) for split, held in old.splits.items()}
        for split in partition_files.SPLITS:
            if split in splits:
                joined.setdefault(split, []).extend(splits[split])
        shards.write_manifest(
            folder,
            {split: joined[split] for split in partition_files.SPLITS if split in joined},
            tokenizer=facts,
            sources=sources,
            languages=languages,
            licences=licences,
            recipe=self.identity["recipe"],
        )


def check_weights(recipe: PrepareRecipe, groups: set[str], weights: Mapping[str, float]) -> None:
    """Refuse weights that do not name every group once."""
    if not weights:
        return
    if recipe.group_by == "none":
        raise UsageError("there is one shard set and no mixture to weigh", hint="give --group-by")
    missing, unknown = sorted(groups - weights.keys()), sorted(weights.keys() - groups)
    if missing or unknown:
        what = f"{missing[0]} has no weight" if missing else f"nothing is called {unknown[0]}"
        raise UsageError(f"--weights: {what}", hint="weigh each of: " + ", ".join(sorted(groups)))


def weigh(
    out: Path, recipe: PrepareRecipe, groups: Sequence[str], weights: Mapping[str, float]
) -> None:
    """Name the groups and their weights; weights given before stay where none are given now."""
    check_weights(recipe, set(groups), weights)
    known = shards.set_weights(out)
    if not weights and known.keys() == set(groups):
        weights = known
    shards.write_sets(out, groups, weights)


def _clear(out: Path) -> None:
    """Take away an older output, its manifests first."""
    try:
        folders = list(shards.sets_in(out).values())
        (out / shards.SETS_NAME).unlink(missing_ok=True)
        for folder in folders:
            (folder / shards.MANIFEST_NAME).unlink(missing_ok=True)
        for folder in folders:
            for split in partition_files.SPLITS:
                for path in sorted(folder.glob(f"{split}-*")):
                    path.unlink()
            if folder != out:
                shutil.rmtree(folder, ignore_errors=True)
        for name in (drops.NAME, PROBLEMS_NAME):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(out, error) from error


def facts_of(model: Path) -> shards.TokenizerFacts:
    """What a manifest says of a tokenizer."""
    loaded = Tokenizer.load(model)
    return shards.TokenizerFacts(
        digest=loaded.digest,
        vocab_size=loaded.vocab_size,
        bos_id=loaded.bos_id,
        eos_id=loaded.eos_id,
    )
