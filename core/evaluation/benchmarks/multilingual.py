"""HumanEval in other languages: HumanEval-X and MultiPL-E.

HumanEval-X (Zheng et al. 2023) has a reference solution for every problem; MultiPL-E (Cassano et
al. 2022) has none, and its own stop strings for every problem. Which languages
run depends on the sandbox and on what is installed.
"""

from __future__ import annotations

import re

from codecria.core.sandbox import languages
from codecria.core.sandbox.language import Suite

from .problems import Problem, Record, text, texts

# What a new definition begins with; the other languages close a function by its brace.
PYTHON_STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")


def parse_x(record: Record) -> Problem:
    """A problem of HumanEval-X; the language stands in its id, as in "CPP/0"."""
    task_id = text(record, "task_id")
    name, slash, _ = task_id.partition("/")
    language = languages.canonical(name)
    if not slash or language not in ("python", *languages.LANGUAGES):
        raise KeyError("task_id")
    suite = _suite(language)
    tests = text(record, "test")
    return Problem(
        task_id=task_id,
        language=language,
        # Rust's prompt is the comment alone; its declaration follows.
        before=text(record, "prompt") + (text(record, "declaration") if language == "rust" else ""),
        tests=suite.tests_prelude + tests if suite else tests,
        reference=text(record, "canonical_solution"),
        prelude=f"{text(record, 'test_setup')}\n"
        if language == "go"
        else suite.prelude
        if suite
        else "",
        stops=PYTHON_STOPS if language == "python" else (suite.end,) if suite else (),
    )


def _suite(language: str) -> Suite | None:
    known = languages.LANGUAGES.get(language)
    return None if known is None else known.suite


def language_e(name: str) -> str:
    """A language of MultiPL-E's files as the sandbox names it."""
    return "python" if name == "py" else languages.canonical(name)


def parse_e(record: Record) -> Problem:
    """A problem of MultiPL-E; its tests begin with what closes the function."""
    name = record.get("language")
    if not isinstance(name, str):
        raise KeyError("language")
    return Problem(
        task_id=text(record, "name"),
        language=language_e(name),
        before=text(record, "prompt"),
        tests=text(record, "tests"),
        reference=None,
        stops=texts(record, "stop_tokens"),
    )


# Text of a suite's own that shows that a library is needed. MultiPL-E's Java imports one in
# every prompt; without it, nothing compiles, which says nothing of a completion.
_LIBRARIES = {
    "boost": ("cpp", re.compile(r"^#include\s*<boost/", re.MULTILINE)),
    "openssl": ("cpp", re.compile(r"^#include\s*<openssl/", re.MULTILINE)),
    "javatuples": ("java", re.compile(r"^import org\.javatuples\.", re.MULTILINE)),
    "js-md5": ("javascript", re.compile(r"require\(.js-md5.\)")),
    "rust-crates": ("rust", re.compile(r"\brand::(?!Rng;)|\bRegex::|\bmd5::")),
}


# References that are wrong as published; their tests are right, so the tasks count.
WRONG_REFERENCES = {
    "JavaScript/112": "it returns one value in place of two",
    "JavaScript/155": "it counts no digit in 0",
}


def needs(problem: Problem) -> tuple[str, ...]:
    """The libraries that a problem's prompt, tests or reference name, as the sandbox calls them.

    Never a completion: it could name one that is missing, so as not to be counted.
    """
    own = "\n".join((problem.before, problem.tests, problem.reference or ""))
    return tuple(
        name
        for name, (language, sign) in _LIBRARIES.items()
        if problem.language == language and sign.search(own)
    )


def closed(problem: Problem, completion: str) -> str:
    """A completion of HumanEval-X that was cut at its stop string, with what the stop took.

    HumanEval-X's completions hold the function's closing brace, which is also what ends them.
    """
    suite = _suite(problem.language)
    return completion + suite.closer if suite else completion
