"""Samples of a model, a batch at a time; the samples of a task share its prompt's prefill.

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
    """The samples of every problem in order, in batches.

    Args:
        generator: the model.
        asker: of the protocol and the model's tokenizer.
        problems: asked for.
        protocol: says how many samples and how they are drawn.
        known: (task id, sample) that exist already.
        batch: samples of one or several problems that are decoded side by side. A batch with one
            missing is made whole, for its samples to be the same.
        stopped: looked at after every step; once it is true, nothing more comes.
    """
    wanted = ((problem, n) for problem in problems for n in range(protocol.samples))
    while part := list(itertools.islice(wanted, batch)):
        missing = [(problem.task_id, n) not in known for problem, n in part]
        if any(missing):
            made = _batch(generator, asker, part, protocol, stopped)
            if stopped():
                return
            yield list(itertools.compress(made, missing))


def _batch(
    generator: Generator,
    asker: Asker,
    part: Sequence[tuple[Problem, int]],
    protocol: Protocol,
    stopped: Callable[[], bool],
) -> list[Sample]:
    """The samples of these problems and numbers, in order; none where it was stopped."""
    context = protocol.context or generator.config.max_context
    limits = Limits(max_tokens=protocol.max_tokens, context=context)
    prompts: dict[str, Asked] = {}
    engine = generator.engine(batch=len(part))
    places: dict[int, int] = {}
    samples: dict[int, Sample] = {}
    for place, (problem, number) in enumerate(part):
        if problem.task_id not in prompts:
            prompts[problem.task_id] = asker.ask(problem)
        asked = prompts[problem.task_id]
        if len(asked.ids) >= context:
            # The model cannot be asked, so it has not solved the task; others go on.
            samples[place] = Sample(
                task_id=problem.task_id,
                number=number,
                text="",
                tokens=0,
                finish_reason="prompt_too_long",
            )
            continue
        sampling = Sampling(
            temperature=protocol.temperature,
            top_p=protocol.top_p,
            seed=seed_of(protocol.seed, problem.task_id),
        )
        stopping = replace(limits, stops=asked.stops)
        added = engine.add(
            asked.ids, sampling=sampling, limits=stopping, ends=asked.ends, sample=number
        )
        places[added] = place
    while engine.busy:
        if stopped():
            return []
        for added, event in engine.step():
            if not isinstance(event, str):
                problem, number = part[places[added]]
                asked = prompts[problem.task_id]
                samples[places[added]] = _sample(asker, problem, asked, number, event)
    return [samples[place] for place in range(len(part))]


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
