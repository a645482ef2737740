"""A run, resolved: what is trained on what, for how long, and where the results go.

A run is fixed when it first starts and recorded in its folder. Starting it again continues it; a
changed recipe or changed data is refused, because the result would be neither the old run nor the
new one.

    RUN/run.json                      this page: recipe, model, data and their digests, environment
    RUN/metrics.jsonl                 one line a logged step, one a validation
    RUN/checkpoints/step-00000100/    a checkpoint that generates as it is, float32, with
        optimizer.safetensors         the moments and
        state.json                    the step, to go on from
    RUN/model/                        the finished model, published
    RUN/tokenizer.model               where the stage extended it by the infilling pieces
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError
from codecria.data.files import atomic_write_json, read_json

from .recipes import Recipe

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One shard set of the mixture.

    Attributes:
        path: its folder, as given.
        weight: its share of the rows, all shares summing to one.
        digest: of its content.
    """

    path: str
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
        micro_rows: rows of one forward pass; the batch is gone through in such parts.
        dtype: what matrix products are computed in; weights are float32 always.
        compiled: whether torch.compile is used.
        attention: the attention backend.
        recompute: whether activations are computed anew in backward; the result is the same.
        ancestors: what the checkpoint it starts from was made by, newest first, for the lineage.
        log_every, eval_every, save_every: in steps.
        eval_rows: validation rows of each source.
        keep: how many checkpoints are kept.
    """

    recipe: Recipe
    model: ModelConfig
    sources: tuple[SourceSpec, ...]
    tokenizer_digest: str
    init: str
    micro_rows: int
    dtype: str
    compiled: bool
    attention: str
    recompute: bool
    ancestors: tuple[dict[str, Any], ...]
    log_every: int
    eval_every: int
    save_every: int
    eval_rows: int
    keep: int

    def identity(self) -> dict[str, Any]:
        """The flat facts that decide the weights: changing one makes it another run."""
        recipe = asdict(self.recipe)
        for prose in ("summary", "source", "follows", "mixture", "stand_ins"):
            del recipe[prose]
        flat = {f"recipe.{key}": value for key, value in recipe.items()}
        flat |= {f"model.{key}": value for key, value in asdict(self.model).items()}
        for n, source in enumerate(self.sources):
            flat[f"data.{n}.digest"] = source.digest
            flat[f"data.{n}.weight"] = source.weight
        flat["positions"] = "in the document" if self.recipe.document_mask else "in the row"
        for name in ("tokenizer_digest", "init", "micro_rows", "dtype", "compiled", "attention"):
            flat[name] = getattr(self, name)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in flat.items()}


def environment() -> dict[str, Any]:
    """What bit-for-bit repetition depends on beside the run: versions, instructions, threads."""
    import torch  # here, as much that compares runs needs it not, and it takes seconds

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "threads": torch.get_num_threads(),
    }


def record(folder: Path, run: RunConfig) -> None:
    """Write `run.json` into a fresh run folder."""
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
            "environment": environment(),
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


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys whose values differ, as "key: old -> new" lines."""
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def check_same_run(folder: Path, run: RunConfig) -> list[str]:
    """Check that the folder's run is this run.

    Returns:
        differences of the environment, which may change the last bits: worth a warning.

    Raises:
        UserError: data, model or recipe changed.
    """
    old = recorded(folder)
    if old is None:
        return []
    # Runs that do not record it counted positions in the document, whatever attention crossed.
    before = {"positions": "in the document"} | old["identity"]
    changed = differences(before, run.identity())
    masked = old["identity"]["recipe.document_mask"]
    if masked == run.recipe.document_mask and before["positions"] != run.identity()["positions"]:
        raise UserError(
            f"{folder} was begun by an earlier version, which restarted rotary positions at each"
            " document although attention crosses documents; positions now count along the row",
            hint="start again in another --out, or from one of its checkpoints with --init",
        )
    if changed:
        raise UserError(
            f"{folder} holds another run: " + "; ".join(changed),
            hint="give the same options to continue it, or choose another --out",
        )
    return differences(old["environment"], environment())
