"""Everything in a folder, in order: files to judge, and what is skipped where it lies.

Whatever the folder holds, the walk ends and raises nothing: links to themselves, names too long,
folders that cannot be listed and entries that vanish are skips with a reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import git
from .licence_files import licence_above, licence_of
from .names import CACHES, VENDORED, VERSION_CONTROL
from .reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of a source, of which nothing but the name is known.

    Attributes:
        relative: its path within the source, with `/`, always valid text.
        licence: that of the nearest licence file at or above it.
    """

    path: Path
    relative: str
    licence: str | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.relative.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A folder not entered, or a file that its name, type or size rules out."""

    source: str
    relative: str
    reason: Reason
    bytes: int = 0
    folder: bool = False


def display(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 are written out, so names stay apart."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def walk(
    folder: Path, source: str, *, without: Path | None = None, follow_links: bool = False
) -> Iterator[Entry | Skip]:
    """The files below a folder and what is skipped, sorted by path component.

    Args:
        folder: where to begin.
        source: the name of the source, for the skips.
        without: a folder that is left out and not counted, wherever it lies.
        follow_links: links that lead out of the folder are followed, each folder once.
    """
    links = _Links(folder, follow=follow_links)
    passed = os.path.realpath(without) if without is not None else None
    scope = git.scope_of(folder)
    top = _Folder(path=folder, prefix="", scope=scope, licence=licence_above(folder))
    # A stack instead of recursion: folders may lie deeper than Python's stack.
    stack = [_listed(top, source, links)]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
        elif not isinstance(found, _Folder):
            yield found
        elif passed is None or os.path.realpath(found.path) != passed:
            stack.append(_listed(found, source, links))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """A folder to enter.

    Attributes:
        prefix: its path within the source, with a / at its end unless it is empty.
        scope: what git says; above the top, also the folder's own files are read.
        licence: that of the nearest licence file above it.
    """

    path: Path
    prefix: str
    scope: git.Scope
    licence: str | None


class _Links:
    """Which links are followed: those that stay within the source, or all."""

    def __init__(self, folder: Path, *, follow: bool) -> None:
        self._root = os.path.realpath(folder)
        self._follow = follow
        self._entered: set[str] = set()

    def reason_against(self, path: str, *, folder: bool) -> Reason | None:
        """Why a link is not followed; None if it is.

        A link to a folder inside the source is not: the folder is read where it lies.
        """
        try:
            target = os.path.realpath(path, strict=True)
        except OSError:  # to itself, to nothing, through a file, or with a name too long
            return Reason.UNREADABLE
        inside = _is_within(target, self._root)
        if not folder:
            return None if inside or self._follow else Reason.LINKED_OUTSIDE
        if inside or not self._follow or _is_within(self._root, target) or target in self._entered:
            return Reason.LINKED_FOLDER
        self._entered.add(target)
        return None


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _listed(folder: _Folder, source: str, links: _Links) -> Iterator[Entry | Skip | _Folder]:
    """A folder's entries in order."""
    prefix = folder.prefix
    try:
        with os.scandir(folder.path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        yield Skip(source=source, relative=prefix, reason=Reason.UNREADABLE, folder=True)
        return
    names = {entry.name for entry in entries}
    scope = folder.scope
    if prefix:
        if "pyvenv.cfg" in names:  # a virtual environment, whatever it is called
            yield Skip(source=source, relative=prefix, reason=Reason.VENDORED, folder=True)
            return
        if ".git" in names and git.git_folder_of(folder.path):
            scope = git.Scope.root(folder.path)
        if not names.isdisjoint((".gitignore", ".gitattributes")):
            scope = scope.reading(folder.path)
    own = (
        entry.name
        for entry in entries
        if not (_is_link(entry) and links.reason_against(entry.path, folder=False))
    )
    licence = licence_of(folder.path, own) or folder.licence
    for entry in entries:
        is_folder = _is_folder(entry)
        relative = prefix + display(entry.name)
        reason = _reason_against(entry, scope, links, is_folder=is_folder)
        if reason is not None:
            shown = relative + "/" * is_folder
            yield Skip(source=source, relative=shown, reason=reason, folder=is_folder)
        elif not is_folder:
            yield Entry(path=Path(entry.path), relative=relative, licence=licence)
        elif _is_link(entry):
            scope_there = git.scope_of(Path(entry.path))
            yield _Folder(
                path=Path(entry.path), prefix=f"{relative}/", scope=scope_there, licence=None
            )
        else:
            yield _Folder(
                path=Path(entry.path),
                prefix=f"{relative}/",
                scope=scope.below(entry.name),
                licence=licence,
            )


def _reason_against(
    entry: os.DirEntry[str], scope: git.Scope, links: _Links, *, is_folder: bool
) -> Reason | None:
    """Why an entry is skipped; None if it is a file to judge or a folder to enter."""
    is_link = _is_link(entry)
    if (is_folder or entry.name == ".git") and (reason := _pruned(entry.name)):
        return reason  # a linked work tree's .git is a file
    if scope.ignores(entry.name, folder=is_folder and not is_link):  # to git, a link is a file
        return Reason.IGNORED
    if is_link and (reason := links.reason_against(entry.path, folder=is_folder)):
        return reason
    return None if is_folder else scope.mark(entry.name)


def _pruned(name: str) -> Reason | None:
    if name in VERSION_CONTROL:
        return Reason.VERSION_CONTROL
    if name in CACHES:
        return Reason.CACHE
    if name in VENDORED:
        return Reason.VENDORED
    return Reason.HIDDEN if name.startswith(".") else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=True)
    except OSError:
        return False


def _is_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink()
    except OSError:
        return False
