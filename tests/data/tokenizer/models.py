"""Models of many kinds, hard texts, and SentencePiece itself as the oracle of the tests beside."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from codecria.data.tokenizer.tokenizer import Specials

ROOT = Path(__file__).parents[3]
LLAMA = Path(
    os.environ.get(
        "CODECRIA_LLAMA_TOKENIZER", ROOT.parent / "shared" / "tokenizers" / "llama2.model"
    )
)
SENTINELS = [f"▁<{name}>" for name in ("PRE", "SUF", "MID", "EOT")]
HELPERS = ["▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT"]
NORMAL, CONTROL, UNUSED = 1, 3, 5

relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=45
)


@cache
def corpus() -> list[str]:
    """Code of this project, and a little of other scripts."""
    code = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "data").glob("*.py"))[:4]]
    prose = "Größe naïve café größer. Привет, мир! Привет! 日本語 日本 言語。 é ñ ½ ﬁne ①② 👍🏽"
    prose += " 👨‍👩‍👧\t\tx\r\n"
    return [*code, prose * 20]


def spm(**options: Any) -> bytes:
    """A model trained by SentencePiece with options of its own."""
    model = io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "vocab_size": 700,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.995,
        "minloglevel": 3,
        "num_threads": 1,
    }
    lines = [line for text in corpus() for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(defaults | options)
    )
    return model.getvalue()


def parsed(content: bytes) -> Any:
    return model_pb2.ModelProto.FromString(content)


def extended(content: bytes) -> bytes:
    """With Code Llama's pieces as its tokenizer has them, ordinary pieces in the proto."""
    model = parsed(content)
    for piece in [*HELPERS, *SENTINELS, *("▁" + "<EOT>" * n for n in range(2, 6)), "<step>"]:
        model.pieces.add(piece=piece, score=-1.0 - len(model.pieces), type=NORMAL)
    # What joins the pieces: "▁" and "<" first, then letter by letter.
    for joined in ("▁<", "▁<P", "▁<PR", "▁<S", "▁<EO", "▁<MI", "<s", "<st", "<ste", "<step"):
        if joined not in {p.piece for p in model.pieces}:
            model.pieces.add(piece=joined, score=-0.5, type=NORMAL)
    return bytes(model.SerializeToString())


def unused(content: bytes, *, ambiguous: bool) -> bytes:
    """With unused pieces, which SentencePiece joins and then takes apart again."""
    model = parsed(content)
    pieces = {p.piece for p in model.pieces if p.type == NORMAL}
    for piece in model.pieces:
        ways = sum(
            all(len(s) == 1 or s in pieces for s in (piece.piece[:i], piece.piece[i:]))
            for i in range(1, len(piece.piece))
        )
        if piece.type == NORMAL and (ways > 1) == ambiguous and ways and hash_of(piece.piece) % 3:
            piece.type = UNUSED
    return bytes(model.SerializeToString())


def without_letters(content: bytes) -> bytes:
    """Some letters stand in pieces but are none: alone they are unknown."""
    model = parsed(content)
    for i, piece in enumerate(model.pieces):
        if piece.piece in set("est=_"):
            piece.piece = f"\ue001{i}"
    return bytes(model.SerializeToString())


def hash_of(text: str) -> int:
    return sum(map(ord, text))


MODELS: dict[str, Callable[[], bytes]] = {
    "llama 2": lambda: LLAMA.read_bytes(),
    "code llama": lambda: extended(LLAMA.read_bytes()),
    "small with sentinels": lambda: extended(spm()),
    "no byte fallback": lambda: spm(byte_fallback=False, vocab_size=500),
    "user-defined symbols": lambda: spm(
        user_defined_symbols=["self.", "==", "x y", "x▁y", "\t\t", "))", "語。", "▁de", "<step>"]
    ),
    "user-defined newline": lambda: spm(user_defined_symbols=["\n", "\n\n", "a\nb"]),
    "user-defined indentation": lambda: spm(user_defined_symbols=["\n▁▁"]),
    "letters in longer pieces alone": lambda: without_letters(spm(byte_fallback=False)),
    "nmt_nfkc": lambda: spm(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True),
    "nfkc_cf, spaces kept": lambda: spm(normalization_rule_name="nfkc_cf"),
    "no dummy prefix": lambda: spm(add_dummy_prefix=False),
    "white space as suffix": lambda: spm(treat_whitespace_as_suffix=True),
    "pieces cross spaces": lambda: spm(split_by_whitespace=False, split_by_unicode_script=False),
    "pieces cross spaces, no fallback": lambda: spm(
        split_by_whitespace=False, byte_fallback=False, vocab_size=500
    ),
    "unused pieces": lambda: unused(spm(), ambiguous=False),
    "unused pieces joined in many ways": lambda: unused(spm(), ambiguous=True),
    "unigram": lambda: spm(model_type="unigram"),
    "characters": lambda: spm(model_type="char", vocab_size=420),
}


@cache
def oracle(path: Path, specials: Specials, leading_space: bool) -> Any:
    """The definition in DECISIONS, made without our code."""
    model = parsed(path.read_bytes())
    names = {*SENTINELS, "<step>", *("▁" + "<EOT>" * n for n in range(2, 7))}
    for piece in model.pieces:
        if specials == "text" and piece.piece in names:
            piece.type = CONTROL
    if not leading_space:
        model.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@cache
def some_pieces(path: Path) -> list[str]:
    pieces = [p.piece.replace("▁", " ") for p in parsed(path.read_bytes()).pieces]
    return [*random.Random(0).sample(pieces, min(len(pieces), 3000)), *pieces[-60:]]


@cache
def spaces(path: Path) -> list[int]:
    pieces = parsed(path.read_bytes()).pieces
    return [i for i, piece in enumerate(pieces) if not piece.piece.strip("▁")] or [0]


HARD = [
    *(
        " ",
        "  ",
        "     ",
        " " * 17,
        "\t",
        "\t\t",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "\0",
        "▁",
        "▁ ",
        " ▁",
    ),
    *(
        "\x85",
        "\u2028",
        "\u00a0",
        "\u3000",
        "\u200d",
        "\ufeff",
        "\ufffd",
        "e\u0301",
        "\u0301",
        "ﬁ",
        "①",
    ),
    *(
        "👍🏽",
        "👨‍👩‍👧",
        "🇫🇷",
        "語",
        "日本語",
        "语",
        "Привет",
        "ß",
        "İ",
        "한글",
        "अ",
        "\U0010ffff",
        "\ue000",
    ),
    *(
        "<PRE>",
        " <PRE>",
        "▁<PRE>",
        " <SUF>",
        " <MID>",
        " <EOT>",
        "<EOT><EOT>",
        "<step>",
        "<s>",
        "</s>",
    ),
    *(
        "<unk>",
        "<0x0A>",
        " <E",
        "self.",
        "==",
        "x y",
        "))",
        "a\nb",
        "def f(x):",
        "12345",
        "__init__",
    ),
]


def texts(path: Path) -> st.SearchStrategy[str]:
    any_text = st.text(max_size=40)
    part = st.one_of(st.sampled_from(HARD), st.sampled_from(some_pieces(path)), any_text)
    return st.lists(part, max_size=12).map("".join)
