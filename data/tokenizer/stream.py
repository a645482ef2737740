"""Streaming decode: ids come one at a time, and only whole characters are returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from codecria.data.errors import UserError

from .model_file import SPACE


class StreamDecoder:
    """Decodes one id at a time; what it returns never ends inside a character.

    The results of `push`, then of `finish`, joined, equal the text of all ids decoded at once.
    Each byte that is not valid UTF-8 becomes U+FFFD.
    """

    def __init__(
        self,
        surface: Callable[[int], str | int],
        vocab_size: int,
        *,
        drop_space: Literal["none", "one", "all"] = "none",
        whole: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """Made by `Tokenizer.stream`.

        Args:
            surface: of an id: text, or a byte.
            vocab_size: number of ids.
            drop_space: how many spaces to drop from the text's start.
            whole: decodes all ids at the end, for models whose text depends on later ids.
        """
        self._surface, self._vocab_size = surface, vocab_size
        self._drop_space = drop_space
        self._whole = whole
        self._ids: list[int] = []
        self._bytes = bytearray()  # the start of a character, at most 3 bytes between pushes

    def push(self, token: int) -> str:
        """The text that the next id completes; may be empty.

        Raises:
            UserError: the id is outside the vocabulary.
        """
        if self._whole is not None:
            self._ids.append(token)
            return ""
        if not 0 <= token < self._vocab_size:
            raise UserError(
                f"the id {token} is outside the tokenizer's {self._vocab_size} pieces",
                hint="the tokenizer does not belong to this model",
            )
        surface = self._surface(token)
        if isinstance(surface, int):
            self._bytes.append(surface)
            return self._started(self._characters())
        held = self._started(self.finish())
        return held + self._started(self._at_start(surface).replace(SPACE, " "))

    def finish(self) -> str:
        """The rest of the text: bytes of an incomplete character, as U+FFFD."""
        if self._whole is not None:
            text = self._whole(self._ids)
            self._ids = []
            return text
        text = self._characters()
        while self._bytes:
            del self._bytes[0]
            text += "\ufffd" + self._characters()
        return text

    def _characters(self) -> str:
        """Remove whole characters from the bytes; a byte that begins none becomes U+FFFD."""
        text = ""
        while self._bytes and len(self._bytes) >= (size := _utf8_size(self._bytes[0])):
            try:
                text += self._bytes[:size].decode()
            except UnicodeDecodeError:
                text += "\ufffd"
                size = 1
            del self._bytes[:size]
        return text

    def _at_start(self, surface: str) -> str:
        """The piece without the spaces that are dropped from the start of the text."""
        if self._drop_space == "none" or not surface.startswith(SPACE):
            return surface
        if self._drop_space == "one":
            self._drop_space = "none"
        return surface[1:]

    def _started(self, text: str) -> str:
        if text:
            self._drop_space = "none"
        return text


def _utf8_size(first: int) -> int:
    """Bytes of the character that begins with this byte; 1 where none does."""
    return 1 + sum(first >= least for least in (0xC0, 0xE0, 0xF0)) if first < 0xF8 else 1
