"""A server with a small random model, in this process, on a free port."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from codecria.core.inference.generator import Generator
from codecria.core.inference.prefix_cache import PrefixCache
from codecria.core.serving.app import State, make_app
from codecria.core.serving.http import Limits
from codecria.core.serving.start import Settings, start
from codecria.data.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Served:
    """A server under test.

    Attributes:
        url: its address.
        model: the checkpoint it serves.
        state: its own.
    """

    url: str
    model: Path
    state: State

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """(status, body) of a request; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a response that is no error."""
        status, content = self.send("POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def refused(self, path: str, body: Any) -> tuple[int, Any]:
        """(status, JSON) of a response that is an error."""
        status, content = self.send("POST", path, body)
        assert status >= 400, content
        return status, json.loads(content)

    def events(self, path: str, body: Any) -> list[Any]:
        """The JSON values of a stream; "[DONE]" for its end mark."""
        status, content = self.send("POST", path, body)
        assert status == 200, content
        if b"data: " not in content:
            return [json.loads(line) for line in content.splitlines()]
        found = [part.removeprefix(b"data: ") for part in content.strip().split(b"\n\n")]
        return ["[DONE]" if part == b"[DONE]" else json.loads(part) for part in found]

    def metric(self, name: str) -> float:
        """A counter without labels, or the sum over its labels."""
        _, content = self.send("GET", "/metrics")
        lines = [line.rpartition(" ") for line in content.decode().splitlines()]
        return sum(float(v) for key, _, v in lines if key.partition("{")[0] == f"codecria_{name}")


@pytest.fixture(scope="session")
def filler_tokenizer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer.extend(tmp_path_factory.mktemp("serving") / "tokenizer.model")


@pytest.fixture(scope="session")
def served_model(filler_tokenizer: Tokenizer, random_model: Callable[..., Path]) -> Path:
    """A model that fills gaps, and ends by length or a stop string alone."""
    assert filler_tokenizer.infill is not None
    unsaid = [filler_tokenizer.infill.end, filler_tokenizer.eos_id]
    return random_model(filler_tokenizer, max_context=512, unsaid=unsaid)


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def serve(served_model: Path) -> Serve:
    """Serves the model within a block, with these limits and settings."""
    pytest.importorskip("uvicorn")
    from codecria.core.serving import server

    generator = Generator.load(served_model, device="cpu", dtype="float32")

    @contextmanager
    def run(
        limits: Limits | None = None, *, host: str = "127.0.0.1", **settings: Any
    ) -> Iterator[Served]:
        listening = server.listen(host, 0, key=settings.get("key", ""))
        state = start(
            generator,
            Settings(name="small", limits=limits or Limits(), **settings),
            cache=PrefixCache(memory_bytes=64 << 20),
            log=lambda _: None,
        )
        ready = threading.Event()
        running = server.make_server(make_app(state), on_ready=ready.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert ready.wait(120)
            yield Served(server.url_of(listening), served_model, state)
        finally:
            running.should_exit = True
            thread.join()
            state.worker.stop()

    return run


@pytest.fixture(scope="module")
def served(serve: Serve) -> Iterator[Served]:
    with serve() as found:
        yield found
