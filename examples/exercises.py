"""Exercises in families, with tests: what the demo tunes on, samples from, and is scored on.

Usage: python exercises.py dialogs | train | held-out    (JSON lines on stdout)

A family is one task with a number in it. Each number belongs to one split: `dialogs` are answered
questions to tune on, `train` is asked by self-instruct, `held-out` is for scores alone.
"""

import json
import sys
from collections.abc import Iterator

SPLITS = ("dialogs", "train", "dialogs", "held-out")  # of the numbers in turn
NUMBERS = range(2, 22)
NUMERIC = (0, 1, 7, 20, 30, -5)
LISTS = ([5, 1, 4, 2, 3] * 5, list(range(40)), [7])
TEXTS = ("ab", "", "xyz")

# name, what it does, parameter, body, arguments it is tested with
FAMILIES = (
    ("add_{n}", "adds {n} to a number", "x", "x + {n}", NUMERIC),
    ("subtract_{n}", "subtracts {n} from a number", "x", "x - {n}", NUMERIC),
    ("times_{n}", "multiplies a number by {n}", "x", "x * {n}", NUMERIC),
    ("above_{n}", "tells whether a number is larger than {n}", "x", "x > {n}", NUMERIC),
    ("divisible_by_{n}", "tells whether {n} divides a number", "x", "x % {n} == 0", NUMERIC),
    ("first_{n}", "returns the first {n} values of a list", "values", "values[:{n}]", LISTS),
    ("last_{n}", "returns the last {n} values of a list", "values", "values[-{n}:]", LISTS),
    ("repeat_{n}", "repeats a text {n} times", "text", "text * {n}", TEXTS),
)


def exercises(split: str) -> Iterator[dict[str, object]]:
    """The exercises of a split, the families in turn."""
    for place, n in enumerate(NUMBERS):
        if SPLITS[place % len(SPLITS)] != split:
            continue
        for name, does, parameter, body, arguments in FAMILIES:
            name, does, body = (part.format(n=n) for part in (name, does, body))
            head = f'def {name}({parameter}):\n    """{does[0].upper()}{does[1:]}."""\n'
            right = [eval(body, {parameter: argument}) for argument in arguments]
            yield {
                "id": name,
                "question": f"Write a function {name} that {does}.",
                "prompt": head,
                "solution": f"def {name}({parameter}):\n    return {body}",
                "tests": [
                    f"assert {name}({argument!r}) == {value!r}"
                    for argument, value in zip(arguments, right, strict=True)
                ],
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
