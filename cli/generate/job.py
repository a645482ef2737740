"""What `generate` is asked to do, however its options were read: the prompt, and the output.

Nothing here imports Typer: `quick.py` reads plain command lines without it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from codecria.cli import render
from codecria.data.errors import UsageError

from . import output
from .prompt import Asked, Source, dialog_of, read
from .request import Completing, Request

if TYPE_CHECKING:
    from codecria.data.formats.cursor import Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Completing):
    """The options that do not name the model. `heal` counts where it is possible.

    Attributes:
        source: where the prompt comes from.
        stop: stop strings as typed, with \\n for the end of a line.
        in_place, diff: how a filled gap is written.
        out: a file to write instead of stdout.
        as_json: whether a document is printed for each completion.
        echo: whether the prompt's text is printed, too.
    """

    source: Source
    stop: tuple[str, ...] = ()
    in_place: bool = False
    diff: bool = False
    out: Path | None = None
    as_json: bool = False
    echo: bool = False

    def read(self) -> tuple[Asked, Request]:
        """The prompt, and how it is completed.

        Raises:
            UserError: the prompt cannot be read, or options do not go together.
        """
        source, chat = self.source, self.source.chat
        asked = read(source)
        _check_combination(
            asked,
            chat=chat,
            file=source.file,
            in_place=self.in_place,
            diff=self.diff,
            heal=self.heal,
        )
        many = self.samples > 1 or self.as_json
        _check_output(
            file=source.file, out=self.out, in_place=self.in_place, diff=self.diff, many=many
        )
        _check_echo(echo=self.echo, chat=chat, many=many, other=self.in_place or self.diff)
        if self.heal and asked.gap is not None and self.form == "psm":
            render.warn("--heal has no effect with --form psm")
        how = {each.name: getattr(self, each.name) for each in fields(Completing)}
        how["heal"] = self.heal and (asked.gap is None or self.form == "spm")
        stops = tuple(_unescape(text) for text in self.stop)
        return asked, Request(asked=asked, chat=chat, stops=stops, **how)

    def ask(self, request: Request, server: str, key: str) -> None:
        """Let a server complete the prompt, and write what it sends.

        Raises:
            UserError: see `remote.completing`.
        """
        from . import remote

        if request.chat:
            dialog_of(request.asked.text, self.system, refuse_tags=self.refuse_tags)
        with remote.completing(request, server, key) as events:
            self.write(events, request)

    def write(self, events: output.Events, request: Request) -> None:
        """Write the completions where and how the options say."""
        asked, file = request.asked, self.source.file
        if self.echo:
            output.echoed(events, asked, self.out)
        elif asked.gap is not None and (self.in_place or self.diff):
            written = file if self.in_place else None
            _fill(events, asked.gap, asked.content, written, file, self.diff, self.out)
        else:
            _print(events, request, as_json=self.as_json, out=self.out)


def _fill(
    events: output.Events,
    gap: Gap,
    content: bytes | None,
    written: Path | None,
    named: Path | None,
    diff: bool,
    out: Path | None,
) -> None:
    """Print a filled gap as a patch, or write it into its file, or both."""
    completion = output.middle_of(events)
    if diff:
        with output.payload(out) as write:
            write(gap.diff(completion.text, output.patch_name(named)))
    if written is not None:
        assert content is not None, "a file without content"
        output.write_in_place(written, content, gap, completion, printed=diff)


def _print(events: output.Events, request: Request, *, as_json: bool, out: Path | None) -> None:
    """Print completions."""
    if request.chat:
        events = output.stripped(events)
    if request.asked.gap is not None:
        events = output.with_line_ends(events, request.asked.gap)
    with output.payload(out) as write:
        if as_json:
            output.json_lines(events, write)
        elif request.samples == 1:
            output.stream(events, write, to_terminal=out is None and sys.stdout.isatty())
        else:
            output.in_order(events, write)


def _check_combination(
    asked: Asked, *, chat: bool, file: Path | None, in_place: bool, diff: bool, heal: bool
) -> None:
    """Check that the options go together.

    Raises:
        UsageError: naming two that do not.
    """
    if in_place and file is None:
        raise UsageError("--in-place needs a file to write", hint="name it with --file")
    if in_place and file is not None and not file.is_file():
        raise UsageError(f"{file} is not a regular file", hint="leave out --in-place")
    if diff and asked.gap is None:
        raise UsageError("--diff needs a gap to fill", hint="name one, as with --file and --at")
    if chat and heal:
        raise UsageError("--heal cannot be combined with --chat", hint="leave out one of them")


def _check_output(
    *, file: Path | None, out: Path | None, in_place: bool, diff: bool, many: bool
) -> None:
    """Check that the output has one meaning.

    Raises:
        UsageError: it has not.
    """
    if (in_place or diff) and many:
        raise UsageError(
            "--in-place and --diff take one completion", hint="leave out --samples and --json"
        )
    if out is None:
        return
    if in_place and not diff:
        raise UsageError("--in-place prints nothing for --out", hint="leave out --out")
    if file is not None and out.resolve() == file.resolve():
        raise UsageError(
            f"--out would replace {file} by its middle", hint="--in-place fills the gap in it"
        )


def _check_echo(*, echo: bool, chat: bool, many: bool, other: bool) -> None:
    """Check that --echo has one text to print.

    Raises:
        UsageError: it has not.
    """
    if echo and (chat or many or other):
        raise UsageError(
            "--echo prints one text with its completion",
            hint="leave out --chat, --samples, --json, --in-place and --diff",
        )


def _unescape(stop: str) -> str:
    """A stop string as typed in a shell, where a line break is hard to type."""
    return stop.replace("\\n", "\n").replace("\\t", "\t")
