"""From a loaded model to a server's state: its prompts, its engine's thread, its prefix cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from codecria.core.inference.decoding import Completion
from codecria.core.inference.engine import Engine
from codecria.core.inference.generator import Generator
from codecria.core.inference.prefix_cache import PrefixCache
from codecria.core.inference.prompts import Answers, Form, Prompts

from .app import State
from .http import Limits
from .metrics import Metrics
from .wire import Served
from .worker import Worker

CHUNK = 256  # tokens of a prompt that are read before other sequences get their next token


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is served.

    Attributes:
        name: of the model, for clients.
        context: longest sequence in tokens; None takes what the model was trained on.
        form: order of the parts of a gap's prompt.
        temperature: where a request does not say.
        draft: whether tokens are drafted.
        parallel: sequences decoded side by side.
        limits: of requests.
        key: that clients must send; empty for none.
    """

    name: str
    context: int | None = None
    form: Form = "psm"
    temperature: float = 0.0
    draft: Literal["auto", "off"] = "auto"
    parallel: int = 8
    limits: Limits = field(default_factory=Limits)
    key: str = ""


def start(
    generator: Generator,
    settings: Settings,
    *,
    cache: PrefixCache | None,
    log: Callable[[str], None],
) -> State:
    """Start the engine's thread.

    Args:
        generator: the model.
        settings: see there.
        cache: of the model.
        log: takes a line for each request, from any thread.
    """
    context = settings.context or generator.config.max_context
    answers, metrics = Answers(), Metrics()

    def engine() -> Engine:
        return generator.engine(batch=settings.parallel, cache=cache, chunk=CHUNK)

    def finished(completion: Completion) -> None:
        answers.add(completion.ids)
        metrics.finished(completion)
        log(line_of(completion))

    prompts = Prompts(generator.tokenizer, context, settings.form, answers)
    served = Served(
        name=settings.name,
        prompts=prompts,
        ends=generator.ends,
        temperature=settings.temperature,
        draft=settings.draft == "auto",
        parameters=generator.config.parameters,
    )
    return State(
        served=served,
        worker=Worker(engine, on_finish=finished),
        limits=settings.limits,
        metrics=metrics,
        key=settings.key,
        slots=settings.parallel,
        cache_bytes=(lambda: cache.memory_bytes) if cache is not None else (lambda: 0),
        log=log,
    )


def line_of(completion: Completion) -> str:
    """A completion in one line, for the log."""
    drafts = (
        f", {completion.accepted} of {completion.drafted} drafted" if completion.drafted else ""
    )
    seconds = completion.decode_s
    speed = f" at {len(completion.ids) / seconds:.0f} tokens/s" if seconds else ""
    return (
        f"{completion.prompt_tokens} tokens read ({completion.cached_tokens} cached) in"
        f" {completion.prefill_s * 1000:.0f} ms, {len(completion.ids)} generated{speed}{drafts}"
    )
