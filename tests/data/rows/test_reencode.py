"""Shards under the extended tokenizer: what encoding every document again would have given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.rows.reencode import ReencodedShards, under
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer
from codecria.data.tokenizer.training import train

Writer = Callable[[Path, list[list[int]], Tokenizer], None]
HTML = ["if a <E: b", "x <M> y <SUF", "a <PRE <EOT <MID <SU", "no such text", "a<E", " <e", "<M"]


@pytest.fixture(scope="module")
def html_tokenizer(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One whose vocabulary can build the parts, as Llama 2's can."""
    out = tmp_path_factory.mktemp("html") / "tokenizer.model"
    return train([*corpus[:20], *(["a <b <c = <d"] * 200)], vocab_size=600, out=out)


def oracle(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text, bos=True, eos=True) for text in texts]


documents = st.lists(
    st.lists(st.sampled_from([*HTML, "x = 1\\n", "    return", " "]), max_size=6).map("".join),
    min_size=2,
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=documents, cuts=st.lists(st.integers(0, 10**6), min_size=6, max_size=6))
def test_every_read_is_what_encoding_again_gives(
    texts: list[str],
    cuts: list[int],
    html_tokenizer: Tokenizer,
    shard_writer: Writer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # Kills: an offset or a read that is off by one beside a changed document, a suspect missed.
    folder = tmp_path_factory.mktemp("shards")
    shard_writer(folder, oracle(texts, html_tokenizer), html_tokenizer)
    tokenizer = html_tokenizer.extend(folder / "extended.model")
    split = under(ShardSet.open(folder), tokenizer)
    wanted = oracle(texts[: split.n_documents], tokenizer)
    flat = [i for ids in wanted for i in ids]
    assert split.n_tokens == len(flat)
    assert split.tokens(0, len(flat)).tolist() == flat
    borders = np.cumsum([0, *map(len, wanted)]).tolist()
    assert split.offsets(0, split.n_documents).tolist() == borders
    assert [split.offset(d) for d in range(split.n_documents + 1)] == borders
    assert split.document(split.n_documents - 1).tolist() == wanted[-1]
    for a, b in zip(cuts[::2], cuts[1::2], strict=True):
        start, stop = sorted((a % len(flat), b % (len(flat) + 1)))
        assert split.tokens(start, stop).tolist() == flat[start:stop]
        assert borders[split.document_at(start)] <= start < borders[split.document_at(start) + 1]
        first, last = sorted((a % len(wanted), b % (len(wanted) + 1)))
        assert split.offsets(first, last).tolist() == borders[first : last + 1]


def test_some_documents_do_change(
    html_tokenizer: Tokenizer, shard_writer: Writer, tmp_path: Path
) -> None:
    shard_writer(tmp_path, oracle([*HTML, "the", "last"], html_tokenizer), html_tokenizer)
    tokenizer = html_tokenizer.extend(tmp_path / "extended.model")
    stored = ShardSet.open(tmp_path)
    split = under(stored, tokenizer)
    assert isinstance(split, ReencodedShards)
    assert split.n_tokens < stored.n_tokens
    assert (split.digest, split.tokenizer_digest) != (stored.digest, stored.tokenizer_digest)
    assert split.digest == under(stored, tokenizer).digest


def test_shards_of_the_tokenizer_itself_are_used_as_they_are(
    shards: Path, tokenizer: Tokenizer
) -> None:
    split = ShardSet.open(shards)
    assert under(split, tokenizer) is split


def test_shards_of_any_other_tokenizer_are_refused(
    shards: Path, html_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = html_tokenizer.extend(tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match="another tokenizer than the model's") as caught:
        under(ShardSet.open(shards), other)
    assert f"--tokenizer {other.path}" in caught.value.hint
