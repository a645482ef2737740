"""The root of the command line: its verbs and its configuration file."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from codecria.data.errors import ExitStatus, UsageError

from . import (
    adapt,
    convert,
    doctor,
    evaluate,
    inspect,
    prepare_data,
    ranks,
    recipes,
    render,
    self_instruct,
    serve,
    train,
)
from .boundary import guarded
from .commands import QuickCommand, RootGroup, variables
from .config import PROG, found_files, read_config, read_found
from .generate import command as generate
from .names import ENV_PREFIX, near_name

MODULES = (
    prepare_data,
    train,
    adapt,
    self_instruct,
    convert,
    generate,
    serve,
    evaluate,
    recipes,
    inspect,
    doctor,
)

# Variables that no option reads: of the tests and their oracles.
OTHER_VARIABLES = ("CODECRIA_LLAMA_TOKENIZER", "CODECRIA_REGENERATE_GOLDEN")

HELP = """The whole Code Llama system from the shell.

Prepare code, train a model on it, let it complete code, and evaluate it.

`codecria VERB --help` shows a verb's options. Options may also come from CODECRIA_VERB_OPTION
variables or a config file (docs/command-line.md).
"""

app = typer.Typer(
    name=PROG,
    cls=RootGroup,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone would double its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register() -> None:
    """Add every verb, each parsed by QuickCommand."""
    for module in MODULES:
        module.register(app)
    app.command("help", help="Show the help of a verb, as VERB --help does.")(help_of)

    def quicken(group: typer.Typer) -> None:
        for verb in group.registered_commands:
            verb.cls = QuickCommand
        for inner in group.registered_groups:
            if inner.typer_instance is not None:
                quicken(inner.typer_instance)

    quicken(app)


def help_of(
    context: typer.Context,
    verb: Annotated[
        list[str] | None, typer.Argument(metavar="VERB...", help="A verb, or a verb and its part.")
    ] = None,
) -> None:
    """Print the help of the verb that the words name."""
    found: Any = context.find_root()
    for word in verb or []:
        commands = getattr(found.command, "commands", {})
        if word not in commands:
            near = near_name(word, commands)
            raise UsageError(
                f"there is no verb {word!r}",
                hint=f"did you mean `{PROG} help {near}`?" if near else f"see `{PROG} --help`",
            )
        found = type(found)(commands[word], info_name=word, parent=found)
    print(found.command.get_help(found))


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of options, a table for each verb such as [pretrain]"
            " [default: codecria.toml here, and the user's config file]."
        ),
    ] = None,
    no_config: Annotated[
        bool, typer.Option("--no-config", help="Read no config file that --config does not name.")
    ] = False,
    debug: Annotated[  # noqa: ARG001 - read by main, before parsing can fail
        bool, typer.Option("--debug", help="Show tracebacks.", allow_from_autoenv=False)
    ] = False,
    # Not from the environment: CODECRIA_VERSION=0.1 in a Makefile means something else.
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print the version.", allow_from_autoenv=False),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="With --version: also Python, libraries and device.",
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Options that come before the verb."""
    if version:
        _print_version(verbose=verbose)
        raise typer.Exit
    if verbose:
        raise UsageError("--verbose needs --version", hint=f"run `{PROG} --version --verbose`")
    if context.invoked_subcommand is None:
        raise UsageError("no verb given", hint=f"see `{PROG} --help`")
    if ranks.launched() and context.invoked_subcommand not in train.VERBS:
        if context.invoked_subcommand in ranks.VERBS:
            ranks.take_part(context.obj)
        elif os.environ.get("RANK") != "0":
            raise typer.Exit  # the first process does what is not shared
    _warn_of_unknown_variables(context)
    if config is not None:
        context.default_map = read_config(config, context)
    elif not no_config:
        context.default_map = read_found(context)


def _warn_of_unknown_variables(context: typer.Context) -> None:
    """Name the CODECRIA_ variables that nothing reads: most are misspelled."""
    given = [name for name in os.environ if name.startswith(f"{ENV_PREFIX}_")]
    if not given:
        return
    known = {*variables(context.command), *OTHER_VARIABLES}
    for name in sorted(set(given) - known):
        near = near_name(name, known)
        render.warn(f"unknown variable {name}" + (f"; did you mean {near}?" if near else ""))


def _print_version(*, verbose: bool) -> None:
    """The version on one line; verbosely what else a report of a bug should name."""
    from importlib.metadata import version

    print(f"{PROG} {version(PROG)}")
    if verbose:
        from codecria.core import machine

        for package, found in machine.versions().items():
            if package != PROG:
                print(f"{package} {found or 'not installed'}")
        print(f"device {machine.device_name()}, {machine.instructions()}")


_register()


def main() -> None:
    """Run the command line and end the process with its status."""
    status = run()
    if ranks.launched():
        # The threads of gloo now and then abort the process as it is torn down (torch 2.13).
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run() -> int:
    """Run the command line and return its exit status."""
    return guarded(_parsed, debug="--debug" in sys.argv[1:])


def _parsed() -> int:
    """Let Typer parse the command line and run what it asks for; the exit status."""
    try:
        with contextlib.ExitStack() as stack:
            status = asked_for()(prog_name=PROG, standalone_mode=False, obj=stack)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return status if isinstance(status, int) else ExitStatus.DONE


def asked_for() -> typer.Typer:
    """The command line with the verb alone that is asked for: building all takes ten times as long.

    Config files and CODECRIA_ variables are checked against every verb, so with any all are built.
    """
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if any(name.startswith(f"{ENV_PREFIX}_") for name in os.environ):
        return app
    commands = [command for command in app.registered_commands if command.name == verb]
    groups = [group for group in app.registered_groups if group.name == verb]
    if not (commands or groups) or verb == "help" or found_files():
        return app
    alone = copy.copy(app)
    alone.registered_commands, alone.registered_groups = commands, groups
    return alone
