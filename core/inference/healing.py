"""Token healing: finish a token that the prompt cuts off.

The prompt `retur` ends in pieces that training data hardly has before `n`. The last pieces are
removed from the prompt, and the completion must begin with their text: each token drawn is a part
of the text that is left, or covers it and more. The paper describes this for suffix-first infilling
and does not use it (appendix E).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_TOKENS = 4  # removed from the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The text that a completion must begin with; it is in the prompt, so it is not shown again.

    Attributes:
        text: in UTF-8.
        pieces: (V,) what each token adds to a text, in UTF-8; empty for control pieces.
    """

    text: bytes
    pieces: tuple[bytes, ...]

    def allowed(self, left: bytes) -> npt.NDArray[np.bool_]:
        """(V,) which tokens may be drawn while this much of the opening is left."""
        return np.array(
            [bool(p) and (p.startswith(left) or left.startswith(p)) for p in self.pieces]
        )

    def after(self, left: bytes, token: int) -> bytes:
        """What is left of the opening after one more token."""
        return left[len(self.pieces[token]) :]


def heal(ids: Sequence[int], pieces: Sequence[bytes]) -> tuple[list[int], Opening | None]:
    """The prompt without the last pieces that a longer one may replace, and their text.

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
        # Only a longer piece can be what was meant.
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
