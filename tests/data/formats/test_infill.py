"""The infilling format: the release's ids, parts that recompose, and choices that are uniform."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.formats.infill import (
    TRIES,
    Draw,
    Infiller,
    InfillFormat,
    KnownLines,
    Order,
    Parts,
)
from codecria.data.tokenizer.model_file import ModelProto
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.recomposed import recompose

# PEERS section 4: the ids that Meta's own code gives, by which others were corrected.
GOLDEN_PREFIX = 'def remove_non_ascii(s: str) -> str:\n    """ '
GOLDEN_SUFFIX = "\n    return result\n"
GOLDEN = """1 32007 822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851 29901
13 1678 9995 29871 32008 13 1678 736 1121 13 32009"""

ORDERS = [Order.PSM, Order.SPM]


@pytest.fixture(scope="session")
def infiller(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Infiller:
    return Infiller(tokenizer.extend(tmp_path_factory.mktemp("extended") / "tokenizer.model"))


@pytest.fixture(scope="session")
def released_shape(
    release_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Infiller:
    folder = tmp_path_factory.mktemp("released-shape")
    return Infiller(release_tokenizer.extend(folder / "tokenizer.model"))


@pytest.fixture(scope="session")
def code_llama(llama_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Infiller:
    folder = tmp_path_factory.mktemp("code-llama")
    return Infiller(llama_tokenizer.extend(folder / "tokenizer.model"))


texts = st.lists(
    st.one_of(
        st.sampled_from(
            ["def f(x):", "\n", "    ", "\t", " return", "<PRE>", " <EOT>", "é", "日本", "🙂"]
        ),
        st.characters(codec="utf-8", exclude_characters="▁"),
    ),
    max_size=30,
).map("".join)


def test_the_golden_prompt_is_the_releases(code_llama: Infiller) -> None:
    ids = code_llama.prompt(GOLDEN_PREFIX, GOLDEN_SUFFIX, Order.PSM)
    assert ids.tolist() == [int(i) for i in GOLDEN.split()]


@cache
def shipped(path: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def released(code_llama: Infiller, prefix: str, suffix: str, *, suffix_first: bool) -> list[int]:
    """The prompt as the release makes it, with its smiley (PAPER section 3)."""
    sp = shipped(code_llama.tokenizer.path)
    behind = sp.encode("☺" + suffix)[2:]
    if suffix_first:
        return [1, 32007, 32008, *behind, 32009, *sp.encode(prefix)]
    return [1, 32007, *sp.encode(prefix), 32008, *behind, 32009]


@settings(max_examples=100)
@given(prefix=texts, suffix=texts)
def test_prompts_are_the_releases_for_text_without_sentinels(
    prefix: str, suffix: str, code_llama: Infiller
) -> None:
    if "<" in prefix + suffix:  # there the release would read sentinels out of text
        prefix, suffix = prefix.replace("<", "("), suffix.replace("<", "(")
    for order in ORDERS:
        expected = released(code_llama, prefix, suffix, suffix_first=order == Order.SPM)
        assert code_llama.prompt(prefix, suffix, order).tolist() == expected


@settings(max_examples=100)
@given(text=texts, one=st.integers(0, 300), other=st.integers(0, 300))
def test_an_example_recomposes_to_the_document_byte_for_byte(
    text: str, one: int, other: int, infiller: Infiller, released_shape: Infiller
) -> None:
    parts = Parts.cut(text, one % (len(text) + 1), other % (len(text) + 1))
    assert parts.text == text
    for each in (infiller, released_shape):
        for order in ORDERS:
            for eos in (True, False):
                ids = each.example(parts, order, eos=eos)
                assert recompose(each, ids.tolist(), order).encode() == text.encode()


@settings(max_examples=100)
@given(text=texts, one=st.integers(0, 300), other=st.integers(0, 300))
def test_a_training_example_begins_as_the_prompt_does(
    text: str, one: int, other: int, released_shape: Infiller
) -> None:
    # Kills: another order of the sentinels, or another treatment of spaces, in only one of them.
    parts = Parts.cut(text, one % (len(text) + 1), other % (len(text) + 1))
    special = released_shape.special
    psm = released_shape.example(parts, Order.PSM).tolist()
    prompt = released_shape.prompt(parts.prefix, parts.suffix, Order.PSM).tolist()
    middle = released_shape.tokenizer.encode(parts.middle, leading_space=False)
    assert psm == [*prompt, *middle, special.end, 2]
    spm = released_shape.example(parts, Order.SPM).tolist()
    joined = released_shape.tokenizer.encode(parts.prefix + parts.middle)
    at = spm.index(special.middle) + 1
    assert spm[:at] == released_shape.prompt("", parts.suffix, Order.SPM).tolist()
    assert spm[at:] == [*joined, special.end, 2]


@settings(max_examples=150)
@given(
    lines=st.lists(texts, max_size=5),
    cuts=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    span=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    starts=st.booleans(),
    ends=st.booleans(),
)
def test_known_lines_give_the_ids_that_encoding_all_of_it_gives(
    lines: list[str],
    cuts: tuple[int, int],
    span: tuple[int, int],
    starts: bool,
    ends: bool,
    infiller: Infiller,
    released_shape: Infiller,
) -> None:
    # Kills: a line counted twice, the first line's implied space, another line's ids at an end.
    document = "\n".join(lines)
    for each in (infiller, released_shape):
        tokenizer = each.tokenizer
        ids = tokenizer.encode_array(document)
        a, b = sorted(n % (len(ids) + 1) for n in span)
        a, b = 0 if starts else a, len(ids) if ends else b
        text = tokenizer.text_of(ids[a:b], continuation=not starts)
        if text is None:
            continue
        known = KnownLines(tokenizer, text, ids[a:b], starts=starts, ends=ends)
        parts = Parts.cut(text, *(n % (len(text) + 1) for n in cuts))
        for order in ORDERS:
            assert each.example(parts, order, lines=known).tolist() == (
                each.example(parts, order).tolist()
            )


def test_spm_never_cuts_a_token_between_prefix_and_middle(code_llama: Infiller) -> None:
    parts = Parts.cut("return value", 3, 6)
    spm = code_llama.example(parts, Order.SPM).tolist()
    assert spm == [1, 32007, 32008, 995, 32009, 736, 32010, 2]  # "return" is one token
    psm = code_llama.example(parts, Order.PSM).tolist()
    assert code_llama.tokenizer.pieces(psm[2:4]) == ["▁ret", "▁<SUF>"]


def test_empty_parts_have_no_ids_of_their_own(released_shape: Infiller) -> None:
    empty = Parts("", "", "")
    assert released_shape.example(empty, Order.PSM).tolist() == [1, 32007, 32008, 32009, 32010, 2]
    assert released_shape.example(empty, Order.SPM).tolist() == [1, 32007, 32008, 32009, 32010, 2]
    assert released_shape.example(empty, Order.PSM, eos=False).tolist()[-1] == 32010


def test_what_is_no_example_is_refused(infiller: Infiller, tokenizer: Tokenizer) -> None:
    for ids in ([], [1], tokenizer.encode("def f():", bos=True, eos=True)):
        with pytest.raises(ValueError, match="no infilling example"):
            recompose(infiller, ids, Order.PSM)
    with pytest.raises(UserError, match="has no infilling pieces"):
        Infiller(tokenizer)


def test_a_tokenizer_that_changes_spaces_is_refused(infiller: Infiller, tmp_path: Path) -> None:
    model = ModelProto.FromString(infiller.tokenizer.path.read_bytes())
    model.normalizer_spec.remove_extra_whitespaces = True  # "a " and "b" would become "ab"
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="normalises text"):
        Infiller(Tokenizer.load(path))


def test_text_of_is_decode(infiller: Infiller, released_shape: Infiller, corpus: list[str]) -> None:
    for each in (infiller, released_shape):
        for text in [*corpus[:5], "", " x", "日本🙂é"]:
            for continuation in (False, True):
                ids = each.tokenizer.encode_array(text, leading_space=not continuation)
                assert each.tokenizer.text_of(ids, continuation=continuation) == text
        cut = each.tokenizer.encode_array("日本𠮷", leading_space=False)[:-1]
        assert each.tokenizer.text_of(cut) is None


def draws(format: InfillFormat, count: int) -> list[Draw]:
    return [Draw.of(format, f"key {n}".encode()) for n in range(count)]


def test_chance_keeps_to_the_papers_shares() -> None:
    # Four standard deviations of 20,000 draws: 0.0085 about 0.9, 0.0142 about 0.5.
    many = draws(InfillFormat(), 20_000)
    assert np.mean([d.chosen for d in many]) == pytest.approx(0.9, abs=0.0085)
    assert np.mean([d.order == Order.SPM for d in many]) == pytest.approx(0.5, abs=0.0142)
    joint = Counter((d.chosen, d.order) for d in many)
    assert joint[True, Order.SPM] / 20_000 == pytest.approx(0.45, abs=0.0142)
    assert not any(d.chosen for d in draws(InfillFormat(rate=0.0), 100))
    assert all(d.chosen for d in draws(InfillFormat(rate=1.0), 100))
    assert {d.order for d in draws(InfillFormat(spm_share=1.0), 100)} == {Order.SPM}


@pytest.mark.parametrize("attempt", [0, 3, TRIES - 1])
def test_each_cut_is_uniform_and_apart_from_the_other(attempt: int) -> None:
    # Chi-squared with 10 degrees of freedom exceeds 35 once in ten thousand times.
    length, count = 10, 22_000
    pairs = [list(d.cuts(length))[attempt] for d in draws(InfillFormat(), count)]
    for side in (0, 1):
        seen = Counter(pair[side] for pair in pairs)
        assert set(seen) == set(range(length + 1))
        expected = count / (length + 1)
        assert sum((n - expected) ** 2 / expected for n in seen.values()) < 35
    same = sum(a == b for a, b in pairs) / count  # an empty middle, once in eleven
    assert same == pytest.approx(1 / 11, abs=0.008)


def test_draws_never_change() -> None:
    # Runs in progress depend on these numbers.
    draw = Draw.of(InfillFormat(), b"key")
    assert (draw.chosen, draw.order, list(draw.cuts(1000))[:2]) == PINNED


PINNED = (True, Order.SPM, [(837, 758), (742, 352)])


def test_a_tokenizer_is_found_extended_from_its_file(infiller: Infiller, tmp_path: Path) -> None:
    copy = tmp_path / "tokenizer.model"
    copy.write_bytes(infiller.tokenizer.path.read_bytes())
    assert Infiller(Tokenizer.load(copy)).special == infiller.special
