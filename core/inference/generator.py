"""A loaded checkpoint with its tokenizer and end ids: completes prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.model.config import ModelConfig
from codecria.data.errors import UsageError, UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

from .decoding import Completion, Limits
from .drafting import Sources
from .engine import BATCH, Engine, complete
from .healing import Opening
from .prefix_cache import DiskBlocks, PrefixCache, default_folder, model_digest
from .runner import Runner
from .sampling import Sampling

if TYPE_CHECKING:
    import torch

    from codecria.core.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Generator:
    """What completion needs; make one with `Generator.load`.

    Attributes:
        runner: the model with its key-value cache.
        tokenizer: the one the model was trained with.
        ends: ids that end a completion, as the checkpoint's files name them.
        files: that decide its scores: configuration and weights.
    """

    runner: Runner
    tokenizer: Tokenizer
    ends: frozenset[int]
    files: tuple[Path, ...] = ()

    @classmethod
    def load(cls, path: Path, *, device: str, dtype: str) -> Generator:
        """Load a checkpoint folder or a run folder.

        Args:
            path: the folder, with its tokenizer.model.
            device: "auto", "cpu" or "cuda".
            dtype: compute type, "auto", "float32" or "bfloat16"; see `_compute_dtype` for auto.

        Raises:
            UserError: it is not a checkpoint, or its tokenizer is missing or another model's.
        """
        checkpoint = Checkpoint.open(path)
        tokenizer = _tokenizer_of(checkpoint)
        if tokenizer.vocab_size > checkpoint.config.vocab_size:
            raise UserError(
                f"{checkpoint.folder}: the tokenizer has {tokenizer.vocab_size} pieces, the model"
                f" {checkpoint.config.vocab_size} rows",
                hint="the tokenizer does not belong to this model",
            )
        from codecria.core import machine

        from .torch_runner import TorchRunner

        chosen = machine.choose_device(device)
        model = load_model(
            checkpoint, device=chosen, dtype=_compute_dtype(dtype, checkpoint, chosen)
        )
        return cls(
            TorchRunner(model.eval()),
            tokenizer,
            frozenset(checkpoint.end_ids(tokenizer)),
            files=_files_of(checkpoint),
        )

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.runner.config

    @property
    def model(self) -> Transformer:
        """The model in PyTorch, in evaluation."""
        from .torch_runner import TorchRunner

        assert isinstance(self.runner, TorchRunner), "another engine was loaded"
        return self.runner.model

    def banned(self, *, specials: bool = False) -> frozenset[int]:
        """Ids that are never drawn unless they end a completion, because they are no text.

        Control, unknown and unused pieces, sentinels, and rows of the model that no piece has (a
        vocabulary that is padded to a multiple).

        Args:
            specials: whether special pieces may be drawn, and rows without a piece alone may not.
        """
        rows = range(self.tokenizer.vocab_size, self.config.vocab_size)
        return frozenset(rows) | (frozenset() if specials else self.tokenizer.special_ids)

    def engine(
        self, *, batch: int = BATCH, cache: PrefixCache | None = None, chunk: int | None = None
    ) -> Engine:
        """An engine for many prompts.

        Args:
            batch: sequences decoded side by side.
            cache, chunk: see `Engine`.
        """
        return Engine(
            self.runner,
            self.tokenizer.stream,
            batch=batch,
            banned=self.banned(),
            cache=cache,
            chunk=chunk,
        )

    def disk_blocks(self, most_bytes: int) -> DiskBlocks | None:
        """What the user's cache folder holds of prompts that this model read; None without room.

        The model's files are read once, to tell them apart from others.
        """
        if not most_bytes:
            return None
        folder = default_folder()
        digest = model_digest(self.files, {"layout": self.runner.layout}, folder)
        return DiskBlocks(folder, digest, most_bytes=most_bytes)

    def complete(
        self,
        ids: list[int],
        sampling: Sampling,
        limits: Limits,
        *,
        ends: Collection[int] = (),
        opening: Opening | None = None,
        specials: bool = False,
        sources: Sources | None = None,
        cache: PrefixCache | None = None,
    ) -> Iterator[tuple[int, str | Completion]]:
        """Completions of a prompt as they are produced, see `engine.complete`.

        Args:
            ids: the prompt.
            sampling, limits, opening: see there.
            ends: ids that end it, besides the checkpoint's own.
            specials: whether completions may hold special pieces.
            sources: what drafts are taken from; None drafts none.
            cache: of prompts that were read.
        """
        return complete(
            self.runner,
            ids,
            new_stream=self.tokenizer.stream,
            sampling=sampling,
            limits=limits,
            ends=self.ends | frozenset(ends),
            opening=opening,
            banned=self.banned(specials=specials),
            batch=BATCH,
            sources=sources,
            cache=cache,
        )


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint or run folder, without its weights.

    Raises:
        UserError: it is no checkpoint, or has no tokenizer.
    """
    return _tokenizer_of(Checkpoint.open(path))


def _tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.tokenizer_path is None:
        raise UserError(
            f"{checkpoint.folder} has no tokenizer.model",
            hint="copy the one the model was trained with into that folder",
        )
    return Tokenizer.load(checkpoint.tokenizer_path)


def _files_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files that decide a model's scores."""
    beside = [checkpoint.folder / name for name in ("config.json", "params.json")]
    return (*(path for path in beside if path.is_file()), *sorted(checkpoint.weights.files))


def _compute_dtype(requested: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The one type that all weights are loaded into, however many types they are stored in.

    auto keeps float32; 16-bit and mixed weights become bfloat16 where the device is fast at it,
    else float32. float16 stays only on a GPU: a CPU computes it about ten times slower.

    Raises:
        UsageError: the requested type is not offered.
    """
    import torch

    from codecria.core import machine
    from codecria.core.model.dtypes import DTYPES

    if requested in ("float32", "bfloat16"):
        return DTYPES[requested]
    if requested != "auto":
        raise UsageError(f"there is no compute type {requested!r}", hint="auto, float32, bfloat16")
    stored = {weight.dtype for weight in checkpoint.weights.stored.values()}
    if stored <= {"float32", "float64"}:
        return torch.float32
    if stored == {"float16"} and device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if machine.bf16_pays(device) else torch.float32
