"""OpenAI's protocol: completions (with `suffix`) and chat completions; Mistral's FIM completions.

Of what decides an answer, everything is used or refused by name: a request with tools, a JSON
schema or penalties gets an error, not an answer that ignores them. Beside OpenAI's fields
`top_k`, `form`, `truncate`, `heal`, `prefix_share` and `parse_specials` mean what `generate` means
by them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from codecria.core.inference.decoding import TokenScore
from codecria.core.inference.prompts import Form, Prompt
from codecria.data.errors import UsageError
from codecria.data.formats.chat import Message
from codecria.data.formats.window import PREFIX_SHARE, Truncate

from .llama_cpp import texts_of, timings
from .tasks import Piece, Shaper, Task
from .wire import (
    Body,
    Result,
    Served,
    gap_in_template,
    most_of,
    parsed,
    samples_of,
    sampling_of,
    shaper_of,
    stops_of,
    task_of,
    token_text,
)

MOST_SCORES = 20
COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions


class Part(Body):
    """A part of a message's or a prediction's content."""

    type: str = "text"
    text: str | None = None


class Prediction(Body):
    """A guess at the answer (predicted outputs)."""

    type: Literal["content"] = "content"
    content: str | list[Part] = ""


class StreamOptions(Body):
    """What a stream holds besides text."""

    include_usage: bool = False


class Common(Body):
    """Fields of all requests."""

    model: str = ""
    max_tokens: int | None = Field(None, ge=-1)  # -1: what the context holds, as in llama.cpp
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0)
    top_k: int | None = None
    n: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    prediction: Prediction | None = None
    truncate: Truncate | None = None

    def refuse_unsupported(self) -> None:
        """Check that nothing is asked that would be ignored.

        Raises:
            UsageError: naming it.
        """
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise UsageError(f"{name} is not supported", hint="leave it out")

    @property
    def predicted(self) -> str:
        """The text of the prediction."""
        return "" if self.prediction is None else _text_of(self.prediction.content)


class CompletionBody(Common):
    """/v1/completions."""

    prompt: str | list[int] | list[str | list[int]] = ""
    suffix: str | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_SCORES)
    echo: bool = False
    best_of: int | None = None
    form: Form | None = None
    heal: bool = False
    prefix_share: float = Field(PREFIX_SHARE, ge=0, le=1)
    parse_specials: bool | None = None


class FimBody(Common):
    """/v1/fim/completions."""

    prompt: str
    suffix: str | None = None
    random_seed: int | None = None


class ChatMessage(Body):
    """A message."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None


class ChatBody(Common):
    """/v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=-1)
    n_predict: int | None = Field(None, ge=-1)  # llama.cpp's, as llama.vscode sends it
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_SCORES)
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    def refuse_unsupported(self) -> None:
        """Check that nothing is asked that would be ignored.

        Raises:
            UsageError: naming it.
        """
        super().refuse_unsupported()
        if self.tools or self.functions:
            raise UsageError("tools are not supported", hint="leave out tools and functions")
        if (self.response_format or {}).get("type", "text") != "text":
            raise UsageError("response_format is not supported", hint="leave it out")


class OpenAICall:
    """A request, and its response as `text_completion` or `chat.completion`."""

    media_type = "text/event-stream"

    def __init__(
        self,
        served: Served,
        body: Common,
        prompts: Sequence[Prompt],
        *,
        is_chat: bool,
        max_tokens: int | None,
        top_scores: int | None = None,
        seed: int | None = None,
        is_answer: bool = False,
        echoes: Sequence[str] = (),
    ) -> None:
        self._served, self._body, self._prompts = served, body, prompts
        self._is_chat, self._is_answer = is_chat, is_answer
        # Clients of Mistral's protocol read a text from every chunk, the last one too.
        self._last_delta = {} if is_answer else {"content": ""}
        self._echoes = echoes
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}
        self.stream = body.stream
        self._samples = samples_of(body.n)
        sampling = sampling_of(
            served,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            seed=body.seed if seed is None else seed,
            samples=self._samples,
        )
        self.tasks: Sequence[Task] = [
            task_of(
                served,
                prompt,
                sampling,
                max_tokens=max_tokens,
                stops=stops_of(body.stop),
                samples=self._samples,
                top_scores=top_scores,
            )
            for prompt in prompts
        ]

    def shaper(self) -> Shaper | None:
        """Strips an answer; gives a middle the text's line ends."""
        return shaper_of(self._prompts[0], is_answer=self._is_answer)

    def whole(self, results: Sequence[Result]) -> Any:
        """The response."""
        found = self._head(chunk=False)
        found["choices"] = [self._choice(result) for result in results]
        found["usage"] = self._usage(results)
        if len(results) == 1:
            found["timings"] = timings(results[0].completion)
        return found

    def first(self) -> Sequence[bytes]:
        """Nothing: a choice begins with its first text."""
        return ()

    def piece(self, index: int, text: str, piece: Piece) -> Sequence[bytes]:
        """A chunk with the text."""
        if not text and not piece.scores:
            return ()
        scores = self._scores(index, piece.scores)
        return (*self._begin(index), self._chunk(index, text, scores=scores))

    def done(self, result: Result) -> Sequence[bytes]:
        """A chunk with the reason for the end."""
        return (*self._begin(result.index), self._chunk(result.index, "", result.reason))

    def last(self, results: Sequence[Result]) -> Sequence[bytes]:
        """The counts, if they were asked for, and the end."""
        chunks = []
        options = self._body.stream_options
        if options is not None and options.include_usage:
            usage = {"choices": [], "usage": self._usage(results)}
            if len(results) == 1:
                usage["timings"] = timings(results[0].completion)
            chunks.append(_event(self._head(chunk=True) | usage))
        return (*chunks, b"data: [DONE]\n\n")

    def _begin(self, index: int) -> Sequence[bytes]:
        """What begins a choice: its role, or the prompt that is echoed."""
        if index in self._begun:
            return ()
        self._begun.add(index)
        if self._is_chat:
            choice = {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            return (_event(self._head(chunk=True) | {"choices": [choice]}),)
        echo = self._echo(index)
        return (self._chunk(index, echo),) if echo else ()

    def _chunk(
        self, index: int, text: str, reason: str | None = None, *, scores: Any = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": index}
        if self._is_chat:
            choice["delta"] = self._last_delta if reason else {"content": text}
        else:
            choice["text"] = text
        choice |= {"logprobs": scores, "finish_reason": reason}
        return _event(self._head(chunk=True) | {"choices": [choice]})

    def _choice(self, result: Result) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": result.index}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": result.text}
        else:
            choice["text"] = self._echo(result.index) + result.text
        scores = self._scores(result.index, result.completion.scores)
        return choice | {"logprobs": scores, "finish_reason": result.reason}

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self._is_chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._served.name,
        }

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._samples] if self._echoes else ""

    def _usage(self, results: Sequence[Result]) -> dict[str, Any]:
        """Counts of tokens; a prompt counts once, however many samples it has."""
        done = [result.completion for result in results]
        prompt = sum(c.prompt_tokens for c in done[:: self._samples])
        generated = sum(len(c.ids) for c in done)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {
                "cached_tokens": sum(c.cached_tokens for c in done[:: self._samples])
            },
        }
        if self._body.prediction is not None or any(c.drafted for c in done):
            accepted, drafted = sum(c.accepted for c in done), sum(c.drafted for c in done)
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            }
        return usage

    def _scores(self, index: int, scores: Sequence[TokenScore]) -> Any:
        """The log-probabilities in the form of this kind of response; None if there are none."""
        if self.tasks[index // self._samples].top_scores is None:
            return None
        if self._is_chat:
            return {"content": [_chat_score(self._served, score) for score in scores]}
        offset = self._offsets.get(index, len(self._echo(index)))
        found: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for score in scores:
            text, _ = token_text(self._served, score.token)
            found["tokens"].append(text)
            found["token_logprobs"].append(score.logprob)
            found["text_offset"].append(offset)
            found["top_logprobs"].append(
                {token_text(self._served, token)[0]: value for token, value in score.top}
            )
            offset += len(text)
        self._offsets[index] = offset
        return found


def completions(served: Served, content: bytes) -> OpenAICall:
    """The call of a POST to /v1/completions.

    Raises:
        UserError: the request is wrong, or does not fit.
    """
    body = parsed(CompletionBody, content)
    body.refuse_unsupported()
    if body.best_of is not None and body.best_of != samples_of(body.n):
        raise UsageError("best_of is not supported", hint="leave it out")
    if body.echo and (body.logprobs is not None or body.suffix):
        raise UsageError("echo cannot be combined with logprobs or suffix")
    most = COMPLETION_TOKENS if body.max_tokens is None else most_of(body.max_tokens)
    given = texts_of(body.prompt)
    prompts = [_prompt(served, body, part, most) for part in given]
    tokenizer = served.prompts.tokenizer
    echoes = [p if isinstance(p, str) else tokenizer.decode(p) for p in given if body.echo]
    return OpenAICall(
        served,
        body,
        prompts,
        is_chat=False,
        max_tokens=most,
        top_scores=body.logprobs,
        echoes=echoes,
    )


def _prompt(
    served: Served, body: CompletionBody, part: str | list[int], most: int | None
) -> Prompt:
    """One prompt of a request to /v1/completions.

    Raises:
        UserError: it is wrong, or does not fit.
    """
    if isinstance(part, list):
        if body.suffix:
            raise UsageError("a prompt of ids takes no suffix", hint="give the prompt as text")
        return served.prompts.given(part)
    gap = None
    if body.suffix is not None and (body.suffix or body.form is not None):
        gap = part, body.suffix
    elif body.parse_specials is None and not body.echo:
        gap = gap_in_template(served, part)
    if gap is not None:
        return served.prompts.infilling(
            *gap,
            served.prompts.context // 4 if most is None else most,
            form=body.form,
            truncate=body.truncate or "window",
            prefix_share=body.prefix_share,
            healed=body.heal,
            prediction=body.predicted,
        )
    return served.prompts.completion(
        part,
        most or 0,
        truncate=body.truncate or "off",
        specials="parse" if body.parse_specials else "text",
        healed=body.heal,
        prediction=body.predicted,
    )


def chat(served: Served, content: bytes) -> OpenAICall:
    """The call of a POST to /v1/chat/completions.

    Raises:
        UserError: the request is wrong, or does not fit.
    """
    body = parsed(ChatBody, content)
    body.refuse_unsupported()
    limits = (body.max_completion_tokens, body.max_tokens, body.n_predict)
    most = most_of(next((limit for limit in limits if limit is not None), None))
    prompt = served.prompts.answer(
        dialog_of(body.messages),
        most,
        truncate=body.truncate or "window",
        prediction=body.predicted,
    )
    return OpenAICall(
        served,
        body,
        [prompt],
        is_chat=True,
        is_answer=True,
        max_tokens=most,
        top_scores=(body.top_logprobs or 0) if body.logprobs else None,
    )


def fim(served: Served, content: bytes) -> OpenAICall:
    """The call of a POST to /v1/fim/completions: Mistral's, whose response is a chat completion's.

    Raises:
        UserError: the request is wrong, or does not fit.
    """
    body = parsed(FimBody, content)
    body.refuse_unsupported()
    most = most_of(body.max_tokens)
    prompt = served.prompts.infilling(
        body.prompt,
        body.suffix or "",
        served.prompts.context // 4 if most is None else most,
        prediction=body.predicted,
    )
    return OpenAICall(served, body, [prompt], is_chat=True, max_tokens=most, seed=body.random_seed)


def dialog_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as a dialog; a developer's are the system's.

    Raises:
        UsageError: a role or a content is not supported.
    """
    dialog = []
    for number, message in enumerate(messages, 1):
        role = "system" if message.role == "developer" else message.role
        if role not in ("system", "user", "assistant") or message.tool_calls:
            raise UsageError(f"message {number}: the role {message.role!r} is not supported")
        text = _text_of(message.content if message.content is not None else "")
        dialog.append(Message(role=role, content=text))  # type: ignore[arg-type]
    return dialog


def models(served: Served) -> dict[str, Any]:
    """The response to /v1/models."""
    return {"object": "list", "data": [model(served)]}


def model(served: Served) -> dict[str, Any]:
    """The response to /v1/models/NAME, whatever the name: requests get the one model, too."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "codecria",
        "meta": {
            "n_ctx_train": served.prompts.context,
            "n_vocab": served.prompts.tokenizer.vocab_size,
            "n_params": served.parameters,
        },
    }


def error(message: str, status: int) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    codes = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large"}
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": codes.get(status)}}


def _text_of(content: str | Sequence[Part]) -> str:
    """The text of a content.

    Raises:
        UsageError: a part of it is no text.
    """
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in ("text", "input_text") or part.text is None:
            raise UsageError(f"content of type {part.type!r} is not supported", hint="send text")
    return "".join(part.text or "" for part in content)


def _chat_score(served: Served, score: TokenScore) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(served, token)
        return {"token": text, "bytes": list(raw), "logprob": logprob}

    return one(score.token, score.logprob) | {"top_logprobs": [one(*top) for top in score.top]}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
