"""From texts to the ids the model reads, for `generate` and `serve` alike.

Other files that an editor sends along stand before the text before the gap, each under a comment
with its name. They are also what drafts are taken from, as are the suffix, earlier answers and a
prediction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from codecria.data.errors import UserError
from codecria.data.formats import chat, cursor
from codecria.data.formats.infill import Infiller, Order
from codecria.data.formats.window import (
    PREFIX_SHARE,
    Room,
    Truncate,
    fit_chat,
    fit_completion,
    fit_infill,
)
from codecria.data.tokenizer.tokenizer import Specials, Tokenizer

from .drafting import MOST_INDEXED, Sources
from .healing import Opening, heal

Form = Literal["psm", "spm"]
ANSWERS = 32  # earlier answers that drafts are drawn from
ANSWER_TOKENS = 4_096  # of them together
REACH = 4 * MOST_INDEXED  # characters of a text that drafts are taken from
# Files whose comments begin with two slashes; the others get a number sign.
_SLASHED = (
    ".c .cc .cpp .cs .cxx .dart .go .h .hpp .java .js .jsx .kt .m .mjs .php .rs .scala .swift"
)
SLASHES = frozenset([*_SLASHED.split(), ".ts", ".tsx", ".v", ".zig"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt that fits.

    Attributes:
        ids: BOS first.
        ends: ids that end the completion, besides the checkpoint's own.
        gap: what is filled, or None; its `shown` gives a middle the text's line ends.
        opening: text that the completion must begin with.
        sources: what drafts are drawn from.
        left_out: what does not fit, or None.
    """

    ids: tuple[int, ...]
    ends: frozenset[int] = frozenset()
    gap: cursor.Gap | None = None
    opening: Opening | None = None
    sources: Sources
    left_out: str | None = None


@dataclass(frozen=True, slots=True)
class Extra:
    """Another file that an editor sends along.

    Attributes:
        text: of it, or of a part.
        name: may be empty.
    """

    text: str
    name: str = ""


class Answers:
    """The tokens of the latest answers, for drafts. Threads may share it."""

    def __init__(self) -> None:
        self._latest: deque[tuple[int, ...]] = deque(maxlen=ANSWERS)

    def add(self, ids: Sequence[int]) -> None:
        """Remember an answer."""
        if len(ids) > 1:
            self._latest.append(tuple(ids[-ANSWER_TOKENS:]))

    def latest(self) -> list[tuple[int, ...]]:
        """The answers that are remembered, the latest last."""
        found: list[tuple[int, ...]] = []
        room = ANSWER_TOKENS
        for ids in reversed(list(self._latest)):
            room -= len(ids)
            if room < 0:
                break
            found.append(ids)
        return found[::-1]


@dataclass(frozen=True)
class Prompts:
    """Builds prompts for one model.

    Attributes:
        tokenizer: of the model.
        context: longest sequence, in tokens.
        form: order of the parts of a gap's prompt where a request does not say.
        answers: earlier ones, for drafts.
    """

    tokenizer: Tokenizer
    context: int
    form: Form = "psm"
    answers: Answers = field(default_factory=Answers)

    @cached_property
    def infiller(self) -> Infiller:
        """Makes the prompts of gaps.

        Raises:
            UserError: the model cannot fill gaps.
        """
        return Infiller(self.tokenizer)

    def completion(
        self,
        text: str,
        max_tokens: int,
        *,
        truncate: Truncate = "off",
        specials: Specials = "text",
        healed: bool = False,
        prediction: str = "",
    ) -> Prompt:
        """The prompt of text to be continued.

        Raises:
            UserError: it does not fit.
        """
        room = Room(context=self.context, max_tokens=max(1, max_tokens))
        if truncate == "off":
            self._refuse_endless(text, hint="--truncate left keeps its end")
        fitted = fit_completion(self.tokenizer, text, room, truncate, specials=specials)
        ids, opening = (
            heal(fitted.ids, self.tokenizer.typed_bytes()) if healed else (fitted.ids, None)
        )
        return Prompt(
            ids=tuple(ids),
            opening=opening,
            sources=self._sources(tuple(ids), prediction=prediction),
            left_out=fitted.left_out,
        )

    def given(self, ids: Sequence[int]) -> Prompt:
        """A prompt that came as ids.

        Raises:
            UserError: one is outside the vocabulary.
        """
        ids = tuple(ids)
        if not ids or not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise UserError("the prompt's ids are not in the tokenizer's vocabulary")
        return Prompt(ids=ids, sources=self._sources(ids))

    def infilling(
        self,
        prefix: str,
        suffix: str,
        max_tokens: int,
        *,
        middle: str = "",
        extras: Sequence[Extra] = (),
        form: Form | None = None,
        truncate: Truncate = "window",
        prefix_share: float = PREFIX_SHARE,
        healed: bool = False,
        prediction: str = "",
    ) -> Prompt:
        """The prompt that fills a gap.

        Args:
            prefix, suffix: the text before and after the gap.
            max_tokens: longest middle.
            middle: what of the middle is there already; it is not generated again.
            extras: other files.
            form: order of the parts.
            truncate, prefix_share: see `fit_infill`.
            healed: whether a token that the prefix cuts off is finished, in SPM.
            prediction: a guess at the middle.

        Raises:
            UserError: the model cannot fill gaps, or the prompt does not fit.
        """
        tokenizer, infiller = self.tokenizer, self.infiller
        gap = cursor.between(prefix, suffix)
        begun = middle.replace("\r\n", "\n") if gap.carriage else middle
        order = Order.SPM if (form or self.form) == "spm" else Order.PSM
        before = "".join(map(_headed, extras)) + gap.prefix
        behind: list[int] = []
        if order == Order.SPM:
            before += begun  # prefix and middle are encoded as one text, as in training
        elif begun:
            behind = tokenizer.encode(begun, leading_space=False)
        room = Room(context=self.context - len(behind), max_tokens=max(1, max_tokens))
        if room.context < 2:
            raise UserError("the middle that is there already fills the context")
        fitted = fit_infill(
            infiller, before, gap.suffix, order, room, truncate, prefix_share=prefix_share
        )
        ids = [*fitted.ids, *behind]
        opening = None
        if healed and order == Order.SPM:
            ids, opening = heal(ids, tokenizer.typed_bytes())
        return Prompt(
            ids=tuple(ids),
            ends=frozenset((infiller.special.end,)),
            gap=gap,
            opening=opening,
            sources=self._sources(
                self._near(gap.prefix + begun),
                texts=[*(extra.text for extra in extras), gap.suffix],
                prediction=prediction,
            ),
            left_out=fitted.left_out,
        )

    def answer(
        self,
        dialog: Sequence[chat.Message],
        max_tokens: int | None,
        *,
        truncate: Truncate = "window",
        prediction: str = "",
    ) -> Prompt:
        """The prompt of a dialog.

        Raises:
            UserError: its turns do not alternate, or it does not fit.
        """
        # Without a limit of its own an answer may have half of the context.
        most = max(1, self.context // 2 if max_tokens is None else max_tokens)
        room = Room(context=self.context, max_tokens=most)
        self._refuse_endless(dialog[-1].content if dialog else "")
        fitted = fit_chat(self.tokenizer, dialog, room, truncate)
        return Prompt(
            ids=tuple(fitted.ids),
            ends=frozenset((chat.stop_id(self.tokenizer),)),
            sources=self._sources(tuple(fitted.ids), prediction=prediction),
            left_out=fitted.left_out,
        )

    def _refuse_endless(self, text: str, *, hint: str = "shorten it") -> None:
        """Refuse text that no context of this size holds, without encoding it.

        Raises:
            UserError: it is too long.
        """
        longest = self.context * self.tokenizer.longest
        if len(text) > longest:
            raise UserError(
                f"the prompt has {len(text):,} characters, more than the context of"
                f" {self.context:,} tokens holds",
                hint=f"{hint}; or widen the context with --context",
            )

    def _sources(
        self, history: tuple[int, ...], *, texts: Sequence[str] = (), prediction: str = ""
    ) -> Sources:
        encode = self.tokenizer.encode
        return Sources(
            history=history,
            documents=(
                *self.answers.latest(),
                *(tuple(encode(_bounded(text), leading_space=False)) for text in texts if text),
            ),
            prediction=tuple(encode(prediction[:REACH], leading_space=False)) if prediction else (),
        )

    def _near(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(_bounded(text), leading_space=False))


def _headed(extra: Extra) -> str:
    """A file under a comment with its name."""
    text = extra.text.replace("\r\n", "\n")
    ended = text if text.endswith("\n") else text + "\n"
    if not extra.name.strip():
        return ended + "\n"
    name = " ".join(extra.name.split())
    slashes = "." + name.rpartition(".")[2].lower() in SLASHES
    return f"{'//' if slashes else '#'} {name}\n{ended}\n"


def _bounded(text: str) -> str:
    """The end of a text that may be too long to be worth encoding for drafts."""
    return text[-REACH:]
