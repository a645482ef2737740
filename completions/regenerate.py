"""Write the shell completions anew, after a change of how Typer makes them.

    python completions/regenerate.py [FOLDER]

What completes is asked of codecria itself at every TAB, so a new verb or option needs no new files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILES = {"bash": "codecria.bash", "zsh": "_codecria", "fish": "codecria.fish"}


def script(shell: str) -> str:
    """The completion script of a shell, as Typer prints it."""
    # Typer would otherwise look at the parent process to see which shell it talks to.
    chosen = {"_CODECRIA_COMPLETE": f"source_{shell}"}
    quiet = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    told = subprocess.run(
        [sys.executable, "-m", "codecria.cli"],
        env=os.environ | chosen | quiet,
        capture_output=True,
        text=True,
        check=True,
    )
    text = told.stdout.strip() + "\n"
    if shell == "zsh":
        # A file on $fpath is the body of the function at the first TAB: defining is not enough.
        text += '\n_codecria_completion "$@"\n'
    return text


def main() -> None:
    """Write one file a shell."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    for shell, name in FILES.items():
        (folder / name).write_text(script(shell), encoding="utf-8")


if __name__ == "__main__":
    main()
