"""Compiled once, kept, loaded without a compiler; and what happens where that cannot be."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from codecria.core.native import kept, kernels
from codecria.core.native.compile import assembly, object_code
from codecria.core.native.cpu import NEEDS, Level, Target, host_target
from codecria.core.native.kept import Kept
from codecria.core.native.kernels import KernelError
from codecria.core.sandbox.bwrap import bwrap_problem
from codecria.data.errors import UserError

LOAD = """
import sys
from codecria.core.native import kernels
print(kernels.load(level={level!r}, say=lambda line: print("said:", line)).level)
unwanted = {{"torch", "numba", "sentencepiece", "pyarrow", "codecria.core.native.emit"}}
print(sorted(unwanted & set(sys.modules)))
"""


def load(level: str = "avx2", *, folder: Path | None = None, **variables: str) -> list[str]:
    """The lines a new process prints that loads the kernels, in a folder and an environment."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD.format(level=level)],
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def broken_by(program: str, folder: Path) -> dict[str, str]:
    """An environment in which the child that checks kernels runs a program first."""
    lines = ["import os, signal, sys", "if 'codecria.core.native.check' in sys.orig_argv:"]
    lines += [f"    {line}" for line in program.splitlines()]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("level", ["neon-dot", "plain"])
def test_kernels_are_compiled_for_aarch64_on_any_machine(level: Level) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    features = ",".join(f"+{flag}" for flag in NEEDS[level])
    target = Target(level, "aarch64-unknown-linux-gnu", "generic", features)
    code = object_code(target)
    assert int.from_bytes(code[18:20], "little") == 183  # ELF's number of AArch64
    assert ("neon.sdot" in assembly(target)) == (level == "neon-dot")


@pytest.mark.slow
def test_kernels_are_compiled_once_and_then_loaded_without_a_compiler(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    first, second = load(**cache), load(**cache)
    assert first[0] == "said: compiling the CPU kernels, once for this machine (some seconds)"
    assert second == [first[1], "[]"]
    (one,) = (tmp_path / "codecria" / "kernels").iterdir()
    content = bytearray(one.read_bytes())
    content[len(content) // 2] ^= 1
    one.write_bytes(content)
    assert load(**cache) == first, "a damaged file was run"
    assert load(**cache) == second


@pytest.mark.slow
def test_without_a_cache_to_write_they_lie_among_the_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    for name in ("random", "queue", "types", "numpy", "codecria"):  # the user's, and not ours
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "queue.py"), "TMPDIR": str(tmp_path / "shared")}
    first, second = (load("plain", folder=tmp_path, **environment) for _ in range(2))
    assert second == ["plain", "[]"]
    said = "said: compiling the CPU kernels, once for this machine (some seconds)"
    assert first == [said, *second]


def test_a_folder_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    private = tmp_path / f"codecria-kernels-{os.getuid()}"
    assert kept.place() == private
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not kept.keep("x.o", Kept("plain", b"code"))
    assert kept.read("x.o") == ("plain", b"code")
    private.chmod(0o777)
    assert kept.place() is None
    assert kept.read("x.o") is None
    assert "/proc/nowhere" in kept.keep("x.o", Kept("plain", b"code"))


CRASHES = {
    "a crash": ("os.kill(os.getpid(), signal.SIGILL)", "plain: ended by SIGILL", True),
    "wrong scores": (
        "import codecria.core.native.check as check\n"
        "check.TYPES['float32'] = ('float32', 0.0)\n"
        "os._exit(check.main('plain'))",
        "plain: float32 with 1 threads is off by",
        True,
    ),
    "no memory": ("os.kill(os.getpid(), signal.SIGKILL)", "plain: ended by SIGKILL", False),
    "a compiler that fails": (
        "os.write(2, b'LLVM ERROR: out of luck\\n'); os._exit(1)",
        "out of luck",
        False,
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "wrong scores" else n for n in CRASHES],
)
def test_a_fault_in_the_kernels_ends_a_child_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, reason, lasting = CRASHES[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variable, value in broken_by(program, tmp_path).items():
        monkeypatch.setenv(variable, value)
    for is_first in (True, False):
        said: list[str] = []
        with pytest.raises(KernelError, match=re.escape(reason)):
            kernels._object_for(host_target("plain"), said.append)
        assert len(said) == (1 if is_first or not lasting else 0), "what lasts is found out once"


def test_a_run_goes_on_with_pytorch_where_kernels_crash(tmp_path: Path, small_model: Path) -> None:
    environment = broken_by(CRASHES["a crash"][0], tmp_path)
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "NATIVE_KERNELS_LEVEL": "plain"}
    texts, said = [], []
    for variables in (environment, {}):
        arguments = ["generate", "-m", str(small_model), "--device", "cpu", "--max-tokens", "4"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "codecria.cli", *arguments, "def f("],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        texts.append(done.stdout)
        said.append(done.stderr.splitlines())
    assert texts[0] == texts[1]
    [compiling, line] = said[0]
    assert "compiling the CPU kernels" in compiling
    assert line.endswith(
        "PyTorch computes: the CPU kernels do not work on this machine (plain: ended by SIGILL)"
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(bwrap_problem()), reason=bwrap_problem())
def test_a_first_start_where_nothing_can_be_written_says_one_line(small_model: Path) -> None:
    program = "from codecria.cli.app import run; run()"
    command = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    command += ["--setenv", "XDG_CACHE_HOME", "/nowhere", "--setenv", "HOME", "/nowhere"]
    command += ["--setenv", "NATIVE_KERNELS_LEVEL", "plain"]
    command += ["--remount-ro", "/dev", sys.executable, "-P", "-c", program]
    command += ["generate", "-m", str(small_model), "--device", "cpu", "--max-tokens", "4", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout
    [line] = done.stderr.splitlines()
    assert "compiling the CPU kernels (some seconds), each time" in line


def test_the_sources_that_the_kept_file_depends_on_are_all_named() -> None:
    folder = Path(kernels.__file__).parent
    writers = {p.name for p in folder.glob("*.py") if "from .emit import" in p.read_text()}
    assert writers < set(kernels.SOURCES)
    assert all((folder / name).is_file() for name in kernels.SOURCES)


def test_a_level_is_the_best_that_the_cpu_has_and_no_better_than_asked_for() -> None:
    order = list(NEEDS)
    best = host_target("avx512-bf16").level
    assert host_target("plain").level == "plain"
    for level in order:
        assert order.index(host_target(level).level) >= max(order.index(level), order.index(best))
    with pytest.raises(UserError, match="no kernel level 'mmx'"):
        host_target("mmx")


def test_the_environment_forces_the_code_of_a_lesser_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATIVE_KERNELS_LEVEL", "plain")
    assert host_target().level == "plain"


def test_kept_files_are_the_users_own_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(kept.MOST_FILES + 3):
        assert not kept.keep(f"{number}.o", Kept("plain", b"code"))
    folder = tmp_path / "codecria" / "kernels"
    assert len(list(folder.iterdir())) == kept.MOST_FILES
    last = folder / f"{kept.MOST_FILES + 2}.o"
    assert kept.read(last.name) == ("plain", b"code")
    assert not stat.S_IMODE(last.stat().st_mode) & 0o022, "others could change code that is run"
    assert not kept.keep("none.o", Kept(None, b"why"))
    assert kept.read("none.o") == (None, b"why")
