"""tokenizer.json, for tools that read no tokenizer.model: the same ids from another engine.

What transformers 5 makes of a tokenizer.model itself differs from SentencePiece on white space: it
ranks merges by the order of the pieces, and Llama 2's white-space pieces, early in that order, are
merged last. Here merges are ranked by the pieces' scores, which is SentencePiece's own rule.
"""

from __future__ import annotations

from typing import Any

from codecria.data.tokenizer.model_file import CONTROL, NORMAL, SPACE, USER_DEFINED
from codecria.data.tokenizer.tokenizer import Tokenizer

_FLAGS = {
    "normalized": False,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
}


def special_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that are marks: unknown, BOS, EOS, sentinels with a use, and added special tokens."""
    ids = [tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id]
    if tokenizer.infill is not None:
        infill = tokenizer.infill
        ids += [infill.prefix, infill.suffix, infill.middle, infill.end]
    if tokenizer.step_id is not None:
        ids.append(tokenizer.step_id)
    kinds = [kind for _, _, kind in tokenizer.vocabulary()] if tokenizer.added else []
    ids += [i for i in tokenizer.added if kinds[i] == CONTROL]
    return list(dict.fromkeys(i for i in ids if i >= 0))


def added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Special pieces and added tokens as tokenizer.json and tokenizer_config.json list them."""
    special = special_ids(tokenizer)
    ids = [*special, *sorted(set(tokenizer.added).difference(special))]
    return [
        {"id": i, "content": piece.replace(SPACE, " ") if i in tokenizer.added else piece}
        | _FLAGS
        | {"special": i in special}
        for i, piece in zip(ids, tokenizer.pieces(ids), strict=True)
    ]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The content of tokenizer.json; None where the engine cannot do what the model asks.

    Only byte-fallback BPE without normalisation can be expressed: Llama 2's tokenizer, and all that
    are trained here.
    """
    vocabulary = tokenizer.vocabulary()
    framed = min(tokenizer.bos_id, tokenizer.unk_id) >= 0
    if not (framed and tokenizer.is_plain_bpe) or any(k == USER_DEFINED for _, _, k in vocabulary):
        return None
    bos = tokenizer.pieces([tokenizer.bos_id])[0]
    space: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    ]
    strip: list[dict[str, Any]] = []
    if tokenizer.adds_space:
        space.insert(0, {"type": "Prepend", "prepend": SPACE})
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(tokenizer),
        "normalizer": {"type": "Sequence", "normalizers": space},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                first,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokenizer.pieces([tokenizer.unk_id])[0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, (piece, _, _) in enumerate(vocabulary)},
            "merges": _merges(vocabulary),
        },
    }


def _merges(vocabulary: list[tuple[str, float, int]]) -> list[list[str]]:
    """Every pair of pieces that make a piece, best score first.

    Of equal scores, which white space has, SentencePiece merges the leftmost pair: a run of spaces
    grows from its left end. Ranking the longest result first does the same.
    """
    normal = {piece: i for i, (piece, _, kind) in enumerate(vocabulary) if kind == NORMAL}
    ranked: list[tuple[float, int, int, int, int, str, str]] = []
    for piece, number in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                score = vocabulary[number][1]
                order = (-score, -len(piece), number, normal[left], normal[right])
                ranked.append((*order, left, right))
    ranked.sort()
    return [[left, right] for *_, left, right in ranked]
