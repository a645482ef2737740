"""The tokenizer: SentencePiece's ids exactly, usually many times faster, and safe text decoding.

    load(path)   a tokenizer.model, given or trained (`training.py`)
    extend(out)  one with Code Llama's 16 infilling pieces appended (`extension.py`)
    encode       text -> ids; sentinels typed by a user stay text
    decode       ids -> text; `stream` decodes one id at a time (`stream.py`)

SentencePiece is the definition, `fast_encode` the speed: BPE models are encoded by cached chunks,
but for the first text, all others by SentencePiece itself, and `Tokenizer.fast_path` reports which
and why.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError

from codecria.data.errors import UserError
from codecria.data.files import atomic_write, digest_content

from .extension import SENTINEL, STEP_PIECE, InfillIds, extended, infill_ids
from .fast_encode import ChunkEncoder, Ids, obstacle, to_array
from .hugging_face import model_content
from .model_file import (
    BYTE,
    CONTROL,
    METASPACE,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelProto,
)
from .stream import StreamDecoder

Specials = Literal["text", "parse"]

_NO_TEXT = frozenset({UNKNOWN, CONTROL, UNUSED})

_FRAGMENT = 200  # characters up to which chunks that are not cached cost more than they save
# Characters that SentencePiece encodes in the time that it takes to make a chunk encoder, about.
FIRST_CHARACTERS = 100_000


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
        longest: characters that an id stands for at most.
        added: ids of tokens that were added to a trained vocabulary (`hugging_face.py`).
        content: the model, as a file of its own holds it.
        fast_path: how texts are encoded, and the reason if the fast path is off.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        """Made by `load`, `train` and `extend`; `content` is what the file holds or will hold."""
        self.path = path
        self.digest = digest_content(content)
        self.content = content
        self._model = ModelProto.FromString(content)
        self._shipped = _processor(content)
        self.vocab_size: int = self._shipped.get_piece_size()
        self.bos_id: int = self._shipped.bos_id()
        self.eos_id: int = self._shipped.eos_id()
        self.unk_id: int = self._shipped.unk_id()
        pad_id = self._shipped.pad_id()
        self.pad_id: int | None = pad_id if pad_id >= 0 else None
        names = [piece.piece for piece in self._model.pieces]
        self.longest = max(map(len, names))
        # "<" is quicker to rule out than the pattern is.
        sentinels = {n: i for i, n in enumerate(names) if "<" in n and SENTINEL.fullmatch(n)}
        symbols = set(self._model.trainer_spec.user_defined_symbols)
        self.added: tuple[int, ...] = tuple(
            i
            for i, name in enumerate(names)
            if name in symbols and self._model.pieces[i].type in (CONTROL, UNUSED)
        )
        self._sentinels = frozenset(sentinels.values()) | set(self.added)
        self.infill: InfillIds | None = infill_ids(sentinels)
        self.step_id: int | None = sentinels.get(STEP_PIECE)
        self._obstacle = obstacle(self._model)
        self._normalises = _normalises(self._model)
        self._first = FIRST_CHARACTERS  # characters left until chunk encoders are worth making
        # Variants of the model are made when first asked for.
        self._variant = cache(self._make_variant)
        self._plain = cache(self._make_plain)
        self._encoder = cache(self._make_encoder)
        self._continuation = cache(self._make_continuation)
        self._surface = cache(self._find_surface)
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
        """The model file of this tokenizer with the 16 infilling pieces appended; see `extended`.

        Raises:
            UserError: the tokenizer has infilling pieces already.
        """
        if self.infill is not None:
            raise UserError(
                f"{self.path} has the infilling pieces already, from id {self.infill.prefix} on",
                hint="use it as it is",
            )
        return extended(self._model)

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
        """Whether texts are encoded unchanged, apart from the implied leading space."""
        return not self._normalises

    @property
    def newline_id(self) -> int | None:
        """The id of a newline, if each line is encoded alone; else None."""
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
                never does, for text that continues earlier text.
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
        """As `encode_array`, for a short text that is unlikely to recur.

        A short text goes to SentencePiece directly: searching the caches for chunks that they do
        not have takes four to ten times as long.
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
        """The text of ids that continue earlier text: a leading space is kept.

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
            continuation: whether a leading space is kept.

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
            # The text of such models may depend on what follows, so it is returned at the end.
            return StreamDecoder(
                self._surface,
                self.vocab_size,
                whole=self.decode_continuation if continuation else self.decode,
            )
        return StreamDecoder(
            self._surface,
            self.vocab_size,
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

        For formats with their own vocabulary: there, too, no text may be encoded to a sentinel.
        """
        pieces = self._with_specials("text").pieces
        return [(piece.piece, piece.score, piece.type) for piece in pieces]

    @property
    def is_plain_bpe(self) -> bool:
        """Whether it is byte-fallback BPE without normalisation, apart from a leading space."""
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
        if self._obstacle is not None or self._normalises or len(text) <= self._first:
            text.encode()  # SentencePiece's own error for a lone surrogate says nothing
        if self._obstacle is not None:
            ids = self._variant(specials, leading_space).encode(text)
            return array("i", ids).tobytes()
        if self._normalises:
            text = self._variant(specials, leading_space).normalize(text)
        elif leading_space and self._spaced(text):
            text = " " + text
        if len(text) <= self._first:
            self._first -= len(text)
            return array("i", self._plain(specials).encode(text)).tobytes()
        self._first = 0
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
        return _processor(model.SerializeToString())

    def _make_plain(self, specials: Specials) -> Any:
        """SentencePiece for text that is normalised already."""
        model = self._with_specials(specials)
        _forget_normalisation(model)
        return _processor(model.SerializeToString())

    def _make_encoder(self, specials: Specials) -> ChunkEncoder:
        return ChunkEncoder(self._with_specials(specials), self._plain(specials).encode)

    def _make_continuation(self) -> Any:
        model = self._with_specials("parse")
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        return _processor(model.SerializeToString())

    def surfaces(self) -> tuple[str | int, ...]:
        """(V,) what each id decodes to: text, or the number of a byte."""
        return tuple(map(self._surface, range(self.vocab_size)))

    def _piece_bytes(self) -> tuple[bytes, ...]:
        return tuple(
            bytes([found]) if isinstance(found, int) else found.replace(SPACE, " ").encode()
            for found in self.surfaces()
        )

    def typed_bytes(self) -> tuple[bytes, ...]:
        """(V,) what each id adds to a text that a user types, in UTF-8.

        Empty for control pieces and sentinels, which no text is encoded to.
        """
        pieces = self._piece_bytes()
        return tuple(b"" if i in self._sentinels else piece for i, piece in enumerate(pieces))

    def _make_bytes(self) -> tuple[bytes, ...] | None:
        """What each id adds to a text, in UTF-8; None if it depends on other ids."""
        if (
            self._normalises
            or self._model.denormalizer_spec.precompiled_charsmap
            or self._model.trainer_spec.treat_whitespace_as_suffix
            or self._model.normalizer_spec.remove_extra_whitespaces
        ):
            return None
        return self._piece_bytes()

    def _find_surface(self, number: int) -> str | int:
        """What an id decodes to: text, or the number of a byte."""
        piece = self._model.pieces[number]
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


def _reload(path: Path, digest: str) -> Tokenizer:
    tokenizer = Tokenizer.load(path)
    if tokenizer.digest != digest:
        raise UserError(f"{path} was changed while it was in use", hint="run the command again")
    return tokenizer


def _processor(content: bytes) -> Any:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor


def _normalises(model: Any) -> bool:
    """Whether the model changes a text beyond a space before it."""
    spec = model.normalizer_spec
    suffix = model.trainer_spec.treat_whitespace_as_suffix
    return bool(spec.precompiled_charsmap or spec.remove_extra_whitespaces or suffix)


def _forget_normalisation(model: Any) -> None:
    """Switch off all normalisation of the model."""
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.precompiled_charsmap = b""
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.trainer_spec.treat_whitespace_as_suffix = False
