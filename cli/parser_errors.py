"""Errors of Typer's parser in the two lines of every other error: the value, what to do."""

from __future__ import annotations

from typing import Any

from . import render
from .names import near_name


def report(error: Any) -> int:
    """Write the error on stderr and return its exit status.

    Args:
        error: of Typer's parser; help asked for by a group without arguments is one too.
    """
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        render.error(error.format_message())
        return int(error.exit_code)
    message, hint = _worded(error, kind)
    render.error(f"error: {message}")
    if not hint and error.ctx is not None:
        hint = f"see `{error.ctx.command_path} --help`"
    if hint:
        render.error(f"hint: {hint}")
    return int(error.exit_code)


def _worded(error: Any, kind: str) -> tuple[str, str]:
    """The message, and the hint if there is a better one than the verb's help."""
    verb = error.ctx.command_path if error.ctx is not None else ""
    if kind == "NoSuchOption":
        options = [name for p in error.ctx.command.params for name in (*p.opts, *p.secondary_opts)]
        near = near_name(error.option_name, options)
        return f"{verb} has no option {error.option_name}", f"did you mean {near}?" if near else ""
    if kind == "MissingParameter" and error.param is not None:
        return f"{verb} needs {_name(error.param)}", f"see `{verb} --help`"
    if kind == "BadParameter" and error.param is not None:
        return _bad_value(error)
    if error.message.startswith("No such command"):
        name = error.message.split("'")[1]
        near = near_name(name, error.ctx.command.commands)
        return f"{verb} has no verb {name!r}", f"did you mean `{verb} {near}`?" if near else ""
    return error.format_message().rstrip(".").replace("Option '", "option '"), ""


def _bad_value(error: Any) -> tuple[str, str]:
    """A value that an option does not take."""
    found = error.__cause__.errors()[0] if hasattr(error.__cause__, "errors") else {}
    name = _name(error.param)
    value = found.get("input")
    shown = f"{name} {value}" if isinstance(value, str | int | float) else name
    choices = error.param.type_descriptor.choices
    if choices:
        names = [str(choice) for choice in choices]
        near = near_name(str(value), names)
        listed = "one of " + ", ".join(names)
        return f"{shown} is not {listed}", f"did you mean {name} {near}?" if near else ""
    message = str(error.message)
    small = message[:1].lower() + message[1:]
    for start in ("input should be ", "value error, "):
        small = small.removeprefix(start)
    if found.get("type", "").endswith("_parsing"):
        kinds = {"int_parsing": "a whole number", "float_parsing": "a number"}
        return f"{shown} is not {kinds.get(found['type'], small)}", ""
    if message.lower().startswith("input should be "):
        return f"{shown} must be {small}", ""
    return f"{shown}: {small}", ""


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return str(max(parameter.opts, key=len))
