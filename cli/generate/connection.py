"""One request to a server, and its answer as it comes.

A plain connection is HTTP/1.0 over a socket: one request, one answer, and its end is the
connection's. http.client would do it, too, but takes longer to load than everything else that a
call of `generate --server` needs; so it is loaded for TLS alone.
"""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from codecria.data.errors import UsageError, UserError

CONNECT_S = 5.0
MOST_HEAD = 1 << 16  # bytes of a line of an answer's head
ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[\da-f:.%]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?"
    r"(?P<base>/[^?#\s]*)?",
    re.ASCII | re.IGNORECASE,
)


class Body(Protocol):
    """The content of an answer."""

    def read(self, limit: int = -1, /) -> bytes:
        """So many bytes, or all that is left."""
        ...

    def readline(self, limit: int = -1, /) -> bytes:
        """A line, or nothing at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answers.

    Attributes:
        status, reason: of HTTP.
        body: its content.
    """

    status: int
    reason: str
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server's.

    Attributes:
        secure: whether it speaks TLS.
        host, port: where it listens.
        base: what comes before each path.
    """

    secure: bool
    host: str
    port: int
    base: str = ""

    @classmethod
    def of(cls, server: str) -> Address:
        """The address in a URL, whose scheme may be left out.

        Raises:
            UsageError: it is none.
        """
        found = ADDRESS.fullmatch(server)
        port = int(found["port"] or 0) if found is not None else 0
        if found is None or port > 65535:
            raise UsageError(
                f"--server {server} is not an address", hint="such as http://127.0.0.1:8012"
            )
        secure = (found["scheme"] or "").lower() == "https"
        return cls(
            secure=secure,
            host=found["host"].strip("[]"),
            port=port or (443 if secure else 80),
            base=(found["base"] or "").rstrip("/").removesuffix("/v1"),
        )


def posted(
    address: Address, path: str, content: bytes, headers: dict[str, str], stack: ExitStack
) -> Answer:
    """The answer to a POST; leaving the stack closes the connection.

    Args:
        address: of the server.
        path: behind the address's base.
        content: of the request.
        headers: beside those of HTTP itself.
        stack: what the connection is closed by.

    Raises:
        OSError: there is no server.
        UserError: it does not speak HTTP or TLS, or its certificate is not trusted.
    """
    if address.secure:
        return _posted_by_tls(address, path, content, headers, stack)
    # As bytes the host needs no table of international names; typeshed knows text alone.
    where: Any = (address.host.encode(), address.port)
    connection = stack.enter_context(socket.create_connection(where, CONNECT_S))
    connection.settimeout(None)  # a long prompt may take minutes
    host = f"[{address.host}]" if ":" in address.host else address.host
    own = {"Host": f"{host}:{address.port}", "Content-Length": str(len(content))}
    lines = [f"POST {address.base}{path} HTTP/1.0"]
    lines += [f"{name}: {value}" for name, value in (own | headers).items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + content)
    return _answer(stack.enter_context(connection.makefile("rb")))


def _answer(body: BinaryIO) -> Answer:
    """The answer that begins here."""
    while True:
        first = re.fullmatch(rb"HTTP/1\.\d (\d{3})(?: (.*?))?\r?\n", body.readline(MOST_HEAD))
        if first is None:
            raise UserError(
                "what answers does not speak HTTP",
                hint="with TLS, the address begins with https://",
            )
        while body.readline(MOST_HEAD).strip():
            pass
        status = int(first[1])
        if status >= 200:  # else another one follows
            return Answer(status=status, reason=(first[2] or b"").decode("latin-1"), body=body)


def _posted_by_tls(
    address: Address, path: str, content: bytes, headers: dict[str, str], stack: ExitStack
) -> Answer:
    from http.client import HTTPException, HTTPSConnection
    from ssl import SSLCertVerificationError, SSLError

    connection = HTTPSConnection(address.host, address.port, timeout=CONNECT_S)
    stack.callback(connection.close)
    try:
        connection.connect()
        connection.sock.settimeout(None)
        connection.request("POST", address.base + path, content, headers)
        response = connection.getresponse()
    except SSLCertVerificationError as error:
        raise UserError(
            f"the certificate of {address.host}:{address.port} is not trusted:"
            f" {error.verify_message}",
            hint="SSL_CERT_FILE=FILE.pem names certificates to trust",
        ) from error
    except SSLError as error:
        raise UserError(
            f"{address.host}:{address.port} does not speak TLS: {error.reason}",
            hint="without TLS, the address begins with http://",
        ) from error
    except HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error
    return Answer(status=response.status, reason=response.reason, body=_Whole(response))


class _Whole:
    """The content of an http.client response; one that is cut off ends, as a file does.

    Args:
        response: http.client's.
    """

    def __init__(self, response: Body) -> None:
        self._response = response

    def read(self, limit: int = -1, /) -> bytes:
        """So many bytes, or all that is left."""
        from http.client import HTTPException

        try:
            return self._response.read(limit) if limit >= 0 else self._response.read()
        except HTTPException as error:
            raise OSError(str(error)) from error

    def readline(self, limit: int = -1, /) -> bytes:
        """A line, or nothing at the end."""
        from http.client import HTTPException

        try:
            return self._response.readline(limit)
        except HTTPException as error:
            raise OSError(str(error)) from error
