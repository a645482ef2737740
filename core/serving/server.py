"""The socket and the loop: where the server listens, and how long it waits for a client."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from codecria.data.errors import UserError

from .http import ABORT, is_loopback

HEADERS_S = 20.0  # for the head of a request to arrive
IDLE_S = 75.0  # between two requests of a connection
CLOSING_S = 3  # for requests under way when the server ends
CONNECTIONS = 512
# Seconds until a thread gives up the interpreter to another: the engine's must not wait long for
# the loop's after each pass (Python's own 5 ms are a fifth of a small model's token).
SWITCH_S = 0.0005


def listen(host: str, port: int, *, key: str) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address; beyond this machine only with a key.
        port: 0 takes a free one.
        key: that clients must send.

    Raises:
        UserError: the address cannot be used, or is beyond this machine and there is no key.
    """
    if not key and not is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines in, and there is no key",
            hint="set CODECRIA_SERVE_KEY (or --key), or leave out --host",
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        taken = error.errno == errno.EADDRINUSE
        raise UserError(
            f"cannot listen on {f'[{host}]' if ':' in host else host}:{port}: {error.strerror}",
            hint="another program listens there: choose another --port" if taken else "",
        ) from error
    return made


def url_of(listening: socket.socket) -> str:
    """The address that clients use."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: Any, *, on_ready: Callable[[], None]) -> uvicorn.Server:
    """A server, which answers requests while `run(sockets=[...])` runs.

    Args:
        app: the ASGI application.
        on_ready: called once requests are answered.
    """
    sys.setswitchinterval(SWITCH_S)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=_Patient,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=CLOSING_S,
    )
    return _Server(config, on_ready)


def run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Answer requests until a signal ends the process."""
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self._on_ready()


class _Patient(H11Protocol):
    """HTTP with a limit on how long a request's head may take, which uvicorn has not."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once there is a whole head; bytes of one do not prolong the time."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:  # before the request's task runs
            extensions: dict[str, Any] = {ABORT: self.transport.abort}
            self.scope["extensions"] = extensions
        if answering and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif not answering and self._timer is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(HEADERS_S, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
