"""Training examples as a person can read them: text with its parts marked, and the ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from codecria.data.infill import Order
from codecria.data.loader import RunRows
from codecria.data.tokenizer import Tokenizer

from .stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One piece of a training row.

    Attributes:
        row: of the run.
        order: "plain", "PSM" or "SPM".
        marked: the text, with [NAME] for each special id.
        ids: all of them.
    """

    row: int
    order: str
    marked: str
    ids: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The example as JSON values."""
        return {
            "row": self.row,
            "order": self.order,
            "marked": self.marked,
            "ids": list(self.ids),
        }


def examples(stage: Stage, count: int) -> Iterator[Example]:
    """The first examples of a run: the infilled ones in a stage that infills, else any.

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
    )
    found = 0
    for number in range(recipe.rows * recipe.steps):
        row = rows.row(number)
        at = 0
        for n in row.segments:
            ids, order = row.ids[at : at + n], Order(int(row.kinds[at]))
            padding = at + n == len(row.ids) and not ids.any()
            at += n
            if padding or (vocabulary.infilling is not None and order == Order.PLAIN):
                continue
            name = "plain" if order == Order.PLAIN else order.name
            listed = tuple(ids.tolist())
            yield Example(row=number, order=name, marked=mark(tokenizer, listed, order), ids=listed)
            found += 1
            if found == count:
                return


def mark(tokenizer: Tokenizer, ids: tuple[int, ...], order: Order) -> str:
    """The text of ids, with [BOS], [PRE] and the like for the special ones.

    Each stretch between them is decoded alone; after [PRE], and after [MID] in SPM, whose text
    begins the document, the implied leading space is dropped.
    """
    special, names = tokenizer.infill, {tokenizer.bos_id: "[BOS]", tokenizer.eos_id: "[EOS]"}
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
