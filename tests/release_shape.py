"""A tokenizer in the shape of Llama 2's release, made from the tests' own corpus.

Meta's model is not part of the project. This one has what tests of formats and ids depend on:
32,000 pieces, <unk>, <s>, </s>, the 256 bytes, merges, whitespace runs with a score of -1e9 at the
release's ids, single characters from id 29,871 on, where the lone mark of a space stands.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as pb

from codecria.data.tokenizer.tokenizer import Tokenizer
from codecria.data.tokenizer.training import train

SIZE = 32_000
FIRST_CHARACTER = 29_871  # the id of the lone U+2581; single characters follow it
MARK = "\u2581"
HANGUL = [chr(0xAC00 + n) for n in range(160)]
# Length of a whitespace run -> its id in the release.
RUNS = {
    2: 259, 4: 268, 8: 308, 5: 418, 16: 462, 6: 539, 12: 632, 13: 795, 10: 965, 14: 1669,
    3: 1678, 9: 3986, 7: 4706, 11: 9651, 15: 18884, 1: FIRST_CHARACTER,
}  # fmt: skip


def make(corpus: list[str], out: Path) -> Tokenizer:
    """Train on the corpus, and lay the pieces out as the release does.

    Args:
        corpus: texts.
        out: the tokenizer.model to write.
    """
    trained = pb.ModelProto()
    train(corpus, vocab_size=8_000, out=out)
    trained.ParseFromString(out.read_bytes())
    pieces = trained.pieces
    head = [piece for piece in pieces if piece.type != piece.NORMAL]
    normal = [
        piece.piece for piece in pieces if piece.type == piece.NORMAL and set(piece.piece) != {MARK}
    ]
    merges = [piece for piece in normal if len(piece) > 1]
    characters = [piece for piece in normal if len(piece) == 1]
    placed: dict[int, str] = {where: MARK * length for length, where in RUNS.items()}
    # The release's remaining pieces are of other texts; so are these.
    merge = itertools.chain(merges, map("".join, itertools.product(HANGUL, HANGUL)))
    character = itertools.chain(characters, map(chr, range(0x4E00, 0x9FFF)))
    for where in range(len(head), SIZE):
        if where not in placed:
            placed[where] = next(merge if where < FIRST_CHARACTER else character)
    model = pb.ModelProto()
    model.CopyFrom(trained)
    del model.pieces[len(head) :]
    for where in range(len(head), SIZE):
        piece = model.pieces.add()
        piece.piece = placed[where]
        piece.score = -1e9 if set(placed[where]) == {MARK} else -float(where - 259)
        piece.type = piece.NORMAL
    model.trainer_spec.vocab_size = SIZE
    out.write_bytes(model.SerializeToString())
    return Tokenizer.load(out)
