"""Load, soak and drafts: `codecria serve` beside llama-cpp-python's server and llama.cpp's drafts.

    python tests/bench/serve.py load MODEL --gguf MODEL.gguf --clients 1 4 16 --rounds 3
    python tests/bench/serve.py soak MODEL --requests 10000
    python tests/bench/serve.py draft MODEL --gguf MODEL.gguf --rounds 3
    python tests/bench/serve.py edit MODEL --rounds 5

load    streamed completions of real code by 1, 4 and 16 clients: seconds to the first token, tokens
        a second of all clients together; in every round each server in turn.
soak    well-behaved and misbehaving clients mixed; what is left of memory, descriptors, sequences.
draft   infilling and continuing this project's files with drafts on and off, and llama.cpp's
        prompt lookup; a model that knows code is needed for these figures to mean anything.
edit    the saving of a prediction: the answer of the model itself with a token changed here and
        there, so any model will do. And a text that shares nothing, where a gate must shut.

MODEL is a checkpoint; `codecria convert --to gguf` makes the GGUF file of the same weights. The
llama.cpp server decodes one request at a time. Figures count on a quiet machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
    """Many requests, half of them from clients that misbehave."""
    rng = random.Random(0)
    quiet = ("--threads", str(arguments.threads), "--cache-memory", "50MB", "--cache-disk", "0")
    with codecria(arguments.model, *quiet) as server:
        server.post("/completion", {"prompt": "x", "n_predict": 4})
        shown = 0
        kinds: dict[str, int] = {}
        for number in range(arguments.requests):
            if number >= shown:
                print(f"{number:6} requests: {state(server)}", flush=True)
                shown += max(1, arguments.requests // 10)
            kind = rng.choice(list(CLIENTS))
            CLIENTS[kind](server, rng)
            kinds[kind] = kinds.get(kind, 0) + 1
        time.sleep(2)
        print(f"{arguments.requests:6} requests: {state(server)}")
        print(", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))


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
    gauges = [line.removeprefix("codecria_") for line in lines if "_in_progress " in line]
    gauges = [line for line in gauges if not line.startswith("#")]
    descriptors = len(list((folder / "fd").iterdir()))
    return f"{int(memory) / 1024:.0f} MB, {descriptors} descriptors, {', '.join(gauges)}"


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
    body = {"prompt": code(rng.randrange(40), 600), "max_tokens": 4}
    assert server.post("/v1/completions", body)["choices"]


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


CLIENTS: dict[str, Callable[[Server, random.Random], None]] = {
    "polite": _polite,
    "leaves at once": _leaves,
    "leaves midway": _leaves_midway,
    "half a body": _half,
    "10 MB": _long,
    "no UTF-8": _garbage,
}


def cases() -> list[tuple[str, dict[str, Any]]]:
    """(kind, body) of infillings and continuations of real files."""
    rng = random.Random(1)
    found = []
    for number in range(12):
        lines = FILES[(number * 17) % len(FILES)].read_text(encoding="utf-8").splitlines(True)
        at = rng.randrange(len(lines) // 3, len(lines))
        prefix, suffix = "".join(lines[max(0, at - 120) : at]), "".join(lines[at + 4 : at + 40])
        found.append(("infill", {"input_prefix": prefix, "input_suffix": suffix}))
        found.append(("continue", {"prompt": prefix}))
    return found


def draft(arguments: argparse.Namespace) -> None:
    """Real files with drafts, without, and with llama.cpp's prompt lookup."""
    threads = str(arguments.threads)
    quiet = ("--threads", threads, "--cache-memory", "0")
    rates: dict[tuple[str, str], list[float]] = {}
    with (
        codecria(arguments.model, *quiet) as on,
        codecria(arguments.model, *quiet, "--draft", "off") as off,
    ):
        for _ in range(arguments.rounds):
            for kind, body in cases():
                path = "/infill" if kind == "infill" else "/completion"
                texts = set()
                for name, server in (("drafts", on), ("plain", off)):
                    body |= {"n_predict": arguments.tokens, "temperature": 0}
                    found = server.post(path, body)
                    texts.add(found["content"])
                    times = found["timings"]
                    rates.setdefault((kind, name), []).append(times["predicted_per_second"])
                    if times.get("draft_n"):
                        share = times["draft_n_accepted"] / times["draft_n"]
                        rates.setdefault((kind, "accepted"), []).append(share)
                if len(texts) > 1:
                    print("the texts differ: drafts are not exact here")
    if arguments.gguf is not None:
        for name, lookup in (("llama.cpp", False), ("llama.cpp lookup", True)):
            for kind, rate in llama_rates(arguments, lookup=lookup):
                rates.setdefault((kind, name), []).append(rate)
    for (kind, name), values in sorted(rates.items()):
        print(f"{kind:10} {name:18} {statistics.median(values):9.2f}")


def llama_rates(arguments: argparse.Namespace, *, lookup: bool) -> Iterator[tuple[str, float]]:
    """(kind, tokens a second) of llama.cpp in this process, with or without its own drafts."""
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    model = Llama(
        str(arguments.gguf),
        n_ctx=4096,
        n_threads=arguments.threads,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10) if lookup else None,
        logits_all=lookup,
        verbose=False,
    )
    for kind, body in cases():
        prompt = (
            body.get("prompt") or f"<PRE> {body['input_prefix']} <SUF>{body['input_suffix']} <MID>"
        )
        model.reset()
        stamps = []
        ids = model.tokenize(prompt.encode(), special=True)[-3500:]
        for _ in zip(model.generate(ids, temp=0), range(arguments.tokens), strict=False):
            stamps.append(time.perf_counter())
        if len(stamps) > 1:
            yield kind, (len(stamps) - 1) / (stamps[-1] - stamps[0])


def edit(arguments: argparse.Namespace) -> None:
    """A prediction that is right but for a token here and there, and one that is wrong."""
    threads = str(arguments.threads)
    rng = random.Random(2)
    ratios: dict[str, list[float]] = {}
    drafted: list[int] = []
    quiet = ("--threads", threads, "--cache-disk", "0")
    with (
        codecria(arguments.model, *quiet) as on,
        codecria(arguments.model, *quiet, "--draft", "off") as off,
    ):
        for round_ in range(arguments.rounds):
            body = {"prompt": code(round_ * 5, 900), "max_tokens": arguments.tokens}
            plain = off.post("/v1/completions", body | {"temperature": 0})
            answer = plain["choices"][0]["text"]
            words = answer.split(" ")
            for every in (10, 30):
                changed = [w if rng.randrange(every) else "changed" for w in words]
                guess = {"type": "content", "content": " ".join(changed)}
                found = on.post("/v1/completions", body | {"temperature": 0, "prediction": guess})
                assert found["choices"][0]["text"] == answer, "drafts changed the text"
                ratio = found["timings"]["predicted_per_second"]
                ratio /= plain["timings"]["predicted_per_second"]
                ratios.setdefault(f"a word in {every} changed", []).append(ratio)
            sampled = body | {"temperature": 1.0, "seed": round_}
            guess = {"type": "content", "content": code(round_ * 5 + 3, 3000)}
            without = off.post("/v1/completions", sampled)["timings"]
            found = on.post("/v1/completions", sampled | {"prediction": guess})["timings"]
            if without["predicted_n"] > 20:  # else it ended before there was anything to measure
                ratio = found["predicted_per_second"] / without["predicted_per_second"]
                ratios.setdefault("nothing in common", []).append(ratio)
                drafted.append(found.get("draft_n", 0))
    for name, values in ratios.items():
        print(f"{name:26} {statistics.median(values):6.2f} times the speed without drafts")
    print(f"tokens drafted with nothing in common: {statistics.mean(drafted):.1f} an answer")


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("load", "soak", "draft", "edit"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    {"load": load, "soak": soak, "draft": draft, "edit": edit}[arguments.what](arguments)


if __name__ == "__main__":
    main()
