"""Training speed, utilisation and memory on one GPU, in one call of less than ten minutes.

    python tests/bench/gpu_training.py
    python tests/bench/gpu_training.py --cases 1b-4k,lcft-16k --attention sdpa --steps 20
    python tests/bench/gpu_training.py --device cpu    # that it runs: tiny models, in a minute

Each row is a process of its own: steps as the trainer does them (deterministic algorithms, bfloat16
products, clipping, fused AdamW) on random tokens, the first ones not counted. A micro-batch that
does not fit is halved. 7b runs through fully_shard on the one device; where its moments do not fit,
it is cut to the layers that do, and the row says so. MFU is (6 P + 6 L d T) tokens/s over the
measured peak of bfloat16 products. Memory is what PyTorch allocated on the GPU; on a CPU, the peak
of the process. What a row that failed wrote goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

BUDGET_S = 560.0  # of the whole call
# (size, context, rows of a pass, FSDP), the likeliest to be of use first
CASES = {
    "1b-4k": ("1b", 4_096, 4, False),
    "lcft-16k": ("1b", 16_384, 1, False),
    "110m-4k": ("110m", 4_096, 8, False),
    "7b-4k": ("7b", 4_096, 2, True),
}
ON_CPU = {"1m-128": ("1m", 128, 2, False), "1m-fsdp": ("1m", 128, 2, True)}  # with --device cpu
SHARE_FOR_STATE = 0.7  # of the memory, for weights, gradients and moments; the rest is for a pass


def measure(kind: str, case: str, attention: str, mode: str, steps: int) -> dict[str, Any]:
    """One row of the table, measured in this process."""
    import numpy as np
    import torch

    from codecria.core import machine
    from codecria.core.model.attention import choose_backend
    from codecria.core.model.batch import batch_loss
    from codecria.core.model.config import preset
    from codecria.core.model.transformer import Transformer, compiled
    from codecria.core.training.meter import peak_memory_bytes
    from codecria.core.training.optim import build_optimizer, trained_weights
    from codecria.core.training.parallel import clip_gradients, shard
    from codecria.core.training.recipes import recipe_for
    from codecria.core.training.trainer import make_deterministic
    from codecria.core.training.world import World
    from codecria.data.rows.loader import stack
    from codecria.data.rows.rows import Row

    make_deterministic()
    size, context, rows, fsdp = cases_of(kind)[case]
    on_gpu = kind == "cuda"
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    backend, _ = choose_backend(device, attention)
    config, layers = preset(size), preset(size).n_layers
    while 16 * config.parameters > SHARE_FOR_STATE * machine.memory_size(device):
        config = replace(config, n_layers=config.n_layers - 1)
    with device:
        model = Transformer(config).train()
    with torch.no_grad():  # on the device: the model's own draws are made on the CPU
        for weight in model.parameters():
            weight.normal_(0.0, 0.02) if weight.ndim > 1 else weight.fill_(1.0)
    model.recompute = fsdp
    if fsdp:
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=torch.distributed.HashStore(),
            rank=0,
            world_size=1,
        )
        mesh = torch.distributed.init_device_mesh(kind, (1,), mesh_dim_names=("fsdp",))
        shard(model, World(0, 1, device, weights=mesh), dtype=torch.bfloat16)
    trained = trained_weights(model)
    optimizer = build_optimizer(trained, recipe_for("pretrain", size))
    forward = compiled(model) if mode == "compiled" else model
    peak = machine.matmul_flops(torch.bfloat16, device)
    draws = np.random.default_rng(0)

    def step(rows: int) -> None:
        ids = draws.integers(0, config.vocab_size, (2, rows, context)).astype(np.int32)
        kinds = np.zeros(context, dtype=np.uint8)
        made = [Row(ids[0, n], ids[1, n], (context,), kinds) for n in range(rows)]
        batch = stack(made, document_mask=False)
        with torch.autocast(kind, torch.bfloat16, cache_enabled=not model.recompute):
            loss, _ = batch_loss(
                forward, batch, device=device, backend=backend, count=batch.n_targets
            )
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize(device)

    begin = time.perf_counter()
    while True:
        try:
            for _ in range(3):  # compiles, tunes, makes the moments
                step(rows)
            break
        except torch.cuda.OutOfMemoryError:
            if rows == 1:
                raise
        optimizer.zero_grad()
        torch.cuda.empty_cache()
        rows //= 2
    warm_s = time.perf_counter() - begin
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    for _ in range(steps):
        step(rows)
    seconds = (time.perf_counter() - begin) / steps
    speed = rows * context / seconds
    return {
        "rows": rows,
        "layers": f"{config.n_layers} of {layers}",
        "tokens_per_s": speed,
        "mfu": speed * config.training_flops(context) / peak,
        "peak_tflops": peak / 1e12,
        "memory_gb": peak_memory_bytes(device) / 1e9,
        "warm_up_s": warm_s,
    }


def cases_of(kind: str) -> dict[str, tuple[str, int, int, bool]]:
    """The cases of a kind of device."""
    return CASES if kind == "cuda" else ON_CPU


def row_of(
    kind: str, case: str, attention: str, mode: str, steps: int, limit_s: float
) -> dict[str, Any]:
    """One row, measured in a process of its own; what went wrong instead, where it did."""
    words = [f"--worker={kind}/{case}/{attention}/{mode}", f"--steps={steps}"]
    try:
        done = subprocess.run(
            [sys.executable, __file__, *words], capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {limit_s:.0f} s"}
    if done.returncode:
        print(done.stderr[-4_000:], file=sys.stderr, flush=True)
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:100]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure all rows and print each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cases", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--attention", help="sdpa, xformers; both by default, on a CPU sdpa")
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--steps", type=int, default=10, help="counted ones of each row")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="of the whole call")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    if arguments.worker:
        print(json.dumps(measure(*arguments.worker.split("/"), arguments.steps)))
        return
    kind = arguments.device
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: this benchmark needs a CUDA device, and there is none here")
    cases = cases_of(kind) if arguments.cases is None else arguments.cases.split(",")
    if unknown := [case for case in cases if case not in cases_of(kind)]:
        raise SystemExit(f"error: there is no case {unknown[0]}: {', '.join(cases_of(kind))}")
    attentions = arguments.attention or ("sdpa,xformers" if kind == "cuda" else "sdpa")
    end = time.monotonic() + arguments.budget_s
    name = torch.cuda.get_device_name() if kind == "cuda" else "a CPU"
    print(f"{name}, torch {torch.__version__}, bfloat16 products")
    print(
        f"{'case':9} {'attention':9} {'mode':8} {'layers':>8} {'rows':>4} {'tokens/s':>9}"
        f" {'MFU':>5} {'peak TFLOP/s':>12} {'GB':>6} {'warm-up s':>9}",
        flush=True,
    )
    for case in cases:
        for attention in attentions.split(","):
            for mode in arguments.modes.split(","):
                left = end - time.monotonic()
                found = (
                    {"error": "no time left"}
                    if left < 10
                    else row_of(kind, case, attention, mode, arguments.steps, left)
                )
                name = f"{case:9} {attention:9} {mode:8}"
                if "error" in found:
                    print(f"{name} {found['error']}", flush=True)
                    continue
                print(
                    f"{name} {found['layers']:>8} {found['rows']:4} {found['tokens_per_s']:9,.0f}"
                    f" {found['mfu']:5.0%} {found['peak_tflops']:12.0f} {found['memory_gb']:6.1f}"
                    f" {found['warm_up_s']:9.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
