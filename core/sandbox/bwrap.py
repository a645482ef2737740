"""The bwrap tier: bubblewrap's namespaces around a server.

In bubblewrap the server sees the system's libraries and toolchains, its own source, and folders in
memory; no network, no process but its own, no home. Inside, each program also
confines itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from . import jail, languages

BOXES = "/boxes"  # in memory, within the namespace
CODE = "/codecria"
PACKAGES = "/packages"  # that programs may import
PROBE_S = 10.0
# What a system is made of; links such as /bin are bound as what they lead to.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/sbin")
_FEW = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/openssl.cnf")


def interpreter() -> str:
    """The Python that runs servers: the real one where this is a virtual environment's."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def bwrap_argv(
    *,
    boxes_bytes: int,
    files: bool,
    packages: Sequence[tuple[str, Path]] = (),
    readable: Sequence[Path] = (),
) -> list[str]:
    """bubblewrap's arguments, up to the program to run.

    Args:
        boxes_bytes: of the folder in memory where boxes are made.
        files: whether Landlock governs files inside. Where it does not, nothing shows processes,
            whose memory could be written to otherwise.
        packages: see `packages.Allowed.files`.
        readable: folders that are seen at their own paths.
    """
    argv = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent"]
    argv += ["--new-session", "--cap-drop", "ALL", "--hostname", "sandbox", "--dev", "/dev"]
    argv += ["--cap-add", "CAP_SYS_ADMIN"]  # to mount the boxes, and then given up
    for path in ("/etc", "/tmp", "/dev/shm"):
        argv += ["--size", str(boxes_bytes), "--tmpfs", path]
    for path in _SYSTEM:
        argv += ["--ro-bind-try", path, path]
    prefixes = {str(Path(interpreter()).parent.parent), sys.base_prefix}
    for language in languages.LANGUAGES.values():
        tools = languages.toolchain(language.name).paths.values()
        prefixes |= {str(Path(path).parent.parent) for path in tools}
    apart = (prefix for prefix in sorted(prefixes) if not _below(prefix, _SYSTEM))
    for path in (*_FEW, *languages.readable_beside(), *apart):
        argv += ["--ro-bind-try", path, path]
    if files:
        argv += ["--proc", "/proc"]
    argv += ["--ro-bind", str(Path(__file__).parent), CODE]
    for name, real in packages:
        argv += ["--ro-bind", str(real), f"{PACKAGES}/{name}"]
    for folder in readable:
        argv += ["--ro-bind", str(folder), str(folder)]
    argv += ["--size", str(boxes_bytes), "--tmpfs", BOXES, "--chdir", "/"]
    return [*argv, "--"]


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


@lru_cache(maxsize=1)
def _probe(search: str | None) -> str:
    where = shutil.which("bwrap", path=search)
    if where is None:
        return "bubblewrap is not installed (on Debian and Ubuntu: apt install bubblewrap)"
    argv = bwrap_argv(boxes_bytes=1 << 20, files=True)
    try:
        done = subprocess.run(
            [where, *argv[1:], interpreter(), "-I", "-S", "-c", "pass"],
            capture_output=True, timeout=PROBE_S, check=False, env={}, text=True, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run here: {error}"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return f"bubblewrap does not run here: {lines[-1] if lines else 'no reason given'}"
    return ""


def bwrap_problem() -> str:
    """Why bubblewrap cannot be used here, empty where it can; tried once."""
    if sys.platform != "linux":
        return f"bubblewrap needs Linux, this is {sys.platform}"
    if not jail.filters():
        return "no table of system calls for this machine"
    return _probe(os.environ.get("PATH"))
