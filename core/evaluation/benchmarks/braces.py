"""The function in a chat answer, for languages whose blocks are in braces.

    prompt    using System; class Problem { ... public static long F(long n) {
    answer    the whole file again, or the class, or the function with others beside it, or its body

A model in a conversation repeats the head that it was given. Behind the prompt that would stand
twice, and nothing would compile. So the function's body is taken, functions beside it are put ahead
of it, and as many braces follow as the prompt has opened and the tests do not close.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from .problems import Problem

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.M | re.S)
_IMPORT = re.compile(
    r"^[ \t]*(?:import\s*\([^)]*\)|import\b[^\n]*"
    r"|using\s+[\w.= ]+;|#\s*include[^\n]*|use\s+[^;]+;|package\s[^\n]*"
    r"|extern\s+crate[^\n]*)[ \t]*$",
    re.MULTILINE,
)
_DROPPED = re.compile(r"^[ \t]*(?:<\?php|\?>|#!.*|using\s+namespace\s+std;)[ \t]*$", re.MULTILINE)
_CLASS = re.compile(r"\b(?:class|struct)\s+\w+[^{};()]*\{")
_MAIN = re.compile(
    r"^[ \t]*(?:(?:public|private|static|async|unsafe|pub|int|void|fn|func)\s+)*"
    r"(?:main|Main)\s*\([^{};]*\)[^{};]*\{",
    re.MULTILINE,
)
_MOST = 200_000  # characters of an answer that is looked into


def answer_to(problem: Problem, answer: str) -> tuple[str, str]:
    """(a whole program without the tests, what was chosen) of an answer.

    Args:
        problem: that was asked; in another language than Python.
        answer: of the model.
    """
    head, signature, name = _parts(problem.before)
    code, chosen = _block(answer[:_MOST].replace("\r\n", "\n"), name)
    hashes = problem.language in ("bash", "php")
    definition = re.compile(rf"\b{re.escape(name)}\s*(?:<[^<>]*>)?\s*\([^{{}};]*\)[^{{}};]*\{{")
    found = definition.search(code)
    if found is None:
        body, beside = code, ""
        chosen += "; a body"
        closes = body.rstrip().endswith("}") and _depth(body, hashes=hashes) < 0
        body = body.rstrip()[:-1] if closes else body
    else:
        end = _closing(code, found.end(), hashes=hashes)
        body = code[found.end() : end].rstrip()
        start = code.rfind("\n", 0, found.start()) + 1
        beside = f"{code[:start]}\n{code[end + 1 :]}"
    imports, helpers = _beside(beside, name, hashes=hashes)
    known = problem.before + problem.prelude
    new = "".join(f"{line.strip()}\n" for line in imports if line.strip() not in known)
    opening = "<?php\n" if head.startswith("<?php\n") else ""
    text = f"{opening}{new}{head.removeprefix(opening)}{helpers}{signature}{body}\n"
    missing = _depth(text, hashes=hashes) + _depth(problem.tests, hashes=hashes)
    if helpers.strip():
        chosen += "; with definitions beside it"
    return text + "}\n" * max(0, missing), chosen


def _parts(before: str) -> tuple[str, str, str]:
    """(prompt ahead of the signature, signature, the function's name)."""
    kept = before.rstrip()
    start = kept.rfind("\n") + 1
    names = re.findall(r"([A-Za-z_]\w*)\s*(?:<[^()]*>)?\s*\(", kept[start:])
    return before[:start], f"{kept[start:]}\n", names[0] if names else ""


def _block(answer: str, name: str) -> tuple[str, str]:
    """The code of an answer: the last fence that names the function, else the last, else all."""
    blocks = [match[1] for match in _FENCE.finditer(answer)]
    for number in range(len(blocks), 0, -1):
        if re.search(rf"\b{re.escape(name)}\s*\([^{{}};]*\)[^{{}};]*\{{", blocks[number - 1]):
            return blocks[number - 1], f"fence {number}"
    if blocks:
        return blocks[-1], f"fence {len(blocks)}"
    return answer, "the whole answer"


def _beside(code: str, name: str, *, hashes: bool) -> tuple[list[str], str]:
    """Imports, and definitions, of what stands beside the function.

    Left out are the class around it, a main of its own, and lines that call the function.
    """
    imports = [match[0] for match in _IMPORT.finditer(code)]
    code = _DROPPED.sub("", _IMPORT.sub("", code))
    while (main := _MAIN.search(code)) is not None:
        end = _closing(code, main.end(), hashes=hashes)
        code = code[: main.start()] + code[end + 1 :]
    # The class around the function: its line opens a brace which is closed far behind.
    opened = next((m for m in _CLASS.finditer(code) if _encloses(code, m.end())), None)
    if opened is not None:
        end = _closing(code, opened.end(), hashes=hashes)
        start = code.rfind("\n", 0, opened.start()) + 1
        code = f"{code[:start]}{code[opened.end() : end]}{code[end + 1 :]}"
    calls = re.compile(rf"^.*\b{re.escape(name)}\b\s*(?:\(|$| [\"'$\d]).*$", re.MULTILINE)
    text = calls.sub("", code).strip("\n")
    return imports, f"{text}\n" if _definitions(text) else ""


def _definitions(text: str) -> bool:
    """Whether a text holds something that is to be kept: a block, or a constant."""
    return (
        "{" in text
        or re.search(r"^\s*(?:const|static|final|let|var|define)\b", text, re.M) is not None
    )


def _encloses(code: str, start: int) -> bool:
    """Whether the class that opens here held the function, which has been taken out of it."""
    end = _closing(code, start, hashes=False)
    inner = code[start:end]
    return "\n\n" in inner or not inner.strip() or "(" in inner


# --- braces ---------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _skipped(*, hashes: bool) -> re.Pattern[str]:
    """What braces do not count in: comments, texts and single characters."""
    comment = r"(?:(?<=\s)|\A)#[^\n]*|(?<![:$])//[^\n]*" if hashes else r"//[^\n]*"
    return re.compile(
        rf"{comment}|/\*.*?\*/|\"(?:\\.|[^\"\\])*\"|`(?:\\.|[^`\\])*`"
        r"|'(?:\\.|[^'\\])'" + (r"|'(?:\\.|[^'\\])*'" if hashes else r"|'(?:\\.|[^'\\\n])*'(?!\w)"),
        re.DOTALL,
    )


def _braces(text: str, start: int, *, hashes: bool) -> Iterator[tuple[int, int]]:
    """(place, +1 or -1) of every brace from a place on."""
    at = start
    pattern = re.compile(rf"(?P<skip>{_skipped(hashes=hashes).pattern})|[{{}}]", re.DOTALL)
    while (found := pattern.search(text, at)) is not None:
        at = found.end()
        if found["skip"] is None:
            yield found.start(), 1 if found[0] == "{" else -1


def _closing(text: str, start: int, *, hashes: bool) -> int:
    """Where the brace is that closes what was opened just ahead of a place; the end if nowhere."""
    depth = 1
    for place, step in _braces(text, start, hashes=hashes):
        depth += step
        if depth == 0:
            return place
    return len(text)


def _depth(text: str, *, hashes: bool) -> int:
    """Braces that a text opens and does not close; below zero where it closes more."""
    return sum(step for _, step in _braces(text, 0, hashes=hashes))
