"""Dialogs from files in the customary formats, each record checked, with file and line.

    messages       {"messages": [{"role": "system" | "user" | "assistant", "content": TEXT}]}
    conversations  {"conversations": [{"from": "system" | "human" | "gpt", "value": TEXT}]}
    instruction    {"instruction": TEXT, "input": TEXT, "output": TEXT}             Alpaca
                   {"instruction": TEXT, "context": TEXT, "response": TEXT}         Dolly
                   {"system_prompt": TEXT, "question": TEXT, "response": TEXT}      OpenOrca

The format is found record by record. The names of the fields mix freely; see `TURNS`, `QUESTIONS`,
`ANSWERS`, `MATERIAL` and `SYSTEMS`. Nothing that an answer depends on is dropped in silence: a
record with tool calls, images, or text in a field that looks like context and is not used
(`CONTEXT_WORDS`) is refused by name. Fields that are neither used nor refused are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from .chat import ROLES, Dialog, Message, Role, problem_of, tags_in
from .records import Broken, records

TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue")
QUESTIONS = ("instruction", "prompt", "query", "question", "problem")
ANSWERS = ("output", "response", "completion", "answer", "solution")
MATERIAL = ("context", "input")  # text that a question is about, put after it in this order
SYSTEMS = ("system", "system_prompt", "system_message")
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "developer": "system",
}
EMPTY_JSON = ("[]", "{}", "null", "None")  # how an empty list is written in a column of text
TEXT_PARTS = ("text", "input_text", "output_text")

# Words in the names of fields that hold what an answer depends on.
CONTEXT_WORDS = frozenset(
    [
        *("article", "attachment", "audio", "background", "choice", "code", "context"),
        *("conversation", "constraint", "demonstration", "dialog", "dialogue", "doc", "document"),
        *("evidence", "example", "excerpt", "fact", "function", "hint", "history"),
        *("image", "input", "instruction", "knowledge", "material", "message", "option"),
        *("paragraph", "passage", "persona", "personality", "premise", "problem", "profile"),
        *("prompt", "query", "question", "reference", "scenario", "schema", "shot"),
        *("situation", "snippet", "source", "story", "system", "table", "tool"),
        *("video"),
    ]
)
# Endings of the names of fields that say something about the record itself.
ABOUT = frozenset(
    [
        *("category", "count", "dataset", "date", "difficulty", "domain", "hash"),
        *("id", "ids", "idx", "index", "lang", "language", "length"),
        *("level", "license", "model", "name", "path", "score", "source"),
        *("tokens", "type", "uri", "url"),
    ]
)
# Fields of a turn that an answer depends on, or that ask for another loss: neither is supported.
TURN_REFUSED = (
    *("tool_calls", "function_call", "tool_call_id", "audio", "image", "images", "refusal"),
    *("reasoning_content", "reasoning", "thinking", "train", "training", "loss", "mask"),
)


TURN_FIELDS = ("role", "from", "content", "value", "weight", *TURN_REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A record that is no dialog to train on: where it is, and why."""

    where: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A dialog and where it stood.

    Attributes:
        unused: fields of the record that are neither used nor context.
    """

    where: str
    dialog: Dialog
    unused: tuple[str, ...] = ()


class _Refusal(Exception):
    """What is wrong with a record."""


def read(path: Path, *, allow_tags: bool = False) -> Iterator[Found | Refused]:
    """The records of a file in order.

    Args:
        path: .jsonl, .ndjson or .json, or one of these compressed; or .parquet.
        allow_tags: keep dialogs whose text holds the tags of a chat form.

    Raises:
        UserError: the file cannot be read, or is no JSON at all.
    """
    for place, record in records(path, single=(*TURNS, *QUESTIONS)):
        where = path.name + place
        if isinstance(record, Broken):
            yield Refused(where=where, problem=record.problem)
            continue
        dialog = parse(record)
        if isinstance(dialog, str):
            yield Refused(where=where, problem=dialog)
        elif not allow_tags and (tags := tags_in(dialog)):
            yield Refused(where=where, problem=f"a message holds {tags[0]}")
        else:
            yield Found(where=where, dialog=dialog, unused=unused_fields(record))


def parse(record: Any) -> Dialog | str:
    """A record as a dialog that ends with an answer, or what is wrong with it.

    >>> [message.content for message in parse({"instruction": "Add.", "output": "a + b"})]
    ['Add.', 'a + b']
    """
    try:
        return _dialog(record)
    except _Refusal as refusal:
        return str(refusal)


def unused_fields(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a record that `parse` takes that leave no trace in its dialog."""
    used = {*TURNS, *QUESTIONS, *ANSWERS, *MATERIAL, *SYSTEMS, "history"}
    names = {str(name) for name in record if name not in used}
    for field in TURNS:
        for turn in record.get(field) or ():
            names |= {f"{field}[].{name}" for name in turn if name not in TURN_FIELDS}
    return tuple(sorted(names))


def _dialog(record: Any) -> Dialog:
    if not isinstance(record, Mapping):
        raise _Refusal(f"a JSON {type(record).__name__}, not an object")
    turns = [name for name in TURNS if record.get(name) is not None]
    if len(turns) > 1:
        raise _Refusal(f"it has both {turns[0]} and {turns[1]}")
    if turns:
        dialog = _turns(record[turns[0]], turns[0])
        used = {turns[0]}
    elif isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        asked = _turns(record["prompt"], "prompt")
        before = (replace(turn, learned=turn.role != "assistant") for turn in asked)
        dialog = (*before, *_turns(record["completion"], "completion"))
        used = {"prompt", "completion"}
    else:
        dialog, used = _pair(record)
    dialog = _with_system(record, _merged_system(dialog))
    _check_nothing_is_lost(record, dialog, used | set(SYSTEMS))
    if problem := problem_of(dialog, answered=True):
        raise _Refusal(problem)
    if not any(turn.learned for turn in dialog if turn.role == "assistant"):
        raise _Refusal("no answer has a weight other than 0")
    return dialog


# --------------------------------------------------------------------------------- lists of turns


def _turns(value: Any, name: str) -> Dialog:
    if not isinstance(value, list):
        raise _Refusal(f"{name} is {type(value).__name__}, not a list")
    return tuple(_turn(turn, f"{name}[{i}]") for i, turn in enumerate(value))


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise _Refusal(f"{place} is {type(turn).__name__}, not an object")
    speaker = "from" if "from" in turn and "role" not in turn else "role"
    text = "value" if "value" in turn and "content" not in turn else "content"
    said = turn.get(speaker)
    role = said.lower() if isinstance(said, str) else ""
    role = SPEAKERS.get(role, role)
    if role not in ROLES:
        shown = f"{said!r}, which is not supported" if said else "missing"
        raise _Refusal(f"{place}.{speaker} is {shown}: roles are {', '.join(ROLES)}")
    for field in TURN_REFUSED:
        if turn.get(field) not in (None, [], {}, ""):
            raise _Refusal(f"{place} has {field}, which is not supported")
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        raise _Refusal(f"{place}.weight is {weight!r}, not 0 or 1")
    return Message(
        role=cast(Role, role),
        content=_content(turn.get(text), f"{place}.{text}"),
        learned=role != "assistant" or weight is None or bool(weight),
    )


def _content(value: Any, place: str) -> str:
    """A message's text; of content in parts, its texts, a line break between them."""
    if isinstance(value, list):
        return "\n".join(_part(part, f"{place}[{i}]") for i, part in enumerate(value))
    return _text(value, place)


def _part(part: Any, place: str) -> str:
    if not isinstance(part, Mapping):
        return _text(part, place)
    kind = part.get("type", "text")
    if kind not in TEXT_PARTS:
        raise _Refusal(f"{place} is {kind!r}: only parts of text are supported")
    return _text(part.get("text"), f"{place}.text")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _Refusal(f"{place} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refusal(f"{place} holds half a surrogate pair") from error
    return value


def _merged_system(dialog: Dialog) -> Dialog:
    """With the system's and the developer's messages at the front as one."""
    count = 0
    while count < len(dialog) and dialog[count].role == "system":
        count += 1
    if count < 2:
        return dialog
    content = "\n\n".join(message.content for message in dialog[:count])
    return (Message(role="system", content=content), *dialog[count:])


def _with_system(record: Mapping[str, Any], dialog: Dialog) -> Dialog:
    """With the system prompt of a field of its own."""
    prompts: dict[str, str] = {}
    for name in SYSTEMS:
        if record.get(name) is not None and (text := _text(record[name], name)).strip():
            prompts.setdefault(text.strip(), text)
    inner = dialog[0].content if dialog and dialog[0].role == "system" else None
    if inner is not None and prompts:
        prompts.setdefault(inner.strip(), inner)
    if len(prompts) > 1:
        raise _Refusal("it has two system prompts")
    if not prompts or inner is not None:
        return dialog
    return (Message(role="system", content=next(iter(prompts.values()))), *dialog)


# ------------------------------------------------------------------------------ question, answer


def _pair(record: Mapping[str, Any]) -> tuple[Dialog, set[str]]:
    """A question with its material, its answer and what was said before; the fields these took."""
    question = next((name for name in QUESTIONS if _filled(record.get(name))), None)
    answers = [name for name in ANSWERS if isinstance(record.get(name), str)]
    answer = next((name for name in answers if _filled(record[name])), next(iter(answers), None))
    material = [name for name in MATERIAL if _filled(record.get(name))]
    if question is None and "input" in material:
        question, material = "input", [name for name in material if name != "input"]
    if question is None or answer is None:
        wanted = "a question" if question is None else "an answer"
        raise _Refusal(f"it has no messages, no conversations, and no text for {wanted}")
    asked = "\n\n".join(_text(record[name], name) for name in (question, *material))
    dialog = (
        *_history(record.get("history")),
        Message(role="user", content=asked),
        Message(role="assistant", content=_text(record[answer], answer)),
    )
    for name in ANSWERS:
        other = record.get(name)
        if name != answer and _filled(other) and str(other).strip() != dialog[-1].content.strip():
            raise _Refusal(f"it has two answers, {answer} and {name}")
    return dialog, {question, answer, *material, "history", *ANSWERS}


def _history(value: Any) -> Dialog:
    """Turns before the question: pairs of question and answer, or messages."""
    if not value:
        return ()
    if not isinstance(value, list):
        raise _Refusal(f"history is {type(value).__name__}, not a list")
    if all(isinstance(turn, Mapping) for turn in value):
        return _turns(value, "history")
    messages: list[Message] = []
    for i, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _Refusal(f"history[{i}] is no pair of question and answer")
        messages.append(Message(role="user", content=_text(pair[0], f"history[{i}][0]")))
        messages.append(Message(role="assistant", content=_text(pair[1], f"history[{i}][1]")))
    return tuple(messages)


# ------------------------------------------------------------------------------ nothing is lost


def _check_nothing_is_lost(record: Mapping[str, Any], dialog: Dialog, used: set[str]) -> None:
    """Refuse a record with context that is no part of its dialog."""
    said = "\n".join(message.content for message in dialog)
    for name, value in record.items():
        if name in used or not _is_context(str(name)) or not _filled(value):
            continue
        if isinstance(value, bool | int | float) or value in EMPTY_JSON:
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and text.strip() in said for text in texts):
            raise _Refusal(f"{name} is not used: put it into the question, or remove the field")


def _is_context(name: str) -> bool:
    """Whether a field's name says that an answer may depend on it.

    >>> [_is_context(name) for name in ("chatHistory", "documents", "document_id", "category")]
    [True, True, False, False]
    """
    words = [word.lower() for word in re.findall(r"[A-Za-z][a-z]*|[A-Z]+", name)]
    if not words or words[-1] in ABOUT:
        return False
    return any(word in CONTEXT_WORDS or word.removesuffix("s") in CONTEXT_WORDS for word in words)


def _filled(value: Any) -> bool:
    """Whether a field holds anything: not null, no white space alone, no empty list."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})
