"""`prepare-data`: sources to a shard set, in stages that resume.

Each stage (`runner.py`) maps a pass over partitions (`stages.py`); files lie
between them in `.work` inside the output folder, which the end removes. Whatever decides about a
document is a function of its text, its id and its place in the order of the sources, so neither
the number of workers nor the size of the partitions changes a byte of the result. Memory is bounded
by a partition.

With `append`, the shards that are there stay as they are and stand at the front as partitions that
never lose (`append.py`); new documents go to new shards, and a new manifest lists both.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from codecria.data.errors import UserError
from codecria.data.files import (
    locked,
    remove_leftovers,
)
from codecria.data.rows import shards
from codecria.data.tokenizer.model_file import MODEL_NAME
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import decontaminate
from .base import Base, old_problems
from .filters import Problems
from .intake import survey
from .publish import weigh
from .recipe import PrepareRecipe
from .runner import Engine, Run
from .sources import Source
from .stages import (
    acquire,
    connect,
)
from .work_folder import (
    BASE,
    IDENTITY_NAME,
    PIPELINE_VERSION,
    PROBLEMS_NAME,
    WORK,
    claim,
    finished,
    plain,
    refuse_damage,
    refuse_strangers,
    spool,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `prepare` did: the report, and whether the output was already there."""

    report: dict[str, Any]
    unchanged: bool


def prepare(
    sources: Sequence[Source],
    out: Path,
    recipe: PrepareRecipe,
    *,
    model: Path | None,
    benchmarks: Sequence[Path] = (),
    weights: Mapping[str, float] | None = None,
    append: bool = False,
    engine: Engine | None = None,
    strict: bool = False,
    force: bool = False,
    keep_work: bool = False,
    stdin: IO[bytes] | None = None,
) -> Outcome:
    """Make the shard set at `out`, resuming what an earlier run left there.

    Args:
        sources: what to read, in order of precedence among duplicates.
        out: the shard set's folder; complete only once its manifest is there.
        recipe: what decides the content; its `tokenizer` and `benchmarks` are filled in.
        model: the tokenizer to use, or None to train one of `recipe.vocab_size` pieces.
        benchmarks: files of evaluation problems that no document may hold.
        weights: of the groups, where there are several, for training on a mixture of them.
        append: add the sources to the set at `out`, by its own recipe (see `recipe_of`).
        engine: how the work is done.
        strict: damaged input (a broken record, a file that cannot be decoded) is an error.
        force: replace an output, or discard unfinished work, of other inputs or another recipe.
        keep_work: leave `.work` in place at the end.
        stdin: what the source `-` reads.

    Raises:
        UserError: nothing to read, nothing left, damage under `strict`, an output that differs, a
            folder that is not ours, another process at work on it, no space.
    """
    engine = engine or Engine()
    if append:
        model = next(iter(shards.sets_in(out).values())) / MODEL_NAME
    elif model is not None:
        given = Tokenizer.load(model)
        model, recipe = given.path, replace(recipe, tokenizer=given.digest, vocab_size=None)
    assert append or (model is None) != (recipe.vocab_size is None), "one tokenizer"
    problems = decontaminate.build(benchmarks, recipe.filters[Problems.key]) if benchmarks else None
    if append:
        problems = old_problems(out, recipe)
    elif problems is not None:
        recipe = replace(recipe, benchmarks=problems.digest)
    refuse_strangers(out)
    with locked(out):
        remove_leftovers(out)
        sources, spooled = spool(sources, out / WORK, stdin)
        sources = [replace(source, without=out) for source in sources]
        inputs = survey(sources, recipe, spooled)["sources"]
        onto = Base.open(out) if append else None
        identity = plain(
            {
                "recipe": recipe.to_json(),
                "inputs": inputs,
                "pipeline": PIPELINE_VERSION,
                **({"onto": onto.digest} if onto else {}),
            }
        )
        report = onto.holds(inputs) if onto else finished(out, identity, force=force)
        if report is not None:
            refuse_damage(report["dropped"], strict=strict)
            if weights:
                weigh(out, recipe, [*shards.sets_in(out)], weights)
            if not keep_work:
                shutil.rmtree(out / WORK, ignore_errors=True)
            return Outcome(report=report, unchanged=True)
        claim(out / WORK, identity, force=force)
        if onto is not None:
            onto.keep(out / WORK / BASE)
        if problems is not None:
            problems.save(out / WORK / PROBLEMS_NAME)
        make = partial(
            Run,
            work=out / WORK,
            sources=tuple(sources),
            recipe=recipe,
            identity=identity,
            lease=acquire(out / WORK),
            engine=engine,
            strict=strict,
            onto=onto,
            benchmarks=problems.facts() if problems is not None else None,
            weights=weights or {},
        )
        try:
            with connect(engine.runner, workers=engine.workers, address=engine.address) as mapper:
                report = make(mapper=mapper).make(out, model)
        except UserError:
            # The next try will have other settings; what this one finished still serves it.
            (out / WORK / IDENTITY_NAME).unlink(missing_ok=True)
            raise
        shutil.rmtree(out / WORK / BASE if keep_work else out / WORK, ignore_errors=keep_work)
        return Outcome(report=report, unchanged=False)
