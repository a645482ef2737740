"""What an adaptation will take, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.training.overrides import requested
from codecria.core.training.plan import Plan, SourcePlan, make_plan
from codecria.core.training.planner import probed_rate
from codecria.core.training.settle import settle
from codecria.core.training.start import FromCheckpoint
from codecria.data.errors import UserError
from codecria.data.tokenizer.extension import INFILL_EXTENSION
from codecria.data.tokenizer.tokenizer import Tokenizer

from .material import Material
from .request import AdaptRequest

ANSWER_TOKENS = 24  # of a span, typically
# A guess of what one token of a completion costs: all weights are read once.
BYTES_PER_S = 1e10


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptPlan:
    """The cost of an adaptation.

    Attributes:
        training: of the training run.
        tokens: of the repository's code.
        spans: measured, before and after, rehearsal included.
        measuring_s: seconds that takes, roughly, the repository's own tests apart.
        commits: whose tests may be run.
    """

    training: Plan
    tokens: int
    spans: int
    measuring_s: float
    commits: int

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "training": self.training.as_json(),
            "repository_tokens": self.tokens,
            "spans": self.spans,
            "measuring_seconds": self.measuring_s,
            "commits": self.commits,
        }


def plan(request: AdaptRequest, material: Material, out: Path) -> AdaptPlan:
    """Plan an adaptation.

    Args:
        request: what was asked for.
        material: found for it.
        out: its folder.

    Raises:
        UserError: the checkpoint cannot be opened, or has no tokenizer.
        UsageError: the options do not go together.
    """
    checkpoint = Checkpoint.open(request.init)
    if checkpoint.tokenizer_path is None:
        raise UserError(f"{checkpoint.folder} has no tokenizer.model")
    tokenizer = Tokenizer.load(checkpoint.tokenizer_path)
    tokens = sum(len(tokenizer.encode_array(text)) + 2 for _, text in material.code)
    stage = request.stage(out, max_context=checkpoint.config.max_context, tokens=tokens)
    start = FromCheckpoint(checkpoint)
    recipe = requested(
        stage.recipe, start.size, stage.overrides, tokens=stage.tokens, steps=stage.steps
    )
    grown = 0 if tokenizer.infill is not None else len(INFILL_EXTENSION)
    model = replace(
        checkpoint.config,
        vocab_size=max(checkpoint.config.vocab_size, tokenizer.vocab_size + grown),
    )
    settings = settle(stage, recipe, model, before={})
    rate = probed_rate(model, recipe, settings)
    total = recipe.steps * recipe.batch_tokens
    share = 1 - request.rehearsal_share
    training = make_plan(
        recipe,
        model,
        [SourcePlan(name="repo", share=share, drawn=share * total, unique=tokens)],
        micro_batch_size=settings.micro_batch_size,
        dtype=settings.dtype,
        peak_flops=settings.peak_flops,
        rate=rate,
        recompute=settings.recompute,
    )
    spans = len(material.spans.spans) + len(material.rehearsal_spans.spans)
    # A forward pass is a half of a frozen model's training step; a prompt is read twice.
    reading = 2 * recipe.context / (2 * rate.tokens_per_s)
    saying = ANSWER_TOKENS * 4 * model.parameters / BYTES_PER_S
    return AdaptPlan(
        training=training,
        tokens=tokens,
        spans=spans,
        measuring_s=2 * spans * (reading + saying),
        commits=len({span.commit for span in material.spans.spans}),
    )
