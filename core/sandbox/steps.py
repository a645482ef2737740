"""Programs of other languages: compiled and run, each step a process that executes in the jail."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from typing import Any

from . import boxes, jail
from .child import KEY_BYTES
from .watch import LEFT_TOO_MUCH, Watch, as_answer, judged
from .wire import Answer, Bounds

BUILD, BOX = "build", "box"  # folders of a program: what it is made from, and what it writes in
_running: set[int] = set()  # groups that are to end with this process


def _leave(*_: object) -> None:
    """End this process, and the processes that a compiler may have started."""
    for group in _running:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    os._exit(1)


class Runner:
    """Compiles and runs programs one after the other.

    Args:
        folder: in which they do, with an empty folder `BUILD` and one `BOX` or none of them.
        limited: whether these are file systems of their own, with the size that programs may have.
    """

    def __init__(self, folder: str, *, limited: bool) -> None:
        jail.prepare()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this
        signal.signal(signal.SIGTERM, _leave)
        self._build, self._box = f"{folder}/{BUILD}", f"{folder}/{BOX}"
        self._opened = [boxes.open_folder(path) for path in (self._build, self._box)]
        self._limited = limited

    def judge(self, job: dict[str, Any]) -> Answer:
        """Compile a program and run it.

        Args:
            job: see `languages.job_of`; with stdin, confined, landlock, and the bounds.
        """
        answer = self._judge(job)
        if all([boxes.clear(folder) for folder in self._opened]):  # noqa: C419 - each of them
            return answer
        return answer._replace(outcome="resource", detail=LEFT_TOO_MUCH, spent=True)

    def _judge(self, job: dict[str, Any]) -> Answer:
        build = self._build
        for name, text in job["files"].items():
            path = f"{build}/{name}"
            os.makedirs(path.rpartition("/")[0], exist_ok=True)  # noqa: PTH103
            with open(path, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                file.write(text.replace("{build}", build) if name == "sources" else text)
        *compiling, running = job["steps"]
        for step in compiling:
            answer = self._run(job, step, last=False)
            if answer.outcome == "timeout":
                return answer._replace(detail="it was not compiled in time")
            if answer.outcome != "passed":
                return answer
            _allow_execution(self._opened[0])
        return self._run(job, running, last=True)

    def _run(self, job: dict[str, Any], step: dict[str, Any], *, last: bool) -> Answer:
        """Execute one step; a compiler passes by its status, the program by its proof too."""
        bounds = Bounds(*job["bounds"])._replace(wall_s=step["wall_s"])
        (given, given_in), (out, out_in), (err, err_in) = (os.pipe() for _ in range(3))
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                _execute(job, step, self._build, self._box, (given, out_in, err_in), own=not last)
            finally:
                os._exit(70)  # not reached: it has become another program
        key = os.urandom(KEY_BYTES).hex().encode()
        feed = key + job["stdin"].encode(errors="replace") if last else b""
        for descriptor in (given, out_in, err_in):
            os.close(descriptor)
        folder = self._box if last else self._build
        watch = Watch(
            bounds,
            folder,
            child,
            started,
            limited=self._limited,
            resident_bytes=step["memory_bytes"],
        )
        streams = {out: bytearray(), err: bytearray()}
        _running.add(child)
        try:
            status = watch.until_end(streams, feed=(given_in, feed))
        finally:
            _running.discard(child)
        seconds = time.monotonic() - started
        for descriptor in streams:
            os.close(descriptor)
        proved = not last or key in streams[out]
        said = bytes(streams[out]).replace(key, b"") if last else bytes(streams[out])
        stdout, stderr = (text.decode(errors="replace") for text in (said, bytes(streams[err])))
        stderr = stderr.replace(f"{self._build}/", "")  # by the same name wherever it was
        code = os.waitstatus_to_exitcode(status)
        judgement = judged(watch.reason, code, proved, stderr, first=True)
        return as_answer(judgement, seconds, code, stdout, stderr)


def _allow_execution(build: int) -> None:
    """Let a compiled program be executed, where there is one: a linker in the jail cannot."""
    try:
        program = os.open("program", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=build)
    except OSError:
        return
    try:
        status = os.fstat(program)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            os.fchmod(program, 0o700)
    finally:
        os.close(program)


def _execute(
    job: dict[str, Any],
    step: dict[str, Any],
    build: str,
    box: str,
    streams: tuple[int, int, int],
    *,
    own: bool,
) -> None:
    """Turn this process into a step's: its streams, its folder, its limits, the jail.

    Args:
        own: whether it writes in the folder that it builds in, and not in the box.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    jail.die_with_parent()
    os.setsid()  # a group that is killed whole
    for place, descriptor in enumerate(streams):
        os.dup2(descriptor, place)
    os.closerange(3, 65_536)
    folder = build if own else box
    os.chdir(folder)
    jail.limit(
        memory_bytes=step["address_bytes"],
        disk_bytes=Bounds(*job["bounds"]).disk_bytes,
        # Of all threads together: runtimes compile and collect beside the program.
        cpu_s=int(2 * step["wall_s"]) + 2,
    )
    argv = [part.replace("{build}", build).replace("{box}", box) for part in step["argv"]]
    executable = [*job["executable"], *(() if own else (f"{build}/program",))]
    if job["confined"]:
        jail.confine(
            readable=[*job["readable"], *(() if own else (build,))],
            box=folder,
            executable=executable,
            processes=step["processes"],
            files=job["landlock"],
        )
    environment = {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin"}
    environment |= {"TZ": "UTC", "LANG": "C.UTF-8"}
    if not job["landlock"]:
        environment["LD_LIBRARY_PATH"] = job["libraries"]
    os.execve(argv[0], argv, environment)
