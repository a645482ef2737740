"""Samples of a model, decoded side by side; those of a task share its prompt's prefill.

Sample n of a task is drawn from (seed, task id, n) alone, so an evaluation that was stopped goes on
with the same samples. (Texts repeat on one build and thread count, as everywhere.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import BATCH
from codecria.core.inference.generator import Generator
from codecria.core.inference.refill import Request, completions, window_of
from codecria.core.inference.sampling import Sampling
from codecria.core.seed import seed_of

from .problems import Problem
from .protocol import Protocol
from .samples import Sample
from .tasks import Asked, Asker


def generate(
    generator: Generator,
    asker: Asker,
    problems: Sequence[Problem],
    protocol: Protocol,
    *,
    known: Collection[tuple[str, int]] = (),
    batch: int = BATCH,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[list[Sample]]:
    """The samples of every problem in order, in batches; only those that are missing.

    Args:
        generator: the model.
        asker: of the protocol and the model's tokenizer.
        problems: asked for.
        protocol: says how many samples and how they are drawn.
        known: (task id, sample) that exist already.
        batch: samples of one or several problems that are decoded side by side; one that ends makes
            room for the next (`refill.py`).
        stopped: looked at after every step; once it is true, nothing more comes.
    """
    context = protocol.context or generator.config.max_context
    limits = Limits(max_tokens=protocol.max_tokens, context=context)
    asked_of: dict[str, Asked] = {}

    def request(item: tuple[Problem, int]) -> Request | None:
        problem, number = item
        if problem.task_id not in asked_of:
            asked_of[problem.task_id] = asker.ask(problem)
        asked = asked_of[problem.task_id]
        if len(asked.ids) >= context:
            return None
        sampling = Sampling(
            temperature=protocol.temperature,
            top_p=protocol.top_p,
            seed=seed_of(protocol.seed, problem.task_id),
        )
        stopping = replace(limits, stops=asked.stops)
        return Request(
            prompt=asked.ids, sampling=sampling, limits=stopping, ends=asked.ends, sample=number
        )

    def sample(item: tuple[Problem, int], completion: Completion | None) -> Sample:
        problem, number = item
        if completion is None:
            return _too_long(problem, number)
        return _sample(asker, problem, asked_of[problem.task_id], number, completion)

    wanted = ((problem, n) for problem in problems for n in range(protocol.samples))
    parts = iter(lambda: list(itertools.islice(wanted, batch)), [])
    for part in completions(
        generator,
        parts,
        request,
        is_missing=lambda item: (item[0].task_id, item[1]) not in known,
        batch=batch,
        window=window_of(len(problems) * protocol.samples // batch),
        stopped=stopped,
    ):
        yield [sample(item, completion) for item, completion in part]


def _too_long(problem: Problem, number: int) -> Sample:
    """The model cannot be asked, so it has not solved the task; others go on."""
    return Sample(
        task_id=problem.task_id,
        number=number,
        text="",
        tokens=0,
        finish_reason="prompt_too_long",
    )


def _sample(
    asker: Asker, problem: Problem, asked: Asked, number: int, completion: Completion
) -> Sample:
    # Longer than the text where a stop string was taken off its end.
    whole = asker.tokenizer.decode_continuation(completion.ids)
    cut = any(stop in whole for stop in asked.stops)
    written = asker.written(problem, asked, completion.text, cut=cut)
    return Sample(
        task_id=problem.task_id,
        number=number,
        text=written.text,
        whole=written.is_whole,
        said=completion.text if written.text != completion.text else None,
        extracted=written.extracted,
        tokens=len(completion.ids),
        finish_reason=completion.finish_reason,
    )
