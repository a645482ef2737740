"""The server: a process that judges what it is sent, one program after the other.

`sandbox.py` starts it with a socket for jobs, in an interpreter that finds nothing but the standard
library and this folder. There are two kinds. One judges Python: a warm interpreter that forks for
every program (`programs.py`, `play.py`), confined itself before it sees the first. The other
compiles and runs programs of other languages (`steps.py`).
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import os
import sys
import types
from collections.abc import Callable, Sequence

from .wire import Answer, pack_answer, receive, send, unpack_job

PYTHON, STEPS = "python", "steps"
# Makes a package of the folder that is named first, and begins.
BOOT = """
import sys, types
package = sys.modules["sandbox"] = types.ModuleType("sandbox")
package.__path__ = [sys.argv[1]]
from sandbox import worker
worker.main(sys.argv[2:])
"""


def main(argv: Sequence[str]) -> None:
    """Serve until the other side goes away.

    Args:
        argv: the kind, the socket's descriptor, the folder of boxes; then the words "confined" and
            "files", where programs are, and by Landlock.
    """
    kind, descriptor, boxes, *words = argv
    jobs = _socket.socket(fileno=int(descriptor))  # the plain one: Python's own brings much along
    complaints = os.dup(2)  # its own place is the programs'
    try:
        answer = _python(boxes, words) if kind == PYTHON else _steps(boxes)
        _forget()
        send(jobs, [b"ready"])
        gc.collect()
        gc.freeze()  # so that a child's collector copies no page of what it shares
        gc.disable()  # a server makes no cycles; children switch it on
        while (fields := receive(jobs)) is not None:
            send(jobs, pack_answer(answer(fields)))
    except Exception as error:  # the sandbox hears of it, and starts another server
        import traceback

        told = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            os.write(complaints, told.encode(errors="replace"))
        os._exit(1)
    os._exit(0)


def _python(boxes: str, words: Sequence[str]) -> Callable[[list[bytes]], Answer]:
    from .programs import Judge

    judge = Judge(boxes, confined="confined" in words, files="files" in words)
    return lambda fields: judge.judge(unpack_job(fields))


def _steps(boxes: str) -> Callable[[list[bytes]], Answer]:
    import json

    from . import steps

    steps.prepare()
    return lambda fields: steps.judge(json.loads(fields[0]), boxes)


def _forget() -> None:
    """Let programs import nothing that is only the server's."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("sandbox", "ctypes", "_ctypes"):
            del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
