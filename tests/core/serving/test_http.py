"""HTTP beyond the plain request: pipelines, pages of browsers, compressed and announced bodies."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

import pytest

from codecria.cli import app as cli
from codecria.core.serving import server
from codecria.core.serving.http import is_own_page
from tests.core.serving.conftest import Serve, Served

BODY = {"prompt": "x = ", "n_predict": 1}


def exchanged(served: Served, content: bytes, answers: int) -> bytes:
    """What a connection receives until so many answers have begun and it is quiet or closed."""
    received = b""
    with socket.create_connection(served.address, timeout=20) as client:
        client.sendall(content)
        while received.count(b"HTTP/1.1 ") < answers or not received.rstrip().endswith(b"}"):
            part = client.recv(65536)
            if not part:
                break
            received += part
    return received


def request_of(body: Any, *headers: str, path: str = "/completion") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
    if not any(h.lower().startswith("transfer-encoding") for h in headers):
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def test_requests_in_a_pipeline_are_answered_in_order(served: Served) -> None:
    numbers = (1, 2, 3)
    sent = b"".join(request_of({"prompt": "x = ", "n_predict": n}) for n in numbers)
    received = exchanged(served, sent, 3)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert [json.loads(body)["tokens_predicted"] for body in bodies] == list(numbers)


def test_chunks_and_announced_bodies_are_read(served: Served) -> None:
    content = json.dumps(BODY).encode()
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (content[:5], content[5:], b""))
    received = exchanged(served, request_of(chunked, "Transfer-Encoding: chunked"), 1)
    assert received.startswith(b"HTTP/1.1 200 ")
    with socket.create_connection(served.address, timeout=20) as client:
        announced = request_of(content, "Expect: 100-continue")
        head = announced.removesuffix(content)
        client.sendall(head)
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(content)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_compressed_bodies_are_refused_by_name(served: Served) -> None:
    content = gzip.compress(json.dumps(BODY).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    status, answer = served.send("POST", "/completion", content, headers)
    assert status == 415
    assert "gzip" in json.loads(answer)["error"]["message"]
    plain = {"Content-Encoding": "identity"}
    assert served.send("POST", "/completion", BODY, plain)[0] == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/props"])
def test_heads_are_answered_without_a_body(served: Served, path: str) -> None:
    assert served.send("HEAD", path) == (200, b"")


def test_a_wrong_method_names_the_right_one(served: Served) -> None:
    received = exchanged(served, b"GET /infill HTTP/1.1\r\nHost: localhost\r\n\r\n", 1)
    assert received.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nallow: POST\r\n" in received


def test_a_header_too_long_is_refused(served: Served) -> None:
    sent = request_of(BODY, "X-Long: " + "y" * (1 << 20))
    with socket.create_connection(served.address, timeout=20) as client:
        try:
            client.sendall(sent)
            received = client.recv(1000)
        except ConnectionError:
            received = b""
    assert received == b"" or received.startswith(b"HTTP/1.1 4")
    assert served.send("GET", "/health")[0] == 200
    fits = request_of(BODY, "Cookie: " + "y" * 16_000)  # as pages of a development server send
    assert exchanged(served, fits, 1).startswith(b"HTTP/1.1 200 ")


PAGES = [
    ("http://localhost:3000", True),
    ("https://127.0.0.1", True),
    ("http://[::1]:8080", True),
    ("vscode-webview://abc", True),
    ("https://example.org", False),
    ("http://localhost.example.org", False),
    ("http://127.0.0.1.example.org", False),
    ("null", False),
    ("http://[", False),
    ("", True),
]


@pytest.mark.parametrize(("origin", "own"), PAGES)
def test_pages_of_this_machine_may_ask_and_read(served: Served, origin: str, own: bool) -> None:
    assert is_own_page(origin, "") is own
    assert is_own_page(origin, "s3cret")
    asked = "\r\nOrigin: " + origin if origin else ""
    preflight = (
        f"OPTIONS /infill HTTP/1.1\r\nHost: localhost{asked}\r\nConnection: close\r\n"
        "Access-Control-Request-Method: POST\r\n"
        "Access-Control-Request-Headers: authorization, content-type\r\n\r\n"
    )
    received = exchanged(served, preflight.encode(), 9).lower()
    allowed = f"\r\naccess-control-allow-origin: {origin}\r\n".encode()
    assert (allowed in received) is (own and origin != "")
    if own and origin:
        assert b"\r\naccess-control-allow-headers: authorization, content-type\r\n" in received
    received = exchanged(served, request_of(BODY, *([f"Origin: {origin}"] if origin else [])), 1)
    assert received.startswith(b"HTTP/1.1 200 " if own else b"HTTP/1.1 403 ")
    assert (allowed in received.lower()) is (own and origin != "")


def test_a_host_that_is_none_is_refused(served: Served) -> None:
    for host in ("[", "example.org", "localhost.example.org"):
        sent = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert exchanged(served, sent, 1).startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))


def loopback6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6) as made:
            made.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not loopback6(), reason="needs an IPv6 loopback address: not on this machine")
def test_the_ipv6_loopback_address_needs_no_key(
    serve: Serve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(host="::1") as served:
        assert served.url.startswith("http://[::1]:")
        assert served.post("/completion", BODY)["tokens_predicted"] == 1
        command = ["codecria", "generate", "--server", served.url, "--max-tokens", "2", "x = "]
        monkeypatch.setattr("sys.argv", command)
        assert cli.run() == 0
        assert capfd.readouterr().out


def test_a_port_that_is_taken_is_named() -> None:
    from codecria.data.errors import UserError

    taken = server.listen("127.0.0.1", 0, key="")
    port = taken.getsockname()[1]
    with taken, pytest.raises(UserError, match=f"127.0.0.1:{port}") as caught:
        server.listen("127.0.0.1", port, key="")
    assert "--port" in caught.value.hint
