"""Batches: the same however far ahead they are made, and errors that reach the reader."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codecria.data.formats.infill import Infiller, InfillFormat
from codecria.data.rows.loader import Infilling, Loader, validation_batches
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.reencode import under
from codecria.data.rows.rows import IGNORE, Counts
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def infilling(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Infilling:
    extended = tokenizer.extend(tmp_path_factory.mktemp("extended") / "tokenizer.model")
    return Infilling(Infiller(extended), InfillFormat(scope="context"))


def loader(shards: Path, **options: Any) -> Loader:
    settings = {
        "context": 24,
        "seed": 3,
        "batch_rows": 4,
        "start": 0,
        "stop": 6,
        "document_mask": True,
    } | options
    mixture = Mixture.parse([str(shards)])
    if settings.get("infilling") is not None:
        mixture = mixture.under(settings["infilling"].infiller.tokenizer)
    return Loader(mixture, **settings)


@pytest.mark.parametrize("infilled", [False, True])
@pytest.mark.parametrize("ahead", [1, 2, 16])
def test_what_comes_out_does_not_depend_on_how_far_ahead_it_is_made(
    ahead: int, infilled: bool, shards: Path, infilling: Infilling
) -> None:
    options = {"infilling": infilling, "context": 48} if infilled else {}
    here = loader(shards, **options)
    with loader(shards, ahead=ahead, **options) as threaded:
        batches = list(threaded)
    assert len(batches) == 6
    for step, batch in enumerate(batches):
        expected = here.batch(step)
        assert np.array_equal(batch.ids, expected.ids)
        assert np.array_equal(batch.targets, expected.targets)
        assert batch.segments == expected.segments
        assert np.array_equal(batch.kinds, expected.kinds)
        assert batch.counts == expected.counts
        assert bool(batch.kinds.any()) == infilled


def test_going_on_from_a_step_gives_the_batches_from_there(shards: Path) -> None:
    with loader(shards) as whole, loader(shards, start=4) as rest:
        late = list(rest)
        for batch, again in zip(list(whole)[4:], late, strict=True):
            assert np.array_equal(batch.ids, again.ids)


def test_parts_of_a_batch_make_it_up(shards: Path, infilling: Infilling) -> None:
    batch = loader(shards, infilling=infilling, context=48).batch(1)
    assert batch.counts is not None
    assert batch.counts.tokens + batch.counts.padding <= batch.ids.size
    assert batch.n_targets == int((batch.targets != IGNORE).sum())
    for rows in (1, 3, 4):
        parts = batch.split(rows)
        assert np.array_equal(np.concatenate([part.ids for part in parts]), batch.ids)
        assert np.array_equal(np.concatenate([part.kinds for part in parts]), batch.kinds)
        assert sum(part.n_targets for part in parts) == batch.n_targets
        assert tuple(s for part in parts for s in part.segments) == batch.segments


def test_leaving_early_ends_the_thread(shards: Path) -> None:
    with loader(shards, stop=10**9, ahead=2) as endless:
        next(iter(endless))
    assert not [t for t in threading.enumerate() if t.name == "loader"]


def test_an_error_in_the_thread_is_raised_where_the_batch_is_asked_for(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ShardSet, start: int, stop: int) -> None:
        raise OSError(5, "the disk went away")

    with loader(shards) as broken:
        monkeypatch.setattr(ShardSet, "tokens", fail)
        with pytest.raises(OSError, match="the disk went away"):
            list(broken)


@pytest.mark.parametrize("rows", [1, 3, 10_000])
def test_validation_takes_the_same_rows_every_time_and_no_token_twice(
    rows: int, shards: Path
) -> None:
    split = ShardSet.open(shards, "validation")
    batches = list(
        validation_batches(split, context=24, rows=rows, batch_rows=2, document_mask=True)
    )
    again = list(validation_batches(split, context=24, rows=rows, batch_rows=2, document_mask=True))
    count = sum(len(batch.ids) for batch in batches)
    assert count == min(rows, -(-split.n_tokens // 24))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(batches, again, strict=True))
    if rows == 10_000:
        assert sum(batch.n_targets for batch in batches) == split.n_tokens - split.n_documents


def test_validation_is_infilled_alike_every_time(shards: Path, infilling: Infilling) -> None:
    split = under(ShardSet.open(shards, "validation"), infilling.infiller.tokenizer)
    told = [
        list(
            validation_batches(
                split,
                context=48,
                rows=10_000,
                batch_rows=4,
                document_mask=True,
                infilling=infilling,
            )
        )
        for _ in range(2)
    ]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(*told, strict=True))
    total = sum((b.counts for b in told[0] if b.counts is not None), start=Counts())
    assert total.tokens == split.n_tokens
    assert total.infilled > 0
