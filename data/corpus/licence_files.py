"""The licence that the licence files of folders state."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from codecria.data.files import read_regular

from . import git, licence_texts, licences

LICENCE_BYTES = 1 << 17  # of a licence file, that are read


_FILE_NAME = re.compile(
    r"(?:(?:un)?licen[cs]es?|copying|copyright|mit-licen[cs]e)(?:[.\-_][a-z0-9.\-_+]*)?", re.I
)
_PROGRAM_ENDINGS = (".py", ".js", ".ts", ".go", ".java", ".c", ".h", ".rs", ".rb", ".json", ".yml")
# Notices about what is merely bundled.
_OTHERS = re.compile(
    r"(?:third|3rd|3)[.\-_]?part(?:y|ies)|bundled?|vendor(?:ed)?|external|deps|dependenc(?:y|ies)"
    r"|upstream|notices?|attributions?|acknowledge?ments?|credits?|includ(?:ed|es)|libraries|other",
    re.I,
)


def is_licence_file(name: str) -> bool:
    """Whether a file is by its name the licence of what lies around it.

    Notices of third parties (`LICENSE-3RD-PARTY`, `LICENSES.bundled`) are not.
    """
    name = PurePosixPath(name).name
    return (
        _FILE_NAME.fullmatch(name) is not None
        and not name.lower().endswith(_PROGRAM_ENDINGS)
        and _OTHERS.search(name) is None
    )


def licence_of(folder: Path, names: Iterable[str]) -> str | None:
    """The licence that a folder's own licence files state.

    Of several all apply, unless one of them says that either may be chosen.

    Args:
        folder: where the files are.
        names: of the files in it.
    """
    found: list[str] = []
    choice = False
    for name in filter(is_licence_file, names):
        data = read_regular(folder / name, LICENCE_BYTES)
        text = data.decode("utf-8", "replace") if data is not None else ""
        if licence_texts.offers_choice(text):
            choice = True
        elif licence := licence_texts.of_text(text):
            found.append(licence)
    if choice and len(found) > 1:
        return " OR ".join(f"({name})" if " AND " in name else name for name in sorted(found))
    return licences.join(found)


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
