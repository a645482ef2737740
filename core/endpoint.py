"""A client of OpenAI-compatible endpoints: `codecria serve`, vLLM, SGLang, llama.cpp, ollama, ...

Transient errors (no connection, a time-out, 429, 5xx, a response that is no JSON) are retried after
a pause that doubles; another 4xx is a refusal of that one request. Where the endpoint itself is
wrong (no such model, no such key) the run stops. The key is read from the environment,
goes to the endpoint's own address and nowhere else, and stands in no message.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import queue
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from codecria.data.errors import UsageError, UserError

RETRYABLE = frozenset({408, 409, 425, 429})  # besides all from 500 on
WRONG_ENDPOINT = frozenset({401, 402, 403, 404, 405})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
MOST_BYTES = 16 << 20  # of a response
SHOWN = 300  # characters of an error's body
GIVE_UP_AFTER = 20  # requests in a row that failed for good
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How an endpoint is spoken to.

    Attributes:
        url: its base, such as http://127.0.0.1:8000/v1.
        key: for its Authorization header; empty for none.
        concurrency: requests at a time.
        retries: of a request, after its first try.
        timeout_s: of one try, from connecting to the last byte of the response.
    """

    url: str
    key: str = ""
    concurrency: int = 8
    retries: int = 5
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Check the address.

        Raises:
            UsageError: it is none, or carries a password or a query.
        """
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{self.url!r} is not the address of an endpoint",
                hint="use a URL such as http://127.0.0.1:8000/v1",
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(
                "an endpoint's address holds no user, password or query",
                hint="the key comes from the environment, see --key-env",
            )
        if any(c in self.key for c in "\r\n\0"):
            raise UsageError("the endpoint's key holds a line's end")

    @property
    def in_the_clear(self) -> bool:
        """Whether the key would travel unencrypted, beyond this machine."""
        parts = urllib.parse.urlsplit(self.url)
        return bool(self.key) and parts.scheme == "http" and parts.hostname not in LOOPBACK


def key_from(variable: str) -> str:
    """The key in an environment variable; empty where it is not set."""
    return os.environ.get(variable, "").strip()


class _Retryable(Exception):
    """A transient error: the request may be retried."""

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class _RefusedError(Exception):
    """The endpoint refused this request."""


AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Answered(Generic[AnswerT]):
    """What came of one request.

    Attributes:
        place: of the request in its list.
        answer: what was read of the response, or None.
        refused: why the endpoint refuses the request, or nothing.
        failed: why every try failed, or nothing.
    """

    place: int
    answer: AnswerT | None = None
    refused: str = ""
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Post(Generic[AnswerT]):
    """A request.

    Attributes:
        path: behind the endpoint's base.
        body: as JSON.
        read: reads the response, given it and the seconds it took; a ValueError is tried again.
    """

    path: str
    body: dict[str, Any]
    read: Callable[[Any, float], AnswerT]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuse redirects: one would send the key to another address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing."""
        return


class _Deadline:
    """Ends the connections of one try when its time is over.

    urllib's own timeout bounds each read alone, so a server that sends a byte now and then would
    hold a request forever. (httpx bounds reads likewise; a bound of the whole needs asyncio there.)

    Args:
        seconds: from entering.

    Attributes:
        is_over: whether it ended them.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._seconds = seconds
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._timer.cancel()
        for copy in self._sockets:
            copy.close()

    def connect(self, *arguments: Any, **named: Any) -> socket.socket:
        """As `socket.create_connection`, watched."""
        made = socket.create_connection(*arguments, **named)
        # A copy of the descriptor: TLS takes the socket over, and closes it in its own time.
        self._sockets.append(made.dup())
        if self.is_over:
            self._end()
        return made

    def _end(self) -> None:
        self.is_over = True
        for copy in self._sockets:
            with contextlib.suppress(OSError):
                copy.shutdown(socket.SHUT_RDWR)

    def opener(self) -> urllib.request.OpenerDirector:
        """Opens addresses by watched connections, and follows no redirect."""
        deadline = self

        class Plain(http.client.HTTPConnection):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                self._create_connection = deadline.connect

        class Encrypted(http.client.HTTPSConnection):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                self._create_connection = deadline.connect

        class PlainHandler(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, request)

        class EncryptedHandler(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Encrypted, request)

        return urllib.request.build_opener(_NoRedirects, PlainHandler, EncryptedHandler)


class Client:
    """Sends requests to an endpoint, several at a time.

    Args:
        access: where and how.
        name: of the model there, for messages.
        sleep: waits so many seconds.
    """

    def __init__(
        self, access: Access, name: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.access = access
        self.name = name
        self._sleep = sleep

    def answers(self, posts: Sequence[Post[AnswerT]]) -> Iterator[Answered[AnswerT]]:
        """What comes of each request, as it comes.

        Raises:
            UserError: the endpoint refuses every request, or many in a row failed.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(posts)):
            todo.put(place)
        results: queue.SimpleQueue[Answered[AnswerT] | UserError | None] = queue.SimpleQueue()
        stop = threading.Event()
        # Daemons: a request under way must not hold up the end of the process.
        for number in range(min(self.access.concurrency, len(posts))):
            threading.Thread(
                target=self._work,
                args=(posts, todo, results, stop),
                name=f"endpoint-{number}",
                daemon=True,
            ).start()
        in_a_row = 0
        try:
            for _ in posts:
                result = results.get()
                if isinstance(result, UserError):
                    raise result
                assert result is not None, "a request's thread failed"
                in_a_row = in_a_row + 1 if result.failed else 0
                yield result
                if in_a_row >= GIVE_UP_AFTER:
                    raise UserError(
                        f"{self.access.url} failed {in_a_row} requests in a row: {result.failed}",
                        hint="answers so far are kept; rerun the same command to resume",
                    )
        finally:
            stop.set()

    def _work(
        self,
        posts: Sequence[Post[AnswerT]],
        todo: queue.SimpleQueue[int],
        results: queue.SimpleQueue[Answered[AnswerT] | UserError | None],
        stop: threading.Event,
    ) -> None:
        while not stop.is_set():
            try:
                place = todo.get_nowait()
            except queue.Empty:
                return
            result: Answered[AnswerT] | UserError | None = None  # None: internal error
            try:
                result = self._ask(place, posts[place], stop)
            except UserError as error:
                result = error
            finally:
                results.put(result)

    def _ask(self, place: int, post: Post[AnswerT], stop: threading.Event) -> Answered[AnswerT]:
        """What comes of one request; transient errors are retried up to the limit.

        Raises:
            UserError: the endpoint cannot be used.
        """
        for attempt in range(self.access.retries + 1):
            started = time.perf_counter()
            try:
                response = self._post(post.path, post.body)
                return Answered(place, answer=post.read(response, time.perf_counter() - started))
            except _RefusedError as error:
                return Answered(place, refused=str(error) or "refused")
            except (_Retryable, ValueError) as error:
                if attempt == self.access.retries or stop.is_set():
                    return Answered(place, failed=str(error) or "failed")
                pause = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
                asked = getattr(error, "pause_s", None)
                self._sleep(pause if asked is None else min(asked, LONGEST_PAUSE_S))
        raise AssertionError("every try returns or goes on")

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The response to one try.

        Raises:
            _Retryable: a transient error.
            _RefusedError: the endpoint refused this request.
            UserError: the endpoint refuses every request.
            ValueError: the response is not JSON.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.access.key:
            headers["Authorization"] = f"Bearer {self.access.key}"
        url = self.access.url.rstrip("/") + path
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        timeout_s = self.access.timeout_s
        with _Deadline(timeout_s) as deadline:
            try:
                with deadline.opener().open(request, timeout=timeout_s) as response:
                    content = _read(response)
            except urllib.error.HTTPError as error:
                with error:
                    raise self._http_error(error) from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                if not deadline.is_over:
                    message = f"{type(error).__name__}: {reason}"
                    raise _Retryable(self._clean(message)) from None
            if deadline.is_over:  # what arrived until then may look like a whole response
                raise _Retryable(f"no whole response within {timeout_s:g} s")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            shown = content[:SHOWN].decode("utf-8", "replace")
            raise ValueError(self._clean(f"the response is not JSON: {shown!r}")) from None

    def _http_error(self, error: urllib.error.HTTPError) -> Exception:
        said = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            said = " ".join(error.read(MOST_BYTES).decode("utf-8", "replace").split())[:SHOWN]
        message = self._clean(f"HTTP {error.code}{': ' + said if said else ''}")
        if error.code in RETRYABLE or error.code >= 500:
            return _Retryable(message, _retry_after(error.headers.get("Retry-After")))
        if error.code in WRONG_ENDPOINT or 300 <= error.code < 400:
            return UserError(
                f"{self.access.url} does not take requests for {self.name}: {message}",
                hint="check --endpoint, --endpoint-model and the key's variable (--key-env)",
            )
        return _RefusedError(message)

    def _clean(self, text: str) -> str:
        """A message without the key, which a server may have sent back."""
        return text.replace(self.access.key, "[key]") if self.access.key else text


def _read(response: Any) -> bytes:
    content: bytes = response.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise _Retryable(f"the response is longer than {MOST_BYTES >> 20} MB")
    return content


def _retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for."""
    if not value:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
