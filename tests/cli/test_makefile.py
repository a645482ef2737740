"""The Makefile of docs/command-line.md: it runs, runs again for nothing, and follows an edit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "command-line.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


def documented() -> str:
    found = re.search(
        r"test_makefile.py.*?```make\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S
    )
    assert found
    return found[1]


@pytest.fixture
def project(warm_python: str, tmp_path: Path) -> Path:
    """A folder of sources with the documented Makefile, and a codecria command on its PATH."""
    (tmp_path / "src").mkdir()
    for module in ("json/decoder.py", "json/encoder.py", "json/scanner.py", "shlex.py"):
        source = Path(os.__file__).parent / module
        (tmp_path / "src" / source.name).write_text(source.read_text(encoding="utf-8"))
    (tmp_path / "hello.prompt").write_text("def ")
    (tmp_path / "Makefile").write_text(documented())
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "codecria"
    command.write_text(f'#!/bin/sh\nexec "{warm_python}" -m codecria.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def make(project: Path) -> subprocess.CompletedProcess[str]:
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    seldom = {"CODECRIA_PRETRAIN_EVAL_EVERY": "20", "CODECRIA_PRETRAIN_EVAL_ROWS": "1"}
    return subprocess.run(
        ["make"],
        cwd=project,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | seldom,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_documented_makefile_builds_once_after_an_edit_and_after_a_failure(
    project: Path,
) -> None:
    first = make(project)
    assert first.returncode == 0, first.stderr
    assert (project / "hello.completed").is_file()
    again = make(project)
    assert (again.returncode, again.stdout.count("codecria")) == (0, 0), again.stdout
    source = project / "src" / "scanner.py"
    # A touched source that says the same: the shards are the same, and make is content after it.
    os.utime(source)
    assert make(project).returncode == 0
    assert make(project).stdout.count("codecria") == 0
    source.write_text(source.read_text() + "\n\ndef added(x):\n    return x + 1\n")
    edited = make(project)
    assert edited.returncode == 0, edited.stderr
    assert edited.stdout.count("codecria") == 3
    assert make(project).stdout.count("codecria") == 0
    (project / "hello.prompt").write_bytes(b"\xff\xfe")
    failed = make(project)
    assert failed.returncode != 0
    assert make(project).returncode != 0, "a failed target must not count as made"
