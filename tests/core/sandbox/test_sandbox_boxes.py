"""Folders of programs: nothing outside them is touched, and nothing in them ends a later run.

Everything here runs as whoever runs the tests, and where that is root, as an ordinary user too; in
servers with namespaces of their own, and in servers that the system gives none.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from codecria.core.sandbox import boxes
from tests.core.sandbox.common import CONFINED, ENOUGH_S

USER = 65_534  # nobody
EXCHANGE = 2  # renameat2's RENAME_EXCHANGE
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")

# Denies new namespaces and mounts to a process and what it starts, as some containers do.
WITHOUT_NAMESPACES = """
import ctypes, struct
libc = ctypes.CDLL(None)
numbers = {"x86_64": (272, 165), "aarch64": (97, 40)}[__import__("os").uname().machine]
lines = [(0x20, 0, 0, 0)]
for number in numbers:
    lines += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
lines.append((0x06, 0, 0, 0x7fff0000))
held = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))
made = Filter(len(lines), ctypes.cast(held, ctypes.c_void_p))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(made), 0, 0) == 0
"""


@lru_cache(maxsize=1)
def _for_users() -> tuple[str, str]:
    """A Python that an ordinary user may run, and a folder where it finds the sandbox.

    Both may be in a home that is closed to others; then the system's Python runs a copy.
    """
    folder = tempfile.mkdtemp(prefix="codecria-copy-")
    atexit.register(shutil.rmtree, folder)
    sources = Path(boxes.__file__).parents[2]
    package = Path(folder) / "codecria"
    shutil.copytree(sources / "core" / "sandbox", package / "core" / "sandbox")
    (package / "data").mkdir()
    for part in ("core/__init__.py", "data/__init__.py", "data/errors.py"):
        shutil.copy(sources / part, package / part)
    (package / "__init__.py").touch()
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    for executable in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        check = "import sys; assert sys.version_info >= (3, 11)"
        done = subprocess.run(
            [*_AS_USER, "env", executable, "-c", check], capture_output=True, check=False, cwd="/"
        )
        if done.returncode == 0:
            return executable, folder
    pytest.skip("there is no Python 3.11 here that an ordinary user may run")


_AS_USER = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]


def python(code: str, *, user: bool = False, namespaces: bool = True) -> list[str]:
    """The command that runs code as somebody, with namespaces to be had or not."""
    whole = textwrap.dedent(code)
    if not namespaces:
        whole = WITHOUT_NAMESPACES + whole
    if not user:
        return [sys.executable, "-c", whole]
    executable, path = _for_users()
    return [*_AS_USER, "env", "HOME=/nonexistent", f"PYTHONPATH={path}", executable, "-c", whole]


def told_by(code: str, *, user: bool = False, namespaces: bool = True) -> Any:
    """What a process prints as JSON."""
    argv = python(code, user=user, namespaces=namespaces)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


USERS = [False, pytest.param(True, marks=root_alone)]
users = pytest.mark.parametrize("user", USERS, ids=["as we are", "as a user"])
everywhere = pytest.mark.parametrize(
    ("tier", "namespaces"),
    [
        pytest.param("native", True, marks=CONFINED[0].marks, id="native"),
        pytest.param("native", False, marks=CONFINED[0].marks, id="native without namespaces"),
        pytest.param("bwrap", True, marks=CONFINED[1].marks, id="bwrap"),
    ],
)

# --- removal --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "box"
    path.mkdir(mode=0o700)
    opened = boxes.open_folder(str(path))
    yield opened
    # pytest's own removal ends in a RecursionError where a test that failed left a deep tree.
    boxes.clear(opened, seconds=60.0)
    os.close(opened)


def _nested(folder: int, name: str, depth: int) -> None:
    at = os.dup(folder)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        below = boxes.open_folder(name, inside=at)
        os.close(at)
        at = below
    os.close(at)


def _files(folder: int, count: int) -> None:
    for n in range(count):
        os.close(os.open(str(n), os.O_CREAT | os.O_WRONLY, dir_fd=folder))


def _modes(folder: int, _: int) -> None:
    for mode in (0o000, 0o100, 0o200, 0o400, 0o500):
        os.mkdir(f"{mode}", dir_fd=folder)
        inner = boxes.open_folder(f"{mode}", inside=folder)
        _nested(inner, "x", 3)
        _files(inner, 3)
        os.fchmod(inner, mode)
        os.close(inner)


SHAPES: dict[str, tuple[Callable[[int], None], int]] = {
    "6,000 folders, one in the other": (lambda f: _nested(f, "d", 6_000), 30),
    "paths of 100,000 characters": (lambda f: _nested(f, "n" * 250, 400), 30),
    "10,000 files": (lambda f: _files(f, 10_000), 30),
    "modes that forbid everything": (lambda f: _modes(f, 0), 30),
    "names that removal might give": (lambda f: _nested(f, "up-0", 50), 30),
    "links": (
        lambda f: [os.symlink("..", str(n), dir_fd=f) for n in range(10)] and None,
        30,
    ),
}


@pytest.mark.parametrize(("make", "seconds"), SHAPES.values(), ids=SHAPES)
def test_everything_is_removed_with_two_descriptors(
    folder: int, make: Callable[[int], None], seconds: int
) -> None:
    make(folder)
    assert boxes.clear(folder, seconds=seconds)
    assert os.listdir(folder) == []


def test_removal_ends_after_its_time_and_goes_on_later(folder: int) -> None:
    _files(folder, 5_000)
    assert not boxes.clear(folder, seconds=0.0)
    assert boxes.clear(folder)


def test_links_are_removed_and_not_followed(folder: int, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "kept").write_text("kept")
    os.symlink(victim, "link", dir_fd=folder)
    os.mkdir("inner", dir_fd=folder)
    inner = boxes.open_folder("inner", inside=folder)
    os.symlink(victim, "link", dir_fd=inner)
    os.link(victim / "kept", "same", dst_dir_fd=inner)
    os.close(inner)
    assert boxes.clear(folder)
    assert (victim / "kept").read_text() == "kept"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755


def test_a_swap_of_a_folder_and_a_link_during_removal_reaches_nothing(tmp_path: Path) -> None:
    # Kills: removal by paths, which follows what takes a folder's place between two calls.
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o711)
    for n in range(20):
        (victim / str(n)).write_text("kept")
    box = tmp_path / "box"
    box.mkdir(mode=0o700)
    top = boxes.open_folder(str(box))
    libc = ctypes.CDLL(None, use_errno=True)
    stop = threading.Event()

    def swap() -> None:
        names = [os.fsencode(box / name) for name in ("a", "b")]
        while not stop.is_set():
            libc.renameat2(-100, names[0], -100, names[1], EXCHANGE)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(300):
            with contextlib.suppress(FileExistsError):
                (box / "a").mkdir(mode=0o000)
            with contextlib.suppress(FileExistsError):
                (box / "b").symlink_to(victim)
            boxes.clear(top)
    finally:
        stop.set()
        swapper.join()
        boxes.clear(top)
        os.close(top)
    assert len(list(victim.iterdir())) == 20
    assert stat.S_IMODE(victim.stat().st_mode) == 0o711


# --- folders that others prepare ------------------------------------------------------------------

SWEEP = """
from codecria.core.sandbox.boxes import Boxes
boxes = Boxes()
boxes.close()
print("0")
"""


def _old(path: Path) -> None:
    os.utime(path, (1, 1), follow_symlinks=False)


@pytest.fixture
def prepared() -> Iterator[Path]:
    """A folder by the name of a sandbox's, in the place where those are made."""
    path = Path("/dev/shm") / f"{boxes.PREFIX}test-{os.getpid()}"
    yield path
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        subprocess.run(["rm", "-rf", str(path)], check=True)


@root_alone
def test_what_another_user_prepared_is_not_touched(prepared: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "kept").write_text("kept")
    prepared.mkdir(mode=0o700)
    (prepared / "inner").mkdir()
    (prepared / "inner" / "file").write_text("theirs")
    (prepared / "link").symlink_to(victim)
    os.chown(prepared, USER, USER)
    _old(prepared)
    assert told_by(SWEEP) == 0
    assert (prepared / "inner" / "file").read_text() == "theirs"
    assert (victim / "kept").read_text() == "kept"


@root_alone
def test_another_user_who_swaps_folders_meanwhile_reaches_nothing(
    prepared: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "kept").write_text("kept")
    swapper = subprocess.Popen(
        python(
            f"""
            import ctypes, os
            libc, path = ctypes.CDLL(None), {str(prepared)!r}
            os.mkdir(path, 0o777); os.mkdir(path + "/a", 0o777)
            os.symlink({str(victim)!r}, path + "/b")
            os.utime(path, (1, 1))
            print("ready", flush=True)
            while True:
                libc.renameat2(-100, (path + "/a").encode(), -100, (path + "/b").encode(), 2)
                os.utime(path, (1, 1))
            """,
            user=True,
        ),
        stdout=subprocess.PIPE,
    )
    try:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == b"ready\n"
        for _ in range(5):
            assert told_by(SWEEP) == 0
    finally:
        swapper.kill()
        swapper.wait()
    assert (victim / "kept").read_text() == "kept"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755
    assert (prepared / "a").exists()


@pytest.mark.parametrize("kind", ["link", "file", "open to others"])
def test_what_is_no_private_folder_is_not_touched(
    prepared: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "kept").write_text("kept")
    if kind == "link":
        prepared.symlink_to(tmp_path)
    elif kind == "file":
        prepared.write_text("kept")
    else:
        prepared.mkdir()
        prepared.chmod(0o755)
        (prepared / "kept").write_text("kept")
    _old(prepared)
    assert told_by(SWEEP) == 0
    assert (tmp_path / "kept").read_text() == "kept"
    assert prepared.exists()


@users
def test_what_a_killed_sandbox_left_is_removed_and_one_in_use_is_not(user: bool) -> None:
    told = told_by(
        """
        import json, os, sys
        from codecria.core.sandbox import boxes
        from codecria.core.sandbox.boxes import Boxes
        used, left = Boxes(), Boxes()
        os.makedirs(f"{left.make()}/a/b"); os.makedirs(f"{used.make()}/a/b")
        at = boxes.open_folder(left.path)
        for _ in range(3000):
            os.mkdir("d", dir_fd=at); at = boxes.open_folder("d", inside=at) if _ % 500 else at
        for one in (used, left): os.utime(one.path, (1, 1))
        os.close(left._folder)  # as if it had been killed
        Boxes().close()
        print(json.dumps([os.path.exists(used.path), os.path.exists(left.path)]))
        used.close()
        assert not os.path.exists(used.path)
        """.replace('at = boxes.open_folder("d", inside=at) if _ % 500 else at', "break"),
        user=user,
    )
    assert told == [True, False]


@pytest.mark.parametrize(
    ("mode", "safe"), [(0o700, True), (0o755, True), (0o1777, True), (0o777, False), (0o775, False)]
)
def test_boxes_are_made_only_where_nobody_else_can_move_them(
    tmp_path: Path, mode: int, safe: bool
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    assert boxes._is_safe(str(place)) is safe
    assert not boxes._is_safe(str(place / "missing"))


@root_alone
def test_boxes_are_not_made_in_a_folder_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, USER, USER)
    assert not boxes._is_safe(str(tmp_path))


# --- programs -------------------------------------------------------------------------------------

LEAVES = {
    "1,500 folders, one in the other": (
        "import os\nfor _ in range(1500):\n    os.mkdir('d'); os.chdir('d')",
        ("passed", "resource"),
    ),
    "100,000 folders, one in the other": (
        "import os\nfor _ in range(100000):\n    os.mkdir('d'); os.chdir('d')",
        ("resource",),
    ),
    "100,000 folders beside each other": (
        "import os\nfor n in range(100000): os.mkdir(str(n))",
        ("resource",),
    ),
    "paths longer than the system's longest": (
        "import os\nfor _ in range(500):\n    os.mkdir('n' * 250); os.chdir('n' * 250)",
        ("passed", "resource"),
    ),
    "modes that forbid everything": (
        "import os\nos.makedirs('a/b/c')\nos.umask(0o777)\nos.mkdir('a/d')\n"
        "for n in range(50): os.mkdir(str(n), 0)",
        ("passed",),
    ),
    "names that are no text": (
        "import os\nfor n in range(1, 40): os.mkdir(bytes([n, 255]) if n != 47 else b'x')",
        ("passed",),
    ),
    "links in a circle": (
        "import os\nos.mkdir('a')\nos.symlink('..', 'a/up')\nos.symlink('a', 'b')",
        ("passed",),
    ),
    "many empty files": (
        "n = 0\nwhile True:\n    open(str(n), 'w').close()\n    n += 1",
        ("resource",),
    ),
    "600 MB in files without names": (
        "import os\nheld = []\nfor n in range(60):\n    f = open('x', 'wb'); os.unlink('x')\n"
        "    held.append(f); f.write(b'x' * 10_000_000); f.flush()\n"
        "    __import__('time').sleep(0.01)\n",
        ("resource",),
    ),
    "600 MB in temporary files": (
        "import tempfile, time\nheld = []\nfor n in range(60):\n"
        "    f = tempfile.TemporaryFile(); held.append(f)\n"
        "    f.write(b'x' * 10_000_000); f.flush(); time.sleep(0.01)",
        ("resource",),
    ),
    "as many folders as there is time for, in threads": (
        "import os, threading\ndef work(n):\n    os.mkdir(str(n))\n    for m in range(20000):\n"
        "        os.mkdir(f'{n}/{m}')\n"
        "for n in range(4): threading.Thread(target=work, args=(n,)).start()\n",
        None,
    ),
}
JUDGE = """
import json, sys, time
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Program
told = {{}}
with Sandbox({tier!r}, workers=1, limits=Limits(wall_s={wall_s})) as sandbox:
    for name, source in {programs!r}.items():
        start = time.monotonic()
        verdict = sandbox.run(Program(source=source))
        seconds = time.monotonic() - start
        after = sandbox.run(Program(source="import os\\nassert os.listdir('.') == []"))
        honest = sandbox.run(Program(source=
            "import os\\nos.makedirs('a/b')\\nopen('a/b/c', 'w').write('x' * 5_000_000)\\n"
            "os.unlink('a/b/c')\\nos.removedirs('a/b')"))
        told[name] = [verdict.outcome, seconds, after.outcome, honest.outcome, verdict.detail]
    start = time.monotonic()
told["closed"] = time.monotonic() - start
print(json.dumps(told))
"""


@users
@everywhere
def test_whatever_a_program_leaves_yields_a_verdict_and_the_next_runs(
    tier: str, namespaces: bool, user: bool
) -> None:
    programs = {name: source for name, (source, _) in LEAVES.items()}
    code = JUDGE.format(tier=tier, programs=programs, wall_s=ENOUGH_S)
    told = told_by(code, user=user, namespaces=namespaces)
    assert told.pop("closed") < ENOUGH_S
    for name, (outcome, seconds, after, honest, detail) in told.items():
        expected = LEAVES[name][1]
        assert expected is None or outcome in expected, (name, outcome, detail)
        assert seconds < 2 * ENOUGH_S, (name, seconds)
        assert (after, honest) == ("passed", "passed"), name


@users
def test_a_command_judges_such_programs_too(user: bool) -> None:
    names = ("100,000 folders beside each other", "1,500 folders, one in the other")
    programs = {name: LEAVES[name][0] for name in names}
    code = (
        JUDGE.format(tier="command", programs=programs, wall_s=5.0)
        .replace("Sandbox('command',", "Sandbox('command', command='env -i PATH=/usr/bin:/bin',")
        .replace("import os\\nassert os.listdir('.') == []", "pass")
    )
    told = told_by(code, user=user)
    assert {after for _, _, after, _, _ in list(told.values())[:-1]} == {"passed"}


# --- to outlive everything ------------------------------------------------------------------------

STAYS = """
import time
try:
    import _xxsubinterpreters as other
    other.run_string(other.create(), "import ctypes; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)")
except Exception: pass
import os
open('ready', 'w').close()
while True: pass
"""


@users
@everywhere
def test_nothing_outlives_a_harness_and_servers_that_are_killed(
    tier: str, namespaces: bool, user: bool
) -> None:
    code = f"""
    import json, threading, time
    from codecria.core.sandbox.sandbox import Sandbox
    from codecria.core.sandbox.verdict import Limits, Program
    sandbox = Sandbox({tier!r}, workers=1, limits=Limits(wall_s=60.0))
    threading.Thread(target=lambda: sandbox.run(Program(source={STAYS!r})), daemon=True).start()
    print(json.dumps([s.process.pid for s in sandbox._servers]), flush=True)
    time.sleep(300)
    """
    argv = python(code, user=user, namespaces=namespaces)
    harness = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True, cwd="/")
    assert harness.stdout is not None
    servers = json.loads(harness.stdout.readline())
    until = time.monotonic() + 60
    while not any(_computes(pid) for server in servers for pid in _below(server)):
        assert time.monotonic() < until, "the program does not run"
        time.sleep(0.05)
    started = {pid for server in servers for pid in _below(server)}
    for pid in (harness.pid, *servers):
        os.kill(pid, signal.SIGKILL)
    harness.wait()
    deadline = time.monotonic() + 60
    while (left := [pid for pid in started if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _below(process: int) -> set[int]:
    """A process and all below it."""
    found = {process}
    for line in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        found |= _below(int(line))
    return found


def _runs(process: int) -> bool:
    return " Z " not in _stat(process, gone=" Z ")[:4]


def _computes(process: int) -> bool:
    """Whether a process has used a second, which a server that starts does not."""
    used = _stat(process, gone="").split()[11:12]
    return bool(used) and int(used[0]) > os.sysconf("SC_CLK_TCK")


def _stat(process: int, *, gone: str) -> str:
    """What the kernel says of a process, from its state on."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except OSError:
        return gone
