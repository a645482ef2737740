"""pass@k over temperature (Code Llama, figure 6): one evaluation for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .evaluate import Note, Request, Show, evaluate
from .protocol import PRESETS


def sweep(
    request: Request, temperatures: Sequence[float], folder: Path, *, note: Note, show: Show
) -> list[dict[str, Any]]:
    """Evaluate at every temperature; resumes where it was stopped.

    Args:
        request: what all have in common; its `out` and preset are not looked at.
        temperatures: above 0.
        folder: gets a file of results for each.
        note, show: see `evaluate`.

    Returns:
        the summaries, in the order of the temperatures.

    Raises:
        UserError, UsageError, Interrupted: see `evaluate`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for temperature in temperatures:
        preset = f"sweep-{temperature:g}"
        known = preset in PRESETS
        one = replace(
            request,
            preset=preset if known else "paper-sampled",
            changes=request.changes if known else replace(request.changes, temperature=temperature),
            out=folder / f"{request.task}-T{temperature:g}.jsonl",
        )
        note(f"temperature {temperature:g}")
        found += evaluate(one, note=note, show=show)
    return found
