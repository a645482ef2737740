"""Training examples as a person can read them: text with its parts marked, and the ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from codecria.data.formats.infill import Order
from codecria.data.rows.loader import RunRows
from codecria.data.rows.rows import DIALOG, IGNORE
from codecria.data.tokenizer.tokenizer import Tokenizer

from .stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One piece of a training row.

    Attributes:
        row: of the run.
        order: "plain", "PSM", "SPM" or "dialog".
        marked: the text, with [NAME] for each special id; of a dialog, what is learned in « ».
        ids: all of them.
        learned: of a dialog, which of the ids are targets.
    """

    row: int
    order: str
    marked: str
    ids: tuple[int, ...]
    learned: tuple[bool, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """The example as JSON values."""
        found: dict[str, Any] = {
            "row": self.row,
            "order": self.order,
            "marked": self.marked,
            "ids": list(self.ids),
        }
        return found if self.learned is None else found | {"learned": list(self.learned)}


def examples(stage: Stage, count: int) -> Iterator[Example]:
    """The first examples of a run: dialogs where it has them, else infilled documents, else any.

    Args:
        stage: resolved.
        count: how many at most; an epoch of a small source may hold fewer.
    """
    vocabulary, recipe = stage.vocabulary, stage.run.recipe
    tokenizer = vocabulary.tokenizer or Tokenizer.load(vocabulary.path)
    rows = RunRows(
        stage.mixture,
        context=recipe.context,
        seed=recipe.seed,
        infilling=vocabulary.infilling,
        learn=recipe.learn,
    )
    wanted: set[int] = {Order.PLAIN, Order.PSM, Order.SPM}
    if stage.dialogs:
        wanted = {DIALOG}
    elif vocabulary.infilling is not None:
        wanted -= {Order.PLAIN}
    found = 0
    for number in range(recipe.rows * recipe.steps):
        row = rows.row(number)
        at = 0
        for n in row.segments:
            here = slice(at, at + n)
            ids, kind = row.ids[here], int(row.kinds[at])
            padding = at + n == len(row.ids) and not ids.any()
            at += n
            if padding or kind not in wanted:
                continue
            listed = tuple(ids.tolist())
            if kind == DIALOG:
                # The target of a place is the token after it.
                learned = (False, *(row.targets[here][:-1] != IGNORE).tolist())
                marked = mark_dialog(tokenizer, listed, learned)
                yield Example(
                    row=number, order="dialog", marked=marked, ids=listed, learned=learned
                )
            else:
                order = Order(kind)
                name = "plain" if order == Order.PLAIN else order.name
                marked = mark(tokenizer, listed, order)
                yield Example(row=number, order=name, marked=marked, ids=listed)
            found += 1
            if found == count:
                return


def mark_dialog(tokenizer: Tokenizer, ids: Sequence[int], learned: Sequence[bool]) -> str:
    """The text of a dialog, with [BOS] and the like, and what is learned in « »."""
    parts = []
    for said, group in groupby(zip(ids, learned, strict=True), key=itemgetter(1)):
        stretch = tuple(i for i, _ in group)
        # The implied leading space is dropped where a text begins, after BOS.
        text = mark(tokenizer, stretch, Order.PLAIN)
        parts.append(f"«{text}»" if said else text)
    return "".join(parts)


def mark(tokenizer: Tokenizer, ids: Sequence[int], order: Order) -> str:
    """The text of ids, with [BOS], [PRE] and the like for the special ones.

    Each stretch between them is decoded alone; after [PRE], and after [MID] in SPM, whose text
    begins the document, the implied leading space is dropped.
    """
    special, names = tokenizer.infill, {tokenizer.bos_id: "[BOS]", tokenizer.eos_id: "[EOS]"}
    if tokenizer.step_id is not None:
        names[tokenizer.step_id] = "[STEP]"
    opening = {tokenizer.bos_id}
    if special is not None:
        names |= {
            special.prefix: "[PRE]",
            special.suffix: "[SUF]",
            special.middle: "[MID]",
            special.end: "[EOT]",
        }
        opening.add(special.prefix)
        if order == Order.SPM:
            opening.add(special.middle)
    parts: list[str] = []
    stretch: list[int] = []
    before = -1
    for i in (*ids, None):
        if i is not None and i not in names:
            stretch.append(i)
            continue
        if stretch:
            decode = tokenizer.decode if before in opening else tokenizer.decode_continuation
            parts.append(decode(stretch))
            stretch = []
        if i is not None:
            parts.append(names[i])
            before = i
    return "".join(parts)
