"""Evaluation and self-instruct on the native engine beside PyTorch, and with the engine refilled.

    python tests/bench/evaluation.py --tokenizer tokenizer.model --models made \\
        --problems HumanEval.jsonl.gz [--size 15m] [--limit 64] [--tokens 128] [--rounds 3]

Of one model with random weights (or --model), in each round one after the other:

    evaluate        `evaluate humaneval --generate-only`, a process of its own: seconds
    self-instruct   8 solutions to each question, as `self-instruct --model` asks for them: seconds
    refill          the same sequences in fixed batches and with the engine refilled: decode steps,
                    which are counted and do not depend on the machine, and seconds

Random weights never end a text, so the lengths of `refill` are drawn: geometric, a quarter of the
longest on average. In float32 the texts of both engines are compared.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from engine import random_model

BATCH = 16
SOLUTIONS = 8  # of a question


# --- one measurement, in a process of its own -----------------------------------------------------


def evaluated(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an evaluation from the shell, and a digest of its texts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples.jsonl"
        command = ["evaluate", "humaneval", "-m", str(options.model), "--device", "cpu"]
        command += ["--engine", engine, "--dtype", options.dtype, "--generate-only"]
        command += ["--problems", str(options.problems), "--limit", str(options.limit)]
        command += ["--max-tokens", str(options.tokens), "--out", str(out), "--quiet"]
        command += ["--threads", str(options.threads)]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "codecria.cli", *command],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - began
        texts = [json.loads(line)["completion"] for line in out.read_text().splitlines()]
    return {"seconds": seconds, "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest()}


def answered(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a stage of self-instruct, the model loaded, and a digest of its texts."""
    from codecria.core.inference.loading import Compute
    from codecria.core.self_instruct.local import LocalModel
    from codecria.core.self_instruct.models import Ask
    from codecria.core.self_instruct.settings import Settings
    from codecria.data.formats.chat import Message

    compute: Any = Compute(
        device="cpu", engine=engine, dtype=options.dtype, threads=options.threads
    )
    model = LocalModel(options.model, form="few-shot", compute=compute)
    asks = [
        Ask(
            stage="solutions",
            key=name,
            dialog=[Message(role="user", content=text)],
            samples=SOLUTIONS,
            settings=Settings(solutions_tokens=options.tokens),
            model=model.facts,
            form=model.form,
        )
        for name, text in _prompts(options)[: options.limit // SOLUTIONS]
    ]
    list(model.answer(asks[:1], ()))  # loads, and touches its memory
    began = time.perf_counter()
    texts = [reply.text for part in model.answer(asks, ()) for reply in part]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest()}


def refilled(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """Steps and seconds of the same sequences in fixed batches, and with the engine refilled."""
    from codecria.core.inference.decoding import Completion, Limits
    from codecria.core.inference.generator import Generator
    from codecria.core.inference.refill import Request, completions
    from codecria.core.inference.sampling import Sampling

    name: Any = engine
    generator = Generator.load(
        options.model, device="cpu", engine=name, dtype=options.dtype, threads=options.threads
    )
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.geometric(4 / options.tokens, options.limit), options.tokens)
    requests = [
        Request(
            prompt=generator.tokenizer.encode(text, bos=True),
            sampling=Sampling(temperature=0.8, top_p=0.95, seed=number),
            limits=Limits(max_tokens=int(length)),
            ends=frozenset(),
        )
        for number, ((_, text), length) in enumerate(
            zip(itertools.cycle(_prompts(options)), lengths, strict=False)
        )
    ]
    groups = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
    steps = 0
    decode = generator.runner.decode

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return decode(*arguments)

    generator.runner.decode = counted  # type: ignore[method-assign]

    def run(parts: list[list[list[Request]]]) -> tuple[float, int, list[str]]:
        nonlocal steps
        began, steps, texts = time.perf_counter(), 0, []
        for part in parts:
            for group in completions(generator, part, lambda one: one, batch=BATCH):
                texts += [said.text for _, said in group if isinstance(said, Completion)]
        return time.perf_counter() - began, steps, texts

    run([groups[:1]])
    before, after = run([[group] for group in groups]), run([groups])
    return {
        "batches_s": before[0],
        "refilled_s": after[0],
        "batches_steps": before[1],
        "refilled_steps": after[1],
        "same": before[2] == after[2],
    }


def _prompts(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(id, prompt) of the problems."""
    from codecria.core.evaluation.benchmarks import tasks
    from codecria.core.evaluation.benchmarks.registry import TASKS

    found = tasks.load(TASKS["humaneval"], options.problems)
    return [(problem.task_id, problem.before) for problem in found.problems][: options.limit]


MEASURES = {"evaluate": evaluated, "self-instruct": answered, "refill": refilled}


# --- rounds and table -----------------------------------------------------------------------------


def child(what: str, engine: str) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", what, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} on {engine} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compared(what: str, options: argparse.Namespace) -> list[str]:
    """Both engines in turn; a line of the table."""
    found: dict[str, list[dict[str, Any]]] = {"native": [], "torch": []}
    for number in range(options.rounds):
        for engine in sorted(found, reverse=bool(number % 2)):
            found[engine].append(child(what, engine))
    own, other = ([one["seconds"] for one in found[name]] for name in ("native", "torch"))
    ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
    same = {one["texts"] for ones in found.values() for one in ones}
    medians = [f"{statistics.median(times):.2f}" for times in (own, other)]
    return [
        f"{what}, s: native, torch",
        *medians,
        f"{ratio:.2f}",
        "yes" if len(same) == 1 else "no",
    ]


def main() -> None:
    """Parse the options, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="Llama 2's tokenizer.model")
    parser.add_argument("--models", type=Path, help="folder of the models made")
    parser.add_argument("--model", type=Path, help="a checkpoint, instead of random weights")
    parser.add_argument("--problems", type=Path, required=True, help="HumanEval.jsonl.gz")
    parser.add_argument("--size", default="15m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=int, default=64, help="sequences of a measurement")
    parser.add_argument("--tokens", type=int, default=128, help="the longest completion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", default=",".join(MEASURES))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is None:
        if options.models is None or options.tokenizer is None:
            parser.error("give --model, or --models and --tokenizer")
        options.model = options.models / options.size
        if not options.model.exists():
            random_model(options.model, options.size, options.tokenizer)
    if options.child:
        what, engine = options.child
        print(json.dumps(MEASURES[what](engine, options)))
        return
    print("| what | first | second | second / first | same texts |")
    print("| --- | ---: | ---: | ---: | --- |")
    show = functools.partial(print, flush=True)
    for what in options.what.split(","):
        if what != "refill":
            show("| " + " | ".join(compared(what, options)) + " |")
            continue
        for engine in ("native", "torch"):
            ones = [child(what, engine) for _ in range(options.rounds)]
            same = "yes" if all(one["same"] for one in ones) else "no"
            for unit in ("steps", "s"):
                pairs = [(one[f"refilled_{unit}"], one[f"batches_{unit}"]) for one in ones]
                medians = [
                    f"{statistics.median(values):,.4g}" for values in zip(*pairs, strict=True)
                ]
                ratio = statistics.median(b / a for a, b in pairs)
                title = f"refill on {engine}, {unit}: refilled, batches"
                show("| " + " | ".join([title, *medians, f"{ratio:.2f}", same]) + " |")


if __name__ == "__main__":
    main()
