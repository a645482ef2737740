"""Everything that processes share, once: run by one process, or as `python all_shared.py ...`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from codecria.core.evaluation.benchmarks import evaluate
from codecria.core.evaluation.benchmarks.protocol import Changes
from codecria.core.evaluation.likelihood.by_source import Reading
from codecria.core.evaluation.likelihood.by_source import measure as perplexity
from codecria.core.evaluation.long_context.measure import ModelSpec
from codecria.core.evaluation.long_context.measure import Request as LongRequest
from codecria.core.evaluation.long_context.measure import measure as long_context
from codecria.core.evaluation.text.likelihood import batch_likelihoods
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.loading import Compute
from codecria.core.inference.prefix_cache import PrefixCache
from codecria.core.inference.sampling import Sampling
from codecria.core.inference.sharing import ALONE, Sharing
from codecria.core.self_instruct.local import LocalModel
from codecria.core.self_instruct.models import Ask
from codecria.core.self_instruct.settings import settings_of
from codecria.data.formats.chat import Message

CPU = {"device": "cpu", "dtype": "float32"}
FUNCTIONS = "".join(f"def f{n}(x):\n    return x + {n}\n\n\n" for n in range(12))


def ignore(_: object) -> None:
    """For notes and progress."""


def everything(model: Path, folder: Path, problems: Path, sharing: Sharing) -> dict[str, Any]:
    """The texts and figures of what is shared, under names that tell which may round."""
    compute = Compute(engine="torch", threads=1, sharing=sharing, **CPU)  # type: ignore[arg-type]
    out = folder / "samples.jsonl"
    request = evaluate.Request(
        task="humaneval",
        problems=problems,
        model=model,
        preset="paper-sampled",
        changes=Changes(samples=3, max_tokens=10),
        out=out,
        generate_only=True,
        batch=4,
        compute=compute,
    )
    evaluate.evaluate(request, note=ignore, show=ignore)
    text = folder / "text.py"
    text.write_text(FUNCTIONS)
    read = perplexity(model, Reading(files=(text,), context=64), sharing=sharing, **CPU)
    long = long_context(
        LongRequest(
            files=(text,),
            join=True,
            ends=(64, 256),
            retrieval_lengths=(150,),
            retrieval_positions=(0.0, 1.0),
            examples=2,
        ),
        [ModelSpec.open(model)],
        note=ignore,
        progress=ignore,
        sharing=sharing,
        **CPU,
    )
    generator = Generator.computed(model, compute)
    asked = [[([1, 20, n], [[40], [41, 42, 43]])] for n in range(3, 9)]
    return {
        "samples": out.read_text(),
        "replies": replies(model, compute),
        "cached": cached(generator),
        "figures": [
            read["total"]["nats"],
            *(row["models"][0]["nll"] for row in long["perplexity"]["rows"]),
            *(cell["models"][0]["mean_rank"] for cell in long["retrieval"]["cells"]),
            *(x for one in generator.map(batch_likelihoods, asked) for row in one for x in row),
        ],
    }


def replies(model: Path, compute: Compute) -> list[str]:
    """What a model answers to self-instruct's questions."""
    local = LocalModel(model, form="few-shot", batch=2, compute=compute)
    settings = settings_of("verified", {"questions_tokens": 8})
    asks = [
        Ask(
            stage="questions",
            key=str(number),
            dialog=[Message(role="user", content="Ask.")],
            samples=1,
            settings=settings,
            model=local.facts,
            form="few-shot",
        )
        for number in range(7)
    ]
    return [reply.text for batch in local.answer(asks, frozenset()) for reply in batch]


def cached(generator: Generator) -> list[str]:
    """A prompt completed twice, the second time from what a prefix cache kept of the first."""
    found, known = [], PrefixCache()
    for seed in (0, 1):
        events = generator.complete(
            [1, *range(20, 60)],
            Sampling(temperature=0.9, seed=seed),
            Limits(max_tokens=12, samples=2),
            cache=known,
        )
        done = [event for _, event in events if isinstance(event, Completion)]
        assert done[0].cached_tokens == (32 if seed else 0), done
        found += sorted(one.text for one in done)
    return found


def main(model: Path, folder: Path, problems: Path, mesh: str) -> None:
    """Take part in a launch; the main process writes what came of it."""
    from codecria.core.ranks.launch import helping, leading
    from codecria.core.training.mesh import parse_mesh

    if os.environ["RANK"] != "0":
        assert helping() == 0
        return
    with leading() as ranks:
        wanted = parse_mesh(mesh, ranks.size)
        assert wanted is not None
        ranks.arrange(wanted, torch.device("cpu"))
        found = everything(model, folder, problems, ranks)
    (folder / "found.json").write_text(json.dumps(found))


def alone(model: Path, folder: Path, problems: Path) -> dict[str, Any]:
    """What one process makes."""
    return everything(model, folder, problems, ALONE)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4])
    os._exit(0)
