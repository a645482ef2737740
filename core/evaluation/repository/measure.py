"""What a model makes of the spans of a repository: completions, and the loss of what was written.

A model with infilling pieces sees the file around the span; one without sees what is before it.
Decoding is greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from codecria.core.evaluation.benchmarks.estimate import bootstrap, wilson
from codecria.core.evaluation.likelihood.perplexity import token_losses
from codecria.core.evaluation.text.metrics import edit_similarity
from codecria.core.inference.decoding import Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.refill import Request, completions, window_of
from codecria.core.inference.sampling import Sampling
from codecria.core.inference.sharing import ALONE, Sharing, Stopped
from codecria.data.files import atomic_write, json_line
from codecria.data.formats.infill import Infiller, Order
from codecria.data.formats.syntax import parses
from codecria.data.formats.window import Room, fit_completion, fit_infill
from codecria.data.progress import Progress

from .spans import KINDS, Span

Form = Literal["auto", "psm", "spm", "left"]
SPARE = 16  # tokens that a completion may be longer than half as long again as what was written
METRICS = ("exact", "similarity", "loss", "parses", "passes")
SHARES = ("exact", "parses", "passes")  # metrics that are yes or no


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model made of one span.

    Attributes:
        id, kind: of the span.
        said: the completion.
        exact: whether it is what was written, but for white space around it.
        similarity: edit similarity, 0 to 1.
        loss: of what was written, nats a token.
        tokens: of what was written.
        parses: whether the file parses with it, where it did before; None where that is unknown.
        tests: what its tests say: "passed", "failed", "timeout", ...; None where none were run.
        detail: the first thing that they say, where they do not pass.
    """

    id: str
    kind: str
    said: str
    exact: bool
    similarity: float
    loss: float
    tokens: int
    parses: bool | None
    tests: str | None = None
    detail: str = ""

    @property
    def passes(self) -> bool | None:
        """Whether its tests pass; None where none were run."""
        return None if self.tests is None else self.tests == "passed"


@dataclass(frozen=True, slots=True)
class _Asked:
    ids: list[int]
    middle: list[int]
    limits: Limits


def answers(
    model: Path,
    spans: Sequence[Span],
    *,
    form: Form = "auto",
    context: int | None = None,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    sharing: Sharing = ALONE,
    known: Mapping[str, Answer] | None = None,
    keep: Callable[[Sequence[Answer]], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[Answer]:
    """Have a model infill spans, and score what it says and what was written.

    Args:
        model: checkpoint or run folder, or MODEL+ADAPTER.
        spans: to infill.
        form: of the prompt; "auto" is "psm" where the model can infill, else "left".
        context: longest sequence in tokens; None takes the model's trained one.
        batch: spans that are decoded side by side.
        device, dtype, sharing: as `Generator.load` takes them.
        known: answers that it has given before, by id.
        keep: called with each batch of new ones.
        progress: called as it goes on.

    Raises:
        UserError: the model cannot be loaded, or has no infilling pieces for the form asked for.
    """
    found = dict(known or {})
    if all(span.id in found for span in spans):
        return [found[span.id] for span in spans]
    generator = Generator.load(model, device=device, dtype=dtype, engine="torch", sharing=sharing)
    tokenizer = generator.tokenizer
    infiller = None
    if form in ("psm", "spm") or (form == "auto" and tokenizer.infill is not None):
        infiller = Infiller(tokenizer)
    longest = context or generator.config.max_context
    ends = set(generator.ends)
    if infiller is not None:
        ends.add(infiller.special.end)
    for part in completions(
        generator,
        (
            [
                (span, _ask(generator, infiller, span, longest, form))
                for span in spans[start : start + batch]
            ]
            for start in range(0, len(spans), batch)
        ),
        lambda item: Request(
            prompt=item[1].ids,
            sampling=Sampling(temperature=0.0),
            limits=item[1].limits,
            ends=frozenset(ends),
        ),
        is_missing=lambda item: item[0].id not in found,
        batch=batch,
        window=window_of(len(spans) // batch),
    ):
        losses = generator.map(_loss, (asked for (_, asked), _ in part), together=True)
        made = [
            _scored(span, asked, said.text if said is not None else "", loss, left=infiller is None)
            for ((span, asked), said), loss in zip(part, losses, strict=True)
        ]
        keep(made)
        found.update({answer.id: answer for answer in made})
        progress(Progress(stage="spans", done=len(found), total=len(spans)))
    return [found[span.id] for span in spans]


def _ask(
    generator: Generator, infiller: Infiller | None, span: Span, context: int, form: Form
) -> _Asked:
    """The prompt of a span, and what follows it."""
    tokenizer = generator.tokenizer
    middle = tokenizer.encode(span.middle, leading_space=False)
    # A context of which the answer would take more than half shows what is around it no more.
    middle = middle[: context // 2]
    most = min(len(middle) * 3 // 2 + SPARE, max(context // 2, 1))
    room = Room(context=context, max_tokens=most)
    if infiller is None:
        ids = fit_completion(tokenizer, span.prefix, room, "left").ids
        stops = ("\n",) if span.kind == "line" else ()
        return _Asked(ids, middle, Limits(max_tokens=most, context=context, stops=stops))
    order = Order.SPM if form == "spm" else Order.PSM
    ids = fit_infill(infiller, span.prefix, span.suffix, order, room, "window").ids
    return _Asked(ids, middle, Limits(max_tokens=most, context=context))


def _loss(generator: Generator, asked: _Asked, stopped: Stopped) -> float:  # noqa: ARG001
    """The loss of what was written, nats a token; a `Work`."""
    losses = token_losses(generator.model, np.array([*asked.ids, *asked.middle], dtype=np.int32))
    return float(losses[-len(asked.middle) :].mean())


def _scored(span: Span, asked: _Asked, said: str, loss: float, *, left: bool) -> Answer:
    if left:  # it cannot know where to end: as many lines as were written
        said = "\n".join(said.split("\n")[: span.middle.count("\n") + 1])
    whole = None
    if parses(span.prefix + span.middle + span.suffix, span.language):
        whole = parses(span.prefix + said + span.suffix, span.language)
    return Answer(
        id=span.id,
        kind=span.kind,
        said=said,
        exact=said.strip() == span.middle.strip(),
        similarity=edit_similarity(said.strip(), span.middle.strip()),
        loss=loss,
        tokens=len(asked.middle),
        parses=whole,
    )


def summary(found: Sequence[Answer]) -> list[dict[str, Any]]:
    """The figures of each kind of span and of all, with 95 % intervals, as JSON values."""
    rows = []
    for kind in (*KINDS, "all"):
        part = [answer for answer in found if kind in (answer.kind, "all")]
        if not part:
            continue
        row: dict[str, Any] = {"kind": kind, "spans": len(part)}
        for metric in METRICS:
            values = _values(part, metric)
            row[metric] = None
            if len(values):
                low, high = (
                    wilson(float(values.sum()), len(values))
                    if metric in SHARES
                    else bootstrap(values)
                )
                row[metric] = {"value": float(values.mean()), "low": low, "high": high}
                if metric == "passes":
                    row["tested"] = len(values)
        rows.append(row)
    return rows


def differences(before: Sequence[Answer], after: Sequence[Answer]) -> list[dict[str, Any]]:
    """After less before on the same spans, with 95 % intervals over pairs, as JSON values."""
    assert [a.id for a in before] == [b.id for b in after], "answers of different spans"
    rows = []
    for kind in (*KINDS, "all"):
        places = [n for n, answer in enumerate(before) if kind in (answer.kind, "all")]
        if not places:
            continue
        row: dict[str, Any] = {"kind": kind, "spans": len(places)}
        for metric in ("exact", "similarity", "loss", "passes"):
            pairs = [
                (one, other)
                for n in places
                if None
                not in (one := getattr(before[n], metric), other := getattr(after[n], metric))
            ]
            row[metric] = None
            if not pairs:
                continue
            change = np.array([float(other) - float(one) for one, other in pairs])
            low, high = bootstrap(change)
            row[metric] = {"value": float(change.mean()), "low": low, "high": high}
        rows.append(row)
    return rows


def _values(found: Sequence[Answer], metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = [getattr(answer, metric) for answer in found]
    return np.array([float(value) for value in values if value is not None], dtype=np.float64)


def write(
    out: Path, spans: Sequence[Span], answers: Iterable[tuple[str, Sequence[Answer]]]
) -> None:
    """Write what each model said of each span, a JSON line each.

    Args:
        out: the file.
        spans: that were asked for.
        answers: a model's name and its answers, in the order of the spans.

    Raises:
        UserError: it cannot be written.
    """
    lines = []
    for model, made in answers:
        for span, answer in zip(spans, made, strict=True):
            facts = {"commit": span.commit, "path": span.path, "language": span.language}
            line = {"model": model} | asdict(answer) | facts | {"wanted": span.middle}
            lines.append(json_line(line))
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, "".join(lines).encode())
