"""Generation in this process: the model is loaded, its prompt built, completed, shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from codecria.cli import render

from .job import Job
from .output import Events, shown
from .prompt import Asked, dialog_of, report_left_out, show_tokens
from .request import Request

if TYPE_CHECKING:
    from codecria.core.checkpoints.checkpoint import Checkpoint
    from codecria.core.inference.decoding import Limits
    from codecria.core.inference.generator import Generator
    from codecria.core.inference.loading import Compute
    from codecria.core.inference.prefix_cache import PrefixCache
    from codecria.core.inference.prompts import Prompt
    from codecria.core.inference.sampling import Sampling
    from codecria.data.tokenizer.tokenizer import Tokenizer

CACHE_BYTES = 2_000_000_000  # disk space for prompts that were read, where they are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """The model and how it is loaded.

    Attributes:
        model: checkpoint or run folder.
        compute: what it is computed with.
        cache_bytes: disk space for prompts that were read; 0 keeps none.
    """

    model: Path
    compute: Compute
    cache_bytes: int = 0

    def generator(self) -> Generator:
        """The loaded model."""
        from codecria.core.inference.generator import Generator

        return Generator.of(*_opened(self.model), self.compute, say=render.note)


@cache
def _opened(model: Path) -> tuple[Checkpoint, Tokenizer]:
    """The checkpoint and its tokenizer, opened once."""
    from codecria.core.checkpoints.checkpoint import Checkpoint
    from codecria.core.inference.generator import tokenizer_in

    checkpoint = Checkpoint.open(model)
    return checkpoint, tokenizer_in(checkpoint)


def answer(
    job: Job,
    asked: Asked,
    request: Request,
    loading: Loading,
    *,
    show_prompt: bool = False,
    dry_run: bool = False,
) -> None:
    """Do what a job asks for: a chat session, or the completions of a prompt.

    Args:
        job: as it was read.
        asked, request: what `job.read` found.
        loading: the model.
        show_prompt: whether the prompt's tokens are shown.
        dry_run: whether nothing else is done.

    Raises:
        UserError: the prompt does not fit, or the model cannot do what is asked.
    """
    sampling_of(request)  # before the model is opened
    if asked.session:
        session(request, loading)
        return
    tokenizer, prompt = built_prompt(request, loading)
    if show_prompt or dry_run:
        show_tokens(tokenizer, prompt, as_json=job.as_json and dry_run)
    if dry_run:
        return
    with completing(request, prompt, loading) as events:
        job.write(events, request)


def built_prompt(request: Request, loading: Loading) -> tuple[Tokenizer, Prompt]:
    """The model's tokenizer, and the prompt as it reads it; what was cut is reported.

    Raises:
        UserError: it does not fit, or the model cannot do what is asked.
    """
    from codecria.core.inference.prompts import Prompts

    checkpoint, tokenizer = _opened(loading.model)
    context = context_of(request, loading)
    if request.chat:
        from codecria.core.checkpoints.formats.chat_template import template_note

        note = template_note(checkpoint.chat_template(), tokenizer)
        if note is not None:
            render.note(note)
    prompts = Prompts(tokenizer, context, request.form)
    asked = request.asked
    if asked.gap is not None:
        built = prompts.infilling(
            asked.gap.prefix,
            asked.gap.suffix,
            request.max_tokens,
            truncate=request.cut,
            prefix_share=request.prefix_share,
            healed=request.heal,
        )
    elif request.chat:
        dialog = dialog_of(asked.text, request.system, refuse_tags=request.refuse_tags)
        built = prompts.answer(dialog, request.max_tokens, truncate=request.cut)
    else:
        built = prompts.completion(
            asked.text,
            request.max_tokens,
            truncate=request.cut,
            specials="parse" if request.parse_specials else "text",
            healed=request.heal,
        )
    report_left_out(built, context)
    return tokenizer, built


@contextmanager
def completing(request: Request, prompt: Prompt, loading: Loading) -> Iterator[Events]:
    """The events of a prompt's completions; what was read of it is kept when the block ends."""
    sampling, limits = sampling_of(request)
    generator = loading.generator()
    known = _cache(generator, loading.cache_bytes)
    yield shown(
        generator.complete(
            list(prompt.ids),
            sampling,
            limits,
            ends=prompt.ends,
            opening=prompt.opening,
            specials=request.parse_specials,
            sources=prompt.sources if request.draft else None,
            cache=known,
        )
    )
    if known is not None:
        known.write_latest(loading.cache_bytes // 4)


def session(request: Request, loading: Loading) -> None:
    """A chat session in the terminal."""
    from codecria.data.formats.window import Room

    from .chat import Session

    sampling, limits = sampling_of(request)
    Session(
        loading.generator(),
        sampling,
        limits,
        room=Room(context=context_of(request, loading), max_tokens=request.max_tokens),
        truncate=request.cut,
        system=request.system,
        refuse_tags=request.refuse_tags,
        draft=request.draft,
    ).run()


def sampling_of(request: Request) -> tuple[Sampling, Limits]:
    """How tokens are drawn, and how many.

    Raises:
        UsageError: a value is out of range.
    """
    from codecria.core.inference.decoding import Limits
    from codecria.core.inference.sampling import Sampling

    sampling = Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
    )
    limits = Limits(
        max_tokens=request.max_tokens,
        stops=request.stops,
        samples=request.samples,
        context=request.context,
    )
    return sampling, limits


def context_of(request: Request, loading: Loading) -> int:
    """Longest sequence in tokens."""
    return request.context or _opened(loading.model)[0].config.max_context


def _cache(generator: Generator, disk_bytes: int) -> PrefixCache | None:
    """The prompts that earlier calls read."""
    from codecria.core.inference.prefix_cache import PrefixCache

    disk = generator.disk_blocks(disk_bytes)
    if disk is None:
        return None
    known = PrefixCache(disk=disk)
    if disk.failed:
        render.warn(f"{disk.failed}; --cache has no effect")
    return known
