"""The blocks of a chat answer that may hold its code: thinking dropped, tags and fences found."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

TAG, END_TAG = "[PYTHON]", "[/PYTHON]"
MOST_CLOSERS = 8  # lines that may close a fence which are tried: code may hold fences itself
PYTHON_NAMES = frozenset({"", "python", "py", "python3", "py3", "ipython", "pycon", "code"})


@dataclass(frozen=True, slots=True)
class Block:
    """Text that may be the code.

    Attributes:
        texts: what it may hold, the likeliest first: a fence may end at several lines.
        label: where it stands, for the record.
        is_python: whether its fence names Python, or no language.
    """

    texts: tuple[str, ...]
    label: str
    is_python: bool = True


def normal(answer: str) -> str:
    """An answer with Python's line ends, without marks that no editor shows."""
    text = answer.replace("\r\n", "\n").replace("\r", "\n")
    return text.translate({0xFEFF: None, 0x200B: None, 0xA0: " ", 0x2028: "\n", 0x2029: "\n"})


_THINKING = re.compile(
    r"^[ \t]*<(think|thinking|thought|reasoning)>.*?</\1>[ \t]*\n?", re.DOTALL | re.MULTILINE
)
_THOUGHT_END = re.compile(r"^.*</(?:think|thinking|thought|reasoning)>[ \t]*", re.DOTALL)
_THOUGHT_OPEN = re.compile(r"^[ \t]*<(?:think|thinking|thought|reasoning)>.*", re.DOTALL | re.M)


def without_thinking(text: str) -> Iterator[tuple[str, str]]:
    """(text, note) an answer after its thinking, then as it is: code may name such tags itself."""
    rest = _THINKING.sub("", text)
    rest = _THOUGHT_END.sub("", rest)  # the chat form may have opened it in the prompt
    rest = _THOUGHT_OPEN.sub("", rest)  # cut while it thought
    if rest != text and rest.strip():
        yield rest, "; thinking dropped"
    yield text, ""


def blocks_of(text: str) -> Iterator[Block]:
    """The blocks of an answer, of two alike the better one last: in fences, then between tags."""
    fences = list(fences_of(text))
    # A fence of another language is looked at first, so that any later one is preferred.
    yield from sorted(fences, key=lambda block: block.is_python)
    if TAG in text or END_TAG in text:
        for number, part in enumerate(tagged(text), start=1):
            yield Block((part,), f"tags {number}")
            for block in fences_of(part):
                yield Block(block.texts, f"tags {number}, {block.label}", block.is_python)
    elif not fences:
        yield Block((text,), "the whole answer")


def tagged(text: str, tag: str = TAG, end: str = END_TAG) -> Iterator[str]:
    """What stands between the tags; one of them may be missing."""
    if tag not in text:
        yield text.split(end, 1)[0]
        return
    for part in text.split(tag)[1:]:
        yield part.split(end, 1)[0]


_FENCE = re.compile(
    r"^(?P<prefix>[ \t>]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$"
)
_INLINE = re.compile(r"`{3,}(?:python3?|py)?[ \t]+(?P<code>\S[^\n`]*)`{3,}")
_LANGUAGE = re.compile(r"^[ \t]*[{.]*[ \t]*\.?([\w+#-]*)")


def fences_of(text: str) -> Iterator[Block]:
    """The fenced blocks of a text, each with the several ends that it may have."""
    lines = text.split("\n")
    number, place = 0, 0
    while place < len(lines):
        opened = _FENCE.match(lines[place])
        inline = _INLINE.search(lines[place])
        if inline is not None:
            number += 1
            yield Block((inline["code"],), f"fence {number}")
            place += 1
            continue
        if opened is None or "`" in opened["info"]:
            place += 1
            continue
        number += 1
        language = _LANGUAGE.match(opened["info"])
        named = language[1].lower() if language else ""
        ends = _closers(lines, place + 1, opened["fence"])
        quoted = ">" in opened["prefix"]
        texts = tuple(_inside(lines[place + 1 : end], quoted=quoted) for end in ends)
        label = f"fence {number}" + ("" if ends[0] < len(lines) else ", never closed")
        yield Block(texts, label, named in PYTHON_NAMES)
        place = (_end_of_parsed(texts, ends) or ends[0]) + 1


def _closers(lines: Sequence[str], first: int, fence: str) -> list[int]:
    """Where a fence may end: lines that close it, and the end of the text."""
    mark = re.compile(rf"^[ \t>]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
    found = [n for n in range(first, len(lines)) if mark.match(lines[n])][:MOST_CLOSERS]
    return [*found, len(lines)]


def _end_of_parsed(texts: Sequence[str], ends: Sequence[int]) -> int | None:
    for text, end in zip(texts, ends, strict=True):
        if variant(text) is not None:
            return end
    return None


def _inside(lines: Sequence[str], *, quoted: bool) -> str:
    if quoted:
        lines = [re.sub(r"^[ \t]*>[ ]?", "", line) for line in lines]
    return "\n".join(lines)


# --- blocks that parse ----------------------------------------------------------------------------


def variant(text: str) -> str | None:
    """Code as it stands, or levelled, whichever parses first."""
    for code in dict.fromkeys((text, levelled(text), _unprompted(text))):
        if parse(code) is not None:
            return code.strip("\n") + "\n"
    return None


def levelled(code: str) -> str:
    """Code whose first line begins where its other statements do.

    A chat form puts a space before an answer, and lists indent the code of their items.
    """
    code = code.lstrip("\n")
    if code[:1] not in (" ", "\t"):
        return code
    even = textwrap.dedent(code)
    return code.lstrip(" \t") if even[:1] in (" ", "\t") or parse(even) is None else even


def _unprompted(code: str) -> str:
    """The input of an interactive session, without its prompts and output."""
    lines = code.split("\n")
    if not any(line.startswith(">>> ") for line in lines):
        return code
    return "\n".join(line[4:] for line in lines if line[:4] in (">>> ", "... ", "..."))


@lru_cache(maxsize=256)
def parse(code: str) -> ast.Module | None:
    """The syntax tree of code; None where it has none, or one too deep to walk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes, which are the model's
        try:
            tree = ast.parse(code)
            ast.unparse(tree)  # what follows walks it, and recurses as deep
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return tree
