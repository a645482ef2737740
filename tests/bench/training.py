"""Training speed and memory beside transformers and litgpt: same shapes, precision and batch.

    python tests/bench/training.py --size 15m --context 512 --rows 8 --rounds 5
    python tests/bench/training.py --litgpt-python OTHER_VENV/bin/python   # litgpt wants its own
    python tests/bench/training.py --systems "codecria recomputed" --size 110m --context 16384 \
        --rows 1 --rounds 1 --warm-up 0

Each system lives in a process of its own and trains the same random tokens with AdamW and clipping.
In every round each system does a few steps in turn while the others wait, so a change of the
machine's speed falls on all of them; what is compared is the ratio within a round, its median over
the rounds. Compilation happens before the first round and is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SYSTEMS = ("codecria", "codecria compiled", "transformers", "transformers compiled", "litgpt")
RECOMPUTED = "codecria recomputed"  # activations anew in backward; by --systems


def build(system: str, size: str, context: int, rows: int, documents: int) -> Callable[[], float]:
    """One training step of a system, as a function that returns the loss."""
    import torch

    torch.manual_seed(0)
    ids = torch.randint(32_000, (rows, context))
    targets = torch.randint(32_000, (rows, context))
    if system.startswith("codecria"):
        model, loss_of = _codecria(system, size, ids, targets, documents)
    elif system.startswith("transformers"):
        model, loss_of = _transformers(system, size, ids, targets)
    else:
        model, loss_of = _litgpt(size, ids, targets)
    fused = (
        {"fused": True} if system.endswith("compiled") or system in ("codecria", RECOMPUTED) else {}
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **fused
    )

    def step() -> float:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def _codecria(system: str, size: str, ids: Any, targets: Any, documents: int) -> Any:
    import torch

    from codecria.core.model.attention import PackedAttention, pack_offsets
    from codecria.core.model.config import preset
    from codecria.core.model.head import Targets
    from codecria.core.model.transformer import Transformer, compiled
    from codecria.core.training.allocator import keep_freed_memory
    from codecria.core.training.trainer import make_deterministic

    make_deterministic()
    keep_freed_memory()
    model = Transformer(preset(size))
    model.initialise(0)
    model.recompute = system == RECOMPUTED
    B, T = ids.shape
    positions = torch.arange(T).expand(B, T)
    offsets = None
    if documents > 1:
        lengths = [T // documents] * documents
        offsets = pack_offsets([lengths] * B, size=B * T + 1)
    forward = compiled(model) if system.endswith("compiled") else model

    def loss_of() -> Any:
        wanted = Targets(targets, count=targets.numel())
        return forward(ids, positions, PackedAttention(offsets), wanted)[0]

    return model, loss_of


def _transformers(system: str, size: str, ids: Any, targets: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from codecria.core.model.config import preset

    raw = preset(size).to_hugging_face(dtype="float32")
    model = LlamaForCausalLM(LlamaConfig(**raw)).train()
    forward = torch.compile(model) if system.endswith("compiled") else model
    return model, lambda: forward(input_ids=ids, labels=targets, use_cache=False).loss


def _litgpt(size: str, ids: Any, targets: Any) -> Any:
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    dim, layers, heads, hidden = {
        "1m": (128, 4, 4, 352),
        "15m": (288, 6, 6, 768),
        "42m": (512, 8, 8, 1536),
        "110m": (768, 12, 12, 2048),
    }[size]
    config = Config(
        block_size=ids.shape[1],
        vocab_size=32_000,
        padded_vocab_size=32_000,
        n_layer=layers,
        n_head=heads,
        n_embd=dim,
        intermediate_size=hidden,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight  # tied, as in the shapes compared
    return model, lambda: chunked_cross_entropy(model(ids), targets, chunk_size=0)


def worker(arguments: argparse.Namespace) -> None:
    """Build the system, then answer each line on stdin (a number of steps) with their seconds."""
    step = build(
        arguments.worker, arguments.size, arguments.context, arguments.rows, arguments.documents
    )
    for line in sys.stdin:
        start = time.perf_counter()
        losses = [step() for _ in range(int(line))]
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({"seconds": seconds, "loss": losses[-1], "gb": memory}), flush=True)


def ask(process: subprocess.Popen[str], steps: int) -> dict[str, float]:
    """Let a worker do some steps."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a worker ended: {process.args}")
    found: dict[str, float] = json.loads(answer)
    return found


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", default="15m")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--documents", type=int, default=1, help="packed in each row of ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of each system in a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the first round")
    parser.add_argument("--systems", default=",".join(SYSTEMS[:4]))
    parser.add_argument("--litgpt-python", help="an interpreter that has litgpt; adds that system")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    systems = arguments.systems.split(",") + (["litgpt"] if arguments.litgpt_python else [])
    same = [f"--{name}={getattr(arguments, name)}" for name in ("size", "context", "rows")]
    same.append(f"--documents={arguments.documents}")
    workers = {
        system: subprocess.Popen(
            [
                arguments.litgpt_python if system == "litgpt" else sys.executable,
                __file__,
                *same,
                f"--worker={system}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for system in systems
    }
    if arguments.warm_up:
        for process in workers.values():
            ask(process, arguments.warm_up)  # compiles and warms up
    rounds = [
        {system: ask(process, arguments.steps) for system, process in workers.items()}
        for _ in range(arguments.rounds)
    ]
    for process in workers.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=30)
    tokens = arguments.steps * arguments.rows * arguments.context
    base = systems[0]
    result = {
        system: {
            "tokens_per_s": tokens / statistics.median(r[system]["seconds"] for r in rounds),
            "speed_over_" + base: statistics.median(
                r[base]["seconds"] / r[system]["seconds"] for r in rounds
            ),
            "peak_gb": max(r[system]["gb"] for r in rounds),
        }
        for system in systems
    }
    if arguments.json:
        print(json.dumps({"arguments": vars(arguments), "result": result}, indent=2))
        return
    print(f"{arguments.size}, {arguments.rows} rows of {arguments.context}, float32")
    print(f"{'system':24} {'tokens/s':>9} {'over ' + base:>14} {'peak GB':>8}")
    for system, row in result.items():
        speed, ratio, memory = row.values()
        print(f"{system:24} {speed:9.0f} {ratio:14.2f} {memory:8.2f}")


if __name__ == "__main__":
    main()
