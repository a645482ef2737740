"""A checkpoint and its tokenizer, ready to complete text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from codecria.data.errors import UsageError, UserError
from codecria.data.tokenizer import Specials, Tokenizer

from . import machine
from .checkpoint import DTYPES, Checkpoint, load_model
from .generate import Completion, Limits, complete
from .model import Transformer
from .sampling import Sampling
from .stage import choose_device


@dataclass(frozen=True, slots=True)
class Generator:
    """What completion needs; make one with `Generator.load`.

    Attributes:
        model: in evaluation, on its device.
        tokenizer: the one the model was trained with.
    """

    model: Transformer
    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: Path, *, device: str, dtype: str) -> Generator:
        """Load a checkpoint folder or a run folder.

        Args:
            path: where it lies, its tokenizer.model within.
            device: "auto", "cpu" or "cuda".
            dtype: "auto", "float32" or "bfloat16"; auto keeps the stored type where the device
                multiplies it fast, else takes float32.

        Raises:
            UserError: it is no checkpoint, or has no tokenizer, or another model's.
        """
        checkpoint = Checkpoint.open(path)
        if checkpoint.tokenizer_path is None:
            raise UserError(
                f"{checkpoint.folder} has no tokenizer.model",
                hint="copy the one the model was trained with into that folder",
            )
        tokenizer = Tokenizer.load(checkpoint.tokenizer_path)
        if tokenizer.vocab_size > checkpoint.config.vocab_size:
            raise UserError(
                f"{checkpoint.folder}: the tokenizer has {tokenizer.vocab_size} pieces, the model"
                f" {checkpoint.config.vocab_size} rows",
                hint="the tokenizer does not belong to this model",
            )
        chosen = choose_device(device)
        model = load_model(checkpoint, device=chosen, dtype=_choose_dtype(dtype, chosen))
        return cls(model.eval(), tokenizer)

    def prompt_ids(
        self, text: str, limits: Limits, *, truncate: str | None, specials: Specials
    ) -> list[int]:
        """The prompt's ids: BOS and the text.

        Args:
            text: may be empty: then the model starts a document of its own.
            limits: gives the context, of which one token must remain for the completion.
            truncate: "left" cuts the start of a prompt that is too long; None refuses it.
            specials: "parse" lets the text name control pieces.

        Raises:
            UsageError: `truncate` is neither, or the text holds what cannot be encoded.
            UserError: the prompt does not fit.
        """
        if truncate not in (None, "left"):
            raise UsageError(f"--truncate is {truncate!r}", hint="only 'left' is offered")
        ids = self.tokenizer.encode(text, bos=True, specials=specials)
        context = limits.context or self.model.config.max_context
        if len(ids) < context:
            return ids
        if truncate is None:
            raise UserError(
                f"the prompt has {len(ids)} tokens, the context {context}",
                hint="shorten it, pass --truncate left, or widen the window with --context",
            )
        # Room for the whole completion where the window allows, as a cut prompt is cut anyway.
        keep = max(1, context - min(limits.max_tokens, context // 2))
        return [ids[0], *ids[len(ids) - (keep - 1) :]]

    def complete(
        self, ids: list[int], sampling: Sampling, limits: Limits
    ) -> Iterator[tuple[int, str | Completion]]:
        """Completions of a prompt as they are produced, see `core.generate.complete`."""
        return complete(
            self.model,
            ids,
            new_stream=self.tokenizer.stream,
            sampling=sampling,
            limits=limits,
            ends=frozenset({self.model.config.eos_id, self.tokenizer.eos_id}),
        )


def _choose_dtype(requested: str, device: torch.device) -> torch.dtype | None:
    if requested == "auto":
        return None if machine.bf16_pays(device) else torch.float32
    if requested not in ("float32", "bfloat16"):
        raise UsageError(f"cannot generate in {requested!r}", hint="auto, float32 or bfloat16")
    return DTYPES[requested]
