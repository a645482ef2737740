"""Problems inside other texts are found: in JSON, in strings, behind line numbers."""

from __future__ import annotations

import gzip
import html
import json
import quopri
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.corpus import shingles
from codecria.data.corpus.decontaminate import Index, build
from codecria.data.corpus.unwrap import views

HUMANEVAL = Path(__file__).parents[3].parent / "shared/benchmarks/humaneval/HumanEval.jsonl.gz"

PROBLEM = {
    "task_id": "HumanEval/900",
    "prompt": "def widest(rows):\n",
    "canonical_solution": (
        "    best, chosen = -1, None\n"
        "    for row in rows:\n"
        "        spread = max(row) - min(row)\n"
        "        if spread > best and row[0] != '':\n"
        "            best, chosen = spread, row\n"
        "    return chosen\n"
    ),
}
CODE = PROBLEM["prompt"] + PROBLEM["canonical_solution"]


def numbered(form: str, start: int = 1, step: int = 1) -> Callable[[str], str]:
    def wrap(code: str) -> str:
        lines = code.split("\n")
        return "\n".join(form.format(start + i * step, line) for i, line in enumerate(lines))

    return wrap


def spans(code: str) -> str:
    """As a highlighter writes it."""
    words = re.sub(r"[A-Za-z_]+|&\w+;", lambda word: f'<span class="n">{word[0]}</span>', code)
    return f"<pre>{words}</pre>"


def c_string(code: str) -> str:
    escaped = code.replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join(f'    "{line}\\n"' for line in escaped.split("\n"))


def table(code: str) -> str:
    row = "<tr><td class='number'>{}</td><td>{}</td></tr>"
    return f"<table>{numbered(row)(html.escape(code))}</table>"


WRAPPINGS: dict[str, Callable[[str], str]] = {
    "JSON": lambda code: json.dumps({"id": 1, "text": code}),
    "JSON for a web page": lambda code: json.dumps({"a": code}).replace(">", "\\u003e"),
    "JSON in JSON": lambda code: json.dumps({"a": json.dumps({"b": code})}),
    "JSON thrice": lambda code: json.dumps(json.dumps(json.dumps([code]))),
    "a notebook": lambda code: json.dumps({"cells": [{"source": code.splitlines(True)}]}, indent=1),
    "a Python string": lambda code: "CODE = " + repr(code),
    "concatenated strings": lambda code: "\n".join(
        f"    {line!r}" for line in code.splitlines(keepends=True)
    ),
    "a C string": c_string,
    "numbers and colons": numbered("{:4d}: {}"),
    "numbers and bars": numbered("{:>3} | {}"),
    "numbers and tabs": numbered("{:6d}\t{}"),
    "numbers alone": numbered("{} {}"),
    "numbers with zeros": numbered("{:04d}  {}"),
    "numbers in brackets": numbered("[{}] {}"),
    "numbers after L": numbered("L{}: {}"),
    "numbers and arrows": numbered("{:5d}\u2192{}"),
    "numbers by ten": numbered("{} {}", start=10, step=10),
    "numbers from 41": numbered("{:4d}  {}", start=41),
    "numbers in a quotation": numbered("> {:4d}  {}"),
    "numbers in a comment": numbered("#  {:4d}  {}"),
    "numbers in JSON": lambda code: json.dumps({"a": numbered("{:4d}| {}")(code)}),
    "places of grep": numbered("src/a.py:{}:{}"),
    "a numbered diff": numbered("    {:4d} +  {}"),
    "a diff": lambda code: "@@ -0,0 +1,8 @@\n" + code.replace("\n", "\n+"),
    "a quotation": lambda code: "> > " + code.replace("\n", "\n> > "),
    "prompts": lambda code: ">>> " + code.replace("\n", "\n... "),
    "IPython": lambda code: "In [1]: " + code.replace("\n", "\n   ...: "),
    "HTML": lambda code: f"<pre>{html.escape(code)}</pre>",
    "HTML twice": lambda code: html.escape(html.escape(code)),
    "HTML in JSON": lambda code: json.dumps({"body": f"<pre>{html.escape(code)}</pre>"}),
    "highlighted HTML": lambda code: spans(html.escape(code)),
    "a table": table,
    "an attribute": lambda code: '<a t="' + html.escape(code).replace("\n", "&#10;") + '"/>',
    "an address": lambda code: "https://example.org/?code=" + urllib.parse.quote(code),
    "a form": lambda code: "code=" + urllib.parse.quote_plus(code),
    "mail": lambda code: quopri.encodestring(code.encode()).decode(),
    "hard spaces": lambda code: code.replace(" ", "\u00a0"),
    "Markdown": lambda code: re.sub(r"([_*\[\]()<>#])", r"\\\1", code),
    "a shell script": lambda code: "\n".join(f"echo {line!r}" for line in code.split("\n")),
    "a program that prints": lambda code: "\n".join(
        f"    out.println({json.dumps(line)});" for line in code.split("\n")
    ),
    "Windows": lambda code: code.replace("\n", "\r\n"),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    path.write_text(json.dumps(PROBLEM))
    return build([path])


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_problem_is_found_however_it_is_wrapped(index: Index, name: str) -> None:
    above, below = "import os\n\n\nprint(os.name)\n" * 2, "\n\nclass Box:\n    size = 3\n"
    text = above + WRAPPINGS[name](CODE) + below
    [found] = index.problems_in(shingles.column([text]))
    assert found == ["HumanEval/900"]
    assert index.problems_in(shingles.column([above + below])) == [[]]
    lines = [hit.line for hit in index.find(text)]
    assert all(8 <= line <= 20 for line in lines), lines


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.sampled_from(
                [
                    *(
                        "\\n",
                        "\\\\",
                        '\\"',
                        "\\u00",
                        "\\u000a",
                        "\\ud83d",
                        "\n",
                        "\n12 ",
                        "\n13: ",
                        "&lt;",
                    ),
                    *(
                        "&#10;",
                        "&#1114112;",
                        "</td>",
                        "<tr>",
                        "=3D",
                        "=\n",
                        "%0A%20",
                        ">>> ",
                        "\n...: ",
                    ),
                    *("\u00a0", "\u202a", "\x1b[31m", "-" * 99, "1 2 3", "src/a.py:4:"),
                ]
            ),
        ),
        max_size=30,
    ).map("".join)
)
def test_views_of_any_text_are_text_again(text: str) -> None:
    for view in views(text):
        assert isinstance(view, str)
        assert view != text


@pytest.mark.parametrize(
    "piece", ["-", "#", "\\", "> ", "1 ", "<a ", "&lt;", "%20", "\n1", "a:", "\v"]
)
def test_views_of_long_runs_take_no_longer_than_their_length(piece: str) -> None:
    # Kills: expressions that try every way to divide a row of dashes. Such a one never ends.
    for text in (piece * 20_000, (piece * 200 + "\n") * 100):
        list(views(text))


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="the public problem files are not here")
@pytest.mark.parametrize("name", ["JSON", "a Python string", "numbers and colons", "HTML"])
def test_all_of_humaneval_is_found_as_data(name: str) -> None:
    index = build([HUMANEVAL])
    with gzip.open(HUMANEVAL) as file:
        problems = [json.loads(line) for line in file]
    wrap = WRAPPINGS[name]
    texts = [wrap(problem["prompt"] + problem["canonical_solution"]) for problem in problems]
    found = index.problems_in(shingles.column(texts))
    missed = [
        problem["task_id"]
        for problem, names in zip(problems, found, strict=True)
        if problem["task_id"] not in names
    ]
    assert missed == []
