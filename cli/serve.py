"""The verb `serve`: a loaded model behind HTTP, for editors, shells and other programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codecria.cli import options, render
from codecria.data.errors import UserError

if TYPE_CHECKING:
    from codecria.core.inference.generator import Generator
    from codecria.core.inference.prefix_cache import PrefixCache

DEFAULT_PORT = 8012  # where llama.vim and llama.vscode look
HELP = """Serve a model over HTTP to editors and other programs.

Speaks llama.cpp's /infill and /completion, OpenAI's /v1/completions (with suffix) and
/v1/chat/completions, Mistral's /v1/fim/completions and Ollama's /api/generate. Requests share
one engine, and what was read of a file is kept for its next completion. Editors: docs/serve.md.

Listens on this machine alone; another --host needs a key.

Examples:

codecria serve -m run

codecria serve -m run --port 8000 --parallel 16 --log

codecria generate --server http://127.0.0.1:8012 'def quicksort('
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("serve", help=HELP)(serve)


def serve(
    model: options.Model,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on.", rich_help_panel=options.SERVER),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port; 0 takes a free one.", rich_help_panel=options.SERVER
        ),
    ] = DEFAULT_PORT,
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="Key that clients must send as a bearer token; better set in CODECRIA_SERVE_KEY,"
            " as other users can see a command line.",
            rich_help_panel=options.SERVER,
        ),
    ] = "",
    parallel: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Sequences decoded in one batch.", rich_help_panel=options.SERVER
        ),
    ] = 8,
    max_requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests in progress or waiting; more are answered with 503.",
            rich_help_panel=options.SERVER,
        ),
    ] = 64,
    max_body: Annotated[
        int,
        typer.Option(
            parser=options.parsed_bytes,
            metavar="BYTES",
            help="Longest request.",
            rich_help_panel=options.SERVER,
        ),
    ] = 8_000_000,
    log: Annotated[
        bool,
        typer.Option(
            "--log",
            help="Print a line on stderr for each request and completion.",
            rich_help_panel=options.SERVER,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON document with the URL on stdout once requests are answered.",
            rich_help_panel=options.SERVER,
        ),
    ] = False,
    adapter: options.Adapter = None,
    context: options.Context = None,
    form: Annotated[
        Literal["psm", "spm"],
        typer.Option(
            help="Prompt order of gaps: psm (prefix, suffix, middle) or spm (suffix, prefix,"
            " middle).",
            rich_help_panel=options.INFILLING,
        ),
    ] = "psm",
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            "-t",
            help="Sampling temperature of requests that name none; 0 is greedy.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = 0.0,
    draft: options.Drafting = "auto",
    cache_memory: Annotated[
        int,
        typer.Option(
            parser=options.parsed_bytes,
            metavar="BYTES",
            help="Memory for prompts that were read; 0 keeps none.",
            rich_help_panel=options.MACHINE,
        ),
    ] = 1_000_000_000,
    cache_disk: options.CacheDisk = 2_000_000_000,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    dtype: options.WeightsDtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    keep_packed: options.KeepPacked = False,
    threads: options.EngineThreads = None,
) -> None:
    """Load the model, listen, answer until a signal ends it."""
    try:
        from codecria.core.serving import server
    except ModuleNotFoundError as error:
        raise UserError(
            f"`serve` needs starlette and uvicorn: {error.name} is not installed",
            hint="pip install 'codecria[serve]'",
        ) from error
    name = model.resolve().name
    model = options.adapted(model, adapter)
    listening = server.listen(host, port, key=key)

    from codecria.core.inference.generator import Generator
    from codecria.core.serving.app import make_app
    from codecria.core.serving.http import Limits
    from codecria.core.serving.start import Settings, start

    compute = options.compute(device, dtype, engine, threads, cache_dtype, keep_packed=keep_packed)
    generator = Generator.computed(model, compute, say=render.note)
    cache = _cache(generator, cache_memory, cache_disk)
    settings = Settings(
        name=name,
        context=context,
        form=form,
        temperature=temperature,
        draft=draft,
        parallel=parallel,
        limits=Limits(body_bytes=max_body, requests=max_requests),
        key=key,
    )
    state = start(generator, settings, cache=cache, log=render.note if log else lambda _: None)
    url = server.url_of(listening)

    def ready() -> None:
        if as_json:
            render.emit_json({"url": url, "model": settings.name})
            sys.stdout.flush()
        render.note(f"{settings.name} at {url}; Ctrl-C ends it")

    from codecria.cli.signals import ending_in_order

    try:
        # The server ends requests in order, then passes the signal on.
        with ending_in_order(""):
            server.run(server.make_server(make_app(state), on_ready=ready), listening)
    finally:
        state.worker.stop()
        if cache is not None:
            cache.write_latest()


def _cache(generator: Generator, memory_bytes: int, disk_bytes: int) -> PrefixCache | None:
    """The cache of prompts that were read."""
    from codecria.core.inference.prefix_cache import PrefixCache

    if not memory_bytes:
        return None
    return PrefixCache(memory_bytes=memory_bytes, disk=generator.disk_blocks(disk_bytes))
