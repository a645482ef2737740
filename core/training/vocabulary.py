"""The vocabulary a stage trains with: whose tokenizer, what it is extended by, which rows are new.

An infilling stage on a model that cannot infill yet extends the model's tokenizer by the infilling
pieces, and its embeddings by as many rows. Shards of the unextended tokenizer serve before and
after (data/rows/reencode.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.data.errors import UserError
from codecria.data.formats.infill import Infiller
from codecria.data.rows.loader import Infilling
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.reencode import under
from codecria.data.rows.rows import keyed
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.model_file import MODEL_NAME
from codecria.data.tokenizer.tokenizer import Tokenizer

from .recipes import OBJECTIVE, Recipe

MATRICES = ("tok_embeddings", "output.weight")  # of the model, a row a piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a stage encodes with.

    Attributes:
        path: the tokenizer.model to publish with the model.
        digest: of its content.
        size: its pieces.
        known_rows: rows of the embeddings that the checkpoint has trained; the others are new.
        tokenizer: the opened one, where it is not just the shards' own.
        content: what to write to `path` before training; None where the file is there.
        infilling: how documents are infilled, if the recipe says so.
    """

    path: Path
    digest: str
    size: int
    known_rows: int
    tokenizer: Tokenizer | None = None
    content: bytes | None = None
    infilling: Infilling | None = None

    @classmethod
    def choose(
        cls, recipe: Recipe, init: Checkpoint | None, mixture: Mixture, out: Path | None
    ) -> Vocabulary:
        """The vocabulary of a stage.

        Args:
            recipe: says whether it infills.
            init: the checkpoint it starts from, if any.
            mixture: the data; its documents agree in their tokenizer, and its dialogs are under the
                checkpoint's.
            out: the run folder, where an extended tokenizer goes; None for a plan alone.

        Raises:
            UserError: the tokenizer cannot be read.
        """
        documents = [s.shards for s in mixture.sources if not s.shards.dialogs]
        dialogs = len(documents) < len(mixture.sources)
        shards = documents[0] if documents else mixture.sources[0].shards
        facts = shards.manifest.tokenizer
        own = init.tokenizer_path if init is not None else None
        wider = init is not None and init.config.vocab_size > facts.vocab_size
        if recipe.infill is None and not (wider and own is not None) and not dialogs:
            rows = facts.vocab_size if init is None else init.config.vocab_size
            path = shards.folder / MODEL_NAME
            return cls(path=path, digest=facts.digest, size=facts.vocab_size, known_rows=rows)
        base = Tokenizer.load(own if own is not None else shards.folder)
        known = base.vocab_size if init is None else init.config.vocab_size
        content: bytes | None
        if recipe.infill is not None and base.infill is None:
            content = base.extension()
            known = min(known, base.vocab_size)  # rows beyond were padding
        else:
            content = base.content
        path = base.path if out is None else out / MODEL_NAME
        tokenizer = Tokenizer(path, content)
        return cls(
            path=path,
            digest=tokenizer.digest,
            size=tokenizer.vocab_size,
            known_rows=known,
            tokenizer=tokenizer,
            content=content if out is not None else None,
            infilling=None
            if recipe.infill is None
            else Infilling(Infiller(tokenizer), recipe.infill),
        )

    def see(self, mixture: Mixture) -> Mixture:
        """The mixture under this vocabulary.

        Raises:
            UserError: a source was encoded with another tokenizer.
        """
        return mixture if self.tokenizer is None else mixture.under(self.tokenizer)

    def see_split(self, split: ShardSet) -> ShardSet:
        """One split under this vocabulary."""
        return split if self.tokenizer is None else under(split, self.tokenizer)


def check_follows(recipe: Recipe, init: Checkpoint | None) -> None:
    """Check that the paper's order of the stages is kept.

    Raises:
        UserError: the stage does not follow the one the checkpoint is from.
    """
    parent = "scratch" if init is None else init.lineage().get("recipe")
    if parent is None or parent in recipe.follows:  # None: made elsewhere, as Llama 2 is
        return
    came = "fresh weights" if init is None else f"{init.folder}, a checkpoint of {parent}"
    allowed = " or ".join(name for name in recipe.follows if name != "scratch")
    raise UserError(
        f"{recipe.name} {recipe.size} starts from a checkpoint of {allowed}, not from {came}",
        hint="pass --any-init to start from it anyway",
    )


def with_objective(recipe: Recipe, init: Checkpoint | None, given: Collection[str]) -> Recipe:
    """The recipe with the checkpoint's own objective, in a stage that keeps it.

    A checkpoint made elsewhere records none: with infilling pieces it is treated as one that was
    trained with infilling as the recipe says, without them as one that was not.

    Args:
        recipe: of the stage.
        init: the checkpoint it starts from, if any.
        given: fields that were set for this run, which stay.
    """
    if not recipe.keep_objective or init is None:
        return recipe
    objective = init.lineage().get("objective")
    if not isinstance(objective, dict):
        path = init.tokenizer_path
        infills = path is not None and Tokenizer.load(path).infill is not None
        objective = {} if infills else {"infill_rate": 0.0}
    return replace(
        recipe, **{k: objective[k] for k in OBJECTIVE if k in objective and k not in given}
    )


AVERAGED = 1 << 22  # numbers that are averaged at once, about


def new_rows(name: str, known: Tensor, count: int, recipe: Recipe) -> Tensor:
    """Rows that an embedding or output matrix gets for new pieces: (count,C) float32.

    They are the mean of the known ones, plus normal noise of `recipe.new_row_noise` of their
    standard deviations, drawn from the recipe's seed.

    Args:
        name: of the matrix, so that no two draw the same noise.
        known: (rows,C) that were trained, of any type.
        count: rows wanted.
        recipe: gives seed and noise.
    """
    draws = torch.Generator().manual_seed(keyed("new rows", recipe.seed, name) >> 1)
    rows = torch.randn(count, known.shape[1], generator=draws)
    # Some columns at a time: nobody holds another copy of the largest matrix.
    width = max(32, AVERAGED // len(known) // 32 * 32)
    for start in range(0, rows.shape[1], width):
        columns = slice(start, start + width)
        own = known[:, columns].to(device="cpu", dtype=torch.float32)
        rows[:, columns].mul_(recipe.new_row_noise * own.std(0)).add_(own.mean(0))
    return rows
