"""Where option values come from: variables, quoted lists, found config files, near names."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from codecria.cli.app import app, asked_for
from codecria.cli.commands import variables

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., subprocess.CompletedProcess[str]]
PLAN = ("pretrain", "--size", "1m", "--dry-run", "--json")


@pytest.fixture
def codecria(warm_python: str) -> Call:
    """Runs a command line in a process of its own, in a folder, with variables set."""

    def call(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CODECRIA_")}
        return subprocess.run(
            [warm_python, "-m", "codecria.cli", *map(str, arguments)],
            cwd=cwd,
            env=clean | {"XDG_CONFIG_HOME": str(cwd / "config")} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return call


def test_the_verb_that_is_asked_for_is_built_alone_unless_all_are_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def built(*words: str) -> set[str]:
        monkeypatch.setattr(sys, "argv", ["codecria", *words])
        command: Any = typer.main.get_command(asked_for())
        return set(command.commands)

    for name in [name for name in os.environ if name.startswith("CODECRIA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    whole: Any = typer.main.get_command(app)
    assert built("generate", "-m", "x") == {"generate"}
    assert built("evaluate", "humaneval") == {"evaluate"}
    for words in ((), ("generat",), ("help", "fim"), ("--config", "x", "fim"), ("--version",)):
        assert built(*words) == set(whole.commands), words
    (tmp_path / "codecria.toml").write_text("[fim]\nsize = '1m'\n")  # checked against all verbs
    assert built("generate") == set(whole.commands)
    (tmp_path / "codecria.toml").unlink()
    monkeypatch.setenv("CODECRIA_GENERATE_SEED", "1")
    assert built("generate") == set(whole.commands)


def test_every_option_of_every_verb_has_a_variable_named_after_it() -> None:
    names = list(variables(typer.main.get_command(app)))
    assert {
        "CODECRIA_GENERATE_MAX_TOKENS",
        "CODECRIA_PRETRAIN_JSON",
        "CODECRIA_PRETRAIN_SET",
        "CODECRIA_PRETRAIN_COMPILE",
        "CODECRIA_RECIPES_SHOW_JSON",
        "CODECRIA_SELF_INSTRUCT_EXECUTE_WORKERS",
        "CODECRIA_CONFIG",
    } <= set(names)
    assert "CODECRIA_VERSION" not in names


def test_a_variable_sets_the_option_it_is_named_after(codecria: Call, tmp_path: Path) -> None:
    told = codecria(*PLAN[:-1], cwd=tmp_path, CODECRIA_PRETRAIN_JSON="1")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["recipe"] == "pretrain"


def test_a_repeatable_variable_takes_quoted_values_with_spaces(
    codecria: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "no such shards"
    value = shlex.join([f"{folder}=0.5", "other=0.5"])
    told = codecria(
        "pretrain", "--size", "1m", "--out", "run", cwd=tmp_path, CODECRIA_PRETRAIN_DATA=value
    )
    assert str(folder) in told.stderr
    told = codecria(
        "pretrain", "--size", "1m", "--out", "run", cwd=tmp_path, CODECRIA_PRETRAIN_DATA="'open"
    )
    assert told.returncode == 2
    assert "open quote" in told.stderr


def test_an_unknown_variable_is_named_on_stderr_with_the_nearest_known_one(
    codecria: Call, tmp_path: Path
) -> None:
    told = codecria("recipes", "list", cwd=tmp_path, CODECRIA_GENERATE_MAX_TOKEN="3")
    assert told.returncode == 0
    assert "unknown variable CODECRIA_GENERATE_MAX_TOKEN" in told.stderr
    assert "CODECRIA_GENERATE_MAX_TOKENS" in told.stderr


def test_names_of_variables_in_the_docs_exist() -> None:
    import re

    known = set(variables(typer.main.get_command(app)))
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"\bCODECRIA_[A-Z_]+[A-Z]\b", page.read_text(encoding="utf-8"))
    }
    general = {"CODECRIA_LLAMA_TOKENIZER", "CODECRIA_VERB_OPTION"}
    assert {(page, name) for page, name in named if name not in known | general} == set()


def steps(told: subprocess.CompletedProcess[str]) -> Any:
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)["steps"]


def test_config_files_are_found_in_the_working_folder_and_the_users(
    codecria: Call, tmp_path: Path
) -> None:
    (tmp_path / "config" / "codecria").mkdir(parents=True)
    users = tmp_path / "config" / "codecria" / "config.toml"
    users.write_text("[pretrain]\nsteps = 21\njson = true\n")
    assert steps(codecria(*PLAN[:-1], cwd=tmp_path)) == 21
    (tmp_path / "codecria.toml").write_text("[pretrain]\nsteps = 22\n")
    assert steps(codecria(*PLAN[:-1], cwd=tmp_path)) == 22
    assert steps(codecria("--no-config", *PLAN, cwd=tmp_path)) > 22
    named = tmp_path / "named.toml"
    named.write_text("[pretrain]\nsteps = 23\n")
    assert steps(codecria("--config", named, *PLAN, cwd=tmp_path)) == 23


@pytest.mark.parametrize(
    "option", ["sandbox = 'none'", "sandbox-command = 'sh'", "packages = 'numpy'"]
)
def test_a_found_config_file_cannot_weaken_the_sandbox(
    codecria: Call, option: str, tmp_path: Path
) -> None:
    config = tmp_path / "codecria.toml"
    config.write_text(f"[evaluate.humaneval]\n{option}\n")
    told = codecria("recipes", "list", cwd=tmp_path)
    assert told.returncode == 2
    assert "may not set" in told.stderr
    assert codecria("--config", config, "recipes", "list", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["genrate"], "has no verb 'genrate'", "`codecria generate`"),
        (["generate", "--modle", "x"], "has no option --modle", "--model"),
        (["generate", "x"], "there is no model", "--model"),
        (["inspect"], "needs", "codecria inspect --help"),
        (
            ["generate", "--model", "x", "--form", "pms"],
            "is not one of psm, spm",
            "--form psm|--form spm",
        ),
        (
            ["generate", "--model", "x", "--samples", "many"],
            "--samples many is not a whole",
            "--help",
        ),
        (["help", "recipe"], "no verb 'recipe'", "codecria help recipes"),
    ],
)
def test_the_parser_refuses_in_two_lines_the_value_and_what_to_do(
    codecria: Call, arguments: list[str], message: str, hint: str, tmp_path: Path
) -> None:
    told = codecria(*arguments, cwd=tmp_path)
    error, advice = told.stderr.splitlines()
    assert told.returncode == 2
    assert error.startswith("error: ")
    assert message in error
    assert advice.startswith("hint: ")
    assert any(choice in advice for choice in hint.split("|"))


def test_help_of_a_verb_is_the_same_in_both_spellings(codecria: Call, tmp_path: Path) -> None:
    asked = codecria("help", "recipes", "show", cwd=tmp_path)
    assert asked.returncode == 0
    assert asked.stdout == codecria("recipes", "show", "--help", cwd=tmp_path).stdout


def test_quiet_keeps_notes_back_and_leaves_errors(codecria: Call, tmp_path: Path) -> None:
    assert codecria("inspect", "nowhere", "-q", cwd=tmp_path).stderr.startswith("error: ")
