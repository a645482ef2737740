"""Writing the result of a conversion, one weight at a time."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from codecria.core.checkpoints.checkpoint import TOKENIZER_NAME
from codecria.core.checkpoints.formats.gguf.facts import GgufFacts
from codecria.core.checkpoints.formats.gguf.write import write_gguf as write_gguf_file
from codecria.core.checkpoints.formats.hugging_face import (
    GENERATION_NAME,
    TEMPLATE_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_JSON_NAME,
)
from codecria.core.checkpoints.formats.layout import (
    EMBEDDING,
    OUTPUT,
    RotaryOrder,
    meta_name,
    shapes_of,
)
from codecria.core.checkpoints.formats.meta import (
    CHECKLIST_NAME,
    PARAMS_NAME,
    md5,
    params_of,
    rank_part,
    rank_shape,
)
from codecria.core.checkpoints.formats.pth import write_pickle
from codecria.core.checkpoints.writing import CARD_NAME, write_checkpoint, write_lineage
from codecria.data.files import atomic_write, atomic_write_json, read_json
from codecria.data.progress import Progress
from codecria.data.tokenizer.hugging_face import ADDED_NAME, MAP_NAME, named_tokens

from .calibrate import Importance, importance
from .plan import Plan, Report
from .request import Layout

TOKENIZER_FILES = (
    TOKENIZER_JSON_NAME,
    TOKENIZER_CONFIG_NAME,
    MAP_NAME,
    ADDED_NAME,
    TEMPLATE_NAME,
)
Read = Callable[[str, RotaryOrder], Tensor]


def _reader(plan: Plan, report: Report) -> Read:
    """`plan.weight`, with the progress reported before each."""
    total = len(plan.sizes) * plan.request.ranks
    numbers = itertools.count(1)

    def read(ours: str, rotary_order: RotaryOrder) -> Tensor:
        report(Progress(stage="writing", done=next(numbers), total=total))
        return plan.weight(ours, rotary_order)

    return read


def _importance(plan: Plan, report: Report) -> Importance | None:
    """The worth of each matrix's inputs, where 4-bit rounding asks for it and text can be read."""
    if plan.kind != "q4" or plan.tokenizer is None:  # without one, plan() has said so
        return None
    layers = plan.config.n_layers

    def on_layer(layer: int) -> None:
        report(Progress(stage="calibrating", done=layer + 1, total=layers))

    return importance(plan.source, plan.config, plan.tokenizer, on_layer)


def write_gguf(plan: Plan, path: Path, report: Report) -> None:
    """Write a GGUF file.

    Raises:
        UserError: it cannot be written, or a weight is not finite in its new type.
    """
    read = _reader(plan, report)
    assert plan.tokenizer is not None, "plan() checks it"
    facts = GgufFacts(
        config=plan.config,
        name=plan.source.folder.resolve().name,
        chat_template=plan.template,
        lineage=plan.lineage,
        ends=plan.ends,
    )
    write_gguf_file(
        path,
        facts,
        plan.tokenizer,
        plan.gguf_type,
        lambda n: read(n, "interleaved"),
        packed=plan.packed,
        importance=_importance(plan, report),
    )


def write_folder(plan: Plan, folder: Path, report: Report) -> None:
    """Write a folder in the Hugging Face layout or in Meta's.

    Raises:
        UserError: as `write_gguf`.
    """
    read = _reader(plan, report)
    if plan.request.layout is Layout.META:
        _write_meta(plan, folder, read)
    else:
        write_checkpoint(
            folder,
            plan.config,
            lambda n: read(n, "half_split"),
            dtype=plan.dtypes,
            tokenizer=plan.tokenizer.path if plan.tokenizer is not None else None,
            lineage=plan.lineage,
            chat_template=plan.template,
            ends=plan.ends,
            named=named_tokens(plan.source.folder),
            max_shard_bytes=plan.request.max_shard_bytes,
            packed=plan.packed,
            importance=_importance(plan, report),
        )
        _keep_files(plan, folder)
    card = plan.source.folder / CARD_NAME
    if card.is_file():
        shutil.copyfile(card, folder / CARD_NAME)


def _keep_files(plan: Plan, folder: Path) -> None:
    """Copy the generation settings of a Hugging Face source, and a tokenizer that is not read."""
    source = plan.source.folder
    if (source / GENERATION_NAME).is_file():
        own = read_json(source / GENERATION_NAME)
        written = read_json(folder / GENERATION_NAME)
        atomic_write_json(folder / GENERATION_NAME, own | written)
    if plan.tokenizer is None:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _write_meta(plan: Plan, folder: Path, read: Read) -> None:
    atomic_write_json(folder / PARAMS_NAME, params_of(plan.config))
    files = [folder / PARAMS_NAME]
    for rank in range(plan.request.ranks):
        files.append(folder / f"consolidated.{rank:02d}.pth")
        _write_rank(plan, files[-1], rank, read)
    if plan.tokenizer is not None:
        atomic_write(folder / TOKENIZER_NAME, plan.tokenizer.content)
        files.append(folder / TOKENIZER_NAME)
    if plan.template:
        atomic_write(folder / TEMPLATE_NAME, plan.template.encode())
    lines = [f"{md5(path)}  {path.name}\n" for path in sorted(files)]
    atomic_write(folder / CHECKLIST_NAME, "".join(lines).encode())
    write_lineage(folder, plan.lineage, plan.config, {}, ends=plan.ends)


def _write_rank(plan: Plan, path: Path, rank: int, read: Read) -> None:
    ranks = plan.request.ranks
    shapes = shapes_of(plan.config) | {OUTPUT: shapes_of(plan.config)[EMBEDDING]}
    ours = {meta_name(name): name for name in shapes}
    tied = {OUTPUT: EMBEDDING} if plan.config.tied else {}
    write_pickle(
        path,
        {
            m: (rank_shape(n, shapes[n], ranks), plan.dtypes[tied.get(n, n)])
            for m, n in ours.items()
        },
        lambda m: rank_part(ours[m], read(tied.get(ours[m], ours[m]), "interleaved"), rank, ranks),
    )
