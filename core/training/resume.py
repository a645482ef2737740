"""The resume state of a run: float32 weights, the optimiser's moments, and the step.

Each step folder is itself a checkpoint (core/checkpoints/checkpoint.py), so any of them generates
text; two more files make it possible to resume from it bit for bit. Weights are saved and restored
by name: frozen ones have no moments, and those that the model's shape does not know (adapters) lie
in a file of their own. A folder appears whole or not at all, and the oldest are removed as new ones
come.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from codecria.core.checkpoints.checkpoint import Checkpoint, write_checkpoint
from codecria.core.checkpoints.formats.hugging_face import write_tensors
from codecria.core.checkpoints.formats.layout import hugging_face_name, shapes_of
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from codecria.data.files import (
    atomic_folder,
    atomic_write_json,
    read_json,
    remove_leftovers,
    require_free_space,
)

from .adapters import read_adapter, trained_parameters, write_adapter
from .optim import trained_weights
from .parallel import Read, placed, with_whole_tensors
from .run import RunConfig
from .world import ALONE, World

STATE_NAME = "state.json"
MOMENTS_NAME = "optimizer.safetensors"
EXTRA_NAME = "extra.safetensors"  # weights beside those of the model's shape, such as adapters
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


def save(
    run: Path,
    config: RunConfig,
    model: Transformer,
    optimizer: torch.optim.AdamW,
    *,
    state: Mapping[str, Any],
    tokenizer: Path | None,
    keep: int,
    spare: int | None = None,
    world: World = ALONE,
) -> Path:
    """Save a step, then remove all but the newest `keep`.

    Args:
        run: the run folder, whose lock is held.
        config: what is done in it.
        model, optimizer: with float32 weights and moments.
        state: JSON values, "step" among them: how many steps are done.
        tokenizer: the tokenizer.model to put beside the weights.
        keep: at least 1.
        spare: a step that is kept beside them.
        world: the processes that hold the model; each calls this, the main one writes.

    Raises:
        UserError: it cannot be written; the older steps are untouched.
    """
    adapter = config.recipe.lora_rank > 0
    extra = [] if adapter else _extra(model)
    weights = trained_weights(model) if adapter else dict(model.named_parameters())
    moments = _moments_of(model, optimizer)

    def write(read: Read) -> Path:
        folder = run / "checkpoints" / f"step-{state['step']:08d}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        require_free_space(folder.parent, size_bytes(config))
        with atomic_folder(folder) as temporary:
            if adapter:
                write_adapter(
                    temporary,
                    model,
                    config.recipe,
                    weights,
                    read,
                    tokenizer=tokenizer,
                    lineage=state,
                    base=config.base,
                )
            else:
                write_checkpoint(
                    temporary,
                    model.config,
                    read,
                    dtype=torch.float32,
                    tokenizer=tokenizer,
                    lineage=state,
                )
            for name, tensors in (
                (EXTRA_NAME, {name: weights[name] for name in extra}),
                (MOMENTS_NAME, moments),
            ):
                if tensors:
                    planned = {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
                    write_tensors(temporary / name, planned, read)
            atomic_write_json(temporary / STATE_NAME, dict(state))
        for old in step_folders(run)[:-keep]:
            if old.name != f"step-{spare or 0:08d}":
                shutil.rmtree(old)
        return folder

    return with_whole_tensors(world, weights | moments, write)


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
    state = read_json(newest / STATE_NAME)
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise _unusable(newest, "its state.json names no step")
    weights = dict(model.named_parameters())
    try:
        with torch.no_grad():
            for name, tensor in _saved(newest, config, model):
                weights[name].copy_(placed(tensor, weights[name]))
        wanted = {
            _moment_name(name, moment, model): (weight, moment)
            for name, weight in weights.items()
            if weight.requires_grad
            for moment in MOMENTS
        }
        for stored, tensor in _read(newest / MOMENTS_NAME, wanted).items():
            weight, moment = wanted[stored]
            entry = optimizer.state.setdefault(weight, {})
            entry["step"] = torch.tensor(float(state["updates"]), device=weight.device)
            entry[moment] = placed(tensor, weight)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unusable(newest, str(error)) from error
    return state


def _saved(step: Path, config: RunConfig, model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights of a saved step by name: all of them, or those of the adapter.

    Raises:
        UserError: it is damaged, or of another shape.
        ValueError: it was saved with other trained weights.
    """
    if config.recipe.lora_rank:
        yield from read_adapter(step, trained_weights(model)).items()
        return
    checkpoint = Checkpoint.open(step)
    problems = checkpoint.problems()
    if checkpoint.config != model.config or problems:
        raise _unusable(step, "; ".join(problems[:3]) or "it is of another shape")
    yield from checkpoint.tensors()
    yield from _read(step / EXTRA_NAME, _extra(model)).items()


def _newest(run: Path) -> Path | None:
    """The newest saved step, what a killed save left removed."""
    if not (run / "checkpoints").is_dir():
        return None
    remove_leftovers(run / "checkpoints")
    folders = step_folders(run)
    return folders[-1] if folders else None


def _extra(model: Transformer) -> list[str]:
    """The names of weights that the model's shape does not know."""
    known = shapes_of(model.config)
    return [name for name, _ in model.named_parameters() if name not in known]


def _moment_name(name: str, moment: str, model: Transformer) -> str:
    """The name in the file of a weight's moment: model.norm.weight.exp_avg."""
    known = name in shapes_of(model.config)
    return f"{hugging_face_name(name) if known else name}.{moment}"


def _moments_of(model: Transformer, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The moments of the trained weights, by their names in the file."""
    return {
        _moment_name(name, moment, model): optimizer.state[weight][moment]
        for name, weight in model.named_parameters()
        if weight in optimizer.state
        for moment in MOMENTS
    }


def _read(path: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a file, which are to be those wanted.

    Raises:
        ValueError: others are missing or there: other weights were trained then.
    """
    found: dict[str, Tensor] = {}
    if path.exists() or wanted:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    different = sorted(found.keys() ^ set(wanted))
    if different:
        raise ValueError(f"it was saved with other trained weights: {', '.join(different[:3])}")
    return found


def _unusable(folder: Path, why: str) -> UserError:
    return UserError(
        f"cannot resume from {folder}: {why}",
        hint="remove that folder to resume from the step before it",
    )
