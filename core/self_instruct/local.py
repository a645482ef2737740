"""One of our checkpoints as the model that answers.

Answers are drawn side by side, and a run that was stopped ends with the same texts (`refill.py`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import BATCH
from codecria.core.inference.generator import Generator
from codecria.core.inference.loading import Compute, Say
from codecria.core.inference.refill import Request, completions, window_of
from codecria.core.inference.sampling import Sampling
from codecria.data.formats import chat

from .models import Ask, Known, Reply
from .prompts import Form, as_text

_Item = tuple[Ask, str, int]  # what is asked, the id of its reply, the sample's number


class LocalModel:
    """A checkpoint, loaded when it is first asked.

    Args:
        path: checkpoint or run folder.
        form: how it is asked; None takes the chat form where it was tuned on instructions.
        batch: answers drawn side by side.
        compute: what it is computed with.
        say: takes a sentence for the user about the engine or the type that was chosen.

    Raises:
        UserError: it is no checkpoint.
    """

    def __init__(
        self,
        path: Path,
        *,
        form: Form | None = None,
        batch: int = BATCH,
        compute: Compute | None = None,
        say: Say = lambda _: None,
    ) -> None:
        checkpoint = Checkpoint.open(path)
        self.path = path
        folder = checkpoint.folder.resolve()
        self.facts: dict[str, Any] = {
            "kind": "checkpoint",
            "model": folder.parent.name if folder.name == "model" else folder.name,  # RUN/model
            "digest": checkpoint.digest(),
            "batch": batch,
        }
        self.form: Form = form or _form_of(checkpoint)
        self._batch = batch
        self._load = functools.cache(
            lambda: Generator.computed(path, compute or Compute(), say=say)
        )

    def answer(self, asks: Sequence[Ask], known: Known) -> Iterator[list[Reply]]:
        """The replies that are not known yet, see `models.Model`."""
        context = self._load().config.max_context

        def request(item: _Item) -> Request | None:
            ask, _, number = item
            prompt = self._prompt(ask)
            if len(prompt) >= context:
                return None
            return Request(
                prompt=prompt,
                sampling=_sampling(ask),
                limits=Limits(max_tokens=ask.max_tokens, stops=ask.stops),
                ends=self._ends(),
                sample=number,
            )

        parts = list(_parts(asks, self._batch))
        started = time.perf_counter()
        for part in completions(
            self._load(),
            parts,
            request,
            is_missing=lambda item: item[1] not in known,
            batch=self._batch,
            window=window_of(len(parts)),
        ):
            now = time.perf_counter()
            share, started = (now - started) / len(part), now
            yield [
                _too_long(key, self._prompt(ask))
                if completion is None
                else _reply(key, completion, share)
                for (ask, key, _), completion in part
            ]

    def _prompt(self, ask: Ask) -> list[int]:
        tokenizer = self._load().tokenizer
        if ask.form == "chat":
            return chat.prompt_ids(tokenizer, ask.dialog)
        return tokenizer.encode(as_text(ask.dialog), bos=True)

    def _ends(self) -> frozenset[int]:
        generator = self._load()
        return generator.ends | {chat.stop_id(generator.tokenizer)}


def _parts(asks: Sequence[Ask], batch: int) -> Iterator[list[_Item]]:
    """What is answered together: several samples of one ask, or single answers to several asks."""
    several = bool(asks) and asks[0].samples > 1
    for group in [[ask] for ask in asks] if several else [asks]:
        wanted = [(ask, key, n) for ask in group for n, key in enumerate(ask.ids())]
        for first in range(0, len(wanted), batch):
            yield wanted[first : first + batch]


def _form_of(checkpoint: Checkpoint) -> Form:
    """The chat form for a model that was tuned on it, as far as the checkpoint records it."""
    recipe = str(checkpoint.lineage().get("recipe", ""))
    tuned = "instruct" in recipe or bool(checkpoint.chat_template())
    return "chat" if tuned else "few-shot"


def _sampling(ask: Ask) -> Sampling:
    return Sampling(temperature=ask.temperature, top_p=ask.settings.top_p, seed=ask.seed)


def _too_long(key: str, prompt: Sequence[int]) -> Reply:
    return Reply(
        id=key, text="", finish_reason="prompt_too_long", prompt_tokens=len(prompt), tokens=0
    )


def _reply(key: str, completion: Completion, seconds: float) -> Reply:
    return Reply(
        id=key,
        text=chat.answer_of(completion.text),  # both forms have an answer behind a space
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        tokens=len(completion.ids),
        seconds=seconds,
    )
