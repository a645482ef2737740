"""Positions and attention of batches: no pair that attention allows has a wrong distance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecria.data.formats.infill import Infiller, InfillFormat
from codecria.data.rows.dialog_shards import open_dialogs
from codecria.data.rows.loader import Batch, Infilling, Loader, source_rows, validation_batches
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer

Writer = Callable[[Path, list[list[int]], Tokenizer], None]

few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(
    st.lists(
        st.sampled_from(["x = 1\n", "    return y", "日本語", " ", "a", "def f(x):\n"]), max_size=30
    ).map("".join),
    min_size=2,
    max_size=12,
)


@pytest.fixture(scope="module")
def infiller(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Infiller:
    return Infiller(tokenizer.extend(tmp_path_factory.mktemp("extended") / "tokenizer.model"))


def open_texts(made: list[str], folder: Path, infiller: Infiller, write: Writer) -> ShardSet:
    ids = [infiller.tokenizer.encode(text, bos=True, eos=True) for text in [*made, "held out"]]
    write(folder, ids, infiller.tokenizer)
    return ShardSet.open(folder)


def check_distances(batch: Batch, *, document_mask: bool) -> None:
    """Of every pair that attention allows, the rotary distance is the number of tokens between."""
    B, T = batch.ids.shape
    assert batch.positions.shape == (B, T)
    for b in range(B):
        documents = np.zeros(T, dtype=int)
        if document_mask:
            assert batch.segments is not None
            documents = np.repeat(np.arange(len(batch.segments[b])), batch.segments[b])
        else:
            assert batch.segments is None
        q, k = np.tril_indices(T)
        allowed = documents[q] == documents[k]
        distance = batch.positions[b][q] - batch.positions[b][k]
        wrong = np.flatnonzero(allowed & (distance != q - k))
        assert not len(wrong), (
            f"{len(wrong)} of {allowed.sum()} pairs in row {b}; query {q[wrong[0]]}, key"
            f" {k[wrong[0]]}: distance {distance[wrong[0]]}"
        )
        starts = np.flatnonzero(np.diff(documents, prepend=-1))
        assert (batch.positions[b][starts] == 0).all()


@few
@given(
    made=texts,
    T=st.integers(32, 80),
    document_mask=st.booleans(),
    infilled=st.booleans(),
    scope=st.sampled_from(["document", "context"]),
)
def test_no_pair_of_tokens_that_attention_allows_has_another_distance_than_it_lies_apart(
    made: list[str],
    T: int,
    document_mask: bool,
    infilled: bool,
    scope: str,
    infiller: Infiller,
    shard_writer: Writer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # Kills: positions that restart where attention does not, or that run on where it does.
    split = open_texts(made, tmp_path_factory.mktemp("s"), infiller, shard_writer)
    format = InfillFormat(rate=0.9, scope=scope)  # type: ignore[arg-type]
    infilling = Infilling(infiller, format) if infilled else None
    mixture = Mixture.parse([str(split.folder)])
    with Loader(
        mixture,
        context=T,
        seed=1,
        batch_rows=2,
        start=0,
        stop=2,
        document_mask=document_mask,
        infilling=infilling,
    ) as batches:
        for batch in batches:
            check_distances(batch, document_mask=document_mask)
            for part in batch.split(1):
                check_distances(part, document_mask=document_mask)
    for batch in validation_batches(
        split,
        context=T,
        rows=4,
        batch_rows=2,
        document_mask=document_mask,
        infilling=infilling,
    ):
        check_distances(batch, document_mask=document_mask)


@pytest.mark.parametrize("document_mask", [True, False])
def test_the_distances_of_dialog_rows_are_right_as_well(
    document_mask: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "chats.jsonl"
    records = [{"instruction": f"Add {n}.", "output": "x + " * (n % 7)} for n in range(30)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    made, _ = open_dialogs(file, tokenizer, tmp_path / "made", allow_tags=False, strict=False)
    split = ShardSet.open(made)
    batches = list(
        validation_batches(split, context=128, rows=50, batch_rows=4, document_mask=document_mask)
    )
    assert batches
    several = source_rows(split, context=128, seed=0, infilling=None).nth(0).segments
    assert len(several) > 2, "several dialogs lie in a row"
    for batch in batches:
        check_distances(batch, document_mask=document_mask)
