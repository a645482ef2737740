"""Generation by a server: `codecria serve`, which holds a loaded model, answers in milliseconds.

Little of the standard library is imported, and nothing else: a shell call should cost
milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from codecria.data.errors import UsageError, UserError

from .connection import Address, Answer, posted
from .output import Events, Shown
from .request import Request

MOST_LINE = 1 << 20  # bytes of one event


@contextmanager
def completing(request: Request, server: str, key: str) -> Iterator[Events]:
    """The events of a request's completions; leaving the block drops what is under way.

    Raises:
        UserError: the server is not there, refuses the request, or ends too soon.
    """
    path, body = body_of(request)
    address = Address.of(server)
    headers = {"Content-Type": "application/json"}
    if not key.isprintable():
        raise UsageError("the server's key holds what no header may hold, such as a line's end")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    with ExitStack() as stack:
        try:
            answer = posted(address, path, json.dumps(body).encode(), headers, stack)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise UserError(
                f"no answer from {server}: {reason}",
                hint="start a server: codecria serve -m CHECKPOINT",
            ) from error
        if answer.status != 200:
            raise UserError(f"{server}: {_error_of(answer)}", hint=_hint(answer.status))
        yield _streamed(answer, server) if body["stream"] else _whole(answer, server)


def body_of(request: Request) -> tuple[str, dict[str, Any]]:
    """(path, body) of the request in OpenAI's form, with the fields that `serve` adds.

    Raises:
        UsageError: only a process with the model itself can do what is asked.
    """
    asked = request.asked
    if asked.session:
        raise UsageError(
            "a chat session needs --model", hint="give the question, or leave --server"
        )
    if request.context is not None:
        raise UsageError("--context is the server's", hint="give it to codecria serve")
    body: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": request.seed,
        "n": request.samples,
        "stream": request.samples == 1,
        "truncate": request.cut,
    }
    if request.samples == 1:
        body["stream_options"] = {"include_usage": True}
    if request.stops:
        body["stop"] = list(request.stops)
    if request.chat:
        messages = [{"role": "user", "content": asked.text}]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
        return "/v1/chat/completions", body | {"messages": messages}
    if asked.gap is not None:
        body |= {
            "prompt": asked.gap.prefix,
            "suffix": asked.gap.suffix,
            "form": request.form,
            "prefix_share": request.prefix_share,
        }
    else:
        body["prompt"] = asked.text
    if request.heal:
        body["heal"] = True
    body["parse_specials"] = request.parse_specials  # a template in the prompt is text, as here
    return "/v1/completions", body


def _whole(answer: Answer, server: str) -> Events:
    """The completions of a response that is one document."""
    document = _parsed(_read(answer, server), server)
    usage = document.get("usage") or {}
    choices = document.get("choices") or []
    share = (usage.get("completion_tokens") or 0) // max(1, len(choices))
    for choice in choices:
        text = choice.get("text")
        if text is None:
            text = (choice.get("message") or {}).get("content") or ""
        if text:
            yield choice.get("index", 0), text
        # Only the sum over all samples is known.
        yield choice.get("index", 0), _shown(text, choice, usage | {"completion_tokens": share}, {})


def _streamed(answer: Answer, server: str) -> Events:
    """The pieces of one completion as they come."""
    text = ""
    last: Any = None
    usage: dict[str, Any] = {}
    times: dict[str, Any] = {}
    for event in _events(answer, server):
        if "error" in event:
            error = event["error"]
            raise UserError(error.get("message", str(error)) if isinstance(error, dict) else error)
        usage = event.get("usage") or usage
        times = event.get("timings") or times
        for choice in event.get("choices") or ():
            piece = choice.get("text")
            if piece is None:
                piece = (choice.get("delta") or {}).get("content") or ""
            if piece:
                text += piece
                yield 0, piece
            if choice.get("finish_reason"):
                last = choice
    if last is None:
        raise UserError(f"{server} ended before the completion did")
    yield 0, _shown(text, last, usage, times)


def _events(answer: Answer, server: str) -> Iterator[Any]:
    """The JSON values of a stream of server-sent events."""
    try:
        while line := answer.body.readline(MOST_LINE):
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield _parsed(data, server)
    except OSError:
        return  # too soon, or at the end: the caller knows


def _read(answer: Answer, server: str) -> bytes:
    try:
        return answer.body.read()
    except OSError as error:
        raise UserError(f"{server} ended before the completion did") from error


def _parsed(data: bytes, server: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise UserError(f"{server} sent what is no JSON: {data[:80]!r}") from None


def _shown(text: str, choice: Any, usage: Any, times: Any) -> Shown:
    """A finished completion from what the server counted."""
    details = usage.get("completion_tokens_details") or {}
    accepted = details.get("accepted_prediction_tokens", 0)
    return Shown(
        text=text,
        finish_reason=choice.get("finish_reason") or "stop",
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        prefill_s=times.get("prompt_ms", 0.0) / 1000,
        decode_s=times.get("predicted_ms", 0.0) / 1000,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        drafted=accepted + details.get("rejected_prediction_tokens", 0),
        accepted=accepted,
    )


def _error_of(answer: Answer) -> str:
    """What a server says is wrong."""
    try:
        content = answer.body.read(MOST_LINE)
    except OSError:
        content = b""
    try:
        found = json.loads(content)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status} {answer.reason}"


def _hint(status: int) -> str:
    if status in (401, 403):
        return "set CODECRIA_SERVE_KEY to the server's key"
    return "it is busy: try again" if status == 503 else ""
