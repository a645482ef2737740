"""The weights before the first step: fresh ones, or a checkpoint's.

The model is built without memory, split over the processes, and filled part by part: no process
ever holds the whole. Fresh weights are the same whatever the number of processes: each draws every
matrix in turn and keeps its part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codecria.core.checkpoints.checkpoint import check_fits
from codecria.core.checkpoints.formats.layout import shapes_of
from codecria.core.checkpoints.formats.weights import Box
from codecria.core.checkpoints.parts import read_parts
from codecria.core.model.dtypes import DTYPES
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError

from .adapters import NEW_ROWS, attach, draws, fill_four_bits, four_bit_matrices
from .parallel import placed, shard
from .run import RunConfig
from .start import FromCheckpoint, Start
from .vocabulary import MATRICES, new_rows
from .world import ALONE, World


def initial_model(
    run: RunConfig,
    start: Start,
    *,
    known_rows: int,
    device: torch.device,
    world: World = ALONE,
    restored: bool = False,
) -> Transformer:
    """The model before its first step, split over the processes; every process calls it.

    Args:
        run: gives the shape, the type of products, the seed and how new embedding rows are drawn.
        start: what the weights come from.
        known_rows: rows of the embeddings that a checkpoint has trained; the others are new.
        device: where this process computes.
        world: the processes.
        restored: a saved step will be put into the model next: what it holds is left unset. That is
            every weight, but of a run that trains an adapter.

    Raises:
        UserError: the checkpoint is damaged, or is of another shape.
    """
    with torch.device("meta"):
        model = Transformer(run.model)
    if run.recipe.lora_rank:
        attach(model, run.recipe, dtype=DTYPES[run.dtype], known_rows=known_rows)
    shard(model, world, dtype=DTYPES[run.dtype])
    model.to_empty(device=device)
    if restored and not run.recipe.lora_rank:
        return model
    with torch.no_grad():
        if isinstance(start, FromCheckpoint):
            _read(model, run, start, known_rows, world)
            for weight, draw in draws(model, run.recipe) if run.recipe.lora_rank else ():
                weight.copy_(placed(draw, weight))
        else:
            _draw(model, run.recipe.seed, world)
    return model


def _draw(model: Transformer, seed: int, world: World) -> None:
    """Fill the model with fresh weights, of which this process may hold parts."""
    held: dict[str, list[tuple[Box, Tensor]]] = {}  # what of each weight, and where to

    def hold(name: str, box: Box, target: Tensor) -> None:
        held.setdefault(name, []).append((box, target))

    read_parts(dict(model.named_parameters()), hold, world.files)
    for name, first, draw in model.draws(seed):
        for (rows, *columns), target in held.get(name, []):
            start, stop = max(rows.start, first), min(rows.stop, first + len(draw))
            if start < stop:
                part = draw[(slice(start - first, stop - first), *columns)]
                target[start - rows.start : stop - rows.start].copy_(part)


def _read(
    model: Transformer, run: RunConfig, start: FromCheckpoint, known_rows: int, world: World
) -> None:
    """Fill the model from a checkpoint; embedding rows that are new are drawn."""
    checkpoint = start.checkpoint
    check_fits(checkpoint)
    stored = checkpoint.weights
    parameters = dict(model.named_parameters())
    packed = four_bit_matrices(run.model) if run.recipe.qlora else []
    tensors: dict[str, Tensor] = {
        name: parameters[name] for name in shapes_of(run.model) if name not in packed
    }
    fresh = {
        name: world.on_main(lambda name=name: _new_rows(name, run, start, known_rows))  # type: ignore[misc]
        for name in MATRICES
        if name in tensors and run.model.vocab_size > known_rows
    }

    def fill(name: str, box: Box, target: Tensor) -> None:
        if name not in fresh:
            stored.read_box(name, checkpoint.config, box, target)
            return
        rows = box[0]
        border = min(max(known_rows, rows.start), rows.stop)
        if border > rows.start:
            known = (slice(rows.start, border), *box[1:])
            stored.read_box(name, checkpoint.config, known, target[: border - rows.start])
        if border < rows.stop:
            new = fresh[name][border - known_rows : rows.stop - known_rows]
            target[border - rows.start :].copy_(new[(slice(None), *box[1:])])

    read_parts(tensors, fill, world.files)
    # Each process has all of them: a part of a matrix has blocks that another part shares.
    for name in packed:
        shape = shapes_of(run.model)[name]
        weight = torch.empty(shape, dtype=DTYPES[run.dtype])
        stored.read_box(name, checkpoint.config, tuple(slice(0, n) for n in shape), weight)
        fill_four_bits(model, name, weight.to(model.tok_embeddings.device))
    for name, table in NEW_ROWS.items():
        if name in parameters:
            parameters[name].copy_(placed(fresh[table], parameters[name]))


def _new_rows(name: str, run: RunConfig, start: FromCheckpoint, known_rows: int) -> Tensor:
    """The rows that a matrix gets beyond the checkpoint's; the main process reads all of these."""
    stored = start.checkpoint.weights
    if name not in stored.stored:
        raise UserError(f"{start.checkpoint.folder} has no {stored.name(name)}")
    with stored.borrow(name) as old:
        return new_rows(name, old[:known_rows], run.model.vocab_size - known_rows, run.recipe)
