"""A plain `generate --server` command line, read without Typer: a shell call costs milliseconds.

Whatever is not beyond doubt is Typer's: other options, values that are not plain, variables, config
files, and every mistake. So there is one set of rules and messages, and this is a way around the
time that it takes to load them. A test holds OPTIONS against the verb's own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codecria.data.formats.cursor import MARKER

from . import render
from .config import found_files
from .generate.job import Job
from .generate.prompt import Source
from .names import ENV_PREFIX

KEY_VARIABLE = "CODECRIA_SERVE_KEY"
# Options by name: the argument, and what a value is: bool for a switch, list for one that repeats,
# a tuple for a choice.
OPTIONS: dict[str, tuple[str, Any]] = {
    "--server": ("server", str),
    "--key": ("key", str),
    "--prompt-file": ("prompt_file", Path),
    "--file": ("file", Path),
    "--at": ("at", str),
    "--marker": ("marker", str),
    "--prefix": ("prefix", Path),
    "--suffix": ("suffix", Path),
    "--form": ("form", ("psm", "spm")),
    "--truncate": ("truncate", ("off", "left", "window")),
    "--in-place": ("in_place", bool),
    "--diff": ("diff", bool),
    "--echo": ("echo", bool),
    "--heal": ("heal", bool),
    "--chat": ("chat", bool),
    "--system": ("system", str),
    "--refuse-tags": ("refuse_tags", bool),
    "--max-tokens": ("max_tokens", int),
    "--temperature": ("temperature", float),
    "-t": ("temperature", float),
    "--top-p": ("top_p", float),
    "--seed": ("seed", int),
    "--samples": ("samples", int),
    "-n": ("samples", int),
    "--stop": ("stop", list),
    "--out": ("out", Path),
    "-o": ("out", Path),
    "--json": ("as_json", bool),
    "--quiet": ("quiet", bool),
    "-q": ("quiet", bool),
}
SOURCE = ("prompt", "prompt_file", "file", "at", "marker", "prefix", "suffix", "chat")
NUMBERS = {int: r"-?\d{1,15}", float: r"-?\d{1,15}(\.\d{1,15})?"}


def understood(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The options of a command line as the verb's function takes them; None leaves it to Typer.

    Args:
        arguments: without the program's name.
        environment: the process's.
    """
    if not arguments or arguments[0] != "generate":
        return None
    names = (ENV_PREFIX + "_", f"_{ENV_PREFIX}_")
    if any(name.startswith(names) and name != KEY_VARIABLE for name in environment):
        return None
    if int(environment.get("WORLD_SIZE") or 1) > 1:
        return None
    given = _read(list(arguments[1:]))
    if given is None or "server" not in given or found_files():
        return None
    given.setdefault("key", environment.get(KEY_VARIABLE) or "")
    return given


def run(given: dict[str, Any]) -> int:
    """Do what a command line asks that was understood; the exit status.

    Raises:
        UserError: see `Job`.
    """
    render.set_quiet(given.pop("quiet", False))
    server, key = given.pop("server"), given.pop("key")
    source = {name: given.pop(name) for name in SOURCE if name in given}
    given["stop"] = tuple(given.pop("stop", ()))
    job = Job(source=Source(**({"marker": MARKER} | source)), **given)
    _, request = job.read()
    job.ask(request, server, key)
    return 0


def _read(left: list[str]) -> dict[str, Any] | None:
    """The options by argument; None where one is not plain."""
    given: dict[str, Any] = {}
    left.reverse()
    while left:
        word = left.pop()
        if word == "-" or not word.startswith("-"):
            if "prompt" in given:
                return None
            given["prompt"] = word
            continue
        name, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
        argument, kind = OPTIONS.get(name, ("", None))
        if kind is None or (argument in given and kind is not list):
            return None
        if kind is bool:
            if equals:
                return None
            given[argument] = True
            continue
        if not equals:
            if not left or (left[-1].startswith("-") and not re.fullmatch(r"-[\d.]+", left[-1])):
                return None
            text = left.pop()
        value = _value(kind, text)
        if value is None:
            return None
        if kind is list:
            given.setdefault(argument, []).append(value)
        else:
            given[argument] = value
    return given


def _value(kind: Any, text: str) -> Any:
    """What was typed, as the option's kind of value; None if it is not plain."""
    if isinstance(kind, tuple):
        return text if text in kind else None
    if kind in NUMBERS:
        return kind(text) if re.fullmatch(NUMBERS[kind], text, re.ASCII) else None
    return Path(text) if kind is Path else text


def main() -> None:
    """The program: the quick way where there is one, else the whole command line."""
    given = understood(sys.argv[1:], os.environ)
    if given is None:
        from .app import main as whole

        whole()
        return
    from .boundary import guarded

    sys.exit(guarded(lambda: run(given)))
