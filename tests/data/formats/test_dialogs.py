"""The customary dialog formats, and records that are none."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codecria.data.errors import UserError
from codecria.data.formats import dialogs
from codecria.data.formats.dialogs import Found, Refused

PAIR = [("user", "Add."), ("assistant", "a + b")]
RECORDS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "Add."},
                {"role": "assistant", "content": "a + b"},
            ]
        },
        [("system", "S"), *PAIR],
    ),
    "conversations": (
        {
            "id": 7,
            "system": "S",
            "conversations": [
                {"from": "human", "value": "Add."},
                {"from": "gpt", "value": "a + b"},
            ],
        },
        [("system", "S"), *PAIR],
    ),
    "alpaca": ({"instruction": "Add.", "input": "", "output": "a + b"}, PAIR),
    "alpaca with input": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        [("user", "Add.\n\n1 2"), ("assistant", "3")],
    ),
    "response": ({"instruction": "Add.", "response": "a + b"}, PAIR),
    "completion": ({"prompt": "Add.", "completion": "a + b"}, PAIR),
    "dolly": (
        {
            "instruction": "Who wrote it?",
            "context": "The book is by Ada.",
            "response": "Ada.",
            "category": "closed_qa",
        },
        [("user", "Who wrote it?\n\nThe book is by Ada."), ("assistant", "Ada.")],
    ),
    "orca": (
        {"id": "niv.1", "system_prompt": "S", "question": "Add.", "response": "a + b"},
        [("system", "S"), *PAIR],
    ),
    "orca without a prompt": (
        {"id": "1", "system_prompt": "", "question": "Add.", "response": "a + b"},
        PAIR,
    ),
    "alpaca with history": (
        {
            "instruction": "Add.",
            "input": "",
            "output": "a + b",
            "history": [["Hello?", "Hello."], ["Again?", "Again."]],
            "system": "S",
        },
        [
            ("system", "S"),
            ("user", "Hello?"),
            ("assistant", "Hello."),
            ("user", "Again?"),
            ("assistant", "Again."),
            *PAIR,
        ],
    ),
    "history as messages": (
        {
            "prompt": "Add.",
            "response": "a + b",
            "history": [
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "Hello."},
            ],
        },
        [("user", "Hello?"), ("assistant", "Hello."), *PAIR],
    ),
    "an empty answer beside the answer": (
        {"prompt": "Add.", "output": "", "response": "a + b"},
        PAIR,
    ),
    "input as the question": ({"input": "Add.", "output": "a + b"}, PAIR),
    "conversations with roles": (
        {
            "conversations": [
                {"role": "User", "content": "Add."},
                {"role": "assistant", "content": "a + b"},
            ]
        },
        PAIR,
    ),
    "messages with speakers": (
        {"messages": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "a + b"}]},
        PAIR,
    ),
    "parts": (
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "S"}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Add"},
                        {"type": "input_text", "text": "x"},
                    ],
                },
                {"role": "assistant", "content": ["a + b"]},
            ]
        },
        [("system", "S"), ("user", "Add\nx"), ("assistant", "a + b")],
    ),
    "system and developer": (
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "developer", "content": "D"},
                {"role": "user", "content": "Add."},
                {"role": "assistant", "content": "a + b"},
            ]
        },
        [("system", "S\n\nD"), *PAIR],
    ),
    "prompt and completion in messages": (
        {
            "prompt": [{"role": "user", "content": "Add."}],
            "completion": [{"role": "assistant", "content": "a + b"}],
        },
        PAIR,
    ),
    "the prompt once more, and empty fields": (
        {
            "prompt": "Add.",
            "prompt_id": "9f",
            "messages": [
                {"role": "user", "content": "Add.", "tool_calls": None},
                {"role": "assistant", "content": "a + b", "weight": 1, "function_call": {}},
            ],
            "conversations": None,
            "tools": "[]",
            "history": [],
            "context": " ",
            "document_id": 5,
        },
        PAIR,
    ),
    "oss-instruct": ({"problem": "Add.", "solution": "a + b", "lang": "python"}, PAIR),
}


@pytest.mark.parametrize("name", RECORDS)
def test_each_format_gives_its_turns(name: str) -> None:
    record, expected = RECORDS[name]
    found = dialogs.parse(record)
    assert not isinstance(found, str)
    assert [(message.role, message.content) for message in found] == expected


def messages(answer: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    """A record of messages with fields added to its answer and beside the messages."""
    last = {"role": "assistant", "content": "a + b", **(answer or {})}
    return {"messages": [{"role": "user", "content": "Add."}, last], **beside}


BROKEN: list[tuple[Any, str]] = [
    ("{broken", "not JSON"),
    ([1], "a JSON list"),
    ("text", "a JSON str"),
    ({"messages": "x"}, "messages is str"),
    ({"messages": ["x"]}, r"messages\[0\] is str"),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        r"messages\[0\].role is 'tool', which is not supported",
    ),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is NoneType"),
    ({"messages": [{"role": "user", "content": "x"}]}, "ends without an answer"),
    ({"messages": []}, "no turns"),
    ({"conversations": [{"from": "gpt", "value": "x"}]}, "turn 1 is of assistant"),
    ({"instruction": "x"}, "no text for an answer"),
    ({"output": "x"}, "no text for a question"),
    ({"instruction": "x", "output": " "}, "turn 2 is empty"),
    ({"instruction": "x", "output": "\ud800"}, "surrogate"),
    ({"instruction": "x", "context": ["a"], "output": "y"}, "context is list, not text"),
    ({"instruction": "x", "input": 5, "output": "y"}, "input is int, not text"),
    ({"instruction": "x", "knowledge": "a fact", "output": "y"}, "knowledge is not used"),
    ({"question": "x", "document": "a text", "answer": "y"}, "document is not used"),
    ({"question": "x", "retrieved_passages": ["a"], "answer": "y"}, "retrieved_passages is not"),
    ({"question": "x", "chatHistory": "a: b", "answer": "y"}, "chatHistory is not used"),
    ({"question": "x", "images": [{"bytes": None}], "answer": "y"}, "images is not used"),
    ({"question": "x", "instruction": "z", "answer": "y"}, "question is not used"),
    ({"question": "x", "answer": "y", "output": "z"}, "two answers, output and answer"),
    ({"question": "x", "history": "a", "answer": "y"}, "history is str, not a list"),
    ({"question": "x", "history": [["a"]], "answer": "y"}, r"history\[0\] is no pair"),
    ({"system": "a", "system_prompt": "b", "question": "x", "answer": "y"}, "two system prompts"),
    ({"system": {"a": 1}, "question": "x", "answer": "y"}, "system is dict, not text"),
    ({"messages": [{"role": "user", "content": "x"}], "conversations": [1]}, "has both messages"),
    (messages(tools=[{"type": "function"}]), "tools is not used"),
    (messages(context="something else"), "context is not used"),
    (messages(history=[["a", "b"]]), "history is not used"),
    (messages({"tool_calls": [{"id": "1"}]}), r"messages\[1\] has tool_calls"),
    (messages({"reasoning_content": "hm"}), r"messages\[1\] has reasoning_content"),
    (messages({"train": False}), r"messages\[1\] has train, which is not supported"),
    (messages({"weight": 0.5}), r"messages\[1\].weight is 0.5, not 0 or 1"),
    (messages({"weight": 0}), "no answer has a weight other than 0"),
    (messages({"content": [{"type": "image_url", "image_url": {}}]}), "is 'image_url': only"),
    (messages({"content": [{"type": "text"}]}), r"messages\[1\].content\[0\].text is NoneType"),
    (messages({"role": "function"}), "role is 'function', which is not supported"),
    ({"instruction": "say [INST]", "output": "x"}, r"holds \[INST\]"),
]


def test_what_is_no_dialog_is_named_with_its_line(tmp_path: Path) -> None:
    lines = [
        text if isinstance(text, str) and text[0] == "{" else json.dumps(text) for text, _ in BROKEN
    ]
    good = json.dumps(RECORDS["alpaca"][0])
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([good, *lines, "", good]) + "\n")
    found = list(dialogs.read(path))
    assert [type(one) for one in found] == [Found, *[Refused] * len(BROKEN), Found]
    assert found[-1].where == f"d.jsonl:{len(BROKEN) + 3}"
    for i, (_, problem) in enumerate(BROKEN):
        one = found[i + 1]
        assert isinstance(one, Refused)
        assert one.where == f"d.jsonl:{i + 2}"
        assert re.search(problem, one.problem), one.problem
    assert isinstance(list(dialogs.read(path, allow_tags=True))[len(BROKEN)], Found)


def test_weights_of_zero_keep_an_answer_as_context() -> None:
    turns = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hm.", "weight": 0},
        {"role": "user", "content": "Again?"},
        {"role": "assistant", "content": "Hello.", "weight": 1},
    ]
    found = dialogs.parse({"messages": turns})
    assert not isinstance(found, str)
    assert [message.learned for message in found] == [True, False, True, True]
    asked = dialogs.parse({"prompt": turns[:3], "completion": turns[3:]})
    assert asked == found, "what is in the prompt is not learned"


def test_fields_that_leave_no_trace_are_counted(tmp_path: Path) -> None:
    record = messages({"name": "bot"}, id=1, category="x", prompt="Add.")
    (tmp_path / "d.jsonl").write_text(json.dumps(record))
    [found] = dialogs.read(tmp_path / "d.jsonl")
    assert isinstance(found, Found)
    assert found.unused == ("category", "id", "messages[].name")


def test_every_kind_of_file_gives_the_same_dialogs(tmp_path: Path) -> None:
    lines = [messages(id=1), {"instruction": "x", "output": "y", "id": 2}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "lines.json").write_text(text)
    (tmp_path / "array.json").write_text(json.dumps(lines, indent=1))
    (tmp_path / "object.json").write_text(json.dumps({"version": 1, "data": lines}))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    for ending, codec in (("zst", "zstd"), ("lz4", "lz4")):
        with pa.CompressedOutputStream(str(tmp_path / f"c.jsonl.{ending}"), codec) as file:
            file.write(text.encode())
    pq.write_table(
        pa.Table.from_pylist([dict.fromkeys(lines[1]) | lines[0], lines[1]]), tmp_path / "d.parquet"
    )
    (tmp_path / "one.json").write_text(json.dumps(lines[0]))
    found = {path.name: list(dialogs.read(path)) for path in sorted(tmp_path.iterdir())}
    expected = [dialogs.parse(line) for line in lines]
    assert [one.dialog for one in found.pop("one.json") if isinstance(one, Found)] == expected[:1]
    for name, all_of_it in found.items():
        assert [one.dialog for one in all_of_it if isinstance(one, Found)] == expected, name


def test_arrays_and_compressed_files_are_read(tmp_path: Path) -> None:
    record = RECORDS["alpaca"][0]
    (tmp_path / "a.json").write_text(json.dumps([record, 3]))
    line = json.dumps(record).encode() + b"\n"
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line) + gzip.compress(line))
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(line))
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + line.rstrip())
    counts = {
        name: [type(one) for one in dialogs.read(tmp_path / name)]
        for name in ("a.json", "b.jsonl.gz", "c.jsonl.bz2", "d.jsonl")
    }
    assert counts == {
        "a.json": [Found, Refused],
        "b.jsonl.gz": [Found, Found],
        "c.jsonl.bz2": [Found],
        "d.jsonl": [Found],
    }
    assert next(iter(dialogs.read(tmp_path / "a.json"))).where == "a.json[1]"


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl.gz", b"not gzip"), ("x.json", b"{"), ("x.json", b"[")]
)
def test_a_file_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        list(dialogs.read(tmp_path / name))
    with pytest.raises(UserError, match="cannot read"):
        list(dialogs.read(tmp_path / "missing.jsonl"))
