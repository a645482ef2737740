"""Dialogs from files in the customary formats, each record checked, with file and line.

    messages       {"messages": [{"role": "system" | "user" | "assistant", "content": TEXT}]}
    conversations  {"conversations": [{"from": "system" | "human" | "gpt", "value": TEXT}]}
    instruction    {"instruction": TEXT, "input": TEXT, "output": TEXT}       Alpaca
                   {"instruction": TEXT, "response": TEXT}                    and under other names

JSON lines, plain or compressed, or one JSON array. The format is told record by record, in this
order; "system" beside the turns is a system message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from codecria.data.errors import UserError

from .chat import ROLES, Dialog, Message, Role, problem_of, tags_in

QUESTIONS = ("instruction", "prompt", "query", "question", "problem")
ANSWERS = ("output", "response", "completion", "answer", "solution")
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A record that is no dialog to train on: where it is, and why."""

    where: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A dialog and where it stood."""

    where: str
    dialog: Dialog


def read(path: Path, *, allow_tags: bool = False) -> Iterator[Found | Refused]:
    """The records of a file in order.

    Args:
        path: .jsonl, .ndjson or .json, or one of these compressed.
        allow_tags: keep dialogs whose text holds the tags of a chat form.

    Raises:
        UserError: the file cannot be read, or is no JSON at all.
    """
    for where, record in records(path):
        if isinstance(record, str):
            yield Refused(where=where, problem=record)
            continue
        dialog = parse(record)
        if isinstance(dialog, str):
            yield Refused(where=where, problem=dialog)
        elif not allow_tags and (tags := tags_in(dialog)):
            yield Refused(where=where, problem=f"a message holds {tags[0]}")
        else:
            yield Found(where=where, dialog=dialog)


def parse(record: Any) -> Dialog | str:
    """A record as a dialog that ends with an answer, or what is wrong with it.

    >>> [message.content for message in parse({"instruction": "Add.", "output": "a + b"})]
    ['Add.', 'a + b']
    """
    if not isinstance(record, Mapping):
        return f"a JSON {type(record).__name__}, not an object"
    if "messages" in record:
        dialog = _turns(record["messages"], "messages", "role", "content")
    elif "conversations" in record:
        dialog = _turns(record["conversations"], "conversations", "from", "value")
    else:
        dialog = _pair(record)
    if isinstance(dialog, str):
        return dialog
    system = record.get("system")
    if isinstance(system, str) and system.strip() and dialog and dialog[0].role != "system":
        dialog = (Message(role="system", content=system), *dialog)
    return problem_of(dialog, answered=True) or dialog


def _turns(value: Any, name: str, speaker: str, text: str) -> Dialog | str:
    if not isinstance(value, list):
        return f"{name} is {type(value).__name__}, not a list"
    messages = []
    for i, turn in enumerate(value):
        if not isinstance(turn, Mapping):
            return f"{name}[{i}] is {type(turn).__name__}, not an object"
        role, content = turn.get(speaker), turn.get(text)
        role = SPEAKERS.get(role, role) if isinstance(role, str) else ""
        if role not in ROLES:
            return f"{name}[{i}].{speaker} is none of {', '.join(ROLES)}"
        if not isinstance(content, str):
            return f"{name}[{i}].{text} is {type(content).__name__}, not text"
        if not _is_text(content):
            return f"{name}[{i}].{text} holds half a surrogate pair"
        messages.append(Message(role=cast(Role, role), content=content))
    return tuple(messages)


def _pair(record: Mapping[str, Any]) -> Dialog | str:
    question, answer = (
        next((name for name in names if isinstance(record.get(name), str)), None)
        for names in (QUESTIONS, ANSWERS)
    )
    if question is None or answer is None:
        wanted = "a question" if question is None else "an answer"
        return f"it has no messages, no conversations, and no text for {wanted}"
    asked, given = record[question], record[answer]
    more = record.get("input")
    if isinstance(more, str) and more.strip():
        asked = f"{asked}\n\n{more}"
    if not (_is_text(asked) and _is_text(given)):
        return "its text holds half a surrogate pair"
    return Message(role="user", content=asked), Message(role="assistant", content=given)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file of JSON lines, or of one JSON array, holds, compressed or not.

    Yields:
        (file and place, record), or (file and place, what is wrong with the line) as a plain text.

    Raises:
        UserError: the file cannot be read, or is no JSON array where its name says so.
    """
    name = path.name
    codec = COMPRESSED.get(path.suffix.lower())
    stem = Path(path.stem) if codec else path
    try:
        with path.open("rb") as raw:
            stream = pa.CompressedInputStream(raw, codec) if codec else raw
            if stem.suffix.lower() == ".json":
                yield from _array(name, stream.read())
                return
            for number, line in enumerate(_lines(stream), 1):
                if line.strip():
                    yield f"{name}:{number}", _line(line)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}",
            hint="records come as JSON lines, plain or compressed (.gz, .zst, .bz2, .lz4)",
        ) from error


def _lines(stream: Any) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(1 << 20):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _line(line: bytes) -> Any:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return "a JSON str, not an object" if isinstance(record, str) else record


def _array(name: str, data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from error
    if not isinstance(records, list):
        raise UserError(f"{name} is not a JSON array")
    for number, record in enumerate(records, 1):
        shown = "a JSON str, not an object" if isinstance(record, str) else record
        yield f"{name}[{number}]", shown
