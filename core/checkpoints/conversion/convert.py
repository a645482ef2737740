"""Conversion between checkpoint layouts: weight by weight, compared with the source, published.

The destination appears only after the result was read back and compared with the source. A killed
conversion leaves a hidden temporary, which the next one removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from codecria.core.checkpoints.adapters.weights import MergedWeights
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.checkpoints.formats.meta import MetaWeights, checklist, listed
from codecria.data.errors import UserError
from codecria.data.files import (
    atomic_folder,
    atomic_path,
    require_free_space,
    sweep,
    write_error,
)
from codecria.data.progress import Progress

from .compare import compare
from .plan import Report, plan
from .request import Layout, Request
from .write import write_folder, write_gguf

SPARE_BYTES = 64 << 20  # beside the weights: tokenizer, headers


def _silent(_: object) -> None:
    """Discard progress and notes."""


def convert(
    request: Request,
    report: Report = _silent,
    note: Callable[[str], None] = _silent,
) -> dict[str, Any]:
    """Convert a checkpoint.

    Args:
        request: what to do.
        report: called with the progress.
        note: called with what the user should know.

    Returns:
        JSON values: what was read, what was written, and how they were compared.

    Raises:
        UsageError: the options do not go together.
        UserError: the source is unsound, there is no space, or the result differs; nothing is left.
    """
    started = time.monotonic()
    planned = plan(request, note)
    source = planned.source
    out = request.out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    sweep(out)
    require_free_space(out.parent, planned.size + SPARE_BYTES)
    _check_list(source, request, report)
    if request.layout is Layout.GGUF:
        with atomic_path(out) as path:
            write_gguf(planned, path, report)
            result = GgufWeights(path)
            compared = compare(planned, result, result.facts.config, result.facts.ends, report)
        written = out.stat().st_size
    else:
        with atomic_folder(out) as folder:
            write_folder(planned, folder, report)
            opened = Checkpoint.open(folder)
            ends = opened.end_ids(planned.tokenizer)
            compared = compare(planned, opened.weights, opened.config, ends, report)
        written = sum(path.stat().st_size for path in out.iterdir())
    return {
        "source": str(source.folder),
        "source_layout": _layout_of(source).value,
        "adapter": None if source.adapter is None else _adapter_facts(source),
        "source_files": len(source.weights.files),
        "out": str(out),
        "layout": request.layout.value,
        "dtype": planned.dtype_name,
        "parameters": planned.config.parameters,
        "bytes": written,
        "model": asdict(planned.config),
        "chat_template": bool(planned.template),
        "compared": compared,
        "seconds": time.monotonic() - started,
    }


def _layout_of(source: Checkpoint) -> Layout:
    weights = source.weights
    if isinstance(weights, MergedWeights):
        weights = weights.base
    if isinstance(weights, GgufWeights):
        return Layout.GGUF
    return Layout.META if isinstance(weights, MetaWeights) else Layout.HF


def _adapter_facts(source: Checkpoint) -> dict[str, Any]:
    adapter = source.adapter
    assert adapter is not None, "asked for one"
    return {
        "folder": str(adapter.folder),
        "rank": adapter.rank,
        "parameters": adapter.parameters,
        "matrices": len(adapter.pairs),
    }


def _check_list(source: Checkpoint, request: Request, report: Report) -> None:
    """Compare the source with its checklist, where it has one."""
    if not request.verify:
        return
    files = listed(source.folder)
    for done, (name, problem) in enumerate(checklist(source.folder), start=1):
        if problem:
            raise UserError(
                f"{source.folder / name} {problem}",
                hint="download it again, or pass --no-verify to convert it as it is",
            )
        report(Progress(stage="checklist", done=done, total=files))
