"""Prompts that are longer than the context, cut in the way that their form allows.

    completion   left, window: the end of the text stays
    infilling    left: the prefix loses its start; the suffix stays whole
                 window: a window around the gap stays; the prefix loses its start, the suffix its
                 end, each the more the longer it is
    chat         left, window: the oldest whole turns go; system prompt and last question stay

Texts are cut and encoded again, ids never: BOS and the sentinels are in every prompt. A cut moves
to the start of a line where that costs little.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from codecria.data.errors import UsageError, UserError
from codecria.data.tokenizer.tokenizer import Specials, Tokenizer

from . import chat
from .infill import Infiller, Order

Truncate = Literal["off", "left", "window"]
PREFIX_SHARE = 0.75  # of the window: what a gap continues says more than what follows it
LINE_COST = 8  # a cut moves to a line's start for at most this part of a side's tokens
LEAST_PART, LEAST_TOKENS = (
    4,
    16,
)  # a cut prompt has a quarter of the context, and 16 tokens, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many tokens a prompt may have.

    Attributes:
        context: longest sequence, prompt and completion, in tokens.
        max_tokens: longest completion, in tokens.
    """

    context: int
    max_tokens: int

    @property
    def uncut(self) -> int:
        """The longest prompt that is used whole; one token remains for the completion."""
        return self.context - 1

    @property
    def cut(self) -> int:
        """The length that a prompt is cut to: the longest completion still fits after it.

        >>> Room(context=512, max_tokens=128).cut
        384
        """
        least = max(self.context // LEAST_PART, LEAST_TOKENS)
        return max(min(least, self.uncut), self.context - self.max_tokens)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits.

    Attributes:
        ids: BOS first.
        left_out: what does not fit, as a sentence without its end; None for a whole prompt.
    """

    ids: list[int]
    left_out: str | None = None


def fit_completion(
    tokenizer: Tokenizer, text: str, room: Room, truncate: Truncate, *, specials: Specials = "text"
) -> Fitted:
    """The prompt of a completion: BOS and the text, or the end of it.

    Raises:
        UserError: it does not fit, and is not to be cut.
    """
    ids = tokenizer.encode(text, bos=True, specials=specials)
    if len(ids) <= (room.uncut if truncate == "off" else room.cut):
        return Fitted(ids)
    if truncate == "off":
        raise _too_long(len(ids), room, hint="--truncate left keeps its end")

    def encode(part: str) -> list[int]:
        return tokenizer.encode(part, specials=specials)

    kept = tail(text, room.cut - 1, encode)
    if not kept:
        raise _no_room(room)
    return Fitted([tokenizer.bos_id, *encode(kept)], _left_out_around_gap(text, "", kept, ""))


def fit_infill(
    infiller: Infiller,
    prefix: str,
    suffix: str,
    order: Order,
    room: Room,
    truncate: Truncate,
    *,
    prefix_share: float = PREFIX_SHARE,
) -> Fitted:
    """The prompt of an infilling: all sentinels, and what fits of the text around the gap.

    Args:
        infiller: of the model's tokenizer.
        prefix, suffix: the text before and after the gap.
        order: PSM or SPM.
        room: for the prompt.
        truncate: what may be cut.
        prefix_share: of the window's tokens, 0 to 1; what a short side does not use, the other may.

    Raises:
        UsageError: the share is not within 0 and 1.
        UserError: it does not fit, and is not to be cut so.
    """
    if not 0 <= prefix_share <= 1:
        raise UsageError(f"a prefix share of {prefix_share} is not within 0 and 1")
    tokenizer = infiller.tokenizer
    reach = _reach(tokenizer, room)
    # Text that no window of this size can hold need not be encoded.
    near, after = (prefix, suffix) if truncate == "off" else (prefix[-reach:], suffix[:reach])
    ids = infiller.prompt(near, after, order).tolist()
    whole = len(near) == len(prefix) and len(after) == len(suffix)
    if whole and len(ids) <= (room.uncut if truncate == "off" else room.cut):
        return Fitted(ids)
    if truncate == "off":
        raise _too_long(len(ids), room, hint="--truncate window keeps what is around the gap")

    def before(text: str) -> list[int]:
        return tokenizer.encode(text)

    def behind(text: str) -> list[int]:
        return tokenizer.encode(text, leading_space=False)

    tokens = room.cut - len(infiller.prompt("", "", order))
    if tokens < 1:
        raise _no_room(room)
    has = (len(before(near)), len(behind(after)))
    if truncate == "left":
        if len(after) < len(suffix) or has[1] > tokens:
            raise UserError(
                f"the text after the gap does not fit {tokens:,} tokens",
                hint="--truncate window cuts it too; --context N widens the context",
            )
        shares = (tokens - has[1], has[1])
    else:
        shares = split_tokens(tokens, has, prefix_share)
    kept = tail(near, shares[0], before), head(after, shares[1], behind)
    return Fitted(
        infiller.prompt(*kept, order).tolist(), _left_out_around_gap(prefix, suffix, *kept)
    )


def split_tokens(tokens: int, has: tuple[int, int], prefix_share: float) -> tuple[int, int]:
    """How many tokens prefix and suffix get; what a short one leaves, the other gets.

    >>> split_tokens(100, (500, 500), 0.75)
    (75, 25)
    >>> split_tokens(100, (10, 500), 0.75)
    (10, 90)
    >>> split_tokens(100, (500, 10), 0.75)
    (90, 10)
    """
    prefix = round(tokens * prefix_share)
    suffix = min(has[1], tokens - prefix)
    prefix = min(has[0], tokens - suffix)
    return prefix, min(has[1], tokens - prefix)


def fit_chat(
    tokenizer: Tokenizer, dialog: Sequence[chat.Message], room: Room, truncate: Truncate
) -> Fitted:
    """The prompt of a dialog, without its oldest turns where they do not fit.

    Args:
        tokenizer: gives the chat form.
        dialog: an optional system message, then user and assistant in turn, the user last.
        room: for the prompt.
        truncate: whether turns may go.

    Raises:
        UserError: system prompt and last question alone do not fit, or no turn may go.
    """
    system = dialog[:1] if dialog and dialog[0].role == "system" else dialog[:0]
    turns = dialog[len(system) :]
    ids = chat.prompt_ids(tokenizer, dialog)
    if len(ids) <= (room.uncut if truncate == "off" else room.cut):
        return Fitted(ids)
    if truncate == "off" and len(turns) > 1:
        raise _too_long(len(ids), room, hint="--truncate window leaves out the oldest turns")
    most = len(turns) // 2

    def fits(dropped: int) -> bool:
        return len(chat.prompt_ids(tokenizer, [*system, *turns[2 * dropped :]])) <= room.cut

    dropped = min(most, 1 + bisect_left(range(1, most), True, key=fits))
    ids = chat.prompt_ids(tokenizer, [*system, *turns[2 * dropped :]])
    if len(ids) > room.uncut:
        what = "the system prompt and the question have" if system else "the question has"
        raise UserError(
            f"{what} {len(ids):,} tokens, the context is {room.context:,}",
            hint="shorten them, or widen the context with --context",
        )
    if not dropped:
        return Fitted(ids)
    plural = "question and its answer" if dropped == 1 else f"{dropped} questions and their answers"
    return Fitted(ids, f"the oldest {plural}")


# --- cutting text ---

Encode = Callable[[str], Sequence[int]]


def tail(text: str, tokens: int, encode: Encode) -> str:
    """The longest end of a text that encodes to at most so many tokens.

    It begins at a line's start where that costs at most an eighth of the tokens.
    """

    def fits(characters: int) -> bool:
        return len(encode(text[len(text) - characters :])) <= tokens

    start = len(text) - _most(fits, len(text), guess=tokens)
    if start and text[start - 1] != "\n":
        line = text.find("\n", start) + 1
        cost = len(encode(text[start:line])) * LINE_COST
        if 0 < line < len(text) and cost <= tokens and fits(len(text) - line):
            start = line
    return text[start:]


def head(text: str, tokens: int, encode: Encode) -> str:
    """The longest start of a text that encodes to at most so many tokens.

    It ends at a line's end where that costs at most an eighth of the tokens.
    """

    def fits(characters: int) -> bool:
        return len(encode(text[:characters])) <= tokens

    end = _most(fits, len(text), guess=tokens)
    if end < len(text) and not text[:end].endswith("\n"):
        line = text.rfind("\n", 0, end) + 1
        if line and len(encode(text[line:end])) * LINE_COST <= tokens and fits(line):
            end = line
    return text[:end]


def _most(fits: Callable[[int], bool], most: int, *, guess: int) -> int:
    """The largest number up to `most` that fits, found by doubling and halving.

    Nothing always fits. Longer texts have more tokens but for a few at a border, where a number
    next to the largest may be found; it always fits.
    """
    low, high = 0, max(1, guess)
    while high < most and fits(high):
        low, high = high, 2 * high
    if high >= most:
        if fits(most):
            return most
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _reach(tokenizer: Tokenizer, room: Room) -> int:
    """Characters that a context's tokens can stand for at most."""
    return room.context * tokenizer.longest


# --- messages ---


def _left_out_around_gap(prefix: str, suffix: str, near: str, after: str) -> str | None:
    """What a window leaves out of a text."""
    before, behind = prefix[: len(prefix) - len(near)], suffix[len(after) :]
    # A cut in the middle of a line leaves out a part of it.
    first = behind.find("\n") + 1 or len(behind) if after and not after.endswith("\n") else 0
    parts = []
    if before:
        last = before.rfind("\n") + 1
        parts.append(f"the first {_amount(before[:last], before[last:])}")
    if behind:
        parts.append(f"the last {_amount(behind[first:], behind[:first])}")
    return " and ".join(parts) if parts else None


def _amount(lines: str, rest: str) -> str:
    """Whole lines, and characters of one that was cut, in words."""
    count = len(lines.split("\n")) - lines.endswith("\n") if lines else 0
    found = []
    if count:
        found.append(f"{count:,} line{'s' if count > 1 else ''}")
    if rest:
        found.append(f"{len(rest):,} character{'s' if len(rest) > 1 else ''}")
    return " and ".join(found)


def _too_long(tokens: int, room: Room, *, hint: str) -> UserError:
    return UserError(
        f"the prompt has {tokens:,} tokens, the context {room.context:,}",
        hint=f"{hint}; --context N widens the context",
    )


def _no_room(room: Room) -> UserError:
    return UserError(
        f"a context of {room.context:,} tokens has no room for the prompt",
        hint="widen it with --context",
    )
