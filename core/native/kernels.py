"""The kernels as this machine has them: compiled once, kept (kept.py), loaded quickly.

An object file is kept for each version of the kernels' source, of LLVM and of the CPU's level.
Loading it takes llvmlite alone and some 30 ms. A child process compiles and runs kernels before
anybody relies on them (check.py): a crash ends the child, and the next lower level is tried.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError

from . import kept
from .cpu import NEEDS, Level, Target, host_target
from .kept import Kept
from .packing import GROUP_BYTES, PackedKind

# What object code depends on. compile.py and the modules that write kernels are in no other digest.
SOURCES = (
    "attention.py", "compile.py", "cpu.py", "embedding.py", "emit.py", "fields.py", "lanes.py",
    "packed_products.py", "packer.py", "packing.py", "products.py", "record.py", "stages.py",
    "stored_products.py",
)  # fmt: skip
CHECK_TIMEOUT_S = 300  # compiling takes some 10 s, and a busy machine many times that
WRONG = 3  # exit status of a check whose scores are wrong
# What ends a child in a crash of its own, which it will do again; others may be a full memory.
_CRASHES = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT", "SIGTRAP", "SIGSYS")
Say = Callable[[str], None]


class KernelError(UserError):
    """There are no kernels for this machine; PyTorch can do what they would have done."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Loaded kernels.

    Attributes:
        level: the instructions they use, see cpu.py.
        forward: (record's address, first stage, last stage): of one step, see stages.py.
        embed: (record's address): the step's tokens, looked up.
        help: (record's address, thread, looks): a helper thread's work; thread 0 runs `forward`.
        round_bf16: (float32 weights, number in sixteens, bfloat16 weights).
        pack: by the packed kind and numpy's name of the weights' type: see packer.py. The plain
            level has none.
    """

    level: Level
    forward: Callable[[int, int, int], None]
    embed: Callable[[int], None]
    help: Callable[[int, int, int], None]
    round_bf16: Callable[[int, int, int], None]
    pack: Mapping[tuple[PackedKind, str], Callable[[int, int, int, int, int], None]]


def load(*, level: str | None = None, say: Say = lambda _: None) -> Kernels:
    """The kernels for this machine, compiled if that was not done before.

    Args:
        level: the best level to use, see cpu.py; None takes the CPU's.
        say: gets one sentence where compiling takes time, and one if only lesser kernels work.

    Raises:
        KernelError: llvmlite is missing, or no level's kernels passed their check.
        UserError: there is no such level.
    """
    try:
        import llvmlite.binding  # noqa: F401
    except (ImportError, OSError, AttributeError) as error:  # also one that is half installed
        raise KernelError(
            f"the CPU kernels need llvmlite, which cannot be imported: {error}",
            hint="pip install llvmlite, or use --engine torch",
        ) from error
    return _load(host_target(level), say)


_LOADED: dict[Target, Kernels] = {}


def _load(target: Target, say: Say) -> Kernels:
    if target not in _LOADED:
        _LOADED[target] = _linked(*_object_for(target, say))
    return _LOADED[target]


def _object_for(target: Target, say: Say) -> tuple[Level, bytes]:
    """A checked object file for a target or, where it fails, for a lower level; and that level.

    Raises:
        KernelError: no level's kernels passed their check.
    """
    name = f"{target.level}-{_key(target)}.o"
    found = kept.read(name) or _compiled(target, name, say)
    if found.level is None:
        raise KernelError(
            f"the CPU kernels do not work on this machine ({found.content.decode()})",
            hint="use --engine torch, and please report this machine's CPU; `codecria doctor` says"
            " where the kernels are kept: without that folder they are tried again",
        )
    return found.level, found.content


def _compiled(target: Target, name: str, say: Say) -> Kept:
    """Kernels of the best level that passes its check, kept under a name where that can be."""
    keeps = kept.place() is not None
    if keeps:
        say("compiling the CPU kernels, once for this machine (some seconds)")
    else:
        say(
            "compiling the CPU kernels (some seconds), each time: no folder can be written to keep"
            " them in; XDG_CACHE_HOME names one"
        )
    failures, lasting = list[str](), True
    found = Kept(None, b"")
    order = list(NEEDS)
    for level in order[order.index(target.level) :]:
        if host_target(level).level != level:
            continue  # the CPU has not got it
        result = _checked(level)
        if isinstance(result, bytes):
            found = Kept(level, result)
            break
        failures.append(f"{level}: {result.reason}")
        lasting = lasting and result.lasting
    reason = "; ".join(failures)
    if found.level is None:
        found = Kept(None, reason.encode())
    elif failures:
        say(f"the CPU kernels of level {found.level} are used ({reason})")
    if keeps and lasting:
        problem = kept.keep(name, found)
        if problem:
            say(f"the CPU kernels cannot be kept and are compiled each time: {problem}")
    return found


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a level's kernels cannot be used, and whether another try would end the same way."""

    reason: str
    lasting: bool


def _checked(level: Level) -> bytes | _Failure:
    """A level's object code, compiled and run by a child process; or what went wrong."""
    # -P: modules of the folder that the user happens to be in are not ours.
    command = [sys.executable, "-P", "-m", "codecria.core.native.check", level]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Failure(f"no result within {CHECK_TIMEOUT_S} s", lasting=False)
    except OSError as error:
        return _Failure(f"{sys.executable} does not start: {error.strerror}", lasting=False)
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = str(-done.returncode)
        return _Failure(f"ended by {name}", lasting=name in _CRASHES)
    if done.returncode == WRONG:
        return _Failure(done.stdout.decode(errors="replace"), lasting=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = (lines or [f"exit status {done.returncode}"])[-1]
        return _Failure(reason, lasting=False)
    return done.stdout


@cache
def _source_digest() -> str:
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _key(target: Target) -> str:
    """What tells object files of one level apart."""
    import llvmlite.binding as llvm

    parts = (_source_digest(), llvm.llvm_version_info, target)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


_ENGINES: list[Any] = []  # what loaded code lives in, kept for the process's life


def _linked(level: Level, code: bytes) -> Kernels:
    """Put an object file into this process."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    if hasattr(os, "sched_yield"):  # the one function that kernels call
        address = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
        llvm.add_symbol("sched_yield", address)
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)

    def function(name: str, arguments: int) -> Any:
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
        return kind(engine.get_function_address(name))

    pack = {
        (kind, source): function(f"pack_{kind}_{source}", 5)
        for kind in GROUP_BYTES
        for source in ("float32", "uint16", "float16")
        if level != "plain"
    }
    return Kernels(
        level=level,
        forward=function("forward", 3),
        embed=function("embed", 1),
        help=function("help", 3),
        round_bf16=function("round_bf16", 3),
        pack=pack,
    )


def from_object(code: bytes, level: Level) -> Kernels:
    """Kernels of an object file that was not checked, as check.py needs them."""
    return _linked(level, code)
