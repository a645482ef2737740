"""Requests as editors' extensions send them, and what they read of the answers.

The shapes are those of llama.vscode (src/llama-server.ts), Continue (core/llm/llms) and Zed
(crates/edit_prediction, crates/ollama), read in their sources on 2026-11-26. llama.vim's are in
test_protocols.py.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.core.serving.conftest import Served

PREFIX, SUFFIX = "import os\n\n\ndef add(a, b):\n    return", "\n\n\nprint(add(1, 2))\n"
TEMPLATED = f"<PRE> {PREFIX} <SUF>{SUFFIX} <MID>"
CHUNK = {"text": "def old(a):\n    return a\n", "time": 1764190000000, "filename": "src/old.ts"}


def filled(served: Served, max_tokens: int = 12) -> str:
    """The greedy middle between the two texts."""
    body = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": max_tokens}
    return served.post("/infill", body)["content"]


def test_llama_vscode_warms_fills_and_edits(served: Served) -> None:
    warm = {
        "input_prefix": "",
        "input_suffix": "",
        "input_extra": [CHUNK],
        "prompt": "",
        "n_predict": 0,
        "samplers": [],
        "cache_prompt": True,
        "t_max_prompt_ms": 10_000,
        "t_max_predict_ms": 1,
    }
    assert served.post("/infill", warm)["content"] == ""
    found = served.post(
        "/infill",
        {
            "input_prefix": PREFIX.removesuffix("    return"),
            "input_suffix": SUFFIX,
            "input_extra": [CHUNK],
            "prompt": "    return",
            "n_predict": 12,
            "top_k": 40,
            "top_p": 0.99,
            "stream": False,
            "samplers": ["top_k", "top_p", "infill"],
            "cache_prompt": True,
            "n_indent": 4,
            "t_max_prompt_ms": 10_000,
            "t_max_predict_ms": 10_000,
            "lora": [{"id": 0, "scale": 0.5}],
        },
    )
    assert isinstance(found["content"], str)
    assert found["generation_settings"]
    assert found["truncated"] is False
    assert {"prompt_n", "prompt_ms", "predicted_n", "predicted_ms"} <= set(found["timings"])
    edit = {
        "messages": [
            {"role": "system", "content": "You are an expert coder."},
            {"role": "user", "content": "Rename add."},
        ],
        "stream": False,
        "cache_prompt": True,
        "samplers": "edkypmxt",
        "temperature": 0.8,
        "dynatemp_range": 0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1,
        "repeat_last_n": 64,
        "repeat_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "dry_multiplier": 0,
        "dry_penalty_last_n": -1,
        "max_tokens": -1,
        "timings_per_token": False,
        "stop": ["\n"],
    }
    [choice] = served.post("/v1/chat/completions", edit)["choices"]
    assert isinstance(choice["message"]["content"], str)
    before = served.metric("generated_tokens_total")
    warmed = {"messages": edit["messages"], "n_predict": 0, "samplers": [], "t_max_predict_ms": 1}
    assert served.post("/v1/chat/completions", warmed)["choices"]
    assert served.metric("generated_tokens_total") == before


def test_continue_fills_gaps_by_mistrals_protocol(served: Served) -> None:
    body = {
        "model": "codecria",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "max_tokens": 12,
        "temperature": 0,
        "stop": ["[PREFIX]", "[SUFFIX]", "/src/", "```"],
        "stream": True,
    }
    chunks = served.events("/v1/fim/completions", body)
    assert chunks.pop() == "[DONE]"
    # It adds up what it finds here, of every chunk.
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == filled(served)


def test_continue_asks_as_it_asks_llama_cpp_and_ollama(served: Served) -> None:
    body = {
        "prompt": TEMPLATED,
        "stream": True,
        "n_predict": 12,
        "temperature": 0,
        "stop": ["<PRE>", "<SUF>", "<MID>", "<EOT>"],
    }
    chunks = served.events("/completion", body)
    assert "".join(chunk["content"] for chunk in chunks) == filled(served)
    shown = served.post("/api/show", {"name": "codellama-7b"})
    assert ".Suffix" in shown["template"]  # how it learns that the model fills gaps
    for line in shown["parameters"].split("\n"):
        assert re.match(r'^(\S+)\s+((?:".*")|\S+)$', line)  # it gives up at any other line
    options = {"temperature": 0, "num_predict": 12, "num_ctx": 8096, "min_p": None, "stop": None}
    body = {
        "model": "codecria",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "options": options,
        "keep_alive": 1800,
        "stream": True,
    }
    lines = served.events("/api/generate", body)
    assert "".join(line["response"] for line in lines) == filled(served)


def test_zed_predicts_edits_by_either_provider(served: Served) -> None:
    body: dict[str, Any] = {
        "model": "codellama",
        "prompt": TEMPLATED,
        "max_tokens": 12,
        "stop": ["<PRE>", "<SUF>", "<MID>"],
    }
    found = served.post("/v1/completions", body)
    assert found["id"]
    assert found["choices"][0]["text"] == filled(served)
    body = {
        "model": "codellama",
        "prompt": TEMPLATED,
        "raw": True,
        "stream": False,
        "options": {"num_predict": 12, "temperature": 0, "stop": ["<PRE>", "[SUFFIX]"]},
    }
    found = served.post("/api/generate", body)
    assert found["response"] == filled(served)
    assert found["created_at"]
    [model] = json.loads(served.send("GET", "/api/tags")[1])["models"]
    # Zed reads a listing only if all of these are there, and of these types.
    assert {type(model[name]) for name in ("name", "modified_at", "digest")} == {str}
    assert isinstance(model["size"], int)
    names = ("format", "family", "parameter_size", "quantization_level")
    assert {type(model["details"][name]) for name in names} == {str}


def test_only_a_whole_template_is_one(served: Served) -> None:
    def ids(prompt: str, **fields: Any) -> int:
        body = {"prompt": prompt, "max_tokens": 1, **fields}
        return served.post("/v1/completions", body)["usage"]["prompt_tokens"]

    def as_text(prompt: str) -> int:
        body = {"content": prompt, "add_special": True}
        return len(served.post("/tokenize", body)["tokens"])

    assert ids(TEMPLATED) < as_text(TEMPLATED)
    for text in (
        TEMPLATED + "\n",
        " " + TEMPLATED,
        TEMPLATED.replace(" <SUF>", " <SUF> <SUF>"),
        TEMPLATED.replace(" <SUF>", ""),
    ):
        assert ids(text) == as_text(text)
    # As `generate --server` asks: `generate` reads it as text, too.
    assert ids(TEMPLATED, parse_specials=False) == as_text(TEMPLATED)
    inner = TEMPLATED.replace("import os", "x = '<MID>' '<EOT>'")
    gap = {"input_prefix": PREFIX.replace("import os", "x = '<MID>' '<EOT>'")}
    found = served.post("/infill", gap | {"input_suffix": SUFFIX, "n_predict": 1})
    assert ids(inner) == found["tokens_evaluated"]  # what it holds stays text
