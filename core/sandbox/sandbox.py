"""The sandbox: programs in, verdicts out; the one place where generated code runs.

Fork-servers (`worker.py`), as many as there are cores, take a program each. A server that dies or
hangs is replaced, and its program judged again, once. A timeout is judged again, alone, before it
counts: on a busy machine programs wait for each other. A pass is judged again in two
processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from codecria.data.errors import UserError

from . import boxes, bwrap, command, jail, languages
from .config import AUTO, Confirm, SandboxConfig
from .verdict import Limits, Outcome, Program, Tier, Verdict
from .wire import Answer, Bounds, Job, Setup, pack_job, receive, send, unpack_answer
from .worker import BOOT, PYTHON, STEPS

START_S = 30.0  # until a server must be ready
END_S = 2.0  # for a server to end what it runs, and itself
ARENAS = "2"  # of glibc's allocator
GRACE_S = 10.0  # beyond a program's time, until its server counts as lost


def choose_tier(requested: str = AUTO) -> Tier:
    """The tier to run under.

    Args:
        requested: "auto", or a tier by name; nothing chooses "none" or "command" by itself.

    Raises:
        UserError: it is not available here. Nothing is ever run unconfined in its place.
    """
    if requested == Tier.NONE and sys.platform == "linux":  # the servers are built on its calls
        return Tier.NONE
    if requested == Tier.COMMAND:
        return Tier.COMMAND
    unwrapped = bwrap.bwrap_problem() if requested != Tier.NATIVE else ""
    if requested == Tier.BWRAP and unwrapped:
        raise UserError(unwrapped, hint="--sandbox auto uses a tier that is available")
    if requested != Tier.NATIVE and not unwrapped:
        return Tier.BWRAP
    if why := jail.problem():
        raise UserError(
            f"generated code cannot be confined here: {why}"
            + (f"; {unwrapped}" if unwrapped else ""),
            hint="run it on Linux 6.2 or newer, install bubblewrap, or name a command that"
            " confines it: --sandbox command"
            " --sandbox-command 'podman run --rm -i --network none IMAGE'",
        )
    return Tier.NATIVE


class Sandbox:
    """Runs programs; use it as a context manager.

    Args:
        config: how it is set up, or the name of a tier; None takes the defaults.
        settings: fields of `SandboxConfig`, with a tier's name alone.

    Raises:
        UserError: the tier is not offered here, or a server does not start.
    """

    def __init__(self, config: SandboxConfig | str | None = None, **settings: Any) -> None:
        if not isinstance(config, SandboxConfig):
            config = SandboxConfig(tier=config or AUTO, **settings)
        self.config = config
        self.limits = config.limits
        self.workers = config.workers or len(os.sched_getaffinity(0))
        self.tier = choose_tier(config.tier)
        self._command = config.argv()
        self._fit: dict[str, bool] = {}
        self._landlock = not jail.problem()
        self._free: dict[str, queue.Queue[_Server]] = {}
        self._servers: list[_Server] = []
        self._last_line = ""  # of what a server that died wrote to stderr
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox")
        self._alone = _Turnstile(self.workers)
        try:
            self._boxes = boxes.Boxes()
        except OSError as error:
            raise UserError(
                f"the sandbox has no folder for its programs: {error}",
                hint="set TMPDIR to a folder that only you can write in",
            ) from error
        ready = False
        try:
            self._packages = self._place_packages()
            if self.tier is Tier.COMMAND:
                self._try_command()
            else:
                self._servers_of(PYTHON)
            ready = True
        finally:
            if not ready:
                self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the servers and whatever they run."""
        with self._lock:
            servers, self._servers = self._servers, []
        for server in servers:
            server.end()
        self._starter.shutdown()
        self._boxes.close()

    def settle(self, tests: str, *, fit: bool) -> None:
        """Record whether a right solution passes these tests in two processes.

        Where it does not, solutions are judged in one process with them. Only a caller that ran a
        solution known to be right may decide this, never a solution.
        """
        self._fit[tests] = fit

    def can_confirm(self, language: str) -> bool:
        """Whether programs of a language can run with solution and tests in two processes."""
        name = languages.canonical(language)
        known = languages.LANGUAGES.get(name)
        splits = name == "python" or (known is not None and known.splits)
        return splits and self.tier is not Tier.COMMAND

    def _splits(self, program: Program) -> bool:
        """Whether solution and tests of a program can run in two processes."""
        can = self.can_confirm(program.language) and bool(program.tests)
        return can and self._fit.get(program.tests) is not False

    def run(
        self, program: Program, limits: Limits | None = None, *, confirm: Confirm | None = None
    ) -> Verdict:
        """Judge one program.

        A pass is confirmed where `Verdict.isolated` is set: solution and tests were apart.

        Args:
            program: to run.
            limits: of it; None takes the sandbox's.
            confirm: whether two processes judge it; None takes the sandbox's.

        Raises:
            UserError: the servers die under it, or it cannot be confined.
        """
        limits = limits or self.limits
        with self._alone.among_others():
            verdict = self._once(program, limits, confirm)
        if verdict.outcome is Outcome.TIMEOUT:
            with self._alone:
                verdict = self._once(program, limits, confirm)
        return verdict

    def run_many(
        self, programs: Sequence[Program], limits: Limits | Sequence[Limits] | None = None
    ) -> Iterator[tuple[int, Verdict]]:
        """Judge many programs; (number, verdict) as they come, timeouts at the end.

        Args:
            programs: to run.
            limits: of all of them, or of each.

        Raises:
            UserError: see `run`.
        """
        if limits is None or isinstance(limits, Limits):
            limits = [limits or self.limits] * len(programs)
        again: list[int] = []
        ended: queue.SimpleQueue[tuple[int, Verdict | UserError | None]] = queue.SimpleQueue()
        numbers = iter(range(len(programs)))
        stop = threading.Event()
        threads = [
            threading.Thread(
                target=self._work, args=(programs, limits, numbers, ended, stop), daemon=True
            )
            for _ in range(min(self.workers, len(programs)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in programs:
                n, found = ended.get()
                assert found is not None, "a thread of the sandbox's failed"
                if isinstance(found, UserError):
                    raise found
                if found.outcome is Outcome.TIMEOUT:
                    again.append(n)
                else:
                    yield n, found
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for n in sorted(again):
            yield n, self._once(programs[n], limits[n])

    def _work(
        self,
        programs: Sequence[Program],
        limits: Sequence[Limits],
        numbers: Iterator[int],
        ended: queue.SimpleQueue[tuple[int, Verdict | UserError | None]],
        stop: threading.Event,
    ) -> None:
        """Judge programs of those that nobody has taken, one after the other."""
        while not stop.is_set():
            with self._lock:
                n = next(numbers, None)
            if n is None:
                return
            found: Verdict | UserError | None = None  # None: an internal error
            try:
                found = self._once(programs[n], limits[n])
            except UserError as error:
                found = error
            finally:
                ended.put((n, found))

    def _once(self, program: Program, limits: Limits, confirm: Confirm | None = None) -> Verdict:
        """The verdict of one run; of a second one in two processes where a pass is confirmed."""
        if languages.canonical(program.language) != "python":
            return self._other_language(program, limits)
        most = self.limits
        assert limits.disk_bytes <= most.disk_bytes, f"{limits} exceed the sandbox's own {most}"
        confirm = confirm or self.config.confirm
        splits = confirm is not Confirm.OFF and self._splits(program)
        answer = self._python(program, limits, isolate=splits and confirm is Confirm.ALL)
        if splits and not answer.isolated and answer.outcome == Outcome.PASSED:
            verdict = self._verdict(self._python(program, limits, isolate=True), limits)
            return replace(verdict, passed_once=not verdict.confirmed)
        return self._verdict(answer, limits)

    def _python(self, program: Program, limits: Limits, *, isolate: bool) -> Answer:
        job = Job(
            program.source,
            program.tests,
            program.stdin,
            program.entry,
            Bounds(*astuple(limits)),
            isolate=isolate,
            careful=False,
        )
        if self.tier is Tier.COMMAND:
            return command.judge(self._command, job)
        patience = limits.wall_s + GRACE_S
        answer = self._ask(PYTHON, pack_job(job), patience)
        if answer is None:
            job.careful = True  # the compiler itself may have ended the server
            answer = self._ask(PYTHON, pack_job(job), patience)
        return answer or self._lost(limits)

    def _other_language(self, program: Program, limits: Limits) -> Verdict:
        language = languages.canonical(program.language)
        if self.tier is Tier.COMMAND:
            why = f"the sandbox's command runs Python alone, not {language}"
            return self._untouched(Outcome.SKIPPED, why, limits)
        if why := languages.missing(language, program.needs):
            return self._untouched(Outcome.SKIPPED, why, limits)
        known = languages.LANGUAGES[language]
        if known.run.maps and self.tier is Tier.BWRAP and not self._landlock:
            why = f"{known.title} needs /proc, which bubblewrap has with Landlock alone"
            return self._untouched(Outcome.SKIPPED, why, limits)
        if why := known.refusal(program.source):
            return self._untouched(Outcome.FAILED, why, limits)
        steps = languages.job_of(
            language,
            program.source,
            program.tests,
            program.needs,
            limits.memory_bytes,
            limits.wall_s,
        )
        patience = sum(step["wall_s"] for step in steps["steps"]) + GRACE_S
        job = {
            **steps,
            "stdin": program.stdin,
            "bounds": astuple(limits),
            "confined": self._confined,
            "landlock": self._landlock,
        }
        fields = [json.dumps(job).encode()]
        answer = self._ask(STEPS, fields, patience) or self._ask(STEPS, fields, patience)
        return self._verdict(answer or self._lost(limits), limits)

    @property
    def _confined(self) -> bool:
        return self.tier in (Tier.NATIVE, Tier.BWRAP)

    def _ask(self, kind: str, fields: list[bytes], timeout_s: float) -> Answer | None:
        """A server's answer, or None where it died or hung; another stands in its place then."""
        free = self._servers_of(kind)
        server = free.get()
        answer = None
        try:
            answer = server.ask(fields, timeout_s=timeout_s)
        finally:
            # Without Landlock, what a program wrote beside its box goes with its server.
            beside = self.tier is Tier.BWRAP and not self._landlock
            if answer is None or answer.spent or beside:
                server.end()
                self._last_line = server.last_line or self._last_line
                with self._lock:
                    if server in self._servers:
                        self._servers.remove(server)
                server = self._start(kind)
            free.put(server)
        return answer

    def _lost(self, limits: Limits) -> Answer:
        """The answer about a program under which two servers ended: it crashed.

        Raises:
            UserError: servers end under a program that does nothing, too.
        """
        job = Job("pass", "", "", (), Bounds(*astuple(limits)), isolate=False, careful=False)
        healthy = self._ask(PYTHON, pack_job(job), limits.wall_s + GRACE_S)
        if healthy is None or healthy.outcome != Outcome.PASSED:
            raise UserError(
                "the sandbox's server ended twice under one program"
                + (f": {self._last_line}" if self._last_line else ""),
                hint="the machine may be out of memory or processes: fewer --workers need less",
            )
        return Answer("crashed", "the sandbox's server ended under it, twice", 0.0, -9, "", "")

    def _untouched(self, outcome: Outcome, why: str, limits: Limits) -> Verdict:
        """The verdict of a program that was not run."""
        return Verdict(outcome=outcome, detail=why, seconds=0.0, tier=self.tier, limits=limits)

    def _verdict(self, answer: Answer, limits: Limits) -> Verdict:
        return Verdict(
            outcome=Outcome(answer.outcome),
            detail=answer.detail,
            seconds=answer.seconds,
            tier=self.tier,
            limits=limits,
            stdout=answer.stdout,
            stderr=answer.stderr,
            exit_status=answer.exit_status,
            isolated=answer.isolated,
        )

    def _servers_of(self, kind: str) -> queue.Queue[_Server]:
        """The servers of a kind that are free; started when the first is asked for."""
        with self._starting:
            if kind not in self._free:
                found: queue.Queue[_Server] = queue.Queue()
                for _ in range(self.workers):
                    found.put(self._start(kind))
                self._free[kind] = found
            return self._free[kind]

    def _try_command(self) -> None:
        """Check that the command runs a program, and that a failing one fails.

        Raises:
            UserError: it does not.
        """
        for source, expected in (("assert True", Outcome.PASSED), ("assert 0", Outcome.FAILED)):
            verdict = self._once(Program(source=source), self.limits)
            if verdict.outcome is not expected:
                raise UserError(
                    f"the sandbox's command does not run Python programs: {verdict.detail}",
                    hint="it must pass its input on (podman: -i) and find python3 (3.11 or newer)",
                )

    def _place_packages(self) -> tuple[str, str, bool]:
        """Where a server finds the packages, which paths are read for them, whether compiled."""
        allowed = self.config.allowed()
        compiled = allowed.compiled or self.config.compiled
        beside = [str(path) for path in self.config.readable]
        if not allowed.files:
            return "", "\n".join(beside), compiled
        if self.tier is Tier.BWRAP:
            return bwrap.PACKAGES, "\n".join([bwrap.PACKAGES, *beside]), compiled
        folder = self._boxes.make()
        allowed.link(Path(folder))
        readable = [folder, *(str(path) for _, path in allowed.files), *beside]
        return folder, "\n".join(readable), compiled

    def _start(self, kind: str) -> _Server:
        """A new server, made by a thread that lasts as long as the sandbox.

        bubblewrap ends with the thread that made it, not with the process.
        """
        return self._starter.submit(self._make_server, kind).result()

    def _make_server(self, kind: str) -> _Server:
        # Isolated and without site-packages: programs find the standard library and no more.
        python = ["-I", "-S", "-c", BOOT]
        limits = self.limits
        setup = Setup(
            kind, 0, bwrap.BOXES, self._confined, self._landlock, "mount",
            limits.disk_bytes, limits.files, *(self._packages if kind == PYTHON else ()),
        )  # fmt: skip
        if self.tier is Tier.BWRAP:
            bubblewrap = bwrap.bwrap_argv(
                boxes_bytes=2 * limits.disk_bytes,
                files=self._landlock,
                packages=self.config.allowed().files if kind == PYTHON else (),
                readable=self.config.readable if kind == PYTHON else (),
            )
            server = _Server([*bubblewrap, bwrap.interpreter(), *python, bwrap.CODE], setup)
        else:
            own_disk = "namespaces" if self.tier is Tier.NATIVE else ""
            setup = setup._replace(boxes=self._boxes.make(), own_disk=own_disk)
            server = _Server([sys.executable, *python, str(Path(__file__).parent)], setup)
        with self._lock:
            self._servers.append(server)
        return server


class _Server:
    """A running `worker.py` and the socket to it."""

    def __init__(self, argv: list[str], setup: Setup) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.last_line = ""
        # An empty environment: what is not there cannot leak.
        self.process = subprocess.Popen(
            [*argv, *setup._replace(socket=theirs.fileno()).words()],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={
                "LANG": "C.UTF-8",
                "TZ": "UTC",
                "PATH": os.environ.get("PATH", os.defpath),
                "MALLOC_ARENA_MAX": ARENAS,  # each reserves 64 MB of address space for a thread
            },
            start_new_session=True,
        )
        theirs.close()
        if self._receive(START_S) is None:
            self.process.kill()
            self.end()
            raise UserError(f"the sandbox did not start: {self.last_line or 'no answer'}")

    def ask(self, fields: list[bytes], *, timeout_s: float) -> Answer | None:
        """The server's answer, or None where it died or hangs."""
        self._set_timeout(timeout_s)
        try:
            send(self.socket, fields)
        except OSError:
            return None
        reply = self._receive(timeout_s)
        return None if reply is None else unpack_answer(reply)

    def _receive(self, timeout_s: float) -> list[bytes] | None:
        self._set_timeout(timeout_s)
        try:
            return receive(self.socket)
        except OSError:
            return None

    def _set_timeout(self, timeout_s: float) -> None:
        if self.socket.gettimeout() != timeout_s:  # a call of the kernel's otherwise
            self.socket.settimeout(timeout_s)

    def end(self) -> None:
        """Kill it and what it runs, and wait for it; its last line on stderr is kept."""
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)  # a program may have it too
        lines = (self.process.stderr.read() or b"").decode(errors="replace").strip().splitlines()
        self.last_line = lines[-1] if lines else ""
        self.process.stderr.close()


class _Turnstile:
    """Lets many in together, or one alone."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = threading.Semaphore(places)
        self._entry = threading.Lock()

    @contextlib.contextmanager
    def among_others(self) -> Iterator[None]:
        with self._entry:
            self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    def __enter__(self) -> None:
        self._entry.acquire()
        for _ in range(self._places):
            self._free.acquire()

    def __exit__(self, *ending: object) -> None:
        for _ in range(self._places):
            self._free.release()
        self._entry.release()
