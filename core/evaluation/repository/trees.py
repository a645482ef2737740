"""The files of commits in folders that the sandbox reads: each blob once, trees of links to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from codecria.data.corpus.history import History

_ODD = frozenset({"", ".", "..", ".git"})


class Trees:
    """Folders with the regular files of commits; links and submodules are left out.

    Args:
        history: opened; one thread at a time reads it.
        folder: an empty one of ours.
    """

    def __init__(self, history: History, folder: Path) -> None:
        self._history = history
        self._folder = folder
        self._blobs = folder / "blobs"
        self._blobs.mkdir()
        self._files: dict[str, dict[str, str]] = {}
        self._made = 0

    def files(self, commit: str) -> dict[str, str]:
        """The hash of every file of a commit that is placed, by its path."""
        if commit not in self._files:
            found = self._history.files(commit).items()
            self._files[commit] = {
                path: blob for path, blob in found if not _ODD.intersection(path.split("/"))
            }
        return self._files[commit]

    def fetch(self, commit: str) -> None:
        """Read what a commit has and no earlier one had.

        Raises:
            UserError: the repository lacks a file, or it cannot be written here.
        """
        for blob in sorted({*self.files(commit).values()}):
            place = self._blobs / blob
            if not place.exists():
                place.write_bytes(self._history.content(blob))

    def make(self, commit: str, changed: Mapping[str, str]) -> Path:
        """A new folder with the files of a commit that was fetched.

        Args:
            commit: its hash.
            changed: other texts of some files, by path.
        """
        self._made += 1
        tree = self._folder / f"tree-{self._made}"
        tree.mkdir()
        known = {""}
        for path, blob in self._files[commit].items():
            above = path.rpartition("/")[0]
            if above not in known:
                (tree / above).mkdir(parents=True, exist_ok=True)
                known.add(above)
            if path in changed:
                (tree / path).write_bytes(changed[path].encode("utf-8", "surrogatepass"))
            else:
                os.link(self._blobs / blob, tree / path)
        return tree

    def drop(self, tree: Path) -> None:
        """Remove a folder that `make` made."""
        shutil.rmtree(tree)
