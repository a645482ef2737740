"""The way around Typer: it understands what Typer would, or leaves it to Typer."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecria.cli import app as cli
from codecria.cli import quick
from codecria.cli.generate.command import generate
from codecria.cli.generate.job import Job
from codecria.cli.generate.local import CACHE_BYTES
from codecria.core.inference.loading import Compute

SERVER = ("--server", "http://127.0.0.1:1")


@pytest.fixture(scope="module")
def verb() -> Any:
    """The verb as Typer knows it."""
    return typer.main.get_command(cli.app).commands["generate"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No variables and no config files."""
    for name in [name for name in os.environ if name.startswith("CODECRIA_")]:
        monkeypatch.delenv(name)
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(empty))
    monkeypatch.chdir(empty)


def test_the_options_are_the_verbs(verb: Any) -> None:
    known = {spelled: parameter for parameter in verb.params for spelled in parameter.opts}
    for name, (argument, kind) in quick.OPTIONS.items():
        parameter = known[name]
        if argument == "quiet":
            continue
        assert parameter.name == argument
        assert (kind is bool) == bool(parameter.is_flag), name
        assert (kind is list) == bool(parameter.multiple), name
        known_as, info = parameter.type_descriptor, parameter.type_descriptor.parameter_info
        least = kind.start if isinstance(kind, range) else None
        checked = (info.max, info.parser, info.callback)
        assert all(check is None for check in checked), f"{name} has rules, which are Typer's"
        assert info.min == least, name
        if isinstance(kind, range):
            assert known_as.annotation is int, name
        elif isinstance(kind, tuple):
            assert tuple(known_as.choices) == kind, name
        elif kind is not list:
            assert known_as.annotation is kind, name


def test_the_defaults_are_the_verbs() -> None:
    defaults = {n: p.default for n, p in inspect.signature(generate).parameters.items()}
    assert defaults["cache_disk"] == CACHE_BYTES
    for field in fields(Compute):
        if field.name != "sharing":
            assert field.default == defaults[field.name], field.name
    assert defaults["marker"] == quick.MARKER
    for field in fields(Job):
        if field.default is MISSING:
            continue
        expected = defaults["stop" if field.name == "stops" else field.name]
        expected = {"stop": (), "draft": True}.get(field.name, expected)
        assert field.default == expected, field.name


TEXTS = st.text(st.sampled_from("ab -=1."), max_size=4)
WORDS = st.one_of(
    st.sampled_from([*quick.OPTIONS, "--prefix-share", "--dry-run", "-", "--", "-nt"]), TEXTS
)
VALUES = st.sampled_from(["1", "-1", "0.5", "psm", "left", "x.py", "", "--file", "1e3", "-2.5"])
LINES = st.lists(st.one_of(WORDS, VALUES, st.builds("{}={}".format, WORDS, VALUES)), max_size=6)


@given(LINES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_understood_is_what_typer_understands(verb: Any, words: list[str]) -> None:
    line = [*SERVER, *words]
    found = quick.understood(["generate", *line], {})
    if found is None:
        return
    with verb.make_context("generate", list(line)) as context:
        wanted = context.params
    found.pop("quiet", None)
    for name, value in found.items():
        assert wanted[name] == value, (name, line)
    for name, parameter in {p.name: p for p in verb.params}.items():
        if name not in found and name in wanted:
            assert wanted[name] == parameter.default, name


def test_plain_lines_are_understood() -> None:
    for words in (
        ("def f(",),
        ("--file", "x.py", "--at", "3:1", "--diff"),
        ("-n", "2", "-t", "0.8", "--seed=7", "--stop", "a", "--stop=b", "-"),
        ("--chat", "What?", "-q", "--json"),
    ):
        assert quick.understood(["generate", *SERVER, *words], {}) is not None, words
        assert quick.understood(["generate", "-m", "x", *words], {}) is not None, words
    assert quick.understood(["generate", "x"], {"CODECRIA_MODEL": "m"}) == {
        "prompt": "x", "model": Path("m")
    }  # fmt: skip


def test_the_rest_is_typers(tmp_path: Path) -> None:
    line = ["generate", *SERVER, "x"]
    assert quick.understood(line, {"PATH": "/bin"}) is not None
    for arguments in (
        [],
        ["generate", "x"],
        ["serve", *SERVER],
        [*line, "y"],
        [*line, "--help"],
        [*line, "--top-k", "-3"],
        [*line, "--adapter", "x"],
        [*line, "--threads", "0"],
        [*line, "--dry-run"],
        [*line, "--seed", "x"],
        [*line, "--seed", "1", "--seed", "2"],
        [*line, "--form", "x"],
        [*line, "--json=1"],
        [*line, "--out"],
        [*line, "--out", "--json"],
        ["--debug", *line],
    ):
        assert quick.understood(arguments, {}) is None, arguments
    for environment in (
        {"CODECRIA_GENERATE_SEED": "1"},
        {"CODECRIA_SERVE_HOST": "x"},
        {"_CODECRIA_COMPLETE": "x"},
        {"WORLD_SIZE": "2"},
    ):
        assert quick.understood(line, environment) is None, environment
    found = quick.understood(line, {"CODECRIA_SERVE_KEY": "k"})
    assert found is not None
    assert found["key"] == "k"
    Path("codecria.toml").write_text("")
    assert quick.understood(line, {}) is None


def test_a_quick_call_loads_no_parser_and_no_http_library() -> None:
    code = (
        "import sys; from codecria.cli import quick\n"
        "try: quick.main()\n"
        "finally: print(*sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, "generate", *SERVER, "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert told.stderr.startswith("error: no answer from http://127.0.0.1:1: ")
    loaded = set(told.stdout.split())
    assert "codecria.cli.generate.remote" in loaded
    assert not loaded & {"typer", "click", "rich", "http.client", "email", "ssl", "numpy", "torch"}


def test_a_plain_local_call_loads_no_parser_and_writes_what_typer_does(small_model: Path) -> None:
    code = (
        "import sys; from codecria.cli import quick\n"
        "try: quick.main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    line = ["generate", "-m", str(small_model), "--max-tokens", "8", "-t", "0.7", "--device", "cpu"]

    def told(*more: str) -> tuple[str, set[str]]:
        done = subprocess.run(
            [sys.executable, "-c", code, *line, *more, "def f("],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, set(done.stderr.split())

    text, loaded = told()
    assert not loaded & {"typer", "click", "rich", "torch"}
    slow_text, slow = told("--prefix-share", "0.75")
    assert "typer" in slow
    assert text == slow_text
