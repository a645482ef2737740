"""Samples of a model: the samples of a task share its prompt's prefill, a batch at a time.

Sample n of a task is drawn from (seed, task id, n) alone, so an evaluation that was stopped goes on
with the same samples. (Texts repeat on one build and thread count, as everywhere.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from codecria.core.inference.engine import Completion, Limits, complete
from codecria.core.inference.generator import Generator
from codecria.core.inference.sampling import Sampling
from codecria.core.seed import seed_of

from .problems import Problem
from .protocol import Protocol
from .samples import Sample
from .tasks import Asked, Asker

BATCH = 16  # samples decoded side by side: bounds the key-value cache


def generate(
    generator: Generator,
    asker: Asker,
    problems: Sequence[Problem],
    protocol: Protocol,
    *,
    known: Collection[tuple[str, int]] = (),
    batch: int = BATCH,
) -> Iterator[list[Sample]]:
    """The samples of every problem in order, in batches.

    Args:
        generator: the model.
        asker: of the protocol and the model's tokenizer.
        problems: asked for.
        protocol: says how many samples and how they are drawn.
        known: (task id, sample) that exist already.
        batch: at most so many at a time. A batch with one missing is made whole, for its samples
            to be the same.
    """
    for problem in problems:
        asked: Asked | None = None
        for first in range(0, protocol.samples, batch):
            numbers = range(first, min(first + batch, protocol.samples))
            missing = {n for n in numbers if (problem.task_id, n) not in known}
            if not missing:
                continue
            asked = asked or asker.ask(problem)
            made = _batch(generator, asker, problem, asked, protocol, numbers)
            yield [sample for sample in made if sample.number in missing]


def _batch(
    generator: Generator,
    asker: Asker,
    problem: Problem,
    asked: Asked,
    protocol: Protocol,
    numbers: range,
) -> list[Sample]:
    """Samples of these numbers, in order."""
    context = protocol.context or generator.model.config.max_context
    if len(asked.ids) >= context:
        # The model cannot be asked, so it has not solved the task; others go on.
        return [
            Sample(
                task_id=problem.task_id,
                number=n,
                text="",
                tokens=0,
                finish_reason="prompt_too_long",
            )
            for n in numbers
        ]
    sampling = Sampling(
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        seed=seed_of(protocol.seed, problem.task_id),
    )
    limits = Limits(
        max_tokens=protocol.max_tokens,
        stops=asked.stops,
        samples=len(numbers),
        first=numbers.start,
        context=context,
    )
    events = complete(
        generator.model,
        asked.ids,
        new_stream=generator.tokenizer.stream,
        sampling=sampling,
        limits=limits,
        ends=asked.ends,
    )
    made = [
        _sample(asker, problem, asked, number, event)
        for number, event in events
        if not isinstance(event, str)
    ]
    return sorted(made, key=lambda sample: sample.number)


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
