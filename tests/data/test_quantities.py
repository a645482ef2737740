"""Counts are read in every form that people write them in, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.errors import UsageError
from codecria.data.quantities import SUFFIXES, parse_count


@given(st.integers(min_value=0, max_value=10**15), st.sampled_from(sorted(SUFFIXES)))
def test_a_count_with_any_suffix_is_that_many(number: int, suffix: str) -> None:
    expected = number * SUFFIXES[suffix]
    assert parse_count(f"{number}{suffix}") == expected
    assert parse_count(f"{number}{suffix.lower()}") == expected
    assert parse_count(f"{number:_}{suffix}") == expected


@given(st.integers(min_value=1, max_value=999), st.integers(min_value=0, max_value=12))
def test_exponents_count_zeros(number: int, zeros: int) -> None:
    assert parse_count(f"{number}e{zeros}") == number * 10**zeros


@pytest.mark.parametrize(
    ("text", "count"),
    [("50M", 50_000_000), ("5e7", 50_000_000), ("7B", 7_000_000_000), ("1.5K", 1500)],
)
def test_the_documented_forms(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "5x", "nan", "inf", "0x10", "1.5", "1e-1", "5 0", "5MM"])
def test_anything_else_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(UsageError, match="is not a"):
        parse_count(text)
