"""What `adapt` is asked to do, and what follows from it for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from codecria.core.evaluation.repository.spans import TEST_SHARE, check_test_share
from codecria.core.training.request import StageRequest
from codecria.data.errors import UsageError

# Ours, chosen for a repository of some hundred files.
RANK = 16
EPOCHS = 3.0
LEAST_STEPS = 40  # of a repository too small for so many in its epochs
CONTEXT = 2_048  # tokens of a row at most
ROWS = 8  # of a batch: adapters want small ones (LoRA Without Regret)
EVERY = 50  # steps between validations and saves
REHEARSAL_SHARE = 0.1  # of the rows: less than a tenth forgets more, more learns slower


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptRequest:
    """What was asked for.

    Attributes:
        repository: a git clone.
        init: the model to adapt.
        since, split: where its history is cut, see `history.split`.
        rank: of the adapter.
        qlora: the model's own weights are kept in 4 bits.
        epochs: passes over the repository's code.
        steps: of training, instead of epochs.
        rehearsal: a folder of other code to rehearse; None is the running Python's library.
        rehearsal_share: of the rows trained on; 0 rehearses nothing.
        limit: most spans of each kind that are measured.
        test_share: of the repository's spans that lie in test files; 0 leaves these out.
        changes: recipe fields to override.
        seed: of spans and training.
        device, dtype: as in training.
    """

    repository: Path
    init: Path
    since: str | None = None
    split: float | None = None
    rank: int = RANK
    qlora: bool = False
    epochs: float = EPOCHS
    steps: int | None = None
    rehearsal: Path | None = None
    rehearsal_share: float = REHEARSAL_SHARE
    limit: int = 50
    test_share: float = TEST_SHARE
    changes: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def check(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            UsageError: a value makes no sense.
        """
        if self.since is not None and self.split is not None:
            raise UsageError("--since and --split both cut the history", hint="give one of them")
        if not 0 <= self.rehearsal_share < 1:
            raise UsageError(
                f"--rehearsal-share {self.rehearsal_share:g} is not in [0, 1)", hint="use 0.1"
            )
        check_test_share(self.test_share)
        if not 0 < self.epochs < float("inf"):
            raise UsageError(f"--epochs {self.epochs:g} is not positive", hint="use 3")

    def stage(self, out: Path, *, max_context: int, tokens: int) -> StageRequest:
        """The training run that it asks for.

        Args:
            out: the folder of the adaptation.
            max_context: of the model.
            tokens: of the repository's code.
        """
        context = int(self.changes.get("context", min(max_context, CONTEXT)))
        batch = int(self.changes.get("batch_tokens", ROWS * context))
        share = self.rehearsal_share
        wanted = int(self.epochs * tokens / (1 - share))
        data = [f"{out / DATA / 'repo'}={1 - share:g}"]
        if share:
            data.append(f"{out / DATA / 'rehearsal'}={share:g}")
        defaults = {
            "context": context,
            "batch_tokens": batch,
            "infill_scope": "context",  # rows are short beside files
            "seed": self.seed,
        }
        return StageRequest(
            recipe="fim",
            data=data,
            init=self.init,
            lora=self.rank,
            qlora=self.qlora,
            steps=self.steps or max(LEAST_STEPS, -(-wanted // batch)),
            changes=defaults | dict(self.changes),
            device=self.device,
            dtype=self.dtype,
            eval_rows=16,
            eval_every=EVERY,
            save_every=EVERY,
        )


DATA, RUN, RECORD, REPORT = "data", "run", "adapt.json", "report.json"  # in the folder
PROOF, SPANS = "proof.jsonl", "spans.jsonl"
