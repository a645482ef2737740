"""SentencePiece itself is the oracle: same ids, same text, on many models and any Unicode."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.tokenizer import tokenizer as tokenizer_module
from codecria.data.tokenizer.fast_encode import BLOCK, ChunkEncoder
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.data.tokenizer.models import (
    HARD,
    MODELS,
    corpus,
    oracle,
    parsed,
    relaxed,
    texts,
)


@pytest.fixture(params=MODELS)
def tokenizer(request: pytest.FixtureRequest, make: Callable[[str], Tokenizer]) -> Tokenizer:
    return make(request.param)


# Kills: a cut inside a piece or a user-defined symbol; a cut between unknown characters without
# byte fallback; no dummy prefix (or two); caches that mix the models of "text" and "parse";
# a newline parted from the piece it belongs to; U+2581 taken for another character than a space.
@relaxed
@given(data=st.data())
def test_ids_are_those_of_sentencepiece(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(texts(tokenizer.path))
    for specials in ("text", "parse"):
        for leading_space in (True, False):
            expected = oracle(tokenizer.path, specials, leading_space).encode(text)
            ids = tokenizer.encode(text, specials=specials, leading_space=leading_space)
            assert ids == expected, (tokenizer.fast_path, specials, leading_space)


# Kills: what chance may miss, such as a newline parted from what a piece joins behind it.
def test_every_hard_text_has_sentencepieces_ids(tokenizer: Tokenizer) -> None:
    for text in [*HARD, *(f"a{text}b" for text in HARD), *(text * 40 for text in HARD)]:
        assert tokenizer.encode(text) == oracle(tokenizer.path, "text", True).encode(text)


# Kills: normalisation or a leading space forgotten, or done twice, before chunks are cached.
def test_the_first_texts_have_sentencepieces_ids(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "FIRST_CHARACTERS", 2 * sum(map(len, HARD)))
    fresh = Tokenizer.load(tokenizer.path)
    for text in HARD * 2:  # the second half is encoded as all later texts are
        for specials, leading_space in (("text", True), ("text", False), ("parse", True)):
            expected = oracle(tokenizer.path, specials, leading_space).encode(text)
            found = fresh.encode(text, specials=specials, leading_space=leading_space)  # type: ignore[arg-type]
            assert found == expected, (text, specials, leading_space)


# Kills: a table of bytes where decoding looks at neighbours; an implied space forgotten.
@relaxed
@given(data=st.data())
def test_surviving_is_what_decoding_says(tokenizer: Tokenizer, data: st.DataObject) -> None:
    for text in (data.draw(texts(tokenizer.path)), *HARD):
        ids = tokenizer.encode_array(text)
        assert tokenizer.survives(text, ids) == (tokenizer.decode(ids.tolist()) == text)


# Kills: framing at the wrong end, or inside the cached chunks.
@relaxed
@given(data=st.data(), bos=st.booleans(), eos=st.booleans())
def test_bos_and_eos_frame_the_ids(
    make: Callable[[str], Tokenizer], data: st.DataObject, bos: bool, eos: bool
) -> None:
    tokenizer = make("small with sentinels")
    text = data.draw(texts(tokenizer.path))
    array = tokenizer.encode_array(text, bos=bos, eos=eos)
    plain = oracle(tokenizer.path, "text", True).encode(text)
    assert array.tolist() == [1] * bos + plain + [2] * eos
    assert array.dtype == np.int32
    assert array.flags.writeable


# Kills: retyping that misses a sentinel; retyping where the file's own rule is asked for.
def test_a_sentinel_typed_by_a_user_stays_text(make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make("code llama")
    assert tokenizer.infill is not None
    infill = tokenizer.infill
    assert (infill.prefix, infill.suffix, infill.middle, infill.end) == (32007, 32008, 32009, 32010)
    assert tokenizer.step_id == 32015
    typed = "a <PRE> b <SUF> c <MID> d <EOT> e <EOT><EOT> f<step>g"
    assert not set(tokenizer.encode(typed)) & set(range(32007, 32016))
    assert {32007, 32010} <= set(tokenizer.encode("x <PRE> y <EOT>", specials="parse"))
    assert tokenizer.decode(tokenizer.encode(typed)) == typed


@pytest.mark.parametrize("name", MODELS)
def test_the_fast_path_says_which_it_is(make: Callable[[str], Tokenizer], name: str) -> None:
    expected = {
        "nmt_nfkc": "normalised, then chunks",
        "nfkc_cf, spaces kept": "normalised, then chunks",
        "white space as suffix": "normalised, then chunks",
        "unigram": "off: the model is not BPE",
        "characters": "off: the model is not BPE",
    }
    assert make(name).fast_path == expected.get(name, "chunks")


# Kills: ids of a real file that depend on where lines, words or blocks are cut.
def test_whole_files_and_their_repetitions_have_sentencepieces_ids(tokenizer: Tokenizer) -> None:
    shipped = oracle(tokenizer.path, "parse", True)
    for text in [*corpus(), corpus()[0], corpus()[0].replace("\n", "\r\n")]:
        assert tokenizer.encode(text, specials="parse") == shipped.encode(text)


# Kills: a seam at a block's border, a cache of endless keys, work that grows with the square.
@pytest.mark.parametrize("unit", ["a", " ", "\n", "語", "é🙂 ", "x = 1\n    "])
def test_one_endless_line_is_exact(make: Callable[[str], Tokenizer], unit: str) -> None:
    tokenizer = make("small with sentinels")
    text = unit * ((BLOCK + 50_000) // len(unit))
    assert tokenizer.encode(text) == oracle(tokenizer.path, "text", True).encode(text)


def test_random_unicode_longer_than_a_block_is_exact(make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make("no byte fallback")
    rng = random.Random(1)
    alphabet = [chr(c) for c in (*range(32, 127), *range(0x430, 0x450), *range(0x4E00, 0x4E40))]
    text = "".join(rng.choices(alphabet, k=BLOCK + 5000))
    assert tokenizer.encode(text) == oracle(tokenizer.path, "text", True).encode(text)


# Kills: a cut between unknown characters in a long word, where each part would get its own id.
@pytest.mark.parametrize("name", ["no byte fallback", "pieces cross spaces, no fallback"])
@pytest.mark.parametrize(
    "text", ["☃" * 100, "x" + "☃♞" * 60 + "y", ("☃語" * 9 + " ") * 9, "ab☃" * 40]
)
def test_neighbouring_unknown_characters_are_one_id_however_long(
    make: Callable[[str], Tokenizer], name: str, text: str
) -> None:
    tokenizer = make(name)
    assert tokenizer.encode(text) == oracle(tokenizer.path, "text", True).encode(text)


# Kills: a cache that grows without bound, or loses ids when it starts anew.
def test_a_full_cache_starts_anew_and_stays_exact(make: Callable[[str], Tokenizer]) -> None:
    model = parsed(make("no dummy prefix").path.read_bytes())
    sp = oracle(make("no dummy prefix").path, "parse", False)
    encoder = ChunkEncoder(model, sp.encode, lines_bytes=20_000, words_bytes=5_000)
    for text in corpus() * 2:
        assert np.frombuffer(encoder.encode(text), dtype=np.int32).tolist() == sp.encode(text)
        assert encoder.held_bytes <= 25_000


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff c", "x" * 500 + "\udcff"])
def test_a_lone_surrogate_is_an_error_that_names_it(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(UserError, match="lone surrogate U\\+D"):
        tokenizer.encode(text)


def test_an_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode("", leading_space=False) == []
    assert tokenizer.decode([]) == ""


@relaxed
@given(data=st.data())
def test_continuation_undoes_encoding_without_the_leading_space(
    make: Callable[[str], Tokenizer], data: st.DataObject
) -> None:
    tokenizer = make("small with sentinels")
    text = data.draw(texts(tokenizer.path)).replace("▁", "")
    assert tokenizer.decode_continuation(tokenizer.encode(text, leading_space=False)) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_id_of_another_vocabulary_is_an_error(make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make("no dummy prefix")
    for bad in (tokenizer.vocab_size, -1):
        for act in (tokenizer.decode, tokenizer.decode_continuation, tokenizer.pieces):
            with pytest.raises(UserError, match=f"id {bad} is outside"):
                act([5, bad])
        with pytest.raises(UserError, match=f"id {bad} is outside"):
            tokenizer.stream().push(bad)


def test_numpy_ids_are_decoded(make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make("no dummy prefix")
    ids = tokenizer.encode_array("def f():")
    assert tokenizer.decode(ids) == "def f():"  # type: ignore[arg-type]


def test_threads_share_a_tokenizer(make: Callable[[str], Tokenizer]) -> None:
    path = make("user-defined symbols").path
    tokenizer = Tokenizer.load(path)
    expected = [oracle(path, "text", True).encode(text) for text in corpus()]
    with ThreadPoolExecutor(8) as pool:
        for ids, wanted in zip(pool.map(tokenizer.encode, corpus() * 8), expected * 8, strict=True):
            assert ids == wanted


def test_a_pickled_tokenizer_is_small_and_the_same(
    make: Callable[[str], Tokenizer], tmp_path: Path
) -> None:
    copy = tmp_path / "tokenizer.model"
    copy.write_bytes(make("small with sentinels").path.read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.encode(corpus()[0])
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).encode("def f(x):") == tokenizer.encode("def f(x):")
    copy.write_bytes(make("no dummy prefix").path.read_bytes())
    with pytest.raises(UserError, match="was changed"):
        pickle.loads(pickled)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x05ab"])
def test_a_damaged_model_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        Tokenizer.load(tmp_path)
