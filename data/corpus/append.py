"""Appending to a shard set: its shards take part in dedup as partitions that never lose.

A shard keeps its documents' keys (`near.KEYS`): digests and signatures. They are copied to where
the stages look for a partition's, so exact and near dedup find old and new documents alike; only
the few old texts that look like a new one are decoded from their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from codecria.data.errors import UserError
from codecria.data.files import atomic_writer
from codecria.data.rows.shards import KEYS_PART, Manifest, ShardSet
from codecria.data.tokenizer.model_file import MODEL_NAME
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import dedup, near
from .near import Near
from .partition_files import keys_path

IDS = pa.schema([("id", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class OldShard:
    """A shard of the set that is appended to.

    Attributes:
        folder: of the shard set.
        number: among the split's shards.
        digests: of its files.
    """

    folder: Path
    split: str
    number: int
    name: str
    digests: dict[str, str]

    def check_keys(self) -> None:
        """Check that new documents can be compared with those of this shard.

        Raises:
            UserError: it keeps no keys of them.
        """
        if KEYS_PART not in self.digests or not (self.folder / f"{self.name}.{KEYS_PART}").exists():
            raise UserError(
                f"{self.folder} keeps no keys of its documents: nothing can be appended to it",
                hint="make it again; only sets made with --dedup near or exact keep them",
            )

    def documents(self, rows: Sequence[int]) -> Iterator[tuple[str, str]]:
        """(id, text) of some of its documents."""
        held = ShardSet.open(self.folder, self.split)
        model = Tokenizer.load(self.folder / MODEL_NAME)
        first = held.first_document(self.number)
        identities = self.ids()
        for row in rows:
            ids = held.document(first + row)
            yield identities[row], model.decode(ids[1:-1].tolist())

    def ids(self) -> list[str]:
        """Its documents' ids, in order."""
        path = self.folder / f"{self.name}.parquet"
        table = pq.read_table(path, columns=["id"])
        found: list[str] = table["id"].to_pylist()
        return found


def old_shards(folder: Path, manifest: Manifest) -> list[OldShard]:
    """The shards of a set in order."""
    return [
        OldShard(folder=folder, split=split, number=i, name=entry.name, digests=entry.digests)
        for split, held in manifest.splits.items()
        for i, entry in enumerate(held.shards)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallWork:
    """A shard of the set appended to, which is to stand as a partition."""

    shard: OldShard
    buckets: int


def recall_shard(output: Path, work: RecallWork) -> int:
    """Write the shard's ids (.arrow) and keys as the read stage does; how many documents."""
    table = _keys(work.shard, ["high", "low"])
    high, low = (table[name].to_numpy() for name in ("high", "low"))
    dedup.scatter(keys_path(output), high, low, buckets=work.buckets)
    with (
        atomic_writer(output.with_suffix(".arrow")) as file,
        pa.ipc.new_file(file, IDS) as writer,
    ):
        columns = [pa.array(work.shard.ids(), pa.string())]
        writer.write_batch(pa.record_batch(columns, schema=IDS))
    return len(high)


def recall_sketches(output: Path, shard: OldShard, wanted: Near) -> int:
    """Write the shard's sketches as the sketch stage does; how many documents."""
    table = _keys(shard, ["bins", "shingles", "signature"])
    bands, width = wanted.bands
    entries = np.zeros((table.num_rows, bands * width), dtype=np.uint8)
    known = table["signature"].is_valid().to_numpy()
    values = b"".join(table["signature"].drop_null().to_pylist())
    entries[known] = np.frombuffer(values, dtype=np.uint8).reshape(-1, bands * width)
    piece = near.Sketch(
        signatures=entries,
        bins=_numbers(table["bins"], np.uint16),
        shingles=_numbers(table["shingles"], np.uint32),
    )
    rows = np.arange(table.num_rows)
    near.write_sketches(output.with_suffix(".arrow"), rows, [piece], wanted)
    return len(rows)


def _keys(shard: OldShard, columns: Sequence[str]) -> pa.Table:
    with pa.OSFile(str(shard.folder / f"{shard.name}.{KEYS_PART}")) as file:
        return pa.ipc.open_file(file).read_all().select(columns)


def _numbers(column: pa.ChunkedArray, dtype: Any) -> Any:
    return column.fill_null(0).to_numpy().astype(dtype)
