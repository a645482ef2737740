"""Planned memory of a training step against measured memory, on CPUs.

    python tests/bench/training_memory.py
    python tests/bench/training_memory.py --sizes 4m --meshes dp=1 --dtype bfloat16 --rows 2

Each row is one case in processes of its own, of which the first is shown. State is the weights,
gradients and moments that a process holds, as torch counts them. The end of a forward pass and the
peak of a step are growths of the process's resident memory, in a step of two passes after a first
one; freed blocks go back to the system at once, so that resident memory is what is in use. Planned
is what `codecria pretrain --dry-run --devices N` adds up for the same.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def resident(key: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at the peak since it was last cleared."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise SystemExit("error: this needs Linux's /proc")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One case, measured in this process beside the others of its mesh."""
    import numpy as np
    import torch

    from codecria.core.model.batch import batch_loss
    from codecria.core.model.config import preset
    from codecria.core.model.dtypes import DTYPES
    from codecria.core.model.transformer import Transformer
    from codecria.core.training.mesh import parse_mesh
    from codecria.core.training.optim import build_optimizer, trained_weights
    from codecria.core.training.parallel import clip_gradients, context_split, shard
    from codecria.core.training.plan import fullest
    from codecria.core.training.recipes import recipe_for
    from codecria.core.training.spread import Way, spread_moments
    from codecria.core.training.trainer import make_deterministic
    from codecria.core.training.world import joined
    from codecria.data.rows.loader import stack
    from codecria.data.rows.rows import Row

    make_deterministic()
    torch.set_num_threads(1)
    config, dtype, context = preset(case["size"]), DTYPES[case["dtype"]], case["context"]
    with joined(torch.device("cpu"), timeout_s=120) as world:
        mesh = parse_mesh(case["mesh"], world.size)
        assert mesh is not None, case
        world = world.arranged(mesh)
        with torch.device("meta"):
            model = Transformer(config).train()
        shard(model, world, dtype=dtype)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0.0, 0.02)
        model.recompute = case["recompute"]
        trained = trained_weights(model)
        optimizer = build_optimizer(trained, recipe_for("pretrain", case["size"]))
        split, draws = context_split(world), np.random.default_rng(0)
        ends: list[int] = []

        def one_pass() -> None:
            ids = draws.integers(0, config.vocab_size, (2, case["rows"], context)).astype(np.int32)
            kinds = np.zeros(context, dtype=np.uint8)
            rows = [Row(a, b, (context,), kinds) for a, b in zip(*ids, strict=True)]
            batch = stack(rows, document_mask=True)
            if split is not None:
                batch = batch.at(split.places(context))
            with torch.autocast(
                "cpu",
                dtype,
                enabled=dtype != torch.float32,
                cache_enabled=not model.recompute,
            ):
                loss, _ = batch_loss(
                    model, batch, device=world.device, backend="sdpa", count=1, split=split
                )
            ends.append(resident("VmRSS"))
            loss.backward()  # type: ignore[no-untyped-call]

        def step() -> int:
            one_pass()
            one_pass()
            clip_gradients(trained.values(), 1.0)
            held = bytes_of([w.grad for w in trained.values()])
            optimizer.step()
            optimizer.zero_grad()
            return held

        step()  # makes the moments
        moments = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
        before = resident("VmRSS")
        gradients = step()
        state = bytes_of(trained.values()) + bytes_of(moments) + gradients
        way = Way(
            mesh=world.mesh,
            micro_batch_size=case["rows"],
            recompute=case["recompute"],
            dtype=case["dtype"],
        )
        moments = spread_moments(config, context, way)
        loss, planned = moments["loss"], fullest(moments)
        matrix = config.vocab_size * config.dim // mesh.tp
        kept = loss["activations"] + 4 * matrix + loss.get("gathered weights", 0)
        kept += max(0, loss.get("bfloat16 copies", 0) - 2 * matrix)  # that one is the loss's
        parts = ("weights", "gradients", "optimizer moments")
        return {
            "planned": {
                "state": sum(planned[part] for part in parts),
                "forward": kept,
                "peak": sum(planned.values()),
            },
            "measured": {
                "state": state,
                "forward": ends[-2] - before,
                "peak": resident("VmHWM") - before + state - gradients,
            },
            "parts": planned,
        }


def bytes_of(tensors: Any) -> int:
    """Bytes of the parts of tensors that this process holds."""
    from torch.distributed.tensor import DTensor

    own = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in own)


def run(case: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """One case in as many processes as its mesh has; the first one's figures."""
    size = case["processes"]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    common = os.environ | MALLOC | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, f"--worker={json.dumps(case)}"],
            env=common | {"RANK": str(n), "WORLD_SIZE": str(size), "LOCAL_RANK": str(n)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(size)
    ]
    try:
        output = [process.communicate(timeout=limit_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise SystemExit(f"error: {case} failed")
    found: dict[str, Any] = json.loads(output[0].splitlines()[-1])
    return found


def main() -> None:
    """Measure all cases and print each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", default="15m,42m")
    parser.add_argument("--meshes", default="dp=1,dp=2,tp=2", help="each with one axis")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=4, help="of a pass")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit-s", type=float, default=300, help="of a case")
    parser.add_argument("--json", action="store_true", help="all figures, a line a case")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(json.loads(given.worker))), flush=True)
        os._exit(0)  # gloo's threads may abort while Python takes them down
    names = [f"{what} {which}" for what in ("state", "forward", "peak") for which in ("plan", "is")]
    print(f"MB, {given.rows} rows of {given.context}, {given.dtype}")
    print(f"{'size':5} {'mesh':5} {'recompute':9}", *(f"{name:>12}" for name in names), flush=True)
    for size in given.sizes.split(","):
        for mesh in given.meshes.split(","):
            for recompute in (False, True):
                case = {
                    "size": size,
                    "mesh": mesh,
                    "processes": int(mesh.partition("=")[2]),
                    "recompute": recompute,
                    "context": given.context,
                    "rows": given.rows,
                    "dtype": given.dtype,
                }
                found = run(case, given.limit_s)
                if given.json:
                    print(json.dumps(case | found), flush=True)
                    continue
                figures = [
                    found[which][what] / 1e6
                    for what in ("state", "forward", "peak")
                    for which in ("planned", "measured")
                ]
                print(
                    f"{size:5} {mesh:5} {'on' if recompute else 'off':9}",
                    *(f"{figure:12,.1f}" for figure in figures),
                    flush=True,
                )


if __name__ == "__main__":
    main()
