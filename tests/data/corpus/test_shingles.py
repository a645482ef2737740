"""Words and n-grams against Python's own, and the same in any company."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.corpus import shingles

WORD = re.compile(rb"[0-9a-z_\x80-\xff]+")
TEXTS = st.lists(st.text(alphabet="aB1_ \n.é(", max_size=30), max_size=8)


def plain_words(text: str) -> list[bytes]:
    return WORD.findall(text.encode().lower())


@given(TEXTS)
def test_words_are_those_of_a_regular_expression(texts: list[str]) -> None:
    found = shingles.words(shingles.column(texts))
    expected = [plain_words(text) for text in texts]
    assert np.diff(found.offsets).tolist() == [len(words) for words in expected]
    seen: dict[bytes, int] = {}
    flat = [word for words in expected for word in words]
    for word, value in zip(flat, found.hashes.tolist(), strict=True):
        assert seen.setdefault(word, value) == value
    assert len(set(seen.values())) == len(seen)


@given(TEXTS, st.integers(1, 4))
def test_shingles_are_the_runs_of_words(texts: list[str], size: int) -> None:
    found = shingles.shingles(shingles.words(shingles.column(texts)), size)
    seen: dict[tuple[bytes, ...], int] = {}
    for i, text in enumerate(texts):
        words = plain_words(text)
        grams = [tuple(words[k : k + size]) for k in range(max(1, len(words) - size + 1))]
        grams = grams if words else []
        values = found.of(i).tolist()
        assert len(values) == len(grams)
        for gram, value in zip(grams, values, strict=True):
            assert seen.setdefault(gram, value) == value
    assert len(set(seen.values())) == len(seen)


@given(TEXTS, st.integers(1, 4))
def test_without_short_texts_only_full_runs_count(texts: list[str], size: int) -> None:
    found = shingles.words(shingles.column(texts))
    grams = shingles.shingles(found, size, whole_short=False)
    lengths = np.diff(found.offsets)
    assert np.diff(grams.offsets).tolist() == np.maximum(lengths - size + 1, 0).tolist()


def test_a_text_has_the_same_words_in_any_company() -> None:
    window = shingles.WINDOW_BYTES
    texts = [
        "x" * (window - 3) + " tail of it",
        "ab " * window,
        "y" * (3 * window),  # longer than a window
        "a, b" + "z" * (shingles.LONGEST_WORD + 5),  # longer than any word: cut, the same way
        "",
        "end",
    ]
    together = shingles.words(shingles.column(texts))
    for i, text in enumerate(texts):
        alone = shingles.words(shingles.column([text]))
        ours = together.hashes[together.offsets[i] : together.offsets[i + 1]]
        assert np.array_equal(ours, alone.hashes)
    assert np.diff(together.offsets).tolist() == [4, window, 1, 3, 0, 1]


def test_slices_and_large_strings_are_read_as_they_are() -> None:
    texts = ["one two", "three four five", "six"]
    expected = shingles.words(shingles.column(texts[1:]))
    for column in (
        shingles.column(texts)[1:],
        pa.array(texts, pa.large_string())[1:],
    ):
        found = shingles.words(column)
        assert np.array_equal(found.hashes, expected.hashes)
        assert np.array_equal(found.offsets, expected.offsets)


def test_case_space_and_punctuation_make_no_difference() -> None:
    found = shingles.words(shingles.column(["Def F(x):\n\treturn x", "def f ( X ) return  x;"]))
    middle = found.offsets[1]
    assert np.array_equal(found.hashes[:middle], found.hashes[middle:])
