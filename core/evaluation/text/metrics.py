"""How near a text is to the right one: exact match, edit similarity, BLEU.

BLEU has many readings. The docstrings of CodeXGLUE are scored by one of its own, which adds one to
the counts of all but single words: `smoothed_bleu`. It is no other tool's BLEU, and is named so.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

ORDER = 4  # words of the longest sequences that BLEU counts
_PART = re.compile(r"\w+|[^\s\w]")
# Then, as in mteval-v11a: marks, the underscore among them, are words of their own; so are a dot
# and a comma beside anything but a digit, and a dash after a digit.
_APART = (
    (re.compile(r"([ -&(-+:-@/\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def exact_match(said: str, wanted: str) -> float:
    """1.0 if both are the same words; white space between them does not count, nor around them.

    >>> exact_match("x  = 1 ", "x = 1"), exact_match("x=1", "x = 1")
    (1.0, 0.0)
    """
    return float(said.split() == wanted.split())


def edit_similarity(said: str, wanted: str) -> float:
    """How alike two texts are, from 0 to 1: 1 - edits / (length of both together).

    Edits are the characters that are taken out of one or put into the other, as in the `ratio` of
    fuzzywuzzy with python-Levenshtein, which CodeXGLUE scores line completion by. Unlike there,
    nothing is rounded.

    >>> round(edit_similarity("return x", "return xs"), 3)
    0.941
    """
    total = len(said) + len(wanted)
    return 1.0 if not total else 2 * _common(said, wanted) / total


def _common(a: str, b: str) -> int:
    """The length of the longest sequence of characters that both have in this order.

    By the bits of integers of any length (Hyyrö 2004): one pass over the shorter text.
    """
    if len(a) < len(b):
        a, b = b, a
    places: dict[str, int] = {}
    for place, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << place
    every = (1 << len(a)) - 1
    row = every
    for letter in b:
        met = row & places.get(letter, 0)
        row = ((row + met) | (row - met)) & every
    return len(a) - row.bit_count()


def words_of(text: str) -> list[str]:
    """The words of a text as the metric of CodeXGLUE splits them, in lower case.

    >>> words_of("Return the item's index, or -1.")
    ['return', 'the', 'item', "'", 's', 'index', ',', 'or', '-', '1', '.']
    """
    text = f" {' '.join(re.findall(_PART, text.strip().lower()))} "
    for pattern, replacement in _APART:
        text = pattern.sub(replacement, text)
    return text.split()


def smoothed_bleu(said: str, wanted: str) -> float:
    """BLEU-4 of one sentence, from 0 to 100, as CodeXGLUE scores docstrings.

    Counts of sequences of two and more words are one higher, and so are both lengths in the brevity
    penalty. The score of a test set is the mean over its sentences.

    >>> smoothed_bleu("Return the sum.", "Return the sum.")
    100.0
    """
    return 100.0 * _bleu(words_of(said), words_of(wanted))


def _bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    logs = 0.0
    for size in range(1, ORDER + 1):
        offered, known = _sequences(said, size), _sequences(wanted, size)
        right = sum(min(count, known[words]) for words, count in offered.items())
        guessed, added = max(0, len(said) - size + 1), int(size > 1)
        if right + added == 0 or guessed + added == 0:
            return 0.0
        logs += math.log((right + added) / (guessed + added))
    brevity = min(0.0, 1 - (len(wanted) + 1) / (len(said) + 1))
    return math.exp(logs / ORDER + brevity)


def _sequences(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
