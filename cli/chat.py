"""A conversation in the terminal: `codecria generate --chat` without a question."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from codecria.data.errors import UserError
from codecria.data.formats.chat import Message, prompt_ids, stop_id

from . import render
from .generate import stripped, warn_of_tags

if TYPE_CHECKING:
    from codecria.core.inference.engine import Completion, Limits
    from codecria.core.inference.generator import Generator
    from codecria.core.inference.sampling import Sampling

FENCE = '"""'
HELP = f"""/system TEXT  what the model is to keep to, from a new start; /system alone takes it away
/reset        forget what was said
/exit         end, as Ctrl-D does; Ctrl-C stops an answer
{FENCE}           begins and ends a message of several lines; a \\ at a line's end goes on too"""


class _Stopped(Exception):
    """The user stopped an answer."""


def converse(
    generator: Generator,
    sampling: Sampling,
    limits: Limits,
    *,
    system: str | None,
    strict: bool,
    truncate: str | None,
    read: Callable[[str], str] = input,
) -> None:
    """Ask and answer until the user ends it.

    Args:
        generator: of a model that was tuned on dialogs.
        sampling, limits: of each answer.
        system: what it begins with.
        strict, truncate: see `generate`.
        read: gets a line, given what is shown before it.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing and history, where it is there

    render.note("/help tells what can be typed here")
    said: list[Message] = []
    while True:
        try:
            text = _message(read)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        command, _, rest = text.partition(" ")
        if command == "/exit":
            return
        if command == "/help":
            render.note(HELP)
        elif command == "/reset":
            said = []
        elif command == "/system":
            system, said = rest.strip() or None, []
        elif command.startswith("/"):
            render.warn(f"no command is called {command}; /help lists them")
        elif text.strip():
            asked = [*said, Message(role="user", content=text)]
            answer = _answer(
                generator, sampling, limits, asked, system, strict=strict, truncate=truncate
            )
            if answer:
                said = [*asked, Message(role="assistant", content=answer)]


def _message(read: Callable[[str], str]) -> str:
    """One message: a line, lines that end in a backslash, or lines between fences."""
    line = read("> ")
    if line.strip() == FENCE:
        lines = []
        while (line := read(". ")).strip() != FENCE:
            lines.append(line)
        return "\n".join(lines)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read(". "))
    return "\n".join(lines)


def _answer(
    generator: Generator,
    sampling: Sampling,
    limits: Limits,
    asked: list[Message],
    system: str | None,
    *,
    strict: bool,
    truncate: str | None,
) -> str:
    """Print the answer as it comes; what was printed, also of one that was stopped."""
    shown = ""
    dialog = [Message(role="system", content=system), *asked] if system is not None else asked
    try:
        warn_of_tags(asked[-1:], strict=strict)
        ids = generator.fit(prompt_ids(generator.tokenizer, dialog), limits, truncate=truncate)
        with _interruptible():
            events: Iterator[tuple[int, str | Completion]] = generator.complete(
                ids, sampling, limits, ends=(stop_id(generator.tokenizer),)
            )
            for _, event in stripped(events):
                if isinstance(event, str):
                    shown += event
                    sys.stdout.write(event)
                    sys.stdout.flush()
    except _Stopped:
        render.note(" (stopped)")
    except UserError as error:
        render.warn(error.message)
        if error.hint:
            render.note(f"hint: {error.hint}")
        return ""
    sys.stdout.write("\n")
    return shown


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stops the answer and not the program."""

    def stop(*_: object) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
