"""Exercises with tests: what the demo tunes on, samples from, and is scored on.

Usage: python exercises.py dialogs | train | held-out    (JSON lines on stdout)

Each function is described in four ways. Two of them are answered, to tune on (`dialogs`), one is
asked by self-instruct (`train`), and the last is for scores alone (`held-out`): no wording is in
two of the files.
"""

import json
import sys
from collections.abc import Iterator

SPLITS = ("dialogs", "dialogs", "train", "held-out")  # of the four ways
LEADS = ("Write a function {name} that {does}.", "I need {name}, a function that {does}.")
NUMBERS = ([4, -2, 9, 9, 0], [7], [1, 2, 3, 4, 5, 6], [-3, -8, 5])
PAIRS = ((2, 3), (10, 4), (-6, 4), (0, 9))
SINGLE = (0, 1, -4, 7, 12)
WORDS = (["a", "list", "of", "words"], ["one"], ["Two", "More"])
TEXTS = ("a few Words", "x", "  spaced  Out ")

# name, parameters, body, what it is tested with, what it does in four ways
FUNCTIONS: tuple[tuple[str, str, str, tuple[object, ...], tuple[str, str, str, str]], ...] = (
    ("add", "a, b", "a + b", PAIRS,
     ("adds two numbers", "returns the sum of a and b",
      "gives a plus b", "takes two numbers and adds them")),
    ("subtract", "a, b", "a - b", PAIRS,
     ("subtracts the second number from the first", "returns the difference of a and b",
      "gives a minus b", "takes two numbers and subtracts b from a")),
    ("multiply", "a, b", "a * b", PAIRS,
     ("multiplies two numbers", "returns the product of a and b",
      "gives a times b", "takes two numbers and multiplies them")),
    ("remainder", "a, b", "a % b", PAIRS,
     ("returns the remainder of a divided by b", "tells what is left when a is divided by b",
      "gives a modulo b", "divides a by b and returns what remains")),
    ("larger", "a, b", "max(a, b)", PAIRS,
     ("returns the larger of two numbers", "tells which of a and b is larger",
      "gives the larger number of a and b", "takes two numbers and returns the larger one")),
    ("square", "x", "x * x", SINGLE,
     ("squares a number", "returns the square of x",
      "gives x times x", "takes a number and squares it")),
    ("double", "x", "2 * x", SINGLE,
     ("doubles a number", "returns twice the number x",
      "gives two times x", "takes a number and doubles it")),
    ("negate", "x", "-x", SINGLE,
     ("negates a number", "returns the negative of x",
      "gives minus x", "takes a number and turns its sign around")),
    ("absolute", "x", "abs(x)", SINGLE,
     ("returns the absolute value of a number", "tells how far x is from zero",
      "gives x without its sign", "takes a number and returns its absolute value")),
    ("is_even", "x", "x % 2 == 0", SINGLE,
     ("tells whether a number is even", "checks if x can be divided by two",
      "returns True for even numbers", "takes a number and tells if it is even")),
    ("is_odd", "x", "x % 2 == 1", SINGLE,
     ("tells whether a number is odd", "checks if x is not even",
      "returns True for odd numbers", "takes a number and tells if it is odd")),
    ("is_positive", "x", "x > 0", SINGLE,
     ("tells whether a number is positive", "checks if x is larger than zero",
      "returns True for positive numbers", "takes a number and tells if it is positive")),
    ("total", "values", "sum(values)", NUMBERS,
     ("adds up a list of numbers", "returns the sum of a list",
      "gives the total of all values", "takes a list and adds all its numbers")),
    ("largest", "values", "max(values)", NUMBERS,
     ("returns the largest value of a list", "finds the maximum of a list",
      "gives the biggest number of a list", "takes a list and returns its largest value")),
    ("smallest", "values", "min(values)", NUMBERS,
     ("returns the smallest value of a list", "finds the minimum of a list",
      "gives the least number of a list", "takes a list and returns its smallest value")),
    ("count", "values", "len(values)", NUMBERS,
     ("counts the values of a list", "returns the length of a list",
      "tells how many values a list has", "takes a list and counts its values")),
    ("first", "values", "values[0]", NUMBERS,
     ("returns the first value of a list", "gives what a list begins with",
      "tells the first item of a list", "takes a list and returns its first value")),
    ("last", "values", "values[-1]", NUMBERS,
     ("returns the last value of a list", "gives what a list ends with",
      "tells the last item of a list", "takes a list and returns its last value")),
    ("backwards", "values", "values[::-1]", NUMBERS,
     ("reverses a list", "returns a list from its end to its start",
      "gives the values of a list in reverse", "takes a list and turns it around")),
    ("ordered", "values", "sorted(values)", NUMBERS,
     ("sorts a list", "returns the values of a list in order",
      "gives a list from its smallest to its largest value", "takes a list and sorts it")),
    ("unique", "values", "sorted(set(values))", NUMBERS,
     ("returns the different values of a list in order", "sorts a list without its duplicates",
      "gives each value of a list once, sorted", "takes a list and returns its values once each")),
    ("mean", "values", "sum(values) / len(values)", NUMBERS,
     ("returns the mean of a list", "computes the average of a list of numbers",
      "gives the average value", "takes a list and returns its average")),
    ("positives", "values", "[v for v in values if v > 0]", NUMBERS,
     ("keeps the positive values of a list", "returns all values above zero",
      "gives the numbers of a list that are positive", "takes a list and keeps what is positive")),
    ("evens", "values", "[v for v in values if v % 2 == 0]", NUMBERS,
     ("keeps the even values of a list", "returns all values that two divides",
      "gives the numbers of a list that are even", "takes a list and keeps what is even")),
    ("squares", "values", "[v * v for v in values]", NUMBERS,
     ("squares every value of a list", "returns the squares of all values",
      "gives a list of squares", "takes a list and squares each of its values")),
    ("has_zero", "values", "0 in values", NUMBERS,
     ("tells whether a list holds a zero", "checks if 0 is in a list",
      "returns True if a value is zero", "takes a list and tells if it holds a zero")),
    ("upper", "text", "text.upper()", TEXTS,
     ("writes a text in capitals", "returns a text in upper case",
      "gives the upper case of a text", "takes a text and turns it to upper case")),
    ("lower", "text", "text.lower()", TEXTS,
     ("writes a text in small letters", "returns a text in lower case",
      "gives the lower case of a text", "takes a text and turns it to lower case")),
    ("trimmed", "text", "text.strip()", TEXTS,
     ("strips the spaces around a text", "returns a text without spaces at its ends",
      "gives a text with its ends trimmed", "takes a text and strips it")),
    ("words", "text", "text.split()", TEXTS,
     ("splits a text into words", "returns the list of words of a text",
      "gives the words of a text", "takes a text and splits it")),
    ("joined", "words", "' '.join(words)", WORDS,
     ("joins words with spaces", "returns a text of all words",
      "gives words as one text", "takes a list of words and joins them")),
    ("lengths", "words", "[len(word) for word in words]", WORDS,
     ("returns the length of each word", "tells how long the words of a list are",
      "gives the lengths of words", "takes a list of words and returns their lengths")),
)  # fmt: skip


def exercises(split: str) -> Iterator[dict[str, object]]:
    """The exercises of a split."""
    for name, parameters, body, arguments, ways in FUNCTIONS:
        call = eval(f"lambda {parameters}: {body}")
        tests = []
        for given in arguments:
            values = given if isinstance(given, tuple) else (given,)
            tests.append(f"assert {name}({', '.join(map(repr, values))}) == {call(*values)!r}")
        for way, does in enumerate(ways):
            if SPLITS[way] != split:
                continue
            head = f'def {name}({parameters}):\n    """{does[0].upper()}{does[1:]}."""\n'
            for number, lead in enumerate(LEADS):
                yield {
                    "id": f"{name}/{way}{number}",
                    "question": lead.format(name=name, does=does),
                    "prompt": head,
                    "solution": f"def {name}({parameters}):\n    return {body}",
                    "tests": tests,
                }


def main() -> None:
    """Print the split that is asked for."""
    split = sys.argv[1] if len(sys.argv) == 2 else ""
    if split not in SPLITS:
        sys.exit(f"usage: exercises.py {' | '.join(dict.fromkeys(SPLITS))}")
    for exercise in exercises(split):
        if split == "dialogs":
            told = ("user", exercise["question"]), ("assistant", exercise["solution"])
            line = {"messages": [{"role": role, "content": text} for role, text in told]}
        else:
            line = exercise
        print(json.dumps(line))


if __name__ == "__main__":
    main()
