"""Load, soak and a shell's call: `codecria serve` beside llama-cpp-python's server.

    python tests/bench/serve.py load MODEL --gguf MODEL.gguf --clients 1 4 16 --rounds 3
    python tests/bench/serve.py soak MODEL --requests 10000
    python tests/bench/serve.py call MODEL --rounds 20

load    streamed completions of real code by 1, 4 and 16 clients: seconds to the first token, tokens
        a second of all clients together; in every round each server in turn.
soak    well-behaved and misbehaving clients mixed, some of them at a time: what is left of memory,
        descriptors, threads and sequences. A polite client must get the same text every time.
call    `codecria generate --server` from a shell to its end, for one token: the time of the whole
        process, of Python alone, and of the request alone.

Drafts have a benchmark of their own (drafts.py).

MODEL is a checkpoint; `codecria convert --to gguf` makes the GGUF file of the same weights. The
llama.cpp server decodes one request at a time. Figures count on a quiet machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import json
import os
import random
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "data").rglob("*.py")) + sorted((ROOT / "core").rglob("*.py"))


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: its name, port and process id."""

    name: str
    port: int
    pid: int

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        assert response.status == 200, content[:500]
        return json.loads(content)

    def stream(self, body: dict[str, Any]) -> tuple[float, int, float]:
        """(seconds to the first text, chunks of text, seconds in all) of a streamed completion."""
        began = time.perf_counter()
        first, chunks = 0.0, 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            assert response.status == 200, response.read()[:500]
            while line := response.readline():
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                    first = first or time.perf_counter() - began
                    chunks += 1
        return first, chunks, time.perf_counter() - began


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(name: str, command: list[str], port: int) -> Iterator[Server]:
    """A server's process, once it answers."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                assert process.poll() is None, f"{name} ended: {' '.join(command)}"
                with contextlib.suppress(OSError):
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                    connection.request("GET", "/v1/models")
                    if connection.getresponse().status == 200:
                        break
                time.sleep(0.02)
            print(f"{name}: answers {time.perf_counter() - began:.2f} s after its start")
            yield Server(name, port, process.pid)
        finally:
            process.terminate()
            process.wait(30)


def codecria(model: Path, *options: str) -> contextlib.AbstractContextManager[Server]:
    """`codecria serve`."""
    port = free_port()
    command = [sys.executable, "-m", "codecria.cli", "serve", "-m", str(model)]
    return running("codecria", [*command, "--port", str(port), *options], port)


def llama_cpp(gguf: Path, threads: int) -> contextlib.AbstractContextManager[Server]:
    """llama-cpp-python's server."""
    port = free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port)]
    command += ["--n_ctx", "4096", "--n_threads", str(threads), "--cache", "true"]
    return running("llama.cpp", command, port)


def code(number: int, characters: int) -> str:
    """The start of one of the project's files, cut at a line."""
    text = FILES[number % len(FILES)].read_text(encoding="utf-8")
    return text[: text.rfind("\n", 0, characters) + 1] or text[:characters]


def load(arguments: argparse.Namespace) -> None:
    """Several clients at once, each server in turn."""
    threads = str(arguments.threads)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                codecria(
                    arguments.model, "--threads", threads, "--parallel", "16", "--cache-disk", "0"
                )
            )
        ]
        if arguments.gguf is not None:
            servers.append(stack.enter_context(llama_cpp(arguments.gguf, arguments.threads)))
        for clients in arguments.clients:
            found: dict[str, list[tuple[float, float]]] = {s.name: [] for s in servers}
            for round_ in range(arguments.rounds):
                for server in servers:
                    found[server.name].append(crowd(server, clients, round_, arguments.tokens))
            for name, rounds in found.items():
                first = statistics.median(f for f, _ in rounds)
                rate = statistics.median(r for _, r in rounds)
                print(
                    f"{clients:3} clients  {name:10} first token {first * 1000:7.0f} ms"
                    f"  {rate:8.1f} tokens/s"
                )


def crowd(server: Server, clients: int, round_: int, tokens: int) -> tuple[float, float]:
    """(median seconds to the first token, tokens a second) of clients side by side."""
    results: list[tuple[float, int, float]] = []

    def ask(number: int) -> None:
        prompt = f"# {round_} {number}\n" + code(7 * round_ + number, 1500)
        results.append(
            server.stream(
                {
                    "model": "x",
                    "prompt": prompt,
                    "max_tokens": tokens,
                    "temperature": 0.8,
                    "seed": number,
                    "stream": True,
                }
            )
        )

    began = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return statistics.median(r[0] for r in results), sum(r[1] for r in results) / seconds


def soak(arguments: argparse.Namespace) -> None:
    """Many requests, most of them from clients that misbehave, a few at a time."""
    # A small cache, full soon: what grows after that is lost.
    quiet = ("--threads", str(arguments.threads), "--cache-memory", "8MB", "--cache-disk", "0")
    kinds: Counter[str] = Counter()
    with codecria(arguments.model, *quiet) as server:
        server.post("/completion", {"prompt": "x", "n_predict": 4})

        def client(number: int) -> None:
            rng = random.Random(number)
            kind = rng.choice(list(CLIENTS))
            CLIENTS[kind](server, rng)
            kinds[kind] += 1

        began, part = time.perf_counter(), max(1, arguments.requests // 10)
        with ThreadPoolExecutor(arguments.clients[0]) as pool:
            for start in range(0, arguments.requests, part):
                print(f"{start:6} requests: {state(server)}", flush=True)
                # What a client raises ends the run: an answer was lost, or was another one.
                list(pool.map(client, range(start, min(start + part, arguments.requests))))
        time.sleep(2)
        took = time.perf_counter() - began
        print(f"{arguments.requests:6} requests: {state(server)}, after {took:.0f} s")
        print(", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))


def call(arguments: argparse.Namespace) -> None:
    """A shell's call, and what of it is Python's start and the request."""
    script = Path(sys.executable).with_name("codecria")
    prompt = code(3, 400)
    with codecria(arguments.model, "--threads", str(arguments.threads)) as server:
        url = f"http://127.0.0.1:{server.port}"
        request = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
        asked = [str(script), "generate", "--server", url, "--max-tokens", "1", prompt]
        ways: dict[str, Callable[[], object]] = {
            "codecria generate --server": lambda: _run(asked),
            "python -c pass": lambda: _run([sys.executable, "-c", "pass"]),
            "the request alone": lambda: server.post("/v1/completions", request),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                times[name].append(1000 * (time.perf_counter() - began))
    for name, taken in times.items():
        print(f"{name:26} {statistics.median(taken):7.1f} ms, at least {min(taken):7.1f}")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def state(server: Server) -> str:
    """What a server holds."""
    folder = Path(f"/proc/{server.pid}")
    memory = next(
        line.split()[1] for line in (folder / "status").open() if line.startswith("VmRSS")
    )
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    gauges = [line.removeprefix("codecria_") for line in lines if GAUGES.match(line)]
    held = (f"{len(list((folder / part).iterdir()))} {name}" for part, name in HELD)
    return f"{int(memory) / 1024:.0f} MB, {', '.join(held)}, {', '.join(gauges)}"


GAUGES = re.compile("codecria_([a-z]+_in_progress|prefix_cache_bytes) ")
HELD = (("fd", "descriptors"), ("task", "threads"))


def _asked(server: Server, rng: random.Random) -> socket.socket:
    body = {
        "prompt": code(rng.randrange(40), 600),
        "max_tokens": 64,
        "stream": rng.random() < 0.5,
        "temperature": 1.0,
    }
    content = json.dumps(body).encode()
    made = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    made.sendall(_head(len(content)) + content)
    return made


def _head(length: int) -> bytes:
    return (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def _polite(server: Server, rng: random.Random) -> None:
    number = rng.randrange(40)
    body = {"prompt": code(number, 600), "max_tokens": 4, "temperature": 0}
    text = server.post("/v1/completions", body)["choices"][0]["text"]
    assert TEXTS.setdefault(number, text) == text, "another text than before"


TEXTS: dict[int, str] = {}  # that polite clients got, by the number of their prompt


def _leaves(server: Server, rng: random.Random) -> None:
    _asked(server, rng).close()


def _leaves_midway(server: Server, rng: random.Random) -> None:
    with _asked(server, rng) as client:
        client.recv(200)


def _half(server: Server, rng: random.Random) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(_head(1000) + b'{"prompt": "' + b"x" * rng.randrange(900))


def _long(server: Server, rng: random.Random) -> None:
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as client,
    ):
        client.sendall(_head(10 << 20) + b"x" * (10 << 20))
        assert b" 413 " in client.recv(100)


def _garbage(server: Server, rng: random.Random) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(_head(20) + rng.randbytes(20))
        assert b" 400 " in client.recv(100)


def _compressed(server: Server, rng: random.Random) -> None:
    content = gzip.compress(json.dumps({"prompt": "x" * rng.randrange(1000)}).encode())
    head = _head(len(content)).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(head + content)
        assert b" 415 " in client.recv(100)


def _reads_nothing(server: Server, rng: random.Random) -> None:
    with _asked(server, rng) as client:
        time.sleep(rng.random() / 5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets


def _pipeline(server: Server, rng: random.Random) -> None:
    content = json.dumps({"prompt": "x", "max_tokens": 2}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall((_head(len(content)) + content) * 3)
        client.recv(rng.randrange(1, 500))


CLIENTS: dict[str, Callable[[Server, random.Random], None]] = {
    "polite": _polite,
    "leaves at once": _leaves,
    "leaves midway": _leaves_midway,
    "half a body": _half,
    "10 MB": _long,
    "no UTF-8": _garbage,
    "compressed": _compressed,
    "reads nothing": _reads_nothing,
    "leaves a pipeline": _pipeline,
}


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("load", "soak", "call"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    {"load": load, "soak": soak, "call": call}[arguments.what](arguments)


if __name__ == "__main__":
    main()
