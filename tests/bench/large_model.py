"""A large model with random packed weights on the CPU engine: memory and tokens a second.

    python tests/bench/large_model.py --size 7b --dtype q4 [--folder DIR] [--prompt N] [--tokens N]
    python tests/bench/large_model.py ... --llama --tokenizer tokenizer.model [--rounds 3]

Writes the folder that `convert --dtype q4` would (once; `--folder` keeps it), then a new process
maps it, reads a prompt and generates. Its peak memory counts the mapped weights it has touched.
With --llama a GGUF file of as many random blocks (Q4_0, Q8_0) is written beside it, and llama.cpp
measured after each round of ours. 7b in q4 takes 3.8 GB of disk, with --llama 7.4 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import peak_bytes

from codecria.core.model.config import ModelConfig, preset
from codecria.core.native import kernels
from codecria.core.native.packing import LAYOUT, PackedKind, arrange, packed_shape
from codecria.core.native.runner import NativeRunner
from codecria.core.native.weights import NORM, NORMS, Packed, Weight, shapes


def write(folder: Path, config: ModelConfig, kind: PackedKind) -> None:
    """Random codes, one scale a matrix; a few rows of blocks are drawn and repeated."""
    draw, header, start = np.random.default_rng(0), dict[str, Any](), 0
    for name, (rows, columns) in shapes(config).items():
        shape = packed_shape(kind, rows, columns)
        header[name] = {
            "dtype": "U8",
            "shape": shape,
            "data_offsets": [start, start + _size(shape)],
        }
        start += _size(shape)
    for name in _norms(config):
        header[name] = {
            "dtype": "F32", "shape": [config.dim], "data_offsets": [start, start + 4 * config.dim]
        }  # fmt: skip
        start += 4 * config.dim
    folder.mkdir(parents=True, exist_ok=True)
    page = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(page).to_bytes(8, "little") + page)
        for rows, columns in shapes(config).values():
            most = 127 if kind == "q8" else 7
            codes = draw.integers(-most, most + 1, (64, columns), np.int8)
            # As large as weights that keep the size of what flows through them.
            scale = np.full((64, columns // 32), 2 / (most * columns**0.5), np.float16)
            part = arrange(kind, codes, scale).tobytes()
            left = _size(packed_shape(kind, rows, columns))
            while left:
                left -= file.write(part[:left])
        for _ in _norms(config):
            file.write(np.ones(config.dim, np.float32).tobytes())
    record = config.to_hugging_face(dtype="float32")
    record["quantization_config"] = {
        "quant_method": "codecria", "layout": LAYOUT, "group_size": 32, "types": [kind]
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(record))


def write_gguf(path: Path, config: ModelConfig, kind: PackedKind, tokenizer: Path) -> None:
    """The same shape as a GGUF file: one random row of blocks a matrix, repeated."""
    from codecria.core.checkpoints.formats.gguf.facts import GgufFacts, GgufType, entries
    from codecria.core.checkpoints.formats.layout import gguf_name, shapes_of
    from codecria.data.gguf import TYPES, padding, tensor_bytes, write_head
    from codecria.data.tokenizer.tokenizer import Tokenizer

    draw = np.random.default_rng(0)
    packed = TYPES["Q8_0" if kind == "q8" else "Q4_0"]
    facts = GgufFacts(config=config, name="random", chat_template="", lineage={})
    head = entries(facts, GgufType(packed.name.lower()), Tokenizer.load(tokenizer))
    planned = {
        gguf_name(ours): (shape, packed if len(shape) == 2 else TYPES["F32"])
        for ours, shape in shapes_of(config).items()
    }
    with path.open("wb") as file:
        write_head(file, head, planned)
        for shape, stored in planned.values():
            size = tensor_bytes(shape, stored)
            if len(shape) == 1:
                file.write(np.ones(shape, np.float32).tobytes())
            else:
                rows, columns = shape
                row = draw.integers(0, 256, (columns // stored.block, stored.block_bytes), np.uint8)
                scale = np.float16(2 / ((127 if kind == "q8" else 7) * columns**0.5))
                row[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
                for _ in range(rows):
                    file.write(row.tobytes())
            file.write(padding(size))


def beside(path: Path, options: argparse.Namespace) -> None:
    """The same figures of llama.cpp, by the other benchmark's measurement."""
    numbers = [str(n) for n in (options.threads or 2, options.prompt, options.tokens)]
    command = [sys.executable, str(Path(__file__).with_name("engine.py")), "--child", "llama"]
    done = subprocess.run(
        [*command, str(path), *numbers], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"llama.cpp: load {found['load_s']:.2f} s, prompt {found['prefill']:.1f} tokens/s,"
        f" generate {found['decode']:.2f} tokens/s, peak memory {found['peak_mb'] / 1024:.2f} GiB",
        flush=True,
    )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _norms(config: ModelConfig) -> list[str]:
    layers = range(config.n_layers)
    names = [f"model.layers.{layer}.{norm}.weight" for layer in layers for norm in NORMS.values()]
    return [*names, NORM]


def mapped(folder: Path, kind: PackedKind) -> dict[str, Weight]:
    """The weights of the folder, mapped."""
    data = np.memmap(folder / "model.safetensors", np.uint8, "r")
    size = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8 : 8 + size]))
    found: dict[str, Weight] = {}
    for name, entry in header.items():
        first, last = (8 + size + place for place in entry["data_offsets"])
        part = data[first:last]
        if entry["dtype"] == "U8":
            found[name] = Packed(kind, part.reshape(entry["shape"]))
        else:
            found[name] = part.view(np.float32)
    return found


def measure(folder: Path, kind: PackedKind, prompt: int, tokens: int, threads: int | None) -> None:
    """Load, read a prompt, generate; print the times and the peak memory."""
    raw = json.loads((folder / "config.json").read_text())
    config = ModelConfig.from_hugging_face(raw, where=str(folder))
    began = time.perf_counter()
    runner = NativeRunner(config, mapped(folder, kind), kernels.load(), dtype=kind, threads=threads)
    runner.reserve(1, prompt + tokens)
    loaded = time.perf_counter()
    scores = runner.prefill(0, [[3 + n * 7 % 30_000 for n in range(prompt)]])
    read = time.perf_counter()
    for _ in range(tokens):
        scores = runner.decode(0, [[int(scores[-1].argmax())]])
    assert np.isfinite(scores).all()
    done = time.perf_counter()
    peak = peak_bytes() / 2**30
    print(
        f"load {loaded - began:.2f} s, prompt {prompt / (read - loaded):.1f} tokens/s,"
        f" generate {tokens / (done - read):.2f} tokens/s, peak memory {peak:.2f} GiB",
        flush=True,
    )


def main() -> None:
    """Write the model if it is not there, then measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="7b")
    parser.add_argument("--dtype", choices=["q8", "q4"], default="q4")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--llama", action="store_true", help="measure llama.cpp too")
    parser.add_argument("--tokenizer", type=Path, help="Llama 2's tokenizer.model, for --llama")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.folder, options.dtype, options.prompt, options.tokens, options.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "model"
        if not (folder / "config.json").is_file():
            write(folder, preset(options.size), options.dtype)
        gguf = folder / "model.gguf"
        if options.llama and not gguf.is_file():
            if options.tokenizer is None:
                parser.error("--llama needs --tokenizer")
            write_gguf(gguf, preset(options.size), options.dtype, options.tokenizer)
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", "--folder", str(folder)]
        for _ in range(options.rounds):
            subprocess.run(command, check=True)
            if options.llama:
                beside(gguf, options)


if __name__ == "__main__":
    main()
