"""Hostile programs: none passes, none touches anything outside, none outlives its run.

Each attack prints nothing that decides: a program that got what it wanted ends with "escaped" on
stdout, and one that only tries to be counted as passed must not be.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codecria.core.sandbox import jail
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Verdict
from tests.core.sandbox.common import CONFINED, ENOUGH_S, short

pytestmark = pytest.mark.skipif(bool(jail.problem()), reason=f"no jail here: {jail.problem()}")

LIMITS = Limits(wall_s=ENOUGH_S, memory_bytes=512 << 20, output_bytes=1 << 16, disk_bytes=8 << 20)
SHORT = short(LIMITS)


@pytest.fixture(scope="module", params=CONFINED)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, limits=LIMITS) as opened:
        yield opened


def run(sandbox: Sandbox, source: str, tests: str = "", limits: Limits = LIMITS) -> Verdict:
    program = Program(source=textwrap.dedent(source), tests=textwrap.dedent(tests))
    return sandbox.run(program, limits)


# --- to be counted as passed without passing ------------------------------------------------------

FALSE_PASSES = {
    "leaves at once": "import os\nos._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "calls sys.exit": "import sys\nsys.exit()",
    "leaves at exit": "import atexit, os\natexit.register(os._exit, 0)\nassert False",
    "says it passed": "print('passed')\nprint('1 passed', flush=True)\nraise SystemExit",
    "hides its error": "import sys\nsys.excepthook = lambda *_: None\nassert False",
    "hides it in a thread": """
        import os, threading, time
        threading.Thread(target=lambda: (time.sleep(0.1), os._exit(0))).start()
        time.sleep(1)
    """,
    "leaves from a signal": """
        import os, signal
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(1)
        while True: pass
    """,
    "replaces AssertionError": """
        import builtins
        class Quiet(Exception): pass
        builtins.AssertionError = Quiet
        assert False
    """,
    "swallows it": "class A(AssertionError):\n    pass\nimport os\ntry:\n    assert False\n"
    "finally:\n    os._exit(0)",
    "writes to every descriptor": """
        import os
        for fd in range(3, 256):
            try: os.write(fd, b'passed' * 10)
            except OSError: pass
        os._exit(0)
    """,
    "reads the key and writes it": """
        import os
        key = b''
        for fd in range(3, 256):
            try:
                os.set_blocking(fd, False)
                key = key or os.read(fd, 32)
            except OSError: pass
        for fd in range(3, 256):
            try: os.write(fd, key)
            except OSError: pass
        os._exit(0)
    """,
    "walks the frames": """
        import os, sys
        found, frame = set(), sys._getframe()
        def collect(value, depth=0):
            if isinstance(value, bytes) and len(value) == 32: found.add(value)
            elif depth < 4 and isinstance(value, dict):
                for part in list(value.values()): collect(part, depth + 1)
            elif depth < 4 and isinstance(value, (list, tuple, set)):
                for part in list(value): collect(part, depth + 1)
        while frame:
            collect(dict(frame.f_locals)); collect(dict(frame.f_globals))
            collect(frame.f_code.co_consts)
            frame = frame.f_back
        for key in found:
            for fd in range(3, 256):
                try: os.write(fd, key)
                except OSError: pass
        os._exit(0)
    """,
    "asks the collector": """
        import gc, os
        for thing in gc.get_objects():
            for part in gc.get_referents(thing):
                if isinstance(part, bytes) and len(part) == 32:
                    try: os.write(201, part)
                    except OSError: pass
        os._exit(0)
    """,
    "asks the collector of its frame": """
        import gc, os, sys
        frame = sys._getframe()
        while frame:
            for part in gc.get_referents(frame):
                if isinstance(part, bytes): os.write(201, part)
            frame = frame.f_back
        os._exit(0)
    """,
    "jumps over its tests": """
        import sys
        def trace(frame, event, _):
            return trace
        sys.settrace(trace)
        sys._getframe().f_trace = trace
        assert False
    """,
    "changes the harness's code": """
        import sys
        frame = sys._getframe()
        while frame:
            for value in list(frame.f_globals.values()):
                if callable(value) and hasattr(value, '__code__'):
                    value.__code__ = (lambda *a, **k: None).__code__
            frame = frame.f_back
        assert False
    """,
    "replaces the harness's globals": """
        import sys
        frame = sys._getframe().f_back
        while frame:
            for name in list(frame.f_globals):
                if name.startswith('_') and callable(frame.f_globals[name]):
                    frame.f_globals[name] = lambda *a, **k: None
            frame = frame.f_back
        raise SystemExit(0)
    """,
    "loads ctypes": "import ctypes\nctypes.string_at(0)",
    "is no Python": "def (:",
    "never ends": "def forever():\n    while True:\n        yield 1\nfor _ in forever(): pass",
}


@pytest.mark.parametrize("source", FALSE_PASSES.values(), ids=FALSE_PASSES)
def test_nothing_passes_that_does_not_reach_its_end(sandbox: Sandbox, source: str) -> None:
    verdict = run(sandbox, source, tests="assert False, 'never true'", limits=SHORT)
    assert verdict.outcome is not Outcome.PASSED
    whole = f"{textwrap.dedent(source)}\nassert False, 'never true'\n"
    alone = run(sandbox, whole, limits=SHORT)
    assert alone.outcome is not Outcome.PASSED


POISONS = {
    "len": "import builtins\nbuiltins.len = lambda _: 3",
    "all": "import builtins\nbuiltins.all = lambda _: True\nbuiltins.abs = lambda _: 0",
    "math": "import math\nmath.isclose = lambda *_, **__: True",
    "a module of its own": "import sys, types\nfake = types.ModuleType('math')\n"
    "fake.isclose = lambda *_, **__: True\nsys.modules['math'] = fake",
    "an importer": "import sys\nclass Finder:\n    def find_spec(self, *_): raise SystemExit(0)\n"
    "sys.meta_path.insert(0, Finder())\nsys.modules.clear()",
    "import itself": "import builtins\nbuiltins.__import__ = lambda *_: 1 / 0",
    "its own builtins": "__builtins__ = {'len': lambda _: 3, 'all': lambda _: True}",
}


@pytest.mark.parametrize("source", POISONS.values(), ids=POISONS)
def test_tests_see_builtins_and_modules_as_they_were(sandbox: Sandbox, source: str) -> None:
    wrong = "import math\nassert len([]) == 3 or math.isclose(1, 2) or all([0])\n"
    assert run(sandbox, source, tests=wrong).outcome is Outcome.FAILED


# --- to reach outside -----------------------------------------------------------------------------

ESCAPES = {
    "a socket": "import socket\nsocket.socket().connect(('127.0.0.1', {port}))",
    "a UDP socket": "import socket\nsocket.socket(type=socket.SOCK_DGRAM)",
    "a unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect({abstract!r})",
    "a process": "import os\nif os.fork() == 0: os._exit(0)",
    "a command": "import subprocess\nsubprocess.run(['/bin/true'], check=True)",
    "another program": "import os\nos.execv('/bin/true', ['true'])",
    "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {{}})",
    "the secret": "open({secret!r}).read()",
    "the secret's folder": "import os\nos.listdir({folder!r})",
    "/etc/passwd": "open('/etc/passwd').read()",
    "/proc of itself": "open('/proc/self/environ').read()",
    "/proc of its parent": "import os\nopen(f'/proc/{{os.getppid()}}/cmdline').read()",
    "a file beside": "open({folder!r} + '/new', 'w')",
    "the secret's content": "open({secret!r}, 'w')",
    "truncation": "import os\nos.truncate({secret!r}, 0)",
    "removal": "import os\nos.remove({secret!r})",
    "a rename": "import os\nos.rename({secret!r}, {secret!r} + 'x')",
    "its mode": "import os\nos.chmod({secret!r}, 0o777)",
    "its owner": "import os\nos.chown({secret!r}, 0, 0)",
    "its times": "import os\nos.utime({secret!r}, (0, 0))",
    "an attribute": "import os\nos.setxattr({secret!r}, 'user.x', b'x')",
    "a link out": "import os\nos.symlink({secret!r}, 'link')\nopen('link').read()",
    "a hard link": "import os\nos.link({secret!r}, 'link')",
    "the temporary folder": "open({temporary!r} + '/codecria-left-behind', 'w')",
    "shared memory": "open('/dev/shm/codecria-left-behind', 'w')",
    "beside its box": "open('../left', 'w')",
    "another's box": "open('../solution/left', 'w')",
    "what else is in its boxes": "import os\nos.listdir('..')",
    "its box itself": "import os\nos.rmdir(os.getcwd())",
    "its box by another name": "import os\nos.rename(os.getcwd(), '../other')",
    "its box's mode": "import os\nos.chmod('.', 0o777)",
    "the server's source": "open({source!r}).read()",
    "its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "a handle of its parent": "import os, signal\n"
    "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    "a stopped parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "its process group": "import os, signal\nos.killpg(os.getpgid(os.getppid()), signal.SIGKILL)",
    "another user": "import os\nos.setuid(1)\nos.setuid(0)",
    "a root of its own": "import os\nos.chroot('.')",
    "its priority": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "its parent's cores": "import os\nos.sched_setaffinity(os.getppid(), {{0}})",
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "limits of its parent": "import os, resource\n"
    "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "a memory file": "import os\nos.memfd_create('x')",
    "a device": "import os\nos.mknod('null', 0o20666, os.makedev(1, 3))",
    "a named pipe": "import os\nos.mkfifo('pipe')",
    "a program in its box": "import os\nopen('x', 'w').write('#!/bin/sh')\nos.execv('x', ['x'])",
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What is to be reached: a secret file, listening sockets."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret").write_text("secret")
    os.environ["CODECRIA_TEST_SECRET"] = "secret"
    abstract = f"\0codecria-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(abstract)
        unix.listen()
        yield {
            "port": tcp.getsockname()[1],
            "abstract": abstract,
            "secret": str(folder / "secret"),
            "folder": str(folder),
            "temporary": tempfile.gettempdir(),
            "source": jail.__file__,
        }
    del os.environ["CODECRIA_TEST_SECRET"]


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES)
def test_nothing_outside_is_reached(
    sandbox: Sandbox, outside: dict[str, object], source: str
) -> None:
    secret = Path(str(outside["secret"]))
    before = secret.stat()
    verdict = run(sandbox, source.format(**outside) + "\nprint('escaped')")
    assert "escaped" not in verdict.stdout
    assert verdict.outcome in (Outcome.FAILED, Outcome.RESOURCE), verdict
    assert sorted(path.name for path in secret.parent.iterdir()) == ["secret"]
    assert secret.read_text() == "secret"
    after = secret.stat()
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)
    assert not Path(str(outside["temporary"]), "codecria-left-behind").exists()
    assert not Path("/dev/shm/codecria-left-behind").exists()
    assert run(sandbox, "pass").outcome is Outcome.PASSED, "the sandbox lives on"


RAW_CALLS = {
    "ptrace": (101, "0, 0, 0, 0"),
    "process_vm_readv": (310, "os.getppid(), 0, 0, 0"),
    "io_uring_setup": (425, "1, 0"),
    "unshare": (272, "0x10000000"),
    "keyctl": (250, "0, 0, 0"),
    "bpf": (321, "0, 0, 0"),
    "perf_event_open": (298, "0, 0, 0"),
    "userfaultfd": (323, "0"),
    "clone3": (435, "0, 0"),
    "mount": (165, "0, 0, 0, 0, 0"),
    "pidfd_send_signal": (424, "0, 9, 0, 0"),
    "a number of tomorrow": (600, "0"),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize(("number", "arguments"), RAW_CALLS.values(), ids=RAW_CALLS)
def test_calls_that_python_does_not_offer_are_refused(number: int, arguments: str) -> None:
    # In a process that only locks itself up, since programs have no ctypes.
    code = textwrap.dedent(f"""
        import ctypes, os, sys, tempfile
        sys.path.insert(0, {str(Path(jail.__file__).parent)!r})
        import jail
        libc = ctypes.CDLL(None, use_errno=True)
        box = tempfile.mkdtemp()
        jail.confine(readable=['/usr/lib'], box=box)
        result = libc.syscall({number}, {arguments})
        os._exit(0 if result == -1 and ctypes.get_errno() in (1, 38) else 1)
    """)
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert done.returncode == 0


# --- to take too much -----------------------------------------------------------------------------

BOMBS = {
    "memory": ("x = bytearray(1 << 34)", Outcome.RESOURCE),
    "memory by and by": ("x = []\nwhile True: x.append(' ' * 1_000_000)", Outcome.RESOURCE),
    "a loop": ("while True: pass", Outcome.TIMEOUT),
    "sleep": ("import time\ntime.sleep(60)", Outcome.TIMEOUT),
    "ignored signals": (
        "import signal, time\n"
        "for n in range(1, 32):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: time.sleep(1)",
        Outcome.TIMEOUT,
    ),
    "output": ("while True: print('x' * 1000)", Outcome.RESOURCE),
    "errors": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", Outcome.RESOURCE),
    "one large file": (
        "with open('x', 'wb') as f:\n    while True: f.write(b'x' * 1_000_000)",
        None,
    ),
    "many files": (
        "n = 0\nwhile True:\n    open(str(n), 'w').write('x' * 100_000)\n    n += 1",
        Outcome.RESOURCE,
    ),
    "many empty files": (
        "n = 0\nwhile True:\n    open(str(n), 'w').close()\n    n += 1",
        Outcome.RESOURCE,
    ),
    "threads": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(60,)).start()",
        None,
    ),
    "recursion": ("def f(): return f()\nf()", Outcome.FAILED),
    "the C stack": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()",
        None,
    ),
    "an integer": ("x = 10 ** 10 ** 10", None),
}


@pytest.mark.parametrize(("source", "outcome"), BOMBS.values(), ids=BOMBS)
def test_whoever_takes_too_much_is_stopped(
    sandbox: Sandbox, source: str, outcome: Outcome | None
) -> None:
    by_the_clock = outcome in (None, Outcome.TIMEOUT)
    started = time.monotonic()
    verdict = run(sandbox, source, limits=SHORT if by_the_clock else LIMITS)
    assert verdict.outcome is not Outcome.PASSED
    if outcome is not None:
        assert verdict.outcome is outcome, verdict
    # A timeout is judged twice.
    assert time.monotonic() - started < 2 * LIMITS.wall_s
    assert len(verdict.stdout) <= 2_000


def test_as_many_threads_as_are_documented_live_at_once_and_no_more(sandbox: Sandbox) -> None:
    source = """
        import threading, time
        ends = threading.Event()
        for n in range({count} - 1): threading.Thread(target=ends.wait).start()
        assert threading.active_count() == {count}
        time.sleep({seconds})
        ends.set()
    """
    limits = Limits(wall_s=ENOUGH_S, disk_bytes=LIMITS.disk_bytes)
    for count, seconds, outcome in ((256, 0.2, Outcome.PASSED), (280, 25.0, Outcome.RESOURCE)):
        asked = textwrap.dedent(source.format(count=count, seconds=seconds))
        verdict = sandbox.run(Program(source=asked), limits)
        assert verdict.outcome is outcome, (count, verdict)


# --- to leave something behind --------------------------------------------------------------------


def test_a_program_finds_nothing_of_the_one_before(sandbox: Sandbox) -> None:
    left = "import builtins, math, os\nmath.mine = builtins.mine = 1\nopen('left', 'w').close()"
    finds = """
        import builtins, math, os, tempfile
        assert not hasattr(math, 'mine') and not hasattr(builtins, 'mine')
        assert os.listdir('.') == []
    """
    for _ in range(2 * sandbox.workers):
        assert run(sandbox, left).outcome is Outcome.PASSED
        assert run(sandbox, finds).outcome is Outcome.PASSED


def test_what_is_hard_to_remove_is_removed(sandbox: Sandbox) -> None:
    leaves = """
        import os
        for mode in (0o000, 0o100, 0o200, 0o300, 0o400):
            name = f"d{mode:o}"
            os.makedirs(f"{name}-/a/b/c")
            open(f"{name}-/a/x", "w").close()
            os.mkdir(name, mode)
            try: open(f"{name}/x", "w").close()
            except OSError: pass
        os.umask(0o777)
        open("y", "w").close()
        os.mkdir("z")
        os.symlink("/", "root")
        os.link("y", "again")
        os.makedirs("/".join("d" * 200))
    """
    for _ in range(2 * sandbox.workers):
        run(sandbox, leaves)
        found = run(sandbox, "import os\nassert os.listdir('.') == []")
        assert found.outcome is Outcome.PASSED, found


def test_a_program_leaves_no_trace_on_the_streams_of_the_next(sandbox: Sandbox) -> None:
    spoils = """
        import fcntl, os
        for fd in (0, 1, 2, 200, 201):
            try:
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
                fcntl.fcntl(fd, 1031, 4096)
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError: pass
        os.write(1, b'left behind')
    """
    for _ in range(2 * sandbox.workers):
        run(sandbox, spoils)
        verdict = run(sandbox, "print('x' * 60000)\nimport sys\nassert sys.stdin.read() == ''")
        assert verdict.outcome is Outcome.PASSED, verdict
        assert "left" not in verdict.stdout


@pytest.mark.parametrize(
    "source",
    [
        "(" * 150 + ")" * 150,
        "-" * 100_000 + "1",
        "x = " + "[" * 90 + "]" * 90,
        "+".join(["1"] * 50_000),
        "f(" * 90 + ")" * 90,
        "\n".join(f"if x == {n}: pass" for n in range(20_000)),
        "x" * 3_000_000 + " = 1",
        "(" + "lambda: (" * 80 + "1" + ")" * 80 + ")",
        "'" + "\\N{DIGIT ONE}" * 20_000 + "'",
    ],
    ids=lambda source: source[:9],
)
def test_programs_that_are_hard_to_compile_are_judged_and_the_next_is_too(
    sandbox: Sandbox, source: str
) -> None:
    for tests in ("", "assert True"):
        sandbox.run(Program(source=source, tests=tests), SHORT)
        sandbox.run(Program(source="pass", tests=source), SHORT)
    assert run(sandbox, "pass").outcome is Outcome.PASSED


def test_boxes_and_descriptors_do_not_pile_up(sandbox: Sandbox) -> None:
    programs = [Program(source="open('x', 'w').write('x')")] * 60
    list(sandbox.run_many(programs[:4]))
    mine = [f"/proc/{server.process.pid}/fd" for server in sandbox._servers]
    if not all(os.access(folder, os.R_OK) for folder in mine):
        mine = []  # a user may not look into a confined process of his own
    before = [len(list(Path(folder).iterdir())) for folder in mine]
    assert all(v.outcome is Outcome.PASSED for _, v in sandbox.run_many(programs))
    assert [len(list(Path(folder).iterdir())) for folder in mine] == before
    assert [path for path in Path(sandbox._boxes.path).rglob("*") if not path.is_dir()] == []


def test_nothing_is_left_of_a_sandbox() -> None:
    with Sandbox("native", workers=1) as opened:
        assert run(opened, "open('x', 'w').close()").outcome is Outcome.PASSED
        boxes, process = Path(opened._boxes.path), opened._servers[0].process
        assert boxes.is_dir()
    assert not boxes.exists()
    assert process.poll() is not None


def test_a_program_ends_with_its_server() -> None:
    # Kills: a program that goes on computing after the command was killed.
    with Sandbox("native", workers=1) as opened:
        server = opened._servers[0]
        pool = threading.Thread(
            target=lambda: list(opened.run_many([Program(source="while True: pass")]))
        )
        pool.start()
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        deadline = time.monotonic() + 60
        while not (found := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.01)
        server.process.kill()
        while Path(f"/proc/{found[0]}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{found[0]}").exists()
        pool.join()


def test_a_thread_that_stays_ends_with_its_program(sandbox: Sandbox) -> None:
    verdict = run(
        sandbox, "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    )
    assert verdict.outcome is Outcome.PASSED
    assert verdict.seconds < LIMITS.wall_s < 60


def test_the_environment_of_the_caller_is_not_there(
    sandbox: Sandbox, outside: dict[str, object]
) -> None:
    verdict = run(
        sandbox,
        "import os\nassert 'CODECRIA_TEST_SECRET' not in os.environ\nassert len(os.environ) < 9",
    )
    assert verdict.outcome is Outcome.PASSED, verdict


def test_a_server_that_is_killed_is_replaced(sandbox: Sandbox) -> None:
    def kill() -> None:
        time.sleep(0.3)
        for server in list(sandbox._servers):
            server.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    verdicts = list(sandbox.run_many([Program(source="import time\ntime.sleep(0.6)")] * 4))
    killer.join()
    assert sorted(n for n, _ in verdicts) == [0, 1, 2, 3]
    assert all(verdict.outcome is Outcome.PASSED for _, verdict in verdicts)
