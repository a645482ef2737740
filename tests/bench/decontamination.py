"""Share of HumanEval's problems found when they stand in a file as data, and false positives.

    python tests/bench/decontamination.py --benchmarks FOLDER [--source FOLDER]

FOLDER holds `humaneval/HumanEval.jsonl.gz` and, for the false positives, `mbpp/mbpp.jsonl`. Each
problem is wrapped as in `tests/data/corpus/test_unwrap.py`, between two files of the source. Then
the source's own files are searched, with the other forms of their texts and without.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import sysconfig
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from data.corpus.test_unwrap import WRAPPINGS

from codecria.data.corpus import decontaminate, shingles

MOST_FILES = 8000


def texts_below(folder: Path) -> list[str]:
    """The Python files of a folder, those that are UTF-8 and under 1 MiB."""
    texts = []
    for path in sorted(folder.rglob("*.py"))[:MOST_FILES]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) < 1 << 20:
            texts.append(text)
    return texts


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", type=Path, required=True)
    parser.add_argument("--source", type=Path, default=Path(sysconfig.get_path("stdlib")))
    options = parser.parse_args()
    humaneval = options.benchmarks / "humaneval/HumanEval.jsonl.gz"
    with gzip.open(humaneval) as file:
        problems = [json.loads(line) for line in file]
    texts = texts_below(options.source)
    index = decontaminate.build([humaneval])
    for name, wrap in {"plain": str, **WRAPPINGS}.items():
        leaks = [
            f"{texts[i % len(texts)]}\n{wrap(p['prompt'] + p['canonical_solution'])}\n"
            for i, p in enumerate(problems)
        ]
        found = index.problems_in(shingles.column(leaks))
        count = sum(p["task_id"] in names for p, names in zip(problems, found, strict=True))
        print(f"{name:24} {count} of {len(problems)}", flush=True)
    index = decontaminate.build([humaneval, options.benchmarks / "mbpp/mbpp.jsonl"])
    column = shingles.column(texts)
    megabytes = sum(map(len, texts)) / 1e6
    start = time.perf_counter()
    dropped = sum(map(bool, index.problems_in(column)))
    seconds = time.perf_counter() - start
    print(f"{dropped} of {len(texts):,} files dropped, {megabytes / seconds:.1f} MB/s")


if __name__ == "__main__":
    main()
