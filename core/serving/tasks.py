"""What a request asks of the engine, and what comes back, whatever protocol it came by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from codecria.core.inference.decoding import Completion, TokenScore
from codecria.core.inference.drafting import Sources
from codecria.core.inference.healing import Opening
from codecria.core.inference.sampling import Sampling
from codecria.data.errors import UserError


class Shaper(Protocol):
    """Changes a completion's text as it streams, and may end it."""

    @property
    def ended(self) -> bool:
        """Whether nothing that follows is shown."""
        ...

    def push(self, text: str) -> str:
        """The text to show for the next piece."""
        ...

    def finish(self) -> str:
        """What is still to be shown at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Completions of one prompt.

    Attributes:
        prompt: token ids, BOS included.
        sampling: how tokens are drawn.
        max_tokens: longest completion; 0 reads the prompt into the cache and generates nothing.
        context: longest sequence, in tokens.
        stops: strings that end a completion.
        ends: ids that end it.
        samples: how many.
        opening: text that a completion must begin with (`healing.py`).
        sources: of drafts, or None for no drafting.
        top_scores: how many of the likeliest tokens are reported at each place; None for no scores.
        prompt_s, predict_s: time for the prompt and for the completion, or None.
        left_out: what a prompt that was too long has lost, or None.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    context: int
    stops: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    samples: int = 1
    opening: Opening | None = None
    sources: Sources | None = None
    top_scores: int | None = None
    prompt_s: float | None = None
    predict_s: float | None = None
    left_out: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became certain.

    Attributes:
        sample: its number.
        text: may be empty where only scores are new.
        scores: of the tokens since the last piece.
        tokens: generated so far.
    """

    sample: int
    text: str
    scores: Sequence[TokenScore] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A sample has ended.

    Attributes:
        sample: its number.
        completion: all of it.
        timed_out: whether its time was over.
    """

    sample: int
    completion: Completion
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The task cannot go on.

    Attributes:
        error: for the client.
        internal: whether it is an error of the program.
    """

    error: UserError
    internal: bool = False


Event = Piece | Finished | Failed
