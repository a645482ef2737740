"""Trained tokenizers follow Llama 2's, and depend on the texts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codecria.data.errors import UserError
from codecria.data.tokenizer.training import train
from tests.data.tokenizer.models import (
    corpus,
    parsed,
)


# Kills: a model that depends on the threads; options of Llama 2's model that were forgotten.
def test_training_follows_llama_2_whatever_the_threads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = train(iter(corpus()), vocab_size=700, out=tmp_path / "one.model", threads=1)
    three = train(corpus(), vocab_size=700, out=tmp_path / "three.model", threads=3)
    assert one.digest == three.digest
    assert capfd.readouterr() == ("", "")
    assert (one.vocab_size, one.unk_id, one.bos_id, one.eos_id, one.pad_id) == (700, 0, 1, 2, None)
    assert one.fast_path == "chunks"
    assert one.pieces(one.encode("\n", leading_space=False)) == ["<0x0A>"]
    assert [p for p in one.pieces(one.encode("2026")) if p != "▁"] == list("2026")
    # The word keeps its space, the indentation is joined last.
    assert one.pieces(one.encode("        return", leading_space=False))[-1] == "▁return"
    model = parsed(one.path.read_bytes())
    for spec in ("model_type", "split_digits", "byte_fallback", "allow_whitespace_only_pieces"):
        assert getattr(model.trainer_spec, spec), spec
    assert model.normalizer_spec.add_dummy_prefix
    assert not model.normalizer_spec.remove_extra_whitespaces
    assert not model.normalizer_spec.precompiled_charsmap
    text = corpus()[1] + "\t\0 \u0301 日本語 👍🏽\r\n"
    assert one.decode(one.encode(text)) == text


def test_too_little_text_says_how_large_the_vocabulary_may_be(tmp_path: Path) -> None:
    out = tmp_path / "t.model"
    with pytest.raises(UserError, match="too small for a vocabulary of 50000") as caught:
        train(corpus()[:1], vocab_size=50_000, out=out)
    largest = int("".join(c for c in caught.value.hint if c.isdigit()))
    with pytest.raises(UserError, match="too small for the texts' characters"):
        train(corpus(), vocab_size=100, out=out)
    with pytest.raises(UserError, match="no text"):
        train(["", "\n\0"], vocab_size=300, out=out)
    assert not out.exists()
    assert train(corpus()[:1], vocab_size=largest, out=out).vocab_size == largest


def test_training_survives_hostile_text(tmp_path: Path) -> None:
    hostile = ["\0a\0", "\ud800b", "x" * 100_000, "語" * 9000, *corpus()]
    tokenizer = train(hostile, vocab_size=600, out=tmp_path / "t.model")
    assert tokenizer.decode(tokenizer.encode("\0語")) == "\0語"


def test_an_error_in_the_texts_is_the_callers_own(tmp_path: Path) -> None:
    def texts_of_a_bad_disk() -> Any:
        yield corpus()[0]
        raise UserError("cannot read shard 7")

    with pytest.raises(UserError, match="cannot read shard 7"):
        train(texts_of_a_bad_disk(), vocab_size=300, out=tmp_path / "t.model")
