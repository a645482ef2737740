"""Perplexity of a model on held-out text, source by source.

In nats per token as in training, as perplexity, and in bits per byte, which alone compares models
with different tokenizers. Documents are read in windows of the context: what a window cuts off is
read without what came before, as in validation while training.

Shapes: B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codecria.core.inference.generator import Generator
from codecria.core.inference.sharing import ALONE, Sharing, Stopped
from codecria.data.corpus.documents import decode
from codecria.data.corpus.reasons import Reason
from codecria.data.errors import UserError
from codecria.data.formats.infill import Order
from codecria.data.progress import Progress
from codecria.data.rows.loader import Batch, stack, validation_batches
from codecria.data.rows.reencode import under
from codecria.data.rows.rows import IGNORE, Row
from codecria.data.rows.shards import ShardSet, sets_in
from codecria.data.tokenizer.tokenizer import Tokenizer

from .perplexity import row_losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is read, and how.

    Attributes:
        data: a shard folder, or
        files: text files, each a document.
        split: of the shards.
        rows: windows of each source at most, spread evenly over it.
        context: T of a window; None for what the model was trained on.
        document_mask: whether a token sees its own document alone.
        batch_rows: B.
    """

    data: Path | None = None
    files: tuple[Path, ...] = ()
    split: str = "validation"
    rows: int = 256
    context: int | None = None
    document_mask: bool = True
    batch_rows: int = 8


@dataclass(slots=True)
class Sum:
    """What was read of a source.

    Attributes:
        nats: the losses' sum.
        tokens: that were predicted.
        bytes: of text that they encode; 0 if the tokenizer does not define it.
    """

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def add(self, other: Sum) -> None:
        """Add another's."""
        self.nats += other.nats
        self.tokens += other.tokens
        self.bytes += other.bytes

    def as_json(self) -> dict[str, Any]:
        """The sum as what people read: means.

        >>> Sum(nats=4 * math.log(2), tokens=4, bytes=8).as_json()["bits_per_byte"]
        0.5
        """
        nats = self.nats / self.tokens
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nats": nats,
            "perplexity": math.exp(nats) if nats < 700 else math.inf,
            "bits_per_byte": self.nats / math.log(2) / self.bytes if self.bytes else None,
        }


def measure(
    model: Path,
    reading: Reading,
    *,
    device: str,
    dtype: str,
    sharing: Sharing = ALONE,
    show: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """The losses of a checkpoint on each source, and on all together by tokens.

    Args:
        model: checkpoint or run folder.
        reading: what is read.
        device, dtype, sharing: as `Generator.load` takes them.
        show: takes progress.

    Raises:
        UserError: a file cannot be read, or the shards are of another tokenizer.
    """
    generator = Generator.load(model, device=device, dtype=dtype, engine="torch", sharing=sharing)
    context = reading.context or generator.config.max_context
    sources = _sources(generator.tokenizer, reading, context)
    weights = _byte_sizes(generator.tokenizer)
    found: dict[str, Sum] = {}
    for number, (name, batches) in enumerate(sources.items()):
        show(Progress(stage="reading", done=number, total=len(sources), resumed=0))
        found[name] = Sum()
        for part in _read(generator, batches, weights):
            found[name].add(part)
    show(Progress(stage="reading", done=len(sources), total=len(sources), resumed=0))
    total = Sum()
    for part in found.values():
        total.add(part)
    return {
        "model": str(model),
        "context": context,
        "split": reading.split if reading.data is not None else None,
        "document_mask": reading.document_mask,
        "sources": {name: part.as_json() for name, part in found.items()},
        "total": total.as_json(),
    }


def _read(generator: Generator, batches: Iterable[Batch], sizes: _Sizes) -> Iterator[Sum]:
    """The losses of each batch."""
    counts: deque[tuple[int, int]] = deque()

    def counted() -> Iterator[Batch]:
        for batch in batches:
            counts.append((batch.n_targets, sizes.of(batch.ids, batch.targets)))
            yield batch

    for nats in generator.map(_nats, counted(), together=True):
        tokens, size = counts.popleft()
        yield Sum(nats=nats, tokens=tokens, bytes=size)


def _nats(generator: Generator, batch: Batch, stopped: Stopped) -> float:  # noqa: ARG001
    """The sum of a batch's losses."""
    return float(row_losses(generator.model, batch).double().sum())


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How many bytes of text each token stands for."""

    bytes: npt.NDArray[np.int64]  # (V,)
    starts_with_space: npt.NDArray[np.bool_]  # (V,)
    bos_id: int

    def of(self, ids: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> int:
        """Bytes of the targets: a document's first token holds a space that is not the text's."""
        counted = targets != IGNORE
        first = counted & (ids == self.bos_id)
        implied = self.starts_with_space[targets[first]].sum()
        return int(self.bytes[targets[counted]].sum() - implied)


def _byte_sizes(tokenizer: Tokenizer) -> _Sizes:
    pieces = tokenizer.typed_bytes()
    return _Sizes(
        np.array([len(piece) for piece in pieces], dtype=np.int64),
        np.array([piece.startswith(b" ") for piece in pieces]),
        tokenizer.bos_id,
    )


def _sources(tokenizer: Tokenizer, reading: Reading, context: int) -> dict[str, Iterator[Batch]]:
    """The batches of each source by its name."""
    if reading.data is None:
        return {
            str(path): _file_batches(tokenizer, path, context, reading) for path in reading.files
        }
    found: dict[str, Iterator[Batch]] = {}
    for name, folder in sets_in(reading.data).items():
        shards = under(ShardSet.open(folder, reading.split), tokenizer)
        found[name or str(folder)] = validation_batches(
            shards,
            context=context,
            rows=reading.rows,
            batch_rows=reading.batch_rows,
            document_mask=reading.document_mask,
        )
    return found


def _file_batches(
    tokenizer: Tokenizer, path: Path, context: int, reading: Reading
) -> Iterator[Batch]:
    """The windows of a file, one a batch; its last may be short."""
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if isinstance(text, Reason):
        raise UserError(f"{path} is not text: {text}")
    ids = tokenizer.encode_array(text, bos=True, eos=True)
    for start in itertools.islice(range(0, len(ids) - 1, context), reading.rows):
        window = ids[start : start + context + 1]
        T = len(window) - 1
        yield stack(
            [
                Row(
                    ids=window[:-1],
                    targets=window[1:],
                    segments=(T,),
                    kinds=np.full(T, Order.PLAIN, dtype=np.uint8),
                )
            ],
            document_mask=reading.document_mask,
        )
