"""How many secrets of each form are missed, and what is replaced in real code.

    python tests/bench/redact.py [--values 2000] [--source DIR ...] [--show 40] [--old FILE]

Every form of `tests/data/corpus/secret_forms.py` is filled with random values; a value that is
still in the text is a miss. Then every Python, JSON, YAML, C and text file below the sources is
redacted: what was replaced is shown for a person to judge. `--old` names another revision's
`redact.py` to set beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "data" / "corpus")]

import secret_forms  # noqa: E402

from codecria.data.corpus import redact as current  # noqa: E402

Redact = Callable[[str], tuple[str, dict[str, int]]]
SUFFIXES = (
    ".py",
    ".json",
    ".yml",
    ".yaml",
    ".toml",
    ".cfg",
    ".ini",
    ".c",
    ".h",
    ".txt",
    ".md",
    ".js",
)


def examples(draw: random.Random, values: int) -> Iterator[tuple[str, str, str]]:
    """(form, text, value) for every form, `values` of each."""
    for form in (*secret_forms.FORMS, *secret_forms.CHOSEN_FORMS):
        for _ in range(values):
            yield (form.name, *form.example(draw))
    around = ("client = Client('{}')\n", "# was {}, rotate it\n", "TOKEN={}\n", '{{"x": "{}"}}\n')
    for number in range(values // 10):
        for rule, token in secret_forms.vendor_tokens(draw):
            yield rule, around[number % len(around)].format(token), token
        yield from secret_forms.contextual_tokens(draw)
        if number % 10 == 0:
            yield from secret_forms.key_blocks(draw)


def misses(redact: Redact, values: int) -> dict[str, tuple[int, int]]:
    """(missed, tried) by form."""
    found: dict[str, tuple[int, int]] = {}
    for form, text, value in examples(random.Random(20230824), values):
        missed, tried = found.get(form, (0, 0))
        found[form] = (missed + (value in redact(text)[0]), tried + 1)
    return found


def load(path: Path) -> Redact:
    """The `redact` of another revision's file."""
    spec = importlib.util.spec_from_file_location("redact_old", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["redact_old"] = module
    spec.loader.exec_module(module)
    chosen: Redact = module.redact
    return chosen


def main() -> None:
    """Print misses by form, then what is replaced in the sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=2000)
    parser.add_argument("--source", type=Path, nargs="*", default=[])
    parser.add_argument("--show", type=int, default=40)
    parser.add_argument("--every", type=int, default=1, help="read one file of so many")
    parser.add_argument("--old", type=Path)
    args = parser.parse_args()
    versions: dict[str, Redact] = {"new": current.redact}
    if args.old:
        versions["old"] = load(args.old)

    if args.values:
        tables = {name: misses(redact, args.values) for name, redact in versions.items()}
        for form, (_, tried) in tables["new"].items():
            rates = {name: 100 * table[form][0] / tried for name, table in tables.items()}
            mark = " <-- over 2 %" if rates["new"] > 2 else ""
            print(f"{form:28} " + "  ".join(f"{n} {r:6.2f} %" for n, r in rates.items()) + mark)
        for name, table in tables.items():
            over = sum(missed > 0.02 * tried for missed, tried in table.values())
            print(f"{name}: {over} of {len(table)} forms miss more than 2 %")
        for name, redact in versions.items():
            changed = [text for text in secret_forms.INNOCENT if redact(text)[1]]
            print(f"{name}: {len(changed)} of {len(secret_forms.INNOCENT)} innocent texts changed")

    files = sorted(p for s in args.source for p in s.rglob("*") if p.suffix in SUFFIXES)
    texts = [(p, t) for p in files[:: args.every] if (t := _read(p)) is not None]
    size = sum(len(text) for _, text in texts)
    shown = args.show
    for name, redact in versions.items() if texts else ():
        counts: Counter[str] = Counter()
        start = time.process_time()
        results = [redact(text) for _, text in texts]
        seconds = time.process_time() - start
        for (path, text), (clean, found) in zip(texts, results, strict=True):
            counts.update(found)
            found.pop("email", None)
            if found and name == "new" and shown > 0:
                for before, after in zip(text.split("\n"), clean.split("\n"), strict=False):
                    if before != after and "<EMAIL>" not in after and shown > 0:
                        shown -= 1
                        print(f"  {path.name}: {before.strip()[:150]}")
        print(f"{name}: {len(texts)} files, {size / 1e6:.0f} MB, {dict(counts)}, {seconds:.1f} s")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None


if __name__ == "__main__":
    main()
