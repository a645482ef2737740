"""A tokenizer from a GGUF file, and to one: llama.cpp's "llama" vocabulary is SentencePiece's BPE.

    tokenizer.ggml.tokens, .scores, .token_type    pieces, scores and SentencePiece's kinds by id
    tokenizer.ggml.bos_token_id and others         ids with a meaning
    tokenizer.ggml.add_space_prefix                whether a text is encoded with a space before it
    codecria.added_token_ids                       which pieces were added to the trained vocabulary

llama.cpp's converters keep sentinels as ordinary pieces, as Code Llama's own file does; ours makes
them control pieces, so that no text is encoded to one there. Read back they are ordinary again.

Limit: other vocabularies ("gpt2", a byte-level BPE; "t5", a unigram model) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecria.data.errors import UserError
from codecria.data.gguf import Entry, GgufFile

from .extension import SENTINEL, InfillIds
from .model_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelProto,
)

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_PREFIX = "tokenizer.ggml."
_ADDED_KEY = "codecria.added_token_ids"
_PADDING = re.compile(r"\[PAD(\d+)\]")  # rows of the embedding that no piece has
_KINDS = frozenset((NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE))
# llama.cpp has an older and a newer name for each of the infilling ids.
_INFILL_KEYS = (("prefix", "fim_pre"), ("suffix", "fim_suf"), ("middle", "fim_mid"))


def obstacle(metadata: Mapping[str, Any]) -> str | None:
    """Why the tokenizer of a file cannot be read; None when it can."""
    model = metadata.get(_PREFIX + "model")
    if model == "llama":
        return None
    if model is None or "tokens" not in {key.removeprefix(_PREFIX) for key in metadata}:
        return "it has no vocabulary"
    names = {"gpt2": "byte-level BPE, as Llama 3's and GPT's", "t5": "a unigram model"}
    return f"its vocabulary is {names.get(model, repr(model))}"


def model_of(path: Path) -> bytes:
    """The SentencePiece model of a GGUF file: the same ids as llama.cpp's.

    Raises:
        UserError: the file or its vocabulary is damaged, or of another kind.
    """
    metadata = GgufFile(path).metadata
    why = obstacle(metadata)
    if why is not None:
        raise UserError(
            f"the tokenizer of {path} cannot be read: {why}; only llama.cpp's kind 'llama' can",
            hint="`codecria convert` and `inspect` read the weights without it",
        )
    pieces = _pieces(path, metadata)
    model = ModelProto()
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    _name_ids(model, metadata)
    spec = model.trainer_spec
    spec.model_type, spec.vocab_size = BPE, len(pieces)
    spec.byte_fallback = any(kind == BYTE for _, _, kind in pieces)
    spec.user_defined_symbols.extend(_added(pieces, metadata, model))
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(metadata.get(_PREFIX + "add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = bool(
        metadata.get(_PREFIX + "remove_extra_whitespaces", False)
    )
    return bytes(model.SerializeToString(deterministic=True))


def _pieces(path: Path, metadata: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Every piece as (piece, score, kind), without the padding at the end.

    Raises:
        UserError: lists are of different lengths, or two pieces have one name.
    """
    try:
        tokens = metadata[_PREFIX + "tokens"]
        scores = metadata[_PREFIX + "scores"].tolist()
        kinds = metadata[_PREFIX + "token_type"].tolist()
        pieces = [
            (str(token), float(score), int(kind))
            for token, score, kind in zip(tokens, scores, kinds, strict=True)
        ]
        if not _KINDS.issuperset(kinds):
            raise ValueError("a token is of an unknown type")
        while pieces and pieces[-1][2] == UNUSED and _is_padding(pieces[-1][0], len(pieces) - 1):
            pieces.pop()
        if len({piece for piece, _, _ in pieces}) < len(pieces):
            raise ValueError("two tokens have one name")
        if UNKNOWN not in kinds:
            raise ValueError("it has no unknown token")
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"the tokenizer of {path} is damaged: {error}", hint="get the model again"
        ) from error
    return [
        # A sentinel with a score was an ordinary piece.
        (piece, score, NORMAL if kind == CONTROL and score and SENTINEL.fullmatch(piece) else kind)
        for piece, score, kind in pieces
    ]


def _is_padding(piece: str, number: int) -> bool:
    found = _PADDING.fullmatch(piece)
    return found is not None and int(found[1]) == number


def _name_ids(model: Any, metadata: Mapping[str, Any]) -> None:
    """Name BOS, EOS, unknown and padding: SentencePiece finds their ids by their pieces."""
    spec = model.trainer_spec
    size = len(model.pieces)

    def named(key: str) -> int:
        number = metadata.get(f"{_PREFIX}{key}_token_id", -1)
        return int(number) if isinstance(number, int) and 0 <= number < size else -1

    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
    spec.unk_id, spec.unk_piece = unknown, model.pieces[unknown].piece
    spec.bos_id, spec.eos_id, spec.pad_id = named("bos"), named("eos"), named("padding")
    if spec.pad_id in (unknown, spec.bos_id, spec.eos_id):
        spec.pad_id = -1
    for number, key in (
        (spec.bos_id, "bos_piece"),
        (spec.eos_id, "eos_piece"),
        (spec.pad_id, "pad_piece"),
    ):
        if number >= 0 and model.pieces[number].type == CONTROL:
            setattr(spec, key, model.pieces[number].piece)


def _added(
    pieces: list[tuple[str, float, int]], metadata: Mapping[str, Any], model: Any
) -> list[str]:
    """The pieces that were added to a trained vocabulary; retypes those that are text.

    A file of another converter does not list them: there every control piece without another use
    counts, so that it can be parsed.
    """
    listed = metadata.get(_ADDED_KEY)
    if listed is not None:
        numbers = [int(i) for i in listed if 0 <= i < len(pieces)]
        for i in numbers:
            if model.pieces[i].type == USER_DEFINED:
                model.pieces[i].type = UNUSED
        return [pieces[i][0] for i in numbers]
    spec = model.trainer_spec
    used = {spec.bos_piece, spec.eos_piece, spec.pad_piece, "<s>", "</s>", "<pad>"}
    return [
        piece
        for piece, _, kind in pieces
        if kind == CONTROL and piece not in used and not SENTINEL.fullmatch(piece)
    ]


def entries(tokenizer: Tokenizer, rows: int) -> dict[str, Entry]:
    """The metadata of a tokenizer, but for BOS and EOS, which the model names.

    Args:
        tokenizer: with at most `rows` pieces.
        rows: of the embedding; those that no piece has are named as llama.cpp's converter does.
    """
    pieces = tokenizer.vocabulary()
    pieces += [(f"[PAD{i}]", 0.0, UNUSED) for i in range(len(pieces), rows)]
    for i in tokenizer.added:  # as llama.cpp's converter does
        piece, score, kind = pieces[i]
        pieces[i] = (piece, score, USER_DEFINED if kind == UNUSED else kind)
    found: dict[str, Entry] = {
        "model": "llama",
        "pre": "default",
        "tokens": [piece for piece, _, _ in pieces],
        "scores": np.array([score for _, score, _ in pieces], dtype=np.float32),
        "token_type": np.array([kind for _, _, kind in pieces], dtype=np.int32),
        "unknown_token_id": tokenizer.unk_id,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": tokenizer.adds_space,
    }
    if tokenizer.pad_id is not None:
        found["padding_token_id"] = tokenizer.pad_id
    if tokenizer.infill is not None:
        for keys, number in zip(_INFILL_KEYS, _infill(tokenizer.infill), strict=True):
            found |= {f"{key}_token_id": number for key in keys}
    named = {_PREFIX + key: value for key, value in found.items()}
    if tokenizer.added:
        named[_ADDED_KEY] = np.array(tokenizer.added, dtype=np.uint32)
    return named


def _infill(ids: InfillIds) -> tuple[int, int, int]:
    return ids.prefix, ids.suffix, ids.middle
