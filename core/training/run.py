"""A run, resolved: what is trained on what, for how long, and where the results go.

A run is fixed when it first starts and recorded in its folder. Rerunning the same command resumes
it; a changed recipe or changed data is refused, because the result would be neither the old run nor
the new one. Two changes can be asked for: more steps (`--extend`), or another run in its place
(`--force`).

    RUN/run.json                      this page: recipe, model, data and their digests, environment
    RUN/metrics.jsonl                 one line a logged step, one a validation
    RUN/checkpoints/step-00000100/    a checkpoint that generates as it is, float32, with
        optimizer.safetensors         the moments and
        state.json                    the step, to resume from
    RUN/model/                        the finished model, published; or, trained with --lora,
    RUN/adapter/                      the finished adapter, and in checkpoints/ adapters too
    RUN/tokenizer.model               where the stage extended it by the infilling pieces
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from codecria.core.checkpoints.adapters.folder import PUBLISHED_ADAPTER
from codecria.core.checkpoints.ends import CONFIG_NAME
from codecria.core.checkpoints.formats.meta import PARAMS_NAME
from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError
from codecria.data.files import atomic_write_json, read_json
from codecria.data.identity import differences, require_same
from codecria.data.rows.shards import MANIFEST_NAME, SETS_NAME

from .recipes import Recipe

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
PUBLISHED = "model"
FORMAT = 1

PROSE = ("summary", "source", "follows", "mixture", "stand_ins")  # of a recipe: for people


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One shard set of the mixture.

    Attributes:
        path: its folder or file, as given; its name in metrics.
        folder: the shard set, as an absolute path, to find it from any working directory.
        weight: its share of the rows, all shares summing to one.
        digest: of its content.
    """

    path: str
    folder: str
    weight: float
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """All that decides the weights a run ends with, and how it is watched.

    Attributes:
        recipe: the stage's numbers.
        model: the shape.
        sources: the data.
        tokenizer_digest: of the model's tokenizer; with infilling, extended.
        init: digest of the checkpoint it starts from, "" from fresh weights.
        base: what an adapter records of that checkpoint (`adapters.base_record`); else empty.
        micro_batch_size: rows of one forward pass; a batch is split into such parts.
        dtype: what matrix products are computed in; weights are float32 always.
        compiled: whether torch.compile is used.
        attention: the attention backend.
        recompute: whether activations are recomputed in backward; the result is the same.
        ancestors: what the checkpoint it starts from was made by, newest first, for the lineage.
        extended: the steps at which the run was given more steps.
        log_every, eval_every, save_every: in steps.
        eval_rows: validation rows of each source.
        keep: how many checkpoints are kept.
    """

    recipe: Recipe
    model: ModelConfig
    sources: tuple[SourceSpec, ...]
    tokenizer_digest: str
    init: str
    micro_batch_size: int
    dtype: str
    compiled: bool
    attention: str
    recompute: bool
    ancestors: tuple[dict[str, Any], ...]
    extended: tuple[int, ...]
    log_every: int
    eval_every: int
    save_every: int
    eval_rows: int
    keep: int
    base: dict[str, Any] = field(default_factory=dict)

    @property
    def published(self) -> str:
        """The folder, in the run's, that the finished model or adapter appears in."""
        return PUBLISHED_ADAPTER if self.recipe.lora_rank else PUBLISHED

    def identity(self) -> dict[str, Any]:
        """The flat facts that decide the weights: changing one makes it another run."""
        recipe = asdict(self.recipe)
        for prose in PROSE:
            del recipe[prose]
        flat = {f"recipe.{key}": value for key, value in recipe.items()}
        flat |= {f"model.{key}": value for key, value in asdict(self.model).items()}
        for n, source in enumerate(self.sources):
            flat[f"data.{n}.digest"] = source.digest
            flat[f"data.{n}.weight"] = source.weight
        flat["positions"] = "in the document" if self.recipe.document_mask else "in the row"
        for name in ("tokenizer_digest", "init", "dtype", "compiled", "attention"):
            flat[name] = getattr(self, name)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in flat.items()}


def environment() -> dict[str, Any]:
    """What bit-for-bit repetition depends on beside the run: versions, instructions, threads."""
    import torch  # here: it takes seconds, and comparing runs does not need it

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def record(folder: Path, run: RunConfig, *, mesh: str, init_stamp: dict[str, Any]) -> None:
    """Write `run.json` into a fresh run folder.

    Args:
        folder: of the run.
        run: what it trains.
        mesh: how its processes share the work.
        init_stamp: of the checkpoint it starts from, so that resuming need not read that again.
    """
    spelled = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in _NESTED}
    spelled["recipe"] = asdict(run.recipe)
    spelled["model"] = asdict(run.model)
    spelled["sources"] = [asdict(source) for source in run.sources]
    atomic_write_json(
        folder / RUN_NAME,
        {
            "format": FORMAT,
            "run": spelled,
            "identity": run.identity(),
            "environment": environment() | {"mesh": mesh},
            "init_stamp": init_stamp,
        },
    )


_NESTED = ("recipe", "model", "sources")


def recorded(folder: Path) -> dict[str, Any] | None:
    """What `run.json` in a folder says, or None if there is none.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    path = folder / RUN_NAME
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not a run of this version", hint="choose another --out")
    return value


@dataclass(frozen=True, slots=True)
class Standing:
    """What training in a folder does to what is there.

    Attributes:
        action: "start" in a folder without a run, "resume" it, "extend" it, or "replace" it.
        warnings: what the user must know: the environment differs, or the schedule changes.
        rewind: with "extend", the last step whose checkpoint serves.
    """

    action: Literal["start", "resume", "extend", "replace"]
    warnings: tuple[str, ...] = ()
    rewind: int = 0


def standing(folder: Path, run: RunConfig, *, extend: bool, force: bool) -> Standing:
    """Compare a run with what its folder holds.

    Args:
        folder: the run folder.
        run: what is asked for.
        extend: the run there may get more steps.
        force: the run there is replaced.

    Raises:
        UserError: the folder holds another run, or something that is no run.
    """
    check_place(folder)
    old = recorded(folder)
    if old is None and any(folder.glob("checkpoints/step-*")):
        if force:
            return Standing("replace")
        raise UserError(
            f"{folder} holds checkpoints of a run, and no {RUN_NAME}",
            hint="choose another --out, or replace what is there with --force",
        )
    if old is None:
        if extend:
            raise UserError(
                f"{folder} holds no run to extend", hint="leave --extend away to start one"
            )
        return Standing("start")
    if force:
        return Standing("replace")
    before, now = _identity_recorded(old), run.identity()
    warnings = _warnings(old, run)
    steps = _steps_of(before), run.recipe.steps
    if extend and steps[0] != steps[1]:
        before["recipe.tokens"] = now["recipe.tokens"]
    changed = differences(before, now)
    if before["positions"] != now["positions"] and not any(
        line.startswith("recipe.document_mask:") for line in changed
    ):
        raise UserError(
            f"{folder} was begun by an earlier version, which restarted rotary positions at each"
            " document although attention crosses documents; positions now count along the row",
            hint="start again in another --out, or from one of its checkpoints with --init",
        )
    require_same(
        folder,
        changed,
        hint="give the same options to resume it, choose another --out, or replace the run"
        " with --force"
        + ("; --extend gives it more steps" if _only_longer(changed, *steps) else ""),
    )
    if not extend or steps[0] == steps[1]:
        return Standing("resume", warnings)
    if steps[1] < steps[0]:
        raise UserError(
            f"{folder} has {steps[0]:,} steps: --extend to {steps[1]:,} would make it shorter",
            hint="give more steps, or choose another --out",
        )
    return _extension(run, steps[0], warnings)


def _extension(run: RunConfig, steps: int, warnings: tuple[str, ...]) -> Standing:
    """How a run of so many steps gets those of `run`."""
    recipe = run.recipe
    if recipe.schedule == "wsd":
        # Up to where its decay began, the shorter run is the longer one, bit for bit.
        shorter = replace(recipe, tokens=steps * recipe.batch_tokens)
        return Standing("extend", warnings, rewind=shorter.decay_start)
    note = (
        f"the cosine is planned again over {recipe.steps:,} steps: what was trained at the rates of"
        f" {steps:,} steps stays, so the result is not that of a run of {recipe.steps:,} steps"
        " (runs begun with --set schedule=wsd extend exactly)"
    )
    return Standing("extend", (*warnings, note), rewind=steps)


def check_place(folder: Path) -> None:
    """Check that nothing else lives in the folder.

    Raises:
        UserError: it holds shards or a checkpoint, or is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", hint="choose another --out")
    others = {
        MANIFEST_NAME: "shards",
        SETS_NAME: "shard sets",
        CONFIG_NAME: "a checkpoint",
        PARAMS_NAME: "a checkpoint",
    }
    for name, what in others.items():
        if (folder / name).is_file():
            raise UserError(
                f"{folder} holds {what}: a run there would mix both", hint="choose another --out"
            )


# Fields of a recipe whose names have changed since runs that may still be resumed.
_RENAMED = {
    "recipe.final_lr_ratio": "recipe.min_lr_ratio",
    "recipe.rehearse": "recipe.replay",
}


def _identity_recorded(page: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a recorded run, under today's names.

    A field that was not there yet has today's default: what it chooses was fixed before. Runs that
    do not record how positions count restarted them at each document.
    """
    found = {_RENAMED.get(key, key): value for key, value in page["identity"].items()}
    found.pop("micro_rows", None)  # how a batch is split is no part of what is trained
    for prefix, kind in (("recipe", Recipe), ("model", ModelConfig)):
        for known in fields(kind):
            if known.default is not MISSING and known.name not in PROSE:
                found.setdefault(f"{prefix}.{known.name}", known.default)
    return {"positions": "in the document"} | found


def _warnings(page: Mapping[str, Any], run: RunConfig) -> tuple[str, ...]:
    """What may change the last bits of a resumed run."""
    known = page["run"]
    parts = {"micro_batch_size": known.get("micro_batch_size", known.get("micro_rows"))}
    before = {"processes": 1} | page["environment"] | parts
    before.pop("mesh", None)  # settled after the run is compared: `mesh_warning`
    found = differences(before, environment() | {"micro_batch_size": run.micro_batch_size})
    return tuple(f"resuming with {line}: the last bits may differ" for line in found)


def mesh_warning(folder: Path, mesh: str) -> tuple[str, ...]:
    """What `standing` could not say yet: that as many processes share the work in another way."""
    page = recorded(folder)
    before = {} if page is None else page["environment"]
    if before.get("mesh", mesh) == mesh or before["processes"] != environment()["processes"]:
        return ()
    return (f"resuming with mesh: {before['mesh']} -> {mesh}: the last bits may differ",)


def _steps_of(identity: Mapping[str, Any]) -> int:
    steps: int = math.ceil(identity["recipe.tokens"] / identity["recipe.batch_tokens"])
    return steps


def _only_longer(changed: list[str], before: int, now: int) -> bool:
    """Whether the length is all that differs, with what follows from it."""
    follows = ("recipe.tokens:", "recipe.warmup_steps:")
    return now > before and all(line.startswith(follows) for line in changed)
