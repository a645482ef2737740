"""Programs of other languages: compiled and run, each step a process that executes in the jail."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from typing import Any

from . import jail
from .play import KEY_BYTES
from .watch import Watch, as_answer, judged
from .wire import Answer, Bounds

_running: set[int] = set()  # groups that are to end with this process


def prepare() -> None:
    """Let the end of this process be the end of all that it runs."""
    jail.prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this
    signal.signal(signal.SIGTERM, _leave)


def _leave(*_: object) -> None:
    """End this process, and the processes that a compiler may have started."""
    for group in _running:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    os._exit(1)


def judge(job: dict[str, Any], boxes: str) -> Answer:
    """Compile a program and run it.

    Args:
        job: see `languages.job_of`; with stdin, confined, landlock, and the bounds.
        boxes: where a folder is made for it.
    """
    folder = f"{boxes}/steps"
    os.mkdir(folder, 0o700)  # noqa: PTH102 - pathlib is not loaded here
    try:
        return _judge(job, folder)
    finally:
        shutil.rmtree(folder)  # what cannot be removed ends this server, and another begins


def _judge(job: dict[str, Any], folder: str) -> Answer:
    build, box = f"{folder}/build", f"{folder}/box"
    os.mkdir(build)  # noqa: PTH102 - pathlib is not loaded here
    os.mkdir(box)  # noqa: PTH102
    for name, text in job["files"].items():
        path = f"{build}/{name}"
        os.makedirs(path.rpartition("/")[0], exist_ok=True)  # noqa: PTH103
        with open(path, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            file.write(text.replace("{build}", build) if name == "sources" else text)
    *compiling, running = job["steps"]
    for step in compiling:
        answer = _run(job, step, build, box, last=False)
        if answer.outcome == "timeout":
            return answer._replace(detail="it was not compiled in time")
        if answer.outcome != "passed":
            return answer
        if "program" in os.listdir(build):  # noqa: PTH208
            os.chmod(f"{build}/program", 0o755)  # noqa: PTH101 - a linker in the jail cannot
    return _run(job, running, build, box, last=True)


def _run(job: dict[str, Any], step: dict[str, Any], build: str, box: str, *, last: bool) -> Answer:
    """Execute one step; a compiler passes by its status, the program by its proof too."""
    bounds = Bounds(*job["bounds"])._replace(wall_s=step["wall_s"])
    (given, given_in), (out, out_in), (err, err_in) = (os.pipe() for _ in range(3))
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _execute(job, step, build, box, (given, out_in, err_in), own=not last)
        finally:
            os._exit(70)  # not reached: it has become another program
    key = os.urandom(KEY_BYTES).hex().encode()
    feed = key + job["stdin"].encode(errors="replace") if last else b""
    for descriptor in (given, out_in, err_in):
        os.close(descriptor)
    folder = box if last else build
    watch = Watch(bounds, folder, child, started, resident_bytes=step["memory_bytes"])
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
    stderr = stderr.replace(f"{build}/", "")  # by the same name wherever it was
    code = os.waitstatus_to_exitcode(status)
    judgement = judged(watch.reason, code, proved, stderr, first=True)
    return as_answer(judgement, seconds, code, stdout, stderr)


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
