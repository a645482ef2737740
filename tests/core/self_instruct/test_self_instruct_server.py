"""A real engine at the other end: llama.cpp's server, on a GGUF that `convert` made."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codecria.core.endpoint import Access
from codecria.core.self_instruct import pipeline, prompts
from codecria.core.self_instruct.endpoint import Endpoint
from codecria.core.self_instruct.prompts import Form
from codecria.core.self_instruct.request import Request
from codecria.core.self_instruct.settings import Settings

pytest.importorskip("llama_cpp.server.app", reason="pip install 'llama-cpp-python[server]'")
pytest.importorskip("gguf")


@contextlib.contextmanager
def served(model: Path, log: Path) -> Iterator[str]:
    """The address of a server with this model."""
    options = ["--host", "127.0.0.1", "--port", "0", "--n_ctx", "512", "--n_threads", "1"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", "--model", str(model), *options],
            stdout=out,
            stderr=out,
        )
        try:
            until = time.monotonic() + 120
            while not (found := re.search(r"running on (http://[\d.:]+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield f"{found[1]}/v1"
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.parametrize("form", ["chat", "few-shot"])
def test_llama_cpps_server_answers_every_request(
    tmp_path: Path, small_model: Path, form: Form
) -> None:
    from codecria.core.checkpoints.conversion.convert import convert
    from codecria.core.checkpoints.conversion.request import Layout
    from codecria.core.checkpoints.conversion.request import Request as Conversion

    gguf = tmp_path / "m.gguf"
    convert(Conversion(source=small_model, out=gguf, layout=Layout.GGUF))
    notes: list[str] = []
    tests = tmp_path / "tests.jsonl"
    record = {"question": "Add one to it.", "tests": ["assert f(1) == 2", "assert f(2) == 3"]}
    tests.write_text(json.dumps(record) + "\n")
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "solutions.txt").write_text("=== user\n{question}\n")
    with served(gguf, tmp_path / "log.txt") as url:
        model = Endpoint(Access(url=url, timeout_s=60), "m", form=form, note=notes.append)
        asked = Request(
            out=tmp_path / "o",
            settings=Settings(solutions=4, solutions_tokens=12, probe_tests=False),
            models={"solutions": model},
            prompts=prompts.load(folder),
            tests_file=tests,
        )
        report = pipeline.run(asked, note=notes.append, show=lambda _: None)
    assert notes == []
    assert report["funnel"]["solutions"] == 4
    cost = report["costs"]["models"]["solutions"]
    assert cost["replies"] == 4
    assert cost["tokens"] > 0  # by its own count: it tokenizes the text again
    assert cost["prompt_tokens"] > 0
    replies = (tmp_path / "o" / "replies" / "solutions.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in replies]
    assert len(set(texts)) > 1, "each sample has a seed of its own"
