"""Problems judged by cases of input and output: whole programs, and functions that are called.

    a program    reads standard input and prints: a function from text to text (`wrapped`)
    a function   is called with arguments and returns a value

Both are judged like any other problem: the tests call a function of the solution with plain data,
so a pass is confirmed with solution and tests in two processes.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

RUN = "codecria_run"  # what a whole program is called as
_LIMIT = re.compile(r"^CASE_S = .*$", re.MULTILINE)
# The program reads and prints by its real descriptors, so that `open(0)`, `sys.stdin.buffer` and
# `os.write(1, ...)` work as in a process of its own. Names of its own for each case.
_WRAPPER = '''\
def _codecria_compiled(source):
    import ast
    name = "<program>"
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        if "outside function" not in str(error):
            raise
    # The harnesses run a program as the body of a function, where it may return.
    tree, body = ast.parse(source, name), ast.parse("def program(): pass\\nprogram()")
    first = [part for part in tree.body if isinstance(part, (ast.Import, ast.ImportFrom))]
    body.body[0].body = [part for part in tree.body if part not in first] or [ast.Pass()]
    body.body = first + body.body
    return compile(ast.fix_missing_locations(body), name, "exec", dont_inherit=True)


def {run}(given, _held=[]):
    """What the program prints when it reads this."""
    import os, sys
    if not _held:
        _held.append(_codecria_compiled({source!r}))
    for name, text in (("case.in", given), ("case.out", "")):
        with open(name, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)
    reads, writes = os.open("case.in", os.O_RDONLY), os.open("case.out", os.O_RDWR)
    os.remove("case.in")
    os.remove("case.out")
    kept = [os.dup(0), os.dup(1), sys.stdin, sys.stdout]
    kept[3].flush()
    os.dup2(reads, 0)
    os.dup2(writes, 1)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    names = {{"__name__": "__main__", "exit": sys.exit, "quit": sys.exit}}
    try:
        exec({prelude!r}, names)
        exec(_held[0], names)
        if "threading" in sys.modules:
            threading = sys.modules["threading"]
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
    except SystemExit as end:
        if end.code not in (None, 0) and not isinstance(end.code, bool):
            raise RuntimeError("the program ended with exit status " + str(end.code)) from None
    finally:
        if not sys.stdout.closed:
            sys.stdout.flush()
        os.dup2(kept[0], 0)
        os.dup2(kept[1], 1)
        sys.stdin, sys.stdout = kept[2], kept[3]
        os.close(kept[0])
        os.close(kept[1])
        os.close(reads)
    with open(writes, encoding="utf-8", errors="replace", newline="") as file:
        file.seek(0)
        return file.read()
'''


def wrapped(program: str, prelude: str = "") -> str:
    """Source of the function `RUN` from what a program reads to what it prints.

    Args:
        program: a whole one, as a script; ended by an error it raises, also by a status but 0.
        prelude: runs before it with the same names.
    """
    return _WRAPPER.format(run=RUN, source=program, prelude=prelude)


@lru_cache(maxsize=1)
def runner() -> str:
    """The source of `case_runner`, which tests begin with."""
    return Path(__file__).with_name("case_runner.py").read_text(encoding="utf-8")


def program_tests(cases: str, *, same: str, case_s: float) -> str:
    """Tests of a program.

    Args:
        cases: JSON of a list of [what it reads, what it must print].
        same: name of the comparison in `case_runner`.
        case_s: time limit of a case, in seconds.
    """
    return f"{_head(cases, case_s)}run_cases({RUN}, CASES, {same}, CASE_S)\n"


def function_tests(
    name: str, cases: str, *, same: str, case_s: float, given: str = "", expected: str = ""
) -> str:
    """Tests of a function, or of a method of a class `Solution`.

    Args:
        name: of the function.
        cases: JSON of a list of [list of arguments, what it must return].
        same, case_s: see `program_tests`.
        given, expected: names of functions in `case_runner` that arguments and results go through.
    """
    pair = f"({given}(a), {expected}(b))" if given else "(a, b)"
    return (
        f"{_head(cases, case_s)}CASES = [{pair} for a, b in CASES]\n"
        "try:\n"
        "    _made = Solution\n"
        "except NameError:\n"
        f"    _call = {name}\n"
        "else:\n"
        f"    _call = _made().{name}\n"
        f"run_cases(lambda given: _call(*given), CASES, {same}, CASE_S)\n"
    )


def _head(cases: str, case_s: float) -> str:
    return f"{runner()}\n\nCASE_S = {case_s!r}\nCASES = load({cases!r})\n"


def with_limit(tests: str, case_s: float) -> str:
    """The tests with another time limit of a case, in seconds."""
    return _LIMIT.sub(f"CASE_S = {case_s!r}", tests, count=1)


def pairs_json(given: list[Any], expected: list[Any]) -> str:
    """JSON of cases.

    Raises:
        ValueError: there are none, or not as many of the one as of the other.
    """
    if not given or len(given) != len(expected):
        raise ValueError(f"{len(given)} inputs and {len(expected)} outputs")
    return json.dumps([list(pair) for pair in zip(given, expected, strict=True)])
