"""A chat session in the terminal: `codecria generate --chat` without a question."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codecria.cli import render
from codecria.data.errors import UserError

from .output import shown as as_shown
from .output import stripped
from .prompt import warn_of_tags

if TYPE_CHECKING:
    from codecria.core.inference.decoding import Limits
    from codecria.core.inference.generator import Generator
    from codecria.core.inference.sampling import Sampling
    from codecria.data.formats.chat import Message
    from codecria.data.formats.window import Room, Truncate

FENCE = '"""'
HELP = f"""/system TEXT  set the system prompt and start over; without TEXT, remove it
/reset        start over
/exit         end the session, as Ctrl-D does; Ctrl-C stops an answer
{FENCE}           begins and ends a message of several lines; so does a \\ at the end of a line"""


class _Stopped(Exception):
    """The user stopped an answer."""


@dataclass(slots=True)
class Session:
    """Questions and answers until the user ends it.

    Attributes:
        generator: of a model that was tuned on dialogs.
        sampling, limits: of each answer.
        room: for each prompt.
        truncate: whether the oldest turns go when the context is full.
        system: the system prompt.
        refuse_tags: whether messages with chat-template tags are refused.
        draft: whether tokens are drafted.
        read: gets a line, given what is shown before it.
        said: the turns so far.
        left_out: what the last prompt has left out.
    """

    generator: Generator
    sampling: Sampling
    limits: Limits
    room: Room
    truncate: Truncate
    system: str | None = None
    refuse_tags: bool = False
    draft: bool = False
    read: Callable[[str], str] = input
    said: list[Message] = field(default_factory=list)
    left_out: str | None = None

    def run(self) -> None:
        """Ask and answer until the user ends it."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # line editing and history, where it is there

        render.note("/help lists the commands")
        while True:
            try:
                text = self._message()
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
                self._start_over(self.system)
            elif command == "/system":
                self._start_over(rest.strip() or None)
            elif command.startswith("/"):
                render.warn(f"there is no command {command}; /help lists them")
            elif text.strip():
                self.ask(text)

    def ask(self, text: str) -> None:
        """Answer one message; what was printed, also of an answer that was stopped, is kept."""
        from codecria.data.formats.chat import Message

        asked = [*self.said, Message(role="user", content=text)]
        answer = self._answer(asked)
        if answer:
            self.said = [*asked, Message(role="assistant", content=answer)]

    def _start_over(self, system: str | None) -> None:
        self.system, self.said, self.left_out = system, [], None

    def _message(self) -> str:
        """One message: a line, lines that end in a backslash, or lines between fences."""
        line = self.read("> ")
        if line.strip() == FENCE:
            lines = []
            while (line := self.read(". ")).strip() != FENCE:
                lines.append(line)
            return "\n".join(lines)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self.read(". "))
        return "\n".join(lines)

    def _prompt(self, asked: list[Message]) -> list[int]:
        """The ids of the dialog; says which turns the context has no room for."""
        from codecria.data.formats.chat import Message
        from codecria.data.formats.window import fit_chat

        dialog = asked
        if self.system is not None:
            dialog = [Message(role="system", content=self.system), *asked]
        fitted = fit_chat(self.generator.tokenizer, dialog, self.room, self.truncate)
        if fitted.left_out is not None and fitted.left_out != self.left_out:
            render.note(
                f"the context of {self.room.context:,} tokens is full: the model no longer sees"
                f" {fitted.left_out}"
            )
        self.left_out = fitted.left_out
        return fitted.ids

    def _answer(self, asked: list[Message]) -> str:
        """Print the answer as it comes; the text that was printed."""
        from codecria.core.inference.drafting import Sources
        from codecria.data.formats.chat import stop_id

        shown = ""
        try:
            warn_of_tags(asked[-1:], refuse_tags=self.refuse_tags)
            ids = self._prompt(asked)
            with _interruptible():
                events = self.generator.complete(
                    ids,
                    self.sampling,
                    self.limits,
                    ends=(stop_id(self.generator.tokenizer),),
                    sources=Sources(history=tuple(ids)) if self.draft else None,
                )
                for _, event in stripped(as_shown(events)):
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
