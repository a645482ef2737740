"""Who answers: one of our checkpoints, an OpenAI-compatible endpoint, or a batch of files.

    Ask       a dialog, and which samples of its answer are wanted
    Reply     one sample of an answer, under an id that is a digest of all that it depends on

An id that is the same means the same question to the same model, so replies outlive a kill, and
what was answered by one model is never taken for another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from codecria.core.seed import seed_of
from codecria.data.files import digest_json
from codecria.data.formats.chat import Dialog

from .prompts import Form, as_text
from .settings import Settings

ID_DIGITS = 24  # hexadecimal: 96 bits, so that millions of ids do not collide
# What ends an answer of each stage; the text form also ends where the next question would begin.
STOPS: dict[str, tuple[str, ...]] = {
    "questions": (),
    "tests": ("[/TESTS]",),
    "solutions": ("[/PYTHON]",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to a model, and how its answers are drawn.

    Attributes:
        stage: in `settings.STAGES`.
        key: what it is about: a round's number, a question's id.
        dialog: that the model answers.
        samples: how many answers are wanted, numbered from 0.
        settings: say how they are drawn.
        model: facts that name the model.
        form: how the dialog is written.
    """

    stage: str
    key: str
    dialog: Dialog
    samples: int
    settings: Settings
    model: Mapping[str, Any]
    form: Form

    @property
    def seed(self) -> int:
        """The seed of its samples: what is asked of different things is drawn apart."""
        return seed_of(self.settings.seed, f"{self.stage}:{self.key}")

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return STOPS[self.stage] + (("[INST]",) if self.form == "few-shot" else ())

    @property
    def temperature(self) -> float:
        """Of its samples; 0 is greedy."""
        return self.settings.temperature(self.stage)

    @property
    def max_tokens(self) -> int:
        """The longest answer."""
        return self.settings.max_tokens(self.stage)

    def digest(self) -> str:
        """Of everything that an answer depends on, but the sample's number."""
        return digest_json(
            {
                "stage": self.stage,
                "key": self.key,
                "dialog": [[message.role, message.content] for message in self.dialog],
                "form": self.form,
                "model": dict(self.model),
                "sampling": [self.temperature, self.settings.top_p, self.seed],
                "max_tokens": self.max_tokens,
            }
        )[:ID_DIGITS]

    def ids(self) -> list[str]:
        """The ids of its replies, by sample."""
        digest = self.digest()
        return [f"{digest}-{sample}" for sample in range(self.samples)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer.

    Attributes:
        id: see `Ask.ids`.
        text: what the model said, without what ended it.
        finish_reason: "stop", "length" where it was cut, "prompt_too_long" where it left no room,
            or "refused" where the endpoint will not answer it.
        prompt_tokens, tokens: of the prompt and of the answer, where known.
        seconds: that it took, its share where answers were drawn side by side.
        detail: why it was refused.
    """

    id: str
    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    tokens: int | None = None
    seconds: float = 0.0
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """The reply as a line of a journal."""
        line: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
        }
        return line | ({"detail": self.detail} if self.detail else {})


class Model(Protocol):
    """Who answers a stage."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What names the model; an answer's id depends on it."""
        ...

    @property
    def form(self) -> Form:
        """How dialogs are written for it."""
        ...

    def answer(self, asks: Sequence[Ask], known: Known) -> Iterator[list[Reply]]:
        """The replies that are not known yet, some at a time.

        Args:
            asks: of one stage, in order.
            known: the ids whose replies are known.

        Raises:
            UserError: the model cannot be asked at all.
        """
        ...


class Known(Protocol):
    """The ids whose replies are known."""

    def __contains__(self, key: str) -> bool:
        """Whether a reply is there."""
        ...


class Absent:
    """A model that is not there: what it answered before is all there is.

    Args:
        facts: that name it.
        form: how it was asked.
    """

    def __init__(self, facts: Mapping[str, Any], *, form: Form) -> None:
        self.facts: dict[str, Any] = dict(facts)
        self.form: Form = form

    def answer(self, asks: Sequence[Ask], known: Known) -> Iterator[list[Reply]]:  # noqa: ARG002
        """Nothing."""
        yield from ()


def messages_of(ask: Ask) -> list[dict[str, str]]:
    """The dialog as OpenAI's chat completions take it."""
    return [{"role": message.role, "content": message.content} for message in ask.dialog]


def body_of(ask: Ask, sample: int, name: str) -> tuple[str, dict[str, Any]]:
    """(path, body) of the OpenAI request for one sample of an answer.

    Args:
        ask: what is asked.
        sample: its number; each has a seed of its own.
        name: of the model at the endpoint.
    """
    body: dict[str, Any] = {"model": name}
    if ask.form == "chat":
        path = "/chat/completions"
        body["messages"] = messages_of(ask)
    else:
        path = "/completions"
        body["prompt"] = as_text(ask.dialog)
    body |= {
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": ask.settings.top_p,
        "seed": (ask.seed + sample) % (1 << 31),  # some servers take 31 bits
    }
    if ask.stops:
        body["stop"] = list(ask.stops)
    return path, body


def reply_of(key: str, body: Any, *, seconds: float = 0.0) -> Reply:
    """The reply in an OpenAI response.

    Args:
        key: its id.
        body: the response as parsed.
        seconds: that it took.

    Raises:
        ValueError: it is no such response.
    """
    if not isinstance(body, dict):
        raise ValueError("the response is no JSON object")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("the response has no choices")
    choice = choices[0]
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is None:
        text = ""  # a model that said nothing
    if not isinstance(text, str):
        raise ValueError("the response's content is no text")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        id=key,
        text=text,
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        tokens=_count(usage.get("completion_tokens")),
        seconds=seconds,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
