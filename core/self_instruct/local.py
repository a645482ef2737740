"""One of our checkpoints as the model that answers.

Answers are drawn in batches whose members do not depend on what is known already: a batch with one
missing is drawn whole again, so that a run that was stopped ends with the same texts.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.engine import Completion, Limits, complete, complete_each
from codecria.core.inference.generator import Generator
from codecria.core.inference.sampling import Sampling
from codecria.data.formats import chat

from .models import Ask, Reply, Wanted
from .prompts import Form, as_text

BATCH = 16  # answers drawn side by side: bounds the key-value cache


class LocalModel:
    """A checkpoint, loaded when it is first asked.

    Args:
        path: checkpoint or run folder.
        form: how it is asked; None takes the chat form where it was tuned on instructions.
        batch: answers drawn side by side.
        device, dtype: as `Generator.load` takes them.

    Raises:
        UserError: it is no checkpoint.
    """

    def __init__(
        self,
        path: Path,
        *,
        form: Form | None = None,
        batch: int = BATCH,
        device: str = "auto",
        dtype: str = "auto",
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
        self._load = functools.cache(lambda: Generator.load(path, device=device, dtype=dtype))

    def answer(self, asks: Sequence[Ask], known: Wanted) -> Iterator[list[Reply]]:
        """The replies that are not known yet, see `models.Model`."""
        if asks and asks[0].samples > 1:
            for ask in asks:
                yield from self._samples(ask, known)
            return
        for first in range(0, len(asks), self._batch):
            batch = asks[first : first + self._batch]
            if all(ask.ids()[0] in known for ask in batch):
                continue
            yield [reply for reply in self._each(batch) if reply.id not in known]

    def _samples(self, ask: Ask, known: Wanted) -> Iterator[list[Reply]]:
        """Samples of one answer, which share their prompt's prefill."""
        ids = ask.ids()
        for first in range(0, ask.samples, self._batch):
            numbers = range(first, min(first + self._batch, ask.samples))
            if all(ids[n] in known for n in numbers):
                continue
            generator = self._load()
            prompt = self._prompt(ask)
            if len(prompt) >= generator.model.config.max_context:
                yield [_too_long(ids[n], prompt) for n in numbers if ids[n] not in known]
                continue
            started = time.perf_counter()
            events = complete(
                generator.model,
                prompt,
                new_stream=generator.tokenizer.stream,
                sampling=_sampling(ask),
                limits=_limits(ask, first, len(numbers)),
                ends=self._ends(),
            )
            done = {n: event for n, event in events if not isinstance(event, str)}
            share = (time.perf_counter() - started) / len(numbers)
            yield [_reply(ids[n], done[n], share) for n in numbers if ids[n] not in known]

    def _each(self, batch: Sequence[Ask]) -> list[Reply]:
        """One answer to each of several asks."""
        generator = self._load()
        context = generator.model.config.max_context
        prompts = [self._prompt(ask) for ask in batch]
        fitting = [n for n, prompt in enumerate(prompts) if len(prompt) < context]
        replies = {
            n: _too_long(ask.ids()[0], prompts[n])
            for n, ask in enumerate(batch)
            if len(prompts[n]) >= context
        }
        if fitting:
            ask = batch[0]
            started = time.perf_counter()
            events = complete_each(
                generator.model,
                [prompts[n] for n in fitting],
                new_stream=generator.tokenizer.stream,
                sampling=_sampling(ask),
                seeds=[batch[n].seed for n in fitting],
                limits=_limits(ask, 0, 1),
                ends=self._ends(),
            )
            done = dict(events)
            share = (time.perf_counter() - started) / len(fitting)
            for place, n in enumerate(fitting):
                replies[n] = _reply(batch[n].ids()[0], done[place], share)
        return [replies[n] for n in range(len(batch))]

    def _prompt(self, ask: Ask) -> list[int]:
        tokenizer = self._load().tokenizer
        if ask.form == "chat":
            return chat.prompt_ids(tokenizer, ask.dialog)
        return tokenizer.encode(as_text(ask.dialog), bos=True)

    def _ends(self) -> frozenset[int]:
        generator = self._load()
        return generator.ends | {chat.stop_id(generator.tokenizer)}


def _form_of(checkpoint: Checkpoint) -> Form:
    """The chat form for a model that was tuned on it, as far as the checkpoint tells."""
    recipe = str(checkpoint.lineage().get("recipe", ""))
    tuned = "instruct" in recipe or bool(checkpoint.chat_template())
    return "chat" if tuned else "few-shot"


def _sampling(ask: Ask) -> Sampling:
    return Sampling(temperature=ask.temperature, top_p=ask.settings.top_p, seed=ask.seed)


def _limits(ask: Ask, first: int, samples: int) -> Limits:
    return Limits(max_tokens=ask.max_tokens, stops=ask.stops, samples=samples, first=first)


def _too_long(key: str, prompt: Sequence[int]) -> Reply:
    return Reply(id=key, text="", finish_reason="prompt_too_long", prompt_tokens=len(prompt))


def _reply(key: str, completion: Completion, seconds: float) -> Reply:
    return Reply(
        id=key,
        text=chat.answer_of(completion.text),  # both forms have an answer behind a space
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        tokens=len(completion.ids),
        seconds=seconds,
    )
