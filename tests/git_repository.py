"""git for tests, whatever the user's own settings are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

WHO = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str, day: int = 1) -> str:
    """What a git command says in a folder; commits are of noon on that day of March 2026."""
    stamp = f"2026-03-{day:02d}T12:00:00+00:00"
    names = {"GIT_AUTHOR_DATE": stamp, "GIT_COMMITTER_DATE": stamp, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", "-C", str(folder), *WHO, *words],
        env=os.environ | names,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()
