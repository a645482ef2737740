"""What a run will take, before any of it is spent: tokens, epochs, memory, FLOPs, time.

Every figure is a function with a worked example in the tests. Memory is that of one device that
holds the whole model; nothing here allocates any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codecria.core.model.config import ModelConfig
from codecria.core.model.loss import CHUNK_BYTES
from codecria.data.formats.infill import InfillFormat
from codecria.data.rows.rows import Counts

from .adapters import base_bytes, trained_parameters
from .recipes import Recipe, Share

# The share of the matrix-product peak by which a run is guessed to be long enough to compile; a
# plan's time is measured (`Rate`).
TYPICAL_MFU = 0.6


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a run is.

    Attributes:
        tokens_per_s: tokens trained on per second.
        source: how that is known, for people.
    """

    tokens_per_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlan:
    """What one source gives to a run.

    Attributes:
        name: of the source.
        share: of the tokens drawn.
        drawn: tokens drawn from it.
        unique: tokens it holds.
    """

    name: str
    share: float
    drawn: float
    unique: float

    @property
    def epochs(self) -> float:
        """How often the run goes through the source."""
        return self.drawn / self.unique if self.unique else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillPlan:
    """What of the data is infilled, in an epoch of each source.

    Attributes:
        format: how.
        sources: (share of the tokens drawn, what an epoch of the source holds); none before the
            data is at hand.
    """

    format: InfillFormat
    sources: Sequence[tuple[float, Counts]]

    @property
    def effective_rate(self) -> float | None:
        """The share of all drawn tokens that is in infilled documents."""
        if not self.sources:
            return None
        eligible = sum(
            share * counts.eligible_tokens / max(1, counts.tokens) for share, counts in self.sources
        )
        return self.format.rate * eligible

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        total = sum((counts for _, counts in self.sources), start=Counts())
        known = bool(self.sources)
        return {
            "rate": self.format.rate,
            "spm_share": self.format.spm_share,
            "scope": self.format.scope,
            "spans": self.format.spans,
            "pieces": total.pieces if known else None,
            "eligible_pieces": total.eligible if known else None,
            "tokens": total.tokens if known else None,
            "eligible_tokens": total.eligible_tokens if known else None,
            "effective_rate": self.effective_rate,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far back tokens may look where attention stays within documents.

    A model learns a longer context only from tokens that see further than it could before.

    Attributes:
        beyond: tokens a model could look back before.
        share: of the tokens that may look back further than that.
    """

    beyond: int
    share: float


def plan_sources(mixture: Sequence[Share], tokens: int) -> list[SourcePlan]:
    """Tokens and epochs of each source when `tokens` are drawn from the mixture.

    500 billion tokens of the paper's table 1 give 2.03, 1.39 and 0.01 epochs.
    """
    return [
        SourcePlan(
            name=part.name,
            share=part.share,
            drawn=part.share * tokens,
            unique=part.unique_tokens,
        )
        for part in mixture
    ]


def layer_parameters(config: ModelConfig) -> tuple[int, int]:
    """Weights of one layer, and those outside of the layers: embedding, last norm, output."""
    outside = config.vocab_size * config.dim * (1 if config.tied else 2) + config.dim
    return (config.parameters - outside) // config.n_layers, outside


def memory_bytes(
    config: ModelConfig,
    context: int,
    micro_batch_size: int,
    dtype: str,
    *,
    recompute: bool = False,
    recipe: Recipe | None = None,
) -> dict[str, int]:
    """Bytes of a training step on one device at its fullest moment, by part.

    That is the computation of the loss or, where activations are recomputed, perhaps backward
    (`step_moments`).
    """
    moments = step_moments(
        config, context, micro_batch_size, dtype, recompute=recompute, recipe=recipe
    )
    return fullest(moments)


def fullest(moments: Mapping[str, dict[str, int]]) -> dict[str, int]:
    """The parts of the moment that takes most."""
    return max(moments.values(), key=lambda parts: sum(parts.values()))


def step_moments(
    config: ModelConfig,
    context: int,
    micro_batch_size: int,
    dtype: str,
    *,
    recompute: bool = False,
    recipe: Recipe | None = None,
) -> dict[str, dict[str, int]]:
    """Bytes of a training step on one device, by moment ("loss", "backward") and part.

    Weights, gradients and both moments are float32. Of a layer's activations eager execution keeps
    for backward, per token: the two norms' inputs in float32 (2 C); in the compute type what they
    give, before and after their weights (4 C), rotated queries, keys and values, the attention's
    output (2 C + 2 K D), and the feed-forward's products (4 F). Under bfloat16's autocast the
    residual stream stays float32, which makes 30 bytes for each of C; it also copies each matrix
    that is trained. Counted on saved tensors, this is exact but for a few numbers a token;
    compilation keeps less. Where they are recomputed, only the layers' inputs are kept (C), and in
    backward one layer's activations and copies at a time.

    The loss has chunks of logits and the gradient of the output matrix, of which backward begins
    with the gradient alone.

    Args:
        config: the shape.
        context: tokens of a row.
        micro_batch_size: rows of one forward pass.
        dtype: compute type, "float32" or "bfloat16".
        recompute: whether a layer's activations are recomputed in backward.
        recipe: of a stage that trains an adapter: the base is frozen, in the compute type or in 4
            bits, and only the adapter has gradients and moments.
    """
    size = 4 if dtype == "float32" else 2
    tokens = context * micro_batch_size
    keys = 2 * config.n_kv_heads * config.head_dim
    wide = 32 if size == 4 else 30
    layer = wide * config.dim + size * (keys + 4 * config.hidden_dim)
    weights = trained = 4 * config.parameters
    if recipe is not None and recipe.lora_rank:
        trained = 4 * trained_parameters(config, recipe, 0)
        weights = base_bytes(config, recipe, dtype) + trained
    kept = config.n_layers * (4 * config.dim if recompute else layer) + 2 * size * config.dim
    matrix = config.vocab_size * config.dim
    state = {"weights": weights, "gradients": trained, "optimizer moments": 2 * trained}
    loss = state | {
        "activations": tokens * kept,
        "loss chunks": 2 * CHUNK_BYTES + 4 * matrix,
    }
    backward = state | {
        "activations": tokens * (kept + (layer if recompute else 0)),
        "gradient of the output": 4 * matrix,
    }
    if dtype == "bfloat16" and not (recipe is not None and recipe.lora_rank):
        a_layer, _ = layer_parameters(config)
        layers = 0 if recompute else config.n_layers * a_layer
        loss["bfloat16 copies"] = 2 * (layers + matrix)
        backward["bfloat16 copies"] = 2 * (a_layer if recompute else layers)
    return {"loss": loss, "backward": backward}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's cost.

    Attributes:
        recipe, model: what is planned.
        sources: what each source gives.
        memory: bytes on one device, by part.
        flops: of the whole run.
        peak_flops: of the device, FLOP/s; 0 if unknown.
        rate: how fast this machine trains it; None if unknown.
        infill: what of the data is infilled, in a stage that does.
        recompute: whether activations are recomputed in backward.
        reach: how far back the data lets tokens look, in a stage that masks documents.
    """

    recipe: Recipe
    model: ModelConfig
    sources: Sequence[SourcePlan]
    memory: Mapping[str, int]
    flops: float
    peak_flops: float
    rate: Rate | None = None
    infill: InfillPlan | None = None
    recompute: bool = False
    reach: Reach | None = None

    @property
    def seconds(self) -> float | None:
        """Expected time of the whole run; None if the speed is unknown."""
        if self.rate is None:
            return None
        return self.recipe.steps * self.recipe.batch_tokens / self.rate.tokens_per_s

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "recipe": self.recipe.name,
            "size": self.recipe.size,
            "source": self.recipe.source,
            "parameters": self.model.parameters,
            "tokens": self.recipe.steps * self.recipe.batch_tokens,
            "steps": self.recipe.steps,
            "batch_tokens": self.recipe.batch_tokens,
            "context": self.recipe.context,
            "peak_lr": self.recipe.peak_lr,
            "warmup_steps": self.recipe.warmup_steps,
            "sources": [
                {
                    "name": s.name,
                    "share": s.share,
                    "tokens_drawn": s.drawn,
                    "tokens_unique": s.unique,
                    "epochs": s.epochs,
                }
                for s in self.sources
            ],
            "rope_theta": self.model.rope_theta,
            "rope_scale": self.model.rope_scale,
            "document_mask": self.recipe.document_mask,
            "recompute": self.recompute,
            "reach": None if self.reach is None else asdict(self.reach),
            "memory_bytes": dict(self.memory) | {"total": sum(self.memory.values())},
            "infill": None if self.infill is None else self.infill.as_json(),
            "flops": self.flops,
            "peak_flops": self.peak_flops or None,
            "seconds": self.seconds,
            "rate": None if self.rate is None else asdict(self.rate),
        }


def training_seconds(flops: float, peak_flops: float) -> float | None:
    """Expected seconds of a run: its FLOPs at the typical share of the device's peak."""
    return flops / (TYPICAL_MFU * peak_flops) if peak_flops else None


def make_plan(
    recipe: Recipe,
    model: ModelConfig,
    sources: Sequence[SourcePlan],
    *,
    micro_batch_size: int,
    dtype: str,
    peak_flops: float,
    rate: Rate | None = None,
    infill: InfillPlan | None = None,
    recompute: bool = False,
    reach: Reach | None = None,
) -> Plan:
    """Plan a run.

    Args:
        recipe, model: what is trained, and how.
        sources: from `plan_sources`, or from the data at hand.
        micro_batch_size: rows of one forward pass.
        dtype: compute type.
        peak_flops: of the device's matrix products, FLOP/s; 0 if unknown.
        rate: how fast this machine trains it, if known.
        infill: what of the data is infilled, in a stage that does.
        recompute: whether activations are recomputed in backward.
        reach: how far back the data lets tokens look, in a stage that masks documents.
    """
    return Plan(
        recipe=recipe,
        model=model,
        sources=sources,
        memory=memory_bytes(
            model, recipe.context, micro_batch_size, dtype, recompute=recompute, recipe=recipe
        ),
        flops=model.training_flops(recipe.context, frozen=recipe.lora_rank > 0)
        * recipe.steps
        * recipe.batch_tokens,
        peak_flops=peak_flops,
        rate=rate,
        infill=infill,
        recompute=recompute,
        reach=reach,
    )
