"""The infilling pieces: the release's ids, and SentencePiece's rule for what text may yield."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.files import digest_file
from codecria.data.tokenizer.extension import InfillIds
from codecria.data.tokenizer.tokenizer import Tokenizer
from codecria.data.tokenizer.training import train
from tests.data.tokenizer.models import (
    CONTROL,
    LLAMA,
    corpus,
    parsed,
    relaxed,
    spm,
)

# The listing of Code Llama's own vocabulary from id 32000 on, as published (PAPER section 1).
RELEASED = [
    "▁<SU",
    "▁<SUF",
    "▁<PRE",
    "▁<M",
    "▁<MID",
    "▁<E",
    "▁<EOT",
    "▁<PRE>",
    "▁<SUF>",
    "▁<MID>",
    "▁<EOT>",
    "▁<EOT><EOT>",
    "▁<EOT><EOT><EOT>",
    "▁<EOT><EOT><EOT><EOT>",
    "▁<EOT><EOT><EOT><EOT><EOT>",
    "▁<EOT><EOT><EOT><EOT><EOT><EOT>",
]
RELEASED_BYTES = 500_058  # of the released tokenizer.model


def test_llama_2_extended_has_the_released_pieces_and_ids(tmp_path: Path) -> None:
    if not LLAMA.is_file():
        pytest.skip("the Llama 2 tokenizer is not here")
    extended_one = Tokenizer.load(LLAMA).extend(tmp_path / "tokenizer.model")
    assert extended_one.vocab_size == 32_016
    assert extended_one.infill == InfillIds(prefix=32007, suffix=32008, middle=32009, end=32010)
    assert extended_one.pieces(range(32_000, 32_016)) == RELEASED
    assert extended_one.path.stat().st_size == RELEASED_BYTES
    assert extended_one.digest == digest_file(extended_one.path)
    assert extended_one.fast_path == "chunks"


def test_another_vocabulary_is_extended_at_the_same_places(tmp_path: Path) -> None:
    base = train(corpus(), vocab_size=500, out=tmp_path / "base.model")
    assert base.infill is None
    wider = base.extend(tmp_path / "tokenizer.model")
    assert wider.vocab_size == 516
    assert wider.infill == InfillIds(prefix=507, suffix=508, middle=509, end=510)
    assert wider.pieces(range(500)) == base.pieces(range(500))
    with pytest.raises(UserError, match="has the infilling pieces already, from id 507 on"):
        wider.extension()


sentinel_texts = st.lists(
    st.sampled_from([*"<>PRESUFMIDOT a\n", " <", "▁", "<PRE>", " <EOT>"]), max_size=40
).map("".join)


@relaxed
@given(text=sentinel_texts)
def test_the_extended_tokenizer_is_sentencepiece_with_control_sentinels(
    text: str, tmp_path: Path
) -> None:
    # The decided rule: text never yields a sentinel, and the rest is as SentencePiece has it.
    wider = extended_small(tmp_path)
    model = parsed(wider.path.read_bytes())
    for i in range(507, 516):
        model.pieces[i].type = CONTROL
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    ids = wider.encode(text)
    assert ids == oracle.encode(text)
    assert max(ids, default=0) < 507
    assert wider.decode(ids) == text.replace("▁", " ")


def test_parsed_text_reaches_the_sentinels_and_plain_text_never(
    llama_tokenizer: Tokenizer,
) -> None:
    wider = Tokenizer(llama_tokenizer.path, llama_tokenizer.extension())
    text = "<PRE> x <SUF>y <MID>"
    assert wider.encode(text, specials="parse") == [32007, 921, 32008, 29891, 32009]
    assert max(wider.encode(text)) < 32_007
    # Ordinary text may use the parts of the sentinels: shards of Llama 2's tokenizer differ here.
    assert wider.encode("x <EOF") != llama_tokenizer.encode("x <EOF")


@cache
def extended_small(folder: Path) -> Tokenizer:
    return train(corpus(), vocab_size=500, out=folder / "base").extend(folder / "tokenizer.model")


def test_names_that_the_vocabulary_has_already_give_way(tmp_path: Path) -> None:
    # A vocabulary learned from HTML may hold "▁<PRE>" or "▁<M" as ordinary pieces.
    model = parsed(spm())
    model.pieces[400].piece, model.pieces[401].piece = "▁<PRE>", "▁<M"
    path = tmp_path / "html.model"
    path.write_bytes(model.SerializeToString())
    base = Tokenizer.load(path)
    wider = base.extend(tmp_path / "tokenizer.model")
    assert wider.infill == InfillIds(prefix=707, suffix=708, middle=709, end=710)
    assert wider.pieces([400, 401, 703]) == ["<unused ▁<PRE>>", "▁<M", "<unused ▁<M>"]
    for text in ("a <PRE> <M> <MID>", "def f():\n    return <M"):
        assert wider.decode(wider.encode(text)) == text
        assert max(wider.encode(text)) < 707
