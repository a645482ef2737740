"""Token healing: a prompt that ends inside a token goes on as if it did not.

A prompt `retur` ends in pieces the model has hardly seen before what it means, `n`. The last pieces
are taken back, and the completion must begin with their text: each token drawn either goes on with
what is left of it, or covers it and more. The paper names this for infilling in the suffix-first
form, and leaves it out (appendix E).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_TOKENS = 4  # taken back


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The text that a completion must begin with, and that its reader has already.

    Attributes:
        text: in UTF-8.
        pieces: (V,) what each token adds to a text, in UTF-8; nothing for control pieces.
    """

    text: bytes
    pieces: tuple[bytes, ...]

    def allowed(self, left: bytes) -> Tensor:
        """(V,) which tokens may follow while this much of the opening is left."""
        return torch.tensor(
            [bool(p) and (p.startswith(left) or left.startswith(p)) for p in self.pieces]
        )

    def after(self, left: bytes, token: int) -> bytes:
        """What is left of the opening after one more token."""
        return left[len(self.pieces[token]) :]


def heal(ids: Sequence[int], pieces: Sequence[bytes]) -> tuple[list[int], Opening | None]:
    """The prompt without the pieces that a longer one could replace, and what must follow.

    Args:
        ids: a prompt whose last part is ordinary text.
        pieces: see `Opening`.
    """
    best, text = 0, b""
    joined = b""
    for count in range(1, min(MOST_TOKENS, len(ids) - 1) + 1):
        piece = pieces[ids[-count]]
        if not piece:
            break
        joined = piece + joined
        # A piece that is longer may be what was meant; equal ones are what stands there.
        if _is_text(joined) and any(
            len(other) > len(joined) and other.startswith(joined) for other in pieces
        ):
            best, text = count, joined
    if not best:
        return list(ids), None
    return list(ids[: len(ids) - best]), Opening(text=text, pieces=tuple(pieces))


def _is_text(data: bytes) -> bool:
    """Whether bytes are whole characters: pieces may be single bytes of one."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
