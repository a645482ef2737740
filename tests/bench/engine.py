"""The native engine beside llama.cpp: decode, prefill, start, memory, long prompts, busy cores.

    python tests/bench/engine.py --tokenizer tokenizer.model --models made
    python tests/bench/engine.py ... --sizes 15m,110m --types q8 --what decode,start --rounds 5
    python tests/bench/engine.py ... --sizes 110m --types q8 --what long --lengths 16384
    python tests/bench/engine.py ... --sizes 110m --types q8 --what busy --busy 1,2

Both compute with the same random weights: `codecria convert` makes the GGUF file and the packed
folder from one checkpoint, which is kept in --models. Every measurement is a process of its own, in
which the first pass is not counted; in each round ours and llama.cpp's follow each other. Printed
is the median of each and the median of the rounds' ratios, ours over theirs: above 1 is faster, and
for seconds and memory below 1 is less. llama.cpp is what llama-cpp-python was built with. Where its
quantised products crash (AMX under some hypervisors), --llama-plain turns its CPU-specific buffers
off, which also makes it slower: say so beside the figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memory import peak_bytes

TYPES = {  # ours -> (--dtype of the folder, --dtype of the GGUF file)
    "f32": ("float32", "float32"),
    "bf16": ("bfloat16", "bfloat16"),
    "q8": ("q8", "q8"),
    "q4": ("q4", "q4"),
}
DECODED = {"15m": 512, "42m": 256, "110m": 128, "1b": 32}  # tokens of a measurement
PROMPT = "def fibonacci(n: int) -> int:\n    "
WHAT = ("decode", "prefill", "start", "memory")
BUSY = "while True: pass"
UNCOMPILED = "PYTHONDONTWRITEBYTECODE"
PLAIN = "BENCH_LLAMA_PLAIN"  # in the environment of measurements: see --llama-plain


# --- one measurement, in a process of its own -----------------------------------------------------


def ours(path: str, threads: int, context: int) -> tuple[Any, Any]:
    """Functions that read a prompt into an empty cache, and that decode one token."""
    from codecria.core.checkpoints.checkpoint import Checkpoint
    from codecria.core.inference.loading import Compute, load_runner

    compute = Compute(engine="native", device="cpu", threads=threads or None)
    runner = load_runner(Checkpoint.open(Path(path)), compute, print)
    runner.reserve(1, context)

    def read(ids: list[int]) -> int:
        runner.truncate(0, 0)
        return int(runner.prefill(0, [ids])[0].argmax())

    def decode(token: int) -> int:
        return int(runner.decode(0, [[token]])[0].argmax())

    return read, decode


def llama(path: str, threads: int, context: int) -> tuple[Any, Any]:
    """The same of llama.cpp."""
    import numpy as np
    from llama_cpp import Llama, llama_get_logits_ith

    if os.environ.get(PLAIN):
        exec(LLAMA_PLAIN)
    threads = threads or len(os.sched_getaffinity(0))
    model = Llama(
        path,
        n_ctx=context,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    vocabulary = model.n_vocab()

    def best() -> int:
        logits = llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    def read(ids: list[int]) -> int:
        model.reset()
        model.eval(ids)
        return best()

    def decode(token: int) -> int:
        model.eval([token])
        return best()

    return read, decode


def measured(system: str, path: str, threads: int, length: int, tokens: int) -> dict[str, float]:
    """Tokens a second of a prompt of a length and of decoding after it, and the memory at its peak.

    Decoding takes the same tokens in both systems.
    """
    import random

    draw = random.Random(0)
    ids = [draw.randrange(300, 31_000) for _ in range(length)]
    began = time.perf_counter()
    read, decode = (ours if system == "ours" else llama)(path, threads, length + tokens + 8)
    loaded = time.perf_counter() - began
    if length <= 4_096:
        read(ids)  # a process's first pass touches its memory
    start = time.perf_counter()
    read(ids)
    middle = time.perf_counter()
    for _ in range(tokens):
        decode(draw.randrange(300, 31_000))
    end = time.perf_counter()
    return {
        "load_s": loaded,
        "prefill": length / (middle - start),
        "decode": tokens / (end - middle),
        "peak_mb": peak_bytes() / 2**20,
    }


LLAMA_PLAIN = """
import llama_cpp.llama_cpp as low
defaults = low.llama_model_default_params
def plain(defaults=defaults):
    parameters = defaults()
    parameters.use_extra_bufts = False
    return parameters
low.llama_model_default_params = plain
"""
LLAMA_START = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False)
for part in model.create_completion(sys.argv[3], max_tokens=1, temperature=0, stream=True):
    print(part["choices"][0]["text"] or "-", flush=True)
    break
"""


def started(system: str, path: str, threads: int) -> dict[str, float]:
    """Seconds from starting a process to its first byte of text, tokenizer and all."""
    if system == "ours":
        command = ["-m", "codecria.cli", "generate", "-m", path, "--device", "cpu"]
        command += ["--threads", str(threads or 2), "--max-tokens", "1", PROMPT]
    else:
        program = (LLAMA_PLAIN if os.environ.get(PLAIN) else "") + LLAMA_START
        command = ["-c", program, path, str(threads or 2), PROMPT]
    # A package that pip installs is compiled; where Python may not write, ours would be each time.
    environment = {name: text for name, text in os.environ.items() if name != UNCOMPILED}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    assert first, f"{system} wrote nothing for {path}"
    return {"start_s": seconds}


def child(arguments: list[str]) -> dict[str, float]:
    """`measured` in a process of its own."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = "it crashed: try --llama-plain" if done.returncode < 0 else done.stderr[-2000:]
        raise SystemExit(f"{' '.join(arguments)} failed: {hint}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# --- the models -----------------------------------------------------------------------------------


def made(folder: Path, size: str, kind: str, tokenizer: Path) -> dict[str, str]:
    """The folder and the GGUF file of a size and type, made where they are missing."""
    source = folder / size
    if not source.exists():
        random_model(source, size, tokenizer)
    own, theirs = TYPES[kind]
    paths = {"ours": folder / f"{size}-{kind}", "llama": folder / f"{size}-{kind}.gguf"}
    for name, dtype in (("ours", own), ("llama", theirs)):
        if not paths[name].exists():
            command = ["convert", str(source), str(paths[name]), "--dtype", dtype, "--no-verify"]
            command = [sys.executable, "-m", "codecria.cli", *command, "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {name: str(path) for name, path in paths.items()}


def random_model(folder: Path, size: str, tokenizer: Path) -> None:
    """Publish a checkpoint of a preset with random float32 weights."""
    import torch

    from codecria.core.checkpoints.saving import publish
    from codecria.core.model.config import preset
    from codecria.core.model.transformer import Transformer

    model = Transformer(preset(size))
    model.initialise(0)
    publish(folder, model, dtype=torch.float32, tokenizer=tokenizer, lineage={})


# --- rounds and table -----------------------------------------------------------------------------


def compare(
    label: str, figures: dict[str, str], rounds: int, measure: dict[str, Any], rows: list[list[str]]
) -> None:
    """Measure both in turn and append a line a figure.

    Args:
        label: size, type and circumstances.
        figures: key of a measurement -> what it is called.
        rounds: how often.
        measure: a function of each system.
        rows: of the table.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in measure}
    for number in range(rounds):
        # Who is first changes: the second finds the machine warmer.
        for name in sorted(measure, reverse=bool(number % 2)):
            found[name].append(measure[name]())
    for key, title in figures.items():
        own, other = ([one[key] for one in found[name]] for name in ("ours", "llama"))
        ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
        medians = [f"{statistics.median(values):,.3g}" for values in (own, other)]
        rows.append([label, title, *medians, f"{ratio:.2f}"])
        print("| " + " | ".join(rows[-1]) + " |", flush=True)


def main() -> None:
    """Parse the options, measure, print one table."""
    if sys.argv[1:2] == ["--child"]:
        system, path, *numbers = sys.argv[2:]
        print(json.dumps(measured(system, path, *map(int, numbers))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="Llama 2's tokenizer.model")
    parser.add_argument("--models", type=Path, required=True, help="folder of the models made")
    parser.add_argument("--sizes", default="15m,110m,1b")
    parser.add_argument("--types", default="q8,q4,bf16")
    parser.add_argument("--what", default=",".join(WHAT), help="also: long, busy")
    parser.add_argument("--threads", type=int, default=2, help="0: each system's own choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", default="16384,100000", help="of long prompts")
    parser.add_argument("--busy", default="1", help="numbers of busy processes beside")
    parser.add_argument("--llama-plain", action="store_true", help="see the module's text")
    options = parser.parse_args()
    if options.llama_plain:
        os.environ[PLAIN] = "1"
    options.models.mkdir(parents=True, exist_ok=True)
    what = set(options.what.split(","))
    rows: list[list[str]] = []
    print("| model | figure | ours | llama.cpp | ratio |\n| --- | --- | ---: | ---: | ---: |")
    for size in options.sizes.split(","):
        for kind in options.types.split(","):
            paths = made(options.models, size, kind, options.tokenizer)
            tokens = DECODED.get(size, 16)

            def runs(length: int, tokens: int, threads: int, paths: Any = paths) -> dict[str, Any]:
                numbers = [str(n) for n in (threads, length, tokens)]
                return {n: functools.partial(child, [n, p, *numbers]) for n, p in paths.items()}

            label = f"{size} {kind}"
            figures = {
                key: title
                for key, title, wanted in (
                    ("decode", "decode, tokens/s", "decode"),
                    ("peak_mb", "peak memory, MB", "memory"),
                )
                if wanted in what
            }
            if figures:
                compare(label, figures, options.rounds, runs(64, tokens, options.threads), rows)
            if "prefill" in what:
                titles = {"prefill": "prefill of 512, tokens/s"}
                compare(label, titles, options.rounds, runs(512, 1, options.threads), rows)
            if "start" in what:
                start = {
                    name: functools.partial(started, name, path, options.threads)
                    for name, path in paths.items()
                }
                titles = {"start_s": "shell to first token, s"}
                for each in start.values():
                    each()  # the first finds files that nothing has read yet
                compare(label, titles, options.rounds, start, rows)
            for length in map(int, options.lengths.split(",") if "long" in what else ()):
                titles = {
                    "prefill": f"prefill of {length:,}, tokens/s",
                    "decode": f"decode after {length:,}, tokens/s",
                    "peak_mb": "peak memory, MB",
                }
                compare(label, titles, options.rounds, runs(length, 16, options.threads), rows)
            for count in map(int, options.busy.split(",") if "busy" in what else ()):
                beside = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
                try:
                    titles = {"decode": f"decode beside {count} busy processes, tokens/s"}
                    compare(label, titles, options.rounds, runs(64, tokens, 0), rows)
                finally:
                    for process in beside:
                        process.kill()
                        process.wait()


if __name__ == "__main__":
    main()
