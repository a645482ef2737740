"""What `generate` is asked, as the ids the model reads: text, a gap to fill, or a question."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codecria.cli import render
from codecria.data.errors import UsageError, UserError

if TYPE_CHECKING:
    from codecria.core.inference.prompts import Prompt
    from codecria.data.formats.chat import Message
    from codecria.data.formats.cursor import Gap
    from codecria.data.tokenizer.tokenizer import Tokenizer

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the prompt comes from, as the options say.

    Attributes:
        prompt: the argument; "-" is stdin.
        prompt_file: a file with the prompt.
        file, at, marker: a file with a gap, and where the gap is.
        prefix, suffix: files with the text before and after a gap.
        chat: whether the prompt is a question.
    """

    prompt: str | None = None
    prompt_file: Path | None = None
    file: Path | None = None
    at: str | None = None
    marker: str = ""
    prefix: Path | None = None
    suffix: Path | None = None
    chat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was read from the source.

    Attributes:
        text: the prompt; empty for a gap and for a chat session.
        gap: what is to be filled, or None.
        session: whether a chat session begins, because there is no question.
        content: of the file with the gap, in bytes.
    """

    text: str = ""
    gap: Gap | None = None
    session: bool = False
    content: bytes | None = None


def read(source: Source) -> Asked:
    """Read the prompt, or the file with the gap.

    Raises:
        UsageError: there is no prompt, there are two, or the gap is nowhere.
        UserError: a file cannot be read.
    """
    from codecria.data.formats import cursor

    if source.file is None and source.at is not None:
        raise UsageError("--at needs a file", hint="name it with --file")
    parts = source.prefix is not None or source.suffix is not None
    if source.file is None and not parts:
        return _read_text(source)
    if source.prompt is not None or source.prompt_file is not None or (source.file and parts):
        raise UsageError(
            "there are two prompts", hint="give --file, --prefix/--suffix, or a prompt"
        )
    if source.chat:
        raise UsageError("--chat cannot fill a gap", hint="leave out one of them")
    if source.file is None:
        before, after = (
            decoded(_bytes_of(path), str(path)) if path is not None else ""
            for path in (source.prefix, source.suffix)
        )
        return Asked(gap=cursor.between(before, after))
    content = _bytes_of(source.file)
    text = decoded(content, str(source.file))
    if source.at is None:
        return Asked(gap=cursor.at_marker(text, source.marker), content=content)
    return Asked(gap=cursor.at_place(text, *cursor.parse_place(source.at)), content=content)


def _read_text(source: Source) -> Asked:
    """A prompt's text, its line ends untouched, or the gap that a marker in it names."""
    from codecria.data.formats import cursor

    if source.prompt is not None and source.prompt_file is not None:
        raise UsageError("there are two prompts", hint="give the argument or --prompt-file")
    if source.prompt_file is not None:
        text = decoded(_bytes_of(source.prompt_file), str(source.prompt_file))
    elif source.prompt == STDIN or (source.prompt is None and not sys.stdin.isatty()):
        text = decoded(sys.stdin.buffer.read(), "the prompt")
    elif source.prompt is not None:
        text = decoded(os.fsencode(source.prompt), "the prompt")
    elif source.chat:
        return Asked(session=True)
    else:
        raise UsageError(
            "there is no prompt", hint="give it as an argument, with --prompt-file, or in a pipe"
        )
    if not source.chat and source.marker and source.marker in text:
        return Asked(gap=cursor.at_marker(text, source.marker))
    return Asked(text=text)


def dialog_of(text: str, system: str | None, *, refuse_tags: bool) -> list[Message]:
    """One question as a dialog; warns of chat-template tags in it.

    Raises:
        UsageError: there is one, and `refuse_tags` is set.
    """
    from codecria.data.formats.chat import Message

    dialog = [Message(role="user", content=text)]
    if system is not None:
        dialog.insert(0, Message(role="system", content=system))
    warn_of_tags(dialog, refuse_tags=refuse_tags)
    return dialog


def report_left_out(prompt: Prompt, context: int) -> None:
    """Say on stderr, in one line, what a cut prompt has lost."""
    if prompt.left_out is not None:
        render.note(
            f"the prompt is cut to {len(prompt.ids):,} of {context:,} tokens: {prompt.left_out}"
            " are left out"
        )


def warn_of_tags(dialog: Sequence[Message], *, refuse_tags: bool) -> None:
    """Warn of chat-template tags in messages, which a model may take for the end of a turn.

    Raises:
        UsageError: there is one, and `refuse_tags` is set.
    """
    from codecria.data.formats import chat

    for tag in chat.tags_in(dialog):
        if refuse_tags:
            raise UsageError(
                f"a message holds {tag}", hint="leave out --refuse-tags to send it as it is"
            )
        render.warn(f"a message holds {tag}, which the model may take for the end of a turn")


def show_tokens(tokenizer: Tokenizer, prompt: Prompt, *, as_json: bool) -> None:
    """The prompt as the model reads it: on stderr as a list, on stdout as JSON."""
    pieces = tokenizer.pieces(prompt.ids)
    if as_json:
        render.emit_json({"ids": list(prompt.ids), "pieces": pieces})
        return
    for token, piece in zip(prompt.ids, pieces, strict=True):
        render.note(f"{token:>6}  {piece!r}")
    if prompt.opening is not None:
        render.note(f"the completion begins with {prompt.opening.text.decode()!r} (--heal)")
    render.note(f"{len(prompt.ids)} tokens")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def decoded(raw: bytes, what: str) -> str:
    """Text of UTF-8 bytes.

    Raises:
        UsageError: they are not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}",
            hint="convert it first, for example with iconv",
        ) from error
