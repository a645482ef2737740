"""Ollama's protocol: /api/generate with `suffix`, /api/chat, /api/tags, /api/show.

`/api/generate` continues the prompt as it is, or fills the gap before `suffix`; templates are not
applied. Streams are JSON lines, and are Ollama's default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from codecria.core.inference.prompts import Prompt
from codecria.data.errors import UsageError

from .llama_cpp import continued
from .openai import ChatMessage, dialog_of
from .tasks import Piece, Shaper, Task
from .wire import (
    GAP_TEMPLATE,
    Body,
    Result,
    Served,
    most_of,
    parsed,
    sampling_of,
    shaper_of,
    stops_of,
    task_of,
)

VERSION = "0.9.0"  # of Ollama's interface, for clients that ask
# What clients look into to learn whether a model fills gaps; in Go's template language.
_START, _BETWEEN, _END = GAP_TEMPLATE
TEMPLATE = (
    "{{ if .Suffix }}"
    + _START
    + "{{ .Prompt }}"
    + _BETWEEN
    + "{{ .Suffix }}"
    + _END
    + "{{ else }}{{ .Prompt }}{{ end }}"
)


class Options(Body):
    """How tokens are drawn."""

    num_predict: int | None = None
    temperature: float | None = Field(None, ge=0)
    top_k: int | None = None
    top_p: float | None = Field(None, gt=0)
    seed: int | None = None
    stop: str | list[str] | None = None


class Common(Body):
    """Fields of both requests."""

    model: str = ""
    stream: bool = True
    options: Options = Field(default_factory=lambda: Options.model_validate({}))
    format: Any = None


class GenerateBody(Common):
    """/api/generate."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    images: list[Any] | None = None
    raw: bool = False  # templates are never applied


class ChatBody(Common):
    """/api/chat."""

    messages: list[ChatMessage] = Field(default_factory=list)
    tools: list[Any] | None = None


class OllamaCall:
    """A request, and its response."""

    media_type = "application/x-ndjson"

    def __init__(self, served: Served, body: Common, prompt: Prompt | None) -> None:
        if body.format:
            raise UsageError("format is not supported", hint="leave it out")
        self._served, self._prompt = served, prompt
        self._is_chat = isinstance(body, ChatBody)
        self.stream = body.stream
        options = body.options
        sampling = sampling_of(
            served,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=options.seed,
            samples=1,
        )
        self.tasks: Sequence[Task] = (
            []
            if prompt is None
            else [
                task_of(
                    served,
                    prompt,
                    sampling,
                    max_tokens=options.num_predict,
                    stops=stops_of(options.stop),
                )
            ]
        )

    def shaper(self) -> Shaper | None:
        """Strips an answer; gives a middle the text's line ends."""
        return shaper_of(self._prompt, is_answer=self._is_chat)

    def whole(self, results: Sequence[Result]) -> Any:
        """The response; a request without a prompt only asks whether the model is there."""
        if not results:
            return self._head() | self._text("") | {"done": True, "done_reason": "load"}
        return self._final(results[0], results[0].text)

    def first(self) -> Sequence[bytes]:
        """Nothing."""
        return ()

    def piece(self, index: int, text: str, piece: Piece) -> Sequence[bytes]:  # noqa: ARG002
        """A line with the text."""
        return (_line(self._head() | self._text(text) | {"done": False}),) if text else ()

    def done(self, result: Result) -> Sequence[bytes]:
        """A line with counts and times."""
        return (_line(self._final(result, "")),)

    def last(self, results: Sequence[Result]) -> Sequence[bytes]:
        """Nothing after a completion."""
        return () if results else (_line(self.whole(())),)

    def _head(self) -> dict[str, Any]:
        return {"model": self._served.name, "created_at": _now()}

    def _text(self, text: str) -> dict[str, Any]:
        if self._is_chat:
            return {"message": {"role": "assistant", "content": text}}
        return {"response": text}

    def _final(self, result: Result, text: str) -> dict[str, Any]:
        completion = result.completion
        nanoseconds = [round(s * 1e9) for s in (completion.prefill_s, completion.decode_s)]
        return (
            self._head()
            | self._text(text)
            | {
                "done": True,
                "done_reason": result.reason,
                "total_duration": sum(nanoseconds),
                "load_duration": 0,
                "prompt_eval_count": completion.prompt_tokens,
                "prompt_eval_duration": nanoseconds[0],
                "eval_count": len(completion.ids),
                "eval_duration": nanoseconds[1],
            }
        )


def generate(served: Served, content: bytes) -> OllamaCall:
    """The call of a POST to /api/generate.

    Raises:
        UserError: the request is wrong, or does not fit.
    """
    body = parsed(GenerateBody, content)
    if body.images:
        raise UsageError("images are not supported", hint="leave them out")
    if body.system:
        raise UsageError("system is not supported here", hint="use /api/chat")
    prompt = None
    most = most_of(body.options.num_predict)
    if body.suffix:
        limit = served.prompts.context // 4 if most is None else most
        prompt = served.prompts.infilling(body.prompt, body.suffix, limit)
    elif body.prompt:
        prompt = continued(served, body.prompt, most)
    return OllamaCall(served, body, prompt)


def chat(served: Served, content: bytes) -> OllamaCall:
    """The call of a POST to /api/chat.

    Raises:
        UserError: the request is wrong, or does not fit.
    """
    body = parsed(ChatBody, content)
    if body.tools:
        raise UsageError("tools are not supported", hint="leave them out")
    most = most_of(body.options.num_predict)
    prompt = served.prompts.answer(dialog_of(body.messages), most) if body.messages else None
    return OllamaCall(served, body, prompt)


def tags(served: Served) -> dict[str, Any]:
    """The response to /api/tags."""
    modified = datetime.fromtimestamp(served.created, UTC).isoformat()
    model = {
        "name": served.name,
        "model": served.name,
        "modified_at": modified,
        "size": 0,
        "digest": "",
        "details": _details(served),
    }
    return {"models": [model]}


def show(served: Served) -> dict[str, Any]:
    """The response to /api/show."""
    fills = served.prompts.tokenizer.infill is not None
    return {
        "modelfile": "",
        "parameters": f"num_ctx {served.prompts.context}",
        "template": TEMPLATE if fills else "{{ .Prompt }}",
        "details": _details(served),
        "model_info": {
            "general.architecture": "llama",
            "general.parameter_count": served.parameters,
            "llama.context_length": served.prompts.context,
        },
        "capabilities": ["completion", *(["insert"] if fills else [])],
    }


def error(message: str, status: int) -> dict[str, Any]:  # noqa: ARG001
    """An error as Ollama writes it."""
    return {"error": message}


def _details(served: Served) -> dict[str, Any]:
    size = "" if served.parameters is None else f"{served.parameters / 1e9:.1f}B"
    # All of them are strings and none may be missing: Zed reads no listing otherwise.
    return {
        "format": "codecria",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": size,
        "quantization_level": "",
    }


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
