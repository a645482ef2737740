"""SentencePiece's model file: its parsed form, and the constants that stand in it."""

from __future__ import annotations

from typing import Any

from sentencepiece import sentencepiece_model_pb2

# Generated at import from a descriptor, so type checkers do not see it.
ModelProto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]

MODEL_NAME = "tokenizer.model"
SPACE = "\u2581"  # what SentencePiece writes for a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of pieces
BPE = 2  # the model type
METASPACE = "metaspace"  # a normaliser that adds no space to a text that begins with one
WHITE_SPACE_SCORE = -1e9  # of pieces of white space alone in Llama 2's model: they join last
