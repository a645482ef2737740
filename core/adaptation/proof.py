"""Whether an adapter helped: the same spans before and after, and what was forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.evaluation.repository.kept import Kept, answered
from codecria.core.evaluation.repository.measure import Answer, differences, summary
from codecria.core.evaluation.repository.spans import Span
from codecria.data.files import digest_json
from codecria.data.progress import Progress

from .request import AdaptRequest

FORMAT = 1  # of what is kept
FORGOTTEN = 0.02  # of the loss on rehearsal code: less is not worth a word
# Metric, whether more is better, how it is spelled.
_JUDGED = (
    ("loss", False, "loss {:+.3f} nats a token"),
    ("similarity", True, "edit similarity {:+.3f}"),
    ("exact", True, "exact match {:+.1%}"),
    ("passes", True, "tests passed {:+.1%}"),
)


def measured(
    model: Path,
    spans: Sequence[Span],
    kept: Kept,
    request: AdaptRequest,
    *,
    progress: Callable[[Progress], None],
) -> list[Answer]:
    """A model's answers, as far as an earlier call has not kept them.

    Args:
        model: checkpoint, or MODEL+ADAPTER.
        spans: to infill.
        kept: by earlier calls, of this model or of others.
        request: gives device and type.
        progress: called as it goes on.

    Raises:
        UserError: the model cannot be loaded.
    """
    texts = [[span.id, span.prefix, span.middle, span.suffix] for span in spans]
    decided = digest_json([Checkpoint.open(model).digest(), texts])
    return answered(
        kept, f"answers {decided[:16]}", model, spans,
        device=request.device, dtype=request.dtype, progress=progress,
    )  # fmt: skip


def report(
    repo: tuple[Sequence[Answer], Sequence[Answer]],
    rehearsal: tuple[Sequence[Answer], Sequence[Answer]] | None,
) -> dict[str, Any]:
    """The figures and the advice that follows from them, as JSON values.

    Args:
        repo: answers before and after, on spans of the later commits.
        rehearsal: the same on held-out rehearsal code, if any.
    """
    found: dict[str, Any] = {"repo": _side(*repo)}
    if rehearsal is not None:
        found["rehearsal"] = _side(*rehearsal)
    found["advice"] = advice(
        found["repo"]["differences"][-1],
        None if rehearsal is None else found["rehearsal"]["differences"][-1],
        None if rehearsal is None else found["rehearsal"]["before"][-1]["loss"]["value"],
    )
    return found


def _side(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Any]:
    return {
        "before": summary(before),
        "after": summary(after),
        "differences": differences(before, after),
    }


def advice(
    repo: dict[str, Any], rehearsal: dict[str, Any] | None, rehearsal_loss: float | None
) -> dict[str, Any]:
    """Whether to use an adapter, and why.

    It helps where at least one figure is better and none is worse, beyond its 95 % interval.

    Args:
        repo: the differences over all spans of the repository.
        rehearsal: the same of rehearsal code.
        rehearsal_loss: before, on rehearsal code.
    """
    better: list[str] = []
    worse: list[str] = []
    for metric, more, words in _JUDGED:
        change = repo[metric]
        if change is None:  # no tests decide
            continue
        said = words.format(change["value"])
        up, down = change["low"] > 0, change["high"] < 0
        if up or down:
            (better if up == more else worse).append(said)
    use = bool(better) and not worse
    why = "; ".join(better) if use else "; ".join(worse) or "no figure is better beyond chance"
    forgot = None
    if rehearsal is not None and rehearsal_loss:
        change = rehearsal["loss"]
        if change["low"] > 0 and change["value"] > FORGOTTEN * rehearsal_loss:
            forgot = f"loss {change['value']:+.3f} nats a token on code that it was not taught"
    return {"use": use, "why": why, "spans": repo["spans"], "forgot": forgot}
