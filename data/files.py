"""Files and folders that are either whole or absent, their digests, and a lock on an output.

Everything the project writes goes through here: a temporary name in the same folder, fsync, rename.
A reader therefore never sees half a file, and a process killed at any moment leaves at most a
temporary file behind, whose name starts with `.tmp-` and which the next run removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import UserError

TEMPORARY_PREFIX = ".tmp-"
UNIQUE_DIGITS = 12  # hexadecimal, at the end of a temporary name
DIGEST_BYTES = 16  # 128 bits: collisions are out of reach, and the hex still fits a table


def temporary_beside(path: Path) -> Path:
    """A name for a temporary file or folder in the folder of `path`, unique to this call."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:UNIQUE_DIGITS]}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write a file to, which appears at `path` when the block ends well.

    For writers that open the file themselves; others use `atomic_writer`.

    Raises:
        UserError: the file cannot be written (no space, no permission).
    """
    temporary = temporary_beside(path)
    claim = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        claim = _claimed(temporary)
        yield temporary
        os.fsync(claim)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        if claim is not None:
            os.close(claim)


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` when the block ends well, and not at all otherwise.

    Raises:
        UserError: the file cannot be written (no space, no permission).
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_writer(path) as file:
        file.write(content)


def finite(value: Any) -> Any:
    """The JSON value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def escaped(text: str) -> bytes:
    r"""JSON text as UTF-8, with escapes for lone surrogates, which UTF-8 cannot hold.

    A model's answer may hold one. No answer ends a run, and reading gives the same text again.

    >>> escaped('["\ud800", "\u00e9"]')
    b'["\\ud800", "\xc3\xa9"]'
    """
    return text.encode("utf-8", "backslashreplace")


def json_line(value: Any) -> str:
    """The value as one line of JSON, with its line end; see `finite` and `escaped`."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False) + "\n"
    return escaped(text).decode()


def atomic_write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with sorted keys, whole or not at all.

    See `finite` and `escaped` for what JSON and UTF-8 cannot hold.
    """
    text = json.dumps(finite(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    atomic_write(path, escaped(text + "\n"))


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears at `path` when the block ends well, and not at all otherwise.

    An existing folder at `path` is replaced; the old one goes only once the new one is in place.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = temporary_beside(path)
    claim = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        claim = _claimed(temporary)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            else:
                _sync_folder(file)
        _sync_folder(temporary)
        if path.exists():
            old = temporary_beside(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
        if claim is not None:
            os.close(claim)


def _claimed(path: Path) -> int:
    """A descriptor that holds a lock on `path`, which tells `sweep` that somebody writes to it."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` left beside it; those still at work are left alone."""
    # The whole name: what begins with it may be another file's, `model-00001` beside `model`.
    ours = re.compile(rf"{re.escape(TEMPORARY_PREFIX + path.name)}-[0-9a-f]{{{UNIQUE_DIGITS}}}")
    for leftover in sorted(path.parent.iterdir()):
        if not ours.fullmatch(leftover.name):
            continue
        try:
            descriptor = os.open(leftover, os.O_RDONLY)
        except OSError:
            continue  # it has gone, or is another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another --out",
    errno.EDQUOT: "free some space of your quota, or choose another --out",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or choose another --out",
    errno.EROFS: "choose another --out: this file system is read-only",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system's limit on open files is reached",
    errno.EIO: "choose another --out: the disk may be failing",
    errno.ENAMETOOLONG: "choose an --out with a shorter name",
    errno.EACCES: "check the folder's permissions, or choose another --out",
    errno.EPERM: "check the folder's permissions, or choose another --out",
}


def write_remedy(error: OSError) -> str:
    """What a user can do about a failed write, as a hint."""
    return _REMEDIES.get(error.errno or 0, "choose another --out")


def write_error(path: Path, error: OSError) -> UserError:
    """The user's view of a failed write to `path`."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}", hint=write_remedy(error))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left behind in `folder` (call with the folder's lock held)."""
    for path in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Fail before a write that would not fit.

    Raises:
        UserError: less than `needed_bytes` is free on the disk that holds `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"{folder} has {free / 1e9:.2f} GB free, {needed_bytes / 1e9:.2f} GB are needed",
            hint="free some space, or choose another --out",
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writer; the lock goes with the process, however it ends.

    Raises:
        UserError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise write_error(folder, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is writing to {folder}",
                hint="wait until it ends, or choose another --out",
            ) from error
        yield


def digest_bytes(*parts: bytes) -> str:
    """The hex digest of the parts, length-prefixed so that their borders count."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def digest_json(value: Any) -> str:
    """The hex digest of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return digest_bytes(escaped(text))


def digest_file(path: Path) -> str:
    """The hex digest of a file's content, read in blocks."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def digest_content(content: bytes) -> str:
    """What `digest_file` gives for a file that holds this."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


LFS_POINTER_BYTES = 1024  # the longest pointer of Git LFS
LFS_POINTER = re.compile(
    rb"\s*version https?://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v\d+\s"
    rb"(?:.*\n)*?oid sha256:[0-9a-f]{64}\s"
)


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a pointer of Git LFS, left where the file itself was not fetched."""
    try:
        with path.open("rb") as file:
            return LFS_POINTER.match(file.read(LFS_POINTER_BYTES)) is not None
    except OSError:
        return False


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse a pointer of Git LFS.

    Raises:
        UserError: the file is one.
    """
    if is_lfs_pointer(path):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself",
            hint="run `git lfs pull` in its repository, or download the file",
        )


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON: {error}", hint="it may be damaged: make it again"
        ) from error


def read_regular(path: str | Path, limit: int, *, follow: bool = True) -> bytes | None:
    """The first `limit` bytes of a regular file; None for anything else and for what is unreadable.

    Opening a pipe does not wait for its writer.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return file.read(limit)
    except (OSError, ValueError):
        return None
