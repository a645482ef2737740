"""A server's part in a Python program: a child is forked for it, watched, and judged.

The server itself runs nothing of a program. It compiles it, since that costs a child three times as
much, under a timer that ends the server should the compiler hang; what the compiler cannot do the
child tries again, and its error is the verdict's.
"""

from __future__ import annotations

import _warnings
import contextlib
import os
import resource
import signal
import time
from types import CodeType
from typing import NoReturn

from . import boxes, jail
from .bridge import TESTS_FILE
from .child import BRIDGE, GO, KEY, KEY_BYTES, PROOF, READABLE, Packages, Script, become, prepare
from .forker import Forker
from .watch import LEFT_TOO_MUCH, Watch, as_answer, judged
from .wire import Answer, Bounds, Job, unpack_job

ENDS_S = 0.5  # that a solution's process has to end, after its tests'
SOURCE = 204  # descriptor that a solution of the forker's is read from
COMPILES_S = 1.0  # that the server gives the compiler
MOST_SOURCE = 100_000  # characters that it compiles itself
MOST_TESTS = 64  # compiled tests that are kept: samples of a task have the same
BOXES = ("box", "solution", "tests")  # of a program, or of its two sides
_IGNORED = ("ignore", None, Warning, None, 0)  # a filter of warnings


class Judge:
    """Judges programs one after the other.

    Args:
        folder: an empty one, in which programs run.
        confined: whether they and this process are confined.
        files: whether Landlock governs files.
        limited: whether the folder is a file system of its own, with the size that programs may
            have of it.
        packages: that programs may import.

    Attributes:
        boxes, locks: the folders and the locks of programs and of sides, by the names in `BOXES`.
        clean: modules as they were before any program.
        tests: compiled, by their text.
        number: of this process.

    Raises:
        OSError: the kernel refused to confine.
    """

    def __init__(
        self, folder: str, *, confined: bool, files: bool, limited: bool, packages: Packages
    ) -> None:
        self.boxes = {name: f"{folder}/{name}" for name in BOXES}
        for box in self.boxes.values():
            os.mkdir(box, 0o700)  # noqa: PTH102 - pathlib is not loaded here
        self._opened = {name: boxes.open_folder(box) for name, box in self.boxes.items()}
        self.limited = limited
        self.packages = packages
        self.clean = prepare(self.boxes["box"], packages)
        readable = [*READABLE, *packages.readable]
        self.locks: dict[str, jail.ChildLock | None] = dict.fromkeys(BOXES)
        self.tests: dict[str, CodeType] = {}
        self.number = os.getpid()
        if confined:
            jail.prepare()
            # The filter of a child is made before this process may not read what it needs.
            self.locks = {
                name: jail.ChildLock(readable=readable, box=box, files=files)
                for name, box in self.boxes.items()
            }
            jail.confine_server(readable=readable, boxes=folder, files=files)
        self.forker: Forker | None = None

    def begin(self) -> None:
        """Fork what must never see a program; ahead of the first."""
        self.forker = Forker((0, 1, 2, KEY, PROOF, *BRIDGE, SOURCE), self._become_solution)

    def answer(self, fields: list[bytes]) -> Answer:
        """The answer about a job."""
        return self.judge(unpack_job(fields))

    def judge(self, job: Job) -> Answer:
        """Run a program in a child, or its two sides in two, and judge it."""
        answer = self._judge_apart(job) if job.isolate else self._judge(job)
        used = BOXES[1:] if job.isolate else BOXES[:1]
        if all([boxes.clear(self._opened[name]) for name in used]):  # noqa: C419 - each of them
            return answer
        return answer._replace(outcome="resource", detail=LEFT_TOO_MUCH, spent=True)

    def _judge(self, job: Job) -> Answer:
        script = self._script(job)
        started = time.monotonic()
        child = _Child(self, script, job, "box")
        watch = self._watch(job, "box", child, started)
        code = os.waitstatus_to_exitcode(watch.until_end(child.streams))
        seconds = time.monotonic() - started
        stderr = child.text(2)
        judgement = judged(watch.reason, code, child.proof() == child.key, stderr)
        child.close()
        return as_answer(judgement, seconds, code, child.text(1), stderr, job.bounds.kept)

    def _watch(self, job: Job, place: str, child: _Child, started: float) -> Watch:
        return Watch(job.bounds, self.boxes[place], child.number, started, limited=self.limited)

    def _judge_apart(self, job: Job) -> Answer:
        """Run a solution and its tests in a process each; the tests' one alone can prove a pass."""
        script = self._script(job, apart=True)
        (asked, ask), (answered, reply) = os.pipe(), os.pipe()
        started = time.monotonic()
        solution = _Child(self, script, job, "solution", (asked, reply))
        tests = _Child(self, script, job, "tests", (answered, ask))
        # Theirs alone now: when one side ends, the other reads the end.
        for descriptor in (ask, answered, *BRIDGE):
            os.close(descriptor)
        watch = self._watch(job, "tests", tests, started)
        watch.also = solution.number
        assert self.forker is not None, "begin comes first"
        streams = {**solution.streams, **tests.streams}
        code = os.waitstatus_to_exitcode(watch.until_end(streams))
        # The tests have ended: the solution's process ends by itself, or is ended.
        first = self._watch(job, "solution", solution, started)
        first.reap = self.forker.wait
        first.deadline = min(watch.deadline, time.monotonic() + ENDS_S)
        first_code = os.waitstatus_to_exitcode(first.until_end(solution.streams))
        seconds = time.monotonic() - started
        stderr = tests.text(2)
        judgement = judged(watch.reason, code, tests.proof() == tests.key, stderr)
        failed = judgement[0] != "passed" and not watch.reason and not first.reason
        if failed and first_code != 0:
            stderr = solution.text(2)
            judgement = judged("", first_code, False, stderr)
        stdout = solution.text(1) + tests.text(1)
        solution.close()
        tests.close()
        answer = as_answer(judgement, seconds, code, stdout, stderr, job.bounds.kept)
        return answer._replace(isolated=True)

    def _script(self, job: Job, *, apart: bool = False) -> Script:
        """The program, compiled where that may be done here; its tests alone where it is apart."""
        name = _name(job)
        source = "" if apart else job.source
        if job.careful or len(source) + len(job.tests) > MOST_SOURCE:
            return Script(source, job.tests, name, job.entry)
        code = _compiled(source, "<solution>")
        checks = self.tests.get(job.tests) or _compiled(job.tests, TESTS_FILE)
        if checks is not None:
            if len(self.tests) >= MOST_TESTS:
                self.tests.clear()
            self.tests[job.tests] = checks
        return Script(source, job.tests, name, job.entry, code, checks)

    def _become_solution(self, forker: int) -> NoReturn:
        """In a child of the forker: be the solution that is read here, and nowhere else."""
        with open(SOURCE, "rb") as file:
            name, _, source = file.read().decode("utf-8", "surrogatepass").partition("\n")
        become(
            Script(source, "", name, ()), self.locks["solution"], forker, self.clean,
            side="solution", box=self.boxes["solution"], watched=not self.limited,
            packages=self.packages,
        )  # fmt: skip


def _name(job: Job) -> str:
    return "__main__" if job.stdin else "solution"


def _compiled(source: str, name: str) -> CodeType | None:
    """Code, or None where the compiler does not take it; should it hang, this process ends."""
    signal.setitimer(signal.ITIMER_REAL, COMPILES_S)
    _warnings.filters.insert(0, _IGNORED)
    _warnings._filters_mutated()  # type: ignore[attr-defined]
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except Exception:  # whatever it is, the child meets it again
        return None
    finally:
        _warnings.filters.remove(_IGNORED)
        _warnings._filters_mutated()  # type: ignore[attr-defined]
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Child:
    """A child with a program, or a side of one.

    Args:
        judge: whose child it is.
        script: the program.
        job: holds its input and limits.
        place: a name in `BOXES`.
        bridge: the pipes of this side of two, to read from and to write to.

    Attributes:
        number: of the process.
        key: that it must write back.
        streams: what it printed, by descriptor.
    """

    def __init__(
        self,
        judge: Judge,
        script: Script,
        job: Job,
        place: str,
        bridge: tuple[int, int] | None = None,
    ) -> None:
        side = "" if place == "box" else place
        given = _given("" if side == "tests" else job.stdin)
        (out, out_in), (err, err_in), (proof, proof_in), (key_out, key_in) = (
            os.pipe() for _ in range(4)
        )
        ends = [given, out_in, err_in, key_out, proof_in]
        if side == "solution":
            assert judge.forker is not None, "begin comes first"
            ends += [*(bridge or ()), _held(f"{_name(job)}\n{job.source}")]
            self.number = judge.forker.fork(ends)
            for descriptor in ends:
                os.close(descriptor)
        else:
            # In the child's places before the fork, so that it has nothing to do for them.
            places = [*zip(ends, (0, 1, 2, KEY, PROOF), strict=True)]
            places += zip(bridge or (), BRIDGE, strict=False)
            for descriptor, where in places:
                os.dup2(descriptor, where, inheritable=where < 3)
            for descriptor in ends:
                os.close(descriptor)
            self.number = os.fork()
            if self.number == 0:
                become(
                    script, judge.locks[place], judge.number, judge.clean,
                    side=side, box=judge.boxes[place], watched=not judge.limited,
                    packages=judge.packages,
                )  # fmt: skip
        # The program waits: it does not run before it is limited.
        _limit(self.number, job.bounds)
        # After the fork: what this process knew before, the child would find in its memory.
        self.key = os.urandom(KEY_BYTES)
        with contextlib.suppress(BrokenPipeError):  # it has ended: its status shows how
            os.write(key_in, GO + self.key)
        os.close(key_in)
        self._places = {1: out, 2: err, 3: proof}
        self.streams = {descriptor: bytearray() for descriptor in (out, err, proof)}

    def text(self, stream: int) -> str:
        """What it printed: 1 its output, 2 its errors."""
        return bytes(self.streams[self._places[stream]]).decode(errors="replace")

    def proof(self) -> bytes:
        """What it wrote to prove that it reached its end."""
        return bytes(self.streams[self._places[3]])

    def close(self) -> None:
        """Close what it was read by, when it has ended."""
        for descriptor in self.streams:
            os.close(descriptor)


_LIMITED = (
    resource.RLIMIT_AS,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_CPU,
    resource.RLIMIT_CORE,
    resource.RLIMIT_NOFILE,
)
_HIGHEST = [
    (1 << 62) if hard == resource.RLIM_INFINITY else hard
    for hard in (resource.getrlimit(what)[1] for what in _LIMITED)
]


def _limit(process: int, bounds: Bounds) -> None:
    """Set the resource limits of a process, for good; computing is that of all its threads."""
    cpu_s = int(bounds.wall_s) + 2
    wanted = (bounds.memory_bytes, bounds.disk_bytes, cpu_s, 0, 128)
    for what, most, highest in zip(_LIMITED, wanted, _HIGHEST, strict=True):
        resource.prlimit(process, what, (min(most, highest), min(most, highest)))


def _given(stdin: str) -> int:
    """A descriptor of what a program reads."""
    if not stdin:
        return os.open("/dev/null", os.O_RDONLY)
    return _held(stdin.encode(errors="replace").decode())


def _held(text: str) -> int:
    """A descriptor of text, to be read from its start."""
    held = os.memfd_create("held")
    left = text.encode("utf-8", "surrogatepass")
    while left:
        left = left[os.write(held, left) :]
    os.lseek(held, 0, os.SEEK_SET)
    return held
