"""A shard written from memory; `prepare-data` and `instruct` write theirs piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codecria.data.files import atomic_writer
from codecria.data.rows.shards import ShardEntry, finish_shard, token_dtype


def write_shard(
    folder: Path,
    name: str,
    *,
    tokens: npt.NDArray[Any],
    offsets: npt.NDArray[Any],
    flags: npt.NDArray[Any],
    metadata: pa.Table,
    vocab_size: int,
) -> ShardEntry:
    """Write one shard from memory, each file whole or not at all.

    Args:
        tokens: all ids, documents end to end.
        vocab_size: decides the width of an id.
        folder, name, offsets, flags, metadata: see `finish_shard`.

    Returns:
        the shard's entry for the manifest.
    """
    assert offsets[-1] == len(tokens), f"{name}: offsets end at {offsets[-1]} of {len(tokens)}"
    wide = np.dtype(token_dtype(vocab_size)).newbyteorder("<")
    with atomic_writer(folder / f"{name}.tokens") as file:
        file.write(np.ascontiguousarray(tokens, dtype=wide).data)
    return finish_shard(folder, name, offsets=offsets, flags=flags, metadata=metadata)
