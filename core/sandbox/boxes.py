"""Folders that programs write in, and their removal.

A sandbox makes one folder for all its servers: a new one with a random name, which only its user
may open. What a program left in it is removed by descriptors of folders, never by paths: a link
that appears in the place of a folder is not followed, names may be longer than the system's longest
path, and nesting costs no recursion. A folder of another user or another file system is not
entered. Removal ends after a time; what remains is the program's fault, and stops nobody else.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

PREFIX = "codecria-boxes-"
CLEAR_S = 5.0  # for the removal of what one program left
FRESH_S = 10.0  # age from which folders that nobody holds count as left behind
DEEPEST = 64  # nesting that is looked at; more counts as too many files
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_folder(name: str, *, inside: int | None = None) -> int:
    """A descriptor of a folder, which is no link.

    Args:
        name: a path, or a name in the folder `inside`.
        inside: a descriptor.

    Raises:
        OSError: there is none, it may not be read, or it is a link.
    """
    return os.open(name, os.O_RDONLY | _FOLDER, dir_fd=inside)


def is_private(folder: int) -> bool:
    """Whether an open folder is this user's, and no other user may look or write into it."""
    status = os.fstat(folder)
    return status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077 == 0


def clear(folder: int, *, seconds: float = CLEAR_S, but: str = "") -> bool:
    """Remove what is in an open folder of ours, whatever names, modes and depth it has.

    A folder in it is emptied, its own folders are moved up beside it, and so on: each is moved
    once, and two descriptors are enough for any depth.

    Args:
        folder: a descriptor.
        seconds: after which it ends.
        but: a name in it that stays.

    Returns:
        whether nothing else is left.
    """
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while names := [name for name in os.listdir(folder) if name != but]:
            gone = False
            for name in names:
                gone |= _remove(folder, name, deadline)
                if time.monotonic() > deadline:
                    return False
            if not gone:
                return False
        return True
    return False


def remove(name: str, *, inside: int, seconds: float = CLEAR_S) -> bool:
    """Remove a private folder of ours with what is in it; anything else stays as it is.

    Args:
        name: in the folder `inside`.
        inside: a descriptor.
        seconds: after which it ends.

    Returns:
        whether it is gone.
    """
    try:
        folder = open_folder(name, inside=inside)
    except OSError:
        return False
    try:
        if not is_private(folder) or not clear(folder, seconds=seconds):
            return False
    finally:
        os.close(folder)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=inside)  # an empty folder, or nothing: what took its place stays
        return True
    return False


def _remove(folder: int, name: str, deadline: float) -> bool:
    """Remove one entry; its folders are moved to its own place. Whether it or one in it went."""
    if _removed(folder, name):
        return True
    child = _open_own(folder, name)
    if child is None:
        return False
    gone = False
    try:
        for inner in os.listdir(child):  # noqa: PTH208
            gone |= _removed(child, inner) or _moved(child, inner, folder)
            if time.monotonic() > deadline:
                return gone
    finally:
        os.close(child)
    return _removed(folder, name) or gone


def _removed(folder: int, name: str) -> bool:
    """Whether a file, a link or an empty folder could be removed; its mode does not matter."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=folder)
            return True
        return False
    except OSError:
        return False
    return True


def _moved(source: int, name: str, to: int) -> bool:
    """Whether a folder could be moved up, to a name that nothing has."""
    for again in (False, True):
        try:
            os.rename(name, f"up-{os.urandom(12).hex()}", src_dir_fd=source, dst_dir_fd=to)
        except PermissionError:  # a folder whose mode forbids it
            opened = None if again else _open_own(source, name)
            if opened is None:
                return False
            os.close(opened)
        except OSError:
            return False
        else:
            return True
    return False


def _open_own(folder: int, name: str) -> int | None:
    """A descriptor of a folder of ours on the same file system, made accessible; else None."""
    try:
        handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=folder)
    except OSError:
        return None
    try:
        status, around = os.fstat(handle), os.fstat(folder)
        if (status.st_uid, status.st_dev) != (os.geteuid(), around.st_dev):
            return None
        if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            # By its descriptor: the name may be a link by now.
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)  # noqa: PTH101
        return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=handle)
    except OSError:
        return None
    finally:
        os.close(handle)


# --- the folder of a sandbox ----------------------------------------------------------------------


class Boxes:
    """The folder of one sandbox, in memory where the system has such a place.

    It is made with a random name that nothing had before, and locked while it is in use. Folders of
    this user that a killed process left are removed first; no other is touched.

    Args:
        in_memory: whether such a place is wanted; else it is where temporary files are.

    Attributes:
        path: of it.

    Raises:
        OSError: there is no place that other users cannot change.
    """

    def __init__(self, *, in_memory: bool = True) -> None:
        import tempfile  # not for servers

        wanted = ["/dev/shm", tempfile.gettempdir()]
        if not in_memory:
            wanted.reverse()
        places = [place for place in wanted if _is_safe(place)]
        if not places:
            raise PermissionError("no folder for temporary files is safe from other users here")
        place = places[0]
        self._place = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _sweep(self._place)
        self._name = PREFIX + os.urandom(12).hex()
        os.mkdir(self._name, 0o700, dir_fd=self._place)  # fails where the name is taken
        self.path = f"{place}/{self._name}"
        self._folder: int | None = open_folder(self._name, inside=self._place)
        assert is_private(self._folder), f"{self.path} is not this process's own"
        _lock(self._folder)

    def make(self) -> str:
        """A new empty folder in it."""
        name = os.urandom(8).hex()
        os.mkdir(name, 0o700, dir_fd=self._folder)
        return f"{self.path}/{name}"

    def close(self) -> None:
        """Remove it with what is in it; what takes too long stays for a later sandbox."""
        if self._folder is not None:
            remove(self._name, inside=self._place)
            os.close(self._folder)
            os.close(self._place)
            self._folder = None


def _is_safe(place: str) -> bool:
    """Whether a folder is there to be written in, and nobody else can move what is ours in it."""
    try:
        status = os.stat(place)  # noqa: PTH116
    except OSError:
        return False
    ours = status.st_uid in (0, os.geteuid())
    shared = bool(status.st_mode & 0o022) and not status.st_mode & stat.S_ISVTX
    return ours and not shared and os.access(place, os.W_OK | os.X_OK)


def _lock(folder: int) -> None:
    import fcntl

    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(place: int) -> None:
    """Remove what sandboxes of this user left behind that were killed; in use are those locked."""
    deadline = time.monotonic() + CLEAR_S
    names = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(place) if name.startswith(PREFIX)]
    for name in sorted(names):
        with contextlib.suppress(OSError):
            folder = open_folder(name, inside=place)
            try:
                # A new one is locked only after it is made.
                if is_private(folder) and time.time() - os.fstat(folder).st_mtime > FRESH_S:
                    _lock(folder)
                    remove(name, inside=place, seconds=deadline - time.monotonic())
            finally:
                os.close(folder)


# --- what a program holds of a disk ---------------------------------------------------------------


def is_overfull(
    box: str, *, disk_bytes: int, files: int, limited: bool, process: int | None = None
) -> bool:
    """Whether a program has written more than it may.

    Args:
        box: the folder that it writes in.
        disk_bytes, files: that it may have.
        limited: whether the box has a file system of its own, which counts all that a program
            holds; else what has a name is counted, and what the process has open without one.
        process: its number; None looks at no open files.
    """
    if limited:
        status = os.statvfs(box)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        return status.f_bavail == 0 or status.f_ffree == 0 or used > disk_bytes
    try:
        folder = open_folder(box)
    except OSError:
        return False
    try:
        size = _named_size(folder, files)
    finally:
        os.close(folder)
    if size is None or size > disk_bytes:
        return True
    return process is not None and size + _unnamed_size(process) > disk_bytes


def _named_size(top: int, most: int) -> int | None:
    """Bytes of the files in a folder; None where there are more than may be, or nested too deep."""
    size = count = 0
    left = [(os.dup(top), 0)]  # folders, by descriptor, and how deep they are
    try:
        while left:
            folder, depth = left.pop()
            try:
                with os.scandir(folder) as found:
                    for entry in found:
                        count += 1
                        if count > most:
                            return None
                        with contextlib.suppress(OSError):
                            if not entry.is_dir(follow_symlinks=False):
                                size += entry.stat(follow_symlinks=False).st_blocks * 512
                                continue
                            if depth == DEEPEST or len(left) == DEEPEST:
                                return None
                            left.append((open_folder(entry.name, inside=folder), depth + 1))
            finally:
                os.close(folder)
    finally:
        for folder, _ in left:
            os.close(folder)
    return size


def _unnamed_size(process: int) -> int:
    """Bytes of the files that a process has open and that have no name any more."""
    size = 0
    seen = set()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{process}/fd") as found:
        for entry in found:
            with contextlib.suppress(OSError):
                status = os.stat(entry.path)  # noqa: PTH116
                key = (status.st_dev, status.st_ino)
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and key not in seen:
                    seen.add(key)
                    size += status.st_blocks * 512
    return size


def is_full_error(text: str) -> bool:
    """Whether an error says that a program met the limits of its files."""
    small = text.lower()
    return any(os.strerror(code).lower() in small for code in (errno.ENOSPC, errno.EFBIG))
