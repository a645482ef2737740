"""Small training runs, asked for as the command line asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import run_stage
from codecria.core.training.trainer import Outcome, Trainer

CPU = torch.device("cpu")
CHANGES = {"context": 64, "batch_tokens": 256, "peak_lr": 5e-3}


def request(**options: Any) -> StageRequest:
    """A request for six steps of infilling, but for the options given."""
    settings: dict[str, Any] = {
        "recipe": "fim",
        "data": [],
        "steps": 6,
        "changes": CHANGES,
        "save_every": 3,
        "eval_every": 3,
        "eval_rows": 4,
        "log_every": 1,
        "compile": "off",
        "device": "cpu",
        "dtype": "float32",
    }
    return StageRequest(**settings | options)


def run(
    asked: StageRequest, out: Path, *, stop_after: int | None = None
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Run a stage without a warning; with `stop_after`, as if a signal came during that step."""
    trainers: list[Trainer] = []
    records: list[dict[str, Any]] = []

    def report(entry: dict[str, Any]) -> None:
        records.append(entry)
        if stop_after is not None and entry["step"] >= stop_after:
            trainers[0].stop_requested = True

    outcome = run_stage(
        resolve(asked, out=out), out, report=report, warn=pytest.fail, started=trainers.append
    )
    return outcome, records


def train(asked: StageRequest, out: Path, *, stop_after: int | None = None) -> list[dict[str, Any]]:
    """Run a stage, for what it reports."""
    return run(asked, out, stop_after=stop_after)[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A copy of a checkpoint's parameters."""
    model = load_model(Checkpoint.open(folder), device=CPU)
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}
