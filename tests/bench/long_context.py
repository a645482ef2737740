"""Long prompts: seconds and memory of a prefill in chunks, or of every token's loss.

    python tests/bench/long_context.py --size 110m --lengths 2048,16384,100000
    python tests/bench/long_context.py --size 110m --lengths 4096 --dtype bfloat16 --losses

Weights and tokens are random: neither time nor memory depends on them. Each length is measured in a
process of its own, so its peak is its own; "floor" is the peak before the first token is read, with
the libraries and the weights in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from memory import peak_bytes


def measure(arguments: argparse.Namespace, length: int) -> dict[str, Any]:
    """One prefill, or one reading with its losses, of `length` random tokens."""
    import numpy as np
    import torch

    from codecria.core.evaluation.likelihood.perplexity import token_losses
    from codecria.core.inference.torch_runner import TorchRunner
    from codecria.core.model.config import preset
    from codecria.core.model.dtypes import DTYPES
    from codecria.core.model.transformer import Transformer

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    model = Transformer(preset(arguments.size))
    model.initialise(0)
    model = model.to(device=device, dtype=dtype).eval()
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, length + 1).astype(np.int32)
    floor = peak_bytes() / 1e9

    def work() -> None:
        if arguments.losses:
            token_losses(model, ids)
        else:
            runner = TorchRunner(model)
            runner.reserve(1, length)
            runner.prefill(0, [ids[:-1].tolist()])
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        work()  # the first call compiles and tunes
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    shape = model.config
    per_token = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * dtype.itemsize
    return {
        "tokens": length,
        "seconds": seconds,
        "tokens_per_s": length / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9
        if device.type == "cuda"
        else peak_bytes() / 1e9,
        "floor_gb": floor,
        "cache_gb": per_token * length / 1e9,
    }


def main() -> None:
    """Measure each length and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", default="110m")
    parser.add_argument("--lengths", default="2048,16384,100000")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--losses", action="store_true", help="the loss of every token too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments, arguments.worker)))
        return
    found = []
    for length in map(int, arguments.lengths.split(",")):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], f"--worker={length}"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout))
        if not arguments.json:
            row = found[-1]
            if len(found) == 1:
                what = "losses" if arguments.losses else "prefill"
                print(f"{arguments.size} {arguments.dtype} on {arguments.device}: {what}")
                print(f"{'tokens':>8} {'s':>8} {'tokens/s':>9} {'peak GB':>8} {'floor':>6} cache")
            print(
                f"{row['tokens']:8} {row['seconds']:8.2f} {row['tokens_per_s']:9.0f}"
                f" {row['peak_gb']:8.2f} {row['floor_gb']:6.2f} {row['cache_gb']:5.2f}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"arguments": vars(arguments), "result": found}, indent=2))


if __name__ == "__main__":
    main()
