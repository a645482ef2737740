"""`codecria doctor`: what this machine can do, and what would be used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import render

HELP = """Show versions, device, kernels in use, the sandbox, and measured speed.

Takes a few seconds: matrix products, memory, and a run in each language are measured.
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("doctor", help=HELP)(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Survey the machine and show it."""
    from codecria.core.machine import survey

    told = survey(Path.cwd())
    if as_json:
        render.emit_json(told)
        return
    rows = [(name, version or "not installed") for name, version in told["versions"].items()]
    if told["device_memory_gb"] is not None:
        rows.append(("device memory", f"{told['device_memory_gb']} GB"))
    rows += [
        ("device, instructions", f"{told['device']}, {told['instructions']}"),
        ("cores, threads", f"{told['cores']}, {told['threads']}"),
        ("memory, free disk", f"{told['memory_gb']} GB, {told['free_disk_gb']} GB"),
        ("attention", f"{told['attention']['backend']}: {told['attention']['why']}"),
        ("sandbox", told["sandbox"]["tier"] or f"none: {told['sandbox']['why']}"),
        *_sandbox_rows(told["sandbox"]),
        ("torch.compile", "can build kernels" if told["compiler"] else "cannot build kernels"),
        ("float32 products", f"{told['float32_gflops']} GFLOP/s"),
        ("bfloat16 products", f"{told['bfloat16_gflops']} GFLOP/s"),
        ("training type", told["training_dtype"]),
        ("memory bandwidth", f"{told['memory_bandwidth_gb_s']} GB/s"),
    ]
    render.table("machine", ["", ""], rows, to_stdout=True)
    for line in told["advice"]:
        render.note(line)


def _sandbox_rows(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Tiers and languages of the sandbox, a line each."""
    rows = [(f"  tier {name}", state) for name, state in told["tiers"].items()]
    for name, found in told["languages"].items():
        state = f"{found['version']}, {found['ms']:g} ms a run" if found["ready"] else found["why"]
        rows.append((f"  {name}", state))
    return rows
