"""Namespaces of Linux around a server of the native tier, where the system allows them.

    harness ─ socket ─ keeper            waits; ends the rest when the harness is gone
                         └ init          the first process of a namespace of processes
                             └ server    forks a child for each program

When init ends, the kernel kills every process of the namespace, so nothing outlives a server,
however it ended and whatever a program did. The boxes are a file system in memory with a size, and
vanish with the server. Where this is not allowed (`problem`), a server runs without.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from . import jail

_NEW_MOUNTS, _NEW_USERS, _NEW_PROCESSES = 0x20000, 0x10000000, 0x20000000
_NO_SETUID, _NO_DEVICES, _RECURSIVE, _PRIVATE = 0x2, 0x4, 0x4000, 0x40000
MOST_INODES = 16  # of a box, beside its files: folders of our own
_FAILED = 72

_libc = ctypes.CDLL(None, use_errno=True)


class Disk(NamedTuple):
    """A file system in memory.

    Attributes:
        folder: where it is mounted.
        size: bytes.
        files: files and folders in it.
    """

    folder: str
    size: int
    files: int


def problem(folder: str) -> str:
    """Why a server cannot have namespaces here, empty where it can; tried in a process.

    Args:
        folder: an empty one of ours, to mount on.
    """
    child = os.fork()
    if child == 0:
        code = _FAILED
        try:
            _separate()
            init = os.fork()
            if init == 0:
                _arrange([Disk(folder, 1 << 20, 8)])
                code = 0
            else:
                code = os.waitstatus_to_exitcode(os.waitpid(init, 0)[1])
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if status == 0 else "the system does not allow namespaces to this user"


def enter(disks: Sequence[Disk], life: int) -> None:
    """Go on as the server, in namespaces of its own; the calling process becomes its keeper.

    Args:
        disks: file systems in memory that the server sees.
        life: a socket whose other end is the harness's: when that closes, everything ends.

    Raises:
        OSError: the system does not allow it.
    """
    _separate()
    init = os.fork()
    if init != 0:
        _keep(init, life)
    try:
        jail.die_with_parent()
        _arrange(disks)
        server = os.fork()
        if server == 0:
            return
        jail.drop_privileges()
        while True:  # what loses its parent in here is this process's to wait for
            process, status = os.wait()
            if process == server:
                os._exit(abs(os.waitstatus_to_exitcode(status)))
    except OSError:
        os._exit(_FAILED)


def mount(disks: Sequence[Disk]) -> None:
    """Mount file systems in memory, in a namespace of mounts of this process's own.

    Raises:
        OSError: the system does not allow it.
    """
    for disk in disks:
        options = f"size={disk.size},nr_inodes={disk.files + MOST_INODES},mode=0700"
        _mount("tmpfs", disk.folder, "tmpfs", _NO_SETUID | _NO_DEVICES, options)


def _arrange(disks: Sequence[Disk]) -> None:
    """In the first process of new namespaces: mounts, of which nobody else learns."""
    _mount("none", "/", None, _RECURSIVE | _PRIVATE, None)
    _mount("proc", "/proc", "proc", _NO_SETUID | _NO_DEVICES, None)
    mount(disks)


def _keep(init: int, life: int) -> NoReturn:
    """Wait for the end of everything, or end it; does not return."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jail.drop_privileges()
    ended = os.pidfd_open(init)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(life, 0)  # that the harness is gone is always reported
    try:
        if all(descriptor != ended for descriptor, _ in poll.poll()):
            os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)  # init has ended when all in its namespace have
    finally:
        os._exit(0)


def _separate() -> None:
    """Give this process namespaces of mounts and, for its children, of processes.

    Raises:
        OSError: the system does not allow it.
    """
    wanted = _NEW_MOUNTS | _NEW_PROCESSES
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _libc.unshare(wanted) == 0:
        return
    if _libc.unshare(wanted | _NEW_USERS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(text)


def _mount(source: str, to: str, kind: str | None, flags: int, options: str | None) -> None:
    def text(value: str | None) -> ctypes.c_char_p:
        return ctypes.c_char_p(None if value is None else os.fsencode(value))

    arguments = (text(source), text(to), text(kind), ctypes.c_ulong(flags), text(options))
    if _libc.mount(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"mount {to}")
