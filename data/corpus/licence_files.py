"""The licence that the licence files of folders state."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from codecria.data.files import read_regular

from . import git, licences

LICENCE_BYTES = 1 << 17  # of a licence file, that are read


def licence_of(folder: Path, names: Iterable[str]) -> str | None:
    """The licence that a folder's own licence files state: of the first that states one.

    Args:
        folder: where the files are.
        names: of the files in it, in order.
    """
    for name in names:
        if not licences.is_licence_file(name):
            continue
        data = read_regular(folder / name, LICENCE_BYTES)
        if data is not None and (licence := licences.of_text(data.decode("utf-8", "replace"))):
            return licence
    return None


def licence_around(folder: Path) -> str | None:
    """The licence of a folder by itself, or else by the git work tree that it lies in."""
    return licence_of(folder, _names(folder)) or licence_above(folder)


def licence_above(folder: Path) -> str | None:
    """The licence of the git work tree that a folder lies in, if it is not its root.

    None where the work tree ignores the folder: then it is no part of the tree.
    """
    root = git.root_of(folder)
    if root is None or git.is_foreign(folder):
        return None
    parent = Path(os.path.realpath(folder))
    while parent != root:
        parent = parent.parent
        if licence := licence_of(parent, _names(parent)):
            return licence
    return None


def _names(folder: Path) -> list[str]:
    """What lies in a folder, sorted; nothing where that cannot be seen."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
