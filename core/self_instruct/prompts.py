"""The prompts: their wording is ours, their parts and order the paper's (appendix G.1).

A prompt is a file of turns, which people may replace by their own:

    === user
    Write {number} tests for the question below, between [TESTS] and [/TESTS]. ...

    Question: {question}

Names in braces are filled in; everything else stands as it is. Two forms are spoken: "chat" is the
dialog as the model's own chat form has it; "few-shot" is the same as plain text for base models,
which the paper asks too, with the tags of the Llama 2 form written out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from codecria.data.errors import UserError
from codecria.data.files import atomic_write, digest_json
from codecria.data.formats.chat import Dialog, Message, Role, problem_of

Form = Literal["chat", "few-shot"]
FOLDER = Path(__file__).with_name("templates")
# What each prompt may be given, and what it must use.
NAMES: dict[str, tuple[str, ...]] = {
    "questions": ("number",),
    "questions-few-shot": ("number",),
    "tests": ("question", "number"),
    "solutions": ("question", "test"),
    "dialog": ("question", "test", "tests", "solution"),
}
NEEDED: dict[str, tuple[str, ...]] = {
    "tests": ("question",),
    "solutions": ("question",),
    "dialog": ("question", "solution"),
}
_TURN = re.compile(r"^=== (user|assistant|system)[ \t]*\n", re.MULTILINE)
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with names in braces.

    Attributes:
        name: in `NAMES`.
        turns: (role, text).
    """

    name: str
    turns: tuple[tuple[Role, str], ...]

    def fill(self, **values: object) -> Dialog:
        """The dialog with its names filled in, once: a value that holds braces stays as it is."""
        return tuple(
            Message(role=role, content=_NAME.sub(lambda m: _value(m, values), text))
            for role, text in self.turns
        )


def _value(found: re.Match[str], values: Mapping[str, object]) -> str:
    return str(values[found[1]]) if found[1] in values else found[0]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run by their names."""

    templates: Mapping[str, Template]

    def digest(self) -> str:
        """Of their text."""
        return digest_json({name: t.turns for name, t in self.templates.items()})

    def questions(self, number: int, form: Form) -> Dialog:
        """Asks for so many questions."""
        name = "questions" if form == "chat" else "questions-few-shot"
        return self.templates[name].fill(number=number)

    def tests(self, question: str, number: int) -> Dialog:
        """Asks for so many tests of a question."""
        return self.templates["tests"].fill(question=question, number=number)

    def solution(self, question: str, test: str) -> Dialog:
        """Asks for a program that answers a question and passes a test."""
        return self.templates["solutions"].fill(question=question, test=test)

    def dialog(self, question: str, test: str, tests: Sequence[str], solution: str) -> Dialog:
        """What a kept item teaches."""
        return self.templates["dialog"].fill(
            question=question, test=test, tests="\n".join(tests), solution=solution
        )


def load(folder: Path | None = None) -> Prompts:
    """Our prompts, those replaced that a folder has a file for.

    Args:
        folder: of files such as tests.txt; None takes ours.

    Raises:
        UserError: a file cannot be read, is no dialog of the right kind, or is none of ours.
    """
    if folder is not None:
        _check_folder(folder)
    found = {}
    for name in NAMES:
        own = folder / f"{name}.txt" if folder is not None else None
        path = own if own is not None and own.is_file() else FOLDER / f"{name}.txt"
        found[name] = _parse(name, path)
    return Prompts(found)


def write(folder: Path) -> list[Path]:
    """Write our prompts to a folder, to be changed.

    Returns:
        the files.

    Raises:
        UserError: one is there already, or cannot be written.
    """
    paths = [folder / f"{name}.txt" for name in NAMES]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} is there already", hint="name another folder, or remove it")
    for path in paths:
        atomic_write(path, (FOLDER / path.name).read_bytes())
    return paths


def as_text(dialog: Dialog) -> str:
    """A prompt as plain text for a base model, its turns between the tags of the Llama 2 form."""
    rendered = ""
    for message in dialog:
        if message.role == "assistant":
            rendered += f" {message.content}\n\n"
        else:
            rendered += f"[INST] {message.content} [/INST]"
    return rendered


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}", hint="`codecria self-instruct prompts DIR` makes one"
        )
    names = {path.stem for path in folder.glob("*.txt")}
    if not names or names - NAMES.keys():
        odd = f"has a file {min(names - NAMES.keys())}.txt" if names else "has no prompt"
        raise UserError(f"{folder} {odd}", hint="prompts: " + ", ".join(f"{n}.txt" for n in NAMES))


def _parse(name: str, path: Path) -> Template:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason}") from error
    before, *parts = _TURN.split(text.replace("\r\n", "\n"))
    turns = tuple(
        (cast(Role, role), content.strip("\n"))
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    )
    problem = "" if not before.strip() else "text stands before the first turn"
    dialog = [Message(role=role, content=content) for role, content in turns]
    problem = problem or problem_of(dialog, answered=name == "dialog") or ""
    used = {n for _, content in turns for n in _NAME.findall(content)}
    missing = [n for n in NEEDED.get(name, ()) if n not in used]
    if missing and not problem:
        problem = f"{{{missing[0]}}} does not occur"
    if problem:
        raise UserError(
            f"{path} is no prompt: {problem}",
            hint="turns begin with a line '=== user' or '=== assistant'; see docs/self-instruct.md",
        )
    return Template(name, turns)
