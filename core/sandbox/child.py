"""The child of a server: it confines itself, runs a program, and proves that it reached its end.

A pass must be proved. The child reads a random key from a pipe that is empty afterwards, and holds
it on the interpreter's value stack, where neither names, frames nor the collector lead to it, while
the program runs; it writes it back when the last statement has been executed. A program that ends
earlier, in whatever way, cannot know it.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import functools
import gc
import os
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple, NoReturn

from . import bridge, jail
from .pristine import (
    Pristine,
    TestNamespace,
    names_of,
    needs_modules,
    restorer,
    snapshot,
    visible,
)

# What is defined below keeps to these, whatever a program makes of the builtins.
PRIVATE = dict(vars(builtins))
globals()["__builtins__"] = PRIVATE
KEY_BYTES = 32
KEY, PROOF = 200, 201  # descriptors: the key is read from one and written to the other
BRIDGE = (202, 203)  # where a side of a program in two processes reads and writes
# So that `watch.MOST_THREADS` fit into the address space of a program, which stacks count for.
THREAD_STACK_BYTES = 1 << 20
GO = b"!"  # ahead of the key where it is read
# The standard library, its parts of this platform's own, and the system's libraries.
READABLE = [
    os.path.dirname(os.__file__),  # noqa: PTH120 - pathlib is not loaded here
    f"{sys.base_exec_prefix}/{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}",
    *(f"/{name}" for name in ("usr/lib", "usr/lib64", "lib", "lib64", "usr/share/zoneinfo")),
    "/dev/urandom",
    "/dev/zero",
]
# Loaded once, before the first fork: what solutions most often import. Each module more makes every
# fork dearer; what is not here, a program imports itself, and its tests find it as on the disk.
PRELOADED = (
    "abc", "array", "bisect", "cmath", "collections", "collections.abc", "enum", "functools",
    "heapq", "io", "itertools", "math", "operator", "re", "string", "time", "types", "typing",
)  # fmt: skip
# Put back before tests that name a module run. Not all that is loaded: reading a module
# copies its memory.
RESTORED = (
    "builtins", "sys", "bisect", "cmath", "collections", "functools", "heapq", "itertools", "math",
    "operator", "re", "string", "time", "typing",
)  # fmt: skip


# Libraries of numbers start as many threads as there are cores; programs share the cores.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Packages(NamedTuple):
    """Installed packages that programs may import.

    Attributes:
        folder: that they are imported from; empty where there are none.
        readable: files and folders that are read for them.
        names: of modules in that folder.
        compiled: whether they hold compiled code, which reaches the process's memory anyway: then
            ctypes may be imported too, which NumPy and pandas do.
    """

    folder: str = ""
    readable: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    compiled: bool = False


def prepare(box: str, packages: Packages = Packages()) -> Pristine:  # noqa: B008 - it is immutable
    """Do what every child would do, once: each page that a child need not touch is time.

    Args:
        box: the folder that programs run in.
        packages: that programs may import.

    Returns:
        the modules as they are before anything has run.
    """
    for name in PRELOADED:
        __import__(name)
    _thread.stack_size(THREAD_STACK_BYTES)
    os.environ.clear()
    os.environ.update(HOME=box, TMPDIR=box, PATH="/usr/bin:/bin", TZ="UTC", LANG="C.UTF-8")
    if packages.folder:
        sys.path.append(packages.folder)
        os.environ.update(ONE_THREAD)
    os.chdir(box)
    # Never used here, so that nothing is in them when a child's descriptors take their places.
    for n, (stream, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        opened = open(n, mode, encoding="utf-8", errors="replace")  # noqa: PTH123, SIM115 - for good
        vars(sys).update({stream: opened, f"__{stream}__": opened})
    return snapshot(RESTORED)


class Script:
    """A program, compiled where that was done before.

    Args:
        source, tests, name: of the program.
        entry: names that tests take from the solution though Python has them too.
        code, checks: source and tests as compiled.
    """

    __slots__ = ("checks", "code", "entry", "name", "names", "needs_modules", "source", "tests")

    def __init__(
        self,
        source: str,
        tests: str,
        name: str,
        entry: tuple[str, ...],
        code: CodeType | None = None,
        checks: CodeType | None = None,
    ) -> None:
        self.source, self.tests, self.name, self.entry = source, tests, name, entry
        self.code, self.checks = code, checks
        self.names: set[str] = set()  # that the tests see of the solution
        self.needs_modules = False
        if checks is not None:
            self._look(checks)

    def _look(self, checks: CodeType) -> None:
        names = names_of(checks)
        self.names = visible(names, self.entry)
        self.needs_modules = needs_modules(self.tests, names)

    def compile(self) -> None:
        """Compile what is not yet.

        Raises:
            SyntaxError: and what else compiling raises.
        """
        if self.code is None:
            self.code = compile(self.source, "<solution>", "exec", dont_inherit=True)
        if self.checks is None:
            self.checks = compile(self.tests, bridge.TESTS_FILE, "exec", dont_inherit=True)
            self._look(self.checks)


def become(
    script: Script,
    lock: jail.ChildLock | None,
    parent: int,
    clean: Pristine,
    *,
    side: str = "",
    box: str = "",
    watched: bool = False,
    packages: Packages = Packages(),  # noqa: B008 - it is immutable
) -> NoReturn:
    """Turn this process, a server's child, into a program's. Its streams are in their places.

    Args:
        script: the program.
        lock: None where nothing is confined.
        parent: the server's number.
        clean: the modules as they were before anything ran.
        side: "solution" or "tests", where each has a process of its own.
        box: of that side.
        watched: whether the server looks at what this process has open.
        packages: that the program may import.
    """
    try:
        jail.die_with_parent()
        if os.getppid() != parent:  # it ended before that
            os._exit(70)
        if watched:
            jail.be_seen()
        if lock is not None:
            lock.restrict_files()
        os.closerange(3, KEY)
        os.closerange(BRIDGE[1] + 1 if side else BRIDGE[0], 65_536)
        if lock is not None:
            lock.restrict_calls()
        if side:
            os.chdir(box)
            os.environ.update(HOME=box, TMPDIR=box)
        _run(script, clean, proof=PROOF, key=KEY, side=side, packages=packages)
    finally:
        os._exit(70)  # not reached: the program ends its process


def alone(job: dict[str, Any]) -> NoReturn:
    """Be the program of a job, in a process that some command made for it alone.

    Standard input has the key next; it is written to standard output, in the end.
    """
    import tempfile

    box = tempfile.mkdtemp()
    given = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the program runs
    given.write(job["stdin"].encode(errors="replace"))
    given.seek(0)
    os.dup2(0, KEY, inheritable=False)
    os.dup2(1, PROOF, inheritable=False)
    os.dup2(given.fileno(), 0)
    clean = prepare(box)
    tempfile.tempdir = None
    os.closerange(3, KEY)
    os.closerange(BRIDGE[0], 65_536)
    jail.die_with_parent()
    jail.limit(**job["limits"])
    if not jail.problem():
        # Packages that the command's image has are for programs.
        jail.confine(readable=[*READABLE, *sys.path], box=box)
    name = "__main__" if job["stdin"] else "solution"
    script = Script(job["source"], job["tests"], name, tuple(job["entry"]))
    _run(script, clean, proof=PROOF, key=KEY, side="", packages=Packages())


def _run(
    script: Script, clean: Pristine, *, proof: int, key: int, side: str, packages: Packages
) -> NoReturn:
    """Run a program, prove that it reached its end, and end this process.

    Args:
        script: the program.
        clean: the modules as they were before anything ran.
        proof, key: where the key is written to, and read from.
        side: which process of two this is; empty where it is the only one.
        packages: that the program may import.
    """
    write, read, leave, execute = os.write, os.read, os._exit, exec
    show, errors, flush = sys.__excepthook__, sys.stderr, sys.stdout.flush
    namespace: dict[str, Any] = {"__name__": script.name, "__builtins__": builtins}
    try:
        read(key, len(GO))  # it is limited now
        gc.enable()
        script.compile()
        code, tests = script.code, script.checks
        assert code is not None
        assert tests is not None
        restore: Callable[[], object] = int
        begin: Callable[[dict[str, Any]], tuple[dict[str, Any], Any]] = _same
        if script.tests and not side:
            begin = functools.partial(_apart, script.names)
            if script.needs_modules:
                restore = restorer(clean, packages.names)
        sys.addaudithook(_guard_but_ctypes if packages.compiled else _guard)
        if side == "solution":
            execute(code, namespace)
            bridge.answer(namespace, *BRIDGE)
            flush()
            leave(0)
        if side == "tests":
            begin = functools.partial(_across, script.names)
        # In order, from left to right: the key is read, the solution runs, modules that it may
        # have changed are put back, the tests run, the key is written. Nothing names it then.
        write(
            proof,
            (
                read(key, KEY_BYTES),
                execute(code, namespace) if side != "tests" else None,
                restore(),
                execute(tests, *begin(namespace)),
                flush(),
            )[0],
        )
    except SystemExit as end:
        with contextlib.suppress(BaseException):
            errors.flush()
        leave(end.code if isinstance(end.code, int) and 0 <= end.code < 256 else 1)
    except BaseException as error:
        # The program's own streams may be gone; the verdict then has the status alone.
        with contextlib.suppress(BaseException):
            sys.stderr = errors
            show(type(error), error, error.__traceback__)
            errors.flush()
        leave(1)
    leave(0)


def _same(namespace: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tests without a solution apart run in the names there are."""
    return namespace, namespace


def _across(
    names: set[str], namespace: dict[str, Any]
) -> tuple[dict[str, Any], bridge.SharedNamespace]:
    """Tests get what a solution in another process defines from that process."""
    shared = bridge.SharedNamespace(*BRIDGE, names)
    shared.globals |= namespace
    return shared.globals, shared


def _apart(names: set[str], namespace: dict[str, Any]) -> tuple[dict[str, Any], TestNamespace]:
    """Tests that follow a solution have names of their own."""
    own = TestNamespace(names, namespace)
    return own.globals, own


_REFUSED = frozenset(
    {
        *("gc.get_objects", "gc.get_referrers", "gc.get_referents"),
        *("sys.settrace", "sys.setprofile"),
    }
)
_CTYPES = frozenset({"ctypes", "_ctypes"})
_UNSAFE = _CTYPES | {"_testcapi", "_testinternalcapi"}


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse ways to change the interpreter itself."""
    if (
        event in _REFUSED
        or event.startswith("ctypes.")
        or (event == "import" and arguments[0] in _UNSAFE)
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
    ):
        refused = ImportError if event == "import" else RuntimeError
        raise refused("the sandbox does not allow " + event)


def _guard_but_ctypes(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse the same, ctypes excepted."""
    is_ctypes = event.startswith("ctypes.") or (event == "import" and arguments[0] in _CTYPES)
    if not is_ctypes:
        _guard(event, arguments)
