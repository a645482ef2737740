"""Long-context quality: perplexity by position and key retrieval, of one model or two.

The evaluation of Code Llama, section 3.3 and appendix G.2, optionally beyond the trained context:
`perplexity.py` reads long texts, `retrieval.py` asks for one function among many.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.evaluation.likelihood.perplexity import (
    Sums,
    aligned,
    borders,
    paired_differences,
    rows,
    sums,
    token_bytes,
    token_losses,
)
from codecria.core.inference.generator import Generator, tokenizer_of
from codecria.core.inference.sharing import ALONE, Sharing, Stopped
from codecria.core.model.config import ModelConfig
from codecria.data.errors import UsageError, UserError
from codecria.data.files import digest_bytes
from codecria.data.progress import Progress
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import retrieval
from .retrieval import PAPER_POSITIONS
from .texts import (
    PAPER_MIN_BYTES,
    Cut,
    Ids,
    Text,
    gather,
    joined,
    open_split,
    texts_of_files,
    texts_of_shards,
)

FUNCTIONS_WANTED = 512  # of a filler taken out of the texts: enough for prompts that differ
TEXTS_LOOKED_AT = 4_096  # for them, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is measured.

    Attributes:
        data: a shard folder, or None.
        files: source files, read instead of `data`.
        split: of `data`; None takes validation, or train where that is empty.
        min_bytes: documents of `data` that are shorter are left out, unless joined.
        join: concatenate documents of a source into long texts.
        whole: only texts that reach the last position.
        max_tokens: tokens scored in total.
        multiples: context lengths to test, as multiples of the trained one.
        ends: ends of the buckets, in tokens; replaces `multiples`.
        retrieval: whether key retrieval is measured.
        retrieval_lengths: tokens of its prompts; empty takes those of `multiples` or `ends`.
        retrieval_positions: of the key, from 0 to 1.
        examples: prompts of each length and position.
        filler: solutions the prompts are made of; None takes functions of the texts.
        seed: random seed of the order of texts, the prompts and the intervals.
    """

    data: Path | None = None
    files: tuple[Path, ...] = ()
    split: str | None = None
    min_bytes: int = PAPER_MIN_BYTES
    join: bool = False
    whole: bool = False
    max_tokens: int = 100_000
    multiples: tuple[float, ...] = (1, 2, 4)
    ends: tuple[int, ...] = ()
    retrieval: bool = True
    retrieval_lengths: tuple[int, ...] = ()
    retrieval_positions: tuple[float, ...] = PAPER_POSITIONS
    examples: int = 16
    filler: Path | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model before it is loaded; make one with `ModelSpec.open`.

    Attributes:
        path: as given.
        checkpoint: found there.
        tokenizer: beside it.
        config: its shape, with the rotary base and scale asked for.
    """

    path: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    config: ModelConfig

    @classmethod
    def open(
        cls, path: Path, *, theta: float | None = None, rope_scale: float | None = None
    ) -> Self:
        """Find a checkpoint.

        Args:
            path: a checkpoint folder or a run folder.
            theta, rope_scale: instead of its own; None keeps them.

        Raises:
            UserError: it is no checkpoint or has no tokenizer, or theta makes no sense.
        """
        checkpoint = Checkpoint.open(path)
        own = checkpoint.config
        config = replace(
            own,
            rope_theta=own.rope_theta if theta is None else theta,
            rope_scale=own.rope_scale if rope_scale is None else rope_scale,
        )
        tokenizer = tokenizer_of(path)
        return cls(path=path, checkpoint=checkpoint, tokenizer=tokenizer, config=config)

    def load(self, *, device: str, dtype: str, sharing: Sharing = ALONE) -> Generator:
        """The model with its rotary base and scale; see `Generator.load`.

        Raises:
            UserError: the weights or the tokenizer do not fit.
            UsageError: processes share its layers, and its rotary base or scale is not its own.
        """
        if sharing.tp > 1 and self.config != self.checkpoint.config:
            raise UsageError(
                "another rotary base or scale is for processes that hold whole models",
                hint="leave tp out of --mesh, or --theta and --rope-scale",
            )
        found = Generator.load(
            self.path, device=device, dtype=dtype, engine="torch", sharing=sharing
        )
        found.model.config = self.config
        return found

    def as_json(self) -> dict[str, Any]:
        """What it is, its weights' digest included: its files are read whole."""
        return {
            "path": str(self.path),
            "digest": self.checkpoint.digest(),
            "trained_context": self.config.max_context,
            "rope_theta": self.config.rope_theta,
            "rope_scale": self.config.rope_scale,
            "own_rope_theta": self.checkpoint.config.rope_theta,
            "own_rope_scale": self.checkpoint.config.rope_scale,
            "parameters": self.config.parameters,
            "tokenizer": self.tokenizer.digest,
            "lineage": self.checkpoint.lineage(),
        }


def measure(
    request: Request,
    specs: Sequence[ModelSpec],
    *,
    device: str,
    dtype: str,
    note: Callable[[str], None],
    progress: Callable[[Progress], None],
    sharing: Sharing = ALONE,
) -> dict[str, Any]:
    """Perplexity by position and the retrieval grid of one model or two, as JSON values.

    The models are loaded one after the other. The buckets follow the first one's trained context.

    Args:
        request: what is measured.
        specs: one or two.
        device, dtype: see `Generator.load`.
        note: takes a line for the user.
        progress: called as texts are read and prompts answered.
        sharing: the processes that read and answer.

    Raises:
        UserError: there is too little to read, or a model does not load.
    """
    first = specs[0]
    shards = None if request.data is None else open_split(request.data, request.split)
    ends = borders(first.config.max_context, multiples=request.multiples, ends=request.ends)
    cuts = _cuts(request, shards, first, ends[-1], note) if shards or request.files else []
    readings = [_reading(cuts, ends, first, spec) for spec in specs]
    same = all(c.tokenizer.digest == first.tokenizer.digest for c in specs)
    if not same:
        note(
            "the tokenizers differ: the models are compared in bits per byte, at positions in"
            " A's tokens"
        )
    functions = _functions(request, shards) if request.retrieval else []
    fillers = [retrieval.measured(functions, c.tokenizer) for c in specs]
    lengths = _retrieval_lengths(request, specs, fillers, note)
    if not cuts and not lengths:
        raise UserError(
            "nothing to measure: no texts to read and no retrieval",
            hint="name texts with --data or --file, or longer --retrieval-lengths",
        )
    models: list[dict[str, Any]] = []
    found: list[Sums] = []
    cells: list[list[dict[str, Any]]] = []
    for n, spec in enumerate(specs):
        generator = spec.load(device=device, dtype=dtype, sharing=sharing)
        weight = generator.model.tok_embeddings
        kind = {"device": str(weight.device), "dtype": str(weight.dtype).removeprefix("torch.")}
        models.append(spec.as_json() | kind)
        name = f" {'AB'[n]}" if len(specs) > 1 else ""
        if cuts:
            count = _Counter(f"reading{name}", readings[n].tokens, progress)
            losses = []
            texts = ((spec.config, ids) for ids in readings[n].ids)
            for each in generator.map(_losses, texts, together=True):
                losses.append(each)
                count.add(len(each))
            found.append(sums(losses, readings[n].sizes, readings[n].ends))
        if lengths:
            total = len(lengths) * len(request.retrieval_positions) * request.examples
            count = _Counter(f"asking{name}", total, progress)
            ends_here = frozenset(spec.checkpoint.end_ids(spec.tokenizer))
            cells.append(
                retrieval.grid(
                    functools.partial(_answers, generator, spec.config, ends_here),
                    spec.tokenizer,
                    fillers[n],
                    lengths=lengths,
                    positions=request.retrieval_positions,
                    examples=request.examples,
                    seed=request.seed,
                    done=count.one,
                )
            )
        del generator, weight  # before the next is loaded
    return {
        "task": "long-context",
        "models": models,
        "settings": _settings(request),
        "data": _data(request, shards, cuts),
        "perplexity": _perplexity(found, ends, same=same, seed=request.seed) if cuts else None,
        "retrieval": _retrieval(cells, request.examples, len(functions)) if lengths else None,
    }


def _losses(
    generator: Generator,
    item: tuple[ModelConfig, Ids],
    stopped: Stopped,  # noqa: ARG001 - a text is read whole
) -> npt.NDArray[np.float32]:
    """The losses of a text under a rotary base and scale; a `Work`."""
    generator.model.config, ids = item
    return token_losses(generator.model, ids)


def _answers(
    generator: Generator,
    config: ModelConfig,
    ends: frozenset[int],
    prompts: Iterator[retrieval.Prompt],
) -> Iterator[retrieval.Answer]:
    """The model's answers to prompts, in their order."""
    return generator.map(_answer, ((config, ends, prompt) for prompt in prompts))


def _answer(
    generator: Generator,
    item: tuple[ModelConfig, frozenset[int], retrieval.Prompt],
    stopped: Stopped,  # noqa: ARG001 - a prompt is answered at once
) -> retrieval.Answer:
    """The answer to one prompt under a rotary base and scale; a `Work`."""
    generator.model.config, ends, prompt = item
    return retrieval.ask(generator.runner, generator.tokenizer, prompt, ends=ends)


class _Counter:
    """Counts what is done and reports it."""

    def __init__(self, stage: str, total: int, progress: Callable[[Progress], None]) -> None:
        self.stage, self.total, self.progress, self.so_far = stage, total, progress, 0

    def add(self, count: int) -> None:
        self.so_far += count
        self.progress(Progress(stage=self.stage, done=self.so_far, total=self.total, resumed=0))

    def one(self) -> None:
        self.add(1)


def _texts(request: Request, shards: ShardSet | None, *, min_bytes: int) -> Iterator[Text]:
    if shards is None:
        return texts_of_files(request.files)
    return texts_of_shards(shards, min_bytes=min_bytes, seed=request.seed)


def _cuts(
    request: Request,
    shards: ShardSet | None,
    first: ModelSpec,
    longest: int,
    note: Callable[[str], None],
) -> list[Cut]:
    """The texts that are read, by the first model's tokenizer.

    Raises:
        UserError: there are none.
    """
    texts = _texts(request, shards, min_bytes=0 if request.join else request.min_bytes)
    if request.join:
        texts = joined(texts, tokens=longest, tokenizer=first.tokenizer)
    found = gather(
        texts,
        first.tokenizer,
        longest=longest,
        max_tokens=request.max_tokens,
        whole=request.whole,
    )
    if not found:
        raise UserError(_nothing_found(request, shards, longest), hint=_more(request, shards))
    tokens, most = sum(len(c.ids) - 1 for c in found), max(len(c.ids) - 1 for c in found)
    if shards is not None and tokens < request.max_tokens:  # files are what they are
        held = f"{_texts_counted(len(found))} with {tokens:,} of {request.max_tokens:,} tokens"
        more = _more(request, shards)
        note(f"the {shards.split} split of {request.data}: {held}" + (f"; {more}" if more else ""))
    if most <= first.config.max_context:
        note(f"no text is longer than the trained context: the longest has {most:,} tokens")
    elif most < longest:
        note(f"no text reaches {longest:,} tokens: the longest has {most:,}")
    return found


def _texts_counted(count: int) -> str:
    return f"{count:,} text" if count == 1 else f"{count:,} texts"


def _nothing_found(request: Request, shards: ShardSet | None, longest: int) -> str:
    if request.whole:
        return (
            f"no text has the {longest:,} tokens that --whole asks for,"
            f" within the {request.max_tokens:,} of --max-tokens"
        )
    if shards is None:
        return "the files hold no text"
    if request.join:
        return f"the {shards.split} split of {request.data} holds no text"
    return (
        f"the {shards.split} split of {request.data} has no document of"
        f" {request.min_bytes:,} bytes or more"
    )


def _more(request: Request, shards: ShardSet | None) -> str:
    """Options that would give more text."""
    if not request.join:
        return "--join makes long texts of short ones" + (
            ", --min-bytes takes shorter ones" if shards is not None else ""
        )
    return "--split train has more" if shards is not None and shards.split != "train" else ""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one model reads: of each text its ids, the bytes of each, and where buckets end."""

    ids: list[Ids]
    sizes: list[npt.NDArray[np.int64]]
    ends: list[list[int]]

    @property
    def tokens(self) -> int:
        return sum(len(ids) - 1 for ids in self.ids)


def _reading(cuts: Sequence[Cut], ends: list[int], first: ModelSpec, spec: ModelSpec) -> _Reading:
    """The texts for a model: the same ids if its tokenizer is the first one's."""
    own = [token_bytes(first.tokenizer, cut.ids) for cut in cuts]
    if spec.tokenizer.digest == first.tokenizer.digest:
        return _Reading([cut.ids for cut in cuts], own, [ends for _ in cuts])
    ids = [spec.tokenizer.encode_array(cut.text.text, bos=True) for cut in cuts]
    sizes = [token_bytes(spec.tokenizer, each) for each in ids]
    return _Reading(ids, sizes, [aligned(ends, a, b) for a, b in zip(own, sizes, strict=True)])


def _functions(request: Request, shards: ShardSet | None) -> list[str]:
    """The functions that fill the retrieval prompts.

    Raises:
        UserError: the filler cannot be read, or holds none.
    """
    if request.filler is not None:
        return retrieval.filler_in(request.filler)
    found: dict[str, None] = {}
    for number, text in enumerate(_texts(request, shards, min_bytes=0), start=1):
        found.update(dict.fromkeys(retrieval.functions_in(text.text)))
        if len(found) >= FUNCTIONS_WANTED or number >= TEXTS_LOOKED_AT:
            break
    return list(found)


def _retrieval_lengths(
    request: Request,
    specs: Sequence[ModelSpec],
    fillers: Sequence[Sequence[retrieval.Filler]],
    note: Callable[[str], None],
) -> list[int]:
    """The lengths of prompts to make; default lengths that are too short are left out.

    Raises:
        UserError: one that was asked for is too short.
    """
    if not request.retrieval:
        return []
    if not fillers[0]:
        note("no key retrieval: the texts hold no Python functions; name some with --filler")
        return []
    least = max(
        retrieval.shortest(filler, c.tokenizer) for filler, c in zip(fillers, specs, strict=True)
    )
    if request.retrieval_lengths:
        if (shortest := min(request.retrieval_lengths)) < least:
            raise UserError(
                f"a retrieval prompt of {shortest:,} tokens is too short: it needs {least:,}",
                hint="pass longer --retrieval-lengths, or a --filler of shorter functions",
            )
        return list(request.retrieval_lengths)
    trained = specs[0].config.max_context
    wanted = request.ends or tuple(round(m * trained) for m in request.multiples)
    left_out = [length for length in wanted if length < least]
    if left_out:
        note(
            "no key retrieval at "
            + ", ".join(f"{length:,}" for length in left_out)
            + f" tokens: a prompt has at least {least:,}"
        )
    return [length for length in wanted if length >= least]


def prompts(
    request: Request, spec: ModelSpec, *, note: Callable[[str], None]
) -> Iterator[retrieval.Prompt]:
    """The prompts of the grid, the first of every cell first, without any model.

    Raises:
        UserError: there is no filler, or a length is too short.
    """
    shards = None if request.data is None else open_split(request.data, request.split)
    filler = retrieval.measured(_functions(request, shards), spec.tokenizer)
    lengths = _retrieval_lengths(request, [spec], [filler], note)
    grid = itertools.product(range(request.examples), lengths, request.retrieval_positions)
    for example, length, position in grid:
        yield retrieval.make_prompt(
            spec.tokenizer,
            filler,
            length=length,
            position=position,
            seed=request.seed,
            example=example,
        )


def _settings(request: Request) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in asdict(request).items()}


def _data(request: Request, shards: ShardSet | None, cuts: Sequence[Cut]) -> dict[str, Any]:
    return {
        "shards": shards.digest if shards is not None else None,
        "split": shards.split if shards is not None else None,
        "texts": len(cuts),
        "documents": sum(cut.text.documents for cut in cuts),
        "joined": request.join,
        "digest": digest_bytes(*(cut.text.text.encode() for cut in cuts)),
    }


def _perplexity(
    found: Sequence[Sums], ends: Sequence[int], *, same: bool, seed: int
) -> dict[str, Any]:
    by_model = [rows(each, seed=seed) for each in found]
    table = [
        {"from": first + 1, "to": last, "models": [model[n] for model in by_model]}
        for n, (first, last) in enumerate(itertools.pairwise(ends))
    ]
    if len(found) == 2:
        against = paired_differences(found[0], found[1], same_tokens=same, seed=seed)
        table = [row | {"difference": d} for row, d in zip(table, against, strict=True)]
    return {"measure": "perplexity" if same else "bits_per_byte", "rows": table}


def _retrieval(
    cells: Sequence[Sequence[dict[str, Any]]], examples: int, functions: int
) -> dict[str, Any]:
    shared = ("length", "position")
    return {
        "chance": retrieval.CHANCE,
        "chance_rank": (len(retrieval.VALUES) + 1) / 2,
        "examples": examples,
        "functions": functions,
        "cells": [
            {key: each[0][key] for key in shared}
            | {"models": [{k: v for k, v in one.items() if k not in shared} for one in each]}
            for each in zip(*cells, strict=True)
        ],
    }
