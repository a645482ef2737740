"""GSM8K (Cobbe et al. 2021): word problems of grade school, answered by a number.

    {"question": TEXT, "answer": "... #### 18"}

Eight worked problems are shown, as for Llama 2; the paper does not say how many it shows. These
were written for this project.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from codecria.core.evaluation.benchmarks.problems import text
from codecria.data.files import digest_bytes

from .questions import Question, Record, parsed

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
STOPS = ("\nQuestion:", "\n\n")
_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
_SAID = re.compile(rf"answer is:?\s*({_NUMBER})", re.IGNORECASE)
_ANY = re.compile(_NUMBER)


class Shot(NamedTuple):
    """A worked problem: in words, and as the lines of a function."""

    question: str
    worked: str
    number: int
    program: str


SHOTS = (
    Shot(
        "A baker fills 6 trays with 12 rolls each and sells 50 of the rolls. How many are left?",
        "6 trays of 12 rolls are 6 * 12 = 72 rolls. After selling 50 there are 72 - 50 = 22.",
        22,
        "rolls = 6 * 12\nreturn rolls - 50",
    ),
    Shot(
        "Ines reads 15 pages on each school day and 40 pages on each of the two days of the"
        " weekend. How many pages does she read in a week?",
        "On 5 school days she reads 5 * 15 = 75 pages. On the weekend she reads 2 * 40 = 80 pages."
        " Together that is 75 + 80 = 155.",
        155,
        "school_days = 5 * 15\nweekend = 2 * 40\nreturn school_days + weekend",
    ),
    Shot(
        "A bus starts with 23 people. At the first stop 9 get off and 4 get on. At the second, half"
        " of the people get off. How many are still on the bus?",
        "After the first stop there are 23 - 9 + 4 = 18 people. Half of them leave, so"
        " 18 / 2 = 9 stay.",
        9,
        "people = 23 - 9 + 4\nreturn people // 2",
    ),
    Shot(
        "Three pens cost $4.50. Omar buys 8 pens and pays with a $20 note. How many dollars does he"
        " get back?",
        "One pen costs 4.50 / 3 = 1.50 dollars. Eight cost 8 * 1.50 = 12 dollars. He gets back"
        " 20 - 12 = 8.",
        8,
        "pen = 4.50 / 3\nreturn 20 - 8 * pen",
    ),
    Shot(
        "A tank holds 240 litres and is one quarter full. A pump adds 30 litres a minute. After how"
        " many minutes is the tank full?",
        "It holds 240 / 4 = 60 litres, so 240 - 60 = 180 litres are missing. That takes"
        " 180 / 30 = 6 minutes.",
        6,
        "inside = 240 / 4\nmissing = 240 - inside\nreturn missing / 30",
    ),
    Shot(
        "Lena is twice as old as her brother, who is 4 years younger than their cousin. The cousin"
        " is 13. How old is Lena?",
        "The brother is 13 - 4 = 9. Lena is 2 * 9 = 18.",
        18,
        "brother = 13 - 4\nreturn 2 * brother",
    ),
    Shot(
        "A shirt that costs $80 is sold for 25% less. A buyer has a card that takes another $5 off."
        " What does the buyer pay, in dollars?",
        "25% of 80 is 0.25 * 80 = 20 dollars. The sale's price is 80 - 20 = 60. With the card it is"
        " 60 - 5 = 55.",
        55,
        "price = 80 * (1 - 0.25)\nreturn price - 5",
    ),
    Shot(
        "Four friends pick apples. Two of them pick 35 each, the third picks 10 more than one of"
        " those, and the fourth picks as many as all the others together. How many do they pick?",
        "The first two pick 2 * 35 = 70, the third picks 35 + 10 = 45. Those are 70 + 45 = 115. The"
        " fourth picks 115 too, so together they pick 115 + 115 = 230.",
        230,
        "third = 35 + 10\nothers = 2 * 35 + third\nreturn others + others",
    ),
)


def read(path: Path) -> Iterator[Question]:
    """The questions of a file, with the worked problems ahead of each."""
    shown = "\n\n".join(
        f"Question: {shot.question}\nAnswer: {shot.worked} The answer is {shot.number}."
        for shot in SHOTS
    )

    def parse(_: str, record: Record) -> Question:
        return Question(
            task_id=name_of(record),
            before=f"{shown}\n\nQuestion: {text(record, 'question').strip()}\nAnswer:",
            target=reference(record),
        )

    return parsed(path, parse)


def reference(record: Record) -> str:
    """The number after `####` in a record's answer.

    Raises:
        KeyError: there is none.
    """
    _, mark, number = text(record, "answer").rpartition("####")
    if not mark or _ANY.search(number) is None:
        raise KeyError("answer")
    return _plain(number.strip())


def answer(said: str) -> str:
    """The number that an answer gives; empty if it gives none.

    The first that follows "answer is"; without these words, the last number of all.

    >>> answer("18 - 6 = 12. The answer is $1,200."), answer("So 5 and 7.0"), answer("none")
    ('1200', '7.0', '')
    """
    found = _SAID.search(said)
    if found is not None:
        return _plain(found[1])
    numbers = _ANY.findall(said)
    return _plain(numbers[-1]) if numbers else ""


def solved(given: str, wanted: str) -> float:
    """1.0 if two numbers are equal, however they are written.

    >>> solved("7.0", "7"), solved("", "7")
    (1.0, 0.0)
    """
    return float(bool(given) and float(given) == float(wanted))


def name_of(record: Record) -> str:
    """An id of a record, which has none: it is the same wherever the record stands."""
    return f"GSM8K/{digest_bytes(text(record, 'question').encode())[:10]}"


def _plain(number: str) -> str:
    return number.replace(",", "").replace("$", "").rstrip(".")
