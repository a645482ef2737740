"""Mixtures: the shares asked for, by brute force, at any distance into a run."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.errors import UsageError, UserError
from codecria.data.formats.infill import InfillFormat
from codecria.data.rows.infill_rows import Layout
from codecria.data.rows.mixture import BLOCK_ROWS, PAGE_BLOCKS, Dealer, Mixture
from codecria.data.tokenizer.tokenizer import Tokenizer

weight_lists = st.lists(
    st.one_of(st.integers(1, 1000), st.sampled_from([1e-3, 1e-6])), min_size=1, max_size=6
).map(lambda raw: [w / sum(raw) for w in raw])


@settings(max_examples=40)
@given(weights=weight_lists, seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 30))
def test_after_every_block_each_source_is_within_three_rows_of_its_share(
    weights: list[float], seed: int, blocks: int
) -> None:
    # Kills: rounding that favours one source, a tiny weight that is never served.
    dealer = Dealer(weights, seed)
    for block in range(1, blocks + 1):
        counts = dealer.counts(block)
        rows = block * BLOCK_ROWS
        assert sum(counts) == rows
        assert all(
            later >= earlier
            for earlier, later in zip(dealer.counts(block - 1), counts, strict=True)
        )
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - weight * rows) < 3, f"{count} rows for {weight * rows}"


@settings(max_examples=15)
@given(weights=weight_lists, seed=st.integers(0, 99))
def test_rows_are_numbered_within_each_source_without_gaps(weights: list[float], seed: int) -> None:
    dealer = Dealer(weights, seed)
    seen: Counter[int] = Counter()
    for row in range(2 * BLOCK_ROWS + 100):
        if row % 501 == 0:
            assert dealer.rows_of(row) == tuple(seen[s] for s in range(len(weights)))
        source, k = dealer.locate(row)
        assert k == seen[source], f"row {row} is number {k} of source {source}, not {seen[source]}"
        seen[source] += 1


def test_a_row_can_be_located_far_into_a_run_at_once() -> None:
    weights = [0.85, 0.08, 0.07]
    far = 10**11
    source, k = Dealer(weights, 0).locate(far)
    assert k == pytest.approx(weights[source] * far, rel=1e-4)


def test_pages_meet_without_a_seam() -> None:
    dealer = Dealer([0.5, 0.4999, 1e-4], 3)
    border = PAGE_BLOCKS * BLOCK_ROWS
    counts = list(dealer.rows_of(border - 50))
    for row in range(border - 50, border + 50):
        source, k = dealer.locate(row)
        assert k == counts[source]
        counts[source] += 1
    assert tuple(counts) == dealer.rows_of(border + 50)


def test_the_order_is_drawn_from_the_seed_and_never_changes() -> None:
    # Runs in progress depend on these draws.
    order = [Dealer([0.5, 0.3, 0.2], 7).locate(row)[0] for row in range(20)]
    other = [Dealer([0.5, 0.3, 0.2], 8).locate(row)[0] for row in range(20)]
    assert order == [2, 1, 1, 1, 0, 1, 1, 0, 2, 1, 2, 1, 1, 2, 1, 0, 0, 0, 0, 0]
    assert order != other


def test_unweighted_sources_are_drawn_by_their_tokens(shards: Path, tmp_path: Path) -> None:
    [source] = Mixture.parse([str(shards)]).sources
    assert source.weight == 1.0
    twin = tmp_path / "twin=3"
    twin.symlink_to(shards)
    both = Mixture.parse([str(shards), str(twin)])
    assert [s.weight for s in both.sources] == [0.5, 0.5]
    weighted = Mixture.parse([f"{shards}=3", f"{twin}=1"])
    assert [s.weight for s in weighted.sources] == [0.75, 0.25]
    assert [s.name for s in weighted.sources] == [str(shards), str(twin)]


def test_the_ledger_counts_rows_tokens_and_epochs(shards: Path) -> None:
    mixture = Mixture.parse([str(shards)])
    held = mixture.sources[0].shards.n_tokens
    rows = -(-held // 32)
    [entry] = mixture.ledger(3 * rows, context=32, seed=0)
    assert (entry.requested, entry.achieved, entry.rows) == (1.0, 1.0, 3 * rows)
    assert entry.drawn_tokens == 3 * held
    assert entry.epochs == 3.0


def test_the_ledger_knows_that_infilling_takes_more_rows(shards: Path) -> None:
    mixture = Mixture.parse([str(shards)])
    split = mixture.sources[0].shards
    infill = InfillFormat(scope="context")
    rows = Layout.of(64, infill).rows(split)
    assert rows > -(-split.n_tokens // 64)
    [entry] = mixture.ledger(2 * rows, context=64, seed=0, infill=infill)
    assert entry.drawn_tokens == 2 * split.n_tokens
    assert entry.epochs == 2.0
    [part] = mixture.ledger(rows // 2, context=64, seed=0, infill=infill)
    assert part.epochs == pytest.approx(0.5, abs=0.01)


def test_a_mixture_under_another_tokenizer_keeps_its_shares(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    twin.symlink_to(shards)
    mixture = Mixture.parse([f"{shards}=3", f"{twin}=1"])
    extended = tokenizer.extend(tmp_path / "tokenizer.model")
    seen = mixture.under(extended)
    assert [(s.name, s.weight) for s in seen.sources] == [
        (s.name, s.weight) for s in mixture.sources
    ]
    assert {s.shards.tokenizer_digest for s in seen.sources} == {extended.digest}


def test_sources_that_cannot_be_mixed_are_refused(shards: Path, tmp_path: Path) -> None:
    for arguments, error, message in [
        ([], UsageError, "at least one source"),
        ([f"{shards}=x"], UsageError, "the weight 'x'"),
        ([f"{shards}=0"], UsageError, "is not positive"),
        ([f"{shards}=nan"], UsageError, "is not positive"),
        ([f"{shards}=1", f"{shards}=2"], UsageError, "named twice"),
        ([f"{shards}=1", str(tmp_path)], UsageError, "has no weight and other sources do"),
        ([str(tmp_path / "none")], UserError, "does not exist"),
    ]:
        with pytest.raises(error, match=message):
            Mixture.parse(arguments)
