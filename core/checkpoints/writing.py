"""Writing a checkpoint: the folder that `checkpoint.py` describes, file after file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codecria.core.model.config import ModelConfig
from codecria.core.native.packing import PackedKind, packed_shape
from codecria.data.files import atomic_write_json, digest_file
from codecria.data.tokenizer.tokenizer import Tokenizer

from .checkpoint import DIGESTS_KEY, MODEL_KEY, TOKENIZER_NAME
from .ends import CONFIG_NAME, ENDS_KEY, LINEAGE_NAME, end_ids
from .formats.chat_template import template_for
from .formats.hugging_face import write_generation, write_tokenizer, write_weights
from .formats.layout import EMBEDDING, hugging_face_name, shapes_of
from .formats.packed import CONFIG_KEY, pack_tensor, quantisation_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CARD_NAME = "README.md"  # where people and model hubs look for it
MAX_SHARD_BYTES = 5_000_000_000  # the size at which the ecosystem starts another file


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    read: Callable[[str], Tensor],
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    tokenizer: Path | None,
    lineage: Mapping[str, Any],
    chat_template: str | None = None,
    ends: Sequence[int] = (),
    named: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    packed: Mapping[str, PackedKind] | None = None,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> None:
    """Fill `folder` with a checkpoint; make it appear whole with `atomic_folder`.

    Args:
        folder: existing and empty.
        config: the model's shape.
        read: gives a weight by our name; asked once for each.
        dtype: type of the weights on disk, of all or of each by our name.
        tokenizer: the tokenizer.model to put beside them.
        lineage: what the checkpoint was made from, JSON values.
        chat_template: in Jinja; by default that of the model's chat form, if it learnt one.
        ends: ids that end a completion, beside those of the shape and the tokenizer.
        named: tokens with a use beside BOS, EOS and unknown, such as "pad_token".
        max_shard_bytes: a weights file is closed before it would exceed this.
        packed: the type that each matrix is packed in, by our name (formats/packed.py).
        importance: (C,) of each matrix's inputs, by our name, for 4 bits (native/packing.py).

    Raises:
        UserError: a file cannot be written.
    """
    import torch

    shapes = shapes_of(config)
    dtypes = {n: dtype if isinstance(dtype, torch.dtype) else dtype[n] for n in shapes}
    kinds = packed or {}
    ours = {hugging_face_name(name): name for name in shapes}

    def planned(n: str) -> tuple[tuple[int, ...], torch.dtype]:
        if n in kinds:
            return packed_shape(kinds[n], *shapes[n]), torch.uint8
        return shapes[n], dtypes[n]

    def value(name: str) -> Tensor:
        weight = read(ours[name])
        kind = kinds.get(ours[name])
        if kind is None:
            return weight
        return pack_tensor(kind, weight, (importance or {}).get(ours[name]))

    digests = write_weights(
        folder,
        {name: planned(n) for name, n in ours.items()},
        value,
        max_shard_bytes=max_shard_bytes,
    )
    write_beside(
        folder,
        config,
        digests,
        dtype=dtypes[EMBEDDING],
        tokenizer=tokenizer,
        lineage=lineage,
        chat_template=chat_template,
        ends=ends,
        named=named,
        packed=kinds,
    )


def write_beside(
    folder: Path,
    config: ModelConfig,
    digests: Mapping[str, str],
    *,
    dtype: torch.dtype,
    tokenizer: Path | None,
    lineage: Mapping[str, Any],
    chat_template: str | None = None,
    ends: Sequence[int] = (),
    named: Mapping[str, str] | None = None,
    packed: Mapping[str, PackedKind] | None = None,
) -> None:
    """Write all files of a checkpoint but its weights.

    Args:
        folder: that holds the weights.
        config: the model's shape.
        digests: of the weights files, by name.
        dtype: of the weights, most of them.
        tokenizer, lineage, chat_template, ends, named, packed: as for `write_checkpoint`.

    Raises:
        UserError: a file cannot be written.
    """
    stored = str(dtype).removeprefix("torch.")
    page = config.to_hugging_face(dtype=stored)
    if packed:
        page[CONFIG_KEY] = quantisation_of(packed)
    atomic_write_json(folder / CONFIG_NAME, page)
    known = None if tokenizer is None else Tokenizer.load(tokenizer)
    write_generation(folder, config, [*ends, *end_ids(folder, config, known)])
    all_digests = dict(digests)
    if known is not None:
        if chat_template is None:
            chat_template = template_for(known, lineage)
        write_tokenizer(folder, known, config, chat_template, named)
        all_digests[TOKENIZER_NAME] = digest_file(folder / TOKENIZER_NAME)
    write_lineage(folder, lineage, config, all_digests)


def write_lineage(
    folder: Path,
    lineage: Mapping[str, Any],
    config: ModelConfig,
    digests: Mapping[str, str],
    ends: Sequence[int] = (),
) -> None:
    """Write codecria.json: the lineage, the shape, digests of files, and end ids if any."""
    page = dict(lineage) | {DIGESTS_KEY: dict(digests), MODEL_KEY: asdict(config)}
    if ends:
        page[ENDS_KEY] = list(ends)
    atomic_write_json(folder / LINEAGE_NAME, page)
