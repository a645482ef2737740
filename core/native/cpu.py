"""What the CPU can do: the instructions that kernels are compiled for, and the code chosen by them.

Levels of x86-64, the best that the CPU's own flags allow is taken:

    avx512-bf16   AVX-512 with VNNI and BF16 (Zen 4 and later, Xeon from Cooper Lake on)
    avx512-vnni   AVX-512 with VNNI (Ice Lake, Tiger Lake)
    avx2-vnni     AVX2 with AVX-VNNI (Core from Alder Lake on)
    avx2          AVX2, FMA and F16C (from Haswell and Zen on)
    neon-dot      AArch64 with dotprod, of Armv8.2 (Graviton 2 and later, Apple M1 and later)
    plain         what every x86-64 or AArch64 CPU has

Another architecture has "plain" alone: the same code for whatever vectors LLVM finds there.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from typing import Literal

from codecria.data.errors import UserError

Level = Literal["avx512-bf16", "avx512-vnni", "avx2-vnni", "avx2", "neon-dot", "plain"]
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_VNNI = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
NEEDS: dict[Level, tuple[str, ...]] = {  # from the best to the least; LLVM's names
    "avx512-bf16": (*_VNNI, "avx512bf16"),
    "avx512-vnni": _VNNI,
    "avx2-vnni": (*_AVX2, "avxvnni"),
    "avx2": _AVX2,
    "neon-dot": ("dotprod",),
    "plain": (),
}
_X86, _ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
_HWCAP, _DOTPROD = 16, 1 << 20  # Linux: of getauxval, and ASIMDDP in it
LEVEL_VARIABLE = "NATIVE_KERNELS_LEVEL"  # tests run the code of lesser CPUs by it


@dataclass(frozen=True, slots=True)
class Target:
    """The CPU that kernels are compiled for.

    Attributes:
        level: see the module.
        triple: architecture and system, as LLVM names them.
        cpu: the CPU that LLVM assumes.
        features: what else it may use, as LLVM spells it.
    """

    level: Level
    triple: str
    cpu: str
    features: str

    @property
    def is_x86(self) -> bool:
        """Whether x86-64's own instructions can be used."""
        return self.triple.startswith("x86_64")

    @property
    def is_arm(self) -> bool:
        """Whether AArch64's own instructions can be used."""
        return self.triple.startswith(("aarch64", "arm64"))

    @property
    def wide(self) -> bool:
        """Whether a register holds 16 lanes, and there are 32 of them."""
        return self.level.startswith("avx512")


def host_target(level: str | None = None) -> Target:
    """The target of this machine.

    Args:
        level: take this level or less; by default that of the environment's NATIVE_KERNELS_LEVEL
            (for tests), else the best.

    Raises:
        UserError: there is no level of that name.
    """
    import llvmlite.binding as llvm

    most = level or os.environ.get(LEVEL_VARIABLE) or next(iter(NEEDS))
    if most not in NEEDS:
        raise UserError(
            f"there is no kernel level {most!r}", hint="choose one of " + ", ".join(NEEDS)
        )
    triple, machine = llvm.get_default_triple(), platform.machine().lower()
    if machine in _X86:
        cpu, flags = "x86-64", dict(llvm.get_host_cpu_features())
    else:
        cpu, flags = llvm.get_host_cpu_name(), {"dotprod": machine in _ARM and _has_dotprod()}
    order = list(NEEDS)
    allowed = order[order.index(most) :]
    found = next(one for one in allowed if all(flags.get(flag) for flag in NEEDS[one]))
    features = ",".join(f"+{flag}" for flag in NEEDS[found])
    return Target(found, triple, cpu, features)


def _has_dotprod() -> bool:
    """Whether this AArch64 CPU multiplies four bytes at once; LLVM does not say so everywhere."""
    if sys.platform == "darwin":
        return True  # every Apple silicon
    if not sys.platform.startswith("linux"):
        return False
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return bool(getauxval(_HWCAP) & _DOTPROD)
