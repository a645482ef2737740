"""One completion while it is generated: where it ends, and the text that is certain.

Text is shown as it becomes certain: never a part of a character, and never what may turn out to
begin a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from codecria.data.errors import UsageError

from .draft_gate import Acceptance
from .drafting import Drafter
from .healing import Opening
from .sampling import Sampling

if TYPE_CHECKING:
    from numpy.random import Generator

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is generated, and where it ends early.

    Attributes:
        max_tokens: longest completion, in tokens.
        stops: strings that end a completion and are not part of it.
        samples: how many completions of the prompt.
        first: number of the first of them; those before are made elsewhere.
        context: longest sequence allowed, prompt and completion; None takes what the model was
            trained on.
    """

    max_tokens: int
    stops: tuple[str, ...] = ()
    samples: int = 1
    first: int = 0
    context: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a limit or stop string makes no sense.
        """
        for name in ("max_tokens", "samples"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UsageError(
                    f"{option} {getattr(self, name)} is too small", hint="give 1 or more"
                )
        if "" in self.stops:
            raise UsageError("a stop string is empty", hint="leave out --stop instead")
        if self.context is not None and self.context < 2:
            raise UsageError(
                f"a context of {self.context} tokens has no room to generate",
                hint="it holds the prompt and the completion: give 2 or more",
            )


class TextStream(Protocol):
    """What the generator needs of a tokenizer's streaming decoder."""

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        ...

    def finish(self) -> str:
        """The text still held back."""
        ...


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely a generated token was.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability at temperature 1, of all tokens allowed.
        top: (id, logprob) of the likeliest tokens, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One finished completion.

    Attributes:
        text: what follows the prompt, without the stop string or the end token.
        ids: the generated ids, the end token excluded.
        prompt_tokens: length of the prompt in tokens, BOS included.
        finish_reason: "stop" at an end token or a stop string, "length" at the limit.
        prefill_s: seconds until the first token.
        decode_s: seconds from the first token to the last.
        stop: the stop string that ended it, or nothing.
        cached_tokens: of the prompt, that the prefix cache held.
        drafted, accepted: tokens that were drafted, and those of them that were right.
        scores: of the ids and of the end token, if they were asked for.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    prefill_s: float
    decode_s: float
    stop: str = ""
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    scores: tuple[TokenScore, ...] = ()


def stop_at(text: str, stops: Sequence[str], searched: int) -> int | None:
    """Where the earliest stop string begins in `text`, looking only where it can be new.

    Args:
        text: all text so far.
        stops: the stop strings, none of them empty.
        searched: length of the text that an earlier call has searched.
    """
    starts = []
    for stop in stops:
        found = text.find(stop, max(0, searched - len(stop) + 1))
        if found >= 0:
            starts.append(found)
    return min(starts, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` might yet turn out to begin a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


@dataclass(slots=True, kw_only=True)
class Decoding:
    """A prompt and what has been generated after it.

    Attributes:
        number: names it in the engine.
        prompt: token ids, BOS included.
        sampling, generator: how its tokens are drawn.
        stream: decodes them.
        limit: longest completion, in tokens.
        stops: strings that end it and are not part of it.
        ends: ids that end it and are not part of it.
        banned: ids that are not drawn, or None.
        opening: text that it must begin with, and that is not shown.
        read_only: whether it ends once its prompt is read.
        top_scores: likeliest tokens that are reported at each place; None for no scores.
        drafter: drafts its next tokens, or None.
        acceptance: how often its drafts were right.
        ids: generated so far.
        text: of these ids, without what is not shown.
        shown: characters of the text that were returned.
        finish_reason: why it ended, or None.
        stop: the stop string that ended it, or nothing.
        scores: of its tokens so far.
        undecided: whether its last token is to be scored once more, by itself.
        cached: tokens of the prompt that the prefix cache held.
        left: bytes of the opening that are still to come.
        hidden: characters of the opening that have not come yet.
        prefill_s: seconds that the prompt took.
        first_at: clock when its first token could be drawn.
    """

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    generator: Generator | None
    stream: TextStream
    limit: int
    stops: tuple[str, ...]
    ends: frozenset[int]
    banned: npt.NDArray[np.intp] | None = None
    opening: Opening | None = None
    read_only: bool = False
    top_scores: int | None = None
    drafter: Drafter | None = None
    acceptance: Acceptance
    ids: list[int] = field(default_factory=list)
    text: str = ""
    shown: int = 0
    finish_reason: FinishReason | None = None
    stop: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    undecided: bool = False
    cached: int = 0
    left: bytes = b""
    hidden: int = 0
    prefill_s: float = 0.0
    first_at: float = 0.0

    def __post_init__(self) -> None:
        if self.opening is not None:
            self.left = self.opening.text
            self.hidden = len(self.left.decode())

    def take(self, token: int) -> str:
        """Add a drawn token and return the text that is now certain to be shown."""
        if self.opening is not None and self.left:
            self.left = self.opening.after(self.left, token)
        if token in self.ends:
            return self._end("stop")
        self.ids.append(token)
        searched = len(self.text)
        self.text += self._beyond_opening(self.stream.push(token))
        if self._cut(searched):
            self.finish_reason = "stop"
            return self._show(len(self.text))
        if len(self.ids) >= self.limit:
            return self._end("length")
        return self._show(len(self.text) - held_back(self.text, self.stops))

    def completion(self, now: float) -> Completion:
        """What has come of it, once it has ended."""
        assert self.finish_reason is not None, "it has not ended"
        return Completion(
            text=self.text,
            ids=tuple(self.ids),
            prompt_tokens=len(self.prompt),
            finish_reason=self.finish_reason,
            prefill_s=self.prefill_s,
            decode_s=now - self.first_at if self.first_at else 0.0,
            stop=self.stop,
            cached_tokens=self.cached,
            drafted=self.acceptance.drafted,
            accepted=self.acceptance.accepted,
            scores=tuple(self.scores),
        )

    def end(self) -> str:
        """End it with what there is, as at the limit; the text that is left to show."""
        return self._end("length")

    def _cut(self, searched: int) -> bool:
        """Cut the text at a stop string that came; whether there is one."""
        cut = stop_at(self.text, self.stops, searched)
        if cut is None:
            return False
        self.stop = next(stop for stop in self.stops if self.text.startswith(stop, cut))
        self.text = self.text[:cut]
        return True

    def _beyond_opening(self, text: str) -> str:
        known = min(self.hidden, len(text))
        self.hidden -= known
        return text[known:]

    def _end(self, reason: FinishReason) -> str:
        searched = len(self.text)
        self.text += self._beyond_opening(self.stream.finish())
        self.finish_reason = "stop" if self._cut(searched) else reason
        return self._show(len(self.text))

    def _show(self, upto: int) -> str:
        fresh = self.text[self.shown : upto]
        self.shown = max(self.shown, upto)
        return fresh
