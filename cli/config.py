"""Options from TOML files: the one that `--config` names, or those found where one expects them.

Found files are `codecria.toml` in the working folder, and `config.toml` in the user's config folder
(`$XDG_CONFIG_HOME/codecria`, by default `~/.config/codecria`); the first wins where both set an
option. A found file may not weaken the sandbox, serve other machines or name a server that reads
prompts: it can come with a folder that someone else wrote.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from codecria.data.errors import UsageError, UserError

from .names import near_name

PROG = "codecria"
WORKING_NAME = "codecria.toml"
# Options that decide where untrusted programs run, who is served, and who reads prompts: only the
# command line, the environment and a named file may set them.
GUARDED = ("sandbox", "sandbox-command", "confirm", "packages", "host", "server")


def found_files() -> list[Path]:
    """The config files read when `--config` names none, the more important one last."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    places = [Path(home) / PROG / "config.toml", Path(WORKING_NAME)]
    return [path for path in places if path.is_file()]


def read_found(context: Any) -> dict[str, Any]:
    """The options of the found files, merged.

    Args:
        context: of the root, which knows the verbs.

    Raises:
        UserError: a file cannot be read.
        UsageError: a file is not valid, or sets an option that is guarded.
    """
    merged: dict[str, Any] = {}
    for path in found_files():
        options = read_config(path, context)
        guarded = _guarded(options)
        if guarded:
            raise UsageError(
                f"{path} sets {guarded}, which a config file that was found may not set",
                hint=f"name the file yourself: {PROG} --config {path} ...",
            )
        merged = _merged(merged, options)
    return merged


def _guarded(options: dict[str, Any]) -> str:
    for name, value in options.items():
        if isinstance(value, dict):
            if inner := _guarded(value):
                return inner
        elif name.replace("_", "-") in GUARDED:
            return name.replace("_", "-")
    return ""


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two tables as one; `above` wins."""
    both = below | above
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            both[name] = _merged(below[name], above[name])
    return both


def read_config(path: Path, context: Any) -> dict[str, Any]:
    """The options in a TOML file, by verb, checked against the verbs there are.

    Args:
        path: the file.
        context: of the root, which knows the verbs.

    Raises:
        UserError: it cannot be read.
        UsageError: it is not TOML, or names an unknown verb or option.
    """
    import tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    return _checked(tables, context.command, where=str(path), called="")


def _checked(tables: dict[str, Any], group: Any, *, where: str, called: str) -> dict[str, Any]:
    """The tables of a group's verbs, their keys as the verbs' functions name them."""
    verbs: dict[str, Any] = group.commands
    found: dict[str, Any] = {}
    for verb, entries in tables.items():
        full = f"{called}{verb}"
        if verb not in verbs or not isinstance(entries, dict):
            near = near_name(verb, verbs)
            raise UsageError(
                f"{where}: [{full}] is not a verb",
                hint=f"did you mean [{called}{near}]?" if near else "verbs: " + ", ".join(verbs),
            )
        found[verb] = {}
        if hasattr(verbs[verb], "commands"):  # a verb with verbs of its own, and perhaps options
            own = {key for key in entries if not isinstance(entries[key], dict)}
            inner = {
                key: entries[key] for key in entries if key not in own or not verbs[verb].params
            }
            found[verb] = _checked(inner, verbs[verb], where=where, called=f"{full}.")
            entries = {key: entries[key] for key in entries if key not in inner}
        found[verb] |= _checked_options(entries, verbs[verb], where=where, full=full)
    return found


def _checked_options(
    options: dict[str, Any], command: Any, *, where: str, full: str
) -> dict[str, Any]:
    """A verb's options by the names of its function's arguments."""
    # Keys are the long options as typed, or with underscores.
    parameters = {
        spelled.lstrip("-").replace("-", "_"): parameter
        for parameter in command.params
        for spelled in parameter.opts
    }
    found = {}
    for key, value in options.items():
        plain = key.replace("-", "_")
        if plain not in parameters:
            near = near_name(plain, parameters)
            raise UsageError(
                f"{where}: {full} has no option {key!r}",
                hint=f"did you mean {near!r}?"
                if near
                else f"see `{PROG} {full.replace('.', ' ')} --help`",
            )
        wanted = _wanted(parameters[plain], value)
        if wanted:
            raise UsageError(f"{where}: {full} {key} = {value!r} is not {wanted}")
        found[parameters[plain].name] = value
    return found


def _wanted(parameter: Any, value: object) -> str:
    """What kind of value an option takes, if this is none; its parser checks the rest."""
    if getattr(parameter, "is_flag", False):
        return "" if isinstance(value, bool) else "true or false"
    if getattr(parameter, "multiple", False) or parameter.nargs != 1:
        fits = isinstance(value, list) and all(map(_is_plain, value))
        return "" if fits else "a list of strings or numbers"
    return "" if _is_plain(value) else "a string or a number"


def _is_plain(value: object) -> bool:
    # A bool is an int to Python, but `steps = true` is a slip.
    return isinstance(value, str | int | float) and not isinstance(value, bool)
