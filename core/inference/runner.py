"""The seam between the decoding engine and what computes: a model with its key-value cache.

    runner.reserve(2, 100)                            # two rows, each up to 100 positions
    scores = runner.prefill(0, [[1, 7, 3], [1, 9]])   # (2,V): the token after each prompt
    scores = runner.decode(0, [[5], [8]])             # one more token a row: (2,V)
    scores = runner.decode(1, [[4, 4, 6]])            # three more in row 1: (3,V)
    runner.truncate(1, 3)                             # row 1 forgets two of them

Numpy in, numpy out: the engine and its sampling import no torch. `torch_runner.py` implements this
with PyTorch on a CPU or a GPU, `core/native/` with kernels of its own on a CPU.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from codecria.core.model.config import ModelConfig

Scores = npt.NDArray[np.float32]  # (..., V)
Snapshot = npt.NDArray[np.uint8]  # (bytes,) in the runner's own layout


class Runner(Protocol):
    """A model, and a cache whose rows hold one sequence each.

    Scores that a method returns belong to the caller, who may write into them; the next call may
    overwrite them.
    """

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        ...

    @property
    def layout(self) -> str:
        """What decides its snapshots beside the model's files: the kind of runner, its types."""
        ...

    @property
    def tolerance(self) -> float:
        """Most that a score of several tokens at once differs from that of single ones; 0 if never.

        With 0, scores do not depend on what is computed beside a sequence either (`refill.py`).
        Where the two best scores are as close as that, drafts are not trusted (`drawing.py`).
        """
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Positions filled, one number a reserved row; 0 for an empty row."""
        ...

    @property
    def rows(self) -> int:
        """Rows reserved."""
        ...

    @property
    def positions(self) -> int:
        """Positions reserved a row."""
        ...

    def reserve(self, rows: int, positions: int) -> None:
        """Have room for at least so many rows and positions, and keep what the rows hold."""
        ...

    def prefill(self, row: int, prompts: Sequence[Sequence[int]]) -> Scores:
        """Append prompts to the rows from `row` on, each after what its row holds already.

        Args:
            row: of the first prompt.
            prompts: token ids, at least one each; ragged is fine. Neighbours of similar length are
                read fastest.

        Returns:
            (B,V) scores of the token after each prompt.
        """
        ...

    def decode(self, row: int, tokens: Sequence[Sequence[int]]) -> Scores:
        """Append tokens to the rows from `row` on, and score what follows each of them.

        Args:
            row: of the first sequence.
            tokens: one id a sequence, or several (drafts); ragged is fine.

        Returns:
            (N,V) scores after every token: the first sequence's, then the next one's.
        """
        ...

    def truncate(self, row: int, length: int) -> None:
        """Forget the positions of a row from `length` on."""
        ...

    def copy_rows(self, start: int, sources: Sequence[int]) -> None:
        """Make the rows from `start` on continue the sequences of the rows `sources`."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Move these rows to the front, in this order, and empty all others."""
        ...

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """The keys and values of positions start to stop of a row, to `restore` later."""
        ...

    def restore(self, row: int, start: int, snapshot: Snapshot) -> None:
        """Put a snapshot of this runner into a row from position `start` on, and end it there.

        Args:
            row: holds `start` positions or more.
            start: as when the snapshot was taken: keys depend on their positions.
            snapshot: of a row with the same tokens before `start`.
        """
        ...
