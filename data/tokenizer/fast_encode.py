"""Exact encoding with a SentencePiece BPE model from cached chunks of the text.

BPE joins neighbours as long as the joined string is a piece, so two characters that stand side by
side in no piece are never joined, and what lies left of them never meets what lies right of them:
the text may be cut there and each chunk encoded alone. The cuts are derived from the vocabulary.

    text      "def f(x):\\n    return x"
    lines     "def f(x):" | "    return x"                     the id of "\\n" between them
    words     "def" | " f" | "(" | "x" | "):" | "\\n    return" | " x"     of lines not seen before

Only words not seen before reach SentencePiece, and long ones in parts, cut wherever a cut is safe.
Both caches are bounded (`LINES_BYTES`, `WORDS_BYTES`).

Limits: works on text that is normalised already (`tokenizer.py` does that where a model asks for
it), for models that `obstacle` lets pass. Ids are int32 in native byte order.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress, islice, pairwise, repeat
from operator import is_
from sys import getsizeof
from typing import Any

import numpy as np
import numpy.typing as npt

from .model_file import BPE, BYTE, NORMAL, SPACE, UNUSED, USER_DEFINED

MERGEABLE = frozenset((NORMAL, USER_DEFINED, UNUSED))

# The most that each cache holds before it starts anew, and its longest key in characters.
LINES_BYTES, LONGEST_LINE = 128 << 20, 240
WORDS_BYTES, LONGEST_WORD = 64 << 20, 32
SEPARATOR = "\0"  # seldom in a text
BLOCK = 1 << 20  # characters encoded at a time, which bounds the working memory
CLASSES = 1024  # of characters, in the table of pairs
COARSE_CLASSES = 24  # of these, shared by characters beyond the most frequent ones

Ids = npt.NDArray[np.int32]


def obstacle(model: Any) -> str | None:
    """Why the model's text cannot be cut into chunks; None when it can.

    Args:
        model: a parsed ModelProto.
    """
    if model.trainer_spec.model_type != BPE:
        return "the model is not BPE"
    if not model.normalizer_spec.escape_whitespaces:
        return "the model keeps spaces as they are"
    return None


class Pairs:
    """Which pairs of neighbouring characters a cut may not part; spaces stand for U+2581.

    Pairs inside a piece (also of a user-defined symbol, which is matched as a whole), and without
    byte fallback pairs of unknown characters, since these become one id together.
    """

    def __init__(self, model: Any) -> None:
        pieces = [p.piece.replace(SPACE, " ") for p in model.pieces if p.type in MERGEABLE]
        self._inside = {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}
        self._known = {piece for piece in pieces if len(piece) == 1}
        self._fallback = bool(model.trainer_spec.byte_fallback)
        self._tabulate(pieces)

    def unknown(self, character: str) -> bool:
        """Whether the character alone would be the unknown id."""
        return not self._fallback and character not in self._known

    def before(self, character: str) -> set[str]:
        """The characters that may not be parted from `character` behind them."""
        return {pair[0] for pair in self._inside if pair[1] == character}

    def after(self, character: str) -> set[str]:
        """The characters that may not be parted from `character` before them."""
        return {pair[1] for pair in self._inside if pair[0] == character}

    def joined(self, apart: set[str]) -> set[str]:
        """The characters that some piece joins to another, leaving out some."""
        pairs = [pair for pair in self._inside if apart.isdisjoint(pair)]
        return set("".join(pairs))

    def groups(self, apart: set[str]) -> list[set[str]]:
        """The characters that pieces join, directly or through others, leaving out some.

        Without the characters that may be unknown: these belong with all that the vocabulary
        lacks, and so does what is joined to them.
        """
        root: dict[str, str] = {}

        def find(character: str) -> str:
            while (above := root.setdefault(character, character)) != character:
                root[character] = character = root[above]
            return character

        for left, right in sorted(self._inside):
            if left not in apart and right not in apart:
                root[find(left)] = find(right)
        unknown = {find(c) for c in list(root) if self.unknown(c)}
        members: dict[str, set[str]] = {}
        for character in list(root):
            if (top := find(character)) not in unknown:
                members.setdefault(top, set()).add(character)
        return list(members.values())

    def _tabulate(self, pieces: Sequence[str]) -> None:
        """Number the characters, frequent ones each on their own, and tabulate pairs of numbers.

        Sharing a number forbids more cuts than need be, never fewer: a huge vocabulary costs
        speed, not exactness.
        """
        frequency = Counter("".join(piece for piece in pieces if len(piece) > 1))
        # 0 are characters the vocabulary lacks, 1 those that it holds in no longer piece.
        number = dict.fromkeys(self._known, 1)
        exact = CLASSES - COARSE_CLASSES
        for i, (character, _) in enumerate(frequency.most_common(), start=2):
            number[character] = i if i < exact else exact + ord(character) % COARSE_CLASSES
        self._count = max(number.values(), default=1) + 1
        self._class_of = np.zeros(0x110000, dtype=np.int32)
        for character, i in number.items():
            self._class_of[ord(character)] = i
        joined = np.zeros((self._count, self._count), dtype=bool)
        for left, right in self._inside:
            joined[number[left], number[right]] = True
        if not self._fallback:
            unknown = sorted({0} | {i for c, i in number.items() if c not in self._known})
            joined[np.ix_(unknown, unknown)] = True
        self._free = ~joined.reshape(-1)

    def cuts(self, text: str) -> npt.NDArray[np.intp]:
        """The indices i, ascending, at which text[:i] and text[i:] may be parted (0 < i < n).

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """
        if text.isascii():
            codes: npt.NDArray[Any] = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        classes = self._class_of[codes]
        free = self._free[classes[:-1] * self._count + classes[1:]]
        return np.flatnonzero(free) + 1


class _Cache(dict[str, bytes]):
    """Encoded strings, forgotten all at once when they outgrow the limit.

    Threads may share one: every operation on the dict is atomic, and what is not found is encoded
    again; at worst two threads count the same entry.
    """

    def __init__(self, limit_bytes: int, longest: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes
        self._longest = longest
        self.held_bytes = 0

    def look_up(
        self, keys: Sequence[str], encode: Callable[[list[str]], list[bytes]]
    ) -> list[bytes]:
        """The ids of each key; `encode` is called once for all those not held, each once."""
        found: list[bytes | None] = list(map(self.get, keys))
        if None not in found:
            return found  # type: ignore[return-value]
        places = list(compress(range(len(keys)), map(is_, found, repeat(None))))
        missing = list(dict.fromkeys([keys[i] for i in places]))
        fresh = dict(zip(missing, encode(missing), strict=True))
        for i in places:
            found[i] = fresh[keys[i]]
        self._keep(fresh)
        return found  # type: ignore[return-value]

    def _keep(self, fresh: dict[str, bytes]) -> None:
        if max(map(len, fresh)) > self._longest:
            fresh = {key: ids for key, ids in fresh.items() if len(key) <= self._longest}
        # Headers of both objects and the dict's own share, at its emptiest; then what they hold.
        held = 220 * len(fresh) + getsizeof("".join(fresh)) + sum(map(len, fresh.values()))
        if self.held_bytes + held > self._limit_bytes:
            self.clear()
            self.held_bytes = 0
            if held > self._limit_bytes:
                return
        self.held_bytes += held
        self.update(fresh)


class ChunkEncoder:
    """Encodes normalised text to SentencePiece's own ids.

    Args:
        model: a parsed ModelProto without `obstacle`.
        sentencepiece: encodes a string with that model, without normalisation and without a dummy
            prefix.
        lines_bytes, words_bytes: bounds of the caches.
    """

    def __init__(
        self,
        model: Any,
        sentencepiece: Callable[[str], list[int]],
        *,
        lines_bytes: int = LINES_BYTES,
        words_bytes: int = WORDS_BYTES,
    ) -> None:
        self._sentencepiece = sentencepiece
        self._pairs = Pairs(model)
        self._lines = _Cache(lines_bytes, LONGEST_LINE)
        self._words = _Cache(words_bytes, LONGEST_WORD)
        self._word = _word_pattern(self._pairs)
        # Where these have an id of their own, ids can be split at it again.
        self._newline = self._own_id(model, "\n")
        self._separator = self._own_id(model, SEPARATOR)

    @property
    def newline(self) -> int | None:
        """The id of "\\n" if lines are encoded each apart: it is in no piece with a neighbour."""
        return self._newline

    @property
    def held_bytes(self) -> int:
        """What the caches hold, about."""
        return self._lines.held_bytes + self._words.held_bytes

    def encode(self, text: str) -> bytes:
        """The ids of a text of any length.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """
        if SPACE in text:
            text = text.replace(SPACE, " ")  # the same to the model; every table has the space
        if len(text) <= BLOCK:
            return self._encode_lines(text)
        return b"".join(map(self._encode_lines, self._blocks(text)))

    def _own_id(self, model: Any, character: str) -> int | None:
        """The id of a character if it has one of its own wherever it stands."""
        pairs = self._pairs
        if pairs.before(character) or pairs.after(character) or pairs.unknown(character):
            return None
        ids = self._sentencepiece(character)
        alone = len(ids) == 1 and model.pieces[ids[0]].type in (NORMAL, USER_DEFINED, BYTE)
        return ids[0] if alone else None

    def _blocks(self, text: str) -> Iterator[str]:
        """The text in parts of about BLOCK characters, longer only where no cut is allowed."""
        start = window = 0
        while window < len(text):
            # One character more than the window, so that the pair at its end is seen as well.
            cuts = self._pairs.cuts(text[window : window + BLOCK + 1])
            if len(cuts):
                yield text[start : window + int(cuts[-1])]
                start = window + int(cuts[-1])
            window += BLOCK
        yield text[start:]

    def _encode_lines(self, text: str) -> bytes:
        if self._newline is None:
            return self._encode_words(text)
        newline = array("i", [self._newline]).tobytes()
        return newline.join(self._lines.look_up(text.split("\n"), self._encode_new_lines))

    def _encode_new_lines(self, lines: list[str]) -> list[bytes]:
        assert self._newline is not None
        return _split(self._encode_words("\n".join(lines)), self._newline, len(lines))

    def _encode_words(self, text: str) -> bytes:
        return b"".join(self._words.look_up(self._word.findall(text), self._encode_new_words))

    def _encode_new_words(self, words: list[str]) -> list[bytes]:
        long = [word for word in words if len(word) > LONGEST_WORD]
        if not long:
            return self._encode_parts(words)
        short = [word for word in words if len(word) <= LONGEST_WORD]
        encoded = dict(zip(short, self._encode_parts(short), strict=True))
        encoded.update(zip(long, self._encode_long_words(long), strict=True))
        return [encoded[word] for word in words]

    def _encode_long_words(self, words: list[str]) -> list[bytes]:
        text = "".join(words)
        # A word's end is a cut by definition; one more at the same place changes nothing.
        is_cut = np.zeros(len(text) + 1, dtype=bool)
        is_cut[self._pairs.cuts(text)] = True
        ends = np.cumsum([len(word) for word in words])
        is_cut[ends] = True
        cuts = np.flatnonzero(is_cut)
        parts = [text[start:stop] for start, stop in pairwise([0, *cuts.tolist()])]
        encoded = self._words.look_up(parts, self._encode_parts)
        counts = np.diff(np.searchsorted(cuts, ends), prepend=-1)
        rest = iter(encoded)
        return [b"".join(islice(rest, count)) for count in counts.tolist()]

    def _encode_parts(self, parts: list[str]) -> list[bytes]:
        """Ask SentencePiece, all at once with separators where a text may have them."""
        text = SEPARATOR.join(parts)
        text.encode()  # SentencePiece's own error for a lone surrogate says nothing
        if self._separator is not None and text.count(SEPARATOR) == len(parts) - 1:
            ids = array("i", self._sentencepiece(text)).tobytes()
            return _split(ids, self._separator, len(parts))
        return [array("i", self._sentencepiece(part)).tobytes() for part in parts]


def _split(ids: bytes, separator: int, count: int) -> list[bytes]:
    """The parts between separators; `count` is how many there must be."""
    ends = np.flatnonzero(np.frombuffer(ids, dtype=np.int32) == separator) * 4
    assert len(ends) == count - 1, f"{count} parts, {len(ends)} separators in their ids"
    starts = [0, *(ends + 4).tolist()]
    return [ids[start:stop] for start, stop in zip(starts, [*ends.tolist(), len(ids)], strict=True)]


def _word_pattern(pairs: Pairs) -> re.Pattern[str]:
    """Matches one word after the other, each parted from the next where a cut is safe.

    A word is white space and what follows it: characters of one group, where a group holds what
    some piece joins, directly or through others (in Llama 2's vocabulary the letters of a script,
    or punctuation), or a few characters that no piece joins to anything, as digits there.
    Neighbours of different groups are in no piece: which of them share a word does not matter.
    """
    white = set(" \n\t\r")
    while bad := {c for c in white if pairs.unknown(c) or pairs.before(c) - white}:
        white -= bad
    groups = pairs.groups(white)
    # Only groups with ASCII characters get their own alternative: text in other scripts is one
    # long word up to the next ASCII character, which is cut by the table of pairs.
    ascii_groups = [g for g in groups if any(c.isascii() for c in g)]
    lone = set(map(chr, range(128))) - white - pairs.joined(white)
    lone = {c for c in lone if not pairs.unknown(c)}
    listed = white.union(lone, *ascii_groups)
    some_white = f"[{_escape(white)}]*+" if white else ""
    classes = [f"[{_escape(g)}]++" for g in sorted(ascii_groups, key=len, reverse=True)]
    if classes and (others := listed - white - max(ascii_groups, key=len)):
        # The largest group are the letters; one other character before them makes words fewer.
        classes[0] = f"[{_escape(others)}]?{classes[0]}"
    if lone:
        classes.append(f"[{_escape(lone)}]{{1,3}}+")
    classes.append(f"[^{_escape(listed)}]++" if listed else r"[\s\S]++")
    last = f"|[{_escape(white)}]++" if white else ""
    return re.compile(f"{some_white}(?:{'|'.join(classes)}){last}")


def _escape(characters: Iterable[str]) -> str:
    return "".join(f"\\U{ord(c):08x}" for c in sorted(characters))


def to_array(ids: Iterable[bytes]) -> Ids:
    """Encoded parts as one writable array, shape (tokens,)."""
    return np.frombuffer(bytearray().join(ids), dtype=np.int32)
