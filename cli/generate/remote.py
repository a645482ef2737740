"""Generation by a server: `codecria serve`, which holds a loaded model, answers in milliseconds.

Only the standard library is imported: a shell call must not pay for torch or numpy.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from codecria.data.errors import UsageError, UserError

from .output import Events, Shown
from .request import Request

CONNECT_S = 5.0
MOST_LINE = 1 << 20  # bytes of one event


@contextmanager
def completing(request: Request, server: str, key: str) -> Iterator[Events]:
    """The events of a request's completions; leaving the block drops what is under way.

    Raises:
        UserError: the server is not there, refuses the request, or ends too soon.
    """
    path, body = body_of(request)
    connection, base = _connection(server)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        try:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(None)  # a long prompt may take minutes
            connection.request("POST", base + path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(
                f"no answer from {server}: {reason}",
                hint="start a server: codecria serve -m CHECKPOINT",
            ) from error
        if response.status != 200:
            raise UserError(f"{server}: {_error_of(response)}", hint=_hint(response.status))
        yield _streamed(response, server) if body["stream"] else _whole(response, server)
    finally:
        connection.close()


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


def _connection(server: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is not open yet, and what comes before each path.

    Raises:
        UsageError: the address is none.
    """
    parts = urlsplit(server if "//" in server else f"http://{server}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise UsageError(
            f"--server {server} is not an address", hint="such as http://127.0.0.1:8012"
        )
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    base = parts.path.rstrip("/").removesuffix("/v1")
    return kind(parts.hostname, port, timeout=CONNECT_S), base


def _whole(response: http.client.HTTPResponse, server: str) -> Events:
    """The completions of a response that is one document."""
    document = _parsed(_read(response, server), server)
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


def _streamed(response: http.client.HTTPResponse, server: str) -> Events:
    """The pieces of one completion as they come."""
    text = ""
    last: Any = None
    usage: dict[str, Any] = {}
    times: dict[str, Any] = {}
    for event in _events(response, server):
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


def _events(response: http.client.HTTPResponse, server: str) -> Iterator[Any]:
    """The JSON values of a stream of server-sent events."""
    try:
        while line := response.readline(MOST_LINE):
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield _parsed(data, server)
    except (OSError, http.client.HTTPException):
        return  # too soon, or at the end: the caller knows


def _read(response: http.client.HTTPResponse, server: str) -> bytes:
    try:
        return response.read()
    except (OSError, http.client.HTTPException) as error:
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


def _error_of(response: http.client.HTTPResponse) -> str:
    """What a server says is wrong."""
    try:
        content = response.read(MOST_LINE)
    except (OSError, http.client.HTTPException):
        content = b""
    try:
        found = json.loads(content)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status} {response.reason}"


def _hint(status: int) -> str:
    if status in (401, 403):
        return "set CODECRIA_SERVE_KEY to the server's key"
    return "it is busy: try again" if status == 503 else ""
