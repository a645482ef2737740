"""Text metrics: by definition, by hand, and by sacrebleu where it counts the same."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.evaluation.text.metrics import (
    edit_similarity,
    exact_match,
    smoothed_bleu,
    words_of,
)

TEXTS = st.text(alphabet="ab (.", max_size=20)


def common(a: str, b: str) -> int:
    """The longest common subsequence, by the table of the textbook."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


@given(TEXTS, TEXTS)
def test_edit_similarity_counts_what_both_texts_have_in_order(a: str, b: str) -> None:
    total = len(a) + len(b)
    wanted = 1.0 if not total else 2 * common(a, b) / total
    assert edit_similarity(a, b) == pytest.approx(wanted)
    assert edit_similarity(a, b) == edit_similarity(b, a)


def test_white_space_between_words_does_not_count_in_an_exact_match() -> None:
    assert exact_match("return  x\n", " return x") == 1
    assert exact_match("return x", "returnx") == 0
    assert exact_match("", "x") == 0


def test_words_are_split_as_codexglue_splits_them() -> None:
    found = "gets my _ var ( e . g . 1 . 5 , or a - b ) ."
    assert words_of("Gets my_var (e.g. 1.5, or a-b).") == found.split()


def test_bleu_of_a_sentence_by_hand() -> None:
    # said: return the sum of two  (5 words);  wanted: returns the sum of two numbers . (7 words)
    # right: 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; one more each but the first
    logs = math.log(4 / 5) + math.log(4 / 5) + math.log(3 / 4) + math.log(2 / 3)
    wanted = 100 * math.exp(logs / 4 + (1 - 8 / 6))
    assert smoothed_bleu("return the sum of two", "Returns the sum of two numbers.") == (
        pytest.approx(wanted)
    )


def test_bleu_of_short_and_empty_sentences() -> None:
    assert smoothed_bleu("sum", "Sum") == 100  # sequences that neither has count as found
    assert smoothed_bleu("", "sum") == 0
    assert smoothed_bleu("quite another", "sum") == 0


@given(st.lists(st.sampled_from(["sum", "of", "two", "get"]), min_size=4, max_size=9))
def test_where_nothing_is_smoothed_it_is_the_usual_bleu(words: list[str]) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    said = " ".join(words)
    usual = sacrebleu.sentence_bleu(said, [said], smooth_method="none", tokenize="none").score
    assert smoothed_bleu(said, said) == pytest.approx(usual) == pytest.approx(100)


@given(st.text(alphabet=string.printable, max_size=40))
def test_a_sentence_is_like_itself(text: str) -> None:
    assert edit_similarity(text, text) == 1
    assert smoothed_bleu(text, text) == pytest.approx(100 if words_of(text) else 0)
