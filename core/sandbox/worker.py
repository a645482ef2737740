"""The fork-server: a warm interpreter that forks for every program, and judges what becomes of it.

Started by `sandbox.py` with a socket for jobs. It never runs a program itself: each gets a fresh
child, which locks itself up (`jail.py`) before it reads the first line, so a program finds nothing
of the ones before it. The standard library alone is at hand, for the server and for programs.

A pass must be proved. The child reads a random key from a pipe that is empty afterwards, and holds
it on the interpreter's value stack, where neither names, frames nor the collector lead to it, while
the program runs; it writes it back when the last statement has been executed. A program that ends
earlier, in whatever way, cannot know it. What this cannot tell is in docs/sandbox.md.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from typing import Any

if __name__ == "__main__":  # started by its path, with nothing of the project to import from
    sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120 - pathlib is not loaded here
    import bridge  # type: ignore[import-not-found]
    import jail  # type: ignore[import-not-found]

    del sys.path[0]
else:
    from . import bridge, jail

KEY_BYTES = 32
BRIDGE = (202, 203)  # where a side of a program in two processes reads and writes
ENDS_S = 0.5  # that a solution's process has to end, after its tests'
LOOK_S = 0.05  # between looks at the box
MOST_THREADS = 256  # of one program
RUNTIME_BYTES = 256 << 20  # that a language's runtime itself may hold
TAIL = 2_000  # characters of output that a verdict keeps
# Loaded once, before the first fork: what solutions most often import. Each module more makes every
# fork dearer; what is not here, a program imports itself, and its tests find it as on the disk.
PRELOADED = (
    "abc", "array", "bisect", "cmath", "collections", "collections.abc", "copy", "datetime", "enum",
    "functools", "heapq", "io", "itertools", "json", "math", "operator", "random", "re",
    "string", "time", "traceback", "types", "typing",
)  # fmt: skip
# Put back before tests run. Not all that is loaded: to look at a module is to copy its memory.
RESTORED = (
    "builtins", "sys", "tempfile", "bisect", "cmath", "collections", "copy", "datetime",
    "functools", "heapq", "itertools", "json", "math", "operator", "random", "re", "string", "time",
)  # fmt: skip


# --- the socket -----------------------------------------------------------------------------------


def send(to: socket.socket, value: dict[str, Any]) -> None:
    """Send one JSON value, its length first."""
    data = json.dumps(value).encode()
    to.sendall(struct.pack("<I", len(data)) + data)


def receive(source: socket.socket) -> dict[str, Any] | None:
    """The next value, or None where the other side has gone."""
    head = _exactly(source, 4)
    if head is None:
        return None
    data = _exactly(source, struct.unpack("<I", head)[0])
    if data is None:
        return None
    value: dict[str, Any] = json.loads(data)
    return value


def _exactly(source: socket.socket, count: int) -> bytes | None:
    parts = b""
    while len(parts) < count:
        part = source.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return parts


# --- the server -----------------------------------------------------------------------------------


def serve(jobs: socket.socket, boxes: str) -> None:
    """Answer jobs until the other side goes away, then remove the folder of boxes."""
    box = f"{boxes}/box"
    clean = _prepare(box)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this
    signal.signal(signal.SIGTERM, _leave)
    gc.collect()
    gc.freeze()  # so that a child's collector copies no page of what it shares
    send(jobs, {"ready": True})
    while (job := receive(jobs)) is not None:
        send(jobs, judge(job, box, jobs.fileno(), clean))
    shutil.rmtree(boxes, ignore_errors=True)


def _prepare(box: str) -> Pristine:
    """Do what every child would do, once: each page that a child need not touch is time.

    Args:
        box: where all programs run, one after the other.

    Returns:
        the modules as they are before anything has run.
    """
    for name in PRELOADED:
        importlib.import_module(name)
    jail.prepare()
    os.environ.clear()
    os.environ.update(HOME=box, TMPDIR=box, PATH="/usr/bin:/bin", TZ="UTC", LANG="C.UTF-8")
    tempfile.tempdir = box
    # Never used here, so that nothing is in them when a child's descriptors take their places.
    for n, (stream, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        opened = open(n, mode, encoding="utf-8", errors="replace")  # noqa: PTH123, SIM115 - for good
        vars(sys).update({stream: opened, f"__{stream}__": opened})
    return snapshot(sys.modules[name] for name in RESTORED)


def judge(job: dict[str, Any], box: str, keep: int, clean: Pristine) -> dict[str, Any]:
    """Run one program in a child and say what became of it.

    Args:
        job: source, tests, stdin, confined, and the limits.
        box: the folder that is made for it.
        keep: a file descriptor that the child must not inherit, with all others.
        clean: the modules as they were before anything ran.
    """
    os.mkdir(box, 0o700)  # noqa: PTH102 - pathlib is not loaded here
    try:
        if "steps" in job:
            return _judge_steps(job, box)
        if job["isolate"]:
            return _judge_apart(job, box, keep, clean)
        return _judge(job, box, keep, clean)
    finally:
        try:
            os.rmdir(box)  # noqa: PTH106 - most programs leave nothing
        except OSError:
            shutil.rmtree(box)  # what cannot be removed ends this server, and another begins


def _judge(job: dict[str, Any], box: str, keep: int, clean: Pristine) -> dict[str, Any]:
    given = os.memfd_create("stdin")
    os.write(given, job["stdin"].encode(errors="replace"))
    os.lseek(given, 0, os.SEEK_SET)
    (out, out_in), (err, err_in), (proof, proof_in), (key_out, key_in) = (
        os.pipe() for _ in range(4)
    )
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(keep)
            _become(job, box, given, out_in, err_in, proof_in, key_out, clean)
        finally:
            os._exit(70)  # not reached: the program ends its process
    # After the fork: what this process knew before, the child would find in its frames.
    key = os.urandom(KEY_BYTES)
    os.write(key_in, key)
    for descriptor in (given, out_in, err_in, proof_in, key_out, key_in):
        os.close(descriptor)
    watch = _Watch(job["limits"], box, child, started)
    streams = {out: bytearray(), err: bytearray(), proof: bytearray()}
    status = watch.until_end(streams)
    seconds = time.monotonic() - started
    for descriptor in streams:
        os.close(descriptor)
    stdout, stderr = (bytes(streams[d]).decode(errors="replace") for d in (out, err))
    outcome, detail = _outcome(watch.reason, status, streams[proof] == key, stderr)
    return as_answer((outcome, detail), seconds, os.waitstatus_to_exitcode(status), stdout, stderr)


def _judge_apart(job: dict[str, Any], folder: str, keep: int, clean: Pristine) -> dict[str, Any]:
    """Run a solution and its tests in a process each; the tests' one alone can prove a pass."""
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    limits, started = job["limits"], time.monotonic()
    solution = _Side(job, f"{folder}/solution", keep, (asked, tell), (ask, told), clean)
    tests = _Side(job, f"{folder}/tests", keep, (told, ask), (asked, tell), clean, tests=True)
    for descriptor in (ask, asked, tell, told):
        os.close(descriptor)
    watch = _Watch(limits, folder, tests.child, started)
    watch.also = solution.child
    streams = {**solution.streams, **tests.streams}
    status = watch.until_end(streams)
    # Nobody asks any more: the solution's process ends by itself, or is ended.
    first = _Watch(limits, folder, solution.child, started)
    first.deadline = min(watch.deadline, time.monotonic() + ENDS_S)
    first_status = first.until_end(solution.streams)
    seconds = time.monotonic() - started
    for descriptor in streams:
        os.close(descriptor)
    stderr = tests.text(2)
    outcome, detail = _outcome(watch.reason, status, tests.proof() == tests.key, stderr)
    first_code = os.waitstatus_to_exitcode(first_status)
    if not watch.reason and not first.reason and first_code != 0 and outcome != "passed":
        stderr = solution.text(2)
        outcome, detail = _outcome("", first_status, False, stderr)
    stdout = solution.text(1) + tests.text(1)
    code = os.waitstatus_to_exitcode(status)
    return as_answer((outcome, detail), seconds, code, stdout, stderr) | {"isolated": True}


class _Side:
    """One of two processes that a program is run in.

    Args:
        box: a folder that is made for it.
        own, others: the bridge's pipes of this side, read and written, and of the other.
        tests: whether it is the tests' one.
    """

    def __init__(
        self,
        job: dict[str, Any],
        box: str,
        keep: int,
        own: tuple[int, int],
        others: tuple[int, int],
        clean: Pristine,
        *,
        tests: bool = False,
    ) -> None:
        os.mkdir(box)  # noqa: PTH102 - pathlib is not loaded here
        given = os.memfd_create("stdin")
        if not tests:
            os.write(given, job["stdin"].encode(errors="replace"))
            os.lseek(given, 0, os.SEEK_SET)
        (out, out_in), (err, err_in), (proof, proof_in), (key_out, key_in) = (
            os.pipe() for _ in range(4)
        )
        self.child = os.fork()
        if self.child == 0:
            try:
                os.close(keep)
                os.close(key_in)
                for descriptor in others:
                    os.close(descriptor)
                for descriptor, place in zip(own, BRIDGE, strict=True):
                    os.dup2(descriptor, place, inheritable=False)
                _become(
                    job, box, given, out_in, err_in, proof_in, key_out, clean,
                    side="tests" if tests else "solution",
                )  # fmt: skip
            finally:
                os._exit(70)  # not reached
        self.key = os.urandom(KEY_BYTES)
        os.write(key_in, self.key if tests else bytes(KEY_BYTES))
        for descriptor in (given, out_in, err_in, proof_in, key_out, key_in):
            os.close(descriptor)
        self._places = {1: out, 2: err, 3: proof}
        self.streams = {descriptor: bytearray() for descriptor in (out, err, proof)}

    def text(self, stream: int) -> str:
        """What it printed: 1 its output, 2 its errors."""
        return bytes(self.streams[self._places[stream]]).decode(errors="replace")

    def proof(self) -> bytes:
        """What it wrote to prove that it reached its end."""
        return bytes(self.streams[self._places[3]])


def _outcome(
    reason: str, status: int, proved: bool, stderr: str, *, first: bool = False
) -> tuple[str, str]:
    """The outcome, and why; the last line of the errors says, or the `first` that names one."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = lines[-1].strip()[:300] if lines else ""
    if first:
        last = next((line for line in lines if _TELLING.search(line)), last).strip()[:300]
    return judged(reason, os.waitstatus_to_exitcode(status), proved, stderr, last, first=first)


def as_answer(
    judgement: tuple[str, str], seconds: float, code: int, stdout: str, stderr: str
) -> dict[str, Any]:
    """What a verdict is made of.

    Args:
        judgement: outcome and detail, see `judged`.
        seconds: by the clock.
        code: the exit status, or the signal that ended the program, below zero.
        stdout, stderr: what it printed, of which the ends are kept.
    """
    outcome, detail = judgement
    return {
        "outcome": outcome,
        "detail": detail,
        "seconds": seconds,
        "exit_status": code,
        "stdout": stdout[-TAIL:],
        "stderr": stderr[-TAIL:],
    }


def judged(
    reason: str,
    code: int,
    proved: bool,
    stderr: str,
    last: str | None = None,
    *,
    first: bool = False,
) -> tuple[str, str]:
    """The outcome, and why.

    Args:
        reason: for which the program was killed: "time", or a sentence; empty where it was not.
        code: its exit status, or the signal that ended it, below zero.
        proved: whether it proved that it reached its end.
        stderr: what it printed.
        last: the line of it to show; None takes the last.
        first: whether what runtimes print says that memory ran out.
    """
    if last is None:
        last = next(
            (line.strip()[:300] for line in reversed(stderr.splitlines()) if line.strip()), ""
        )
    if reason == "time":
        return "timeout", "it did not end in time"
    if reason:
        return "resource", reason
    if code == -signal.SIGXCPU:
        return "timeout", "it computed longer than it may"
    if code == -signal.SIGXFSZ:
        return "resource", "a file grew larger than it may"
    if code == 0 and proved:
        return "passed", ""
    if first and any(word in stderr for word in _NO_MEMORY):
        return "resource", last
    if code < 0:
        return "crashed", f"signal {signal.Signals(-code).name}"
    if last.startswith("MemoryError"):
        return "resource", last
    if code == 0:
        return "failed", "it ended before its last statement"
    return "failed", last or f"exit status {code}"


# Of what compilers and runtimes print, the line to show, and what says that memory ran out.
_TELLING = re.compile(
    r"error: |^(?:Uncaught )?[\w.]*(?:Error|Exception)\b"
    r"|^(?:assertion failed|terminate called|FATAL)"
)
_NO_MEMORY = (
    "std::bad_alloc", "OutOfMemoryError", "heap out of memory", "virtual memory exhausted",
    "out of memory allocating", "Array buffer allocation failed",
)  # fmt: skip


def _judge_steps(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Compile a program of another language and run it, each in a process of its own."""
    build, box = f"{folder}/build", f"{folder}/box"
    os.mkdir(build)  # noqa: PTH102 - pathlib is not loaded here
    os.mkdir(box)  # noqa: PTH102
    for name, text in job["files"].items():
        path = f"{build}/{name}"
        os.makedirs(path.rpartition("/")[0], exist_ok=True)  # noqa: PTH103
        with open(path, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            file.write(text.replace("{build}", build) if name == "sources" else text)
    for number, step in enumerate(job["steps"]):
        last = number == len(job["steps"]) - 1
        answer = _run_step(job, step, build, box, last=last)
        if not last and answer["outcome"] != "passed":
            if answer["outcome"] == "timeout":
                answer["detail"] = "it was not compiled in time"
            return answer
        for name in () if last else os.listdir(build):  # noqa: PTH208
            if name == "program":  # a linker in the jail cannot change modes
                os.chmod(f"{build}/{name}", 0o755)  # noqa: PTH101
    return answer


def _run_step(
    job: dict[str, Any], step: dict[str, Any], build: str, box: str, *, last: bool
) -> dict[str, Any]:
    """Execute one step; a compiler passes by its status, the program by its proof too."""
    limits = job["limits"] | {"wall_s": step["wall_s"], "resident_bytes": step["memory_bytes"]}
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
    watch = _Watch(limits, box if last else build, child, started)
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
    outcome, detail = _outcome(watch.reason, status, proved, stderr, first=True)
    return as_answer((outcome, detail), seconds, os.waitstatus_to_exitcode(status), stdout, stderr)


_running: set[int] = set()  # groups that are to end with this process


def _leave(*_: object) -> None:
    """End this process, and the processes that a compiler may have started."""
    for group in _running:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    os._exit(1)


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
        disk_bytes=job["limits"]["disk_bytes"],
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


class _Watch:
    """Looks after a child: reads what it prints, and kills it when it takes too much."""

    def __init__(self, limits: dict[str, Any], box: str, child: int, started: float) -> None:
        self.limits = limits
        self.box = box
        self.child = child
        self.also: int | None = None  # another process of the same program
        self.deadline = started + limits["wall_s"]
        self.reason = ""

    def until_end(
        self, streams: dict[int, bytearray], feed: tuple[int, bytes] | None = None
    ) -> int:
        """Read the streams until the child has ended; its wait status.

        Args:
            streams: where what it prints goes, by descriptor.
            feed: a descriptor that it reads from, which is closed here, and what it is given.
        """
        poll = select.poll()
        fed, left = feed or (-1, b"")
        if feed is not None:
            os.set_blocking(fed, False)
            poll.register(fed, select.POLLOUT)
        ended = os.pidfd_open(self.child)
        for descriptor in (*streams, ended):
            poll.register(descriptor, select.POLLIN)
        look = time.monotonic() + LOOK_S
        alive = True
        while alive:
            now = time.monotonic()
            if now >= self.deadline:
                self._kill("time")
            elif now >= look:
                look = now + LOOK_S
                if self._box_is_full():
                    self._kill("it wrote more files, or larger ones, than it may")
                elif too_much := self._takes_too_much():
                    self._kill(too_much)
            wait = max(0.0, min(look, self.deadline) - now)
            for descriptor, _ in poll.poll(1_000 * wait + 1):
                if descriptor == ended:
                    alive = False
                elif descriptor == fed:
                    left = _written(fed, left)
                    if not left:
                        poll.unregister(fed)
                        os.close(fed)
                        fed = -1
                elif not self._read(descriptor, streams):
                    poll.unregister(descriptor)
        os.close(ended)
        if fed >= 0:
            os.close(fed)
        if feed is not None:  # what a compiler started ends with it
            with contextlib.suppress(OSError):
                os.killpg(self.child, signal.SIGKILL)
        # No process of the program is left that could fill a pipe: what is there is all there is.
        for descriptor in streams:
            os.set_blocking(descriptor, False)
            with contextlib.suppress(BlockingIOError):
                while self._read(descriptor, streams):
                    pass
        return os.waitpid(self.child, 0)[1]

    def _read(self, descriptor: int, streams: dict[int, bytearray]) -> bool:
        data = os.read(descriptor, 1 << 16)
        streams[descriptor] += data
        if len(streams[descriptor]) > self.limits["output_bytes"]:
            del streams[descriptor][self.limits["output_bytes"] :]
            self._kill("it printed more than it may")
            return False
        return bool(data)

    def _kill(self, reason: str) -> None:
        self.reason = self.reason or reason
        with contextlib.suppress(OSError):
            os.kill(self.child, signal.SIGKILL)
        if self.also is not None:
            os.kill(self.also, signal.SIGKILL)  # it is waited for later, so the number is its own
        with contextlib.suppress(OSError):  # before it has made its group, it is alone
            os.killpg(self.child, signal.SIGKILL)
        self.deadline = float("inf")

    def _takes_too_much(self) -> str:
        """What the child holds beyond its limits, empty where nothing; /proc tells."""
        try:
            with open(f"/proc/{self.child}/status", encoding="utf-8") as file:  # noqa: PTH123
                told = dict(line.split(":", 1) for line in file if ":" in line)
        except (OSError, ValueError):
            return ""
        if int(told.get("Threads", "0")) > MOST_THREADS:
            return "it started more threads than it may"
        most = self.limits.get("resident_bytes")
        held = int(told.get("VmRSS", "0 kB").split()[0]) << 10
        # Where the address space says little, because a runtime reserves much of it.
        if most and held > most + RUNTIME_BYTES:
            return "it took more memory than it may"
        return ""

    def _box_is_full(self) -> bool:
        size = count = 0
        for folder, folders, files in os.walk(self.box):
            count += len(folders) + len(files)
            for name in files:
                with contextlib.suppress(OSError):
                    size += os.lstat(f"{folder}/{name}").st_size
            if count > self.limits["files"] or size > self.limits["disk_bytes"]:
                return True
        return False


def _written(to: int, data: bytes) -> bytes:
    """What is left of the data after as much was written as goes in; nothing if nobody reads."""
    try:
        return data[os.write(to, data[: 1 << 16]) :] if data else b""
    except BlockingIOError:
        return data
    except OSError:
        return b""


# --- the child ------------------------------------------------------------------------------------


def _become(
    job: dict[str, Any],
    box: str,
    given: int,
    out: int,
    err: int,
    proof: int,
    key: int,
    clean: Pristine,
    side: str = "",
) -> None:
    """Turn this process into the program's: its streams, its box, its limits, the jail.

    Args:
        side: "solution" or "tests", where each has a process of its own.
    """
    jail.die_with_parent()
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    proof, key = (os.dup2(fd, place, inheritable=False) for fd, place in ((proof, 201), (key, 200)))
    for place, descriptor in enumerate((given, out, err)):
        os.dup2(descriptor, place)
    os.closerange(3, 200)
    os.closerange(204 if side else 202, 65_536)
    os.chdir(box)
    if side:
        os.environ.update(HOME=box, TMPDIR=box)
        tempfile.tempdir = box
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    limits = job["limits"]
    jail.limit(
        memory_bytes=limits["memory_bytes"],
        disk_bytes=limits["disk_bytes"],
        cpu_s=int(limits["wall_s"]) + 2,
    )
    if job["confined"]:
        jail.confine(readable=READABLE, box=box, files=job["landlock"])
    _forget()
    name = "__main__" if job["stdin"] else "solution"
    if side == "tests":
        _play("", job["tests"], name, proof, key, clean, bridged=True)
    else:
        _play(
            job["source"], "" if side else job["tests"], name, proof, key, clean, serves=bool(side)
        )


def alone(job: dict[str, Any]) -> None:
    """Be the program of a job, in a process that some command made for it alone.

    Standard input has the key next; it is written to standard output, in the end.
    """
    box = tempfile.mkdtemp()
    clean = _prepare(box)
    with tempfile.TemporaryFile() as given:
        given.write(job["stdin"].encode(errors="replace"))
        given.seek(0)
        job |= {"confined": not jail.problem(), "landlock": True}
        _become(job, box, given.fileno(), 1, 2, 1, 0, clean)


READABLE = [
    *dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")),
    *(f"/{name}" for name in ("usr/lib", "usr/lib64", "lib", "lib64", "usr/share/zoneinfo")),
    "/dev/urandom",
    "/dev/zero",
]


def _forget() -> None:
    """Take away what only the server needs."""
    for name in ("ctypes", "_ctypes", "ctypes._endian", "jail"):
        sys.modules.pop(name, None)


# Builtins that look up no module: not `print`, which asks `sys` where to.
_SELF_CONTAINED = frozenset(
    (
        *("abs", "all", "any", "ascii", "bin", "bool", "bytes", "chr", "complex", "dict", "divmod"),
        *("enumerate", "filter", "float", "frozenset", "hash", "hex", "int", "isinstance", "iter"),
        *("len", "list", "map", "max", "min", "next", "oct", "ord", "pow", "range", "repr"),
        *("reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "type", "zip"),
        *("AssertionError", "Exception", "IndexError", "KeyError", "TypeError", "ValueError"),
        *("ZeroDivisionError",),
    )
)


def _needs_no_module(tests: str, checks: Any) -> bool:
    """Whether tests import nothing and name no module, nor a builtin that may use one."""
    own = vars(sys.modules["builtins"])
    return "import" not in tests and not any(
        name in sys.stdlib_module_names or (name in own and name not in _SELF_CONTAINED)
        for name in _names(checks)
    )


def _names(code: Any) -> set[str]:
    """The names that code, and the functions in it, may look up."""
    inner = (_names(part) for part in code.co_consts if hasattr(part, "co_names"))
    return set(code.co_names).union(*inner)


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse ways to look at or change the interpreter itself; no solution needs them.

    It uses constants and its own arguments alone: what else it looked up, a program could replace.
    """
    if (
        event in ("gc.get_objects", "gc.get_referrers", "gc.get_referents")
        or event in ("sys.settrace", "sys.setprofile")
        or event.startswith("ctypes.")
        or (
            event == "object.__setattr__"
            and arguments[1] == "__code__"
            # types.coroutine, which asyncio uses, changes flags alone.
            and not (
                arguments[2].co_consts is arguments[0].__code__.co_consts
                and arguments[2].co_code == arguments[0].__code__.co_code
                and arguments[2].co_names == arguments[0].__code__.co_names
            )
        )
        or (event == "import" and arguments[0] in ("ctypes", "_ctypes", "_testcapi"))
    ):
        raise RuntimeError("the sandbox does not allow " + event)


Pristine = tuple[tuple[dict[str, Any], tuple[Any, ...], tuple[int, ...], tuple[int, ...]], ...]


def snapshot(modules: Iterable[Any]) -> Pristine:
    """What modules hold, to compare with and to restore.

    Tuples all the way: frames lead a program to it, and it can read it and no more.
    """
    found = (part.__dict__ for part in modules if type(getattr(part, "__dict__", None)) is dict)
    return tuple(
        (held, tuple(held.items()), tuple(map(id, held)), tuple(map(id, held.values())))
        for held in found
    )


def _play(
    source: str,
    tests: str,
    name: str,
    proof: int,
    key: int,
    clean: Pristine,
    *,
    serves: bool = False,
    bridged: bool = False,
) -> None:
    """Run a program, prove that it reached its end, and end this process.

    Args:
        source, tests, name: of the program.
        proof, key: where the key is written to, and read from.
        clean: the modules as they were before anything ran.
        serves: whether the source's functions are called by another process.
        bridged: whether the tests find another process's functions in place of a source.
    """
    import traceback

    namespace: dict[str, Any] = {"__name__": name, "__builtins__": __builtins__}
    write, read, leave, execute = os.write, os.read, os._exit, exec
    show, flush = traceback.print_exception, sys.stdout.flush
    complain, same, each, pack = sys.stderr.flush, id, map, tuple
    try:
        code = compile(source, "<solution>", "exec", dont_inherit=True)
        checks = compile(tests, "<tests>", "exec", dont_inherit=True)
        modules = sys.modules
        lists: tuple[list[Any], ...] = (sys.meta_path, sys.path_hooks, sys.path)
        kept = tuple((part, tuple(part)) for part in lists)
        # Without tests of their own, nothing looks at modules after the program has; and tests that
        # name none look at builtins alone.
        few = not tests or _needs_no_module(tests, checks)
        pristine = clean[: bool(tests)] if few else clean
        known = () if few else tuple(modules.items())
        sys.addaudithook(_guard)
        if serves:
            execute(code, namespace)
            bridge.answer(namespace, *BRIDGE)
            flush()
            leave(0)
        if bridged:
            namespace.update(bridge.proxies(BRIDGE[1], BRIDGE[0], _names(checks)))
        # In order, from left to right: the key is read, the solution runs, what it may have put in
        # the place of builtins and modules is put back, the tests run, the key is written.
        write(
            proof,
            (
                read(key, KEY_BYTES),
                execute(code, namespace),
                [
                    part.clear() or part.update(items)  # type: ignore[func-returns-value]
                    for part, items, keys, values in pristine
                    # What is as it was is not written to: memory is shared until then. By
                    # identity, as a program's own objects may be equal to anything.
                    if pack(each(same, part)) != keys or pack(each(same, part.values())) != values
                ],
                few or modules.clear() or modules.update(known),  # type: ignore[func-returns-value]
                [part.clear() or part.extend(items) for part, items in kept],  # type: ignore[func-returns-value]
                execute(checks, namespace),
                flush(),
            )[0],
        )
    except SystemExit as end:
        complain()
        leave(end.code if isinstance(end.code, int) and 0 <= end.code < 256 else 1)
    except BaseException as error:
        # The program's own streams may be gone; the verdict then tells the status alone.
        with contextlib.suppress(BaseException):
            show(error)
            complain()
        leave(1)
    leave(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
