"""Plans: of a resolved stage on its own data, or of a paper-size recipe without data at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from codecria.core.model.config import ModelConfig, preset
from codecria.data.errors import UsageError
from codecria.data.rows.infill_rows import InfillRows
from codecria.data.rows.rows import Counts
from codecria.data.tokenizer.extension import INFILL_EXTENSION

from .meter import read_metrics
from .overrides import requested
from .plan import InfillPlan, Plan, Rate, Reach, SourcePlan, make_plan, plan_sources
from .probe import measured_rate
from .recipes import Recipe, parent_of
from .request import StageRequest
from .run import METRICS_NAME
from .settle import Settings, settle
from .sources import share_beyond
from .stage import Stage

LLAMA_VOCABULARY = 32_000  # pieces of the Llama 2 tokenizer, which every chain starts with


def plan_stage(stage: Stage, out: Path | None = None) -> Plan:
    """What a resolved stage will take.

    Args:
        stage: resolved.
        out: its run folder, whose own speed counts where it has been measured.
    """
    recipe = stage.run.recipe
    ledger = stage.mixture.ledger(
        recipe.rows * recipe.steps,
        context=recipe.context,
        seed=recipe.seed,
        infill=recipe.infill,
    )
    return make_plan(
        recipe,
        stage.run.model,
        [
            SourcePlan(
                name=entry.name,
                share=entry.requested,
                drawn=entry.drawn_tokens,
                unique=entry.unique_tokens,
            )
            for entry in ledger
        ],
        micro_batch_size=stage.run.micro_batch_size,
        dtype=stage.run.dtype,
        peak_flops=stage.settings.peak_flops,
        rate=_own_rate(out) or probed_rate(stage.run.model, recipe, stage.settings),
        infill=_infill_plan(stage),
        recompute=stage.run.recompute,
        reach=reach_of(stage),
    )


def plan_paper(request: StageRequest) -> Plan:
    """The plan of a recipe without data at hand, on the paper's own mixture.

    Raises:
        UsageError: no size is given, or the options do not go together.
    """
    request.check()
    size = request.size
    if size is None:
        data = "--dialogs" if request.instructs else "--data"
        raise UsageError(
            f"a plan needs --size, or {data} and a checkpoint",
            hint=f"for example codecria {request.recipe} --size 7b --dry-run",
        )
    if request.micro_batch_size is None:
        request = replace(request, micro_batch_size=1)
    recipe = requested(
        request.recipe,
        size,
        request.overrides,
        tokens=request.tokens,
        steps=request.steps,
    )
    model = planned_model(recipe)
    settings = settle(request, recipe, model, before={})
    return make_plan(
        recipe,
        model,
        plan_sources(recipe.mixture, recipe.tokens),
        micro_batch_size=settings.micro_batch_size,
        dtype=settings.dtype,
        peak_flops=settings.peak_flops,
        rate=probed_rate(model, recipe, settings),
        infill=None if recipe.infill is None else InfillPlan(format=recipe.infill, sources=()),
        recompute=settings.recompute,
    )


def planned_model(recipe: Recipe) -> ModelConfig:
    """The shape that a recipe trains in the family, where no checkpoint is at hand.

    The vocabulary has the infilling pieces where this stage or one before it infills; rotary base
    and context are what this stage or the nearest one before it sets.
    """
    vocab_size, max_context = LLAMA_VOCABULARY, recipe.context
    rope = recipe.rope
    stage: Recipe | None = recipe
    while stage is not None:
        if stage.infill is not None:
            vocab_size = LLAMA_VOCABULARY + len(INFILL_EXTENSION)
        max_context = max(max_context, stage.context)
        rope = stage.rope | rope
        stage = parent_of(stage)
    model = preset(recipe.size)
    return replace(model, vocab_size=vocab_size, max_context=max_context, **rope)


def reach_of(stage: Stage) -> Reach | None:
    """How far the data lets tokens look back, where a longer context is to be learnt.

    None where the whole window is seen, or is no longer than the checkpoint's.
    """
    recipe, init = stage.run.recipe, stage.start.checkpoint
    if init is None or not recipe.document_mask:
        return None
    beyond = init.config.max_context
    if recipe.context <= beyond:
        return None
    shares = [
        source.weight * share_beyond(source.shards, beyond, recipe.context)
        for source in stage.mixture.sources
    ]
    return Reach(beyond=beyond, share=sum(shares))


def _infill_plan(stage: Stage) -> InfillPlan | None:
    infilling = stage.vocabulary.infilling
    if infilling is None:
        return None
    recipe, found = stage.run.recipe, []
    for source in stage.mixture.sources:
        if source.shards.dialogs:
            found.append((source.weight, Counts(tokens=source.shards.n_tokens)))
            continue
        rows = InfillRows(
            source.shards,
            context=recipe.context,
            seed=recipe.seed,
            infiller=infilling.infiller,
            format=infilling.format,
        )
        found.append((source.weight, rows.expect()))
    return InfillPlan(format=infilling.format, sources=found)


def _own_rate(out: Path | None) -> Rate | None:
    """The speed of the run in the folder, by its last records."""
    path = None if out is None else out / METRICS_NAME
    if path is None or not path.is_file():
        return None
    speeds = [r["tokens_per_s"] for r in read_metrics(path) if r.get("tokens_per_s")]
    latest = sorted(speeds[-5:])
    return Rate(latest[len(latest) // 2], "measured in this run") if latest else None


def probed_rate(model: ModelConfig, recipe: Recipe, settings: Settings) -> Rate:
    """The speed that a short training step shows."""
    flops_per_s = measured_rate(model, settings.dtype, settings.device)
    tokens_per_s = flops_per_s / model.training_flops(recipe.context, frozen=recipe.lora_rank > 0)
    return Rate(tokens_per_s, "by a short probe of this machine")
