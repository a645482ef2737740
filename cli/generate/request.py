"""What `generate` is asked for, whether this process or a server generates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from codecria.data.formats.window import Truncate

    from .prompt import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Completing:
    """How a prompt is completed, with the command line's defaults.

    Attributes:
        system: the system prompt of a question.
        refuse_tags: whether messages with chat-template tags are refused.
        form, prefix_share: how a gap's prompt is built.
        context: longest sequence in tokens; None takes what the model was trained on.
        truncate: what a prompt that is too long loses; None takes what its kind usually does.
        heal: whether a token that the prompt cuts off is finished.
        parse_specials: whether the prompt may name special tokens, and completions hold them.
        max_tokens, temperature, top_p, top_k, seed, samples: how tokens are drawn.
        draft: whether tokens are drafted.
    """

    system: str | None = None
    refuse_tags: bool = False
    form: Literal["psm", "spm"] = "psm"
    prefix_share: float = 0.75
    context: int | None = None
    truncate: Truncate | None = None
    heal: bool = False
    parse_specials: bool = False
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    samples: int = 1
    draft: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Completing):
    """A prompt and how it is completed.

    Attributes:
        asked: the prompt.
        chat: whether it is a question.
        stops: strings that end a completion.
    """

    asked: Asked
    chat: bool = False
    stops: tuple[str, ...] = ()

    @property
    def cut(self) -> Truncate:
        """What a prompt that is too long loses."""
        return self.truncate or ("off" if self.asked.gap is None and not self.chat else "window")
