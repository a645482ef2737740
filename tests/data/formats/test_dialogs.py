"""The customary dialog formats, and records that are none."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from pathlib import Path
from typing import Any

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
    "oss-instruct": ({"problem": "Add.", "solution": "a + b", "lang": "python"}, PAIR),
}


@pytest.mark.parametrize("name", RECORDS)
def test_each_format_gives_its_turns(name: str) -> None:
    record, expected = RECORDS[name]
    found = dialogs.parse(record)
    assert not isinstance(found, str)
    assert [(message.role, message.content) for message in found] == expected


BROKEN: list[tuple[Any, str]] = [
    ("{broken", "not JSON"),
    ([1], "a JSON list"),
    ("text", "a JSON str"),
    ({"messages": "x"}, "messages is str"),
    ({"messages": ["x"]}, r"messages\[0\] is str"),
    ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role is none of"),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is NoneType"),
    ({"messages": [{"role": "user", "content": "x"}]}, "ends without an answer"),
    ({"messages": []}, "no turns"),
    ({"conversations": [{"from": "gpt", "value": "x"}]}, "turn 1 is of assistant"),
    ({"instruction": "x"}, "no text for an answer"),
    ({"output": "x"}, "no text for a question"),
    ({"instruction": "x", "output": " "}, "turn 2 is empty"),
    ({"instruction": "x", "output": "\ud800"}, "surrogate"),
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
    ("name", "content"), [("x.jsonl.gz", b"not gzip"), ("x.json", b"{"), ("x.json", b"{}")]
)
def test_a_file_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        list(dialogs.read(tmp_path / name))
    with pytest.raises(UserError, match="cannot read"):
        list(dialogs.read(tmp_path / "missing.jsonl"))
