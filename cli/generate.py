"""`codecria generate`: complete a prompt; stdout carries the completion and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import render

if TYPE_CHECKING:
    from codecria.core.generate import Completion
    from codecria.data.tokenizer import Specials

HELP = """Complete a prompt, streamed to stdout as it is produced.

The prompt is the argument, a file (--prompt-file), or stdin (-), taken byte for byte.

Example: printf 'def fib(n):' | codecria generate - --model run --max-tokens 64
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("generate", help=HELP)(generate)


def generate(
    model: Annotated[Path, typer.Option(help="Checkpoint or run folder.")],
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads stdin, as does no prompt in a pipe.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a file.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest completion, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus: keep this much probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many best tokens; 0 keeps all.")] = 0,
    seed: Annotated[int, typer.Option(help="Repeats the same samples.")] = 0,
    samples: Annotated[int, typer.Option(help="How many completions.")] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; repeatable; \\n and \\t are understood."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Window in tokens [default: what it was trained on].")
    ] = None,
    truncate: Annotated[
        str | None, typer.Option(help="left: cut the start of a prompt that is too long.")
    ] = None,
    parse_specials: Annotated[
        bool, typer.Option("--parse-specials", help="Let text name control pieces, as the release.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (as stored where that is fast), float32, bfloat16.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; one when cores are busy.")
    ] = (None),
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document a completion, on its own line.")
    ] = False,
) -> None:
    """Parse, load, complete."""
    text = _prompt_text(prompt, prompt_file)

    import torch

    from codecria.core.generate import Limits
    from codecria.core.generator import Generator
    from codecria.core.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    limits = Limits(
        max_tokens=max_tokens,
        stops=tuple(_unescape(text) for text in stop or ()),
        samples=samples,
        context=context,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    generator = Generator.load(model, device=device, dtype=dtype)
    specials: Specials = "parse" if parse_specials else "text"
    ids = generator.prompt_ids(text, limits, truncate=truncate, specials=specials)
    events = generator.complete(ids, sampling, limits)
    if as_json:
        _print_json(events)
    elif samples == 1:
        _stream(events)
    else:
        _print_in_order(events)


def _prompt_text(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from wherever it comes, its line ends untouched.

    Raises:
        UsageError: there is none, there are two, or it is not UTF-8.
    """
    from codecria.data.errors import UsageError, UserError

    if prompt is not None and prompt_file is not None:
        raise UsageError("there are two prompts", hint="give the argument or --prompt-file")
    if prompt_file is not None:
        try:
            raw = prompt_file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {prompt_file}: {error.strerror}") from error
    elif prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        raw = sys.stdin.buffer.read()
    elif prompt is not None:
        raw = os.fsencode(prompt)
    else:
        raise UsageError(
            "there is no prompt", hint="give it as an argument, with --prompt-file, or in a pipe"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the prompt is not UTF-8: byte {error.start} is {raw[error.start]:#04x}",
            hint="convert it first, for example with iconv",
        ) from error


def _unescape(stop: str) -> str:
    """A stop string as typed in a shell, where a line break is hard to type."""
    return stop.replace("\\n", "\n").replace("\\t", "\t")


def _stream(events: Iterator[tuple[int, str | Completion]]) -> None:
    """Write the one completion as it is produced, to the byte."""
    ended_line = True
    for _, event in events:
        if isinstance(event, str):
            sys.stdout.write(event)
            sys.stdout.flush()
            ended_line = event.endswith("\n")
    if not ended_line and sys.stdout.isatty():
        sys.stdout.write("\n")  # for the shell's prompt; a pipe gets the payload alone


def _print_in_order(events: Iterator[tuple[int, str | Completion]]) -> None:
    """Write several completions, each as a line or lines of its own, in their order."""
    waiting: dict[int, str] = {}
    shown = 0
    for number, event in events:
        if isinstance(event, str):
            continue
        waiting[number] = event.text
        while shown in waiting:
            sys.stdout.write(waiting.pop(shown) + "\n")
            sys.stdout.flush()
            shown += 1


def _print_json(events: Iterator[tuple[int, str | Completion]]) -> None:
    """Write one JSON document a completion, as each ends."""
    for number, event in events:
        if isinstance(event, str):
            continue
        seconds = event.prefill_s + event.decode_s
        render.emit_json_line(
            {
                "sample": number,
                "text": event.text,
                "prompt_tokens": event.prompt_tokens,
                "completion_tokens": len(event.ids),
                "finish_reason": event.finish_reason,
                "prefill_s": round(event.prefill_s, 6),
                "decode_s": round(event.decode_s, 6),
                "tokens_per_s": round(len(event.ids) / seconds, 2) if seconds else 0.0,
            }
        )
