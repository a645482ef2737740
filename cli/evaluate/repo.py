"""`codecria evaluate repo`: a private benchmark from a git history."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from codecria.data.errors import UsageError

from .. import options, render
from ..ranks import sharing

HELP = """Score infilling of code that later commits of a git repository added.

The history is cut in two by time. Lines, blocks and function bodies that the later commits added
are infilled at their place in the file as the commit left it: exact match, edit similarity, loss,
whether the file parses, and whether the repository's own tests pass, in the sandbox. Text that was
there before the cut is left out. Nothing leaves the machine. With --out, rerun the same command to
resume.

Example: codecria evaluate repo ~/src/app -m run --since 2026-05-01

Example: codecria evaluate repo . -m base --compare base+adapter --out spans.jsonl

Example: codecria evaluate repo . -m run --tests 'pytest tests/unit' --packages .venv
"""


def repo(
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="Folder of a git clone.")],
    model: options.Model,
    adapter: options.Adapter = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Second model, or MODEL+ADAPTER, on the same spans.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DAY|COMMIT",
            help="Where the later part begins: a day (UTC) or a commit.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(
            help="Share of the commits that is the later part [default: 0.2].",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    kinds: Annotated[
        str,
        typer.Option(
            metavar="KIND,KIND",
            help="Kinds of spans: line, block, function.",
            rich_help_panel=options.INPUT,
        ),
    ] = "line,block,function",
    limit: Annotated[
        int, typer.Option(min=1, help="Most spans of each kind.", rich_help_panel=options.INPUT)
    ] = 100,
    form: Annotated[
        Literal["auto", "psm", "spm", "left"],
        typer.Option(
            help="Prompt form; auto is psm where the model can infill, else left (prefix alone)."
        ),
    ] = "auto",
    context: options.Context = None,
    seed: options.Seed = 0,
    show: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Print N spans and stop; no model is loaded."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write each span with its answers here (JSON lines).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    tests: Annotated[
        str,
        typer.Option(
            metavar="auto|off|PATHS|COMMAND",
            help="Tests that decide too: auto finds them by name; paths, or a command of pytest or"
            " unittest, choose them; off runs none.",
            rich_help_panel=options.SANDBOX,
        ),
    ] = "auto",
    packages: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR,...",
            help="What the tests may import: packages installed beside codecria, or a folder (a"
            " virtual environment, or one of pip install --target) [default: pytest].",
            rich_help_panel=options.SANDBOX,
        ),
    ] = None,
    tests_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            max=3600,
            metavar="SECONDS",
            help="Time for the tests of one commit.",
            rich_help_panel=options.SANDBOX,
        ),
    ] = 300.0,
    memory_mb: options.MemoryMb = 2_048,
    sandbox: options.Tier = "auto",
    workers: options.Workers = None,
    batch: options.Batch = 8,
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the spans, have the models infill them, print the figures."""
    from codecria.core.evaluation.repository.spans import KINDS, of_history
    from codecria.data.corpus.history import History
    from codecria.data.corpus.history import split as cut

    if since is not None and split is not None:
        raise UsageError("--since and --split both cut the history", hint="give one of them")
    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    unknown = sorted({*wanted} - {*KINDS})
    if unknown or not wanted:
        named = ", ".join(unknown) or "nothing"
        raise UsageError(f"--kinds names {named}", hint=f"kinds: {', '.join(KINDS)}")
    if sandbox == "command" and tests != "off":
        raise UsageError(
            "--sandbox command cannot run a repository's tests", hint="add --tests off"
        )
    with History.open(repository) as history:
        halves = cut(history.commits(), since=since, share=split)
        found = of_history(history, halves, kinds=wanted, limit=limit, seed=seed)
    candidates = sum(found.candidates.values())
    render.note(
        f"{len(halves.later):,} of {halves.commits:,} commits are after {halves.base.date}"
        f" ({halves.base.id[:12]}); {len(found.spans):,} of {candidates:,} spans"
    )
    if passed := sum(found.known.values()):
        render.note(f"{passed:,} spans passed over: their text was there before")
    if show is not None:
        _show_spans(found.spans[:show], as_json=as_json)
        return
    if not found.spans:
        from codecria.data.errors import UserError

        raise UserError(
            "the later commits add no code to ask for", hint="choose an earlier --since"
        )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    from codecria.core.checkpoints.checkpoint import Checkpoint
    from codecria.core.evaluation.repository import measure
    from codecria.core.evaluation.repository.kept import open_kept

    paths = [options.adapted(model, adapter), *([compare] if compare is not None else [])]
    trial = _trial_config(tests, packages, tests_timeout, memory_mb, tier=sandbox, workers=workers)
    identity = {
        "spans": [span.id for span in found.spans],
        "base": halves.base.id,
        "models": [Checkpoint.open(path).digest() for path in paths],
        "form": form,
        "context": context,
        "tests": [tests, packages],
    }
    result: dict[str, Any] = {
        "repository": str(repository),
        "base": halves.base.id,
        "later_commits": len(halves.later),
        "candidates": found.candidates,
        "known": found.known,
    }
    shared = sharing(mesh, device)
    with open_kept(out, identity) as kept:

        def answer(n: int) -> list[measure.Answer]:
            with render.stages() as progress:
                return measure.answers(
                    paths[n],
                    found.spans,
                    form=form,
                    context=context,
                    batch=batch,
                    device=device,
                    dtype=dtype,
                    sharing=shared,
                    known={k: measure.Answer(**v) for k, v in kept.of(f"answer {n}").items()},
                    keep=lambda new: kept.add(f"answer {n}", {a.id: asdict(a) for a in new}),
                    progress=progress,
                )

        made, tested = _tried(
            repository, found.spans, trial, kept, lambda: [answer(n) for n in range(len(paths))]
        )
        if tested is not None:
            result["tests"] = tested
        result["models"] = [
            {"model": str(path), "kinds": measure.summary(answers)}
            for path, answers in zip(paths, made, strict=True)
        ]
        if compare is not None:
            result["differences"] = measure.differences(*made)
        if out is not None:
            _write(out, found.spans, [str(path) for path in paths], made)
    if as_json:
        render.emit_json(result)
        return
    for entry in result["models"]:
        show_summary(entry["model"], entry["kinds"])
    if compare is not None:
        show_differences("second model less first, same spans", result["differences"])
    if tested is not None:
        _show_tests(tested)


def _trial_config(
    tests: str,
    packages: str | None,
    seconds: float,
    memory_mb: int,
    *,
    tier: str,
    workers: int | None,
) -> Any:
    """How the repository's tests are run, or None where they are not."""
    if tests == "off":
        if packages is not None:
            raise UsageError("--packages is for tests, and --tests off runs none")
        return None
    from codecria.core.evaluation.repository.suites import parse_packages, parse_tests
    from codecria.core.evaluation.repository.trial import Config
    from codecria.core.sandbox.config import SandboxConfig

    return Config(
        asked=parse_tests(tests),
        required=tests != "auto",
        packages=parse_packages(options.names_of(packages)),
        sandbox=SandboxConfig(tier=tier, workers=workers),
        seconds=seconds,
        memory_bytes=memory_mb << 20,
    )


def _tried(
    repository: Path, spans: Any, config: Any, kept: Any, answer: Any
) -> tuple[Any, dict[str, Any] | None]:
    """The answers of each model, with what the tests say of them; and what came of the tests."""
    if config is None:
        return answer(), None
    from codecria.core.evaluation.repository.trial import try_answers

    with render.stages() as progress:
        return try_answers(
            repository, spans, config, kept, answer, note=render.note, progress=progress
        )


def figure(value: dict[str, float] | None, *, percent: bool = False, signed: bool = False) -> str:
    """A figure with its interval on one line."""
    if value is None:
        return "-"
    form = ("+" if signed else "") + (".1f" if percent else ".3f")
    scale = 100 if percent else 1
    parts = [format(value[name] * scale, form) for name in ("value", "low", "high")]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def show_summary(title: str, kinds: list[dict[str, Any]]) -> None:
    """Print one model's figures."""
    tested = any(row["passes"] is not None for row in kinds)
    render.table(
        title,
        ["spans", "n", "exact %", "edit similarity", "loss, nats a token", "parses %"]
        + (["tests pass %", "tested"] if tested else []),
        [
            (
                row["kind"],
                str(row["spans"]),
                figure(row["exact"], percent=True),
                figure(row["similarity"]),
                figure(row["loss"]),
                figure(row["parses"], percent=True),
                *(
                    (figure(row["passes"], percent=True), str(row.get("tested", 0)))
                    if tested
                    else ()
                ),
            )
            for row in kinds
        ],
        to_stdout=True,
    )


def show_differences(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the paired differences of two models."""
    tested = any(row["passes"] is not None for row in rows)
    render.table(
        title,
        ["spans", "n", "exact, points", "edit similarity", "loss, nats a token"]
        + (["tests pass, points"] if tested else []),
        [
            (
                row["kind"],
                str(row["spans"]),
                figure(row["exact"], percent=True, signed=True),
                figure(row["similarity"], signed=True),
                figure(row["loss"], signed=True),
                *((figure(row["passes"], percent=True, signed=True),) if tested else ()),
            )
            for row in rows
        ],
        to_stdout=True,
    )


def _show_tests(tested: dict[str, Any]) -> None:
    """Say on how many spans tests decide, and why not on the others."""
    how = ", ".join(f"{count} by {by}" for by, count in tested["by"].items())
    render.note(
        f"{tested['backend']} decides about {tested['spans']} spans" + (f" ({how})" if how else "")
    )
    for reason, count in tested["left_out"].items():
        render.note(f"{count} left out: {reason}")


def _show_spans(spans: Any, *, as_json: bool) -> None:
    for span in spans:
        if as_json:
            render.emit_json_line(asdict(span))
            continue
        render.output(f"--- {span.id}")
        before, after = span.prefix.split("\n")[-4:], span.suffix.split("\n")[:3]
        render.output("\n".join(before) + "«" + span.middle + "»" + "\n".join(after) + "\n")


def _write(out: Path, spans: Any, models: list[str], made: Any) -> None:
    from codecria.core.evaluation.repository.measure import as_json
    from codecria.data.files import atomic_write, json_line

    lines = [
        json_line({"model": model} | as_json(answer, span))
        for model, answers in zip(models, made, strict=True)
        for answer, span in zip(answers, spans, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, "".join(lines).encode())
