"""How fast the tokenizer encodes, beside SentencePiece itself, on Python source.

    python tests/bench/tokenizer.py [--model tokenizer.model] [--mb 8] [--rounds 3] [--all] [--json]

Reads the running interpreter's standard library, shuffled with a fixed seed, in two halves. Both
encoders take turns file by file, so that whatever slows the machine down slows both. Three cases:

    cold      the second half with empty caches
    seen      the second half again: every line is known
    unseen    the second half after the first one only: what preparing data looks like

Ids are compared on every file; a difference ends the run with exit status 1. `--all` compares every
file of the library, with and without the leading space, in place of timing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from codecria.data.tokenizer.tokenizer import Tokenizer

LLAMA = Path(__file__).parents[3] / "shared" / "tokenizers" / "llama2.model"


def library() -> list[str]:
    """The texts of the standard library's Python files, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for file in sorted(root.rglob("*.py")):
        if "site-packages" not in file.parts:
            try:
                texts.append(file.read_bytes().decode())
            except UnicodeDecodeError:  # deliberately broken files among the tests
                continue
    random.Random(0).shuffle(texts)
    return texts


def size(texts: Iterable[str]) -> float:
    """Megabytes of UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def take(texts: list[str], megabytes: float) -> list[str]:
    """The first texts, of about this many megabytes."""
    taken, total = [], 0.0
    for text in texts:
        if total >= megabytes:
            break
        taken.append(text)
        total += len(text.encode()) / 1e6
    return taken


def race(texts: list[str], encoders: list[Callable[[str], Any]]) -> list[float]:
    """Seconds that each encoder takes for all texts, taking turns; the first one is the oracle."""
    seconds = [0.0] * len(encoders)
    for turn, text in enumerate(texts):
        results = []
        order = range(len(encoders)) if turn % 2 else reversed(range(len(encoders)))
        for i in order:
            start = time.perf_counter()
            ids = encoders[i](text)
            seconds[i] += time.perf_counter() - start
            results.append(list(ids))
        if any(ids != results[0] for ids in results):
            sys.exit(f"the ids of text {turn} differ: {text[:80]!r}")
    return seconds


def one_round(model: Path, first: list[str], second: list[str]) -> dict[str, float]:
    """Megabytes per second of one round over all cases."""
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode
    result = {}
    fresh = Tokenizer.load(model)
    fresh.encode("x")  # reading the vocabulary is no part of encoding
    warm = Tokenizer.load(model)
    for text in first:
        warm.encode_array(text)
    for case, tokenizer in (("cold", fresh), ("seen", fresh), ("unseen", warm)):
        theirs, ours = race(second, [oracle, tokenizer.encode_array])
        result[f"sentencepiece {case}"] = size(second) / theirs
        result[case] = size(second) / ours
    theirs, ours = race(second, [oracle, fresh.encode])
    result["sentencepiece seen, list"] = size(second) / theirs
    result["seen, list"] = size(second) / ours
    return result


def check_all(model: Path, texts: list[str]) -> None:
    """Compare ids on every text, with and without the leading space."""
    tokenizer = Tokenizer.load(model)
    shipped = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for specials in ("text", "parse"):
        for leading_space in (True, False):
            for text in texts:
                ids = tokenizer.encode(text, specials=specials, leading_space=leading_space)
                if leading_space:
                    expected = shipped.encode(text)
                else:
                    # One more character of no piece, as the release does it, but a newline.
                    expected = shipped.encode("\n" + text)[len(shipped.encode("\n")) :]
                if ids != expected:
                    sys.exit(f"ids differ: {text[:80]!r}")
        if tokenizer.infill is None:
            break
    print(f"ids equal on all {len(texts)} files, {size(texts):.1f} MB", file=sys.stderr)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = Path(os.environ.get("CODECRIA_LLAMA_TOKENIZER", LLAMA))
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--mb", type=float, default=8.0, help="megabytes of each half")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="compare ids on every file instead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    texts = library()
    if options.all:
        check_all(options.model, texts)
        return
    second = take(texts[::2], options.mb)
    first = take(texts[1::2], options.mb)
    rounds = [one_round(options.model, first, second) for _ in range(options.rounds)]
    speed = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    cases = ("cold", "seen", "unseen", "seen, list")
    ratio = {
        case: statistics.median(r[case] / r[f"sentencepiece {case}"] for r in rounds)
        for case in cases
    }
    if options.json:
        print(
            json.dumps(
                {"files": len(second), "mb": size(second), "mb_per_s": speed, "ratio": ratio}
            )
        )
        return
    print(f"{len(second)} files, {size(second):.1f} MB, median of {options.rounds} rounds, MB/s")
    print(f"{'':12} {'SentencePiece':>14} {'codecria':>10} {'ratio':>7}")
    for case in cases:
        theirs = speed[f"sentencepiece {case}"]
        print(f"{case:12} {theirs:14.2f} {speed[case]:10.1f} {ratio[case]:7.1f}")


if __name__ == "__main__":
    main()
