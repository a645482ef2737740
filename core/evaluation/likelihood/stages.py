"""What each stage of a chain changed: several checkpoints on the same held-out data.

The validation losses of two stages are not comparable: contexts, mixtures and vocabularies differ.
Here every checkpoint reads the same documents in the same rows, so the figures of a column are
comparable: the plain loss, the loss of infilled documents, perplexity at several lengths of
context, and the loss of answers.

Shapes: B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.evaluation.long_context.measure import ModelSpec, Request, measure
from codecria.core.evaluation.long_context.texts import open_split
from codecria.core.inference.generator import Generator
from codecria.core.model.batch import loss_by_kind, mean_loss
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from codecria.data.formats.infill import Infiller, InfillFormat, Order
from codecria.data.progress import Progress
from codecria.data.rows.dialog_shards import open_dialogs
from codecria.data.rows.loader import Infilling, validation_batches
from codecria.data.rows.reencode import under
from codecria.data.rows.rows import DIALOG, KINDS
from codecria.data.rows.shards import ShardSet

from .perplexity import row_losses

MULTIPLES = (1, 2, 4)  # of the context, how far perplexity is measured
BATCH_TOKENS = 8_192  # of one forward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class StagesRequest:
    """What is measured.

    Attributes:
        data: a shard folder; its held-out documents are read.
        context: tokens of a row; None takes the first checkpoint's.
        rows: of the held-out data, at most.
        max_tokens: read for perplexity by position, of each checkpoint.
        dialogs: a file of dialogs whose answers are scored, or None.
        device, dtype: see `Generator.load`.
    """

    data: Path
    context: int | None = None
    rows: int = 64
    max_tokens: int = 20_000
    dialogs: Path | None = None
    device: str = "auto"
    dtype: str = "auto"


def compare_stages(
    request: StagesRequest,
    paths: Sequence[Path],
    *,
    note: Callable[[str], None],
    progress: Callable[[Progress], None],
) -> dict[str, Any]:
    """The figures of every checkpoint, as JSON values.

    Args:
        request: what is measured.
        paths: checkpoint or run folders, in the order they were made.
        note: takes a line for the user.
        progress: called as checkpoints are done.

    Raises:
        UserError: one is not a checkpoint, or the data has another tokenizer.
    """
    split = open_split(request.data, None)
    if split.split == "train":
        note(f"{request.data} has no held-out documents: the training split is read")
    first = Checkpoint.open(paths[0]).config
    context = request.context or first.max_context
    ends = tuple(multiple * context for multiple in MULTIPLES)
    measured = []
    for number, path in enumerate(paths):
        progress(Progress(stage="stages", done=number, total=len(paths), resumed=0))
        measured.append(_measure(request, path, split, context, ends))
    progress(Progress(stage="stages", done=len(paths), total=len(paths), resumed=0))
    return {
        "task": "stages",
        "data": split.digest,
        "split": split.split,
        "context": context,
        "ends": list(ends),
        "stages": measured,
    }


def _measure(
    request: StagesRequest, path: Path, split: ShardSet, context: int, ends: tuple[int, ...]
) -> dict[str, Any]:
    generator = Generator.load(path, device=request.device, dtype=request.dtype, engine="torch")
    model, tokenizer = generator.model, generator.tokenizer
    seen = under(split, tokenizer)
    checkpoint = Checkpoint.open(path)
    found: dict[str, Any] = {
        "path": str(path),
        "recipe": checkpoint.lineage().get("recipe"),
        "digest": checkpoint.digest(),
        "trained_context": checkpoint.config.max_context,
        "loss": held_out_loss(model, seen, context=context, rows=request.rows),
        "infill_loss": None,
        "dialog_loss": None,
    }
    if tokenizer.infill is not None:
        always = Infilling(Infiller(tokenizer), InfillFormat(rate=1.0, scope="context"))
        found["infill_loss"] = held_out_loss(
            model, seen, context=context, rows=request.rows, infilling=always
        )
    if request.dialogs is not None:
        found["dialog_loss"] = _dialog_loss(request, generator, context)
    long = measure(
        Request(
            data=request.data,
            split=split.split,
            join=True,
            ends=ends,
            max_tokens=request.max_tokens,
            retrieval=False,
        ),
        [ModelSpec.open(path)],
        device=request.device,
        dtype=request.dtype,
        note=lambda _: None,
        progress=lambda _: None,
    )
    rows = long["perplexity"]["rows"]
    found["perplexity"] = {str(row["to"]): row["models"][0]["perplexity"] for row in rows}
    return found


def _dialog_loss(request: StagesRequest, generator: Generator, context: int) -> float | None:
    assert request.dialogs is not None, "checked by the caller"
    with tempfile.TemporaryDirectory(prefix="codecria-") as scratch:
        made, _ = open_dialogs(
            request.dialogs, generator.tokenizer, Path(scratch), allow_tags=False, strict=False
        )
        try:
            held_out = ShardSet.open(made, "validation")
        except UserError:  # a single dialog has none to spare
            held_out = ShardSet.open(made)
        longest = max(held_out.length(d) for d in range(held_out.n_documents))
        return held_out_loss(
            generator.model, held_out, context=max(context, longest), rows=request.rows
        )


def held_out_loss(
    model: Transformer,
    shards: ShardSet,
    *,
    context: int,
    rows: int,
    infilling: Infilling | None = None,
) -> float | None:
    """The mean loss in nats a token over rows that are the same every time.

    Attention stays within documents. With infilling, every document is infilled and only these are
    counted; of dialogs, only answers.

    Args:
        model: in evaluation.
        shards: a split under the model's tokenizer.
        context: T.
        rows: how many at most.
        infilling: how documents are infilled, if at all.
    """
    kinds = slice(None)
    if shards.dialogs:
        kinds = slice(DIALOG, None)
    elif infilling is not None:
        kinds = slice(Order.PSM, Order.SPM + 1)
    total = torch.zeros(KINDS, 2, dtype=torch.float64)
    for batch in validation_batches(
        shards,
        context=context,
        rows=rows,
        batch_rows=max(1, BATCH_TOKENS // context),
        document_mask=True,
        infilling=infilling,
    ):
        each = row_losses(model, batch)
        total += loss_by_kind(each, batch).cpu()
    return mean_loss(total, kinds)
