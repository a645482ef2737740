"""Docstrings of CodeXGLUE's code-to-text (Lu et al. 2021), written by infilling.

    {"code": "def f(x): ...", "docstring": TEXT, "docstring_tokens": [WORD, ...]}

The function is shown with three quotes and a space where its docstring stands, the closing quotes
left out, as the paper does (appendix E): the first line of the answer that is not empty counts.
Left to right, the model sees only what stands before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from codecria.core.evaluation.benchmarks.problems import text, texts

from .questions import Question, Record, parsed

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
QUOTES = '"""'
_LITERAL = re.compile(
    r"""[uUrRbB]*(?P<end>\"{3}|'{3}|["'])(?P<text>(?:\\.|(?!(?P=end)).)*)(?P=end)""", re.DOTALL
)


def read(path: Path, *, infill: bool) -> Iterator[Question]:
    """The questions of a file.

    Args:
        path: of the file.
        infill: whether what follows the docstring is shown.
    """

    def parse(place: str, record: Record) -> Question:
        code = text(record, "code")
        before, after = around(code, text(record, "docstring"))
        return Question(
            task_id=f"docstring/{place}",
            before=before,
            after=after if infill else None,
            target=" ".join(texts(record, "docstring_tokens")),
        )

    return parsed(path, parse)


def around(code: str, docstring: str) -> tuple[str, str]:
    """What stands before the words of a function's docstring, and after its closing quotes.

    Raises:
        KeyError: the code has no docstring.

    >>> around('def f():\\n    \\'\\'\\'Go.\\'\\'\\'\\n    run()\\n', "Go.")
    ('def f():\\n    \"\"\" ', '\\n    run()\\n')
    """
    start = " ".join(docstring.split())
    literals = list(_LITERAL.finditer(code))
    ours = [found for found in literals if " ".join(found["text"].split()).startswith(start)]
    # Its text in the file may have been cleaned otherwise: then it is the first literal.
    found = next(iter([*ours, *literals]), None)
    if found is None:
        raise KeyError("code")
    return f"{code[: found.start()]}{QUOTES} ", code[found.end() :]


def answer(said: str) -> str:
    """The first line of what was written that is not empty, without closing quotes."""
    for line in said.split("\n"):
        words = re.split("\"{3}|'{3}", line, maxsplit=1)[0].strip()
        if words:
            return words
    return ""
