"""`codecria generate`: complete a prompt; stdout carries the completion and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import render

if TYPE_CHECKING:
    from codecria.core.inference.engine import Completion
    from codecria.data.formats.chat import Message
    from codecria.data.formats.cursor import Gap
    from codecria.data.tokenizer.tokenizer import Specials, Tokenizer

HELP = """Complete, infill or answer, streamed to stdout as it is produced.

The prompt is the argument, a file (--prompt-file), or stdin (-), taken byte for byte. With
<FILL_ME> in it, what belongs there is written; --file F --at LINE:COL does that to a file. With
--chat the prompt is a question, and without one a session begins.

Example: codecria generate --model run --file app.py --at 42:9 --diff
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("generate", help=HELP)(generate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked of the model.

    Attributes:
        ids: the prompt.
        ends: ids that end it, besides EOS.
        gap: what is filled, when something is.
        file: that the gap is in.
        strip: take white space off both ends of what comes, as of an answer.
    """

    ids: list[int]
    ends: tuple[int, ...] = ()
    gap: Gap | None = None
    file: Path | None = None
    strip: bool = False


def generate(
    model: Annotated[Path, typer.Option(help="Checkpoint or run folder.")],
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads stdin, as does no prompt in a pipe.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a file.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Fill a gap in this file, at --at or at the marker.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="LINE:COL", help="The gap: before this column, from 1.")
    ] = None,
    marker: Annotated[str, typer.Option(help="Text that stands where the gap is.")] = "<FILL_ME>",
    prefix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What stands before the gap.")
    ] = None,
    suffix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What stands after the gap.")
    ] = None,
    form: Annotated[
        Literal["psm", "spm"], typer.Option(help="Infilling: prefix first, or suffix first.")
    ] = "psm",
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write --file with the gap filled.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print what filling changes.")] = False,
    heal: Annotated[
        bool, typer.Option("--heal", help="Let the prompt's last word be a part of a longer one.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer; without a prompt, hold a conversation.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="With --chat: what the model is to keep to.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse messages that hold tags of the chat form.")
    ] = False,
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
    show_tokens: Annotated[
        bool, typer.Option("--show-tokens", help="Print the prompt's ids and pieces on stderr.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop before the model is loaded.")
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
    from codecria.data.errors import UsageError

    gap = _gap(file, at, marker, prefix, suffix, prompt, prompt_file)
    talks = chat and gap is None and prompt is None and prompt_file is None and sys.stdin.isatty()
    text = "" if gap is not None or talks else _prompt_text(prompt, prompt_file)
    if gap is None and not chat and marker and marker in text:
        gap = _marked(text, marker)
    if heal and gap is not None and form == "psm":
        render.warn("--heal changes nothing with --form psm: the middle has pieces of its own")
    _refuse_misfits(chat=chat, gap=gap, file=file, in_place=in_place, diff=diff, heal=heal)
    if (in_place or diff) and (samples > 1 or as_json):
        raise UsageError("--in-place and --diff show one completion", hint="without --samples")

    import torch

    from codecria.core.inference.engine import Limits
    from codecria.core.inference.generator import Generator, tokenizer_of
    from codecria.core.inference.healing import heal as healed
    from codecria.core.inference.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    limits = Limits(
        max_tokens=max_tokens,
        stops=tuple(_unescape(text) for text in stop or ()),
        samples=samples,
        context=context,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    tokenizer = tokenizer_of(model)
    if talks:
        from .chat import converse

        generator = Generator.load(model, device=device, dtype=dtype)
        converse(generator, sampling, limits, system=system, strict=strict, truncate=truncate)
        return
    specials: Specials = "parse" if parse_specials else "text"
    if gap is not None:
        task = _infill_task(tokenizer, gap, form, file)
    elif chat:
        task = _chat_task(tokenizer, text, system, strict=strict)
    else:
        task = Task(ids=tokenizer.encode(text, bos=True, specials=specials))
    if show_tokens or dry_run:
        _show_tokens(tokenizer, task.ids, as_json=as_json and dry_run)
    if dry_run:
        return
    generator = Generator.load(model, device=device, dtype=dtype)
    ids = generator.fit(task.ids, limits, truncate=truncate)
    opening = None
    if heal:
        ids, opening = healed(ids, tokenizer.typed_bytes())
    events = generator.complete(ids, sampling, limits, ends=task.ends, opening=opening)
    if task.strip:
        events = stripped(events)
    if task.gap is not None:
        events = _with_line_ends(events, task.gap)
    if in_place or diff:
        _apply(events, task, in_place=in_place, diff=diff)
    elif as_json:
        _print_json(events)
    elif samples == 1:
        _stream(events)
    else:
        _print_in_order(events)


def _refuse_misfits(
    *, chat: bool, gap: Gap | None, file: Path | None, in_place: bool, diff: bool, heal: bool
) -> None:
    """Options that do not go together.

    Raises:
        UsageError: naming them.
    """
    from codecria.data.errors import UsageError

    if chat and gap is not None:
        raise UsageError("--chat answers, and fills no gap", hint="leave one of them out")
    if in_place and file is None:
        raise UsageError("--in-place writes a file", hint="name it with --file")
    if diff and gap is None:
        raise UsageError("--diff shows how a gap is filled", hint="name one, as with --file --at")
    if chat and heal:
        raise UsageError("--heal goes on with a word; an answer begins anew")


def _gap(
    file: Path | None,
    at: str | None,
    marker: str,
    prefix: Path | None,
    suffix: Path | None,
    prompt: str | None,
    prompt_file: Path | None,
) -> Gap | None:
    """The gap that the options name, if they do.

    Raises:
        UsageError: they contradict each other, or name no place.
    """
    from codecria.data.errors import UsageError
    from codecria.data.formats import cursor

    if file is None and at is not None:
        raise UsageError("--at is a place in a file", hint="name it with --file")
    if file is None and prefix is None and suffix is None:
        return None
    if prompt is not None or prompt_file is not None or (file and (prefix or suffix)):
        raise UsageError(
            "there are two things to complete", hint="give --file, --prefix/--suffix, or a prompt"
        )
    if file is not None:
        text = _read_text(file)
        if at is None:
            return cursor.at_marker(text, marker)
        return cursor.at_place(text, *cursor.parse_place(at))
    return cursor.between(*(_read_text(part) if part else "" for part in (prefix, suffix)))


def _marked(text: str, marker: str) -> Gap:
    from codecria.data.formats import cursor

    return cursor.at_marker(text, marker)


def _infill_task(
    tokenizer: Tokenizer, gap: Gap, form: Literal["psm", "spm"], file: Path | None
) -> Task:
    from codecria.data.formats.infill import Infiller, Order

    infiller = Infiller(tokenizer)
    order = Order.PSM if form == "psm" else Order.SPM
    ids = infiller.prompt(gap.prefix, gap.suffix, order).tolist()
    return Task(ids=ids, ends=(infiller.special.end,), gap=gap, file=file)


def _chat_task(tokenizer: Tokenizer, text: str, system: str | None, *, strict: bool) -> Task:
    from codecria.data.formats import chat

    dialog = [chat.Message(role="user", content=text)]
    if system is not None:
        dialog.insert(0, chat.Message(role="system", content=system))
    warn_of_tags(dialog, strict=strict)
    ids = chat.prompt_ids(tokenizer, dialog)
    return Task(ids=ids, ends=(chat.stop_id(tokenizer),), strip=True)


def warn_of_tags(dialog: Sequence[Message], *, strict: bool) -> None:
    """Say that a message holds what the model takes for the end of a turn.

    Raises:
        UsageError: with `strict`.
    """
    from codecria.data.errors import UsageError
    from codecria.data.formats import chat

    for tag in chat.tags_in(dialog):
        if strict:
            raise UsageError(f"a message holds {tag}", hint="leave out --strict to send it so")
        render.warn(f"a message holds {tag}, which the model may take for the end of a turn")


def stripped(
    events: Iterator[tuple[int, str | Completion]],
) -> Iterator[tuple[int, str | Completion]]:
    """Completions without white space at either end, streamed as soon as it is known not to be."""
    held: dict[int, str] = {}
    for number, event in events:
        if not isinstance(event, str):
            yield number, replace(event, text=event.text.strip())
            continue
        text = held.get(number, "") + event
        if number not in held:
            text = text.lstrip()
            if not text:
                continue
        shown = text.rstrip()
        held[number] = text[len(shown) :]
        if shown:
            yield number, shown


def _with_line_ends(
    events: Iterator[tuple[int, str | Completion]], gap: Gap
) -> Iterator[tuple[int, str | Completion]]:
    """Completions with the line ends of the text around the gap."""
    for number, event in events:
        if isinstance(event, str):
            yield number, gap.shown(event)
        else:
            yield number, replace(event, text=gap.shown(event.text))


def _apply(
    events: Iterator[tuple[int, str | Completion]], task: Task, *, in_place: bool, diff: bool
) -> None:
    """Write the file with its gap filled, or print what filling changes, or both.

    Raises:
        UserError: the middle has no end, so the file stays as it is.
    """
    from codecria.data.errors import UserError
    from codecria.data.files import atomic_writer

    assert task.gap is not None, "nothing is filled"
    [completion] = [event for _, event in events if not isinstance(event, str)]
    middle = completion.text.replace("\r\n", "\n") if task.gap.carriage else completion.text
    if diff:
        sys.stdout.write(task.gap.diff(middle, task.file.name if task.file else "text"))
    if in_place:
        assert task.file is not None, "--in-place without a file"
        if completion.finish_reason == "length":
            raise UserError(
                f"the middle did not end within {len(completion.ids)} tokens: {task.file} stays",
                hint="allow more with --max-tokens, or end it with --stop",
            )
        path = task.file.resolve()  # a link stays one
        with atomic_writer(path) as written:
            os.fchmod(written.fileno(), path.stat().st_mode)  # a script stays executable
            written.write(task.gap.filled(middle).encode())


def _show_tokens(tokenizer: Tokenizer, ids: list[int], *, as_json: bool) -> None:
    """The prompt as the model sees it: on stderr for people, on stdout as JSON."""
    pieces = tokenizer.pieces(ids)
    if as_json:
        render.emit_json({"ids": ids, "pieces": pieces})
        return
    for token, piece in zip(ids, pieces, strict=True):
        render.note(f"{token:>6}  {piece!r}")
    render.note(f"{len(ids)} tokens")


def _prompt_text(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from wherever it comes, its line ends untouched.

    Raises:
        UsageError: there is none, there are two, or it is not UTF-8.
    """
    from codecria.data.errors import UsageError

    if prompt is not None and prompt_file is not None:
        raise UsageError("there are two prompts", hint="give the argument or --prompt-file")
    if prompt_file is not None:
        return _read_text(prompt_file)
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return _decoded(sys.stdin.buffer.read(), "the prompt")
    if prompt is not None:
        return _decoded(os.fsencode(prompt), "the prompt")
    raise UsageError(
        "there is no prompt", hint="give it as an argument, with --prompt-file, or in a pipe"
    )


def _read_text(path: Path) -> str:
    """A file's text, to the byte."""
    from codecria.data.errors import UserError

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return _decoded(raw, str(path))


def _decoded(raw: bytes, what: str) -> str:
    from codecria.data.errors import UsageError

    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}",
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
