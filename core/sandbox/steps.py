"""Programs of other languages: compiled and run, each step in a confined process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Sequence
from typing import Any

from . import boxes, jail
from .child import KEY_BYTES
from .watch import LEFT_TOO_MUCH, Watch, as_answer, judged
from .wire import Answer, Bounds

BUILD, BOX = "build", "box"  # folders of a program: what it is made from, and what it writes in
RUN = "run"  # in the former: what remains while it runs
LENGTH_CHARACTERS = 12  # see `guards.LENGTH_CHARACTERS`, which a server does not load
MOST_FED, MOST_PARTS = 64 << 20, 20_000  # bytes and parts that a program reads behind its key
DEEPEST = 16  # nesting of folders that it reads
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

    def begin(self) -> None:
        """Nothing is to be done ahead of the first program."""

    def answer(self, fields: list[bytes]) -> Answer:
        """The answer about a job."""
        return self.judge(json.loads(fields[0]))

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
            answer = self._run(job, step, None)
            if answer.outcome == "timeout":
                return answer._replace(detail="it was not compiled in time")
            if answer.outcome != "passed":
                return answer
        try:
            fed = self._seal(job)
        except OSError as error:
            return Answer("failed", f"nothing was compiled: {error}", 0.0, 1, "", "")
        return self._run(job, running, fed)

    def _seal(self, job: dict[str, Any]) -> bytes:
        """Leave nothing in the folder of the build but what runs, and make that executable.

        Returns:
            what the program reads behind its key.

        Raises:
            OSError: what should have been compiled is not there, or it is no plain file.
        """
        top = self._opened[0]
        parts = [text.encode(errors="replace") for text in job["fed"]]
        os.mkdir(RUN, 0o700, dir_fd=top)
        run = boxes.open_folder(RUN, inside=top)
        try:
            for source, name in job["kept"]:
                folder = _below(top, source.split("/")[:-1])
                try:
                    os.rename(source.split("/")[-1], name, src_dir_fd=folder, dst_dir_fd=run)
                finally:
                    os.close(folder)
                _allow(run, name)
            if job["fed_folder"]:
                parts += _contents(top, job["fed_folder"])
            boxes.clear(top, but=RUN)
        finally:
            os.close(run)
        if not parts:
            return b""
        return b"".join(_part(part) for part in (str(len(parts)).encode(), *parts))

    def _run(self, job: dict[str, Any], step: dict[str, Any], fed: bytes | None) -> Answer:
        """Execute one step; a compiler passes by its status, the program by its proof too.

        Args:
            job: see `judge`.
            step: one of its.
            fed: what the program reads behind its key; None where the step is a compiler's.
        """
        last = fed is not None
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
        feed = b"" if fed is None else key + fed + job["stdin"].encode(errors="replace")
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
            group=last and step["processes"],
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
        printed = bytes(streams[out]).replace(key, b"") if last else bytes(streams[out])
        stdout, stderr = (text.decode(errors="replace") for text in (printed, bytes(streams[err])))
        if not last:
            stderr += stdout  # where some compilers print what is wrong
        stderr = stderr.replace(f"{self._build}/", "")  # by the same name wherever it was
        code = os.waitstatus_to_exitcode(status)
        judgement = judged(watch.reason, code, proved, stderr, first=True)
        whole = last and bool(job["stdin"])  # what it prints is judged
        kept = watch.bounds.kept
        answer = as_answer(judgement, seconds, code, stdout, stderr, kept, whole=whole)
        return answer._replace(isolated=last and job["isolated"])


def _part(data: bytes) -> bytes:
    """A part as guards read it: its length in a fixed number of digits, then itself."""
    return f"{len(data):<{LENGTH_CHARACTERS}}".encode() + data


def _below(top: int, names: Sequence[str]) -> int:
    """A descriptor of a folder below another, no link on the way."""
    at = os.dup(top)
    for name in names:
        try:
            inner = boxes.open_folder(name, inside=at)
        finally:
            os.close(at)
        at = inner
    return at


def _contents(top: int, name: str) -> list[bytes]:
    """Paths and contents of the plain files in a folder, in turn.

    Raises:
        OSError: there are too many, they are too large, or nested too deep.
    """
    parts: list[bytes] = []
    size = 0
    left = [(_below(top, [name]), "", 0)]
    try:
        while left:
            folder, path, depth = left.pop()
            try:
                for entry in sorted(os.listdir(folder)):  # noqa: PTH208
                    status = os.stat(entry, dir_fd=folder, follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode) and depth < DEEPEST:
                        inner = boxes.open_folder(entry, inside=folder)
                        left.append((inner, f"{path}{entry}/", depth + 1))
                    elif stat.S_ISREG(status.st_mode):
                        size += status.st_size
                        if size > MOST_FED or len(parts) > MOST_PARTS:
                            raise OSError("it is too much")
                        parts += [os.fsencode(path + entry), _read(folder, entry)]
            finally:
                os.close(folder)
    finally:
        for folder, _, _ in left:
            os.close(folder)
    return parts


def _read(folder: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with open(file, "rb") as opened:  # noqa: PTH123
        return opened.read(MOST_FED)


def _allow(folder: int, name: str) -> None:
    """Let a file be executed or read, as its name says, and nothing else, by its owner.

    Raises:
        OSError: it is no plain file, or has another name too.
    """
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(f"{name} is no plain file")
        os.fchmod(file, 0o400 if "." in name else 0o100)  # a program cannot read itself
    finally:
        os.close(file)


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
    run = f"{build}/{RUN}"
    places = {"{build}": build, "{run}": run, "{box}": box}
    argv = step["argv"]
    for mark, path in places.items():
        argv = [part.replace(mark, path) for part in argv]
    executable = [*job["executable"], *(() if own else (run,))]
    if job["confined"]:
        jail.confine(
            readable=[
                *(*job["readable"], *(() if own else (run,))),
                *(("/proc/self/maps",) if step["maps"] else ()),
            ],
            box=folder,
            executable=executable,
            processes=step["processes"],
            files=job["landlock"],
        )
    environment = {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin"}
    environment |= {"TZ": "UTC", "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "2"}
    if not job["landlock"]:
        environment["LD_LIBRARY_PATH"] = job["libraries"]
    os.execve(argv[0], argv, environment)
