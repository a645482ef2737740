"""`serve` and `generate --server` from the shell: started, used, refused and ended."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from codecria.cli import app as cli
from codecria.data.tokenizer.tokenizer import Tokenizer

KEY = "s3cret"
PROMPT = "def add(a, b):\n    return"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(
    tokenizer: Tokenizer,
    random_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    extended = tokenizer.extend(tmp_path_factory.mktemp("serve") / "tokenizer.model")
    assert extended.infill is not None
    return random_model(extended, max_context=512, unsaid=[extended.infill.end, extended.eos_id])


@pytest.fixture(scope="module")
def process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A server in a process of its own, with a key."""
    pytest.importorskip("uvicorn")
    cache = tmp_path_factory.mktemp("cache")
    environment = os.environ | {
        "CODECRIA_SERVE_KEY": KEY,
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(cache),
    }
    command = [sys.executable, "-m", "codecria.cli", "serve", "-m", str(model), "--port", "0"]
    with subprocess.Popen(
        [*command, "--json", "--log", "--threads", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = running.stdout.readline()
            assert line, running.communicate()[1]
            text += line
        yield json.loads(text) | {"process": running, "cache": cache}
        if running.poll() is None:
            running.kill()


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Call:
    """(status, stdout, stderr) of `codecria generate` in this process."""

    def call(*options: Any, stdin: str = "") -> tuple[int, str, str]:
        command = ["codecria", "generate", "--max-tokens", "20", "--threads", "1", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capfdbinary.readouterr()
        status = cli.run()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return int(status), out.decode(), err.decode()

    return call


def test_a_server_prints_what_the_model_itself_would(
    model: Path, process: dict[str, Any], generate: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODECRIA_SERVE_KEY", KEY)
    marked = "def add(a, b):\n    <FILL_ME>\n\n\nprint(add(1, 2))\n"
    for options in (
        [PROMPT],
        [PROMPT, "-t", "0.8", "--top-k", "30", "--top-p", "0.9", "--seed", "5"],
        [PROMPT, "-t", "0.8", "-n", "3"],
        [PROMPT + "u", "--heal"],
        [PROMPT, "--echo"],
        [marked],
        [marked, "--form", "spm"],
        [marked, "--echo"],
        [marked, "--diff"],
        [marked.replace("\n", "\r\n")],
        ["--chat", "What is 1+1?", "--system", "Be brief."],
        [PROMPT * 60, "--truncate", "left"],
    ):
        here = generate("-m", model, *options)
        there = generate("--server", process["url"], *options)
        assert here[:2] == there[:2], options
        assert here[0] == 0
    _, out, _ = generate("--server", process["url"], PROMPT, "--json")
    found = json.loads(out)
    assert found["completion_tokens"] == 20
    assert found["prompt_tokens"] > 0
    assert found["decode_s"] > 0


def test_what_a_server_refuses_is_one_clear_line(process: dict[str, Any], generate: Call) -> None:
    url = process["url"]
    status, out, err = generate("--server", url, "x")
    assert (status, out) == (1, "")
    assert "the key is missing or wrong" in err
    status, out, err = generate("--server", url, "--key", KEY, "x = 1\n" * 900)
    assert (status, out) == (1, "")
    assert "the context 512" in err
    status, _, err = generate("--server", "http://127.0.0.1:1", "x")
    assert status == 1
    assert "codecria serve" in err
    for options in (
        ["--server", "ftp://x", "y"],
        ["--server", url, "--context", "99", "x"],
        ["--server", url, "--dry-run", "x"],
        ["x"],
        ["-m", "x", "--echo", "--json", "x"],
    ):
        assert generate(*options)[0] == 2, options


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """(port, certificate) of a proxy with TLS, whose server is below /llm."""
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = [openssl, "req", "-x509", "-nodes", "-days", "1", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            known = self.path == "/llm/v1/completions"
            event = {"choices": [{"index": 0, "text": "hello", "finish_reason": "stop"}]}
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield proxy.server_port, certificate
        proxy.shutdown()
        thread.join()


def test_tls_and_a_path_before_the_server(
    encrypted: tuple[int, Path], generate: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificate = encrypted
    status, out, err = generate("--server", f"https://localhost:{port}/llm", "x")
    assert (status, out) == (1, "")
    assert "is not trusted: self-signed certificate" in err
    assert "SSL_CERT_FILE" in err
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert generate("--server", f"https://localhost:{port}/llm", "x")[:2] == (0, "hello")
    assert generate("--server", f"https://localhost:{port}", "x")[0] == 1


def test_a_server_call_prints_the_same_without_what_is_slow_to_import(
    process: dict[str, Any], generate: Call
) -> None:
    code = (
        "import sys; from codecria.cli import quick\n"
        "try: quick.main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    options = ["--server", process["url"], "--key", KEY, "--max-tokens", "2"]
    slow = {"torch", "numpy", "pydantic", "sentencepiece", "typer", "http.client", "email"}
    for more in ([PROMPT], ["a<FILL_ME>b"], ["--json", "-n", "2", PROMPT], ["--chat", PROMPT]):
        found = subprocess.run(
            [sys.executable, "-c", code, "generate", *options, *more],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        assert not slow & set(found.stderr.split()), more
        status, expected, _ = generate(*options, *more)
        assert status == 0
        if "--json" in more:
            assert [json.loads(line)["text"] for line in found.stdout.splitlines()] == [
                json.loads(line)["text"] for line in expected.splitlines()
            ]
        else:
            assert found.stdout == expected


def test_a_signal_ends_the_server_and_what_it_read_is_kept(
    process: dict[str, Any], model: Path, generate: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "".join(f"x{n} = {n}\n" for n in range(30))
    assert generate("--server", process["url"], "--key", KEY, prompt)[0] == 0
    running = process["process"]
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=120)
    assert running.returncode in (143, -signal.SIGTERM)
    assert "POST /v1/completions 200" in err
    assert "Traceback" not in err
    monkeypatch.setenv("XDG_CACHE_HOME", str(process["cache"]))
    status, out, _ = generate("-m", model, prompt, "--cache", "--json")
    assert status == 0
    assert json.loads(out)["cached_tokens"] > 100


def test_the_cache_changes_no_text(
    model: Path, generate: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = []
    for options in (["--draft", "off"], ["--cache"], ["--cache"]):
        status, out, _ = generate("-m", model, PROMPT * 3, "--json", *options)
        assert status == 0
        texts.append(json.loads(out))
    assert len({found["text"] for found in texts}) == 1
    assert [found["cached_tokens"] > 0 for found in texts] == [False, False, True]


def test_without_the_extra_one_line_names_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("codecria.core.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", ["codecria", "serve", "-m", str(model)])
    assert cli.run() == 1
    assert "pip install 'codecria[serve]'" in capsys.readouterr().err


def test_other_machines_are_not_served_without_a_key(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn")
    command = ["codecria", "serve", "-m", str(model), "--host", "0.0.0.0"]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.run() == 1
    assert "there is no key" in capsys.readouterr().err


def test_a_found_config_may_not_say_who_is_served_or_who_reads_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for table in ('[serve]\nhost = "0.0.0.0"\n', '[generate]\nserver = "http://example.org"\n'):
        (tmp_path / "codecria.toml").write_text(table)
        monkeypatch.setattr(sys, "argv", ["codecria", "generate", "-m", "x", "y"])
        assert cli.run() == 2
        assert "may not set" in capsys.readouterr().err
