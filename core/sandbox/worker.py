"""The server: a process that judges what it is sent, one program after the other.

`sandbox.py` starts it with a socket for jobs, in an interpreter that finds nothing but the standard
library and this folder. There are two kinds. One judges Python: a warm interpreter that forks for
every program (`programs.py`, `child.py`), confined itself before it sees the first. The other
compiles and runs programs of other languages (`steps.py`).
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import os
import sys
import types
from collections.abc import Sequence
from typing import Protocol

from . import jail, namespaces, steps
from .wire import Answer, Setup, pack_answer, receive, send

PYTHON, STEPS = "python", "steps"
# Makes a package of the folder that is named first, and begins.
BOOT = """
import sys, types
package = sys.modules["sandbox"] = types.ModuleType("sandbox")
package.__path__ = [sys.argv[1]]
from sandbox import worker
worker.main(sys.argv[2:])
"""


class Runner(Protocol):
    """What judges programs of one kind."""

    def begin(self) -> None:
        """Do what must be done ahead of the first program."""
        ...

    def answer(self, fields: list[bytes]) -> Answer:
        """The answer about a job."""
        ...


def main(argv: Sequence[str]) -> None:
    """Serve until the other side goes away.

    Args:
        argv: see `Setup.words`.
    """
    setup = Setup.of(argv)
    jobs = _socket.socket(fileno=setup.socket)  # the plain one: Python's own brings much along
    errors = os.dup(2)  # descriptor 2 itself is the programs'
    try:
        limited = _own_disks(setup)
        if setup.confined:
            jail.drop_privileges()
        runner = _runner(setup, limited)
        _forget()
        gc.collect()
        gc.freeze()  # so that a child's collector copies no page of what it shares
        gc.disable()  # a server makes no cycles; children switch it on
        runner.begin()
        send(jobs, [b"ready"])
        while (fields := receive(jobs)) is not None:
            send(jobs, pack_answer(runner.answer(fields)))
    except Exception as error:  # the sandbox reads it, and starts another server
        import traceback

        report = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            os.write(errors, report.encode(errors="replace"))
        os._exit(1)
    os._exit(0)


def _own_disks(setup: Setup) -> bool:
    """Give the server's boxes file systems of their own, where the system allows that.

    Returns:
        whether they have.
    """
    # A program and its compiler write in different ones: what it may have counts for it alone.
    disks = [namespaces.Disk(setup.boxes, setup.disk_bytes, setup.files)]
    if setup.kind == STEPS:
        disks = [
            disks[0]._replace(folder=f"{setup.boxes}/{name}") for name in (steps.BUILD, steps.BOX)
        ]
        for disk in disks:
            os.mkdir(disk.folder, 0o700)  # noqa: PTH102 - pathlib is not loaded here
    if setup.own_disk == "namespaces":
        if namespaces.problem(disks[0].folder):
            return False
        namespaces.enter(disks, setup.socket)
        return True
    if setup.own_disk == "mount":
        try:
            namespaces.mount(disks)
        except OSError:
            return False
        return True
    return False


def _runner(setup: Setup, limited: bool) -> Runner:
    if setup.kind == STEPS:
        return steps.Runner(setup.boxes, limited=limited)
    from .child import Packages
    from .programs import Judge

    names = frozenset[str]()
    if setup.packages:
        names = frozenset(name.partition(".")[0] for name in os.listdir(setup.packages))  # noqa: PTH208
    readable = tuple(setup.readable.splitlines())
    packages = Packages(setup.packages, readable, names, setup.compiled)
    return Judge(
        setup.boxes,
        confined=setup.confined,
        files=setup.landlock,
        limited=limited,
        packages=packages,
    )


def _forget() -> None:
    """Let programs import nothing that is only the server's."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("sandbox", "ctypes", "_ctypes"):
            del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
