"""Training of a tokenizer in the manner of Llama 2's, by SentencePiece."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from codecria.data.errors import UserError
from codecria.data.files import atomic_write

from .model_file import SPACE, WHITE_SPACE_SCORE, ModelProto
from .tokenizer import Tokenizer

_LINE_CHARACTERS = 1000  # longer lines are cut for training: SentencePiece drops > 4192 bytes
_SAMPLE_LINES = 4_000_000  # more are sampled down to this, which bounds training's memory
_AFTER_SPACES = re.compile(r"(?<= )(?= [^ ])")  # before the last space of several
_LIMITS = re.compile(r"too high \(\d+\)\. Please set it to a value <= (\d+)")
_LEAST = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def train(
    texts: Iterable[str], *, vocab_size: int, out: Path, threads: int | None = None
) -> Tokenizer:
    """Train a tokenizer in the manner of Llama 2's and write it to `out`.

    BPE by lines, no normalisation, digits split, byte fallback, pieces of white space alone,
    ids 0 unknown, 1 BOS, 2 EOS. The same texts in the same order give the same file, whatever
    the number of threads.

    Args:
        texts: documents, read once; above 4 million lines, a fixed sample of them is used.
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
    """Lines to train on, split as encoding merges them (see `_finished`).

    Newlines stay bytes, as in Llama 2's vocabulary. All spaces but the last are
    separated from the word that follows: "    return  x" gives "   ", " return", " ", " x".
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
            piece.score = WHITE_SPACE_SCORE
    return bytes(model.SerializeToString(deterministic=True))
