"""The resume state of a run: float32 weights, the optimiser's moments, and the step.

Each step folder is itself a checkpoint (core/checkpoints/checkpoint.py), so any of them generates
text; two more files make it possible to resume from it bit for bit. Weights are saved and restored
by name: frozen ones have no moments, and those that the model's shape does not know (adapters) lie
in a file of their own. A folder appears whole or not at all, and the oldest are removed as new ones
come.

Every process writes and reads the parts that it holds, and the files hold whole tensors: a run
resumes on any number of processes, split in any way. Steps are written in the background while
training goes on; one at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codecria.core.checkpoints.adapters.folder import WEIGHTS_NAME as ADAPTER_NAME
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.checkpoints.formats.hugging_face import (
    MODEL_STEM,
    placed_tensors,
    plan_files,
    write_index,
)
from codecria.core.checkpoints.formats.layout import hugging_face_name, shapes_of
from codecria.core.checkpoints.formats.weights import Box, SafetensorsWeights
from codecria.core.checkpoints.parts import read_parts
from codecria.core.checkpoints.saving import (
    Contents,
    Saving,
    model_contents,
    model_tensors,
    planned_of,
    save_contents,
)
from codecria.core.checkpoints.writing import MAX_SHARD_BYTES
from codecria.core.model.transformer import Transformer
from codecria.data.errors import ReportedElsewhere, UserError
from codecria.data.files import atomic_write_json, read_json, remove_leftovers

from .adapters import adapter_contents, peft_tensors, trained_parameters
from .optim import trained_weights
from .run import RunConfig
from .world import ALONE, World

STATE_NAME = "state.json"
MOMENTS_STEM = "optimizer"  # optimizer.safetensors, or several with an index
ADAPTER_STEM = ADAPTER_NAME.removesuffix(".safetensors")
EXTRA_STEM = "extra"  # weights beside those of the model's shape, such as adapters
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, as torch names them


def step_folders(run: Path) -> list[Path]:
    """The run's saved steps, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def newest_step(run: Path) -> int:
    """The run's newest saved step, 0 where there is none."""
    folders = step_folders(run)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def drop_after(run: Path, step: int) -> None:
    """Remove the steps saved after `step`, unless there is no earlier one to resume from."""
    border = f"step-{step:08d}"
    later = [folder for folder in step_folders(run) if folder.name > border]
    if len(later) < len(step_folders(run)):
        for folder in later:
            shutil.rmtree(folder)


def size_bytes(run: RunConfig) -> int:
    """Bytes of one saved step: float32 weights and two moments, and the tokenizer."""
    model, recipe = run.model, run.recipe
    saved = trained_parameters(model, recipe, 16) if recipe.lora_rank else model.parameters
    return int(12.2 * saved) + (8 << 20)


class Saver:
    """Saves the steps of a run in the background; every process has one.

    Args:
        run: the run folder, whose lock is held.
        config: what is done in it.
        model, optimizer: with float32 weights and moments.
        tokenizer: the tokenizer.model to put beside the weights.
        spare: a step that is kept beside them.
        world: the processes that hold the model.
    """

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        model: Transformer,
        optimizer: torch.optim.AdamW,
        *,
        tokenizer: Path | None,
        spare: int | None = None,
        world: World = ALONE,
    ) -> None:
        self.run = run
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.tokenizer = tokenizer
        self.spare = spare
        self.world = world
        self._saving: Saving | None = None

    def start(self, state: Mapping[str, Any]) -> None:
        """Save what the model and the optimiser hold now; steps older than those kept go then.

        The save before is waited for. When this returns, weights and moments may change.

        Args:
            state: JSON values, "step" among them: how many steps are done.

        Raises:
            UserError: the save before failed.
        """
        self.wait()
        state = dict(state)  # as it is now
        weights = self._weights(state)
        extra = _extra(self.model, self.config)
        moments = _moments_of(self.model, self.optimizer)
        of_moments = plan_files(
            planned_of(moments), max_shard_bytes=MAX_SHARD_BYTES, stem=MOMENTS_STEM
        )
        files = {**weights.files, **of_moments, f"{EXTRA_STEM}.safetensors": planned_of(extra)}

        def beside(folder: Path, digests: dict[str, str]) -> None:
            weights.beside(folder, digests)
            write_index(folder, of_moments, MOMENTS_STEM)
            atomic_write_json(folder / STATE_NAME, state)

        self._saving = save_contents(
            self.run / "checkpoints" / f"step-{state['step']:08d}",
            Contents(
                {**weights.tensors, **moments, **extra},
                {name: tensors for name, tensors in files.items() if tensors},
                beside,
            ),
            done=self._drop_oldest,
            group=self.world.files,
            background=True,
        )

    def _weights(self, state: Mapping[str, Any]) -> Contents:
        """The weights to save: the model's, or the adapter's alone."""
        if self.config.recipe.lora_rank:
            return adapter_contents(
                self.model,
                self.config.recipe,
                trained_weights(self.model),
                tokenizer=self.tokenizer,
                lineage=state,
                base=self.config.base,
            )
        return model_contents(
            self.model, dtype=torch.float32, tokenizer=self.tokenizer, lineage=state
        )

    def _drop_oldest(self) -> None:
        """Remove all but the newest steps; called in the main process when one has appeared."""
        for old in step_folders(self.run)[: -self.config.keep]:
            if old.name != f"step-{self.spare or 0:08d}":
                shutil.rmtree(old)

    def failed(self) -> bool:
        """Whether the save under way has failed; `wait` raises why."""
        return self._saving is not None and self._saving.failed()

    def wait(self) -> None:
        """Wait until the step is saved.

        Raises:
            UserError: it could not be written; every process raises, older steps are untouched.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.wait()


def restore(
    run: Path,
    config: RunConfig,
    model: Transformer,
    optimizer: torch.optim.AdamW,
    world: World = ALONE,
) -> dict[str, Any] | None:
    """Put the newest saved step into the model and the optimiser.

    Args:
        run: the run folder, whose lock is held; leftovers of a killed save are removed.
        config: what is done in it.
        model, optimizer: of the same shape; overwritten in place.
        world: the processes that hold the model; each calls this and reads its own part.

    Returns:
        the state that was saved, or None where nothing was.

    Raises:
        UserError: the newest step is damaged.
    """
    newest = world.on_main(lambda: _newest(run))
    if newest is None:
        return None
    state: dict[str, Any] = world.on_main(lambda: _checked(newest, config, model))
    tensors: dict[str, Tensor] = _tensors(model, config)
    for name, (weight, moment) in _moment_places(model).items():
        entry = optimizer.state.setdefault(weight, {})
        entry["step"] = torch.tensor(float(state["updates"]), device=weight.device)
        entry[moment] = tensors[name] = torch.zeros_like(weight.detach())
    stored = SafetensorsWeights(_files(newest))
    # Names that a model's shape knows go by ours there.
    ours = {hugging_face_name(name): name for name in shapes_of(model.config)}

    def fill(name: str, box: Box, target: Tensor) -> None:
        with stored.borrow_box(ours.get(name, name), box) as part:
            target.copy_(part)

    try:
        read_parts(tensors, fill, world.files)
    except ReportedElsewhere:
        raise
    except UserError as error:
        raise _unusable(newest, error.message) from error
    return state


def _checked(newest: Path, config: RunConfig, model: Transformer) -> dict[str, Any]:
    """The state of a saved step that fits the model.

    Raises:
        UserError: it does not fit, or is damaged.
    """
    misfits: list[str] = []
    try:
        state = read_json(newest / STATE_NAME)
        found = _files(newest)
        if not config.recipe.lora_rank:
            checkpoint = Checkpoint.open(newest)
            misfits = checkpoint.problems()
            if checkpoint.config != model.config:
                misfits.append("it is of another shape")
    except UserError as error:
        raise _unusable(newest, error.message) from error
    if misfits:
        raise _unusable(newest, "; ".join(misfits[:3]))
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise _unusable(newest, "its state.json names no step")
    different = sorted(found.keys() ^ {*_tensors(model, config), *_moment_places(model)})
    if different:
        raise _unusable(
            newest, f"it was saved with other trained weights: {', '.join(different[:3])}"
        )
    return state


def _tensors(model: Transformer, config: RunConfig) -> dict[str, Tensor]:
    """The weights that a step holds, by their names in its files."""
    if config.recipe.lora_rank:
        trained = trained_weights(model)
        return {theirs: trained[ours] for theirs, ours in peft_tensors(trained).items()}
    return model_tensors(model) | _extra(model, config)


def _files(folder: Path) -> dict[str, Path]:
    """Which file of a saved step holds which tensor."""
    return {
        name: path
        for stem in (MODEL_STEM, ADAPTER_STEM, MOMENTS_STEM, EXTRA_STEM)
        for name, path in (placed_tensors(folder, stem) or {}).items()
    }


def _newest(run: Path) -> Path | None:
    """The newest saved step, what a killed save left removed."""
    if not (run / "checkpoints").is_dir():
        return None
    remove_leftovers(run / "checkpoints")
    folders = step_folders(run)
    return folders[-1] if folders else None


def _extra(model: Transformer, config: RunConfig) -> dict[str, Tensor]:
    """The weights that the model's shape does not know, where they are no adapter."""
    known = shapes_of(model.config)
    return {
        name: weight
        for name, weight in model.named_parameters()
        if name not in known and not config.recipe.lora_rank
    }


def _moment_places(model: Transformer) -> dict[str, tuple[torch.nn.Parameter, str]]:
    """The trained weight and the moment of it, by its name in the file.

    The names are those of the weights, and the moment: model.norm.weight.exp_avg.
    """
    known = shapes_of(model.config)
    return {
        f"{hugging_face_name(name) if name in known else name}.{moment}": (weight, moment)
        for name, weight in model.named_parameters()
        if weight.requires_grad
        for moment in MOMENTS
    }


def _moments_of(model: Transformer, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The moments of the trained weights, by their names in the file."""
    return {
        name: optimizer.state[weight][moment]
        for name, (weight, moment) in _moment_places(model).items()
        if weight in optimizer.state
    }


def _unusable(folder: Path, why: str) -> UserError:
    return UserError(
        f"cannot resume from {folder}: {why}",
        hint="remove that folder to resume from the step before it",
    )
