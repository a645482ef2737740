"""Where compiled kernels are kept, so that a machine compiles them once.

    $XDG_CACHE_HOME/codecria/kernels/NAME.o       (by default ~/.cache/codecria/kernels)
    $TMPDIR/codecria-kernels-UID/NAME.o           where that cannot be written

A file holds the level of its kernels, a line end, the object code, and a digest of both: a damaged
file is none. Level "none" notes that no kernels work here, and why, so that this too is found out
once. The folder among the temporary files is used only if it is the user's own and closed to
others, since what lies there is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from codecria.data.errors import UserError
from codecria.data.files import atomic_write, temporary_beside

from .cpu import Level

MOST_FILES = 16  # a folder's: older ones are of other versions
_DIGEST = 32  # bytes at the end of a file
_NONE = b"none"


class Kept(NamedTuple):
    """What a file holds."""

    level: Level | None  # None: no kernels work here
    content: bytes  # object code; without a level, the reason


def cache_folder() -> Path:
    """Where object files belong: in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "codecria" / "kernels"


def place() -> Path | None:
    """The folder that files are kept in: the first that can be written; None where none can."""
    return next((folder for folder in _folders(make=True) if _writable(folder)), None)


def read(name: str) -> Kept | None:
    """A kept file; None where there is none, or it is damaged."""
    for folder in _folders():
        try:
            whole = (folder / name).read_bytes()
        except OSError:
            continue
        body, digest = whole[:-_DIGEST], whole[-_DIGEST:]
        if hashlib.sha256(body).digest() == digest:
            first, _, content = body.partition(b"\n")
            level: Any = first.decode()
            return Kept(None if first == _NONE else level, content)
    return None


def keep(name: str, found: Kept) -> str:
    """Write a file where that can be, whole or not at all; returns why it cannot, or nothing."""
    body = (found.level.encode() if found.level else _NONE) + b"\n" + found.content
    problem = ""
    for folder in _folders(make=True):
        try:
            atomic_write(folder / name, body + hashlib.sha256(body).digest())
        except (UserError, OSError) as error:
            problem = problem or str(error)
            continue
        _tidy(folder)
        return ""
    return problem


def _tidy(folder: Path) -> None:
    """Remove the oldest files beyond `MOST_FILES`; another process may do the same."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.o"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST_FILES]:
            path.unlink()


def _folders(*, make: bool = False) -> list[Path]:
    """Where files may lie, the best first."""
    private = _private_folder(make=make)
    return [cache_folder()] if private is None else [cache_folder(), private]


def _private_folder(*, make: bool = False) -> Path | None:
    """A folder of this user's alone among the temporary files, if there is one."""
    try:
        folder = Path(tempfile.gettempdir()) / f"codecria-kernels-{os.getuid()}"
        if make:
            folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
    return folder if own and not stat.S_IMODE(state.st_mode) & 0o022 else None


def _writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, which is made if need be."""
    probe = temporary_beside(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
