"""The licence comment that a source file opens with, which says nothing about what follows.

Short files of one project share it, so near-duplicates are compared without it.
"""

from __future__ import annotations

import re

import pyarrow as pa

HEAD_CHARACTERS = 16_000  # within which the comment ends

_HINT = re.compile(r"licen[cs]|copyright|spdx|redistribution|public domain", re.IGNORECASE)
# Before it may stand a byte order mark, `#!`, `<?php`, `<?xml ...?>`, an encoding, white space.
_BEFORE = re.compile(
    r"\ufeff?(?:\s*(?:#!(?!\[)[^\n]*|<\?(?:php|xml[^>\n]{0,200})|#[^\n]{0,20}coding[:=][^\n]*"
    r"|# frozen_string_literal[^\n]*|'use strict';?|\"use strict\";?)\s*\n)*\s*"
)
_COMMENT = re.compile(
    r"/\*.*?\*/|<!--.*?-->|\(\*.*?\*\)|\{-.*?-\}|=begin\b.*?\n=end\b|--\[\[.*?\]\]"
    r"|\"\"\".*?\"\"\"|'''.*?'''"
    r"|(?P<mark>#|//|--|;|%|\.\\\"|'|!|(?i:rem\b)|dnl\b)[^\n]*(?:\n[ \t]*(?P=mark)[^\n]*)*",
    re.DOTALL,
)


def end(text: str) -> int:
    """Where the licence comment at the head of a text ends; 0 where there is none.

    Comments that follow each other count together, as long as each speaks of a licence. Where
    nothing but the comment is left, it stays: a file that is all comment is compared as a whole.
    """
    head = text[:HEAD_CHARACTERS]
    if _HINT.search(head) is None:
        return 0
    before = _BEFORE.match(head)
    at = found = before.end() if before else 0
    while (comment := _COMMENT.match(head, at)) and _HINT.search(comment[0]):
        found = comment.end()
        at = found + len(head[found:]) - len(head[found:].lstrip())
    if (before and found == before.end()) or not re.search(r"\w", text[found:]):
        return 0
    return found


def without(texts: pa.Array) -> pa.Array:
    """A column of texts without their licence comments; the same column where none has one."""
    values = texts.to_pylist()
    ends = [end(value) for value in values]
    if not any(ends):
        return texts
    return pa.array([value[at:] for value, at in zip(values, ends, strict=True)], texts.type)
