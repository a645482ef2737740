"""What a run starts from: fresh weights of a size, or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.model.config import MODELS

from .recipes import LCFT, LCFT_PYTHON, PYTHON


@dataclass(frozen=True, slots=True)
class Known:
    """The digest of a checkpoint that has been read.

    Attributes:
        stamp: what it had then, see `Checkpoint.stamp`.
        digest: of its weights.
    """

    stamp: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class FromScratch:
    """Fresh weights.

    Attributes:
        size: the model size.
    """

    size: str

    checkpoint = None

    def recipe_name(self, verb: str) -> str:
        """The recipe that a verb means for it."""
        return verb

    def digest(self, known: Known | None) -> str:  # noqa: ARG002
        """Fresh weights follow from the seed: there is nothing to record."""
        return ""

    def stamp(self) -> dict[str, Any]:
        """What stays while the digest does: nothing is read."""
        return {}

    def ancestors(self) -> tuple[dict[str, Any], ...]:
        """The stages before, newest first: none."""
        return ()


@dataclass(frozen=True, slots=True)
class FromCheckpoint:
    """The weights of a checkpoint.

    Attributes:
        checkpoint: opened.
    """

    checkpoint: Checkpoint

    @property
    def size(self) -> str:
        """The preset whose recipes apply: of the same shape, else of the nearest size."""
        config = self.checkpoint.config
        shape = (config.dim, config.n_layers, config.n_heads)
        for size, known in MODELS.items():
            if (known.dim, known.n_layers, known.n_heads) == shape:
                return size
        return min(MODELS, key=lambda size: abs(MODELS[size].parameters - config.parameters))

    def recipe_name(self, verb: str) -> str:
        """The recipe that a verb means for it: Python models have a long-context one apart."""
        python = self.checkpoint.lineage().get("recipe") == PYTHON.name
        return LCFT_PYTHON.name if verb == LCFT.name and python else verb

    def digest(self, known: Known | None) -> str:
        """The digest of its weights; reads them all, unless it is known.

        Args:
            known: from the run's earlier start, or from the main process.
        """
        if known is not None and known.stamp == self.stamp():
            return known.digest
        return self.checkpoint.digest()

    def stamp(self) -> dict[str, Any]:
        """What stays while the digest does, see `Checkpoint.stamp`."""
        return self.checkpoint.stamp()

    def ancestors(self) -> tuple[dict[str, Any], ...]:
        """The stages before, newest first: the checkpoint's own, then those it records."""
        lineage = self.checkpoint.lineage()
        if not lineage:
            return ()
        own = {key: value for key, value in lineage.items() if key != "ancestors"}
        return (own, *lineage.get("ancestors", ()))


Start = FromScratch | FromCheckpoint


def open_start(size: str | None, init: Path | None) -> Start:
    """Open what a run starts from.

    Args:
        size: of fresh weights, or None.
        init: a checkpoint or run folder, or None; exactly one of both is given.

    Raises:
        UserError: the checkpoint cannot be opened.
    """
    if init is not None:
        return FromCheckpoint(Checkpoint.open(init))
    assert size is not None, "a request names a size or a checkpoint (`check_inputs`)"
    return FromScratch(size)
