"""HumanEval in other languages: HumanEval-X and MultiPL-E.

HumanEval-X (Zheng et al. 2023) has a reference solution for every problem; MultiPL-E (Cassano et
al. 2022) has none, and its own stop strings for every problem. Which languages
run depends on the sandbox and on what is installed.
"""

from __future__ import annotations

import re

from .problems import Problem, Record, text, texts

# What the file calls a language, in the task id or the field, and what the sandbox does.
LANGUAGES_X = {
    "Python": "python",
    "CPP": "cpp",
    "Java": "java",
    "JavaScript": "javascript",
    "Go": "go",
    "Rust": "rust",
}
LANGUAGES_E = {
    "py": "python",
    "cpp": "cpp",
    "java": "java",
    "js": "javascript",
    "ts": "typescript",
    "php": "php",
    "cs": "csharp",
    "sh": "bash",
}
HEADERS = (  # HumanEval-X's C++ takes them as given (its README)
    *("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring"),
    *("iostream", "map", "set", "numeric"),
)
CPP_PRELUDE = "".join(f"#include<{header}>\n" for header in HEADERS)
# Node's console.assert prints and goes on; a failed one must end the program.
JS_PRELUDE = (
    "console.assert = (ok, ...told) => {"
    " if (!ok) throw new Error(['Assertion failed', ...told].join(' ')); };\n"
)
# What a new definition begins with: a function of these languages is closed by its brace.
STOPS_X = {
    "python": ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```"),
    "cpp": ("\n}",),
    "java": ("\n    }\n",),
    "javascript": ("\n}",),
}
CLOSERS_X = {"cpp": "\n}\n", "java": "\n    }\n}\n", "javascript": "\n}\n"}


def parse_x(record: Record) -> Problem:
    """A problem of HumanEval-X; the language stands in its id, as in "CPP/0"."""
    task_id = text(record, "task_id")
    language = LANGUAGES_X.get(task_id.split("/", 1)[0])
    if language is None:
        raise KeyError("task_id")
    tests = text(record, "test")
    return Problem(
        task_id=task_id,
        language=language,
        before=text(record, "prompt"),
        tests=JS_PRELUDE + tests if language == "javascript" else tests,
        reference=text(record, "canonical_solution"),
        prelude=CPP_PRELUDE if language == "cpp" else "",
        stops=STOPS_X.get(language, ()),
    )


def parse_e(record: Record) -> Problem:
    """A problem of MultiPL-E; its tests begin with what closes the function."""
    name = record.get("language")
    if not isinstance(name, str):
        raise KeyError("language")
    return Problem(
        task_id=text(record, "name"),
        language=LANGUAGES_E.get(name, name),
        before=text(record, "prompt"),
        tests=text(record, "tests"),
        reference=None,
        stops=texts(record, "stop_tokens"),
    )


# What of a suite's own text tells that a library must be there. MultiPL-E's Java imports one in
# every prompt; without it, nothing compiles, which says nothing of a completion.
_LIBRARIES = {
    "boost": ("cpp", re.compile(r"^#include\s*<boost/", re.MULTILINE)),
    "openssl": ("cpp", re.compile(r"^#include\s*<openssl/", re.MULTILINE)),
    "javatuples": ("java", re.compile(r"^import org\.javatuples\.", re.MULTILINE)),
    "js-md5": ("javascript", re.compile(r"require\(.js-md5.\)")),
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
    return completion + CLOSERS_X.get(problem.language, "")
