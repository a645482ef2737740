"""How many near-duplicates are found among real code, and how many others are removed.

    python tests/bench/near.py --source DIR [--share 0.1]

Takes the programs below DIR that are no near-duplicates of each other (by a first run), adds edited
copies of some, whose true Jaccard similarity is at least the threshold, and runs the dedup again.
The edits are those people make: white space and line ends, comments added and taken away, names
replaced in part, lines moved, inserted and deleted.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from codecria.data.corpus import filters, near, shingles
from codecria.data.corpus.prepare import prepare
from codecria.data.corpus.recipe import PrepareRecipe
from codecria.data.corpus.runner import Engine
from codecria.data.corpus.sources import Source


def reflowed(text: str, _: random.Random) -> str:
    """Other indentation, line ends and spaces."""
    return re.sub(r"(?m)^(    )+", lambda m: "\t" * (len(m[0]) // 4), text).replace("\n", " \r\n")


def renamed(text: str, rng: random.Random) -> str:
    """One name replaced in a part of the file."""
    names = Counter(re.findall(r"\b[a-z_]{4,}\b", text))
    rare = [name for name, count in names.items() if count <= 5] or list(names)
    for name in rng.sample(rare, min(3, len(rare))):
        text = re.sub(rf"\b{name}\b", name + "_2", text)
    return text


def commented(text: str, rng: random.Random) -> str:
    """A header and some comments added, the first comments taken away."""
    lines = re.sub(r"(?m)^#.*$", "", text, count=3).split("\n")
    for _ in range(max(1, len(lines) // 100)):
        lines.insert(rng.randrange(len(lines) + 1), "# changed by hand, see the log")
    return "# (c) somebody else, all rights to be settled\n" + "\n".join(lines)


def moved(text: str, rng: random.Random) -> str:
    """Some lines deleted, some inserted, one block moved."""
    lines = text.split("\n")
    for _ in range(max(1, len(lines) // 60)):
        del lines[rng.randrange(len(lines))]
        lines.insert(rng.randrange(len(lines) + 1), f"value_{rng.randrange(1000)} = None")
    cut = rng.randrange(len(lines))
    return "\n".join(lines[cut:] + lines[:cut])


EDITS: tuple[Callable[[str, random.Random], str], ...] = (reflowed, renamed, commented, moved)


def kept_after(folder: Path, texts: dict[str, str], model: Path) -> set[str]:
    """The ids that near dedup leaves; exact duplicates stay out of it."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for name, text in texts.items():
            file.write(json.dumps({"text": text, "path": name, "lang": "Python"}) + "\n")
    recipe = PrepareRecipe(
        filters=filters.defaults() | {"quality": None, "redaction": None}, validation_share=0
    )
    sources = [Source(name="rows", path=rows)]
    prepare(sources, folder / "out", recipe, model=model, engine=Engine(workers=2))
    dropped = pq.read_table(folder / "out/dropped.parquet")["path"].to_pylist()
    return texts.keys() - set(dropped)


def main() -> None:
    """Print recall by kind of edit, and how many others went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path(sys.prefix))
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--tokenizer", type=Path, required=True)
    given = parser.parse_args()
    rng = random.Random(0)
    texts = {}
    for path in sorted(given.source.rglob("*.py")):
        try:
            texts[str(path.relative_to(given.source))] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        alone = kept_after(root / "first", texts, given.tokenizer)
        base = {name: texts[name] for name in sorted(alone)}
        print(f"{len(texts):,} programs, {len(base):,} of them no near-duplicates of each other")
        injected, kinds, below = {}, Counter(), 0
        for name in rng.sample(sorted(base), int(given.share * len(base))):
            edit = EDITS[len(injected) % len(EDITS)]
            copy = edit(base[name], rng)
            sets = near.gram_sets(shingles.column([base[name], copy]), near.DEFAULT)
            if copy == base[name] or not len(sets[0]):
                continue
            if near.jaccard(*sets) < near.DEFAULT.threshold:
                below += 1
                continue
            injected[f"zz/{edit.__name__}/{name}"] = copy
            kinds[edit.__name__] += 1
        kept = kept_after(root / "second", base | injected, given.tokenizer)
        found = Counter(name.split("/")[1] for name in injected.keys() - kept)
        others = len(base.keys() - kept)
        for kind, count in kinds.items():
            print(f"{kind:10} {found[kind]:6,} of {count:6,} found")
        print(f"found {sum(found.values()) / len(injected):.4%} of {len(injected):,} injected")
        print(f"({below:,} more edits left less than the threshold in common: not injected)")
        print(f"removed {others:,} of {len(base):,} others: {others / len(base):.4%}")


if __name__ == "__main__":
    main()
