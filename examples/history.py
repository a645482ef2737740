"""Make a git history out of a package: most of each module first, the rest in later commits.

A released package comes without its history. This one is made up, but its code is real: the last
statements of each module are added by later commits, so a model can be asked for them.

    python examples/history.py PACKAGE_FOLDER NEW_REPOSITORY

Where several releases are at hand, each folder becomes a commit, in the order given:

    pip download --no-deps --no-binary :all: PACKAGE==1.0      (and so on; unpack each)
    python examples/history.py --releases NEW_REPOSITORY PACKAGE-1.0 PACKAGE-1.1 PACKAGE-1.2
"""

import ast
import os
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

COMMITS = 5  # the first holds most of the code
FIRST = 0.7  # of each module's statements


def versions(text: str) -> list[str]:
    """A module as each commit has it: cut after whole statements."""
    lines = text.splitlines(keepends=True)
    ends = [node.end_lineno or 0 for node in ast.parse(text).body] or [0]
    found = []
    for n in range(COMMITS):
        share = FIRST + (1 - FIRST) * n / (COMMITS - 1)
        last = ends[max(0, round(share * len(ends)) - 1)]
        found.append("".join(lines[:last] if n < COMMITS - 1 else lines))
    return found


def git(folder: Path, day: int, *words: str) -> None:
    """Run git with a made-up author and time, and without the user's settings."""
    stamp = (date(2026, 1, 1) + timedelta(days=day - 1)).isoformat() + "T12:00:00+00:00"
    identity = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (
        ("NAME", "demo"), ("EMAIL", "demo@example.org"), ("DATE", stamp))}  # fmt: skip
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(
        ["git", "-C", str(folder), *words], env=os.environ | identity | settings, check=True
    )


def releases(repository: Path, folders: list[Path]) -> None:
    """Write a repository whose commits are these folders, unless it is there."""
    if (repository / ".git").is_dir():
        return
    repository.mkdir(parents=True)
    git(repository, 1, "init", "-q", "-b", "main")
    for day, folder in enumerate(folders, start=1):
        for old in repository.iterdir():
            if old.name != ".git":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        skipped = shutil.ignore_patterns(".git", "*.pyc", "__pycache__")
        shutil.copytree(folder, repository, ignore=skipped, symlinks=True, dirs_exist_ok=True)
        git(repository, day, "add", "-A", "-f")
        git(repository, day, "commit", "-q", "--allow-empty", "-m", folder.name)


def main(package: Path, repository: Path) -> None:
    """Write the repository, unless it is there."""
    if (repository / ".git").is_dir():
        return
    modules = {}
    for path in sorted(package.rglob("*.py")):
        modules[path.relative_to(package)] = versions(path.read_text(encoding="utf-8"))
    repository.mkdir(parents=True)
    git(repository, 1, "init", "-q", "-b", "main")
    for n in range(COMMITS):
        for name, texts in modules.items():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_text(texts[n], encoding="utf-8")
        git(repository, n + 1, "add", "-A")
        git(repository, n + 1, "commit", "-q", "--allow-empty", "-m", f"part {n + 1}")


if __name__ == "__main__":
    if sys.argv[1] == "--releases":
        releases(Path(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
