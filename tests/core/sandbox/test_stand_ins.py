"""Commands of version managers and compiler caches: the program behind one, or why it has none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from codecria.core.sandbox import languages
from codecria.core.sandbox.stand_ins import program_behind

# What rustup says for a user without a toolchain, and the first words of a shim of nodenv and asdf.
NO_TOOLCHAIN = "rustup could not choose a version of rustc to run, because one wasn't specified"
SHIMS = {
    "nodenv": '#!/usr/bin/env bash\nset -e\nprogram="${{0##*/}}"\nexec "{}" exec "$program" "$@"\n',
    "asdf": '#!/usr/bin/env bash\n# asdf-plugin: nodejs 20.1.0\nexec {} exec "node" "$@"\n',
}


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def rustup(folder: Path, *lines: str) -> str:
    """A PATH on which rustc is a link to a rustup that runs some lines."""
    script(folder / "rustup", *lines)
    (folder / "rustc").symlink_to("rustup")
    return str(folder)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Without what is known of this machine's tools, before and after."""
    for known in (languages.toolchain, languages._started):
        known.cache_clear()
    yield
    for known in (languages.toolchain, languages._started):
        known.cache_clear()


def test_rustup_is_asked_for_the_compiler(tmp_path: Path) -> None:
    real = script(tmp_path / "toolchains" / "stable" / "bin" / "rustc")
    search = rustup(tmp_path / "bin", f'[ "$1 $2" = "which rustc" ] && echo {real}')
    assert program_behind("rustc", search) == (str(real), "")


def test_rustup_without_a_toolchain_is_no_compiler(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = rustup(tmp_path, f'echo "error: {NO_TOOLCHAIN}" >&2', "echo more >&2", "exit 1")
    script(tmp_path / "cc")
    monkeypatch.setenv("PATH", search)
    why = languages.missing("rust")
    assert why == f"Rust needs rustc, rustup's, which has no program for it: {NO_TOOLCHAIN}"
    assert languages.version("rust") is None


@pytest.mark.parametrize("name", SHIMS)
def test_a_shim_is_asked_for_the_program(name: str, tmp_path: Path) -> None:
    real = script(tmp_path / "versions" / "20" / "bin" / "node")
    manager = script(tmp_path / "libexec" / name, f'[ "$1" = which ] && echo {real}')
    script(tmp_path / "shims" / "node").write_text(SHIMS[name].format(manager))
    assert program_behind("node", str(tmp_path / "shims")) == (str(real), "")
    manager.unlink()
    path, why = program_behind("node", str(tmp_path / "shims"))
    assert (path, why) == ("", f"{name}'s, which does not answer")


def test_a_cache_of_a_compiler_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "ccache")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "g++").symlink_to("../bin/ccache")
    assert program_behind("g++", str(tmp_path / "lib")) == ("", "not installed here")
    real = script(tmp_path / "bin" / "g++")
    search = os.pathsep.join(str(tmp_path / folder) for folder in ("lib", "bin"))
    assert program_behind("g++", search) == (str(real), "")


def test_a_command_that_starts_nothing_is_not_ready(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "java", "echo 'Unable to locate a Java Runtime.' >&2", "exit 1")
    script(tmp_path / "javac")
    monkeypatch.setenv("PATH", str(tmp_path))
    why = languages.missing("java")
    assert why == "Java needs java, which does not start here: Unable to locate a Java Runtime."
    (tmp_path / "javac").unlink()
    (tmp_path / "java").unlink()
    languages.toolchain.cache_clear()
    assert languages.missing("java") == "Java needs java and javac, not installed here"
