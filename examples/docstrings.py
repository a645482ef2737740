"""Docstrings and long comments of Python files as JSON lines: prose that every Python brings along.

The demo's first model learns from it what Llama 2 learnt from the web: to write English, and a
little code. Usage: python docstrings.py FOLDER | codecria prepare-data prose=- ...
"""

import ast
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 200  # characters: below, a docstring is rather a label


def prose(path: Path) -> Iterator[str]:
    """The docstrings of a file's modules, classes and functions, without their indentation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that old files spell wrongly
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return  # tests of the parser hold broken files
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= SHORTEST:
                yield inspect.cleandoc(text)


def main() -> None:
    """Write a document for every file that has prose."""
    folder = Path(sys.argv[1])
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if "site-packages" in inside.parts:
            continue
        found = list(prose(path))
        if found:
            record = {"text": "\n\n".join(found), "path": f"{inside.with_suffix('.txt')}"}
            print(json.dumps(record))


if __name__ == "__main__":
    main()
