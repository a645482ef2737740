"""One of our checkpoints as the model that answers.

Answers are drawn in batches whose members do not depend on what is known already: a batch with one
missing is drawn whole again, so that a run that was stopped ends with the same texts.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import BATCH
from codecria.core.inference.generator import Generator
from codecria.core.inference.loading import Compute, Say
from codecria.core.inference.sampling import Sampling
from codecria.data.formats import chat

from .models import Ask, Known, Reply
from .prompts import Form, as_text


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
        # Samples of one ask make batches of their own, single answers to several asks share one.
        several = bool(asks) and asks[0].samples > 1
        for group in [[ask] for ask in asks] if several else [asks]:
            wanted = [(ask, key, n) for ask in group for n, key in enumerate(ask.ids())]
            for first in range(0, len(wanted), self._batch):
                part = wanted[first : first + self._batch]
                missing = [key not in known for _, key, _ in part]
                if any(missing):
                    yield list(itertools.compress(self._replies(part), missing))

    def _replies(self, part: Sequence[tuple[Ask, str, int]]) -> list[Reply]:
        """One reply to each (ask, its id, number of the sample), decoded side by side."""
        generator = self._load()
        context = generator.config.max_context
        engine = generator.engine(batch=len(part))
        replies: dict[int, Reply] = {}
        places: dict[int, int] = {}
        started = time.perf_counter()
        for place, (ask, key, number) in enumerate(part):
            prompt = self._prompt(ask)
            if len(prompt) >= context:
                replies[place] = _too_long(key, prompt)
                continue
            limits = Limits(max_tokens=ask.max_tokens, stops=ask.stops)
            ends = self._ends()
            added = engine.add(
                prompt, sampling=_sampling(ask), limits=limits, ends=ends, sample=number
            )
            places[added] = place
        done = {places[added]: event for added, event in engine.run() if not isinstance(event, str)}
        share = (time.perf_counter() - started) / max(len(done), 1)
        for place, completion in done.items():
            replies[place] = _reply(part[place][1], completion, share)
        return [replies[place] for place in range(len(part))]

    def _prompt(self, ask: Ask) -> list[int]:
        tokenizer = self._load().tokenizer
        if ask.form == "chat":
            return chat.prompt_ids(tokenizer, ask.dialog)
        return tokenizer.encode(as_text(ask.dialog), bos=True)

    def _ends(self) -> frozenset[int]:
        generator = self._load()
        return generator.ends | {chat.stop_id(generator.tokenizer)}


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
