"""What this machine can do: its device, its speed in short bounded probes, its compiler.

The probes take fractions of a second and their results are kept for the process. They are figures
of this moment: on a shared machine they waver.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from codecria.data.errors import UsageError, UserError

PROBE_S = 0.25  # how long one probe may go on
PACKAGES = ("codecria", "torch", "xformers", "sentencepiece", "safetensors", "numpy", "pyarrow")


def choose_device(requested: str) -> torch.device:
    """The device to use.

    Args:
        requested: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: the requested device is not in this machine.
        UsageError: there is no such device.
    """
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {requested!r}", hint="use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no CUDA device for {requested!r}", hint="use --device cpu")
    return device


def launched_processes() -> int:
    """How many processes torchrun, or a launcher that sets the same variables, started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", launched_processes()))


def _rate(work: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Calls of `work` per second: the best of several short spells."""

    def spell(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    spell(1)  # first touch, lazy initialisation
    fastest = spell(1)
    deadline = time.perf_counter() + budget_s
    while time.perf_counter() < deadline:
        fastest = min(fastest, spell(1))
    return 1.0 / max(fastest, 1e-9)


@lru_cache(maxsize=16)
def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Measured peak of matrix products, in FLOP/s (a multiply and an add count as two).

    On a CPU the size of the probe follows from a small product on one thread, so that a type the
    device computes slowly (bfloat16 without hardware for it can be 500 times slower than float32)
    ends it early. One thread, because on a busy machine threads wait for each other, and that
    must not pass for slow arithmetic.

    Args:
        dtype: of both factors.
        device: where.
    """

    def rate(n: int) -> float:
        a = torch.ones(n, n, dtype=dtype, device=device)
        b = torch.ones(n, n, dtype=dtype, device=device)
        return 2.0 * n**3 * _rate(lambda: a @ b, device, PROBE_S / 2)

    if device.type != "cpu":
        return max(rate(1_024), rate(4_096))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = rate(256)
    finally:
        torch.set_num_threads(threads)
    return max(alone, rate(1_024 if 2.0 * 1_024**3 / alone < PROBE_S else 256))


@lru_cache(maxsize=4)
def memory_bandwidth(device: torch.device) -> float:
    """Measured speed of reading memory, in bytes per second."""
    size = (256 << 20) if device.type == "cpu" else (1 << 30)
    block = torch.ones(size // 4, dtype=torch.float32, device=device)
    return size * _rate(block.sum, device, PROBE_S)


def bf16_pays(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster here than float32 ones.

    On x86 the CPU's flags decide: products without hardware for them are slower. Elsewhere it is
    measured.
    """
    if device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return matmul_flops(torch.bfloat16, device) > 1.2 * matmul_flops(torch.float32, device)


def compiler_problem() -> str:
    """Why torch.compile cannot build its CPU kernels here, empty when it can.

    It calls the compiler that CXX names, else the platform's usual one and no other, on sources
    that include Python's own header.
    """
    usual = "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "there is a C++ compiler, but Python's headers (python3-dev) are missing"
    return ""


def compiler_available() -> bool:
    """Whether torch.compile can build its CPU kernels here."""
    return not compiler_problem()


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter, None where one is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def device_name() -> str:
    """The device that would be used."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def instructions() -> str:
    """The processor's vector instructions that PyTorch uses, and what it has for bfloat16."""
    small = {
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    capability: str = torch.backends.cpu.get_cpu_capability()
    return " ".join([capability, *(name for name, supported in small.items() if supported)])


def memory_size(device: torch.device) -> int:
    """Bytes of memory: the device's own, or the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
