"""The root of the command line: its verbs, its configuration file, and the one error boundary."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from codecria.data.errors import ExitStatus, Interrupted, UsageError, UserError

from . import doctor, generate, inspect, prepare_data, recipes, render, train
from .group import QuickGroup

PROG = "codecria"
ENV_PREFIX = "CODECRIA"
MODULES = (prepare_data, train, generate, recipes, inspect, doctor)

HELP = """The whole Code Llama system from the shell.

Prepare code, train a model on it, and let it complete code. Every verb takes --help.
Options may also come from CODECRIA_VERB_OPTION variables or a --config file (see docs/).
"""

app = typer.Typer(
    name=PROG,
    cls=QuickGroup,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone would double its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": ENV_PREFIX},
)
for module in MODULES:
    module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"{PROG} {version(PROG)}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options: a table for each verb, such as [pretrain]."),
    ] = None,
    debug: Annotated[  # noqa: ARG001 - read by main, before parsing can fail
        bool, typer.Option("--debug", help="Show tracebacks.", allow_from_autoenv=False)
    ] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool,
        typer.Option(
            "--version",
            help="Print the version.",
            callback=_version,
            is_eager=True,
            allow_from_autoenv=False,  # CODECRIA_VERSION=0.1 in a Makefile means something else
        ),
    ] = False,
) -> None:
    """Options that come before the verb."""
    if config is not None:
        context.default_map = read_config(config, context)


def read_config(path: Path, context: typer.Context) -> dict[str, Any]:
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
    import difflib

    verbs: dict[str, Any] = group.commands
    found: dict[str, Any] = {}
    for verb, options in tables.items():
        full = f"{called}{verb}"
        if verb not in verbs or not isinstance(options, dict):
            near = difflib.get_close_matches(verb, verbs, n=1)
            raise UsageError(
                f"{where}: [{full}] is not a verb",
                hint=f"did you mean [{called}{near[0]}]?" if near else "verbs: " + ", ".join(verbs),
            )
        if hasattr(verbs[verb], "commands"):
            found[verb] = _checked(options, verbs[verb], where=where, called=f"{full}.")
            continue
        # Keys are the long options as typed, or with underscores.
        names = {
            spelled.lstrip("-").replace("-", "_"): parameter.name
            for parameter in verbs[verb].params
            for spelled in parameter.opts
        }
        found[verb] = {}
        for key, value in options.items():
            plain = key.replace("-", "_")
            if plain not in names:
                near = difflib.get_close_matches(plain, names, n=1)
                raise UsageError(
                    f"{where}: {full} has no option {key!r}",
                    hint=f"did you mean {near[0]!r}?"
                    if near
                    else f"see `{PROG} {full.replace('.', ' ')} --help`",
                )
            found[verb][names[plain]] = value
    return found


def main() -> None:
    """Run the command line; the one place where errors become messages and exit statuses."""
    sys.exit(run())


def run() -> int:
    """Run the command line and return its exit status."""
    debug = "--debug" in sys.argv[1:]
    try:
        app(prog_name=PROG, standalone_mode=True)
    except SystemExit as end:
        _flush()
        return end.code if isinstance(end.code, int) else ExitStatus.DONE
    except UserError as error:
        if debug:
            raise
        render.note(f"error: {error.message}")
        if error.hint:
            render.note(f"hint: {error.hint}")
        return error.status
    except Interrupted as stop:
        render.note(stop.message)
        return stop.status
    except KeyboardInterrupt:
        render.note("interrupted")
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        return _broken_pipe()
    except MemoryError:
        if debug:
            raise
        render.note("error: out of memory")
        render.note("hint: a smaller --micro-rows, context or model needs less")
        return ExitStatus.FAILED
    except Exception as error:  # the boundary: everything unforeseen ends as one line
        if debug:
            raise
        render.note(f"error: {type(error).__name__}: {error}")
        render.note("hint: run it again with --debug before the verb for the traceback")
        return ExitStatus.FAILED
    return ExitStatus.DONE


def _flush() -> None:
    """Write what is left to stdout, so that a closed pipe shows here and not at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _broken_pipe()


def _broken_pipe() -> int:
    """The reader of stdout went away (`| head`): end as other tools do, quietly."""
    # Python would complain once more when it flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
