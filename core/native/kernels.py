"""The kernels as this machine has them: compiled once, kept in the user's cache, loaded quickly.

An object file is kept for each version of the kernels' source, of LLVM and of the CPU's level:

    $XDG_CACHE_HOME/codecria/kernels/LEVEL-DIGEST.o       (by default ~/.cache/codecria/kernels)

Loading takes llvmlite alone and some 30 ms. Where nothing can be written, every process compiles.
Before an object is used for the first time a child process runs it (check.py): a crash of a kernel
ends the child, and the next lower level is tried.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.files import atomic_write

from .cpu import NEEDS, Level, Target, host_target
from .packing import GROUP_BYTES, PackedKind

# What object code depends on. compile.py and the modules that write kernels are in no other digest.
SOURCES = (
    "attention.py", "compile.py", "cpu.py", "emit.py", "fields.py", "lanes.py", "packer.py",
    "packing.py", "products.py", "record.py", "stages.py",
)  # fmt: skip
CHECK_TIMEOUT_S = 120
_DIGEST = 32  # bytes at the end of a file: a damaged one is not run
Say = Callable[[str], None]


class KernelError(UserError):
    """There are no kernels for this machine; PyTorch can do what they would have done."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Loaded kernels.

    Attributes:
        level: the instructions they use, see cpu.py.
        forward: (record's address, first stage, last stage): of one step, see stages.py.
        help: (record's address, helper, looks): a helper thread's work.
        round_bf16: (float32 weights, number in sixteens, bfloat16 weights).
        pack: by the packed kind and numpy's name of the weights' type: see packer.py. The plain
            level has none.
    """

    level: Level
    forward: Callable[[int, int, int], None]
    help: Callable[[int, int, int], None]
    round_bf16: Callable[[int, int, int], None]
    pack: Mapping[tuple[PackedKind, str], Callable[[int, int, int, int, int], None]]


def cache_folder() -> Path:
    """Where object files are kept: in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "codecria" / "kernels"


def load(*, level: str | None = None, say: Say = lambda _: None) -> Kernels:
    """The kernels for this machine, compiled if that was not done before.

    Args:
        level: the best level to use, see cpu.py; None takes the CPU's.
        say: gets one sentence where compiling takes time, or its result cannot be kept.

    Raises:
        KernelError: llvmlite is missing, or no level's kernels passed their check.
        UserError: there is no such level.
    """
    try:
        import llvmlite.binding  # noqa: F401
    except (ImportError, OSError) as error:
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
    """A checked object file for a target or, where it fails, for a lower level; and that level."""
    path = cache_folder() / f"{target.level}-{_key(target)}.o"
    found = _read(path)
    if found is not None:
        return found
    say("compiling the CPU kernels, once for this machine (some seconds)")
    from .compile import object_code

    order = list(NEEDS)
    for level in order[order.index(target.level) :]:
        lesser = target if level == target.level else host_target(level)
        if lesser.level != level:
            continue  # the CPU has not got it
        code = object_code(lesser)
        problem = _problem(level, code)
        if not problem:
            _keep(path, level, code, say)
            return level, code
        say(f"the CPU kernels at level {level} failed their check: {problem}")
    raise KernelError(
        "the CPU kernels do not work on this machine",
        hint="use --engine torch, and please report this machine's CPU",
    )


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


def _read(path: Path) -> tuple[Level, bytes] | None:
    """A kept object file and its level; None where there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        return None
    name, _, code = body.partition(b"\n")
    level: Any = name.decode()
    return level, code


def _keep(path: Path, level: Level, code: bytes, say: Say) -> None:
    body = level.encode() + b"\n" + code
    try:
        atomic_write(path, body + hashlib.sha256(body).digest())
    except (UserError, OSError) as error:
        say(f"the CPU kernels cannot be kept and are compiled each time: {error}")


def _problem(level: Level, code: bytes) -> str:
    """Run an object file's kernels in a child process; what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(prefix="codecria-") as folder:
        path = Path(folder) / "kernels.o"
        path.write_bytes(code)
        command = [sys.executable, "-m", "codecria.core.native.check", level, str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no result within {CHECK_TIMEOUT_S} s"
    if done.returncode < 0:
        return f"stopped by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines or [f"exit status {done.returncode}"])[-1]


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
        help=function("help", 3),
        round_bf16=function("round_bf16", 3),
        pack=pack,
    )


def from_object(code: bytes, level: Level) -> Kernels:
    """Kernels of an object file that was not checked, as check.py needs them."""
    return _linked(level, code)
