"""Speed, losses and memory of training, as records of metrics.jsonl.

Each process measures its own time, and the record has that of the slowest. Processes wait for each
other within a step, so a fast one's step takes as long as the slowest one's:

    rank 0   | waits for data |         | step: computes . . . waits . . computes |
    rank 1   | waits for data, for longer | step: computes, for longer . computes |
                                          began
    data_wait_s   the longest wait for one's own data (here rank 1's)
    step_s        from `began`, when every process has its batch
    compute_s     the longest time that a process computed itself, on CPUs, and
    slowest       its rank
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codecria.core.model.batch import mean_loss
from codecria.data.formats.infill import Order
from codecria.data.journal import read_journal
from codecria.data.rows.loader import Batch
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.rows import DIALOG, KINDS, Counts

from .run import RunConfig
from .world import ALONE, World


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one optimiser step showed.

    Attributes:
        loss: mean over the step's targets, in nats.
        grad_norm: of the gradient before clipping.
        lr: the learning rate.
        skipped: the loss or the gradient was not finite, and the step changed nothing.
        by_kind: (4,2) sums of losses and counts of targets, see `loss_by_kind`.
        counts: of the step's documents, where infilling is on.
        began: when every process had its batch, by `time.perf_counter`.
    """

    loss: Tensor
    grad_norm: float
    lr: float
    by_kind: Tensor
    counts: Counts | None
    began: float
    skipped: bool = False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, up to the first damaged line.

    Raises:
        UserError: it cannot be read.
    """
    whole = itertools.takewhile(lambda entry: not entry.error, read_journal(path))
    return [entry.value for entry in whole]


class Meter:
    """Speed and means between two log lines.

    Args:
        run: gives batch and model.
        peak_flops: of matrix products on one device, FLOP/s; 0 if unknown.
        device: whose memory is reported.
        world: the processes that train together.
    """

    def __init__(
        self, run: RunConfig, peak_flops: float, device: torch.device, world: World = ALONE
    ) -> None:
        self.world = world
        self.flops = run.model.training_flops(run.recipe.context, frozen=run.recipe.lora_rank > 0)
        self.peak_flops = peak_flops * world.size
        self.device = device
        self.recipe = run.recipe
        self.losses: list[float] = []
        self.steps = 0
        self.by_kind = torch.zeros(KINDS, 2, dtype=torch.float64)
        self.counts = Counts()
        self.grad_norm = self.lr = 0.0
        self.wait_s = self.step_s = self.compute_s = self.whole_s = 0.0
        self.since, self.computed = time.perf_counter(), thread_seconds()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the time that this process waits for each."""
        coming = iter(batches)
        while True:
            begin = time.perf_counter()
            batch = next(coming, None)
            if batch is None:
                return
            self.wait_s += time.perf_counter() - begin
            self.computed = thread_seconds()
            yield batch

    def add(self, result: Stepped) -> None:
        """Count the result of a step that ends now."""
        self.whole_s += self._lap()
        self.step_s += self.since - result.began
        self.compute_s += thread_seconds() - self.computed
        self.steps += 1
        if result.counts is not None:
            self.counts += result.counts
        if result.skipped:
            return
        self.grad_norm, self.lr = result.grad_norm, result.lr
        self.losses.append(result.loss.item())
        self.by_kind += result.by_kind.cpu()

    def pause(self) -> None:
        """Leave out the time since the last step: it went into saving or evaluating."""
        self._lap()

    def _lap(self) -> float:
        """Seconds since the last call."""
        before, self.since = self.since, time.perf_counter()
        return self.since - before

    def read(self, done: int, mixture: Mixture) -> dict[str, Any]:
        """The record of the steps since the last call."""
        wait_s, step_s, memory, whole_s = self.world.largest(
            [
                self.wait_s / self.steps,
                self.step_s / self.steps,
                peak_memory_bytes(self.device),
                self.whole_s,
            ]
        )
        speed = tokens_per_second(self.steps * self.recipe.batch_tokens, whole_s)
        recipe = self.recipe
        ledger = mixture.ledger(
            done * recipe.rows, context=recipe.context, seed=recipe.seed, infill=recipe.infill
        )
        record = {
            "step": done,
            "tokens": done * self.recipe.batch_tokens,
            "tokens_per_s": round(speed, 1),
            "mfu": mfu(speed, self.flops, self.peak_flops),
            "data_wait_s": round(wait_s, 6),
            "step_s": round(step_s, 6),
            **self._slowest(),
            "memory_gb": round(memory / 1e9, 3),
            "shares": {entry.name: round(entry.achieved, 6) for entry in ledger},
            "epochs": {entry.name: round(entry.epochs, 6) for entry in ledger},
        }
        if self.losses:  # all steps may have been skipped
            mean = sum(self.losses) / len(self.losses)
            record |= {"loss": mean, "lr": self.lr, "grad_norm": self.grad_norm}
        if recipe.infill is not None:
            record |= infilling_record(self.by_kind, self.counts)
        if any(source.shards.dialogs for source in mixture.sources):
            record |= {
                "dialog_loss": mean_loss(self.by_kind, slice(DIALOG, None)),
                "replay_loss": mean_loss(self.by_kind, slice(0, DIALOG)),
            }
        self.losses, self.steps = [], 0
        self.wait_s = self.step_s = self.compute_s = self.whole_s = 0.0
        self.by_kind, self.counts = torch.zeros_like(self.by_kind), Counts()
        return record

    def _slowest(self) -> dict[str, float]:
        """Which of several processes on CPUs computed for longest, and for how long a step.

        A GPU's thread waits for the device, so its time says nothing.
        """
        if self.world.size == 1 or self.device.type != "cpu":
            return {}
        found = self.world.from_all(self.compute_s / self.steps)
        slowest = max(range(len(found)), key=found.__getitem__)
        return {"compute_s": round(found[slowest], 6), "slowest": slowest}


def thread_seconds() -> float:
    """Seconds that this thread has computed or, on Linux, waited for a core to compute on.

    What it spends waiting for other processes is not in it.
    """
    try:  # nanoseconds on a core, and in its queue
        running, queued = Path("/proc/thread-self/schedstat").read_text().split()[:2]
    except (OSError, ValueError):  # another system, or a kernel without these figures
        return time.thread_time()
    return (int(running) + int(queued)) / 1e9


def infilling_record(by_kind: Tensor, counts: Counts) -> dict[str, Any]:
    """The losses of each kind and what became of the documents, for a metrics record.

    Args:
        by_kind: from `loss_by_kind`, summed over some steps.
        counts: of the same steps.
    """
    return {
        "plain_loss": mean_loss(by_kind, slice(0, 1)),
        "infill_loss": mean_loss(by_kind, slice(Order.PSM, Order.SPM + 1)),
        "psm_loss": mean_loss(by_kind, slice(Order.PSM, Order.PSM + 1)),
        "spm_loss": mean_loss(by_kind, slice(Order.SPM, Order.SPM + 1)),
        "infill": asdict(counts)
        | {"effective_rate": round(counts.infilled_tokens / max(1, counts.tokens), 6)},
    }


def tokens_per_second(tokens: int, seconds: float) -> float:
    """Tokens over seconds; 0 before any time has passed."""
    return tokens / seconds if seconds > 0 else 0.0


def mfu(tokens_per_s: float, flops_per_token: float, peak_flops: float) -> float | None:
    """Model FLOPs utilisation: (6 P + 6 L d T) tokens/s over the measured peak (DECISIONS)."""
    return round(tokens_per_s * flops_per_token / peak_flops, 4) if peak_flops else None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory the process has held: of the device, or resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024  # macOS counts bytes, Linux KiB
