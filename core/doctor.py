"""What `doctor` reports of a machine: versions, device, kernels, sandbox, measured speed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from codecria.core.inference import packed_cache, prefix_cache
from codecria.core.machine import (
    bf16_pays,
    compiler_available,
    compiler_problem,
    device_name,
    instructions,
    matmul_flops,
    memory_bandwidth,
    memory_size,
    versions,
)
from codecria.core.model.attention import choose_backend
from codecria.core.native import kept, kernels
from codecria.core.native.threads import available_threads
from codecria.core.sandbox import survey as sandboxes
from codecria.data.errors import UserError


def survey(folder: Path) -> dict[str, Any]:
    """Everything that `doctor` reports, as JSON values.

    Args:
        folder: the free space of its disk is reported.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend, why = choose_backend(device)
    return {
        "versions": versions(),
        "device": device_name(),
        "device_memory_gb": None if device.type == "cpu" else round(memory_size(device) / 1e9, 1),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory_size(torch.device("cpu")) / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "engine": native_engine(),
        "attention": {"backend": backend, "why": why},
        "sandbox": sandboxes.survey(),
        "prefix_cache": prefix_cache.survey(),
        "packed_cache": packed_cache.survey(),
        "compiler": compiler_available(),
        "float32_gflops": round(matmul_flops(torch.float32, device) / 1e9, 1),
        "bfloat16_gflops": round(matmul_flops(torch.bfloat16, device) / 1e9, 1),
        "training_dtype": "bfloat16" if bf16_pays(device) else "float32",
        "memory_bandwidth_gb_s": round(memory_bandwidth(device) / 1e9, 1),
        "advice": advice(device),
    }


def native_engine() -> dict[str, Any]:
    """The native CPU engine: the level of its kernels and where they are kept, or why it fails.

    Where they have not been compiled yet, they are compiled and checked now.
    """
    facts: dict[str, Any] = {"threads": available_threads()}
    try:
        level = kernels.load().level
    except (UserError, RuntimeError, OSError) as error:
        return facts | _kept_kernels() | {"level": None, "problem": str(error)}
    return facts | _kept_kernels() | {"level": level, "problem": ""}


def _kept_kernels() -> dict[str, Any]:
    """The folder of compiled kernels, and its files."""
    folder = kept.place()
    files = sorted(path.name for path in folder.glob("*.o")) if folder is not None else []
    return {"cache": str(folder or kept.cache_folder()), "kept": files}


def advice(device: torch.device) -> list[str]:
    """What the user may want to change, one sentence each."""
    lines = []
    if device.type == "cpu" and torch.version.cuda is not None:
        lines.append(
            "torch is a CUDA build and there is no CUDA device; PyTorch's CPU build is smaller"
        )
    if problem := compiler_problem():
        lines.append(f"{problem}: training runs without torch.compile, somewhat slower")
    return lines
