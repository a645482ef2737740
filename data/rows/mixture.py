"""Which source each row of a run comes from: a function of the weights, the seed and the row.

Rows are dealt out in blocks of 1,024, and blocks in pages of 1,024. A page gives each source a
whole number of rows, by largest remainder on what the source is still owed; its blocks share those
out in the same way. So every source is served its share however small, no source is ever more than
three rows from it at a block's border, and a row far into a run is found in a few thousand steps.
The order within a block is drawn from the seed and the block's number.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codecria.data.errors import UsageError
from codecria.data.formats.infill import InfillFormat
from codecria.data.tokenizer.tokenizer import Tokenizer

from .dialog_rows import DialogRows
from .infill_rows import Layout
from .reencode import under
from .shards import ShardSet, set_weights, sets_in

BLOCK_ROWS = 1_024
PAGE_BLOCKS = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One shard set of a mixture.

    Attributes:
        name: as the user named it, its path.
        shards: its training split.
        weight: its share of the rows; a mixture's weights sum to one.
    """

    name: str
    shards: ShardSet
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What a run has drawn from one source.

    Attributes:
        name: of the source.
        requested, achieved: share of the rows.
        rows: drawn.
        drawn_tokens: without padding, to within one row.
        unique_tokens: held by the source.
    """

    name: str
    requested: float
    achieved: float
    rows: int
    drawn_tokens: int
    unique_tokens: int

    @property
    def epochs(self) -> float:
        """How often the source was gone through: drawn over unique (DECISIONS)."""
        return self.drawn_tokens / self.unique_tokens


def deal(given: tuple[int, ...], owed: Sequence[float], rows: int) -> tuple[int, ...]:
    """What each source has given after `rows` more, by largest remainder.

    Args:
        given: rows of each source so far.
        owed: rows each source should have given by then, not whole; they sum to sum(given) + rows.
        rows: to deal out.
    """
    missing = [due - had for due, had in zip(owed, given, strict=True)]
    dealt = [max(0, math.floor(due)) for due in missing]
    # Those owed most beyond their whole rows come first; ties go to the earlier source.
    ranked = sorted(range(len(dealt)), key=lambda s: (dealt[s] - missing[s], s))
    left = rows - sum(dealt)
    if left >= 0:
        for s in ranked[:left]:
            dealt[s] += 1
    else:  # a source that was ahead took nothing, and the others' whole rows are too many
        for s in [s for s in reversed(ranked) if dealt[s]][:-left]:
            dealt[s] -= 1
    return tuple(had + more for had, more in zip(given, dealt, strict=True))


class Dealer:
    """Deals rows to sources: the arithmetic of a mixture, without its data.

    Args:
        weights: one a source, positive, summing to one.
        seed: of the order within blocks.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.weights = tuple(weights)
        self.seed = seed
        self._page = lru_cache(maxsize=4)(self._deal_page)
        self._order = lru_cache(maxsize=8)(self._draw_order)
        self._pages = [(0,) * len(self.weights)]
        self._lock = threading.Lock()

    def locate(self, row: int) -> tuple[int, int]:
        """Where row number `row` of the run comes from.

        Returns:
            (source, k): the source's number, and how many earlier rows came from it.
        """
        block, place = divmod(row, BLOCK_ROWS)
        order, ranks = self._order(block)
        source = int(order[place])
        return source, self.counts(block)[source] + int(ranks[place])

    def counts(self, blocks: int) -> tuple[int, ...]:
        """Rows each source has given once this many blocks are full."""
        page, block = divmod(blocks, PAGE_BLOCKS)
        return self._page(page)[block]

    def rows_of(self, rows: int) -> tuple[int, ...]:
        """Rows each source has given after any number of rows."""
        block, place = divmod(rows, BLOCK_ROWS)
        counts = list(self.counts(block))
        if place:
            order, _ = self._order(block)
            for source in order[:place].tolist():
                counts[source] += 1
        return tuple(counts)

    def _deal_page(self, page: int) -> list[tuple[int, ...]]:
        """The counts before each block of a page, and after its last: PAGE_BLOCKS + 1 entries."""
        rows = PAGE_BLOCKS * BLOCK_ROWS
        with self._lock:
            while len(self._pages) <= page + 1:
                owed = [weight * rows * len(self._pages) for weight in self.weights]
                self._pages.append(deal(self._pages[-1], owed, rows))
            first, last = self._pages[page], self._pages[page + 1]
        given = [b - a for a, b in zip(first, last, strict=True)]
        dealt = [(0,) * len(given)]
        for block in range(1, PAGE_BLOCKS + 1):
            # Exact: whole numbers over a power of two. The last block completes the page's counts.
            dealt.append(deal(dealt[-1], [n * block / PAGE_BLOCKS for n in given], BLOCK_ROWS))
        return [tuple(a + n for a, n in zip(first, counts, strict=True)) for counts in dealt]

    def _draw_order(self, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The block's sources in order, and each row's rank among its source's rows: (1024,)."""
        before, after = self.counts(block), self.counts(block + 1)
        counts = [b - a for a, b in zip(before, after, strict=True)]
        sources = np.repeat(np.arange(len(counts)), counts)
        # Raw draws and a stable sort: numpy may change how `permutation` uses its stream.
        draws = np.random.Philox(key=[self.seed, block]).random_raw(BLOCK_ROWS)
        order = sources[np.argsort(draws, kind="stable")]
        ranks = np.empty(BLOCK_ROWS, dtype=np.int64)
        for source, count in enumerate(counts):
            ranks[order == source] = np.arange(count)
        return order, ranks


@lru_cache(maxsize=4)
def _counting_dealer(weights: tuple[float, ...], seed: int) -> Dealer:
    """The ledger's dealer, kept so that each look at a long run continues from the last."""
    return Dealer(weights, seed)


@lru_cache(maxsize=16)
def _dialog_rows(shards: ShardSet, context: int, seed: int) -> DialogRows:
    """The ledger's rows of dialogs, kept so that an epoch is packed once."""
    return DialogRows(shards, context=context, seed=seed)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several shard sets and their shares.

    Attributes:
        sources: at least one; weights sum to one.
    """

    sources: tuple[Source, ...]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Mixture:
        """Open the sources named as "DIR" or "DIR=WEIGHT".

        Without any weight, sources are drawn in proportion to their tokens. Weights are shares of
        the rows and need not sum to one. A folder of several sets (`prepare-data --group-by`)
        stands for all of them: with the weights it was given there, else by their tokens.

        Raises:
            UsageError: some have a weight and some not, a weight is no positive number, or a
                folder is named twice.
            UserError: a folder is no shard set.
        """
        named = [part for argument in arguments for part in _sets(*split_weight(argument))]
        paths = [str(path) for path, _ in named]
        if not paths:
            raise UsageError("a mixture needs at least one source")
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise UsageError(f"{twice} is named twice", hint="give it once, with its whole weight")
        unweighted = [str(path) for path, weight in named if weight is None]
        if unweighted and len(unweighted) < len(named):
            raise UsageError(
                f"{unweighted[0]} has no weight and other sources do",
                hint="give every source a weight, or none",
            )
        opened = [ShardSet.open(path) for path, _ in named]
        weights = [
            float(shards.n_tokens) if weight is None else weight
            for shards, (_, weight) in zip(opened, named, strict=True)
        ]
        total = math.fsum(weights)
        return cls(
            tuple(
                Source(name=path, shards=shards, weight=weight / total)
                for path, shards, weight in zip(paths, opened, weights, strict=True)
            )
        )

    @classmethod
    def of_dialogs(
        cls,
        dialogs: Sequence[tuple[str, float | None, Path]],
        replay: Sequence[str],
        *,
        share: float,
    ) -> Mixture:
        """Dialogs, and code and text so that what was learnt before is not unlearnt.

        Args:
            dialogs: (name, weight, shard set) of each file; without weights, by their tokens.
            replay: shard folders, "DIR" or "DIR=SHARE" of all rows.
            share: of all rows, for replayed folders without a share of their own.

        Raises:
            UsageError: see `parse`; or replay leaves nothing to the dialogs.
            UserError: a folder is no shard set.
        """
        replayed: tuple[Source, ...] = ()
        if replay:
            replayed = cls.parse(replay).sources
            shares = [weight for _, weight in map(split_weight, replay) if weight is not None]
            share = math.fsum(shares) if shares else share
            if not 0 < share < 1:
                raise UsageError(
                    f"the share of replayed rows is {share:g}, not between 0 and 1",
                    hint="for example --replay code=0.06 --replay text=0.02",
                )
        unweighted = [name for name, weight, _ in dialogs if weight is None]
        if unweighted and len(unweighted) < len(dialogs):
            raise UsageError(
                f"{unweighted[0]} has no weight and other dialogs do",
                hint="give every file a weight, or none",
            )
        opened = [ShardSet.open(folder) for _, _, folder in dialogs]
        weights = [
            float(shards.n_tokens) if weight is None else weight
            for shards, (_, weight, _) in zip(opened, dialogs, strict=True)
        ]
        total, left = math.fsum(weights), 1 - share if replayed else 1.0
        asked = [
            Source(name=name, shards=shards, weight=left * weight / total)
            for (name, _, _), shards, weight in zip(dialogs, opened, weights, strict=True)
        ]
        return cls((*asked, *(replace(s, weight=share * s.weight) for s in replayed)))

    def under(self, tokenizer: Tokenizer) -> Mixture:
        """The mixture as training with this tokenizer sees it, with the same shares.

        Raises:
            UserError: a source was encoded with neither it nor the one that it extends.
        """
        sources = [replace(s, shards=under(s.shards, tokenizer)) for s in self.sources]
        return Mixture(tuple(sources))

    def dealer(self, seed: int) -> Dealer:
        """Who gives which row."""
        return Dealer([source.weight for source in self.sources], seed)

    def ledger(
        self, rows: int, *, context: int, seed: int, infill: InfillFormat | None = None
    ) -> list[LedgerEntry]:
        """What the first `rows` rows of a run draw from each source.

        Args:
            rows: of the run.
            context: tokens of a row.
            seed: of the run.
            infill: how its rows are infilled, if at all.
        """
        entries = []
        layout = Layout.of(context, infill)
        weights = tuple(source.weight for source in self.sources)
        given = _counting_dealer(weights, seed).rows_of(rows)
        for source, count in zip(self.sources, given, strict=True):
            entries.append(
                LedgerEntry(
                    name=source.name,
                    requested=source.weight,
                    achieved=count / rows if rows else 0.0,
                    rows=count,
                    drawn_tokens=_dialog_rows(source.shards, context, seed).drawn(count)
                    if source.shards.dialogs
                    else layout.drawn(source.shards, count),
                    unique_tokens=source.shards.n_tokens,
                )
            )
        return entries


def _sets(folder: Path, weight: float | None) -> list[tuple[Path, float | None]]:
    """A folder's shard sets, with its weight shared out among them."""
    sets, known = sets_in(folder), set_weights(folder)
    if len(sets) == 1:
        return [(path, weight) for path in sets.values()]
    if weight is None and not known:
        return [(path, None) for path in sets.values()]
    shares = known or {name: float(ShardSet.open(path).n_tokens) for name, path in sets.items()}
    total = math.fsum(shares.values())
    scale = total if weight is None else weight
    return [(path, scale * shares[name] / total) for name, path in sets.items()]


def split_weight(argument: str) -> tuple[Path, float | None]:
    """ "PATH=WEIGHT" apart; a path that itself holds "=" is found first.

    Raises:
        UsageError: the weight is no positive number.
    """
    folder, equals, text = argument.rpartition("=")
    if not equals or Path(argument).exists():
        return Path(argument), None
    try:
        weight = float(text)
    except ValueError as error:
        raise UsageError(
            f"the weight {text!r} of {folder} is not a number", hint=f"for example {folder}=0.85"
        ) from error
    if not (weight > 0 and math.isfinite(weight)):
        raise UsageError(f"the weight {text} of {folder} is not positive")
    return Path(folder), weight
