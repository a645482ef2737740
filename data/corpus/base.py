"""The shard sets that are appended to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecria.data.errors import UsageError, UserError
from codecria.data.files import (
    atomic_write_json,
    digest_json,
    read_json,
)
from codecria.data.rows import shards
from codecria.data.rows.shards import Manifest

from . import decontaminate, drops
from .append import OldShard, old_shards
from .recipe import PrepareRecipe
from .work_folder import (
    BASE,
    PROBLEMS_NAME,
    REPORT_NAME,
    WORK,
    copy,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The shard sets that are appended to, as they were before.

    Attributes:
        manifests: by group.
    """

    folder: Path
    manifests: dict[str, Manifest]
    report: dict[str, Any]

    @classmethod
    def open(cls, out: Path) -> Base:
        """What is at `out`, or was there before an append that was stopped while publishing."""
        kept = out / WORK / BASE
        where = kept if (kept / REPORT_NAME).exists() else out
        return cls(
            folder=out,
            manifests={
                group: shards.read_manifest(folder)
                for group, folder in shards.sets_in(where).items()
            },
            report=read_json(where / REPORT_NAME),
        )

    @property
    def digest(self) -> str:
        """Of the content of all sets."""
        return digest_json({group: held.digest for group, held in self.manifests.items()})

    @property
    def shards(self) -> list[OldShard]:
        """All shards, in order."""
        return [
            shard
            for group, manifest in self.manifests.items()
            for shard in old_shards(self.folder / group, manifest)
        ]

    def holds(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """The report if these inputs are in the set already; None if they are to be added.

        Raises:
            UserError: it holds other documents under the same name, or keeps no keys.
        """
        there = self.report["identity"]["inputs"]
        if all(there.get(name) == source for name, source in inputs.items()):
            return self.report
        same = sorted(there.keys() & inputs.keys())
        if same:
            raise UserError(
                f"{self.folder} holds a source called {same[0]!r} already, and this one differs",
                hint=f"give what is new a name of its own: {same[0]}-2=PATH",
            )
        for shard in self.shards:
            shard.check_keys()
        return None

    def keep(self, folder: Path) -> None:
        """Copy what publishing replaces."""
        if (folder / REPORT_NAME).exists():
            return
        for group in self.manifests:
            source = self.folder / group / shards.MANIFEST_NAME
            atomic_write_json(folder / group / shards.MANIFEST_NAME, read_json(source))
        if (self.folder / shards.SETS_NAME).exists():
            sets = read_json(self.folder / shards.SETS_NAME)
            atomic_write_json(folder / shards.SETS_NAME, sets)
        copy(self.folder / drops.NAME, folder / drops.NAME)
        atomic_write_json(folder / REPORT_NAME, self.report)


def recipe_of(out: Path) -> PrepareRecipe:
    """The recipe of the shard set at `out`, for what is appended to it.

    Raises:
        UserError: there is no finished set, or it was made by another version.
    """
    base = Base.open(out)
    try:
        return PrepareRecipe.from_json(base.report["identity"]["recipe"])
    except (KeyError, UsageError) as error:
        raise UserError(
            f"{out} was made by another version of codecria: nothing can be appended to it",
            hint="make it again from all its sources",
        ) from error


def old_problems(out: Path, recipe: PrepareRecipe) -> decontaminate.Index | None:
    """The problems the set at `out` keeps out."""
    if recipe.benchmarks is None:
        return None
    try:
        index = decontaminate.Index.load(out / PROBLEMS_NAME)
    except OSError as error:
        raise UserError(
            f"{out / PROBLEMS_NAME} is missing: what is appended could hold evaluation problems",
            hint="make the set again from all its sources",
        ) from error
    if index.digest != recipe.benchmarks:
        raise UserError(f"{out / PROBLEMS_NAME} is not the file that was written")
    return index
