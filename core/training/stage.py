"""From what was asked for to a run that is fully resolved, and on to its end.

`resolve` opens the data and the checkpoint, checks that they belong together, settles what was left
open (sizes, types, compilation) and collects it in a `RunConfig`. `run_stage` carries it out.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codecria.core import machine
from codecria.core.checkpoints.checkpoint import DTYPES, Checkpoint, load_model
from codecria.core.model.attention import choose_backend
from codecria.core.model.config import MODELS, ModelConfig, preset
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UsageError, UserError
from codecria.data.files import atomic_write, digest_file, locked
from codecria.data.rows.dialog_rows import DialogRows
from codecria.data.rows.dialog_shards import DialogReport, open_dialogs
from codecria.data.rows.infill_rows import InfillRows
from codecria.data.rows.mixture import Mixture, split_weight
from codecria.data.rows.rows import Counts
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import INFILL_EXTENSION, Tokenizer

from .plan import (
    InfillPlan,
    Plan,
    Reach,
    SourcePlan,
    make_plan,
    memory_bytes,
    plan_sources,
    training_seconds,
)
from .recipes import INSTRUCT, LCFT, LCFT_PYTHON, PYTHON, Recipe, override, parent_of, recipe_for
from .run import RunConfig, SourceSpec, check_same_run, record, recorded
from .trainer import Outcome, Report, Trainer
from .vocabulary import MATRICES, Vocabulary, check_follows, grown, with_objective

LLAMA_VOCABULARY = 32_000  # pieces of the Llama 2 tokenizer, which every chain starts with

# Tokens of one forward pass on a CPU: more do not make products faster and cost memory.
CPU_MICRO_TOKENS = 8_192
CUDA_MICRO_TOKENS = 32_768

MEMORY_SHARE = 0.6  # of the device's; where a run would take more, activations are recomputed

# torch.compile costs 20 to 30 s at first and saved 2 to 23 % of a float32 step on two AVX2 cores,
# the more the smaller the model (docs/training.md). With bfloat16 products the rest of a step
# weighs more, and so does fusing it.
COMPILE_PAYS_AFTER_S = {"float32": 600.0, "bfloat16": 180.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """What the user asked for; None leaves it to the recipe, the checkpoint or the machine.

    Attributes:
        recipe: the stage's name, such as "pretrain" or "python".
        data: shard folders, each "DIR" or "DIR=WEIGHT".
        size: a model size, for fresh weights.
        init: a checkpoint to start from, instead of a size.
        any_init: start from it whatever stage it comes from.
        tokens, steps, epochs: length of the run, one of them; epochs are of the dialogs.
        changes: recipe fields to override, by name.
        micro_rows: rows of one forward pass.
        device: "auto", "cpu", "cuda".
        dtype: "auto", "float32", "bfloat16".
        compiled: "auto", "on", "off".
        attention: "auto", "sdpa", "xformers".
        recompute: "auto", "on", "off".
        dialogs: files of dialogs, each "FILE" or "FILE=WEIGHT", for instruction tuning.
        rehearse: shard folders beside them, each "DIR" or "DIR=SHARE".
        allow_tags: keep dialogs whose text holds the tags of a chat form.
        strict: a dialog that cannot be used is an error.
        log_every, eval_every, save_every, eval_rows, keep: see `RunConfig`.
    """

    recipe: str
    data: Sequence[str]
    size: str | None = None
    init: Path | None = None
    any_init: bool = False
    tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    micro_rows: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    compiled: str = "auto"
    attention: str = "auto"
    recompute: str = "auto"
    dialogs: Sequence[str] = ()
    rehearse: Sequence[str] = ()
    allow_tags: bool = False
    strict: bool = False
    log_every: int = 10
    eval_every: int | None = None
    save_every: int | None = None
    eval_rows: int = 64
    keep: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A resolved stage: the run, and the opened things it needs.

    Attributes:
        run: what will be done.
        mixture: the training data.
        validation: (source path, validation split) where there is one.
        vocabulary: what it encodes with, and which embedding rows are new.
        init: the opened checkpoint it starts from.
        device: where it runs.
        why_attention: why this attention backend.
        peak_flops: measured matrix-product peak, FLOP/s.
        dialogs: what the files of dialogs held, in a stage that has them.
        too_long: dialogs left out, as no row holds them whole.
    """

    run: RunConfig
    mixture: Mixture
    validation: tuple[tuple[str, ShardSet], ...]
    vocabulary: Vocabulary
    init: Checkpoint | None
    device: torch.device
    why_attention: str
    peak_flops: float
    dialogs: tuple[DialogReport, ...] = ()
    too_long: int = 0

    def plan(self) -> Plan:
        """What the run will take."""
        recipe = self.run.recipe
        ledger = self.mixture.ledger(
            recipe.rows * recipe.steps,
            context=recipe.context,
            seed=recipe.seed,
            infill=recipe.infill,
        )
        sources = [
            SourcePlan(
                name=entry.name,
                share=entry.requested,
                drawn=entry.drawn_tokens,
                unique=entry.unique_tokens,
            )
            for entry in ledger
        ]
        return make_plan(
            recipe,
            self.run.model,
            sources,
            micro_rows=self.run.micro_rows,
            dtype=self.run.dtype,
            peak_flops=self.peak_flops,
            infill=self._infill_plan(),
            recompute=self.run.recompute,
            reach=self.reach(),
        )

    def reach(self) -> Reach | None:
        """How far the data lets tokens look back, where a longer context is to be learnt.

        None where the whole window is seen, or is no longer than the checkpoint's.
        """
        recipe = self.run.recipe
        if self.init is None or not recipe.document_mask:
            return None
        beyond = self.init.config.max_context
        if recipe.context <= beyond:
            return None
        shares = [
            source.weight * share_beyond(source.shards, beyond, recipe.context)
            for source in self.mixture.sources
        ]
        return Reach(beyond=beyond, share=sum(shares))

    def _infill_plan(self) -> InfillPlan | None:
        infilling = self.vocabulary.infilling
        if infilling is None:
            return None
        recipe, told = self.run.recipe, []
        for source in self.mixture.sources:
            if source.shards.dialogs:
                told.append((source.weight, Counts(tokens=source.shards.n_tokens)))
                continue
            rows = InfillRows(
                source.shards,
                context=recipe.context,
                seed=recipe.seed,
                infiller=infilling.infiller,
                format=infilling.format,
            )
            told.append((source.weight, rows.expect()))
        return InfillPlan(format=infilling.format, sources=told)


def resolve_recipe(name: str, size: str, request: StageRequest) -> Recipe:
    """The recipe with what the request changes.

    Raises:
        UsageError: the changes do not go together.
    """
    told = [n for n in ("tokens", "steps", "epochs") if getattr(request, n) is not None]
    if len(told) > 1:
        raise UsageError(f"--{told[0]} and --{told[1]} both say how long", hint="give one of them")
    recipe = recipe_for(name, size)
    changes = dict(request.changes)
    if request.tokens is not None:
        changes["tokens"] = request.tokens
    if request.steps is not None:
        # The batch may be among the changes: ask for it before turning steps into tokens.
        changes["tokens"] = request.steps * override(recipe, changes).batch_tokens
    return override(recipe, changes)


def paper_plan(request: StageRequest) -> Plan:
    """The plan of a paper-size recipe without data at hand, on the paper's own mixture.

    Raises:
        UsageError: no size is given.
    """
    if request.size is None:
        data = "--dialogs" if request.recipe == INSTRUCT.name else "--data"
        raise UsageError(f"a plan needs --size, or {data} and a checkpoint")
    recipe = resolve_recipe(request.recipe, request.size, request)
    model = planned_model(recipe)
    micro_rows = request.micro_rows or 1
    device = machine.choose_device(request.device)
    dtype = _choose_dtype(request.dtype, device)
    return make_plan(
        recipe,
        model,
        plan_sources(recipe.mixture, recipe.tokens),
        micro_rows=micro_rows,
        dtype=dtype,
        peak_flops=machine.matmul_flops(DTYPES[dtype], device),
        infill=None if recipe.infill is None else InfillPlan(format=recipe.infill, sources=()),
        recompute=_choose_recompute(
            request.recompute, None, model, recipe, micro_rows, dtype, device
        ),
    )


def planned_model(recipe: Recipe) -> ModelConfig:
    """The shape that a recipe trains in the family, where no checkpoint is at hand.

    The vocabulary has the infilling pieces where this stage or one before it infills; rotary base
    and context are what this stage or the nearest one before it sets.
    """
    model = preset(recipe.size)
    vocab_size, max_context = LLAMA_VOCABULARY, recipe.context
    rope = _rope(recipe)
    stage: Recipe | None = recipe
    while stage is not None:
        if stage.infill is not None:
            vocab_size = LLAMA_VOCABULARY + len(INFILL_EXTENSION)
        max_context = max(max_context, stage.context)
        rope = _rope(stage) | rope
        stage = parent_of(stage)
    return replace(model, vocab_size=vocab_size, max_context=max_context, **rope)


def resolve(request: StageRequest, *, out: Path | None) -> Stage:
    """Open and check everything, and settle what the request left open.

    Args:
        request: what was asked for.
        out: the run folder, whose earlier start of the same run settled some things; None for a
            plan alone.

    Raises:
        UserError: data or checkpoint cannot be used, or do not belong together.
        UsageError: the options do not go together.
    """
    instructs = request.recipe == INSTRUCT.name
    if instructs and request.init is None:
        raise UsageError("there is no --init", hint="name the checkpoint to tune, such as a run")
    if instructs and not request.dialogs:
        raise UsageError(
            "there are no --dialogs", hint="name a file, such as --dialogs chats.jsonl"
        )
    if not instructs and not request.data:
        raise UsageError("there is no --data", hint="make some with `codecria prepare-data`")
    if (request.size is None) == (request.init is None):
        raise UsageError(
            "the model needs either --size or --init",
            hint="--size 15m starts from fresh weights, --init CKPT from a checkpoint",
        )
    init = Checkpoint.open(request.init) if request.init is not None else None
    size = request.size or _size_of(init)
    recipe = resolve_recipe(_stage_after(request.recipe, init), size, request)
    recipe = with_objective(recipe, init, request.changes)
    if out is not None and not request.any_init:
        check_follows(recipe, init)
    reports: tuple[DialogReport, ...] = ()
    too_long = 0
    if instructs:
        assert init is not None, "checked above"
        mixture, reports = _dialogs(request, recipe, init, out)
        too_long = _too_long(mixture, recipe)
        if request.epochs is not None:
            tokens = _tokens_of_epochs(mixture, recipe, request.epochs)
            recipe = override(recipe, dict(request.changes) | {"tokens": tokens})
    else:
        mixture = Mixture.parse(request.data)
    sources = tuple(
        SourceSpec(path=source.name, weight=source.weight, digest=source.shards.digest)
        for source in mixture.sources
    )
    _check_one_tokenizer(mixture)
    vocabulary = Vocabulary.choose(recipe, init, mixture, out)
    mixture = vocabulary.see(mixture)
    shards = mixture.sources[0].shards
    model = _model_config(request.size, init, recipe, shards, vocabulary)
    device = machine.choose_device(request.device)
    dtype = _choose_dtype(request.dtype, device)
    peak = machine.matmul_flops(DTYPES[dtype], device)
    backend, why = choose_backend(device, request.attention)
    seconds = training_seconds(
        model.training_flops(recipe.context) * recipe.steps * recipe.batch_tokens, peak
    )
    settled = ((recorded(out) if out is not None else None) or {}).get("run", {})
    micro_rows = _micro_rows(request.micro_rows, recipe, device)
    run = RunConfig(
        recipe=recipe,
        model=model,
        sources=sources,
        tokenizer_digest=vocabulary.digest,
        init="" if init is None else init.digest(),
        micro_rows=micro_rows,
        dtype=dtype,
        compiled=_choose_compiled(request.compiled, settled.get("compiled"), dtype, seconds),
        attention=backend,
        recompute=_choose_recompute(
            request.recompute, settled.get("recompute"), model, recipe, micro_rows, dtype, device
        ),
        ancestors=_ancestors(init),
        log_every=max(1, request.log_every),
        eval_every=request.eval_every or max(1, recipe.steps // 10),
        save_every=request.save_every or max(1, recipe.steps // 10),
        eval_rows=request.eval_rows,
        keep=max(1, request.keep),
    )
    validation = tuple(
        (source.name, vocabulary.see_split(ShardSet.open(source.shards.folder, "validation")))
        for source in mixture.sources
        if "validation" in source.shards.manifest.splits
    )
    return Stage(
        run=run,
        mixture=mixture,
        validation=validation,
        vocabulary=vocabulary,
        init=init,
        device=device,
        why_attention=why,
        peak_flops=peak,
        dialogs=reports,
        too_long=too_long,
    )


def run_stage(
    stage: Stage,
    out: Path,
    *,
    report: Report,
    warn: Callable[[str], None],
    started: Callable[[Trainer], None],
) -> Outcome:
    """Train in the run folder `out`, from its beginning or from where it stopped.

    Args:
        stage: what to do.
        out: the run folder, locked while this runs.
        report: called with each metrics record.
        warn: called with what may change the last bits of a resumed run.
        started: called with the trainer before its first step, so that a signal can stop it.

    Raises:
        UserError: the folder holds another run or is in use, or training failed.
    """
    with locked(out):
        for difference in check_same_run(out, stage.run):
            warn(f"resuming on another environment, the last bits may differ: {difference}")
        if recorded(out) is None:
            record(out, stage.run)
        vocabulary = stage.vocabulary
        if vocabulary.content is not None:
            atomic_write(vocabulary.path, vocabulary.content)
        trainer = Trainer(
            stage.run,
            _weights(stage),
            stage.mixture,
            validation=stage.validation,
            folder=out,
            tokenizer=vocabulary.path,
            peak_flops=stage.peak_flops,
            report=report,
            infilling=vocabulary.infilling,
        )
        started(trainer)
        return trainer.fit()


def _weights(stage: Stage) -> Transformer:
    """The model before its first step."""
    with stage.device:
        model = Transformer(stage.run.model)
    if stage.init is None:
        model.initialise(stage.run.recipe.seed)
        return model
    loaded = dict(load_model(stage.init, device=stage.device).named_parameters())
    known = stage.vocabulary.known_rows
    with torch.no_grad():
        for name, weight in model.named_parameters():
            old = loaded[name].detach()
            if name in MATRICES:
                old = grown(name, old, known, len(weight), stage.run.recipe)
            weight.copy_(old)
    return model


def _stage_after(name: str, init: Checkpoint | None) -> str:
    """The recipe a verb means for a checkpoint: Python models have a long-context one apart."""
    python = init is not None and init.lineage().get("recipe") == PYTHON.name
    return LCFT_PYTHON.name if name == LCFT.name and python else name


def _ancestors(init: Checkpoint | None) -> tuple[dict[str, Any], ...]:
    """The lineage of a checkpoint: its own stage, then those before it."""
    if init is None or not (told := init.lineage()):
        return ()
    own = {key: value for key, value in told.items() if key != "ancestors"}
    return (own, *told.get("ancestors", ()))


def _dialogs(
    request: StageRequest, recipe: Recipe, init: Checkpoint, out: Path | None
) -> tuple[Mixture, tuple[DialogReport, ...]]:
    """The mixture of instruction tuning, and what its files of dialogs held."""
    if init.tokenizer_path is None:
        raise UserError(
            f"{init.folder} has no tokenizer.model",
            hint="copy the one the model was trained with into that folder",
        )
    tokenizer = Tokenizer.load(init.tokenizer_path)
    folder = (out or Path(_scratch().name)) / "dialogs"
    named, reports = [], []
    for argument in request.dialogs:
        path, weight = split_weight(argument)
        made, report = open_dialogs(
            path, tokenizer, folder, allow_tags=request.allow_tags, strict=request.strict
        )
        named.append((str(path), weight, made))
        reports.append(report)
    if len({name for name, _, _ in named}) < len(named):
        raise UsageError("a file of dialogs is named twice", hint="give it once, with its weight")
    mixture = Mixture.of_dialogs(named, request.rehearse, share=recipe.rehearse)
    return mixture, tuple(reports)


@lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Where dialogs are encoded for a plan, which has no run folder; gone with the process."""
    return tempfile.TemporaryDirectory(prefix="codecria-")


def _too_long(mixture: Mixture, recipe: Recipe) -> int:
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


def _tokens_of_epochs(mixture: Mixture, recipe: Recipe, epochs: float) -> int:
    """The tokens of a run that goes through the dialogs so often, rehearsal rows included."""
    if epochs <= 0:
        raise UsageError(f"--epochs {epochs:g} is not positive")
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


_DOCUMENTS = 1 << 20  # looked at together


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


def _model_config(
    size: str | None,
    init: Checkpoint | None,
    recipe: Recipe,
    shards: ShardSet,
    vocabulary: Vocabulary,
) -> ModelConfig:
    """The shape to train: a preset for this tokenizer, or the checkpoint's own."""
    told = shards.manifest.tokenizer
    rope = _rope(recipe)
    if init is None:
        assert size is not None, "checked by resolve"
        return replace(
            preset(size),
            vocab_size=vocabulary.size,
            max_context=recipe.context,
            bos_id=told.bos_id,
            eos_id=told.eos_id,
            **rope,
        )
    longest = max(init.config.max_context, recipe.context)
    shape = replace(init.config, max_context=longest, **rope)
    if vocabulary.tokenizer is not None:  # seen to fit by `Vocabulary.see`
        return replace(shape, vocab_size=max(shape.vocab_size, vocabulary.size))
    if init.config.vocab_size < told.vocab_size:
        raise UserError(
            f"the data has a vocabulary of {told.vocab_size}, {init.folder} one of"
            f" {init.config.vocab_size}",
            hint=f"prepare the data again with --tokenizer {init.folder}",
        )
    beside = init.tokenizer_path
    trained_with = init.lineage().get("tokenizer") or (digest_file(beside) if beside else None)
    if trained_with not in (None, shards.tokenizer_digest):
        raise UserError(
            f"{init.folder} was trained with another tokenizer than the data was encoded with",
            hint=f"prepare the data again with --tokenizer {init.folder}",
        )
    return shape


def _rope(recipe: Recipe) -> dict[str, Any]:
    """What a recipe changes of a model's rotary positions."""
    told = {"rope_theta": recipe.rope_theta, "rope_scale": recipe.rope_scale}
    return {name: value for name, value in told.items() if value is not None}


def _size_of(init: Checkpoint | None) -> str:
    """The preset a checkpoint's shape belongs to, whose recipe then applies."""
    assert init is not None, "checked by resolve"
    shape = (init.config.dim, init.config.n_layers, init.config.n_heads)
    for size, config in MODELS.items():
        if (config.dim, config.n_layers, config.n_heads) == shape:
            return size
    return min(MODELS, key=lambda size: abs(MODELS[size].parameters - init.config.parameters))


def _choose_dtype(requested: str, device: torch.device) -> str:
    if requested == "auto":
        return "bfloat16" if machine.bf16_pays(device) else "float32"
    if requested not in ("float32", "bfloat16"):
        raise UsageError(f"cannot train in {requested!r}", hint="auto, float32 or bfloat16")
    return requested


def _choose_compiled(
    requested: str, settled: bool | None, dtype: str, seconds: float | None
) -> bool:
    if requested not in ("auto", "on", "off"):
        raise UsageError(f"--compile is {requested!r}", hint="auto, on or off")
    if requested == "on" and (problem := machine.compiler_problem()):
        raise UserError(f"--compile on: {problem}", hint="install one, or leave --compile away")
    if requested != "auto":
        return requested == "on"
    if settled is not None:  # measured peaks waver: a run that goes on keeps what it began with
        return settled
    pays = seconds is not None and seconds > COMPILE_PAYS_AFTER_S[dtype]
    return pays and machine.compiler_available()


def _choose_recompute(
    requested: str,
    settled: bool | None,
    model: ModelConfig,
    recipe: Recipe,
    micro_rows: int,
    dtype: str,
    device: torch.device,
) -> bool:
    if requested not in ("auto", "on", "off"):
        raise UsageError(f"--recompute is {requested!r}", hint="auto, on or off")
    if requested != "auto":
        return requested == "on"
    if settled is not None:
        return settled
    parts = memory_bytes(model, recipe.context, micro_rows, dtype)
    # Eager execution keeps about as much again (`memory_bytes`).
    activations = 2 * parts["activations"]
    rest = sum(parts.values()) - parts["activations"]
    return rest + activations > MEMORY_SHARE * machine.memory_size(device)


def _micro_rows(requested: int | None, recipe: Recipe, device: torch.device) -> int:
    """Rows of one forward pass: asked for, or the largest divisor of the batch that fits."""
    if requested is not None:
        if requested < 1 or recipe.rows % requested:
            raise UsageError(
                f"--micro-rows {requested} does not divide the batch of {recipe.rows} rows"
            )
        return requested
    budget = CPU_MICRO_TOKENS if device.type == "cpu" else CUDA_MICRO_TOKENS
    fitting = max(1, budget // recipe.context)
    return max(n for n in range(1, min(fitting, recipe.rows) + 1) if recipe.rows % n == 0)
