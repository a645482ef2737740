"""A plain `generate` command line, read without Typer: its modules take much of a short call.

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
MODEL_VARIABLE = "CODECRIA_MODEL"
# Options by name: the argument, and what a value is: bool for a switch, list for one that repeats,
# a tuple for a choice, a range of whole numbers.
OPTIONS: dict[str, tuple[str, Any]] = {
    "--model": ("model", Path),
    "-m": ("model", Path),
    "--adapter": ("adapter", Path),
    "--device": ("device", ("auto", "cpu", "cuda")),
    "--engine": ("engine", ("auto", "native", "torch")),
    "--dtype": ("dtype", ("auto", "float32", "bfloat16", "q8", "q4")),
    "--cache-dtype": ("cache_dtype", ("auto", "float32", "bfloat16", "q8")),
    "--keep-packed": ("keep_packed", bool),
    "--threads": ("threads", range(1, 10**6)),
    "--cache": ("cache", bool),
    "--draft": ("draft", ("auto", "off")),
    "--context": ("context", range(2, 10**12)),
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
    "--parse-specials": ("parse_specials", bool),
    "--max-tokens": ("max_tokens", int),
    "--temperature": ("temperature", float),
    "-t": ("temperature", float),
    "--top-p": ("top_p", float),
    "--top-k": ("top_k", range(0, 10**12)),
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
COMPUTE = ("device", "engine", "dtype", "cache_dtype", "keep_packed", "threads")
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
    known = (KEY_VARIABLE, MODEL_VARIABLE)
    if any(name.startswith(names) and name not in known for name in environment):
        return None
    if int(environment.get("WORLD_SIZE") or 1) > 1:
        return None
    given = _read(list(arguments[1:]))
    if given is None or found_files():
        return None
    if environment.get(MODEL_VARIABLE):
        given.setdefault("model", Path(environment[MODEL_VARIABLE]))
    if environment.get(KEY_VARIABLE):
        given.setdefault("key", environment[KEY_VARIABLE])
    # What is wrong with the others, Typer's side says.
    whole = "adapter" not in given if "server" in given else "model" in given
    return given if whole else None


def run(given: dict[str, Any]) -> int:
    """Do what a command line asks that was understood; the exit status.

    Raises:
        UserError: see `Job`.
    """
    render.set_quiet(given.pop("quiet", False))
    model, adapter, cache = (given.pop(name, None) for name in ("model", "adapter", "cache"))
    server, key = given.pop("server", None), given.pop("key", "")
    compute = {name: given.pop(name) for name in COMPUTE if name in given}
    source = {name: given.pop(name) for name in SOURCE if name in given}
    given["stop"] = tuple(given.pop("stop", ()))
    given["draft"] = given.pop("draft", "auto") == "auto"
    job = Job(source=Source(**({"marker": MARKER} | source)), **given)
    asked, request = job.read()
    if server is not None:
        job.ask(request, server, key)
        return 0
    from codecria.core.checkpoints.adapters.folder import with_adapter
    from codecria.core.inference.loading import Compute

    from .generate import local

    loading = local.Loading(
        model=with_adapter(model, adapter),
        compute=Compute(**compute),
        cache_bytes=local.CACHE_BYTES if cache else 0,
    )
    local.answer(job, asked, request, loading)
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
    if isinstance(kind, range):
        number = int(text) if re.fullmatch(NUMBERS[int], text, re.ASCII) else -1
        return number if number in kind else None
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
