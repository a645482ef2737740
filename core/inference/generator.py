"""A loaded checkpoint with its tokenizer and end ids: completes prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codecria.core.checkpoints.adapters.folder import with_adapter
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

from .decoding import Completion, Limits
from .drafting import Sources
from .engine import BATCH, Engine, complete
from .healing import Opening
from .loading import CacheDtype, Compute, EngineName, Say, as_computed, load_runner
from .prefix_cache import DiskBlocks, PrefixCache, default_folder, model_digest
from .runner import Runner
from .sampling import Sampling
from .sharing import ALONE, Item, Loaded, Result, Sharing, Stopped, Work, never

if TYPE_CHECKING:
    from codecria.core.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Generator:
    """What completion needs; make one with `Generator.load`.

    Attributes:
        runner: the model with its key-value cache.
        tokenizer: the one the model was trained with.
        ends: ids that end a completion, as the checkpoint's files name them.
        files: that decide its scores: configuration and weights.
        sharing: the processes that its work is shared over.
        loaded: what the others load to have the same; None where nobody else does.
    """

    runner: Runner
    tokenizer: Tokenizer
    ends: frozenset[int]
    files: tuple[Path, ...] = ()
    sharing: Sharing = field(default=ALONE, repr=False)
    loaded: Loaded | None = None

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        engine: EngineName = "auto",
        threads: int | None = None,
        cache_dtype: CacheDtype = "auto",
        sharing: Sharing = ALONE,
        say: Say = lambda _: None,
    ) -> Generator:
        """Load a checkpoint folder or a run folder.

        Args:
            path: the folder, with its tokenizer.model.
            device, dtype, engine, threads, cache_dtype, sharing: see `Compute`.
            say: takes a sentence for the user about the engine or the type that was chosen.

        Raises:
            UserError: it is not a checkpoint, or its tokenizer is missing or another model's; or
                the engine cannot run.
        """
        compute = Compute(
            device=device,
            dtype=dtype,
            engine=engine,
            threads=threads,
            cache_dtype=cache_dtype,
            sharing=sharing,
        )
        return cls.computed(path, compute, say=say)

    @classmethod
    def computed(cls, path: Path, compute: Compute, *, say: Say = lambda _: None) -> Generator:
        """As `load`, with what computes as one value."""
        checkpoint = Checkpoint.open(path)
        return cls.of(checkpoint, tokenizer_in(checkpoint), compute, say=say)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        compute: Compute,
        *,
        say: Say = lambda _: None,
    ) -> Generator:
        """As `load`, of an opened checkpoint and its tokenizer."""
        if tokenizer.vocab_size > checkpoint.config.vocab_size:
            raise UserError(
                f"{checkpoint.folder}: the tokenizer has {tokenizer.vocab_size} pieces, the model"
                f" {checkpoint.config.vocab_size} rows",
                hint="the tokenizer does not belong to this model",
            )
        runner = load_runner(checkpoint, compute, say)
        files = _files_of(checkpoint)
        facts = (runner.layout, *(f"{path.name} {path.stat().st_size}" for path in files))
        return cls(
            runner,
            tokenizer,
            frozenset(checkpoint.end_ids(tokenizer)),
            files=files,
            sharing=compute.sharing,
            loaded=Loaded(path_of(checkpoint), as_computed(compute, runner), facts),
        )

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.runner.config

    @property
    def model(self) -> Transformer:
        """The model in PyTorch, in evaluation."""
        from codecria.core.model.transformer import Transformer

        found = getattr(self.runner, "model", None)
        assert isinstance(found, Transformer), "another engine was loaded"
        return found

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

    def map(
        self,
        work: Work[Item, Result],
        items: Iterable[Item],
        *,
        stopped: Stopped = never,
        together: bool = False,
    ) -> Iterator[Result]:
        """What comes of work on each item, in their order; the processes of a launch share it.

        Args:
            work: a function at the top level of a module.
            items: taken as they are needed, some ahead.
            stopped: looked at between steps; once it is true, nothing more comes.
            together: the work calls the model itself and not its runner, so processes that share
                its layers all do it; then nothing in it may depend on time.

        Raises:
            UserError: the work raised it, or a process that shared it ended.
        """
        return self.sharing.map(self, work, items, stopped, together=together)

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
    return tokenizer_in(Checkpoint.open(path))


def tokenizer_in(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of an opened checkpoint.

    Raises:
        UserError: it has none that can be read.
    """
    path = checkpoint.tokenizer_path
    if path is None and checkpoint.folder.is_file():  # a GGUF file, whose error names the kind
        path = checkpoint.folder
    if path is None:
        raise UserError(
            f"{checkpoint.folder} has no tokenizer.model",
            hint="copy the one the model was trained with into that folder",
        )
    return Tokenizer.load(path)


def path_of(checkpoint: Checkpoint) -> Path:
    """The path by which another process opens the same checkpoint."""
    adapter = checkpoint.adapter
    base = checkpoint.folder.resolve()
    return base if adapter is None else with_adapter(base, adapter.folder.resolve())


def _files_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files that decide a model's scores."""
    beside = [checkpoint.folder / name for name in ("config.json", "params.json")]
    return (*(path for path in beside if path.is_file()), *sorted(checkpoint.weights.files))
