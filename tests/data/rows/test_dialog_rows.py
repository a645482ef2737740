"""Rows of whole dialogs: each once an epoch, none cut, targets where the model is to speak."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.rows.dialog_rows import DialogRows, pack
from codecria.data.rows.dialog_shards import open_dialogs
from codecria.data.rows.loader import validation_batches
from codecria.data.rows.rows import DIALOG, IGNORE
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer

T = 96


@pytest.fixture(scope="module")
def dialogs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("dialogs")
    file = folder / "chats.jsonl"
    records = [
        {"instruction": f"Add {n}.", "output": "x + " * (n % 7) + str(n)} for n in range(60)
    ] + [{"instruction": "Too long.", "output": "word " * 200}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    made, _ = open_dialogs(file, tokenizer, folder / "made", allow_tags=False, strict=True)
    return ShardSet.open(made)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300), context=st.integers(40, 200))
def test_packing_places_every_dialog_once_and_none_beyond_the_row(
    lengths: list[int], context: int
) -> None:
    # Kills: a dialog lost where a row is closed, a border off by one.
    sizes = np.array(lengths)
    order = np.random.default_rng(len(lengths)).permutation(len(lengths))
    packing = pack(order, sizes, context)
    assert sorted(packing.dialogs.tolist()) == list(range(len(lengths)))
    rows = np.diff(packing.tokens)
    assert rows.sum() == sizes.sum()
    assert 0 < rows.min() <= rows.max() <= context
    for number, (a, b) in enumerate(zip(packing.borders, packing.borders[1:], strict=False)):
        assert sizes[packing.dialogs[a:b]].sum() == rows[number]


def test_packing_leaves_little_of_the_rows_empty() -> None:
    sizes = np.random.default_rng(0).integers(20, 1_500, 20_000)
    packing = pack(np.arange(len(sizes)), sizes, 4_096)
    assert sizes.sum() / (packing.rows * 4_096) > 0.985


def test_an_epoch_holds_every_dialog_that_fits_once(dialogs: ShardSet) -> None:
    rows = DialogRows(dialogs, context=T, seed=1)
    fitting = {tuple(dialogs.document(d).tolist()) for d in rows.fitting}
    assert rows.too_long == dialogs.n_documents - len(fitting) == 1
    orders = []
    k = 0
    for _ in range(3):
        seen = []
        while len(seen) < len(fitting):
            row = rows.row(k)
            at = 0
            for n in row.segments:
                piece = tuple(row.ids[at : at + n].tolist())
                at += n
                if any(piece):
                    seen.append(piece)
            k += 1
        assert set(seen) == fitting
        assert len(seen) == len(fitting)
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2], "each epoch has an order of its own"


def test_a_row_is_a_function_of_its_number(dialogs: ShardSet) -> None:
    forward = DialogRows(dialogs, context=T, seed=1)
    first = [forward.row(k) for k in range(40)]
    fresh = DialogRows(dialogs, context=T, seed=1)
    for k in (39, 0, 17, 5):
        assert (fresh.row(k).ids == first[k].ids).all()
    other = DialogRows(dialogs, context=T, seed=2)
    assert any((other.row(k).ids != first[k].ids).any() for k in range(5))


def test_targets_are_what_the_model_is_to_say(dialogs: ShardSet) -> None:
    # Kills: a mask shifted by one, a target from one dialog into the next.
    rows = DialogRows(dialogs, context=T, seed=0)
    for k in range(12):
        row = rows.row(k)
        at = 0
        for n in row.segments:
            ids, targets = row.ids[at : at + n], row.targets[at : at + n]
            at += n
            if not ids.any():
                assert (targets == IGNORE).all()
                continue
            assert (row.kinds[at - n : at] == DIALOG).all()
            d = next(d for d in rows.fitting if np.array_equal(dialogs.document(d), ids))
            said = dialogs.learned(dialogs.offset(d), dialogs.offset(d + 1))
            assert targets[-1] == IGNORE
            assert (targets[:-1] == np.where(said[1:], ids[1:], IGNORE)).all()
            assert said.any(), "an answer to learn"
            assert not said.all(), "a question that is not learned"


def test_all_tokens_but_bos_are_targets_where_that_is_asked_for(dialogs: ShardSet) -> None:
    row = DialogRows(dialogs, context=T, seed=0, learn="all").row(0)
    n = row.segments[0]
    assert (row.targets[: n - 1] == row.ids[1:n]).all()
    assert row.targets[n - 1] == IGNORE


def test_the_ledger_counts_the_tokens_of_the_rows(dialogs: ShardSet) -> None:
    rows = DialogRows(dialogs, context=T, seed=3)
    counted = 0
    for k in range(70):
        assert rows.drawn(k) == counted
        row = rows.row(k)
        counted += int((row.kinds == DIALOG).sum())


def test_validation_reads_every_dialog_in_the_same_rows(dialogs: ShardSet) -> None:
    batches = list(
        validation_batches(dialogs, context=T, rows=10_000, batch_rows=4, document_mask=True)
    )
    again = list(
        validation_batches(dialogs, context=T, rows=10_000, batch_rows=4, document_mask=True)
    )
    assert sum(int((b.kinds == DIALOG).sum()) for b in batches) == int(
        DialogRows(dialogs, context=T, seed=0).lengths.clip(max=10**9).sum()
    ) - max(dialogs.length(d) for d in range(dialogs.n_documents))
    assert all((a.ids == b.ids).all() for a, b in zip(batches, again, strict=True))


def test_a_context_that_holds_no_dialog_has_no_rows(dialogs: ShardSet, tmp_path: Path) -> None:
    rows = DialogRows(dialogs, context=4, seed=0)
    assert rows.rows == 0
    assert not list(
        validation_batches(dialogs, context=4, rows=8, batch_rows=4, document_mask=True)
    )
