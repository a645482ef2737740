"""The root of the command line: its verbs, its configuration file, and the one error boundary."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from codecria.data.errors import ExitStatus, Interrupted, UsageError, UserError

from . import (
    convert,
    doctor,
    evaluate,
    generate,
    inspect,
    prepare_data,
    recipes,
    render,
    self_instruct,
    train,
)
from .group import QuickGroup

PROG = "codecria"
ENV_PREFIX = "CODECRIA"
MODULES = (
    prepare_data,
    train,
    self_instruct,
    convert,
    generate,
    evaluate,
    recipes,
    inspect,
    doctor,
)

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


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options: a table for each verb, such as [pretrain]."),
    ] = None,
    debug: Annotated[  # noqa: ARG001 - read by main, before parsing can fail
        bool, typer.Option("--debug", help="Show tracebacks.", allow_from_autoenv=False)
    ] = False,
    # Not from the environment: CODECRIA_VERSION=0.1 in a Makefile means something else.
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", allow_from_autoenv=False)
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="With --version: Python, libraries and device too.",
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Options that come before the verb."""
    if version:
        _print_version(verbose=verbose)
        raise typer.Exit
    if verbose:
        raise UsageError("--verbose goes with --version", hint=f"see `{PROG} --help`")
    if context.invoked_subcommand is None:
        raise UsageError("there is no verb", hint=f"see `{PROG} --help`")
    if config is not None:
        context.default_map = read_config(config, context)


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
    for verb, entries in tables.items():
        full = f"{called}{verb}"
        if verb not in verbs or not isinstance(entries, dict):
            near = difflib.get_close_matches(verb, verbs, n=1)
            raise UsageError(
                f"{where}: [{full}] is not a verb",
                hint=f"did you mean [{called}{near[0]}]?" if near else "verbs: " + ", ".join(verbs),
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
    import difflib

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
            near = difflib.get_close_matches(plain, parameters, n=1)
            raise UsageError(
                f"{where}: {full} has no option {key!r}",
                hint=f"did you mean {near[0]!r}?"
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


def main() -> None:
    """Run the command line; the one place where errors become messages and exit statuses."""
    sys.exit(run())


def run() -> int:
    """Run the command line and return its exit status."""
    debug = "--debug" in sys.argv[1:]
    _prepare_streams()
    try:
        app(prog_name=PROG, standalone_mode=True)
    except SystemExit as end:
        # Typer and rich end with 1 where the reader of stdout went away.
        if isinstance(end.__context__, BrokenPipeError):
            return _broken_pipe()
        return _flush(end.code if isinstance(end.code, int) else ExitStatus.DONE)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except Exception as error:  # the boundary: whatever goes wrong ends as a line or two
        if debug:
            import traceback

            traceback.print_exception(error)
        return _tell(error)
    return ExitStatus.DONE


def _tell(error: Exception) -> int:
    """Say on stderr why the work ended; its exit status."""
    if isinstance(error, Interrupted):
        render.note(error.message)
        return error.status
    if isinstance(error, UserError):
        message, hint = error.message, error.hint
    elif _out_of_memory(error):
        message = "out of memory"
        hint = "a smaller --micro-rows, --partition-mb, context or model needs less"
    else:
        message = f"{type(error).__name__}: {error}"
        hint = "run it again with --debug before the verb for the traceback"
    render.note(f"error: {message}")
    if hint:
        render.note(f"hint: {hint}")
    return error.status if isinstance(error, UserError) else ExitStatus.FAILED


def _prepare_streams() -> None:
    """Let every stream be there and stdout be UTF-8, whatever the shell and its locale left."""
    if sys.stdin is None:  # closed by the shell with <&-
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - for the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is not UTF-8 shows as \udcff, which JSON understands.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, numpy, Arrow, or PyTorch on either kind of device ran out of memory."""
    # By name and text: torch may not be there yet, and its CPU allocator has no type of its own.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def _flush(status: int) -> int:
    """Write what is left to stdout, so that a failure shows here and not at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    except OSError as error:
        render.note(f"error: cannot write to stdout: {error.strerror}")
        _drop_stdout()
        return ExitStatus.FAILED
    return status


def _broken_pipe() -> int:
    """The reader of stdout went away (`| head`): end as other tools do, quietly."""
    _drop_stdout()
    return 128 + signal.SIGPIPE


def _drop_stdout() -> None:
    """Let what is left go nowhere: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
