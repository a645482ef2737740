"""Which learning rate suits an adapter: loss after equal steps, beside training every weight.

    codecria prepare-data SOURCE --tokenizer MODEL --out shards
    python tests/bench/adapter_rate.py MODEL shards --out sweep [--steps 60] [--rate 1e-4]

The full rate is the one of training every weight: the recipe's, or --rate. An adapter of each rank
is trained at 1, 3, 10 and 30 times it, and every weight at 0.3, 1 and 3 times, from the same model
on the same rows. The validation loss of the last step is printed, a line a run. A run that is there
is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.training.meter import read_metrics
from codecria.core.training.recipes import recipe_for
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import run_stage
from codecria.core.training.start import FromCheckpoint


def loss_after(out: Path, steps: int, **asked: Any) -> float:
    """Validation loss after the last step of a run, which is trained here."""
    request = StageRequest(
        recipe="fim", steps=steps, any_init=True, device="cpu", dtype="float32", compile="off",
        save_every=10_000, eval_every=steps, eval_rows=32, log_every=steps, **asked,
    )  # fmt: skip
    run_stage(
        resolve(request, out=out), out, report=lambda _: None, warn=print, started=lambda _: None
    )
    found = [
        r["validation_loss"] for r in read_metrics(out / "metrics.jsonl") if "validation_loss" in r
    ]
    return float(found[-1])


def main() -> None:
    """Train each and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(options.model)
    full = options.rate or recipe_for("fim", FromCheckpoint(checkpoint).size).peak_lr
    print(f"full rate {full:g}, {options.steps} steps of {options.batch_tokens} tokens", flush=True)
    runs: list[tuple[int | None, float]] = [(None, times) for times in (0.3, 1.0, 3.0)]
    runs += [(rank, times) for rank in options.ranks for times in (1.0, 3.0, 10.0, 30.0)]
    for rank, times in runs:
        name = "full" if rank is None else f"rank-{rank}"
        changes = {
            "context": options.context,
            "batch_tokens": options.batch_tokens,
            "infill_scope": "context",
            "peak_lr": full * times,
        }
        loss = loss_after(
            options.out / f"{name}-{times:g}", options.steps, data=[str(options.shards)],
            init=options.model, lora=rank, changes=changes,
        )  # fmt: skip
        print(f"{name:8} rate x{times:<4g} {loss:.4f} nats a token", flush=True)


if __name__ == "__main__":
    main()
