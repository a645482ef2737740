"""HTTP as a server must take it: limits on bodies, clients that go away or read nothing, keys.

A client may send half a body, ten megabytes, or nothing; close its socket, or keep it open and not
read. None of them holds a sequence, memory or a descriptor for longer than the limits say.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

DRAINED = 64 << 20  # bytes beyond the limit that are read and dropped, so that the client hears why
ABORT = "codecria.abort"  # extension of a scope: drops the connection
LOOPBACK_NAMES = ("localhost", "localhost.localdomain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: of a request.
        requests: answered or waiting at a time; more get 503.
        body_s: seconds for a body to arrive.
        stalled_s: seconds that a client may leave what it is sent unread.
    """

    body_bytes: int = 8 << 20
    requests: int = 64
    body_s: float = 30.0
    stalled_s: float = 60.0


class Problem(Exception):
    """A request is answered with an error.

    Args:
        status: of HTTP.
        message: for the client.
        closes: whether the connection ends.
    """

    def __init__(self, status: int, message: str, *, closes: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.closes = closes


class ClientGone(Exception):
    """The client closed its connection."""


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        Problem: it is too long, compressed, or does not arrive in time.
        ClientGone: the client went away.
    """
    too_long = Problem(413, f"the request is longer than {limits.body_bytes:,} bytes")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    parts: list[bytes] = []
    total = 0

    async def read() -> None:
        nonlocal total
        async for chunk in request.stream():
            total += len(chunk)
            if total > limits.body_bytes + DRAINED:
                raise Problem(413, too_long.message, closes=True)
            if total <= limits.body_bytes:
                parts.append(chunk)
            else:
                parts.clear()

    try:
        await asyncio.wait_for(read(), limits.body_s)
    except TimeoutError:
        raise Problem(
            408, f"the request did not arrive within {limits.body_s:g} s", closes=True
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    if total > limits.body_bytes:
        raise too_long
    if encoding not in ("", "identity"):
        raise Problem(415, f"the request is compressed ({encoding[:40]}): send it as it is")
    return b"".join(parts)


async def gone(receive: Receive) -> None:
    """Wait until the client closes its connection, once its body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Stream:
    """A response that is written as it is made.

    Args:
        chunks: of the body. It is closed when the client goes away or stalls.
        media_type: of the body.
        stalled_s: seconds that a client may leave a chunk unread.
        on_close: called when it has ended, however it does.
    """

    status_code = 200

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        stalled_s: float,
        on_close: Callable[[], None],
    ) -> None:
        self._chunks = chunks
        self._on_close = on_close
        self._media_type = media_type
        self._stalled_s = stalled_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            # Not in the generator: one that never began would not run its own ending.
            self._on_close()
            await self._chunks.aclose()
        abort = scope.get("extensions", {}).get(ABORT)
        if writing.done() and not writing.cancelled() and writing.exception() and abort:
            abort()  # closing would wait until the client has read what is buffered

    async def _write(self, send: Send) -> None:
        headers = [
            (b"content-type", self._media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in self._chunks:
            message = {"type": "http.response.body", "body": chunk, "more_body": True}
            # Not wait_for: in Python 3.11 it may lose a cancellation (CPython issue 86296).
            async with asyncio.timeout(self._stalled_s):
                await send(message)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def check_access(headers: Any, key: str) -> None:
    """Check that a request may be answered.

    Without a key the server answers this machine alone. A page in a browser on this machine may
    send requests, too: those that name another host, or come from another site, are refused.

    Args:
        headers: of the request.
        key: that it must hold; empty for none.

    Raises:
        Problem: it may not.
    """
    if key:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()):
            raise Problem(
                401, "the key is missing or wrong: send it as 'Authorization: Bearer KEY'"
            )
        return
    if not is_loopback(_parts(f"//{headers.get('host') or 'localhost'}")[1]):
        raise Problem(403, "this server answers requests to this machine's own address only")
    if not is_own_page(headers.get("origin", ""), key):
        raise Problem(403, "this server does not answer pages of other sites")


def is_own_page(origin: str, key: str) -> bool:
    """Whether a page in a browser, or in an editor, may ask and read the answers.

    Args:
        origin: as the browser names it; empty for what is no page.
        key: that requests must hold. A page that knows it may come from anywhere; without one
            it must be this machine's, or an editor's own, such as vscode-webview://.
    """
    if key or not origin:
        return True
    scheme, host = _parts(origin)
    # "null" is what a page without a place of its own sends, on whatever site it stands.
    return scheme != "" and (scheme not in ("http", "https") or is_loopback(host))


def _parts(address: str) -> tuple[str, str]:
    """(scheme, host) of an address; one that is none has the host "?"."""
    try:
        parts = urlsplit(address)
        return parts.scheme, parts.hostname or "?"
    except ValueError:
        return "http", "?"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by a loopback address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES
