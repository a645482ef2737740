"""How `generate` prints completions, or writes them into a file."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from codecria.data.errors import UserError

if TYPE_CHECKING:
    from codecria.core.inference.decoding import Completion
    from codecria.data.formats.cursor import Gap

    from .prompt import Asked

Write = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One finished completion, wherever it was generated.

    Attributes:
        text: what follows the prompt.
        finish_reason: "stop", or "length" at the limit.
        prompt_tokens, completion_tokens: counts.
        prefill_s, decode_s: seconds for the prompt and for the completion.
        cached_tokens: of the prompt, that were not read again.
        drafted, accepted: tokens that were drafted, and those that were right.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    prefill_s: float = 0.0
    decode_s: float = 0.0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0


Events = Iterator[tuple[int, str | Shown]]


def shown(events: Iterator[tuple[int, str | Completion]]) -> Events:
    """The events of an engine as they are shown."""
    for number, event in events:
        if isinstance(event, str):
            yield number, event
            continue
        yield (
            number,
            Shown(
                text=event.text,
                finish_reason=event.finish_reason,
                prompt_tokens=event.prompt_tokens,
                completion_tokens=len(event.ids),
                prefill_s=event.prefill_s,
                decode_s=event.decode_s,
                cached_tokens=event.cached_tokens,
                drafted=event.drafted,
                accepted=event.accepted,
            ),
        )


@contextlib.contextmanager
def payload(out: Path | None) -> Iterator[Write]:
    """What writes the payload: to stdout, or to a file that appears whole when the block ends.

    Raises:
        UserError: the file cannot be written.
    """
    if out is None:
        yield _to_stdout
        return
    from codecria.cli.signals import ending_in_order
    from codecria.data.files import atomic_writer, write_error

    path = out.resolve()  # a symbolic link stays one
    if path.exists() and not path.is_file():  # a device or a named pipe cannot be replaced
        try:
            with path.open("w", encoding="utf-8", newline="") as file:
                yield file.write
        except OSError as error:
            raise write_error(path, error) from error
        return
    with ending_in_order(f"stopped: {out} was not written"), atomic_writer(path) as raw:
        if path.exists():
            os.fchmod(raw.fileno(), stat.S_IMODE(path.stat().st_mode))
        yield lambda text: raw.write(text.encode())


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def stream(events: Events, write: Write, *, to_terminal: bool) -> None:
    """Write one completion as it is produced, to the byte.

    Args:
        events: of one sample.
        write: see `payload`.
        to_terminal: end the last line, for the shell's prompt; a pipe gets the completion alone.
    """
    ended_line = True
    for _, event in events:
        if isinstance(event, str):
            write(event)
            ended_line = event.endswith("\n")
    if not ended_line and to_terminal:
        write("\n")


def in_order(events: Events, write: Write) -> None:
    """Write several completions, each on lines of its own, in the order of their numbers."""
    waiting: dict[int, str] = {}
    shown = 0
    for number, event in events:
        if isinstance(event, str):
            continue
        waiting[number] = event.text
        while shown in waiting:
            write(waiting.pop(shown) + "\n")
            shown += 1


def json_lines(events: Events, write: Write) -> None:
    """Write one JSON document a completion, as each ends."""
    for number, event in events:
        if isinstance(event, str):
            continue
        seconds = event.prefill_s + event.decode_s
        document = {
            "sample": number,
            "text": event.text,
            "prompt_tokens": event.prompt_tokens,
            "completion_tokens": event.completion_tokens,
            "finish_reason": event.finish_reason,
            "prefill_s": round(event.prefill_s, 6),
            "decode_s": round(event.decode_s, 6),
            "tokens_per_s": round(event.completion_tokens / seconds, 2) if seconds else 0.0,
            "cached_tokens": event.cached_tokens,
            "drafted_tokens": event.drafted,
            "accepted_tokens": event.accepted,
        }
        write(json.dumps(document, ensure_ascii=False) + "\n")


def stripped(events: Events) -> Events:
    """Completions without white space at either end, streamed as soon as that is certain."""
    from codecria.core.inference.shaping import Stripper

    strippers: dict[int, Stripper] = {}
    for number, event in events:
        if not isinstance(event, str):
            yield number, replace(event, text=event.text.strip())
            continue
        text = strippers.setdefault(number, Stripper()).push(event)
        if text:
            yield number, text


def with_line_ends(events: Events, gap: Gap) -> Events:
    """Completions with the line ends of the text around the gap."""
    for number, event in events:
        if isinstance(event, str):
            yield number, gap.shown(event)
        else:
            yield number, replace(event, text=gap.shown(event.text))


def echoed(events: Events, asked: Asked, out: Path | None) -> None:
    """Write the whole text: the prompt and its completion, or the text with its gap filled."""
    with payload(out) as write:
        if asked.gap is not None:
            write(asked.gap.filled(middle_of(events).text))
            return
        write(asked.text)
        for _, event in events:
            if isinstance(event, str):
                write(event)


def middle_of(events: Events) -> Shown:
    """The one completion of a gap."""
    [completion] = [event for _, event in events if not isinstance(event, str)]
    return completion


def patch_name(file: Path | None) -> str:
    """The name of a file in a patch: from the working folder, or from the root for one outside it.

    `patch -p1` and `git apply` find the file from there.
    """
    if file is None:
        return "text"
    path = Path(os.path.abspath(file))  # noqa: PTH100 - a symbolic link keeps its own name
    here = Path.cwd()
    return str(path.relative_to(here if path.is_relative_to(here) else path.anchor))


def write_in_place(
    file: Path, read: bytes, gap: Gap, completion: Shown, *, printed: bool = False
) -> None:
    """Write the file with its gap filled; its mode, its owner and a link to it stay.

    Args:
        file: named by the user.
        read: its content when the prompt was made.
        gap: the place in it.
        completion: what fills the gap.
        printed: whether the middle is on stdout already.

    Raises:
        UserError: the middle has no end, or the file is another one by now. It stays as it is; in
            the second case the middle is printed, so that it is not lost.
    """
    from codecria.data.files import atomic_writer

    if completion.finish_reason == "length":
        raise UserError(
            f"the middle did not end within {completion.completion_tokens} tokens; {file} is"
            " unchanged",
            hint="allow more with --max-tokens, or end it with --stop",
        )
    path = file.resolve()
    try:
        same = path.is_file() and path.read_bytes() == read
    except OSError:
        same = False
    if not same:
        if not printed:
            _to_stdout(gap.shown(completion.text))
        raise UserError(
            f"{file} was changed while the middle was generated, and is left as it is",
            hint="the middle is on stdout; run the command again to fill the new file",
        )
    before = path.stat()
    with atomic_writer(path) as written:
        with contextlib.suppress(PermissionError):  # only the superuser may give files away
            os.fchown(written.fileno(), before.st_uid, before.st_gid)
        os.fchmod(written.fileno(), stat.S_IMODE(before.st_mode))
        written.write(gap.filled(completion.text).encode())
