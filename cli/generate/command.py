"""The verb `generate`: its options, and the way from a prompt to a completion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codecria.cli import options, render

from . import output
from .prompt import (
    Asked,
    Prompt,
    Source,
    chat_prompt,
    infill_prompt,
    read,
    report_left_out,
    show_tokens,
    text_prompt,
)

if TYPE_CHECKING:
    from codecria.data.formats.window import Truncate

HELP = """Complete a prompt, fill a gap in a file, or answer a question.

The prompt is the argument, --prompt-file, or stdin. In a prompt that holds <FILL_ME> that place is
filled; --file with --at fills a place in a file. --chat without a question starts a session.

Examples:

codecria generate -m run 'def quicksort('

codecria generate -m run --file app.py --at 42:9 --diff

codecria generate -m run --chat 'What does zip() return?'
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("generate", help=HELP)(generate)


def generate(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads stdin, as does no prompt in a pipe.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Read the prompt from a file.", rich_help_panel=options.INPUT),
    ] = None,
    adapter: options.Adapter = None,
    context: options.Context = None,
    truncate: Annotated[
        Literal["off", "left", "window"] | None,
        typer.Option(
            help="For a prompt that is too long: off is an error, left cuts the start, window cuts"
            " both sides of the gap; in a chat both leave out the oldest turns"
            " [default: window for gaps and chat, else off].",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    parse_specials: Annotated[
        bool,
        typer.Option(
            "--parse-specials",
            help="Parse special tokens in the prompt, and let completions hold them.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    heal: Annotated[
        bool,
        typer.Option(
            "--heal",
            help="Token healing: finish a token that the prompt cuts off.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    show_prompt: Annotated[
        bool,
        typer.Option(
            "--show-tokens",
            help="Print the prompt's ids and pieces on stderr.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Fill a gap in this file, at --at or at the marker.",
            rich_help_panel=options.INFILLING,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="LINE:COL",
            help="Place of the gap: before this column; both count from 1.",
            rich_help_panel=options.INFILLING,
        ),
    ] = None,
    marker: Annotated[
        str,
        typer.Option(help="Text that marks the gap.", rich_help_panel=options.INFILLING),
    ] = "<FILL_ME>",
    prefix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text before the gap.", rich_help_panel=options.INFILLING
        ),
    ] = None,
    suffix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text after the gap.", rich_help_panel=options.INFILLING),
    ] = None,
    form: Annotated[
        Literal["psm", "spm"],
        typer.Option(
            help="Prompt order: psm (prefix, suffix, middle) or spm (suffix, prefix, middle).",
            rich_help_panel=options.INFILLING,
        ),
    ] = "psm",
    prefix_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With --truncate window: part of the tokens kept before the gap.",
            rich_help_panel=options.INFILLING,
        ),
    ] = 0.75,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Write --file with the gap filled.",
            rich_help_panel=options.INFILLING,
        ),
    ] = False,
    diff: Annotated[
        bool,
        typer.Option(
            "--diff",
            help="Print the filled gap as a patch.",
            rich_help_panel=options.INFILLING,
        ),
    ] = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Answer a question; without one, start a chat session.",
            rich_help_panel=options.CHAT,
        ),
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="System prompt.", rich_help_panel=options.CHAT)
    ] = None,
    refuse_tags: Annotated[
        bool,
        typer.Option(
            "--refuse-tags",
            help="Refuse messages that hold chat-template tags such as [INST].",
            rich_help_panel=options.CHAT,
        ),
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option(
            help="Longest completion, in tokens.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = 128,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = 0,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", "-n", help="Number of completions.", rich_help_panel=options.SAMPLING
        ),
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="End before this text; repeatable; \\n and \\t are understood.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write to this file instead of stdout; it appears when complete.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.JsonLines = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the prompt's tokens and stop.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Read the prompt, fit it to the context, complete it."""
    model = options.adapted(model, adapter)
    asked = read(
        Source(
            prompt=prompt,
            prompt_file=prompt_file,
            file=file,
            at=at,
            marker=marker,
            prefix=prefix,
            suffix=suffix,
            chat=chat,
        )
    )
    _check_combination(asked, chat=chat, file=file, in_place=in_place, diff=diff, heal=heal)
    many = samples > 1 or as_json
    _check_output(file=file, out=out, in_place=in_place, diff=diff, many=many)
    if heal and asked.gap is not None and form == "psm":
        render.warn("--heal has no effect with --form psm")

    from codecria.core.checkpoints.checkpoint import Checkpoint
    from codecria.core.inference.decoding import Limits
    from codecria.core.inference.generator import Generator, tokenizer_of
    from codecria.core.inference.sampling import Sampling
    from codecria.data.formats.window import Room

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    limits = Limits(
        max_tokens=max_tokens,
        stops=tuple(_unescape(text) for text in stop or ()),
        samples=samples,
        context=context,
    )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    tokenizer = tokenizer_of(model)
    checkpoint = Checkpoint.open(model)
    if chat:
        from codecria.core.checkpoints.formats.chat_template import template_note

        known = template_note(checkpoint.chat_template(), tokenizer)
        if known is not None:
            render.note(known)
    longest = context or checkpoint.config.max_context
    room = Room(context=longest, max_tokens=max_tokens)
    cut: Truncate = truncate or ("off" if asked.gap is None and not chat else "window")
    if asked.session:
        from .chat import Session

        generator = Generator.load(model, device=device, dtype=dtype)
        Session(
            generator,
            sampling,
            limits,
            room=room,
            truncate=cut,
            system=system,
            refuse_tags=refuse_tags,
        ).run()
        return
    if asked.gap is not None:
        built = infill_prompt(tokenizer, asked.gap, form, room, cut, prefix_share=prefix_share)
    elif chat:
        built = chat_prompt(tokenizer, asked.text, system, room, cut, refuse_tags=refuse_tags)
    else:
        specials: Literal["parse", "text"] = "parse" if parse_specials else "text"
        built = text_prompt(tokenizer, asked.text, room, cut, specials=specials)
    report_left_out(built.left_out, len(built.ids), room)
    if heal and (asked.gap is None or form == "spm"):
        from codecria.core.inference.healing import heal as healed

        ids, opening = healed(built.ids, tokenizer.typed_bytes())
        built = Prompt(ids=ids, left_out=built.left_out, ends=built.ends, opening=opening)
    if show_prompt or dry_run:
        show_tokens(tokenizer, built, as_json=as_json and dry_run)
    if dry_run:
        return
    generator = Generator.load(model, device=device, dtype=dtype)
    events = generator.complete(
        built.ids,
        sampling,
        limits,
        ends=built.ends,
        opening=built.opening,
        specials=parse_specials,
    )
    if asked.gap is not None and (in_place or diff):
        completion = output.middle_of(events)
        if diff:
            with output.payload(out) as write:
                write(asked.gap.diff(completion.text, output.patch_name(file)))
        if in_place:
            assert file is not None, "--in-place without a file"
            assert asked.content is not None, "a file without content"
            output.write_in_place(file, asked.content, asked.gap, completion, printed=diff)
        return
    if chat:
        events = output.stripped(events)
    if asked.gap is not None:
        events = output.with_line_ends(events, asked.gap)
    with output.payload(out) as write:
        if as_json:
            output.json_lines(events, write)
        elif samples == 1:
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
    from codecria.data.errors import UsageError

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
    from codecria.data.errors import UsageError

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


def _unescape(stop: str) -> str:
    """A stop string as typed in a shell, where a line break is hard to type."""
    return stop.replace("\\n", "\n").replace("\\t", "\t")
