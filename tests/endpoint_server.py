"""A loopback server in OpenAI's form that knows the answers to small questions, and can misbehave.

Its "model" is a table of rules, a function of the request alone: the same seed, the same answer.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# How a request can go wrong: tried in this order, as often as `faults` says.
DROP, ERROR, GARBAGE, BUSY, TORN, EMPTY = "drop", "500", "garbage", "429", "torn", "empty"
# Bytes that come one by one, for ever: of a body, or of the headers.
DRIP, SLOW_HEADERS = "drip", "slow headers"


def say(body: dict[str, Any]) -> str:
    """The answer to a request."""
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    seed = body["seed"]
    if "numbered list" in text:
        count = int(re.findall(r"Write (\d+)", text)[-1])
        numbers = [(seed + i) % 17 for i in range(count)]
        listed = [
            f"{i + 1}. Write a function add_{n} that adds {n} to a number."
            for i, n in enumerate(numbers)
        ]
        return "Here they are:\n\n" + "\n".join(listed) + "\n\nThat was fun."
    number = int(re.findall(r"adds (-?\d+)", text)[-1])
    if "between [TESTS]" in text.rsplit("Question:", 1)[0]:
        asserts = [f"# Test case {i}:\nassert add_{number}({i}) == {i + number}" for i in range(4)]
        return "Sure.\n[TESTS]\n" + "\n".join(asserts) + "\n"
    return random.Random(seed).choice(
        (
            f"[PYTHON]\ndef add_{number}(x):\n    return x + {number}\n",
            f"[PYTHON]\ndef add_{number}(x):\n    # the same\n    return x + {number}\n",
            f"[PYTHON]\ndef add_{number}(x):\n    return {number}\n",
            f"[PYTHON]\nimport os\ndef add_{number}(x):\n    os._exit(0)\n",
            "I would rather not.",
        )
    )


@dataclass
class Server:
    """What a test may look at and change.

    Attributes:
        url: the endpoint's.
        say: the answer to a request.
        faults: taken from the front, one a request, before any answer.
        status: answer everything with this, if set; (status, headers, body).
        seen: (path, headers, body) of all requests.
    """

    url: str = ""
    say: Callable[[dict[str, Any]], str] = say
    faults: list[str] = field(default_factory=list)
    status: tuple[int, dict[str, str], bytes] | None = None
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing: tests look at `seen`."""

        def send(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            with server.lock:
                server.seen.append((self.path, dict(self.headers), {}))
            self.send(200, b"{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.seen.append((self.path, dict(self.headers), body))
                fault = server.faults.pop(0) if server.faults else ""
            if fault == DROP:
                self.close_connection = True
                self.connection.close()
            elif fault == ERROR:
                self.send(500, b"no memory left")
            elif fault == GARBAGE:
                self.send(200, b"<html>{not json")
            elif fault == BUSY:
                self.send(429, b"slowly", Retry_After="0")
            elif fault == TORN:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            elif fault in (DRIP, SLOW_HEADERS):
                self.drip(b"x" if fault == SLOW_HEADERS else b" ", headers=fault == DRIP)
            elif fault == EMPTY:
                self.send(200, b'{"choices": []}')
            elif server.status is not None:
                status, headers, content = server.status
                self.send(status, content, **headers)
            else:
                self.send(200, json.dumps(self.answer(body)).encode())

        def drip(self, byte: bytes, *, headers: bool) -> None:
            if headers:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
            else:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            self.close_connection = True
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(byte)
                    time.sleep(0.02)

        def answer(self, body: dict[str, Any]) -> dict[str, Any]:
            text = server.say(body)
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
            if "messages" in body:
                choice["message"] = {"role": "assistant", "content": text}
            else:
                choice["text"] = text
            usage = {"prompt_tokens": 20, "completion_tokens": len(text.split())}
            return {"choices": [choice], "usage": usage}

    return Handler


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of loopback, until the block ends."""
    state = Server()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
