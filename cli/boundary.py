"""The one place where errors become messages and exit statuses.

Nothing here imports Typer: `quick.py` ends here, too.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable

from codecria.data.errors import ExitStatus, Interrupted, ReportedElsewhere, UserError

from . import render
from .config import PROG

# Of the machine, not of the program: an internal error they are not, wherever they show.
LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)


def guarded(work: Callable[[], int], *, debug: bool = False) -> int:
    """The exit status of some work, whatever becomes of it.

    Args:
        work: what the command line asks for.
        debug: whether tracebacks are shown.
    """
    _prepare_streams()
    render.set_quiet(False)
    try:
        status = work()
    except SystemExit as end:
        # Typer ends with 1 where the reader of stdout went away.
        if isinstance(end.__context__, BrokenPipeError):
            return _broken_pipe()
        return _flush(end.code if isinstance(end.code, int) else ExitStatus.DONE)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        return _broken_pipe()
    except Exception as error:  # the boundary: whatever goes wrong ends as a line or two
        if debug:
            import traceback

            traceback.print_exception(error)
        return _report(error)
    return _flush(status)


def _report(error: Exception) -> int:
    """Say on stderr why the work ended; its exit status."""
    if isinstance(error, ReportedElsewhere):
        return error.status
    if isinstance(error, Interrupted):
        if error.message:
            render.error(error.message)
        return error.status
    if hasattr(error, "format_message"):  # Typer's parser, whose error classes are private
        from . import parser_errors

        return parser_errors.report(error)
    if isinstance(error, UserError):
        message, hint = error.message, error.hint
    elif _out_of_memory(error):
        message = "out of memory"
        hint = "use a smaller --micro-batch-size, --partition-mb, context or model"
    elif isinstance(error, OSError) and error.errno in LIMITS:
        from codecria.data.files import write_remedy

        where = "" if error.filename is None else f"{error.filename}: "
        message, hint = f"{where}{error.strerror}", write_remedy(error)
    else:
        message = f"internal error: {type(error).__name__}: {error}"
        hint = f"run `{PROG} --debug VERB ...` for the traceback"
    render.error(f"error: {message}")
    if hint:
        render.error(f"hint: {hint}")
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
        render.error(f"error: cannot write to stdout: {error.strerror}")
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
