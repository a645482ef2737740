"""What clients send and read: texts are `generate`'s, fields are those of each protocol."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from typing import Any

import pytest

from codecria.cli import app as cli
from codecria.core.serving.start import CHUNK
from tests.core.serving.conftest import Serve, Served

CODE = 'def add(a, b):\n    """The sum."""\n    return a + b\n\n\ndef sub(a, b):\n    '
AFTER = "\n\n\nprint(add(1, 2))\n"


def generated(
    model: Any, options: list[str], monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> str:
    """What `codecria generate` prints."""
    command = ["codecria", "generate", "-m", str(model), "--threads", "1", "--max-tokens", "20"]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    capfdbinary.readouterr()
    assert cli.run() == 0
    sys.stdout.flush()
    return capfdbinary.readouterr()[0].decode()


ENDINGS = ["\n", "\r\n"]


@pytest.mark.parametrize("ending", ENDINGS, ids=["lf", "crlf"])
@pytest.mark.parametrize("form", ["psm", "spm"])
def test_a_filled_gap_is_the_one_that_generate_fills(
    served: Served,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: Any,
    form: str,
    ending: str,
) -> None:
    before, after = (text.replace("\n", ending) for text in (CODE, AFTER))
    for name, text in (("before", before), ("after", after)):
        (tmp_path / name).write_bytes(text.encode())
    options = ["--prefix", str(tmp_path / "before"), "--suffix", str(tmp_path / "after")]
    expected = generated(served.model, [*options, "--form", form], monkeypatch, capfdbinary)
    body = {"input_prefix": before, "input_suffix": after, "n_predict": 20, "form": form}
    assert served.post("/infill", body)["content"] == expected
    body = {"prompt": before, "suffix": after, "max_tokens": 20, "form": form}
    assert served.post("/v1/completions", body)["choices"][0]["text"] == expected
    if form == "psm":
        body = {"prompt": before, "suffix": after, "options": {"num_predict": 20}}
        lines = served.events("/api/generate", body)
        assert "".join(line["response"] for line in lines) == expected
        body = {"prompt": before, "suffix": after, "max_tokens": 20}
        [choice] = served.post("/v1/fim/completions", body)["choices"]
        assert choice["message"]["content"] == expected


def test_a_completion_and_an_answer_are_those_of_generate(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    sampled = ["-t", "0.8", "--top-p", "0.9", "--top-k", "40", "--seed", "7"]
    for options, fields in (
        ([], {}),
        (sampled, {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 7}),
    ):
        expected = generated(served.model, [CODE, *options], monkeypatch, capfdbinary)
        body = {"prompt": CODE, "max_tokens": 20, **fields}
        assert served.post("/v1/completions", body)["choices"][0]["text"] == expected
        body = {"prompt": CODE, "n_predict": 20, **fields}
        assert served.post("/completion", body)["content"] == expected
    options = ["--chat", "What is 1+1?", "--system", "Be brief."]
    expected = generated(served.model, options, monkeypatch, capfdbinary)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is 1+1?"}]},
    ]
    body = {"messages": messages, "max_tokens": 20}
    [choice] = served.post("/v1/chat/completions", body)["choices"]
    assert choice["message"]["content"] == expected
    body = {"messages": messages, "stream": False, "options": {"num_predict": 20}}
    assert served.post("/api/chat", body)["message"]["content"] == expected


# llama.vim's request (autoload/llama.vim, FIM), field for field.
VIM = {
    "id_slot": 0,
    "input_prefix": "import os\n\n\ndef add(a, b):\n",
    "input_suffix": "\n\n\nprint(add(1, 2))\n",
    "input_extra": [{"text": "def old(a):\n    return a\n", "time": 1.5, "filename": "old.py"}],
    "prompt": "    return",
    "n_predict": 16,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 5000,
    "t_max_predict_ms": 10000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
}
# What it sends beforehand for its ring of chunks: to be read, not continued.
WARM = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": VIM["input_extra"],
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "samplers": [],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}


def test_the_vim_plugin_reads_flat_fields(served: Served) -> None:
    found = served.post("/infill", VIM)
    assert set(found) == set(VIM["response_fields"])
    assert found["truncated"] is False
    assert found["timings/prompt_n"] > 0
    assert found["timings/predicted_n"] <= 16
    assert found["tokens_cached"] >= found["timings/predicted_n"]
    again = served.post("/infill", VIM | {"prompt": "    return a"})
    assert again["timings/prompt_n"] < found["timings/prompt_n"] / 2  # only what changed


def test_warming_generates_nothing_and_helps_the_next_request(serve: Serve) -> None:
    with serve(context=4096) as served:
        # More than a pass reads, and its limit is 1 ms, as the plug-in sends it.
        chunk = {"text": "def old(a):\n    return a\n" * 40, "time": 1.5, "filename": "old.py"}
        assert served.post("/infill", WARM | {"input_extra": [chunk]}) == {}
        assert served.metric("generated_tokens_total") == 0
        found = served.post("/infill", VIM | {"input_extra": [chunk], "response_fields": []})
        assert found["timings"]["cache_n"] > found["tokens_evaluated"] / 2 > CHUNK / 2


def test_several_suggestions_are_a_list(served: Served) -> None:
    # llama.vscode's n_cmpl.
    found = served.post("/infill", VIM | {"n_cmpl": 3, "seed": 1})
    assert len(found) == 3
    assert len({each["content"] for each in found}) > 1


def test_a_time_limit_holds(serve: Serve) -> None:
    with serve(draft="off") as served:  # drafts could be done in time
        body = VIM | {"n_predict": 400, "t_max_predict_ms": 5, "n_indent": 0, "response_fields": []}
        began = time.perf_counter()
        found = served.post("/infill", body)
        assert time.perf_counter() - began < 5
        assert 0 < found["tokens_predicted"] < 400
        assert found["stop_type"] == "limit"


def test_what_was_read_until_the_time_for_the_prompt_was_over_is_kept(serve: Serve) -> None:
    with serve(context=4096) as served:
        body = VIM | {"input_prefix": "x = 1\n" * 600, "t_max_prompt_ms": 1, "response_fields": []}
        first = served.post("/infill", body)
        assert (first["content"], first["tokens_predicted"]) == ("", 0)
        for _ in range(40):
            found = served.post("/infill", body)
            if found["tokens_predicted"]:
                break
        assert found["tokens_predicted"] > 0
        assert found["timings"]["cache_n"] > found["tokens_evaluated"] / 2


def test_a_block_ends_where_its_indentation_does(served: Served) -> None:
    body = VIM | {"n_predict": 120, "n_indent": 4, "response_fields": []}
    lines = served.post("/infill", body)["content"].split("\n")
    assert all(line.startswith("    ") for line in lines[1:] if line.strip())


def test_streams_are_the_same_text_in_pieces(served: Served) -> None:
    whole = served.post("/infill", VIM | {"response_fields": []})
    chunks = served.events("/infill", VIM | {"stream": True, "response_fields": []})
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["tokens_predicted"] == whole["tokens_predicted"]


def test_the_openai_client_completes_and_chats(served: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("any").id == "small"
    options: dict[str, Any] = {"model": "small", "prompt": CODE, "max_tokens": 20}
    whole = client.completions.create(**options, suffix=AFTER, logprobs=2)
    choice = whole.choices[0]
    assert choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 20 == len(choice.logprobs.tokens)
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[0] == 0
    chunks = list(
        client.completions.create(
            **options, suffix=AFTER, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == choice.text
    assert chunks[-1].usage.completion_tokens == 20
    stop = choice.text[6:9]
    cut = client.completions.create(**options, suffix=AFTER, stop=[stop])
    assert cut.choices[0].text == choice.text[: choice.text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    several = client.completions.create(
        **(options | {"prompt": [CODE, "x = "]}), n=2, temperature=1.0, seed=5
    )
    assert [each.index for each in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text != several.choices[1].text
    again = client.completions.create(**options, n=2, temperature=1.0, seed=5)
    assert [c.text for c in again.choices] == [c.text for c in several.choices[:2]]
    echoed = client.completions.create(**options, echo=True)
    assert echoed.choices[0].text.startswith(CODE)

    messages = [{"role": "user", "content": "What is 1+1?"}]
    answer = client.chat.completions.create(
        model="small", messages=messages, max_completion_tokens=8, logprobs=True, top_logprobs=2
    )
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert message.content == message.content.strip()
    assert len(answer.choices[0].logprobs.content) == 8
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    pieces = client.chat.completions.create(
        model="small", messages=messages, max_tokens=8, stream=True
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in pieces]
    assert "".join(deltas) == message.content


def test_the_asynchronous_openai_client_streams_several_at_once(served: Served) -> None:
    openai = pytest.importorskip("openai")

    async def streamed(client: Any, number: int) -> tuple[str, int]:
        """(the text in pieces, number of its scored tokens)."""
        options = {"model": "small", "prompt": f"def f{number}(", "max_tokens": 8, "logprobs": 2}
        text, scored = "", 0
        async for chunk in await client.completions.create(**options, stream=True):
            [choice] = chunk.choices
            text += choice.text
            scored += len(choice.logprobs.tokens) if choice.logprobs else 0
        return text, scored

    async def run() -> list[tuple[str, int]]:
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(streamed(client, number) for number in range(4)))

    for number, (text, scored) in enumerate(asyncio.run(run())):
        body = {"prompt": f"def f{number}(", "max_tokens": 8}
        assert text == served.post("/v1/completions", body)["choices"][0]["text"]
        assert scored == 8


def test_a_prediction_saves_passes_and_is_accounted_for(served: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {
        "model": "small",
        "messages": [{"role": "user", "content": "Rewrite this."}],
        "max_tokens": 60,
    }
    plain = client.chat.completions.create(**options).choices[0].message.content
    found = client.chat.completions.create(
        **options, prediction={"type": "content", "content": plain}
    )
    assert found.choices[0].message.content == plain
    details = found.usage.completion_tokens_details
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens > 0


def test_errors_have_each_protocols_shape(served: Served) -> None:
    long = "x = 1\n" * 2000
    for path, body, read in (
        ("/infill", {"input_prefix": 5}, lambda e: e["error"]["message"]),
        ("/completion", {"prompt": long}, lambda e: e["error"]["message"]),
        ("/v1/completions", {"prompt": long}, lambda e: e["error"]["message"]),
        ("/v1/chat/completions", {"messages": []}, lambda e: e["error"]["message"]),
        ("/api/generate", {"prompt": long}, lambda e: e["error"]),
    ):
        status, error = served.refused(path, body)
        assert status == 400
        assert isinstance(read(error), str)
        assert read(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{}]),
        ("presence_penalty", 1.0),
        ("response_format", {"type": "json_object"}),
        ("n", 99),
        ("temperature", -1),
        ("logit_bias", {"5": 1}),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(
    served: Served, field: str, value: object
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, field: value}
    status, error = served.refused("/v1/chat/completions", body)
    assert status == 400
    assert field in error["error"]["message"]


def test_small_paths(served: Served) -> None:
    ids = served.post("/tokenize", {"content": "def f():\n    pass\n"})["tokens"]
    assert served.post("/detokenize", {"tokens": ids})["content"] == "def f():\n    pass\n"
    assert served.post("/completion", {"prompt": ids, "n_predict": 1})["tokens_evaluated"] > 0
    for path in ("/props", "/v1/models", "/api/tags", "/api/version", "/health"):
        status, content = served.send("GET", path)
        assert status == 200
        assert json.loads(content)
    assert served.post("/api/show", {"model": "x"})["capabilities"] == ["completion", "insert"]
    assert served.post("/api/generate", {"model": "x", "stream": False})["done_reason"] == "load"
    assert served.send("GET", "/v1/nothing")[0] == 404
    status, error = served.refused("/api/embed", {"model": "x"})
    assert status == 404
    assert "/api/embed" in error["error"]  # Ollama's clients expect a text there
    assert served.metric("requests_total") > 5
