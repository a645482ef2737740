"""`codecria doctor`: what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from . import render
from .config import found_files
from .options import AsJson

HELP = """Show versions, device, kernels in use, sandbox tiers and languages, and measured speed.

Takes a few seconds: it measures matrix products, memory, and a run in each language.
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("doctor", help=HELP)(doctor)


def doctor(
    as_json: AsJson = False,
) -> None:
    """Survey the machine and show it."""
    from codecria.core.doctor import survey

    found = survey(Path.cwd()) | {"config_files": [str(path) for path in found_files()]}
    if as_json:
        render.emit_json(found)
        return
    rows = [(name, version or "not installed") for name, version in found["versions"].items()]
    if found["device_memory_gb"] is not None:
        rows.append(("device memory", f"{found['device_memory_gb']} GB"))
    rows += [
        ("device, instructions", f"{found['device']}, {found['instructions']}"),
        ("cores, threads", f"{found['cores']}, {found['threads']}"),
        ("memory, free disk", f"{found['memory_gb']} GB, {found['free_disk_gb']} GB"),
        *_engine_rows(found["engine"]),
        ("attention", f"{found['attention']['backend']}: {found['attention']['why']}"),
        ("sandbox", found["sandbox"]["tier"] or f"none: {found['sandbox']['why']}"),
        *_sandbox_rows(found["sandbox"]),
        ("torch.compile", "available" if found["compiler"] else "not available"),
        ("float32 products", f"{found['float32_gflops']} GFLOP/s"),
        ("bfloat16 products", f"{found['bfloat16_gflops']} GFLOP/s"),
        ("training type", found["training_dtype"]),
        ("memory bandwidth", f"{found['memory_bandwidth_gb_s']} GB/s"),
        ("prefix cache", _prefix_cache(found["prefix_cache"])),
        ("packed weights", _packed_cache(found["packed_cache"])),
        ("config files", ", ".join(found["config_files"]) or "none found"),
    ]
    render.table("machine", ["", ""], rows, to_stdout=True)
    for line in found["advice"]:
        render.note(line)


def _prefix_cache(survey: dict[str, Any]) -> str:
    """What `serve` and `generate --cache` keep on disk."""
    return (
        f"{survey['bytes'] / 1e6:.1f} MB in {survey['folder']}, at most"
        f" {survey['limit'] / 1e9:.1f} GB unless --cache-disk says otherwise"
    )


def _packed_cache(survey: dict[str, Any]) -> str:
    """What --keep-packed keeps on disk."""
    return (
        f"{survey['bytes'] / 1e9:.2f} GB in {survey['folder']}, at most"
        f" {survey['limit'] / 1e9:.0f} GB"
    )


def _engine_rows(engine: dict[str, Any]) -> list[tuple[str, str]]:
    """The native CPU engine, a line each."""
    state = f"kernels for {engine['level']}, {engine['threads']} threads"
    if engine["level"] is None:
        state = f"not available: {engine['problem']}"
    kept = "kept in" if engine["kept"] else "compiled each time: nothing is kept in"
    return [("native CPU engine", state), ("  compiled kernels", f"{kept} {engine['cache']}")]


def _sandbox_rows(survey: dict[str, Any]) -> list[tuple[str, str]]:
    """Tiers and languages of the sandbox, a line each."""
    rows = [(f"  tier {name}", state) for name, state in survey["tiers"].items()]
    rows.append(("  namespaces (native)", survey["namespaces"]))
    for name, found in survey["languages"].items():
        state = f"{found['version']}, {found['ms']:g} ms a run" if found["ready"] else found["why"]
        rows.append((f"  {name}", state))
    return rows
