"""What a user asks of a training verb, as it was asked: every option of the training verbs, once.

The command line makes its options from the fields of `StageRequest`: names, types and defaults are
those here, and cli/train.py adds the help line and the group of each. `resolve` turns a request
into a run. Nothing heavy is imported here: help is printed without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from codecria.data.errors import UsageError

INSTRUCT = "instruct"  # the one recipe that trains on dialogs

DEFAULT_RANK = 16  # of --qlora without --lora
PROCESS_TIMEOUT_S = 600.0

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """What was asked for; None leaves it to the recipe, the checkpoint or the machine.

    Attributes:
        recipe: the stage's name, such as "pretrain" or "python".
        data: shard folders, each "DIR" or "DIR=WEIGHT".
        dialogs: files of dialogs, each "FILE" or "FILE=WEIGHT", for instruction tuning.
        replay: shard folders beside the dialogs, each "DIR" or "DIR=SHARE".
        decontaminate: files of evaluation problems; dialogs that hold one are left out.
        allow_tags: keep dialogs whose text holds the tags of a chat form.
        strict: a dialog that cannot be used is an error.
        size: a model size, for fresh weights.
        init: a checkpoint to start from, instead of a size.
        any_init: start from it whatever stage it comes from.
        tokens, steps, epochs: length of the run, one of them; epochs are of the dialogs.
        lora, lora_alpha, lora_layers, qlora: train an adapter of that rank, see `Recipe`.
        changes: recipe fields to override, by name.
        micro_batch_size: rows of one forward pass.
        extend: a finished or unfinished run may get more steps.
        force: replace the run in the output folder.
        mesh: how several processes share the work, see `parse_mesh`.
        process_timeout: seconds that one of them may keep the others waiting; see `joined`.
        device, dtype, compile, attention, recompute: see `RunConfig`.
        log_every, eval_every, save_every, eval_rows, keep: see `RunConfig`.
    """

    recipe: str
    data: Sequence[str] = ()
    dialogs: Sequence[str] = ()
    replay: Sequence[str] = ()
    decontaminate: Sequence[Path] = ()
    allow_tags: bool = False
    strict: bool = False
    size: str | None = None
    init: Path | None = None
    any_init: bool = False
    tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None
    lora: int | None = None
    lora_alpha: float | None = None
    lora_layers: Literal["all", "attention", "mlp"] | None = None
    qlora: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    micro_batch_size: int | None = None
    extend: bool = False
    force: bool = False
    mesh: str = "auto"
    process_timeout: float = PROCESS_TIMEOUT_S
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Switch = "auto"
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    recompute: Switch = "auto"
    log_every: int = 10
    eval_every: int | None = None
    save_every: int | None = None
    eval_rows: int = 64
    keep: int = 2

    @property
    def instructs(self) -> bool:
        """Whether it trains on dialogs."""
        return self.recipe == INSTRUCT

    @property
    def overrides(self) -> dict[str, Any]:
        """The recipe fields that options set, those of adapters included."""
        adapter = {
            "lora_rank": self.lora,
            "lora_alpha": self.lora_alpha,
            "lora_layers": self.lora_layers,
            "qlora": self.qlora or None,
        }
        asked = {name: value for name, value in adapter.items() if value is not None}
        if self.qlora and self.lora is None and "lora_rank" not in self.changes:
            asked["lora_rank"] = DEFAULT_RANK
        return asked | dict(self.changes)

    def check(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            UsageError: naming every problem.
        """
        problems = [*self._out_of_range(), *self._clashes()]
        if problems:
            raise UsageError(
                "; ".join(problem for problem, _ in problems),
                hint="; ".join(dict.fromkeys(hint for _, hint in problems)),
            )

    def check_inputs(self) -> None:
        """Check that data and a model to start from are named, as training needs both.

        Raises:
            UsageError: one is missing.
        """
        if self.instructs and self.init is None:
            raise UsageError(
                "there is no --init", hint="name the checkpoint to tune, such as a run"
            )
        if self.instructs and not self.dialogs:
            raise UsageError(
                "there are no --dialogs", hint="name a file, such as --dialogs chats.jsonl"
            )
        if not self.instructs and not self.data:
            raise UsageError("there is no --data", hint="make some with `codecria prepare-data`")
        if (self.size is None) == (self.init is None):
            raise UsageError(
                "the model needs either --size or --init",
                hint="--size 15m starts from fresh weights, --init CKPT from a checkpoint",
            )

    def _out_of_range(self) -> list[tuple[str, str]]:
        """Counts below one, each with what to do."""
        counts = (
            "tokens",
            "steps",
            "epochs",
            "lora",
            "micro_batch_size",
            "log_every",
            "eval_every",
            "save_every",
            "eval_rows",
            "keep",
        )
        found = []
        for name in counts:
            value = getattr(self, name)
            option = "--" + name.replace("_", "-")
            if name == "epochs":
                if value is not None and not 0 < value < float("inf"):
                    found.append((f"{option} {value:g} is not positive", "use a positive number"))
            elif value is not None and value < 1:
                found.append((f"{option} {value} is less than 1", "use 1 or more"))
        return found

    def _clashes(self) -> list[tuple[str, str]]:
        """Options that exclude each other, each with what to do."""
        lengths = [f"--{n}" for n in ("tokens", "steps", "epochs") if getattr(self, n) is not None]
        found = []
        if len(lengths) > 1:
            found.append(
                (f"{' and '.join(lengths)} both set the length of the run", "give one of them")
            )
        ranked = self.overrides.get("lora_rank")
        if not ranked and (self.lora_alpha is not None or self.lora_layers is not None):
            found.append(("--lora-alpha and --lora-layers are for adapters", "add --lora RANK"))
        if ranked and self.size is not None and self.init is None and self.data:
            found.append(("an adapter needs a model to adapt", "name it with --init"))
        if self.extend and self.force:
            found.append(("--extend keeps a run and --force replaces it", "give one of them"))
        return found
