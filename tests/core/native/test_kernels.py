"""Compiled once, kept, loaded without a compiler; and what happens where that cannot be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from codecria.core.native import kernels
from codecria.core.native.cpu import NEEDS, host_target
from codecria.core.native.kernels import KernelError
from codecria.data.errors import UserError

LOAD = """
import sys
from codecria.core.native import kernels
print(kernels.load(level={level!r}, say=lambda line: print("said:", line)).level)
unwanted = {{"torch", "numba", "sentencepiece", "pyarrow", "codecria.core.native.emit"}}
print(sorted(unwanted & set(sys.modules)))
"""


def load(cache: Path, level: str = "avx2", **variables: str) -> list[str]:
    """The lines a new process prints that loads the kernels with its own cache folder."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(level=level)],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_kernels_are_compiled_once_and_then_loaded_without_a_compiler(tmp_path: Path) -> None:
    first, second = load(tmp_path), load(tmp_path)
    assert first[0] == "said: compiling the CPU kernels, once for this machine (some seconds)"
    assert second == [first[1], "[]"]
    (kept,) = (tmp_path / "codecria" / "kernels").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert load(tmp_path) == first, "a damaged file was run"
    assert load(tmp_path) == second


@pytest.mark.slow
def test_without_a_folder_to_write_in_the_kernels_are_compiled_each_time(tmp_path: Path) -> None:
    place = tmp_path / "a file, not a folder"
    place.write_text("")
    said = load(place)
    assert said[1].startswith("said: the CPU kernels cannot be kept and are compiled each time:")
    assert said[2] in NEEDS


def test_an_object_file_that_crashes_never_reaches_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("codecria.core.native.compile.object_code", lambda _: b"not an object")
    said: list[str] = []
    with pytest.raises(KernelError, match="do not work on this machine"):
        kernels._object_for(host_target("plain"), said.append)
    assert said[1].startswith("the CPU kernels at level plain failed their check:")
    assert not any(tmp_path.rglob("*.o"))


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


def test_kept_files_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._keep(kernels.cache_folder() / "x.o", "plain", b"code", lambda _: None)
    path = tmp_path / "codecria" / "kernels" / "x.o"
    assert kernels._read(path) == ("plain", b"code")
    assert not stat.S_IMODE(path.stat().st_mode) & 0o022, "others could change code that is run"
