"""The tokenizer: SentencePiece's ids exactly, usually many times faster, and safe text decoding.

    load(path)   a tokenizer.model, given or trained
    train(...)   one trained here in the manner of Llama 2's
    extend(out)  one with Code Llama's 16 infilling pieces appended
    encode       text -> ids; sentinels typed by a user stay text
    decode       ids -> text, whole or as a stream of complete characters

SentencePiece is the definition, `fast_encode` the speed: BPE models are encoded by cached chunks,
all others by SentencePiece itself, and `Tokenizer.fast_path` says which and why.
"""

from __future__ import annotations

import io
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from codecria.data.errors import UserError
from codecria.data.files import atomic_write, digest_content

from .fast_encode import (
    BYTE,
    CONTROL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ChunkEncoder,
    Ids,
    obstacle,
    to_array,
)
from .hugging_face import METASPACE, model_content
from .hugging_face import MODEL_NAME as MODEL_NAME

# Generated at import from a descriptor, so type checkers do not see it.
ModelProto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
Specials = Literal["text", "parse"]

# Code Llama's sentinels, ids 32007-32015 there, and the 70B chat format's separator.
_SENTINEL = re.compile(rf"{SPACE}<(?:PRE|SUF|MID)>|(?:{SPACE}?<EOT>)+|<step>")
_INFILL_PIECES = tuple(f"{SPACE}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))
_STEP_PIECE = "<step>"
# What Code Llama's tokenizer holds beyond Llama 2's, ids 32000-32015: parts of the sentinels, which
# ordinary text may use, the sentinels, and the last one repeated (as the release lists them).
_PARTS = tuple(f"{SPACE}<{part}" for part in ("SU", "SUF", "PRE", "M", "MID", "E", "EOT"))
_REPEATED = tuple(SPACE + "<EOT>" * times for times in range(2, 7))
INFILL_EXTENSION = (*_PARTS, *_INFILL_PIECES, *_REPEATED)

_NO_TEXT = frozenset({UNKNOWN, CONTROL, UNUSED})

_FRAGMENT = 200  # characters up to which chunks that are not cached cost more than they save
_LINE_CHARACTERS = 1000  # longer lines are cut for training: SentencePiece drops > 4192 bytes
_SAMPLE_LINES = 4_000_000  # more are sampled down to this, which bounds training's memory
_WHITE_SPACE_SCORE = -1e9  # as in Llama 2's model: see `_finished`
_AFTER_SPACES = re.compile(r"(?<= )(?= [^ ])")  # before the last space of several
_LIMITS = re.compile(r"too high \(\d+\)\. Please set it to a value <= (\d+)")
_LEAST = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillIds:
    """The ids of the infilling sentinels, to be inserted by number."""

    prefix: int
    suffix: int
    middle: int
    end: int


class Tokenizer:
    """A SentencePiece model and everything done with it. Threads may share one.

    Pickled, it is a path and a digest: a worker process loads the file again, with empty caches.

    Attributes:
        path: the model file.
        digest: of the file's content.
        vocab_size: number of ids.
        bos_id, eos_id, unk_id: special ids; -1 where the model has none.
        pad_id: the padding id, or None.
        infill: the ids of the infilling sentinels, or None if the model lacks one of them.
        step_id: the id of the 70B chat format's `<step>`, or None.
        added: ids of tokens that were added to a trained vocabulary (`hugging_face.py`).
        content: the model, as a file of its own holds it.
        fast_path: how texts are encoded, and if not fast, why.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        """Made by `load`, `train` and `extend`; `content` is what the file holds or will hold."""
        self.path = path
        self.digest = digest_content(content)
        self.content = content
        self._model = ModelProto.FromString(content)
        self._shipped = _processor(self._model)
        self.vocab_size: int = self._shipped.get_piece_size()
        self.bos_id: int = self._shipped.bos_id()
        self.eos_id: int = self._shipped.eos_id()
        self.unk_id: int = self._shipped.unk_id()
        pad_id = self._shipped.pad_id()
        self.pad_id: int | None = pad_id if pad_id >= 0 else None
        sentinels = {
            piece.piece: i
            for i, piece in enumerate(self._model.pieces)
            if _SENTINEL.fullmatch(piece.piece)
        }
        symbols = set(self._model.trainer_spec.user_defined_symbols)
        self.added: tuple[int, ...] = tuple(
            i
            for i, piece in enumerate(self._model.pieces)
            if piece.type in (CONTROL, UNUSED) and piece.piece in symbols
        )
        self._sentinels = frozenset(sentinels.values()) | set(self.added)
        found = [sentinels.get(piece) for piece in _INFILL_PIECES]
        self.infill: InfillIds | None = None
        if None not in found:
            names = ("prefix", "suffix", "middle", "end")
            self.infill = InfillIds(**dict(zip(names, found, strict=True)))  # type: ignore[arg-type]
        self.step_id: int | None = sentinels.get(_STEP_PIECE)
        self._obstacle = obstacle(self._model)
        self._normalises = _normalises(self._model)
        # Variants of the model are made when first asked for.
        self._variant = cache(self._make_variant)
        self._encoder = cache(self._make_encoder)
        self._continuation = cache(self._make_continuation)
        self._surfaces = cache(self._make_surfaces)
        self._bytes = cache(self._make_bytes)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The tokenizer in a model file, or in a folder that holds one.

        Tokens that a Hugging Face folder adds to its tokenizer.model count too, and a
        tokenizer.json that lies there alone is rebuilt (`hugging_face.py`).

        Raises:
            UserError: there is none, or it is damaged, or of a kind that cannot be rebuilt.
        """
        file = path
        try:
            file, content = model_content(path)
            return cls(file, content)
        except (DecodeError, RuntimeError) as error:
            raise UserError(
                f"{file} is not a SentencePiece model, or it is damaged",
                hint="copy it again",
            ) from error

    def extension(self) -> bytes:
        """The model file of this tokenizer with the 16 infilling pieces appended.

        They are ordinary pieces, as in Code Llama's own file, and get ids V .. V + 15 in its order:
        the sentinels are V + 7 .. V + 10 (32007 .. 32010 for Llama 2). Their scores go on from the
        lowest, so they join only what every other merge has left. A piece of that name that the
        vocabulary has already gives way: a part of a sentinel stays what it is, and its new id is
        never used; a sentinel, which encoding never gave, loses its name.

        Raises:
            UserError: the tokenizer has infilling pieces already.
        """
        if self.infill is not None:
            raise UserError(
                f"{self.path} has the infilling pieces already, from id {self.infill.prefix} on",
                hint="use it as it is",
            )
        model = ModelProto()
        model.CopyFrom(self._model)
        known = {piece.piece: piece for piece in model.pieces}
        score = min(piece.score for piece in model.pieces if piece.score > _WHITE_SPACE_SCORE)
        for number, name in enumerate(INFILL_EXTENSION, start=1):
            old = known.get(name)
            if old is not None and name not in _PARTS:
                old.piece, old.type = f"<unused {name}>", CONTROL
                old = None
            if old is None:
                model.pieces.add(piece=name, score=score - number)
            else:
                model.pieces.add(piece=f"<unused {name}>", score=score - number, type=CONTROL)
        model.trainer_spec.vocab_size = len(model.pieces)
        return bytes(model.SerializeToString(deterministic=True))

    def extension_digest(self) -> str:
        """The digest of the extended tokenizer's file."""
        return digest_content(self.extension())

    def extend(self, out: Path) -> Tokenizer:
        """Write `extension` to a file and load it.

        Raises:
            UserError: the tokenizer has infilling pieces already, or it cannot be written.
        """
        atomic_write(out, self.extension())
        return Tokenizer.load(out)

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[Path, str]]:
        return _reload, (self.path, self.digest)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that are no text: control, unknown and unused pieces, and sentinels.

        Added tokens that are not special are text, though text yields them only when parsed.
        """
        text = {i for i in self.added if self._model.pieces[i].type == UNUSED}
        marks = {i for i, piece in enumerate(self._model.pieces) if piece.type in _NO_TEXT}
        return frozenset((self._sentinels | marks) - text)

    @property
    def fast_path(self) -> str:
        """How texts are encoded: "chunks", "normalised, then chunks" or "off: " and the reason."""
        if self._obstacle is not None:
            return f"off: {self._obstacle}"
        return "normalised, then chunks" if self._normalises else "chunks"

    @property
    def keeps_text(self) -> bool:
        """Whether texts are encoded as they are, but for the implied leading space."""
        return not self._normalises

    @property
    def newline_id(self) -> int | None:
        """The id of a line's end, if lines are encoded each apart from the others; else None."""
        if self._obstacle is not None or self._normalises:
            return None
        return self._encoder("text" if self._sentinels else "parse").newline

    def encode(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        leading_space: bool = True,
        specials: Specials = "text",
    ) -> list[int]:
        """The ids of a text, equal to SentencePiece's.

        Args:
            text: any text, also empty (no ids) or with NUL characters.
            bos: put the id before a document first.
            eos: put the id after a document last.
            leading_space: as the model was made: Llama 2's puts a space before every text. False
                never does, for text that goes on from earlier text.
            specials: "text" keeps sentinels such as "<PRE>" text, as SentencePiece does when they
                are control pieces; "parse" is SentencePiece on the file as it is, where they
                become their ids.

        Raises:
            UserError: the text holds a lone surrogate, or the model has no BOS or EOS.
        """
        ids: list[int] = self.encode_array(
            text, bos=bos, eos=eos, leading_space=leading_space, specials=specials
        ).tolist()
        return ids

    def encode_array(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        leading_space: bool = True,
        specials: Specials = "text",
    ) -> Ids:
        """As `encode`, but a new int32 array, shape (tokens,): faster, and a quarter the memory."""
        try:
            ids = self._encode(text, leading_space, specials)
        except UnicodeEncodeError as error:
            place = next(i for i, c in enumerate(text) if 0xD800 <= ord(c) <= 0xDFFF)
            raise UserError(
                f"character {place} of the text is the lone surrogate U+{ord(text[place]):04X}",
                hint="decode the input as UTF-8 with errors='replace', or leave the document out",
            ) from error
        before = self._frame("BOS", self.bos_id) if bos else b""
        after = self._frame("EOS", self.eos_id) if eos else b""
        return to_array((before, ids, after))

    def encode_fragment(self, text: str, *, leading_space: bool = True) -> Ids:
        """As `encode_array`, for a piece of text that will hardly come again.

        SentencePiece itself when the text is short, past the caches: looking for chunks that are
        not there takes four to ten times as long.
        """
        if len(text) > _FRAGMENT:
            return self.encode_array(text, leading_space=leading_space)
        if not text:
            return np.empty(0, dtype=np.int32)
        specials: Specials = "text" if self._sentinels else "parse"
        spaced = leading_space and self._spaced(text)
        return np.array(self._variant(specials, spaced).encode(text), dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids as SentencePiece gives it, the implied leading space dropped.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        return self._decode(self._shipped, ids)

    def decode_continuation(self, ids: Sequence[int]) -> str:
        """The text of ids that go on from earlier text: a leading space is a real one.

        The inverse of `encode(text, leading_space=False)`.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        return self._decode(self._continuation(), ids)

    def survives(self, text: str, ids: Ids) -> bool:
        """Whether `decode` gives the text back from its ids, which are without BOS and EOS."""
        found = self.text_of(ids)
        return (self.decode(ids.tolist()) if found is None else found) == text

    def text_of(self, ids: Ids, *, continuation: bool = False) -> str | None:
        """As `decode` and `decode_continuation`, many times faster.

        Args:
            ids: (tokens,), all within the vocabulary.
            continuation: whether a leading space is a real one.

        Returns:
            the text, or None where it begins or ends within a character, or is no UTF-8 at all.
        """
        table = self._bytes()
        if table is None:
            text = self.decode_continuation(ids) if continuation else self.decode(ids)  # type: ignore[arg-type]
            return None if "\ufffd" in text else text
        found = b"".join([table[i] for i in ids.tolist()])
        if not continuation and self._model.normalizer_spec.add_dummy_prefix:
            found = found.removeprefix(b" ")
        try:
            return found.decode()
        except UnicodeDecodeError:
            return None

    def stream(self, *, continuation: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time.

        Args:
            continuation: decode as `decode_continuation` does, else as `decode`.
        """
        spec = self._model.normalizer_spec
        drops = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        if self._model.denormalizer_spec.precompiled_charsmap or (
            self._model.trainer_spec.treat_whitespace_as_suffix and drops
        ):
            # What such models write may depend on what follows: the text comes at the end.
            return StreamDecoder(
                (), whole=self.decode_continuation if continuation else self.decode
            )
        return StreamDecoder(
            self._surfaces(),
            drop_space="none"
            if continuation or not drops
            else ("all" if spec.remove_extra_whitespaces else "one"),
        )

    def id_of(self, piece: str) -> int | None:
        """The id of a piece as it stands in the vocabulary; None where there is none."""
        found: int = self._shipped.piece_to_id(piece)
        return found if self._model.pieces[found].piece == piece else None

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces of ids as they stand in the vocabulary, U+2581 for a space.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        try:
            return [self._model.pieces[i].piece for i in self._checked(ids)]
        except IndexError as error:
            raise self._outside(ids) from error

    def vocabulary(self) -> list[tuple[str, float, int]]:
        """Every piece as (piece, score, SentencePiece's type), sentinels as control pieces.

        For formats that keep a vocabulary of their own: there too no text may yield a sentinel.
        """
        pieces = self._with_specials("text").pieces
        return [(piece.piece, piece.score, piece.type) for piece in pieces]

    @property
    def is_plain_bpe(self) -> bool:
        """Whether it is byte-fallback BPE that takes text as it comes, but for a space before."""
        fallback = self._model.trainer_spec.byte_fallback
        return bool(self._obstacle is None and not self._normalises and fallback)

    @property
    def adds_space(self) -> bool:
        """Whether a text is encoded as if a space stood before it."""
        return bool(self._model.normalizer_spec.add_dummy_prefix)

    def _frame(self, name: str, special: int) -> bytes:
        if special < 0:
            raise UserError(f"{self.path} has no {name} piece", hint="use a tokenizer that has one")
        return array("i", [special]).tobytes()

    def _encode(self, text: str, leading_space: bool, specials: Specials) -> bytes:
        if specials == "text" and not self._sentinels:
            specials = "parse"  # the same model: one set of caches for both
        if not text:
            return b""
        if self._obstacle is not None:
            text.encode()  # SentencePiece's own error for a lone surrogate says nothing
            ids = self._variant(specials, leading_space).encode(text)
            return array("i", ids).tobytes()
        if self._normalises:
            text.encode()
            text = self._variant(specials, leading_space).normalize(text)
        elif leading_space and self._spaced(text):
            text = " " + text
        return self._encoder(specials).encode(text)

    def _spaced(self, text: str) -> bool:
        """Whether the model puts a space before a text; Hugging Face's Metaspace not before one."""
        spec = self._model.normalizer_spec
        spaced = spec.name == METASPACE and text.startswith((" ", SPACE))
        return bool(spec.add_dummy_prefix and not spaced)

    def _decode(self, processor: Any, ids: Sequence[int]) -> str:
        try:
            text: str = processor.decode(self._checked(ids))
        except IndexError as error:
            raise self._outside(ids) from error
        return text

    def _checked(self, ids: Sequence[int]) -> list[int]:
        numbers = [int(i) for i in ids]  # SentencePiece takes no numpy integers
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            raise self._outside(numbers)
        return numbers

    def _outside(self, ids: Sequence[int]) -> UserError:
        bad = next(i for i in ids if not 0 <= i < self.vocab_size)
        return UserError(
            f"the id {bad} is outside the tokenizer's {self.vocab_size} pieces",
            hint="the ids belong to another tokenizer: use the one they were made with",
        )

    def _make_variant(self, specials: Specials, leading_space: bool) -> Any:
        """SentencePiece with the sentinels retyped, and with or without the dummy prefix."""
        if specials == "parse" and leading_space and not self.added:
            return self._shipped
        model = self._with_specials(specials)
        model.normalizer_spec.add_dummy_prefix &= leading_space
        return _processor(model)

    def _make_encoder(self, specials: Specials) -> ChunkEncoder:
        model = self._with_specials(specials)
        _forget_normalisation(model)
        return ChunkEncoder(model, _processor(model).encode)

    def _make_continuation(self) -> Any:
        model = self._with_specials("parse")
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        return _processor(model)

    def _make_surfaces(self) -> tuple[str | int, ...]:
        return tuple(map(self._surface, self._model.pieces))

    def _piece_bytes(self) -> tuple[bytes, ...]:
        return tuple(
            bytes([found]) if isinstance(found, int) else found.replace(SPACE, " ").encode()
            for found in self._surfaces()
        )

    def typed_bytes(self) -> tuple[bytes, ...]:
        """(V,) what each id adds to a text that a user types, in UTF-8.

        Nothing for control pieces and for sentinels, which no text yields.
        """
        pieces = self._piece_bytes()
        return tuple(b"" if i in self._sentinels else piece for i, piece in enumerate(pieces))

    def _make_bytes(self) -> tuple[bytes, ...] | None:
        """What each id adds to a text, in UTF-8; None for models where that is not so simple."""
        if (
            self._normalises
            or self._model.denormalizer_spec.precompiled_charsmap
            or self._model.trainer_spec.treat_whitespace_as_suffix
            or self._model.normalizer_spec.remove_extra_whitespaces
        ):
            return None
        return self._piece_bytes()

    def _surface(self, piece: Any) -> str | int:
        """What a piece decodes to: text, or the number of a byte."""
        if piece.type == BYTE:
            return int(piece.piece[3:5], 16)  # "<0xAB>"
        if piece.type == CONTROL:
            return ""
        if piece.type == UNKNOWN:
            return str(self._model.trainer_spec.unk_surface)
        return str(piece.piece)

    def _with_specials(self, specials: Specials) -> Any:
        model = ModelProto()
        model.CopyFrom(self._model)
        for i in self._sentinels.difference(self.added) if specials == "text" else ():
            model.pieces[i].type = CONTROL
        for i in self.added if specials == "parse" else ():
            model.pieces[i].type = USER_DEFINED
        return model


class StreamDecoder:
    """Decodes ids as they come; what it returns never ends inside a character.

    All that `push` returned, and `finish` after it, is together what decoding all ids at once
    gives, also for bytes that are no UTF-8, each of which becomes U+FFFD.
    """

    def __init__(
        self,
        surfaces: Sequence[str | int],
        *,
        drop_space: Literal["none", "one", "all"] = "none",
        whole: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """Made by `Tokenizer.stream`.

        Args:
            surfaces: of each id, text or a byte.
            drop_space: how many spaces to drop from the text's start.
            whole: decodes all ids at the end, for models that allow nothing better.
        """
        self._surfaces = surfaces
        self._drop_space = drop_space
        self._whole = whole
        self._ids: list[int] = []
        self._bytes = bytearray()  # the start of a character, at most 3 bytes between pushes

    def push(self, token: int) -> str:
        """The text that the next id completes, perhaps none.

        Raises:
            UserError: the id is outside the vocabulary.
        """
        if self._whole is not None:
            self._ids.append(token)
            return ""
        if not 0 <= token < len(self._surfaces):
            raise UserError(
                f"the id {token} is outside the tokenizer's {len(self._surfaces)} pieces",
                hint="the tokenizer does not belong to this model",
            )
        surface = self._surfaces[token]
        if isinstance(surface, int):
            self._bytes.append(surface)
            return self._started(self._characters())
        held = self._started(self.finish())
        return held + self._started(self._at_start(surface).replace(SPACE, " "))

    def finish(self) -> str:
        """The text still held back: bytes of a character that will not come."""
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
        """Take the whole characters off the bytes; a byte that begins none becomes U+FFFD."""
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


def train(
    texts: Iterable[str], *, vocab_size: int, out: Path, threads: int | None = None
) -> Tokenizer:
    """Train a tokenizer in the manner of Llama 2's and write it to `out`.

    BPE by lines, no normalisation, digits split, byte fallback, pieces of white space alone,
    ids 0 unknown, 1 BOS, 2 EOS. The same texts in the same order give the same file, whatever
    the number of threads.

    Args:
        texts: documents, read once; of more than 4 million lines a fixed sample is learned from.
        vocab_size: number of pieces, at least 259 and the texts' characters.
        out: the model file.
        threads: at most this many; all cores by default.

    Raises:
        UserError: the texts are too small for the vocabulary, or the file cannot be written.
    """
    model = io.BytesIO()
    failure: list[UserError] = []  # SentencePiece would turn it into a RuntimeError
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, failure),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # lines within a text have none; the model gets it afterwards
            character_coverage=0.99995,
            split_digits=True,
            byte_fallback=True,
            allow_whitespace_only_pieces=True,
            input_sentence_size=_SAMPLE_LINES,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=threads or os.cpu_count() or 1,
            minloglevel=3,
        )
    except RuntimeError as error:
        if failure:
            raise failure[0] from None
        raise _training_error(str(error), vocab_size) from error
    atomic_write(out, _finished(model.getvalue()))
    return Tokenizer.load(out)


def _lines(texts: Iterable[str], failure: list[UserError]) -> Iterator[str]:
    """Lines to learn from, cut as encoding will treat them (`_finished` says why).

    Newlines stay bytes, as in Llama 2's vocabulary. Of several spaces all but the last are parted
    from the word behind them: "    return  x" gives "   ", " return", " ", " x".
    """
    for text in _noting_failure(texts, failure):
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_CHARACTERS):
                part = line[start : start + _LINE_CHARACTERS]
                # SentencePiece can read neither; the byte fallback still encodes a NUL.
                part = part.replace("\0", "").encode(errors="ignore").decode()
                yield from _AFTER_SPACES.split(part)


def _noting_failure(texts: Iterable[str], failure: list[UserError]) -> Iterator[str]:
    try:
        yield from texts
    except UserError as error:
        failure.append(error)
        raise


def _training_error(message: str, vocab_size: int) -> UserError:
    if largest := _LIMITS.search(message):
        return UserError(
            f"the texts are too small for a vocabulary of {vocab_size} pieces",
            hint=f"at most {largest[1]} pieces can be learned from them: give a smaller size",
        )
    if least := _LEAST.search(message):
        return UserError(
            f"a vocabulary of {vocab_size} pieces is too small for the texts' characters",
            hint=f"give at least {least[1]}",
        )
    if "sentences_.empty()" in message:
        return UserError("there is no text to train a tokenizer on", hint="check the sources")
    return UserError(f"SentencePiece cannot train the tokenizer: {message}")


def _finished(content: bytes) -> bytes:
    """The trained model as it is published."""
    model = ModelProto.FromString(content)
    model.trainer_spec.ClearField("num_threads")  # no property of the model, and of its digest
    model.normalizer_spec.add_dummy_prefix = True
    for piece in model.pieces:
        # Join white space after everything else, as Llama 2's model does: an indented word is the
        # same piece as one after a single space. Otherwise the indentation would take its space.
        if not piece.piece.strip(SPACE):
            piece.score = _WHITE_SPACE_SCORE
    return bytes(model.SerializeToString(deterministic=True))


def helped(
    tokenizer: Tokenizer,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which ids of a tokenizer may stand for text that a part of a sentinel would take.

    Every part has "<" and then E, M, P or S in it.

    Returns:
        (V,) each: ids that hold these two characters, that end with the first, and that begin with
        the second. Text without such an id or pair of ids is encoded alike after the extension.
    """
    seconds = {name[2] for name in _PARTS}
    surfaces = [chr(found) if isinstance(found, int) else found for found in tokenizer._surfaces()]
    return (
        np.array([any(f"<{c}" in text for c in seconds) for text in surfaces]),
        np.array([text.endswith("<") for text in surfaces]),
        np.array([text[:1] in seconds for text in surfaces]),
    )


def _reload(path: Path, digest: str) -> Tokenizer:
    tokenizer = Tokenizer.load(path)
    if tokenizer.digest != digest:
        raise UserError(f"{path} was changed while it was in use", hint="run the command again")
    return tokenizer


def _processor(model: Any) -> Any:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor


def _normalises(model: Any) -> bool:
    """Whether the model changes a text beyond a space before it."""
    spec = model.normalizer_spec
    suffix = model.trainer_spec.treat_whitespace_as_suffix
    return bool(spec.precompiled_charsmap or spec.remove_extra_whitespaces or suffix)


def _forget_normalisation(model: Any) -> None:
    """Make the model take text as it comes."""
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.precompiled_charsmap = b""
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.trainer_spec.treat_whitespace_as_suffix = False


def _utf8_size(first: int) -> int:
    """Bytes of the character that begins with this byte; 1 where none does."""
    return 1 + sum(first >= least for least in (0xC0, 0xE0, 0xF0)) if first < 0xF8 else 1
