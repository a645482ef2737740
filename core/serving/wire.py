"""What the protocols share: a request as tasks, its results, and how numbers are read from JSON."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from codecria.core.inference.decoding import Completion
from codecria.core.inference.prompts import Prompt, Prompts
from codecria.core.inference.sampling import LEAST_TEMPERATURE, Sampling
from codecria.core.inference.shaping import Indented, LineEnds, Stripper
from codecria.data.errors import UsageError, UserError

from .tasks import Piece, Shaper, Task

MOST_SAMPLES = 16
MOST_PROMPTS = 64
MOST_STOPS = 16
STOP_CHARACTERS = 512
GAP_TEMPLATE = ("<PRE> ", " <SUF>", " <MID>")  # Code Llama's release, README: infilling
SEVERAL_TEMPERATURE = 0.8  # of several samples, where nobody says: greedy ones would all be equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The model that is served, and what holds where a request does not say.

    Attributes:
        name: of the model, for clients.
        prompts: builds its prompts.
        ends: ids that end a completion, as the checkpoint's files name them.
        temperature: 0 is greedy.
        draft: whether tokens are drafted.
        parameters: of the model; None where it is not known.
        created: seconds since 1970 when it was loaded.
    """

    name: str
    prompts: Prompts
    ends: frozenset[int]
    temperature: float = 0.0
    draft: bool = True
    parameters: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(slots=True)
class Result:
    """One completion as the client sees it.

    Attributes:
        index: its number in the response.
        text: what is shown.
        completion: what was generated.
        reason: why it ended.
        timed_out: whether its time was over.
    """

    index: int
    text: str
    completion: Completion
    reason: Literal["stop", "length"]
    timed_out: bool = False


class Call(Protocol):
    """A request that was understood, and how its response is written.

    Results are numbered: those of the first task, then those of the next.
    """

    @property
    def tasks(self) -> Sequence[Task]:
        """What is to be generated."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the response is written as it is generated."""
        ...

    @property
    def media_type(self) -> str:
        """Of a stream."""
        ...

    def shaper(self) -> Shaper | None:
        """A new shaper for one completion, or None."""
        ...

    def whole(self, results: Sequence[Result]) -> Any:
        """The response as a JSON value."""
        ...

    def first(self) -> Sequence[bytes]:
        """What begins a stream."""
        ...

    def piece(self, index: int, text: str, piece: Piece) -> Sequence[bytes]:
        """What a piece of text adds to a stream."""
        ...

    def done(self, result: Result) -> Sequence[bytes]:
        """What a finished completion adds to a stream."""
        ...

    def last(self, results: Sequence[Result]) -> Sequence[bytes]:
        """What ends a stream."""
        ...


class Body(BaseModel):
    """A request's JSON object. Fields that no protocol of ours knows are ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, protected_namespaces=())


BodyT = TypeVar("BodyT", bound=Body)


def parsed(kind: type[BodyT], content: bytes) -> BodyT:
    """A request's body.

    Raises:
        UsageError: it is not JSON, or a field is wrong; the first one is named.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def sampling_of(
    served: Served,
    *,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    samples: int,
) -> Sampling:
    """How tokens are drawn, from a request's fields.

    A negative seed, or none, draws one.

    Raises:
        UsageError: a value is out of range.
    """
    if temperature is None:
        temperature = served.temperature
        if samples > 1 and temperature == 0:
            temperature = SEVERAL_TEMPERATURE
    if 0 < temperature < LEAST_TEMPERATURE:
        temperature = 0.0
    if seed is None or seed < 0:
        seed = secrets.randbits(32) if temperature > 0 else 0
    return Sampling(
        temperature=temperature,
        top_p=1.0 if top_p is None or top_p >= 1 else top_p,
        top_k=max(0, top_k or 0),
        seed=seed % (1 << 32),
    )


def stops_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings; empty ones stop nothing.

    Raises:
        UsageError: there are too many, or one is too long.
    """
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    found = tuple(text for text in found if text)
    if len(found) > MOST_STOPS or any(len(text) > STOP_CHARACTERS for text in found):
        raise UsageError(
            f"at most {MOST_STOPS} stop strings of at most {STOP_CHARACTERS} characters are taken"
        )
    return found


def samples_of(n: int | None) -> int:
    """The number of samples.

    Raises:
        UsageError: it is out of range.
    """
    n = 1 if n is None else n
    if not 1 <= n <= MOST_SAMPLES:
        raise UsageError(f"n is {n}: from 1 to {MOST_SAMPLES} completions are given")
    return n


def gap_in_template(served: Served, text: str) -> tuple[str, str] | None:
    """(prefix, suffix) of a prompt that an editor wrote in Code Llama's template for gaps.

    Editors whose protocol has no suffix, such as Zed, write `<PRE> prefix <SUF>suffix <MID>`
    themselves. Read as text it would be these letters. The parts are still read as text, so
    nothing in them becomes a special token.

    Args:
        served: the model; one that fills no gaps has no template.
        text: the whole prompt; None is returned where it is not exactly one template.
    """
    start, between, end = GAP_TEMPLATE
    if served.prompts.tokenizer.infill is None or text.count(between) != 1:
        return None
    if not text.startswith(start) or not text.endswith(end):
        return None
    prefix, _, suffix = text[len(start) : -len(end)].partition(between)
    return prefix, suffix


def most_of(tokens: int | None) -> int | None:
    """A limit of tokens; None where a request names none, or a negative number for none."""
    return None if tokens is None or tokens < 0 else tokens


def task_of(
    served: Served,
    prompt: Prompt,
    sampling: Sampling,
    *,
    max_tokens: int | None,
    stops: tuple[str, ...] = (),
    samples: int = 1,
    top_scores: int | None = None,
    prompt_s: float | None = None,
    predict_s: float | None = None,
) -> Task:
    """The task of a prompt.

    Args:
        served, prompt, sampling, stops, samples, top_scores, prompt_s, predict_s: see `Task`.
        max_tokens: None or a negative number for as many as the context holds.
    """
    context = served.prompts.context
    if len(prompt.ids) >= context:
        raise UserError(
            f"the prompt has {len(prompt.ids):,} tokens, the context {context:,}",
            hint="shorten it, or widen the context with --context",
        )
    unlimited = max_tokens is None or max_tokens < 0
    return Task(
        prompt=prompt.ids,
        sampling=sampling,
        max_tokens=context if unlimited or max_tokens is None else max_tokens,
        context=context,
        stops=stops,
        ends=served.ends | prompt.ends,
        samples=samples,
        opening=prompt.opening,
        sources=prompt.sources if served.draft else None,
        top_scores=top_scores,
        prompt_s=prompt_s,
        predict_s=predict_s,
        left_out=prompt.left_out,
    )


class Chain:
    """Shapers one after the other."""

    def __init__(self, shapers: Sequence[Shaper]) -> None:
        self._shapers = shapers

    @property
    def ended(self) -> bool:
        """Whether one of them has ended."""
        return any(shaper.ended for shaper in self._shapers)

    def push(self, text: str) -> str:
        """The text to show for the next piece."""
        for shaper in self._shapers:
            text = shaper.push(text)
        return text

    def finish(self) -> str:
        """What is still to be shown."""
        text = ""
        for shaper in self._shapers:
            text = shaper.push(text) + shaper.finish()
        return text


def shaper_of(
    prompt: Prompt | None = None, *, least_indent: int = 0, is_answer: bool = False
) -> Shaper | None:
    """What changes the text of a completion: an answer's white space, a middle's lines."""
    shapers: list[Shaper] = []
    if is_answer:
        shapers.append(Stripper())
    if least_indent > 0:
        shapers.append(Indented(least_indent))
    if prompt is not None and prompt.gap is not None and prompt.gap.carriage:
        shapers.append(LineEnds())
    return Chain(shapers) if shapers else None


def token_text(served: Served, token: int) -> tuple[str, bytes]:
    """What a token adds to a text, as text and as bytes; a control piece's name adds nothing."""
    pieces = served.prompts.tokenizer.typed_bytes()
    raw = pieces[token] if token < len(pieces) else b""
    return raw.decode("utf-8", "replace"), raw


def budget_s(milliseconds: float | None) -> float | None:
    """A time limit in seconds; none where it is absent, zero or negative."""
    return milliseconds / 1000 if milliseconds is not None and milliseconds > 0 else None
