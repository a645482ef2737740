"""Clients that misbehave: none keeps a sequence or a descriptor, and others are answered."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from codecria.core.serving import server
from codecria.core.serving.http import ABORT, Limits, Stream, is_loopback
from codecria.data.errors import UserError
from tests.core.serving.conftest import Serve, Served

# Takes a second at least, however fast the machine.
LONG: dict[str, Any] = {
    "prompt": "def f(x):\n",
    "max_tokens": 450,
    "n": 16,
    "stream": True,
    "logprobs": 20,
}


def connected(served: Served) -> socket.socket:
    made = socket.socket()
    made.settimeout(60)
    made.connect(served.address)
    return made


def head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def asked(served: Served, body: dict, path: str = "/v1/completions") -> socket.socket:
    """A connection that has sent a request."""
    content = json.dumps(body).encode()
    made = connected(served)
    made.sendall(head(path, len(content)) + content)
    return made


def settles(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something becomes true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.02)
    return False


def idle(served: Served) -> bool:
    return (
        served.state.running == 0
        and served.state.worker.load.sequences == 0
        and not served.state.worker._engine.busy
    )


def test_a_client_that_goes_away_frees_its_sequence(served: Served) -> None:
    with asked(served, LONG) as client:
        received = client.recv(1000)
        while b"data: " not in received:
            received += client.recv(1000)
        assert served.state.worker.load.sequences > 0
    assert settles(lambda: idle(served))
    before = served.metric("generated_tokens_total")
    with asked(served, LONG | {"stream": False}):
        assert settles(lambda: served.state.worker.load.sequences > 0)
    assert settles(lambda: idle(served))
    more = served.metric("generated_tokens_total") - before
    assert more < LONG["max_tokens"] * LONG["n"] / 2  # nobody waited for the rest
    assert not any(served.state.worker._engine._runner.lengths)


def test_a_client_that_leaves_its_answer_unread_is_dropped() -> None:
    dropped: list[str] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"text"
        finally:
            dropped.append("chunks")

    async def send(message: Any) -> None:
        if message.get("body"):
            await asyncio.Event().wait()  # its buffer is full

    async def receive() -> Any:
        await asyncio.Event().wait()

    stream = Stream(
        chunks(),
        media_type="text/event-stream",
        stalled_s=0.05,
        on_close=lambda: dropped.append("request"),
    )
    scope = {"extensions": {ABORT: lambda: dropped.append("connection")}}
    asyncio.run(stream(scope, receive, send))
    assert sorted(dropped) == ["chunks", "connection", "request"]


def test_half_a_request_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Limits(body_s=0.3)) as served:
        with connected(served) as client:
            client.sendall(head("/infill", 1000) + b'{"input_prefix": "')
            assert b" 408 " in client.recv(1000)
        with connected(served) as client:
            client.sendall(head("/infill", 1000) + b'{"input_prefix": "')
        monkeypatch.setattr(server, "HEADERS_S", 0.3)
        for begun in (b"", b"POST /infill HT", b"POST /infill HTTP/1.1\r\nHost: loc"):
            with connected(served) as client:
                client.sendall(begun)
                assert client.recv(1000) == b""  # closed by the server
        with connected(served) as client:  # a byte now and then does not prolong it
            began = time.monotonic()
            try:
                while time.monotonic() < began + 50:
                    client.sendall(b"x")
                    time.sleep(0.1)
            except OSError:
                pass
            assert time.monotonic() < began + 40
        assert settles(lambda: idle(served))


def test_long_requests_are_refused_and_the_connection_goes_on(serve: Serve) -> None:
    with serve(Limits(body_bytes=1 << 20)) as served:
        content = json.dumps({"prompt": "x" * (10 << 20)}).encode()
        status, error = served.refused("/v1/completions", content)
        assert status == 413
        assert "1,048,576 bytes" in error["error"]["message"]
        connection = http.client.HTTPConnection(*served.address, timeout=60)
        connection.request("POST", "/infill", iter([b"x" * (1 << 20)] * 3), encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, response.read()[:9]) == (413, b'{"error":')
        connection.request("POST", "/completion", b'{"prompt": "x", "n_predict": 1}')
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b"",
        b"null",
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 5000,
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "stop": ["' + b"y" * 5000 + b'"]}',
        b'{"prompt": [999999]}',
        b'{"prompt": []}',
        b'{"prompt": "x", "max_tokens": 1e30}',
    ],
    ids=range(11),
)
def test_a_body_that_is_no_request_is_answered_with_an_error(
    served: Served, content: bytes
) -> None:
    status, error = served.refused("/v1/completions", content)
    assert status == 400
    assert error["error"]["message"]


def test_what_is_no_http_is_answered_or_closed(served: Served) -> None:
    for content in (b"\x16\x03\x01\r\n\r\n", b"GET HTTP\r\n\r\n", b"hello\r\n\r\n"):
        with connected(served) as client:
            client.sendall(content)
            received = client.recv(1000)
            assert received == b"" or b" 400 " in received
    assert served.send("GET", "/health")[0] == 200


def test_more_requests_than_the_limit_are_told_to_come_back(serve: Serve) -> None:
    with serve(Limits(requests=1)) as served, connected(served) as client:
        client.sendall(head("/infill", 100) + b"{")  # in progress until its body is there
        assert settles(lambda: served.state.running == 1)
        status, _ = served.refused("/completion", {"prompt": "x", "n_predict": 1})
        assert status == 503
        assert served.send("GET", "/health")[0] == 200


def test_a_key_is_asked_for_everywhere_but_for_health(serve: Serve) -> None:
    with serve(key="s3cret") as served:
        body = {"prompt": "x", "n_predict": 1}
        for path in ("/completion", "/v1/completions", "/api/generate"):
            assert served.refused(path, body)[0] == 401
        assert served.send("GET", "/v1/models")[0] == 401
        assert served.send("GET", "/metrics")[0] == 401
        assert served.send("GET", "/health")[0] == 200
        for headers in ({"Authorization": "Bearer s3cret"}, {"X-Api-Key": "s3cret"}):
            assert served.send("POST", "/completion", body, headers)[0] == 200
        wrong = {"Authorization": "Bearer s3cre\u00e9"}
        assert served.send("POST", "/completion", body, wrong)[0] == 401


def test_pages_of_other_sites_are_not_answered(served: Served) -> None:
    for headers in ({"Origin": "https://example.org"}, {"Host": "example.org"}):
        assert served.send("GET", "/v1/models", headers=headers)[0] == 403
    for headers in ({"Origin": "http://localhost:3000"}, {"Origin": "vscode-webview://1"}):
        assert served.send("GET", "/v1/models", headers=headers)[0] == 200


def test_other_machines_need_a_key() -> None:
    with pytest.raises(UserError, match="no key"):
        server.listen("0.0.0.0", 0, key="")
    server.listen("0.0.0.0", 0, key="x").close()
    assert not is_loopback("0.0.0.0")
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    taken = server.listen("127.0.0.1", 0, key="")
    with taken, pytest.raises(UserError, match="cannot listen"):
        server.listen("127.0.0.1", taken.getsockname()[1], key="")


def test_clients_side_by_side_get_what_each_gets_alone(served: Served) -> None:
    bodies = [
        {"prompt": f"def f{n}(x):\n    ", "max_tokens": 30, "temperature": n % 2, "seed": n}
        for n in range(12)
    ]
    expected = [served.post("/v1/completions", body)["choices"][0]["text"] for body in bodies]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = served.post("/v1/completions", bodies[number])["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(bodies))] == expected


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc: not on this machine")
def test_nothing_is_left_of_clients_that_misbehave(served: Served) -> None:
    served.post("/completion", {"prompt": "x", "n_predict": 1})
    before, threads = descriptors(), threading.active_count()
    for round_ in range(40):
        asked(served, LONG | {"stream": round_ % 2 == 0}).close()
        with connected(served) as client:
            client.sendall(head("/infill", 500) + b"{")
        with connected(served) as client:
            client.sendall(bytes(range(50)) + b"\r\n\r\n")
        served.send("POST", "/v1/completions", b"\xff")
    assert settles(lambda: idle(served))
    assert settles(lambda: descriptors() <= before)
    assert threading.active_count() <= threads + 4  # the pool that parses requests
    assert served.post("/completion", {"prompt": "x", "n_predict": 1})
