"""Rows with infilling: nothing lost, nothing cut short, chance as the recipe says, no memory."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecria.data.formats import syntax
from codecria.data.formats.infill import TRIES, Infiller, InfillFormat, Order, Scope
from codecria.data.rows import infill_rows
from codecria.data.rows.infill_rows import RESERVE, InfillRows, Layout
from codecria.data.rows.rows import IGNORE, Counts, Row
from codecria.data.rows.shards import ROUNDTRIP_LOSSY, ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.recomposed import recompose

Writer = Callable[[Path, list[list[int]], Tokenizer], None]
SCOPES: list[Scope] = ["document", "context"]

few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def infiller(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Infiller:
    return Infiller(tokenizer.extend(tmp_path_factory.mktemp("extended") / "tokenizer.model"))


def open_texts(
    texts: list[str], folder: Path, infiller: Infiller, write: Writer
) -> tuple[ShardSet, list[str]]:
    """A shard set of these documents; the last one goes to validation."""
    ids = [infiller.tokenizer.encode(text, bos=True, eos=True) for text in [*texts, "held out"]]
    write(folder, ids, infiller.tokenizer)
    split = ShardSet.open(folder)
    return split, texts[: split.n_documents]


def rows_of(
    split: ShardSet, infiller: Infiller, T: int, scope: Scope, **options: object
) -> InfillRows:
    format = InfillFormat(scope=scope, **options)  # type: ignore[arg-type]
    return InfillRows(split, context=T, seed=5, infiller=infiller, format=format)


def segments(row: Row) -> Iterator[tuple[list[int], list[int], Order]]:
    """Ids, targets and order of each piece, without the padding."""
    assert row.counts is not None
    at, filled = 0, len(row.ids) - row.counts.padding
    for n in row.segments:
        if at < filled:
            part = slice(at, at + n)
            assert len(set(row.kinds[part].tolist())) == 1
            yield row.ids[part].tolist(), row.targets[part].tolist(), Order(int(row.kinds[at]))
        at += n
    assert at == len(row.ids)
    assert (row.targets[filled:] == IGNORE).all()
    assert not row.kinds[filled:].any()


documents = st.lists(
    st.lists(
        st.sampled_from(
            ["x = 1\n", "    return y", "日本語", "🙂", " <PRE>", " ", "a", "def f(x):\n"]
        ),
        max_size=25,
    ).map("".join),
    min_size=2,
    max_size=10,
)


@few
@given(
    texts=documents,
    T=st.integers(32, 90),
    scope=st.sampled_from(SCOPES),
    epoch=st.integers(0, 2),
    eos=st.booleans(),
)
def test_every_stored_token_is_in_one_row_of_an_epoch(
    texts: list[str],
    T: int,
    scope: Scope,
    epoch: int,
    eos: bool,
    infiller: Infiller,
    shard_writer: Writer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # Kills: a token lost at a border or a wrap, a truncated document, a target across documents.
    split, texts = open_texts(texts, tmp_path_factory.mktemp("s"), infiller, shard_writer)
    source = rows_of(split, infiller, T, scope, eos=eos)
    tokenizer = infiller.tokenizer
    whole, total = Counter[str](), Counts()
    plain: Counter[int] = Counter()
    for k in range(epoch * source.rows, (epoch + 1) * source.rows):
        row = source.row(k)
        assert len(row.ids) == len(row.targets) == len(row.kinds) == T == sum(row.segments)
        assert row.counts is not None
        total += row.counts
        for ids, targets, order in segments(row):
            assert targets[:-1] == ids[1:]
            if order == Order.PLAIN:
                plain.update(ids)
                ends = ids[-1] == tokenizer.eos_id
                assert (targets[-1] == IGNORE) == ends
                continue
            assert targets[-1] == IGNORE
            assert ids[-1] == (tokenizer.eos_id if eos else infiller.special.end)
            text = recompose(infiller, ids, order)
            whole[text] += 1
            assert any(text in one for one in texts)
    assert total.tokens == split.n_tokens
    assert total.infilled == sum(whole.values()) == total.psm + total.spm
    assert total.pieces >= total.eligible >= total.infilled
    stored = Counter(split.tokens(0, split.n_tokens).tolist())
    if scope == "document":
        assert not whole - Counter(texts), "only whole documents are infilled, each once"
        for text, times in whole.items():
            for i in tokenizer.encode(text, bos=True, eos=True):
                plain[i] += times
        assert plain == stored
    assert sum(plain.values()) == (
        total.tokens if scope == "document" else total.tokens - total.infilled_tokens
    )


@few
@given(T=st.integers(32, 300), scope=st.sampled_from(SCOPES), k=st.integers(0, 50))
def test_a_row_is_a_function_of_its_number_alone(
    T: int, scope: Scope, k: int, infiller: Infiller, split: ShardSet
) -> None:
    used, fresh = (rows_of(split, infiller, T, scope) for _ in range(2))
    for earlier in (3, 1, k + 5):
        used.row(earlier)
    for one, other in zip(
        dataclasses.astuple(used.row(k)), dataclasses.astuple(fresh.row(k)), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.fixture(scope="module")
def split(
    corpus: list[str],
    infiller: Infiller,
    shard_writer: Writer,
    tmp_path_factory: pytest.TempPathFactory,
) -> ShardSet:
    """Definitions of the project's own sources, each a document: many, and of many lengths."""
    texts = [part for text in corpus for part in text.split("\n\n") if len(part) > 20]
    return open_texts(texts, tmp_path_factory.mktemp("many"), infiller, shard_writer)[0]


def test_no_document_is_cut_alike_in_two_epochs(infiller: Infiller, split: ShardSet) -> None:
    source = rows_of(split, infiller, 512, "document")
    seen = [
        {
            (recompose(infiller, ids, order), tuple(ids))
            for k in range(epoch * source.rows, epoch * source.rows + 20)
            for ids, _, order in segments(source.row(k))
            if order
        }
        for epoch in range(3)
    ]
    assert not (seen[0] & seen[1] | seen[1] & seen[2])


@pytest.mark.parametrize("scope", SCOPES)
def test_the_stream_keeps_to_the_recipes_shares(
    scope: Scope, infiller: Infiller, split: ShardSet
) -> None:
    source = rows_of(split, infiller, 256, scope)
    counts = [source.row(k).counts for k in range(source.rows)]
    total = sum((c for c in counts if c is not None), start=Counts())
    assert total.tokens == split.n_tokens
    deviation = 4 * (0.09 / total.eligible) ** 0.5
    drawn = (total.infilled + total.unfit) / total.eligible
    assert drawn == pytest.approx(0.9, abs=deviation), total
    assert total.psm / total.infilled == pytest.approx(0.5, abs=2 / total.infilled**0.5), total
    assert total.unfit < 0.02 * total.eligible, total
    if scope == "context":
        assert total.eligible_tokens > 0.98 * total.tokens
    else:
        assert total.eligible_tokens < 0.95 * total.tokens


@pytest.mark.parametrize("scope", SCOPES)
def test_what_does_not_fit_is_drawn_again_and_then_stays_plain(
    scope: Scope, infiller: Infiller, split: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kills: a sequence cut to fit, a fallback that is not counted, a draw that is always the same.
    for name, places in [("RESERVE", 4), ("FRONT", 2), ("BACK", 4)]:
        monkeypatch.setattr(infill_rows, name, places)
    source = rows_of(split, infiller, 256, scope)
    total = Counts()
    for k in range(source.rows):
        row = source.row(k)
        assert row.counts is not None
        total += row.counts
        for ids, _, order in segments(row):
            assert not order or ids[-1] == infiller.tokenizer.eos_id
    assert total.tokens == split.n_tokens
    assert total.unfit > 0
    assert total.redrawn >= total.unfit * (TRIES - 1)
    assert total.redrawn > total.unfit * (TRIES - 1), "some fitted only after another draw"
    # Whether and in which order is decided before the cuts: falling back favours neither.
    drawn = (total.infilled + total.unfit) / total.eligible
    assert drawn == pytest.approx(0.9, abs=4 * (0.09 / total.eligible) ** 0.5)


def test_rates_of_none_and_all(infiller: Infiller, split: ShardSet) -> None:
    for rate in (0.0, 1.0):
        source = rows_of(split, infiller, 256, "context", rate=rate)
        counts = source.row(3).counts
        assert counts is not None
        assert counts.infilled == rate * (counts.eligible - counts.unfit)


def test_documents_that_do_not_survive_decoding_stay_as_they_are(
    infiller: Infiller, split: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardSet, "flags", lambda *_: ROUNDTRIP_LOSSY)
    source = rows_of(split, infiller, 256, "context", rate=1.0)
    row = source.row(0)
    assert row.counts is not None
    assert row.counts.lossy > 0
    assert row.counts.eligible == row.counts.infilled == 0
    assert not row.kinds.any()


def test_the_layout_reserves_places_after_documents_and_in_rows(split: ShardSet) -> None:
    plain, paper = Layout.of(128, None), Layout.of(128, InfillFormat())
    small = Layout.of(128, InfillFormat(scope="context"))
    assert (plain.width, paper.width, small.width) == (128, 128, 116)
    assert plain.size(split) == split.n_tokens
    assert paper.size(split) == split.n_tokens + RESERVE * split.n_documents
    for layout in (plain, paper, small):
        assert layout.drawn(split, 3 * layout.rows(split)) == 3 * split.n_tokens
        assert 0 < layout.drawn(split, 1) <= layout.width


def test_syntax_cuts_leave_whole_nodes_for_the_middle_and_count_them(
    infiller: Infiller, shard_writer: Writer, corpus: list[str], tmp_path: Path
) -> None:
    # Kills: nodes of another text, places in bytes, a fall-back that is counted as syntax.
    texts = [*(text[:1500] for text in corpus[:6]), "no code, only words and more words " * 9]
    split, texts = open_texts(texts, tmp_path, infiller, shard_writer)
    rows = rows_of(split, infiller, 4096, "document", rate=1.0, spans="syntax", spm_share=0.0)
    special, decode = infiller.special, infiller.tokenizer.decode_continuation
    counts, middles = Counts(), []
    for k in range(rows.rows):
        row = rows.row(k)
        assert row.counts is not None
        counts += row.counts
        for ids, _, order in segments(row):
            if order == Order.PSM:
                middles.append(decode(ids[ids.index(special.middle) + 1 : ids.index(special.end)]))
    readable = [text for text in texts if len(syntax.spans(text, None))]
    assert 0 < counts.syntax <= len(readable)
    assert counts.infilled > counts.syntax, "words are infilled too, at their characters"
    nodes = {text[a:b] for text in readable for a, b in syntax.spans(text, None).tolist()}
    assert sum(middle in nodes for middle in middles) >= counts.syntax
