"""The infilling format: a document cut in three, and the ids it is in training and in prompts.

    text      def f(x):\\n    return x + 1\\n
              prefix....|middle...|suffix
    PSM       BOS PRE Enc(prefix) SUF Enc0(suffix) MID Enc0(middle) EOT EOS
    SPM       BOS PRE SUF Enc0(suffix) MID Enc(prefix + middle) EOT EOS
    prompt    the same without what the model is to write: up to MID, or up to Enc(prefix)

Enc is the tokenizer's encoding, Enc0 the one without the implied leading space. In SPM prefix and
middle are encoded as one text, so SPM never shows a token cut in two between them and PSM does
(Code Llama, section 2.3; Bavarian et al. 2022, appendix D, variant 2). Loss is on all of it.

Every choice is drawn from a key by a hash, never from a random state.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Literal

import numpy as np

from codecria.data.errors import UserError
from codecria.data.tokenizer.extension import InfillIds
from codecria.data.tokenizer.fast_encode import Ids
from codecria.data.tokenizer.tokenizer import Tokenizer

Scope = Literal["document", "context"]
Spans = Literal["chars", "syntax"]
TRIES = 7  # cuts drawn for one document before it stays plain
_WORDS = struct.Struct("<8Q")


class Order(IntEnum):
    """How a stretch of training tokens is arranged; the values stand in `Row.kinds`."""

    PLAIN = 0
    PSM = 1
    SPM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillFormat:
    """How often and how documents are infilled.

    Attributes:
        rate: probability that an eligible document is (0.9 in Code Llama, section 2.3).
        spm_share: of these, the share in suffix-prefix-middle order (half, section 2.3).
        scope: which are eligible. "document": those whole in their window (section 2.3).
            "context": each document's part within the window is taken for a document (as the
            context-level infilling of Bavarian et al.); for windows that hold few whole ones.
        eos: whether EOS follows EOT. The paper does not say; every other document ends with it.
        spans: where a document is cut. "chars": at two characters, drawn independently (section
            2.3). "syntax": around the syntax node nearest to two such characters; where no parser
            reads the text, at the characters.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    rate: float = 0.9
    spm_share: float = 0.5
    scope: Scope = "document"
    eos: bool = True
    spans: Spans = "chars"


@dataclass(frozen=True, slots=True)
class Parts:
    """A document in three; each may be empty."""

    prefix: str
    middle: str
    suffix: str

    @classmethod
    def cut(cls, text: str, one: int, other: int) -> Parts:
        """The text cut before two of its characters; at its length means at its end."""
        first, last = sorted((one, other))
        assert 0 <= first <= last <= len(text), f"cuts at {one} and {other} of {len(text)}"
        return cls(text[:first], text[first:last], text[last:])

    @property
    def text(self) -> str:
        """The document."""
        return self.prefix + self.middle + self.suffix


class Infiller:
    """Makes infilling sequences with one tokenizer. Threads may share one.

    Args:
        tokenizer: with the infilling pieces.

    Raises:
        UserError: the tokenizer lacks them, or normalises text: parts would not make up a document.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.infill is None:
            raise UserError(
                f"{tokenizer.path} has no infilling pieces: this model cannot fill in the middle",
                hint="`codecria fim` trains one that can; of Code Llama 7b, 13b and 70b can",
            )
        if not tokenizer.keeps_text:
            raise UserError(
                f"{tokenizer.path} normalises text: the parts of a document would not make it up",
                hint="use a tokenizer with identity normalisation, as Llama 2's is",
            )
        self.tokenizer = tokenizer
        self.special: InfillIds = tokenizer.infill

    def prompt(self, prefix: str, suffix: str, order: Order) -> Ids:
        """The ids after which the model writes the middle: (tokens,)."""
        encode = self.tokenizer.encode_array
        opening = self._opening(encode(prefix), encode(suffix, leading_space=False), order)
        return np.concatenate(opening)

    def example(
        self, parts: Parts, order: Order, *, eos: bool = True, lines: KnownLines | None = None
    ) -> Ids:
        """The ids of a training example, BOS to EOS: (tokens,).

        Args:
            parts: of the document.
            order: PSM or SPM.
            eos: whether EOS follows EOT.
            lines: the document's own ids, which save most of the encoding.
        """
        encode = self.tokenizer.encode_array
        one = len(parts.prefix)
        other = one + len(parts.middle)
        # The prompt's own opening; in SPM with the prefix grown by the middle before it is encoded.
        written = parts.prefix + parts.middle if order == Order.SPM else parts.prefix
        before = lines.before(len(written)) if lines else encode(written)
        behind = lines.behind(other) if lines else encode(parts.suffix, leading_space=False)
        ids = self._opening(before, behind, order)
        if order == Order.PSM:
            middle = lines.between(one, other) if lines else None
            ids.append(encode(parts.middle, leading_space=False) if middle is None else middle)
        end = self.special.end
        ids.append(_ids(end, self.tokenizer.eos_id) if eos else _ids(end))
        return np.concatenate(ids)

    def _opening(self, before: Ids, behind: Ids, order: Order) -> list[Ids]:
        """The prompt of an encoded prefix and suffix; the one place that orders the sentinels."""
        special, bos = self.special, self.tokenizer.bos_id
        if order == Order.PSM:
            head = _ids(bos, special.prefix)
            return [head, before, _ids(special.suffix), behind, _ids(special.middle)]
        assert order == Order.SPM, f"{order!r} is no infilling order"
        return [_ids(bos, special.prefix, special.suffix), behind, _ids(special.middle), before]


class KnownLines:
    """A text whose ids are known: encodes what lies before and behind a cut from lines that stay.

    A line's end has an id of its own and is in no piece with a neighbour, so lines are encoded each
    apart from the others, and only those that are cut need encoding again.

    Args:
        tokenizer: one with a `newline_id`.
        text: a document, or a part of one.
        ids: (tokens,) of the text.
        starts, ends: whether the text's first and last line are whole; another line's ids there
            need not be those of the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, text: str, ids: Ids, *, starts: bool = True, ends: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._text = text
        newline = tokenizer.newline_id
        assert newline is not None, f"{tokenizer.path} does not encode lines apart"
        if not (starts and ends):
            ids = self._mended(ids, newline, starts=starts, ends=ends)
        self._ids = ids
        self._newlines = np.flatnonzero(ids == newline)  # where each line but the last ends

    def before(self, cut: int) -> Ids:
        """Enc of the text before a character."""
        text = self._text
        start = text.rfind("\n", 0, cut) + 1
        if not start:
            return self._tokenizer.encode_fragment(text[:cut])
        line = text.count("\n", 0, start)
        rest = self._tokenizer.encode_fragment(text[start:cut], leading_space=False)
        return np.concatenate([self._ids[: self._newlines[line - 1] + 1], rest])

    def behind(self, cut: int) -> Ids:
        """Enc0 of the text from a character on."""
        text = self._text
        end = text.find("\n", cut)
        if end < 0:
            return self._tokenizer.encode_fragment(text[cut:], leading_space=False)
        line = text.count("\n", 0, end)
        rest = self._tokenizer.encode_fragment(text[cut:end], leading_space=False)
        return np.concatenate([rest, self._ids[self._newlines[line] :]])

    def between(self, one: int, other: int) -> Ids:
        """Enc0 of the text between two characters."""
        text, encode = self._text, self._tokenizer.encode_fragment
        end = text.find("\n", one, other)
        if end < 0:
            return encode(text[one:other], leading_space=False)
        start = text.rfind("\n", one, other) + 1
        first, last = text.count("\n", 0, end), text.count("\n", 0, start) - 1
        kept = self._ids[self._newlines[first] : self._newlines[last] + 1]
        parts = (text[one:end], text[start:other])
        head, tail = (encode(part, leading_space=False) for part in parts)
        return np.concatenate([head, kept, tail])

    def _mended(self, ids: Ids, newline: int, *, starts: bool, ends: bool) -> Ids:
        """The ids with the lines at the text's ends encoded as they stand."""
        text, encode = self._text, self._tokenizer.encode_fragment
        first, last = text.find("\n"), text.rfind("\n")
        if first < 0:
            return encode(text)
        newlines = np.flatnonzero(ids == newline)
        begin, end = int(newlines[0]), int(newlines[-1]) + 1
        # With its "\n": an empty first line still has the implied space.
        head = ids[:begin] if starts else encode(text[: first + 1])[:-1]
        tail = ids[end:] if ends else encode(text[last + 1 :], leading_space=False)
        return np.concatenate([head, ids[begin:end], tail])


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance says of one document in one epoch: whether it is infilled, and in which order."""

    chosen: bool
    order: Order
    key: bytes
    first: tuple[int, ...]

    @classmethod
    def of(cls, format: InfillFormat, key: bytes) -> Draw:
        """The draw that belongs to a key: the seed, the source, the epoch and the document."""
        whether, how, *first = _words(key, 0)
        order = Order.SPM if how < format.spm_share * 2**64 else Order.PSM
        return cls(whether < format.rate * 2**64, order, key, tuple(first))

    def cuts(self, length: int) -> Iterator[tuple[int, int]]:
        """`TRIES` pairs of cuts, each place drawn independently and uniformly from 0 .. length.

        Args:
            length: characters of the document; a cut at n is before character n.
        """
        words = [*self.first, *_words(self.key, 1)]
        places = [word * (length + 1) >> 64 for word in words[: 2 * TRIES]]
        yield from zip(places[::2], places[1::2], strict=True)


def _words(key: bytes, turn: int) -> tuple[int, ...]:
    """Eight 64-bit numbers that are a fixed function of the key."""
    digest = hashlib.blake2b(key, digest_size=64, salt=turn.to_bytes(8, "little")).digest()
    return _WORDS.unpack(digest)


def _ids(*special: int) -> Ids:
    return np.array(special, dtype=np.int32)
