"""Code Llama's infilling pieces: their names, their ids, and a vocabulary extended by them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .model_file import CONTROL, SPACE, WHITE_SPACE_SCORE, ModelProto

# Code Llama's sentinels, ids 32007-32015 there, and the 70B chat format's separator.
SENTINEL = re.compile(rf"{SPACE}<(?:PRE|SUF|MID)>|(?:{SPACE}?<EOT>)+|<step>")
INFILL_PIECES = tuple(f"{SPACE}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))
STEP_PIECE = "<step>"
# What Code Llama's tokenizer adds to Llama 2's, ids 32000-32015: parts of the sentinels, which
# ordinary text may use, the sentinels, and the last one repeated (as the release lists them).
_PARTS = tuple(f"{SPACE}<{part}" for part in ("SU", "SUF", "PRE", "M", "MID", "E", "EOT"))
_REPEATED = tuple(SPACE + "<EOT>" * times for times in range(2, 7))
INFILL_EXTENSION = (*_PARTS, *INFILL_PIECES, *_REPEATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillIds:
    """The ids of the infilling sentinels. Prompts and rows insert them as ids, never as text."""

    prefix: int
    suffix: int
    middle: int
    end: int


def infill_ids(sentinels: Mapping[str, int]) -> InfillIds | None:
    """The ids of the infilling sentinels.

    Args:
        sentinels: the ids of a vocabulary's sentinels, by piece.

    Returns:
        the ids, or None if one of the four is missing.
    """
    if any(piece not in sentinels for piece in INFILL_PIECES):
        return None
    prefix, suffix, middle, end = (sentinels[piece] for piece in INFILL_PIECES)
    return InfillIds(prefix=prefix, suffix=suffix, middle=middle, end=end)


def extended(base: Any) -> bytes:
    """The model file of a tokenizer with the 16 infilling pieces appended.

    They are ordinary pieces, as in Code Llama's own file, and get ids V .. V + 15 in its order:
    the sentinels are V + 7 .. V + 10 (32007 .. 32010 for Llama 2). Their scores are below all
    others, so they are merged last. If the vocabulary already has a piece of such a name: a part of
    a sentinel keeps its id and kind, and its new id is never used; a sentinel is renamed and
    becomes a control piece.

    Args:
        base: the parsed model; it is not changed.
    """
    model = ModelProto()
    model.CopyFrom(base)
    known = {piece.piece: piece for piece in model.pieces}
    score = min(piece.score for piece in model.pieces if piece.score > WHITE_SPACE_SCORE)
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


def affected(
    surfaces: Sequence[str | int],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which ids of a tokenizer may decode to text that the extension encodes in another way.

    Every part of a sentinel contains "<" followed by E, M, P or S.

    Returns:
        (V,) each: ids that contain these two characters, that end with the first, and that begin
        with the second. Text without such an id or pair of ids keeps its ids in the extension.
    """
    seconds = {name[2] for name in _PARTS}
    texts = [chr(found) if isinstance(found, int) else found for found in surfaces]
    return (
        np.array([any(f"<{c}" in text for c in seconds) for text in texts]),
        np.array([text.endswith("<") for text in texts]),
        np.array([text[:1] in seconds for text in texts]),
    )
