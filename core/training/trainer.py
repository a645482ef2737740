"""The one training loop: every stage is a recipe on it.

Row i of a run is a pure function of the data, the recipe, the seed and i (data/rows/rows.py), so
the state of a run is its weights, its moments and one integer. Deterministic algorithms are always
on: on one device, torch version, instruction set and thread count, a run that was killed and
resumed ends with the same bits as one that was not.

Shapes: B rows of a micro-batch, T tokens of a row, C = dim.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codecria.core import machine
from codecria.core.checkpoints.saving import model_contents, publish_contents
from codecria.core.model.batch import batch_loss, loss_by_kind
from codecria.core.model.dtypes import DTYPES
from codecria.core.model.spans import Backend
from codecria.core.model.transformer import Transformer, compiled
from codecria.data.errors import UserError
from codecria.data.files import atomic_write, finite, json_line, remove_leftovers
from codecria.data.formats.infill import Order
from codecria.data.journal import append_text
from codecria.data.rows.loader import Batch, Infilling, Loader, validation_batches
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.rows import KINDS, Counts
from codecria.data.rows.shards import ShardSet

from . import resume
from .adapters import adapter_contents
from .allocator import keep_freed_memory
from .card import model_card
from .meter import Meter, Stepped, read_metrics
from .optim import build_optimizer, learning_rate, trained_weights
from .parallel import clip_gradients, context_split, sum_gradients
from .recipes import OBJECTIVE
from .run import METRICS_NAME, RunConfig
from .world import ALONE, World

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `Trainer.fit` ended.

    Attributes:
        step: steps done in all.
        finished: whether that is the recipe's last step.
        trained: steps done by this call; 0 means there was nothing left to do.
    """

    step: int
    finished: bool
    trained: int


def make_deterministic() -> None:
    """Forbid every algorithm whose result may differ between two equal runs."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    # On by default with the above, to make reads of unset memory show; it writes every new tensor
    # twice. Nothing here reads unset memory: killed and unbroken runs end alike to the bit.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Trainer:
    """Trains one model on one mixture, as one run says, in one run folder.

    Call it with the folder's lock held by the main process. It prints nothing: there `report` is
    called with each record that is written to metrics.jsonl.

    Args:
        run: what to do.
        model: float32 weights to start from, on the device to train on and split over the
            processes (`initial_model`); those that ask for no gradient stay as they are.
        mixture: the opened training data, as `run.sources` names it.
        validation: (name, validation split) of each source that has one.
        folder: the run folder.
        tokenizer: the tokenizer.model published with the model.
        peak_flops: measured matrix-product peak in FLOP/s, for MFU; 0 if unknown.
        report: called with each metrics record.
        infilling: how documents are infilled, if the recipe says so.
        world: the processes that train together; the main one writes the folder and reports.
        accumulate: they sum gradients after a step's last pass, not after each; see `accumulates`.
    """

    def __init__(
        self,
        run: RunConfig,
        model: Transformer,
        mixture: Mixture,
        *,
        validation: Sequence[tuple[str, ShardSet]],
        folder: Path,
        tokenizer: Path,
        peak_flops: float,
        report: Report,
        infilling: Infilling | None = None,
        world: World = ALONE,
        accumulate: bool = False,
    ) -> None:
        assert (infilling is None) == (run.recipe.infill is None), f"{run.recipe.name}: {infilling}"
        make_deterministic()
        keep_freed_memory()
        self.world = world
        self.accumulate = accumulate
        self.run = run
        self.recipe = run.recipe
        self.model = model.train()
        self.model.recompute = run.recompute
        self.device = model.tok_embeddings.device
        self.mixture = mixture
        self.validation = validation
        self.folder = folder
        self.tokenizer = tokenizer
        self.peak_flops = peak_flops
        self.report = report
        self.infilling = infilling
        self.dialogs = any(source.shards.dialogs for source in mixture.sources)
        self.trained = trained_weights(model)
        self.optimizer = build_optimizer(self.trained, self.recipe)
        self.forward = compiled(model, alone=world.size == 1) if run.compiled else model
        self.split = context_split(world)
        self.saver = resume.Saver(
            folder,
            run,
            model,
            self.optimizer,
            tokenizer=tokenizer,
            spare=self._before_decay,
            world=world,
        )
        self.skipped: list[int] = []
        self.stop_requested = False

    def fit(self) -> Outcome:
        """Train to the recipe's last step, from the newest saved one.

        Raises:
            UserError: a loss or gradient was not finite, or the disk is full; what was saved
                before stays.
        """
        first = self._restore()
        self._recover_metrics(first)
        try:
            done = self._train(first)
        except UserError:
            # Every process stops here, and the step under way is whole for the next start.
            self.saver.wait()
            raise
        self.saver.wait()
        finished = done == self.recipe.steps
        if finished:
            self._publish()
        return Outcome(done, finished=finished, trained=done - first)

    def _train(self, first: int) -> int:
        """The steps from `first` on, to the last one or until something asks to stop.

        Returns:
            the steps done in all.
        """
        done = first
        meter = Meter(self.run, self.peak_flops, self.device, self.world)
        with Loader(
            self.mixture,
            context=self.recipe.context,
            seed=self.recipe.seed,
            batch_rows=self.recipe.rows,
            start=first,
            stop=self.recipe.steps,
            document_mask=self.recipe.document_mask,
            infilling=self.infilling,
            learn=self.recipe.learn,
            share=(self.world.dp_rank, self.world.mesh.dp),
        ) as batches:
            for step, batch in enumerate(meter.timed(batches), start=first):
                meter.add(self.step(step, batch))
                done = step + 1
                if self._due(done, self.run.log_every):
                    self._log(meter.read(done, self.mixture))
                stop, failed = self._anyone(self.stop_requested, self.saver.failed())
                stop = stop and done < self.recipe.steps  # else there is nothing left to stop
                if failed:
                    self.saver.wait()  # raises why
                if self._saves(done) or stop:
                    # Save before evaluating: a failing evaluation must not cost the step.
                    self.saver.start(self._lineage(done))
                    meter.pause()
                if self._due(done, self.run.eval_every) and not stop:
                    self._log({"step": done} | self.evaluate())
                    meter.pause()
                if stop:
                    break
        return done

    def step(self, step: int, batch: Batch) -> Stepped:
        """One optimiser step.

        Args:
            step: counted from 0.
            batch: all rows of the step; with several processes, those of this one's dp rank.

        Raises:
            UserError: the loss or the norm is not finite and the recipe says to stop.
        """
        total = torch.zeros((), device=self.device)
        by_kind = torch.zeros(KINDS, 2, dtype=torch.float64, device=self.device)
        counts = self._counts_of_all(batch.counts)
        batch = self._own_places(batch)
        count = int(self.world.total(torch.tensor(batch.n_targets, device=self.device)))
        began = time.perf_counter()  # no process has gone on before all had their batch
        parts = batch.split(self.run.micro_batch_size)
        for number, part in enumerate(parts, start=1):
            if self.accumulate:
                sum_gradients(self.model, now=number == len(parts))
            loss, each = self._loss(part, count=count, forward=self.forward)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            if self.infilling is not None or self.dialogs:
                by_kind += loss_by_kind(each, part)
        total, by_kind = self.world.total(total), self.world.total(by_kind)
        norm = clip_gradients(self.trained.values(), self.recipe.clip_norm)
        lr = learning_rate(step, self.recipe)
        if not (math.isfinite(total.item()) and math.isfinite(norm.item())):
            self.optimizer.zero_grad()
            self._not_finite(step, total.item(), norm.item())
            return Stepped(total, norm.item(), lr, by_kind, counts, began, skipped=True)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Stepped(total, norm.item(), lr, by_kind, counts, began)

    def _counts_of_all(self, counts: Counts | None) -> Counts | None:
        """The counts of the whole batch, of which this process has its share.

        A share may hold dialogs alone, which have no counts; its process is asked all the same.
        Processes that share rows count them once.
        """
        if self.infilling is None or self.world.size == 1:
            return counts
        mine = asdict((counts if self.world.cp_rank == 0 else None) or Counts())
        sums = self.world.total(torch.tensor(list(mine.values()), device=self.device))
        return Counts(**dict(zip(mine, sums.tolist(), strict=True)))

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Validation loss in nats a token, of all sources together and of each.

        The overall figure is the sources' mean under the mixture's weights. Where the recipe
        infills, the loss of infilled documents stands beside that of plain ones: every eligible
        document is infilled then, with cuts that are always the same.
        """
        self.model.eval()
        losses = self._validation("validation", None)
        if self.infilling is not None:
            always = replace(self.infilling.format, rate=1.0)
            losses |= self._validation(
                "validation_infill", Infilling(self.infilling.infiller, always)
            )
        self.model.train()
        return losses

    def _validation(self, name: str, infilling: Infilling | None) -> dict[str, Any]:
        """Losses of the validation splits, plain, or with infilling of the infilled text alone."""
        kinds = slice(None) if infilling is None else slice(Order.PSM, Order.SPM + 1)
        losses: dict[str, float] = {}
        for source, split in self.validation:
            if infilling is not None and split.dialogs:
                continue
            total = torch.zeros(KINDS, 2, dtype=torch.float64, device=self.device)
            batches = validation_batches(
                split,
                context=self.recipe.context,
                rows=self.run.eval_rows,
                batch_rows=self.run.micro_batch_size,
                document_mask=self.recipe.document_mask,
                infilling=infilling,
                learn=self.recipe.learn,
            )
            for batch, counted in self._shared(batches):
                _, each = self._loss(batch, count=1, forward=self.model)
                if counted:
                    total += loss_by_kind(each, batch)
            loss, count = self.world.total(total)[kinds].sum(0).tolist()
            if count:
                losses[source] = loss / count
        weights = {s.path: s.weight for s in self.run.sources}
        share = sum(weights[source] for source in losses)
        mean = sum(weights[s] * loss for s, loss in losses.items()) / share if share else None
        return {f"{name}_loss": mean, name: losses}

    def _shared(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """This process's batches, as many for each; one that fills a gap does not count."""
        batches, own = iter(batches), self.world.dp_rank
        while group := list(itertools.islice(batches, self.world.mesh.dp)):
            yield self._own_places(group[min(own, len(group) - 1)]), own < len(group)

    def _own_places(self, batch: Batch) -> Batch:
        """What of some rows this process has, where processes share rows."""
        if self.split is None:
            return batch
        return batch.at(self.split.places(self.recipe.context))

    def _loss(
        self, batch: Batch, *, count: int, forward: Callable[..., Any]
    ) -> tuple[Tensor, Tensor]:
        """Loss of a (micro-)batch over `count` targets, and each token's."""
        backend: Backend = "xformers" if self.run.attention == "xformers" else "sdpa"
        # Where activations are recomputed, autocast's cache would keep a copy of every weight.
        with torch.autocast(
            self.device.type,
            DTYPES[self.run.dtype],
            enabled=self.run.dtype != "float32",
            cache_enabled=not self.run.recompute,
        ):
            return batch_loss(
                forward,
                batch,
                device=self.device,
                backend=backend,
                count=count,
                split=self.split,
            )

    def _anyone(self, *here: bool) -> list[bool]:
        """Whether each of some things is so in any of the processes.

        After a signal to one all save and stop; what the save of one failed with, all raise.
        """
        return [value > 0 for value in self.world.largest([float(value) for value in here])]

    def _due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.recipe.steps

    def _saves(self, done: int) -> bool:
        """Whether a step is saved: one that is due, and the last before a decay, to extend from."""
        return self._due(done, self.run.save_every) or done == self._before_decay

    @property
    def _before_decay(self) -> int | None:
        return self.recipe.decay_start if self.recipe.schedule == "wsd" else None

    def _not_finite(self, step: int, loss: float, norm: float) -> None:
        what = f"step {step + 1}: loss {loss}, gradient norm {norm}"
        if self.recipe.on_nonfinite == "stop":
            raise UserError(
                f"training stopped before the update of {what}",
                hint="lower peak_lr, or pass --set on_nonfinite=skip to leave such steps out",
            )
        self.skipped.append(step)
        self._log({"step": step + 1, "skipped": what})

    def _restore(self) -> int:
        """Steps already done, their state loaded."""
        state = resume.restore(self.folder, self.run, self.model, self.optimizer, self.world)
        if state is None:
            return 0
        self.skipped = list(state["skipped"])
        return int(state["step"])

    def _publish(self) -> None:
        lineage = self._lineage(self.recipe.steps)

        def card() -> str:
            remove_leftovers(self.folder)
            return model_card(
                self.run,
                self.mixture,
                lineage=lineage,
                metrics=read_metrics(self.folder / METRICS_NAME),
                device=machine.device_name(),
            )

        if self.recipe.lora_rank:
            contents = adapter_contents(
                self.model,
                self.recipe,
                self.trained,
                tokenizer=self.tokenizer,
                lineage=lineage,
                base=self.run.base,
            )
        else:
            contents = model_contents(
                self.model,
                dtype=torch.float32 if self.run.dtype == "float32" else torch.bfloat16,
                tokenizer=self.tokenizer,
                lineage=lineage,
            )
        publish_contents(
            self.folder / self.run.published,
            contents,
            card=self.world.on_main(card),
            group=self.world.files,
        )

    def _lineage(self, done: int) -> dict[str, Any]:
        """What a checkpoint of this moment was made from."""
        return {
            "recipe": self.recipe.name,
            "size": self.recipe.size,
            "step": done,
            "updates": done - len(self.skipped),
            "skipped": self.skipped,
            "tokens": done * self.recipe.batch_tokens,
            "data": [source.digest for source in self.run.sources],
            "tokenizer": self.run.tokenizer_digest,
            "parent": self.run.init,
            "objective": {name: getattr(self.recipe, name) for name in OBJECTIVE},
            "extended": list(self.run.extended),
            "ancestors": list(self.run.ancestors),
        }

    def _recover_metrics(self, done: int) -> None:
        """Bring metrics.jsonl to where training resumes.

        Records of later steps are removed, with a last line that a kill cut short; a validation
        that was due and did not finish is run.
        """
        path = self.folder / METRICS_NAME

        def cut() -> bool:
            kept = [r for r in read_metrics(path) if r["step"] <= done] if path.exists() else []
            atomic_write(path, "".join(json_line(record) for record in kept).encode())
            return any(r["step"] == done and "validation_loss" in r for r in kept)

        validated = self.world.on_main(cut)
        if done and self._due(done, self.run.eval_every) and not validated:
            self._log({"step": done} | self.evaluate())

    def _log(self, record: dict[str, Any]) -> None:
        if not self.world.is_main:
            return
        append_text(self.folder / METRICS_NAME, json_line(record))
        self.report(finite(record))
