"""The committed completions are what Typer makes, and real shells complete with them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "completions"
NAMES = ("codecria.bash", "_codecria", "codecria.fish")
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TERM": "dumb"}


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    if shutil.which("codecria", path=str(BIN)) is None:
        pytest.skip("the codecria command is not beside this interpreter")
    return found


def test_the_committed_files_are_what_regenerating_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "regenerate.py", tmp_path], check=True)
    for name in NAMES:
        assert (FOLDER / name).read_text() == (tmp_path / name).read_text(), (
            f"{name} is stale: run python completions/regenerate.py"
        )


def test_zsh_finds_its_tag_in_the_first_line_and_completes_at_the_first_tab() -> None:
    lines = (FOLDER / "_codecria").read_text().splitlines()
    assert lines[0] == "#compdef codecria"
    assert lines[-1] == '_codecria_completion "$@"'


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["codecria", "gen"], {"generate"}),
        (["codecria", ""], {"prepare-data", "pretrain", "generate", "inspect", "doctor"}),
        (["codecria", "generate", "--max"], {"--max-tokens"}),
        (["codecria", "recipes", "s"], {"show"}),
    ],
)
def test_bash_completes_verbs_and_options(words: list[str], wanted: set[str]) -> None:
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source '{FOLDER / 'codecria.bash'}'; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1};"
        ' _codecria_completion codecria; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    told = subprocess.run(
        [shell("bash"), "--norc", "--noprofile", "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert wanted <= set(told.stdout.split()), told.stderr


def test_bash_completes_at_a_tab_typed_in_a_terminal() -> None:
    terminal = pexpect.spawn(
        shell("bash"), ["--norc", "--noprofile"], env=environment(), encoding="utf-8", timeout=20
    )
    terminal.sendline(f"PS1='ready> '; source '{FOLDER / 'codecria.bash'}'; echo loa''ded")
    terminal.expect_exact("loaded")
    terminal.send("codecria doc\t")
    terminal.expect_exact("codecria doctor")
    terminal.sendcontrol("c")
    terminal.close(force=True)


def test_fish_completes_verbs() -> None:
    program = f"source '{FOLDER / 'codecria.fish'}'; complete -C 'codecria gen'"
    told = subprocess.run(
        [shell("fish"), "--no-config", "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith("generate")


def test_zsh_completes_at_the_first_tab_from_its_function_path() -> None:
    terminal = pexpect.spawn(shell("zsh"), ["-f"], env=environment(), encoding="utf-8", timeout=60)
    terminal.sendline(f"fpath=('{FOLDER}' $fpath); autoload -Uz compinit; compinit -u -D")
    terminal.sendline("echo loa''ded")
    terminal.expect_exact("loaded")
    terminal.send("codecria doc\t")
    terminal.expect_exact("codecria doctor")
    terminal.sendcontrol("c")
    terminal.close(force=True)
