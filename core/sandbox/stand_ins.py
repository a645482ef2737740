"""The program behind a command: version managers and compiler caches put their own in its place.

A manager's command finds the program by the user's settings, which the sandbox hides. So it is
asked out here, and the program itself is what runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ANSWER_S = 20.0
HEAD_BYTES = 4096  # of a script; those of managers are shorter
# Commands that are links to a manager, by the name of its file; each knows `which COMMAND`.
_MANAGERS = {"rustup": "rustup", "mise": "mise", "volta-shim": "volta"}
# pyenv, nodenv, goenv, jenv and asdf write scripts, which end with `exec MANAGER exec COMMAND`.
_SCRIPT = re.compile(rb'^exec "?((?:[^\s"]*/)?(?:\w+env|asdf))"? exec\b', re.MULTILINE)
_CACHES = ("ccache", "sccache", "distcc", "icecc")  # of compilers, found first on PATH


def program_behind(command: str, search: str | None = None) -> tuple[str, str]:
    """The program that a command starts, and why there is none; one of the two is empty.

    Args:
        command: its name, such as "rustc".
        search: PATH; None for this process's.
    """
    folders = (os.environ.get("PATH", os.defpath) if search is None else search).split(os.pathsep)
    found = [path for folder in folders if (path := shutil.which(command, path=folder))]
    found = [path for path in found if Path(path).resolve().name not in _CACHES]
    if not found:
        return "", "not installed here"
    real = Path(found[0]).resolve()
    if real.name == "snap":
        return "", "snap's, which the sandbox cannot run"
    manager = _manager(real, search)
    return _asked(manager, command) if manager else (str(real), "")


def _manager(path: Path, search: str | None) -> str:
    """The manager that a command's file stands in for; empty where it is the program itself."""
    if name := _MANAGERS.get(path.name):
        return str(path.with_name(name))
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return ""
    written = _SCRIPT.search(head) if head.startswith(b"#!") else None
    if not written:
        return ""
    named = os.fsdecode(written[1])
    return shutil.which(named, path=search) or named


def _asked(manager: str, command: str) -> tuple[str, str]:
    """The program that a manager has for a command, and why it has none; one is empty."""
    name = Path(manager).name
    try:
        done = subprocess.run(
            [manager, "which", command],
            capture_output=True, text=True, errors="replace", timeout=ANSWER_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "", f"{name}'s, which does not answer"
    found = Path(done.stdout.strip())
    if done.returncode == 0 and found.is_file():
        return str(found.resolve()), ""
    why = (done.stderr.strip() or done.stdout.strip()).split("\n", 1)[0].removeprefix("error: ")
    return "", f"{name}'s, which has no program for it: {why}"
