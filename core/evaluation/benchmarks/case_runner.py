"""Runs the cases of a problem, one after the other: input, expected output, a time limit for each.

This module's source is the beginning of the tests of such a problem (`cases.py`), so it runs inside
the sandbox, on the side of the tests, with the standard library alone. What a solution returns
arrives here as plain data.
"""

import json
import signal
import sys
import time
from decimal import Decimal, InvalidOperation
from typing import Any

SHOWN = 60  # characters of a value that a message shows
# Of numpy.allclose, which the harness of APPS compares numbers with.
RELATIVE, ABSOLUTE = 1e-05, 1e-08


class TimeLimitExceeded(BaseException):
    """A case took longer than it may; no handler of `Exception` catches it."""


def run_cases(call: Any, cases: Any, same: Any, limit_s: float) -> None:
    """Call a solution with every case's input; the first wrong or slow one raises.

    Args:
        call: takes an input, gives an output.
        cases: pairs of input and expected output.
        same: whether an output is the expected one.
        limit_s: seconds for one case.

    Raises:
        AssertionError: an output is wrong.
        TimeLimitExceeded: a case took too long.
    """

    def expire(*_: Any) -> None:
        raise TimeLimitExceeded(f"case {number} of {len(cases)} took longer than {limit_s:g} s")

    signal.signal(signal.SIGALRM, expire)
    for number, (given, expected) in enumerate(cases, start=1):
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        started = time.monotonic()
        found = call(given)
        took = time.monotonic() - started
        signal.setitimer(signal.ITIMER_REAL, 0)
        if took > limit_s:  # the solution caught the alarm
            expire()
        if not same(found, expected):
            raise AssertionError(
                f"case {number} of {len(cases)}: expected {_short(expected)}, got {_short(found)}"
            )


def _short(value: Any) -> Any:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def load(text: Any) -> Any:
    """The cases in JSON; integers may have any number of digits."""
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    return json.loads(text)


# --- APPS -----------------------------------------------------------------------------------------


def apps_printed(printed: Any, expected: Any) -> Any:
    """Whether printed text is right, by the rules of the harness of APPS, in their order.

    1. The texts are equal without white space at their ends; or so are they with each printed
       line stripped.
    2. The lines are equal, expected ones stripped, empty ones left out.
    3. Every line is one number, and the numbers are close (numpy.allclose).
    4. The sets of words of the lines are the same sets: neither the order of lines, nor that of
       words in a line, nor repetition counts. Likewise with all words as numbers of 3 digits.
    """
    if isinstance(expected, list):
        expected = "\n".join(map(str, expected))
    lines = printed.splitlines()
    for text in ("\n".join(lines), "\n".join(line.strip() for line in lines)):
        if text.strip() == expected.strip():
            return True
    wanted = [line.strip() for line in expected.split("\n") if line]
    kept = [line for line in lines if line]
    if wanted in (lines, kept):
        return True
    if _numbers_close(kept, wanted):
        return True
    found, asked = [[set(line.split()) for line in part] for part in (kept, wanted)]
    found = [words for words in found if words]
    if {frozenset(words) for words in found} == {frozenset(words) for words in asked}:
        return True
    try:
        return _rounded(found) == _rounded(asked)
    except (ValueError, OverflowError):
        return False


def _rounded(lines: Any) -> Any:
    return {frozenset(round(float(word), 3) for word in words) for words in lines}


def _numbers_close(found: Any, asked: Any) -> Any:
    try:
        pairs = list(zip(map(float, found), map(float, asked), strict=False))
    except ValueError:
        return False
    return len(found) == len(asked) and all(
        a == b or abs(a - b) <= ABSOLUTE + RELATIVE * abs(b) for a, b in pairs
    )


def apps_returned(found: Any, expected: Any) -> Any:
    """Whether a returned value is right, by the rules of the harness of APPS.

    A tuple counts as a list. The expected value may stand in a list of its own.
    """
    if isinstance(found, tuple):
        found = list(found)
    if found == expected:
        return True
    if not isinstance(expected, list) or not expected:
        return False
    if found == expected[0]:
        return True
    if isinstance(found, list) and found and isinstance(found[0], tuple):
        return [list(part) for part in found] == expected[0]
    return False


def apps_arguments(given: Any) -> Any:
    """Arguments as APPS means them: keys of a single object are integers again."""
    if given and isinstance(given, list) and isinstance(given[0], dict):
        return [_int_keys(given[0])]
    return given


def apps_expected(value: Any) -> Any:
    """An expected value as APPS means it; see `apps_arguments`."""
    if isinstance(value, dict):
        return [_int_keys(value)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_int_keys(value[0])]
    return value


def _int_keys(value: Any) -> Any:
    try:
        return {int(key): part for key, part in value.items()}
    except ValueError:
        return value


# --- LiveCodeBench --------------------------------------------------------------------------------


def lines_printed(printed: Any, expected: Any) -> Any:
    """Whether printed text is right by the rules of LiveCodeBench's harness.

    Line by line, stripped: the same text, or the same decimal numbers.
    """
    found, wanted = [
        [line.strip() for line in text.strip().split("\n")] for text in (printed, expected)
    ]
    return len(found) == len(wanted) and all(map(_same_line, found, wanted))


def _same_line(found: Any, wanted: Any) -> Any:
    if found == wanted:
        return True
    try:
        first, second = [[Decimal(word) for word in line.split()] for line in (found, wanted)]
    except InvalidOperation:
        return False
    return first == second


def value_returned(found: Any, expected: Any) -> Any:
    """Whether a returned value is right; a tuple counts as a list."""
    return (list(found) if isinstance(found, tuple) else found) == expected


# --- SAFIM ----------------------------------------------------------------------------------------


def one_of_printed(printed: Any, expected: Any) -> Any:
    """Whether printed text is one of the expected ones, word by word."""
    texts = expected if isinstance(expected, list) else [expected]
    return any(printed.split() == text.split() for text in texts)


# --- EvalPlus -------------------------------------------------------------------------------------


def close(found: Any, expected: Any, tolerance: Any) -> Any:
    """Whether values agree: equal, or numbers close by (numpy.testing.assert_allclose).

    Args:
        found, expected: numbers, or lists of them.
        tolerance: absolute; 0 for equality, and 1e-06 where all that is expected is floats.
    """
    if found == expected:
        return True
    if tolerance == 0 and _floats(expected):
        tolerance = 1e-06
    return tolerance != 0 and _all_close(found, expected, tolerance)


def _floats(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return all(isinstance(part, float) for part in value)
    return isinstance(value, float)


def _all_close(found: Any, expected: Any, tolerance: Any) -> Any:
    if isinstance(expected, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(expected)
            and all(_all_close(a, b, tolerance) for a, b in zip(found, expected, strict=True))
        )
    if not isinstance(found, int | float) or not isinstance(expected, int | float):
        return False
    if found == expected or (found != found and expected != expected):
        return True
    return abs(found - expected) <= tolerance + 1e-07 * abs(expected)
