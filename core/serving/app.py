"""The server's paths: each protocol's requests become tasks of one worker.

llama.cpp    /infill, /completion, /tokenize, /detokenize, /props
OpenAI       /v1/completions, /v1/chat/completions, /v1/models
Mistral      /v1/fim/completions
Ollama       /api/generate, /api/chat, /api/tags, /api/show, /api/version
all          /health, /metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from codecria.data.errors import UserError

from . import llama_cpp, ollama, openai
from .http import ClientGone, Limits, Problem, Stream, check_access, gone, is_own_page, read_body
from .metrics import Metrics
from .tasks import Event, Failed, Finished, Piece
from .wire import Call, Result, Served
from .worker import Worker

Parse = Callable[[Served, bytes], Call]
ErrorShape = Callable[[str, int], dict[str, Any]]
GONE = 499  # as nginx counts requests whose client went away


@dataclass(slots=True)
class State:
    """What all requests share.

    Attributes:
        served: the model.
        worker: its engine's thread.
        limits: of requests.
        metrics: counters.
        key: that clients must send; empty for none.
        slots: sequences decoded side by side.
        cache_bytes: memory that the prefix cache holds.
        log: takes a line for each request.
        running: requests that are not answered yet.
    """

    served: Served
    worker: Worker
    limits: Limits
    metrics: Metrics
    key: str = ""
    slots: int = 1
    cache_bytes: Callable[[], int] = lambda: 0
    log: Callable[[str], None] = lambda _: None
    running: int = 0

    def release(self) -> None:
        """Count a request as answered."""
        self.running -= 1


def make_app(state: State) -> Starlette:
    """The application."""
    native, ours, theirs = llama_cpp.error, openai.error, ollama.error

    def info(path: str, value: Callable[[], Any], error: ErrorShape) -> Route:
        async def answer(_: Request) -> Response:
            return JSONResponse(value())

        return Route(path, _guarded(state, path, answer, error), methods=["GET", "POST"])

    def small(path: str, value: Callable[[Served, bytes], Any]) -> Route:
        async def answer(request: Request) -> Response:
            body = await read_body(request, state.limits)
            return JSONResponse(await to_thread.run_sync(value, state.served, body))

        return Route(path, _guarded(state, path, answer, native), methods=["POST"])

    def completions(path: str, parse: Parse, error: ErrorShape) -> Route:
        async def answer(request: Request) -> Response:
            return await _complete(state, request, parse, error)

        return Route(path, _guarded(state, path, answer, error), methods=["POST"])

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(_: Request) -> Response:
        load = state.worker.load
        gauges = {
            "requests_in_progress": state.running,
            "sequences_in_progress": load.sequences,
            "prefix_cache_bytes": state.cache_bytes(),
        }
        return PlainTextResponse(
            state.metrics.text(gauges), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def not_found(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = f"{request.method} {request.url.path} is not known: see docs/serve.md"
        headers = error.headers if isinstance(error, HTTPException) else None
        shape = theirs if request.url.path.startswith("/api/") else ours
        return JSONResponse(shape(message, status), status_code=status, headers=headers)

    served = state.served
    return Starlette(
        routes=[
            completions("/infill", llama_cpp.infill, native),
            completions("/completion", llama_cpp.completion, native),
            completions("/completions", llama_cpp.completion, native),
            small("/tokenize", llama_cpp.tokenize),
            small("/detokenize", llama_cpp.detokenize),
            info("/props", lambda: llama_cpp.props(served, state.slots), native),
            completions("/v1/completions", openai.completions, ours),
            completions("/v1/chat/completions", openai.chat, ours),
            completions("/chat/completions", openai.chat, ours),
            completions("/v1/fim/completions", openai.fim, ours),
            info("/v1/models", lambda: openai.models(served), ours),
            info("/v1/models/{name:path}", lambda: openai.model(served), ours),
            info("/models", lambda: openai.models(served), ours),
            completions("/api/generate", ollama.generate, theirs),
            completions("/api/chat", ollama.chat, theirs),
            info("/api/tags", lambda: ollama.tags(served), theirs),
            info("/api/show", lambda: ollama.show(served), theirs),
            info("/api/version", lambda: {"version": ollama.VERSION}, theirs),
            Route("/health", health),
            Route("/v1/health", health),
            Route("/metrics", _guarded(state, "/metrics", metrics, ours)),
            Route("/", health),
        ],
        middleware=[Middleware(_Pages, state.key)],
        exception_handlers={HTTPException: not_found},
    )


class _Pages(CORSMiddleware):
    """Tells browsers which pages may ask and read the answers.

    Args:
        app: the application behind it.
        key: that requests must hold; empty for none.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        super().__init__(app, allow_methods=("GET", "POST"), allow_headers=("*",))
        self._key = key

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether a page may."""
        return is_own_page(origin, self._key)


Answer = Callable[[Request], Awaitable[Response]]


def _guarded(state: State, path: str, answer: Answer, error: ErrorShape) -> Answer:
    """An endpoint that checks the key, counts, and writes errors as its protocol does."""

    async def guarded(request: Request) -> Response:
        began = time.perf_counter()
        try:
            check_access(request.headers, state.key)
            response = await answer(request)
        except Problem as problem:
            headers = {"connection": "close"} if problem.closes else {}
            if problem.status == 503:
                headers["retry-after"] = "1"
            response = JSONResponse(
                error(problem.message, problem.status), status_code=problem.status, headers=headers
            )
        except ClientGone:
            response = Response(status_code=GONE)
        except UserError as problem:
            hint = f" ({problem.hint})" if problem.hint else ""
            response = JSONResponse(error(f"{problem.message}{hint}", 400), status_code=400)
        state.metrics.request(path, response.status_code)
        took = time.perf_counter() - began
        state.log(f"{request.method} {path} {response.status_code} {took * 1000:.0f} ms")
        return response

    return guarded


async def _complete(state: State, request: Request, parse: Parse, error: ErrorShape) -> Response:
    """The response to a request for completions."""
    if state.running >= state.limits.requests:
        raise Problem(503, f"{state.running} requests are in progress: try again later")
    state.running += 1
    held = True
    try:
        body = await read_body(request, state.limits)
        call = await to_thread.run_sync(parse, state.served, body)
        if call.stream:
            held = False
            return Stream(  # type: ignore[return-value]  # starlette calls it as a response
                _streamed(state, call, error),
                media_type=call.media_type,
                stalled_s=state.limits.stalled_s,
                on_close=state.release,
            )
        collecting = asyncio.ensure_future(_collected(state, call))
        leaving = asyncio.ensure_future(gone(request.receive))
        try:
            await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                raise ClientGone
            return JSONResponse(call.whole(collecting.result()))
        finally:
            for task in (collecting, leaving):
                task.cancel()
            await asyncio.gather(collecting, leaving, return_exceptions=True)
    finally:
        if held:
            state.release()


async def _collected(state: State, call: Call) -> list[Result]:
    """All results of a call, in order."""
    results = []
    async with contextlib.aclosing(_progress(state, call)) as events:
        async for event in events:
            if isinstance(event, Result):
                results.append(event)
    return sorted(results, key=lambda result: result.index)


async def _streamed(state: State, call: Call, error: ErrorShape) -> AsyncGenerator[bytes, None]:
    """The chunks of a streamed response; an error is the last of them."""
    results = []
    try:
        yield b"".join(call.first())
        async with contextlib.aclosing(_progress(state, call)) as events:
            async for event in events:
                if isinstance(event, Result):
                    results.append(event)
                    chunk = b"".join(call.done(event))
                else:
                    chunk = b"".join(call.piece(*event))
                if chunk:
                    yield chunk
        results.sort(key=lambda result: result.index)
        yield b"".join(call.last(results))
    except (UserError, Problem) as problem:
        status = problem.status if isinstance(problem, Problem) else 400
        value = json.dumps(error(problem.message, status)).encode()
        yield value + b"\n" if "json" in call.media_type else b"data: " + value + b"\n\n"


async def _progress(
    state: State, call: Call
) -> AsyncGenerator[tuple[int, str, Piece] | Result, None]:
    """Texts and results of a call as they come; closing it drops what is under way.

    Raises:
        UserError: a task cannot go on.
        Problem: there is an internal error.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def deliver_of(number: int) -> Callable[[Event], None]:
        def deliver(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stops
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        return deliver

    tickets = [
        state.worker.submit(task, deliver_of(number)) for number, task in enumerate(call.tasks)
    ]
    first = [0]
    for task in call.tasks:
        first.append(first[-1] + task.samples)
    shapers = [call.shaper() for _ in range(first[-1])]
    texts = [""] * first[-1]
    left = first[-1]
    try:
        while left:
            number, event = await events.get()
            # Neither a queue that holds something nor a socket that takes it lets others run: a
            # client's closed connection would be noticed after all that is waiting was written.
            await asyncio.sleep(0)
            if isinstance(event, Failed):
                if event.internal:
                    raise Problem(500, event.error.message)
                raise event.error
            index = first[number] + event.sample
            shaper = shapers[index]
            if isinstance(event, Piece):
                if shaper is None:
                    shown = event.text
                elif shaper.ended:
                    continue
                else:
                    shown = shaper.push(event.text)
                    if shaper.ended:
                        state.worker.end(tickets[number], event.sample)
                texts[index] += shown
                yield index, shown, event
                continue
            assert isinstance(event, Finished), event
            left -= 1
            reason: Literal["stop", "length"] = event.completion.finish_reason
            if shaper is not None:
                rest = "" if shaper.ended else shaper.finish()
                reason = "stop" if shaper.ended else reason
                if rest:
                    texts[index] += rest
                    yield index, rest, Piece(event.sample, rest, (), len(event.completion.ids))
            yield Result(index, texts[index], event.completion, reason, event.timed_out)
    finally:
        for ticket in tickets:
            state.worker.cancel(ticket)
