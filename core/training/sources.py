"""The data of a run, opened: shard sets, or dialogs with code and text replayed beside them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.data.corpus.decontaminate import build
from codecria.data.errors import UsageError, UserError
from codecria.data.rows.dialog_rows import DialogRows
from codecria.data.rows.dialog_shards import DialogReport, open_dialogs
from codecria.data.rows.mixture import Mixture, split_weight
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer

from .recipes import Recipe
from .request import StageRequest

_DOCUMENTS = 1 << 20  # looked at together


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run draws from.

    Attributes:
        mixture: the shard sets and their shares.
        dialogs: what the files of dialogs held, in a stage that has them.
    """

    mixture: Mixture
    dialogs: tuple[DialogReport, ...] = ()

    def in_order_of(self, digests: Sequence[str]) -> Sources:
        """The same sources in a recorded order, where they are the same data.

        Rows are dealt to sources by their place, so a resumed run keeps its order, whatever the
        order and the names of the folders are now.
        """
        by_digest = {source.shards.digest: source for source in self.mixture.sources}
        if len(by_digest) < len(digests) or sorted(by_digest) != sorted(digests):
            return self
        mixture = replace(self.mixture, sources=tuple(by_digest[digest] for digest in digests))
        return replace(self, mixture=mixture)


def open_sources(
    request: StageRequest, recipe: Recipe, init: Checkpoint | None, folder: Path | None
) -> Sources:
    """Open the data that a request names.

    Args:
        request: names it.
        recipe: of the stage.
        init: the checkpoint that dialogs are encoded for.
        folder: where encoded dialogs are kept; None encodes them for this process alone.

    Raises:
        UserError: data cannot be read, or its sources were encoded with different tokenizers.
        UsageError: weights do not go together.
    """
    if request.instructs:
        assert init is not None, "a request to instruct names a checkpoint (`check_inputs`)"
        sources = _dialogs(request, recipe, init, folder or Path(_scratch().name))
    else:
        sources = Sources(Mixture.parse(request.data))
    _check_one_tokenizer(sources.mixture)
    return sources


def _dialogs(request: StageRequest, recipe: Recipe, init: Checkpoint, folder: Path) -> Sources:
    """The mixture of instruction tuning, and what its files of dialogs held."""
    if init.tokenizer_path is None:
        raise UserError(
            f"{init.folder} has no tokenizer.model",
            hint="copy the one the model was trained with into that folder",
        )
    tokenizer = Tokenizer.load(init.tokenizer_path)
    problems = build(list(request.decontaminate)) if request.decontaminate else None
    named, reports = [], []
    for argument in request.dialogs:
        path, weight = split_weight(argument)
        made, report = open_dialogs(
            path,
            tokenizer,
            folder,
            allow_tags=request.allow_tags,
            strict=request.strict,
            problems=problems,
        )
        named.append((str(path), weight, made))
        reports.append(report)
    if len({name for name, _, _ in named}) < len(named):
        raise UsageError("a file of dialogs is named twice", hint="give it once, with its weight")
    mixture = Mixture.of_dialogs(named, request.replay, share=recipe.replay)
    return Sources(mixture, tuple(reports))


@lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Where dialogs are encoded for a plan, which has no run folder; gone with the process."""
    return tempfile.TemporaryDirectory(prefix="codecria-")


def _check_one_tokenizer(mixture: Mixture) -> None:
    digests = {
        source.name: source.shards.tokenizer_digest
        for source in mixture.sources
        if not source.shards.dialogs  # encoded with the checkpoint's own
    }
    if len(set(digests.values())) > 1:
        raise UserError(
            "the sources were encoded with different tokenizers: "
            + ", ".join(f"{name} ({digest[:8]})" for name, digest in digests.items()),
            hint="prepare them again with one --tokenizer",
        )


def too_long(mixture: Mixture, recipe: Recipe) -> int:
    """Dialogs that no row holds.

    Raises:
        UserError: that is all of a file's.
    """
    count = 0
    for source in mixture.sources:
        if source.shards.dialogs:
            rows = DialogRows(source.shards, context=recipe.context, seed=recipe.seed)
            if not len(rows.fitting):
                raise UserError(
                    f"{source.name}: no dialog fits a context of {recipe.context} tokens",
                    hint="pass --set context=N, up to what the model was trained on",
                )
            count += rows.too_long
    return count


def tokens_of_epochs(mixture: Mixture, recipe: Recipe, epochs: float) -> int:
    """The tokens of a run that goes through the dialogs so often, replayed rows included."""
    rows, share = 0, 0.0
    for source in mixture.sources:
        if source.shards.dialogs:
            rows += DialogRows(source.shards, context=recipe.context, seed=recipe.seed).rows
            share += source.weight
    return max(recipe.batch_tokens, math.ceil(epochs * rows / share) * recipe.context)


def share_beyond(shards: ShardSet, beyond: int, context: int) -> float:
    """The share of a set's tokens that see more than `beyond` tokens of their own document.

    Args:
        shards: the set.
        beyond: tokens.
        context: of a row, which no token sees further than.
    """
    reaching = 0
    for first in range(0, shards.n_documents, _DOCUMENTS):
        last = min(first + _DOCUMENTS, shards.n_documents)
        lengths = np.diff(shards.offsets(first, last))
        rows, rest = lengths // context, lengths % context
        reaching += int((rows * max(context - beyond, 0) + np.maximum(rest - beyond, 0)).sum())
    return reaching / shards.n_tokens
