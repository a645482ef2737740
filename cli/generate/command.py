"""The verb `generate`: its options, and the way from a prompt to a completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from codecria.cli import options
from codecria.cli.ranks import sharing_layers
from codecria.data.errors import UsageError

from . import local
from .job import Job
from .prompt import Source

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
    model: options.OptionalModel = None,
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
    echo: Annotated[
        bool,
        typer.Option(
            "--echo",
            help="Print the prompt's text, too, with the completion in its place, as a filter.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let `codecria serve` at this address generate; no model is loaded.",
            rich_help_panel=options.SERVER,
        ),
    ] = None,
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            envvar="CODECRIA_SERVE_KEY",
            help="Key of the server; better set in CODECRIA_SERVE_KEY.",
            rich_help_panel=options.SERVER,
        ),
    ] = "",
    cache: Annotated[
        bool,
        typer.Option(
            "--cache",
            help="Keep what was read of the prompt on disk for later calls that begin alike.",
            rich_help_panel=options.MACHINE,
        ),
    ] = False,
    cache_disk: options.CacheDisk = local.CACHE_BYTES,
    draft: options.Drafting = "auto",
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    dtype: options.WeightsDtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    keep_packed: options.KeepPacked = False,
    threads: options.EngineThreads = None,
) -> None:
    """Read the prompt, fit it to the context, complete it."""
    job = Job(
        source=Source(
            prompt=prompt,
            prompt_file=prompt_file,
            file=file,
            at=at,
            marker=marker,
            prefix=prefix,
            suffix=suffix,
            chat=chat,
        ),
        system=system,
        refuse_tags=refuse_tags,
        form=form,
        prefix_share=prefix_share,
        context=context,
        truncate=truncate,
        heal=heal,
        parse_specials=parse_specials,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        samples=samples,
        stop=tuple(stop or ()),
        draft=draft == "auto",
        in_place=in_place,
        diff=diff,
        out=out,
        as_json=as_json,
        echo=echo,
    )
    asked, request = job.read()
    if server is not None:
        if show_prompt or dry_run:
            raise UsageError("--show-tokens and --dry-run need --model", hint="leave out --server")
        if adapter is not None:
            raise UsageError("--adapter is the server's", hint="give it to codecria serve")
        job.ask(request, server, key)
        return
    if model is None:
        raise UsageError("there is no model", hint="name one with --model, or a --server")
    model = options.adapted(model, adapter)

    loading = local.Loading(
        model=model,
        compute=options.compute(
            device,
            dtype,
            engine,
            threads,
            cache_dtype,
            keep_packed=keep_packed,
            sharing=sharing_layers(mesh, device),
        ),
        cache_bytes=cache_disk if cache else 0,
    )
    local.answer(job, asked, request, loading, show_prompt=show_prompt, dry_run=dry_run)
