"""From what was asked for to a run that is fully resolved, in named steps.

    request -> what it starts from -> recipe -> data -> vocabulary -> model -> settings -> run

Each step opens what it needs and checks it against the steps before.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from codecria.core.model.config import ModelConfig, preset
from codecria.data.errors import UserError
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer

from .adapters import base_record
from .overrides import override, requested
from .recipes import Recipe
from .request import StageRequest
from .run import RunConfig, SourceSpec, check_place, recorded
from .settle import Settings, settle
from .sources import Sources, open_sources, tokens_of_epochs, too_long
from .stage import Stage
from .start import FromScratch, Known, Start, open_start
from .vocabulary import Vocabulary, check_follows, with_objective


def known_init(request: StageRequest, out: Path) -> Known | None:
    """The digest of the checkpoint to start from, read once for all processes of a launch.

    Args:
        request: what was asked for.
        out: the run folder, which may record it.

    Returns:
        what `resolve` takes; None for fresh weights.

    Raises:
        UserError: the checkpoint cannot be opened.
        UsageError: the options do not go together.
    """
    request.check()
    request.check_inputs()
    start = open_start(request.size, request.init)
    if start.checkpoint is None:
        return None
    check_place(out)
    earlier = None if request.force else recorded(out)
    return Known(start.stamp(), start.digest(_recorded_init(earlier)))


def _recorded_init(earlier: dict[str, Any] | None) -> Known | None:
    """The digest that an earlier start of the run has recorded."""
    if earlier is None or "init_stamp" not in earlier:
        return None
    return Known(earlier["init_stamp"], earlier["run"]["init"])


def resolve(
    request: StageRequest, *, out: Path | None, plan: bool = False, known: Known | None = None
) -> Stage:
    """Open and check everything, and settle what the request left open.

    Args:
        request: what was asked for.
        out: the run folder, whose earlier start of the same run settled some things; None where
            there is none.
        plan: nothing will be trained: write nothing, and do not read the weights of the checkpoint
            to identify it, unless there is a run to compare with.
        known: the digest of the checkpoint to start from, see `known_init`.

    Raises:
        UserError: data or checkpoint cannot be used, or do not belong together.
        UsageError: the options do not go together.
    """
    request.check()
    request.check_inputs()
    if out is not None:
        check_place(out)
    earlier = None if out is None or request.force else recorded(out)
    before: dict[str, Any] = {} if earlier is None else earlier["run"]
    folder = None if plan else out
    start = open_start(request.size, request.init)
    recipe = _recipe(request, start, before, out)
    sources = open_sources(
        request, recipe, start.checkpoint, None if folder is None else folder / "dialogs"
    ).in_order_of([source["digest"] for source in before.get("sources", ())])
    if request.epochs is not None:
        tokens = tokens_of_epochs(sources.mixture, recipe, request.epochs)
        kept = {"warmup_steps": recipe.warmup_steps} if request.extend and before else {}
        recipe = override(recipe, request.overrides | {"tokens": tokens} | kept)
    vocabulary = Vocabulary.choose(recipe, start.checkpoint, sources.mixture, folder)
    mixture = vocabulary.see(sources.mixture)
    model = _model(start, recipe, mixture, vocabulary)
    settings = settle(request, recipe, model, before=before)
    identify = not plan or earlier is not None
    return Stage(
        run=_run(
            request,
            recipe,
            model,
            sources,
            vocabulary,
            settings,
            init=(digest := start.digest(known or _recorded_init(earlier)) if identify else ""),
            base=_base(start, recipe, digest),
            ancestors=start.ancestors(),
            extended=tuple(before.get("extended", ())),
        ),
        start=start,
        mixture=mixture,
        validation=_validation(mixture, vocabulary),
        vocabulary=vocabulary,
        settings=settings,
        dialogs=sources.dialogs,
        too_long=too_long(mixture, recipe) if request.instructs else 0,
        mesh=request.mesh,
        extend=request.extend,
        force=request.force,
    )


def _recipe(
    request: StageRequest, start: Start, before: dict[str, Any], out: Path | None
) -> Recipe:
    """The stage's recipe with the request's changes, the checkpoint's objective kept."""
    recipe = requested(
        start.recipe_name(request.recipe),
        start.size,
        request.overrides,
        tokens=request.tokens,
        steps=request.steps,
    )
    recipe = with_objective(recipe, start.checkpoint, request.overrides)
    # A plan alone may be made of anything; the order of the stages binds whole models.
    if out is not None and not (request.any_init or recipe.lora_rank):
        check_follows(recipe, start.checkpoint)
    if request.extend and before and "warmup_steps" not in request.overrides:
        # Of a small recipe the warm-up follows from the length; it is over and stays.
        return replace(recipe, warmup_steps=before["recipe"]["warmup_steps"])
    return recipe


def _model(start: Start, recipe: Recipe, mixture: Mixture, vocabulary: Vocabulary) -> ModelConfig:
    """The shape to train: a preset for this tokenizer, or the checkpoint's own."""
    shards = mixture.sources[0].shards
    facts = shards.manifest.tokenizer
    if isinstance(start, FromScratch):
        return replace(
            preset(start.size),
            vocab_size=vocabulary.size,
            max_context=recipe.context,
            bos_id=facts.bos_id,
            eos_id=facts.eos_id,
            **recipe.rope,
        )
    config = start.checkpoint.config
    shape = replace(config, max_context=max(config.max_context, recipe.context), **recipe.rope)
    if vocabulary.tokenizer is not None:  # seen to fit by `Vocabulary.see`
        return replace(shape, vocab_size=max(shape.vocab_size, vocabulary.size))
    _check_tokenizer(start, shards)
    return shape


def _check_tokenizer(start: Start, shards: ShardSet) -> None:
    """Check that a checkpoint was trained with the tokenizer that encoded the data.

    Raises:
        UserError: it was not.
    """
    init = start.checkpoint
    assert init is not None, "fresh weights know no tokenizer"
    beside = init.tokenizer_path
    hint = (
        f"prepare the data again with --tokenizer {beside}"
        if beside is not None
        else f"copy the model's tokenizer.model into {init.folder}, and prepare the data with it"
    )
    pieces = shards.manifest.tokenizer.vocab_size
    if init.config.vocab_size < pieces:
        raise UserError(
            f"the data has a vocabulary of {pieces}, {init.folder} one of {init.config.vocab_size}",
            hint=hint,
        )
    trained_with = init.lineage().get("tokenizer") or (
        Tokenizer.load(beside).digest if beside else None
    )
    if trained_with not in (None, shards.tokenizer_digest):
        raise UserError(
            f"{init.folder} was trained with another tokenizer than the data was encoded with",
            hint=hint,
        )


def _run(
    request: StageRequest,
    recipe: Recipe,
    model: ModelConfig,
    sources: Sources,
    vocabulary: Vocabulary,
    settings: Settings,
    *,
    init: str,
    base: dict[str, Any],
    ancestors: tuple[dict[str, Any], ...],
    extended: tuple[int, ...],
) -> RunConfig:
    return RunConfig(
        recipe=recipe,
        model=model,
        sources=tuple(
            SourceSpec(
                path=source.name,
                folder=str(source.shards.folder.resolve()),
                weight=source.weight,
                digest=source.shards.digest,
            )
            for source in sources.mixture.sources
        ),
        tokenizer_digest=vocabulary.digest,
        init=init,
        base=base,
        micro_batch_size=settings.micro_batch_size,
        dtype=settings.dtype,
        compiled=settings.compiled,
        attention=settings.attention,
        recompute=settings.recompute,
        ancestors=ancestors,
        extended=extended,
        log_every=request.log_every,
        eval_every=request.eval_every or max(1, recipe.steps // 10),
        save_every=request.save_every or max(1, recipe.steps // 10),
        eval_rows=request.eval_rows,
        keep=request.keep,
    )


def _base(start: Start, recipe: Recipe, digest: str) -> dict[str, Any]:
    """What an adapter records of the checkpoint it is trained from; empty in other runs.

    Raises:
        UserError: that is an adapter itself.
    """
    if not recipe.lora_rank or start.checkpoint is None:
        return {}
    if start.checkpoint.adapter is not None:
        raise UserError(
            f"{start.checkpoint.adapter.folder} is an adapter: none can be trained on top of it",
            hint=f"merge it first: codecria convert {start.checkpoint.adapter.folder} MERGED",
        )
    return base_record(start.checkpoint, digest, four_bits=recipe.qlora)


def _validation(mixture: Mixture, vocabulary: Vocabulary) -> tuple[tuple[str, ShardSet], ...]:
    """The validation split of each source that has one, under the vocabulary."""
    return tuple(
        (source.name, vocabulary.see_split(ShardSet.open(source.shards.folder, "validation")))
        for source in mixture.sources
        if "validation" in source.shards.manifest.splits
    )
