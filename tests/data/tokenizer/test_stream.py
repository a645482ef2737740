"""Streamed text is what decoding all ids at once gives, and never ends inside a character."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.data.tokenizer.models import (
    MODELS,
    oracle,
    relaxed,
    spaces,
    texts,
)


@pytest.fixture(params=MODELS)
def tokenizer(request: pytest.FixtureRequest, make: Callable[[str], Tokenizer]) -> Tokenizer:
    return make(request.param)


# Kills: one U+FFFD for a whole bad sequence, half a character emitted, a space dropped too often.
@relaxed
@given(data=st.data())
def test_streamed_text_is_that_of_all_ids_at_once(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ordinary = st.integers(0, tokenizer.vocab_size - 1)
    some = st.one_of(st.integers(0, 258), ordinary, st.sampled_from(spaces(tokenizer.path)))
    utf8 = texts(tokenizer.path).map(lambda text: tokenizer.encode(text, leading_space=False))
    ids = data.draw(st.lists(st.one_of(some.map(lambda i: [i]), utf8), max_size=10).map(flat))
    for continuation, whole in (
        (True, tokenizer.decode_continuation(ids)),
        (False, tokenizer.decode(ids)),
    ):
        stream = tokenizer.stream(continuation=continuation)
        streamed = [*map(stream.push, ids), stream.finish()]
        assert "".join(streamed) == whole
    assert tokenizer.decode(ids) == oracle(tokenizer.path, "parse", True).decode(ids)


def flat(parts: list[list[int]]) -> list[int]:
    return [i for part in parts for i in part]


# Kills: holding a character back after its last byte, or giving it before.
def test_a_character_in_bytes_comes_with_its_last_byte(make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make("small with sentinels")
    stream = tokenizer.stream()
    ids = [3 + byte for byte in "é🙂".encode()]
    assert [stream.push(i) for i in ids] == ["", "é", "", "", "", "🙂"]
    assert stream.push(3 + 0xF0) == ""
    assert stream.finish() == "\ufffd"
