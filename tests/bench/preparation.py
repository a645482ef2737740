"""prepare-data beside datatrove doing the same steps, and near dedup beside Daft's MinHash.

    python tests/bench/preparation.py --source DIR --peers OTHER_VENV/bin/python --rounds 3

The peers want an environment of their own: pip install "datatrove[processing]" daft tokenizers.
Every system reads the same JSON lines, made from the programs below DIR with some near-copies
added, and runs in processes of its own, in turn within each round; what is compared is the ratio
within a round, its median over the rounds. datatrove does what prepare-data does by default:
line-length filters, e-mail redaction, near dedup (five-word shingles, as many permutations), a
shuffle and Llama 2's tokenizer. Secrets, decontamination, languages, licences and exact dedup it
does not do, or only apart; codecria does them in the time shown.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (MinhashDedupBuckets, MinhashDedupCluster,
    MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter

def keep(document):
    lines = document.text.splitlines()
    lengths = [len(line) for line in lines] or [0]
    letters = sum(c.isalnum() for c in document.text)
    return (len(document.text.strip()) >= 20 and max(lengths) <= 1000
            and sum(lengths) / len(lengths) <= 100 and letters >= 0.25 * len(document.text))

if __name__ == "__main__":
    source, work, tokenizer, only = sys.argv[1:]
    config = MinhashConfig(n_grams=5, num_buckets=42, hashes_per_bucket=6)

    def run(name, *steps, tasks=2):
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=min(2, tasks),
                              logging_dir=f"{work}/log/{name}").run()

    run("filter", JsonlReader(source, glob_pattern="*.jsonl", id_key="id"), LambdaFilter(keep),
        PIIFormatter(remove_ips=False), JsonlWriter(f"{work}/kept"))
    run("signatures", JsonlReader(f"{work}/kept"),
        MinhashDedupSignature(output_folder=f"{work}/signatures", config=config))
    run("buckets", MinhashDedupBuckets(input_folder=f"{work}/signatures",
        output_folder=f"{work}/buckets", config=config), tasks=42)
    run("cluster", MinhashDedupCluster(input_folder=f"{work}/buckets",
        output_folder=f"{work}/remove", config=config), tasks=1)
    run("tokens", JsonlReader(f"{work}/kept"), MinhashDedupFilter(input_folder=f"{work}/remove"),
        DocumentTokenizer(f"{work}/tokens", tokenizer_name_or_path=tokenizer,
                          local_working_dir=f"{work}/local", seed=1, save_final_metadata=False))
"""

DAFT = """
import sys, time
import daft
from daft import col
from daft.functions import minhash
frame = daft.read_json(sys.argv[1] + "/*.jsonl").select("id", "text").collect()
began = time.perf_counter()
words = col("text").normalize(remove_punct=True, lowercase=True, white_space=True)
frame.with_column("m", minhash(words, num_hashes=256, ngram_size=5, hash_function="xxhash"
    )).select("id", "m").collect()
print(time.perf_counter() - began)
"""

OURS = """
import sys, time, json, multiprocessing
from pathlib import Path
from codecria.data.corpus import near, shingles

def sketch(path):
    texts = [json.loads(line)["text"] for line in Path(path).open()]
    began = time.perf_counter()
    for i in range(0, len(texts), 256):
        near.sketch(shingles.column(texts[i:i + 256]), near.DEFAULT)
    return time.perf_counter() - began

if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        print(max(pool.map(sketch, sorted(Path(sys.argv[1]).glob("*.jsonl")))))
"""


def make_corpus(source: Path, folder: Path, megabytes: float) -> tuple[int, int]:
    """Write the programs below a folder as two files of JSON lines; documents and bytes."""
    rng = random.Random(0)
    texts, size = [], 0
    for path in sorted(source.rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if not text.strip():
            continue
        texts.append(text)
        if rng.random() < 0.05:
            texts.append(text.replace("self", "this", 3) + "\n# another copy\n")
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    rng.shuffle(texts)
    folder.mkdir()
    for half in range(2):
        with (folder / f"part{half}.jsonl").open("w") as file:
            for i, text in enumerate(texts[half::2]):
                file.write(json.dumps({"id": f"{half}-{i}", "text": text, "lang": "Python"}) + "\n")
    return len(texts), sum(len(text.encode()) for text in texts)


def timed(command: list[str], *, own_time: bool = False) -> float:
    """Seconds of a command, or those it prints itself."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1]) if own_time else spent


def main() -> None:
    """Run all systems in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path(sys.prefix))
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--peers", help="python of an environment with datatrove and daft")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Llama 2 tokenizer.model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datatrove-rounds", type=int, default=1)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        documents, size = make_corpus(given.source, root / "corpus", given.megabytes)
        print(f"{documents:,} documents, {size / 1e6:.1f} MB")
        tokenizer_json = root / "tokenizer.json"
        if given.peers:
            from transformers import LlamaTokenizerFast

            LlamaTokenizerFast(vocab_file=str(given.tokenizer)).backend_tokenizer.save(
                str(tokenizer_json)
            )
        for script, text in (("run_datatrove", DATATROVE), ("run_daft", DAFT), ("run_ours", OURS)):
            (root / f"{script}.py").write_text(text)
        corpus, seconds = str(root / "corpus"), {}
        stages: list[dict[str, float]] = []
        for number in range(given.rounds):
            shutil.rmtree(root / "out", ignore_errors=True)
            command = [sys.executable, "-m", "codecria.cli", "prepare-data", corpus]
            command += ["--out", str(root / "out"), "--tokenizer", str(given.tokenizer)]
            seconds.setdefault("codecria", []).append(timed([*command, "--workers", "2"]))
            stages.append(json.loads((root / "out/report.json").read_text())["seconds"])
            near = timed([sys.executable, str(root / "run_ours.py"), corpus], own_time=True)
            seconds.setdefault("codecria signatures", []).append(near)
            if given.peers:
                peer = [given.peers, str(root / "run_daft.py"), corpus]
                seconds.setdefault("daft signatures", []).append(timed(peer, own_time=True))
                if number < given.datatrove_rounds:
                    work = root / f"datatrove{number}"
                    peer = [given.peers, str(root / "run_datatrove.py"), corpus, str(work)]
                    peer += [str(tokenizer_json), ""]
                    seconds.setdefault("datatrove", []).append(timed(peer))
        for system, spent in seconds.items():
            median = statistics.median(spent)
            rounds = ", ".join(f"{s:.1f}" for s in spent)
            print(f"{system:22} {median:7.1f} s  {size / 1e6 / median:7.1f} MB/s   ({rounds})")
        for stage in stages[0]:
            median = statistics.median(found[stage] for found in stages)
            print(f"  {stage:20} {median:7.2f} s  {size / 1e6 / max(median, 1e-3):7.1f} MB/s")
        for ours, theirs in (("codecria", "datatrove"), ("codecria signatures", "daft signatures")):
            if theirs in seconds:
                pairs = zip(seconds[theirs], seconds[ours], strict=False)
                ratio = statistics.median(peer / own for peer, own in pairs)
                print(f"{ours} is {ratio:.2f} times as fast as {theirs}")


if __name__ == "__main__":
    main()
