"""Rows a second with and without infilling, and what becomes of the documents.

    codecria prepare-data SOURCE --tokenizer tokenizer.model --out shards
    python tests/bench/rows.py shards [--context 512 2048 4096] [--seconds 10]

One process and one thread. "cold" are the first rows, when no line of text is cached yet; "steady"
the rows after them, which go on into further epochs of a small source.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from codecria.data.formats.infill import Infiller, InfillFormat
from codecria.data.rows.loader import Infilling, source_rows
from codecria.data.rows.reencode import under
from codecria.data.rows.rows import Counts
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer


def extended(folder: Path) -> Tokenizer:
    """The shards' tokenizer with the infilling pieces."""
    base = Tokenizer.load(folder)
    return base if base.infill is not None else Tokenizer(base.path, base.extension())


def main() -> None:
    """Measure and print one line a combination."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--context", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    stored = ShardSet.open(options.shards)
    began = time.perf_counter()
    split = under(stored, extended(options.shards))
    opened = time.perf_counter() - began
    print(
        f"{stored.n_documents:,} documents, {stored.n_tokens:,} tokens; {split.n_tokens:,} under"
        f" the extended tokenizer, found in {opened:.1f} s"
    )
    formats: list[InfillFormat | None] = [
        None,
        InfillFormat(scope="document"),
        InfillFormat(scope="context"),
    ]
    for context in options.context:
        for format in formats:
            # A tokenizer of its own for each, so that none finds the caches another filled.
            infilling = Infilling(Infiller(extended(options.shards)), format) if format else None
            rows = source_rows(split, context=context, seed=0, infilling=infilling)
            counts, speeds, k = Counts(), [], 0
            for _ in ("cold", "steady"):
                first, since = k, time.perf_counter()
                while (spent := time.perf_counter() - since) < options.seconds / 2:
                    row = rows.row(k)
                    if row.counts is not None:
                        counts += row.counts
                    k += 1
                speeds.append((k - first) * context / spent)
            name = format.scope if format else "plain"
            line = f"T {context:5}  {name:8}  {speeds[0]:12,.0f} cold {speeds[1]:12,.0f} steady"
            line += f" tokens/s ({speeds[1] / context:,.0f} rows/s)"
            if counts.tokens:
                line += (
                    f"  eligible {counts.eligible_tokens / counts.tokens:.1%} of tokens,"
                    f" infilled {counts.infilled_tokens / counts.tokens:.1%};"
                    f" of {counts.eligible} eligible: drawn"
                    f" {(counts.infilled + counts.unfit) / max(1, counts.eligible):.3f},"
                    f" unfit {counts.unfit}, redrawn {counts.redrawn}; SPM"
                    f" {counts.spm / max(1, counts.infilled):.3f};"
                    f" padding {counts.padding / (k * context):.1%}; lossy {counts.lossy}"
                )
            print(line, flush=True)


if __name__ == "__main__":
    main()
