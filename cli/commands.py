"""How every verb parses its options and shows its help, on top of Typer's own classes.

Help is plain text, grouped by panel, and quick: rich would double its time. Options left out keep
their defaults without pydantic. Environment names follow the options as they are typed.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from codecria.data.errors import UsageError

from . import options
from .names import ENV_PREFIX

GENERAL = "Options"  # the panel of options that belong to no other


class QuickCommand(TyperCommand):
    """A verb: help in groups, environment names from its options, quick defaults."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Make the command and give it `--quiet`."""
        super().__init__(*args, **settings)
        self.help = _examples_as_typed(self.help)
        self.params.append(_quiet_option())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the options' environment variables, then parse."""
        _prepare(self.get_params(ctx), ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options by panel."""
        _write_panels(self.get_params(ctx), ctx, formatter)


class QuickGroup(TyperGroup):
    """A group of verbs, with the same help and the same handling of its own options."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Make the group; one that is a verb as well takes `--quiet`."""
        super().__init__(*args, **settings)
        self.help = _examples_as_typed(self.help)
        if self.params:
            self.params.append(_quiet_option())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the options' environment variables, then parse."""
        _prepare(self.get_params(ctx), ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs, then the group's own options by panel."""
        self.format_commands(ctx, formatter)
        _write_panels(self.get_params(ctx), ctx, formatter)


class RootGroup(QuickGroup):
    """The root, which lists its verbs in the order in which people use them."""

    ORDER = (
        "prepare-data",
        "pretrain",
        "fim",
        "lcft",
        "instruct",
        "adapt",
        "self-instruct",
        "generate",
        "serve",
        "evaluate",
        "convert",
        "recipes",
        "inspect",
        "doctor",
        "help",
    )

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs; one that is missing in ORDER comes last."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (*self.ORDER, *names).index(name))


def _examples_as_typed(help: str | None) -> str | None:
    """Help whose examples keep their lines: a wrapped command cannot be copied."""
    if help is None:
        return None
    marked = [
        "\b\n" + part if part.lstrip().startswith("Example") else part
        for part in help.split("\n\n")
    ]
    return "\n\n".join(marked)


def variables(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The environment variables that a command and the verbs below it read.

    Args:
        command: the root, a group or a verb.
        path: the words that lead to it, without the program's name.
    """
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield from _variables_of(parameter, path)
    for name, inner in getattr(command, "commands", {}).items():
        yield from variables(inner, (*path, name))


def _prepare(parameters: list[Any], ctx: Any) -> None:
    """Set up a command's parameters: environment names, and defaults that need no check."""
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, ctx.info_name)
        ctx = ctx.parent
    for parameter in parameters:
        _name_variables(parameter, tuple(words))
        _leave_absent(parameter)


def _variables_of(parameter: Any, path: tuple[str, ...]) -> list[str]:
    """An option's environment variables: its own ones, and the one named after it."""
    own = [parameter.envvar] if isinstance(parameter.envvar, str) else list(parameter.envvar or [])
    if parameter.allow_from_autoenv:
        option = max(parameter.opts, key=len).lstrip("-")
        derived = "_".join([ENV_PREFIX, *path, option]).replace("-", "_").upper()
        own = [derived, *(name for name in own if name != derived)]
    return own


def _name_variables(parameter: Any, path: tuple[str, ...]) -> None:
    """Give an option the variable that is named after it as it is typed."""
    if parameter.param_type_name != "option" or getattr(parameter, "quick", False):
        return
    parameter.envvar = _variables_of(parameter, path) or None
    parameter.allow_from_autoenv = False
    parameter.show_envvar = False  # one page of the docs lists the rule
    if parameter.multiple:
        _split_like_a_shell(parameter)


def _split_like_a_shell(parameter: Any) -> None:
    """Let a repeatable option's variable quote values that hold spaces."""

    def read(context: Any) -> list[str] | None:
        value = parameter.resolve_envvar_value(context)
        if value is None:
            return None
        try:
            return shlex.split(value)
        except ValueError as error:
            name = next(name for name in parameter.envvar if os.environ.get(name))
            raise UsageError(
                f"{name}={value!r} has an open quote ({error})", hint="quote values as in a shell"
            ) from error

    parameter.value_from_envvar = read


def _leave_absent(parameter: Any) -> None:
    """Let an option's own default skip validation, and go to its callback if it has one.

    Typer would load pydantic to validate it, and so double the time of every verb's help.
    """
    if getattr(parameter, "quick", False):
        return
    validate = parameter.process_value

    def process(context: Any, value: Any) -> Any:
        if parameter.required or value is not parameter.default:
            found = _plainly(parameter, value)
            if found is None:
                return validate(context, value)
            value = found
        return parameter.callback(context, parameter, value) if parameter.callback else value

    parameter.process_value = process
    parameter.quick = True


def _plainly(parameter: Any, value: Any) -> Any:
    """A typed value whose meaning is beyond doubt; None leaves it to Typer and its pydantic."""
    descriptor = getattr(parameter, "type_descriptor", None)
    if descriptor is None or parameter.nargs != 1 or descriptor.parameter_info.parser is not None:
        return None
    kind, info = descriptor.annotation, descriptor.parameter_info
    if parameter.multiple:
        texts = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        return list(value) if kind == list[str] and texts else None
    if not isinstance(value, str):
        return None
    if descriptor.is_choice:
        return value if descriptor.choices is not None and value in descriptor.choices else None
    if kind is str:
        return value
    if kind is Path:
        checked = info.exists or info.writable or info.resolve_path or info.allow_dash
        return None if checked or not (info.file_okay and info.dir_okay) else Path(value)
    if kind not in (int, float) or not re.fullmatch(_NUMBERS[kind], value, re.ASCII):
        return None
    number = kind(value)
    low, high = (limit if limit is not None else number for limit in (info.min, info.max))
    return number if low <= number <= high else None


_NUMBERS = {int: r"-?\d{1,15}", float: r"-?\d{1,15}(\.\d{1,15})?([eE][+-]?\d{1,2})?"}

# The order of panels in help; a verb's own panels come between these two.
FIRST_PANELS = (
    "Arguments",
    options.INPUT,
    options.TRAINING,
    options.INFILLING,
    options.CHAT,
    options.SAMPLING,
    options.SCORING,
    options.SANDBOX,
    options.ENDPOINT,
    options.SERVER,
)
LAST_PANELS = (options.OUTPUT, options.SCHEDULE, options.MACHINE, GENERAL)


def _write_panels(parameters: list[Any], ctx: Any, formatter: Any) -> None:
    """Write the help of parameters, one section for each panel, the general options last."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        argument = parameter.param_type_name == "argument"
        panel = "Arguments" if argument else getattr(parameter, "rich_help_panel", None)
        panels.setdefault(panel or GENERAL, []).append(_plain(record))
    own = [name for name in panels if name not in FIRST_PANELS + LAST_PANELS]
    names = [*FIRST_PANELS, *own, *LAST_PANELS]
    for name in names:
        if name in panels:
            with formatter.section(name):
                formatter.write_dl(panels[name])


def _plain(record: tuple[str, str]) -> tuple[str, str]:
    """A help record without Typer's notation of ranges."""
    names, text = record
    text = re.sub(r"(\[|; )x>=([\d.]+)\]", r"\1at least \2]", text)
    text = re.sub(r"(\[|; )([\d.]+)<=x<=([\d.]+)\]", r"\1\2 to \3]", text)
    return names.replace(" range>", ">"), text


def _quiet_option() -> Any:
    """A new `--quiet`: Typer makes the option, and each verb holds its own."""
    import typer
    from typer.main import get_command

    from . import render

    def hush(value: bool) -> bool:
        render.set_quiet(value)
        return value

    maker = typer.Typer(rich_markup_mode=None, add_completion=False)

    @maker.command()
    def made(
        quiet: bool = typer.Option(
            False,
            "--quiet",
            "-q",
            callback=hush,
            expose_value=False,
            help="Print no progress and no notes on stderr; warnings and errors stay.",
        ),
    ) -> None:
        """Only its option is used."""

    return next(p for p in get_command(maker).params if "--quiet" in p.opts)
