"""An OpenAI-compatible endpoint as the model that answers; see `core/endpoint.py`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from codecria.core.endpoint import Access, Client, Post

from .models import Ask, Known, Reply, body_of, reply_of
from .prompts import Form


class Endpoint:
    """A model at an endpoint.

    Args:
        access: where and how.
        name: of the model there.
        form: "chat" for chat completions, "few-shot" for completions of plain text.
        note: takes remarks for people.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        access: Access,
        name: str,
        *,
        form: Form = "chat",
        note: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.access = access
        self.form: Form = form
        self.facts: dict[str, Any] = {"kind": "openai", "model": name}
        self.failed = 0
        self._client = Client(access, name, sleep=sleep)
        self._note = note

    def answer(self, asks: Sequence[Ask], known: Known) -> Iterator[list[Reply]]:
        """The replies that are not known yet, as they come; see `models.Model`.

        What failed after all retries is left unanswered, and counted in `failed`.
        """
        self.failed = 0
        keys: list[str] = []
        posts: list[Post[Reply]] = []
        for ask in asks:
            for sample, key in enumerate(ask.ids()):
                if key not in known:
                    path, body = body_of(ask, sample, self._client.name)
                    keys.append(key)
                    posts.append(Post(path, body, functools.partial(_reply, key)))
        for found in self._client.answers(posts):
            if found.answer is not None:
                yield [found.answer]
            elif found.refused:
                key = keys[found.place]
                yield [Reply(id=key, text="", finish_reason="refused", detail=found.refused)]
            else:
                self.failed += 1
                self._note(f"no answer after {self.access.retries + 1} tries: {found.failed}")


def _reply(key: str, response: Any, seconds: float) -> Reply:
    return reply_of(key, response, seconds=seconds)
