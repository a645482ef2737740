"""Which engine computes, in which types: the choice, and the runner that follows from it.

    device   engine   what computes
    CPU      native   own kernels (core/native/): no PyTorch is imported
    CPU      torch    PyTorch: where the kernels cannot run, and as the reference
    CUDA     torch    PyTorch

`auto` takes the native engine on a CPU and falls back to PyTorch where its kernels do not load.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codecria.core.checkpoints.checkpoint import Checkpoint, check_fits, load_model
from codecria.core.checkpoints.formats.layout import (
    hugging_face_name,
    reordered,
    rotary_heads,
    shapes_of,
)
from codecria.core.checkpoints.formats.weights import FLOATS
from codecria.core.native.packing import BITS
from codecria.data.errors import UsageError

from .runner import Runner
from .sharing import ALONE, Sharing

if TYPE_CHECKING:
    import torch

EngineName = Literal["auto", "native", "torch"]
CacheDtype = Literal["auto", "float32", "bfloat16", "q8"]
Say = Callable[[str], None]
PACKED = ("q8", "q4")
MEMORY_SHARE = 0.7  # of the available memory that weights may take before auto packs them
_LARGE_BYTES = 4e9  # from here on packing is worth a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What a model is computed with.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: of the matrices: "auto", "float32", "bfloat16", "q8" or "q4" (native engine).
        engine: see the module.
        threads: CPU threads; None lets the engine choose.
        cache_dtype: of the key-value cache; "auto" is the weights' type, and bfloat16 for packed
            weights.
        keep_packed: keep weights that are packed in the user's cache, for the next start.
        sharing: the processes that compute, this one alone or several.
    """

    device: str = "auto"
    dtype: str = "auto"
    engine: EngineName = "auto"
    threads: int | None = None
    cache_dtype: CacheDtype = "auto"
    keep_packed: bool = False
    sharing: Sharing = field(default=ALONE, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            UsageError: one does not exist.
        """
        for what, value, names in (
            ("compute type", self.dtype, ("auto", *BITS)),
            ("engine", self.engine, ("auto", "native", "torch")),
            ("cache type", self.cache_dtype, ("auto", "float32", "bfloat16", "q8")),
        ):
            if value not in names:
                raise UsageError(f"there is no {what} {value!r}", hint="use " + ", ".join(names))


def load_runner(checkpoint: Checkpoint, compute: Compute, say: Say) -> Runner:
    """Load a checkpoint's weights into the engine that is to compute.

    Args:
        checkpoint: an opened one.
        compute: what is asked for.
        say: takes a sentence for the user: why PyTorch computes, why weights are packed.

    Raises:
        UserError: weights do not fit the model, or the engine asked for cannot run here.
        UsageError: the device does not exist, or an option does not go with the engine.
    """
    check_fits(checkpoint)
    obstacle = _obstacle(compute)
    if not obstacle:
        from codecria.core.native.kernels import KernelError

        try:
            return _native(checkpoint, compute, say)
        except KernelError as error:
            if compute.engine == "native":
                raise
            obstacle = error.message
            say(f"PyTorch computes: {obstacle}")
    if compute.engine == "native":
        raise UsageError(
            f"the native engine cannot be used: {obstacle}", hint="leave out --engine native"
        )
    wanted = [f"--dtype {compute.dtype}"] if compute.dtype in PACKED else []
    wanted += ["--cache-dtype q8"] if compute.cache_dtype == "q8" else []
    if wanted:
        raise UsageError(
            f"{wanted[0]} needs the native engine: {obstacle}", hint=f"leave out {wanted[0]}"
        )
    if compute.sharing.tp > 1:
        return compute.sharing.split(checkpoint, compute)
    return _torch(checkpoint, compute)


def as_computed(compute: Compute, runner: Runner) -> Compute:
    """What was asked for, with what "auto" left open as a runner decided it; for one process.

    Another process that loads the same computes the same, however much memory it has free.
    """
    kind, *_, dtype, cache_dtype = runner.layout.replace("torch.", "").split()
    own: Any = cache_dtype
    return replace(
        compute,
        engine="native" if kind == "native" else "torch",
        dtype=dtype if dtype in BITS else compute.dtype,  # float16 follows from the files
        cache_dtype=own if kind == "native" else compute.cache_dtype,
        sharing=ALONE,
    )


def _obstacle(compute: Compute) -> str:
    """Why the native engine is not tried, or nothing."""
    if compute.sharing.tp > 1:
        return "processes share the layers (--mesh), which PyTorch computes"
    if compute.engine == "torch":
        return "--engine torch was given"
    if compute.device.startswith("cuda"):
        return "it computes on the CPU alone"
    if compute.device == "auto" and _nvidia_device():
        from codecria.core import machine

        if machine.choose_device("auto").type != "cpu":
            return "it computes on the CPU alone, and there is a GPU (--device cpu)"
    elif compute.device not in ("auto", "cpu"):
        from codecria.core import machine

        machine.choose_device(compute.device)  # refuses what does not exist
    return ""


def _nvidia_device() -> bool:
    """Whether the driver shows a CUDA device; asked without PyTorch, which takes a second."""
    if not sys.platform.startswith("linux"):
        return True  # PyTorch will know
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return not driver.cuInit(0) and not driver.cuDeviceGetCount(ctypes.byref(count)) and bool(count)


# --- the native engine -------------------------------------------------------------------------


class _ByName(Mapping[str, Any]):
    """A checkpoint's weights as the kernels ask for them: by Hugging Face name, in its order."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._ours = {hugging_face_name(ours): ours for ours in shapes_of(checkpoint.config)}

    def __getitem__(self, name: str) -> Any:
        from codecria.core.native.weights import Packed

        ours, weights = self._ours[name], self._checkpoint.weights
        packed = weights.packed(ours)
        if packed is not None:
            return Packed(*packed)
        return reordered(
            weights.array(ours),
            rotary_heads(ours, self._checkpoint.config),
            source=weights.rotary_order,
            target="half_split",
        )

    def __contains__(self, name: object) -> bool:
        return name in self._ours

    def __iter__(self) -> Iterator[str]:
        return iter(self._ours)

    def __len__(self) -> int:
        return len(self._ours)


def _native(checkpoint: Checkpoint, compute: Compute, say: Say) -> Runner:
    """The native engine's runner.

    Raises:
        KernelError: its kernels do not run here.
    """
    from codecria.core.native import kernels
    from codecria.core.native.runner import NativeRunner
    from codecria.core.native.threads import available_threads
    from codecria.core.native.weights import Weights

    try:
        loaded = kernels.load(say=say)
    except (RuntimeError, OSError) as error:  # LLVM's own, or of the cache's folder
        raise kernels.KernelError(f"the CPU kernels do not load: {error}") from error
    neighbours = compute.sharing.neighbours
    memory = available_memory() / neighbours
    dtype: Any = native_dtype(checkpoint, compute.dtype, memory, say)
    weights: Weights = _ByName(checkpoint)
    if compute.keep_packed and dtype not in PACKED:
        say(f"weights are {dtype}: --keep-packed keeps those of --dtype q8 or q4")
    elif compute.keep_packed:
        from .packed_cache import kept

        weights = kept(checkpoint, weights, dtype, loaded, say)
    threads = compute.threads
    if threads is None and neighbours > 1:
        threads = max(1, available_threads() // neighbours)
    return NativeRunner(
        checkpoint.config,
        weights,
        loaded,
        dtype=dtype,
        cache_dtype=None if compute.cache_dtype == "auto" else compute.cache_dtype,
        threads=threads,
    )


def native_dtype(checkpoint: Checkpoint, requested: str, memory: float, say: Say) -> str:
    """The type of the matrices: as stored, or packed where that would not fit the memory.

    A GGUF file's quantised weights are packed as q8, which loses nothing that matters.

    Args:
        checkpoint: an opened one.
        requested: "auto" or the type.
        memory: available bytes.
        say: takes a sentence about what auto decides.
    """
    if requested != "auto":
        return requested
    stored = {weight.dtype for weight in checkpoint.weights.stored.values()}
    kept = next((kind for kind in PACKED if kind in stored), None)
    if kept is not None:
        return kept
    own = "float32" if stored <= {"float32", "float64"} else "bfloat16"
    own = own if stored <= FLOATS else "q8"  # GGUF's quantised types: as exact as they are
    sizes = {kind: checkpoint.config.parameters * bits / 8 for kind, bits in BITS.items()}
    room = MEMORY_SHARE * memory
    if sizes[own] <= room:
        if sizes[own] > _LARGE_BYTES:
            say(
                f"weights as stored ({own}, {sizes[own] / 1e9:.1f} GB); --dtype q8 or q4 is faster,"
                " a folder of `codecria convert --dtype q8` loads at once"
            )
        return own
    chosen = "q8" if sizes["q8"] <= room else "q4"
    say(
        f"weights are packed as {chosen} ({sizes[chosen] / 1e9:.1f} GB): as {own} they take"
        f" {sizes[own] / 1e9:.1f} GB, and {memory / 1e9:.1f} GB are free"
    )
    return chosen


def available_memory() -> float:
    """Bytes that this process may take: free memory, or what its container leaves."""
    found = float("inf")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found = float(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit.isdecimal():
            used = float((group / "memory.current").read_text(encoding="ascii"))
            found = min(found, float(limit) - used)
    except (OSError, ValueError, IndexError):
        pass  # no Linux, or no limit
    return found


# --- PyTorch -----------------------------------------------------------------------------------


def _torch(checkpoint: Checkpoint, compute: Compute) -> Runner:
    """PyTorch's runner."""
    import torch

    from codecria.core import machine
    from codecria.core.model.dtypes import DTYPES

    from .torch_runner import TorchRunner

    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    device = machine.choose_device(compute.device)
    model = load_model(
        checkpoint, device=device, dtype=torch_dtype(compute.dtype, checkpoint, device)
    )
    return TorchRunner(model.eval(), cache_dtype=DTYPES.get(compute.cache_dtype))


def torch_dtype(requested: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The one type that all weights are loaded into, however many types they are stored in.

    auto keeps float32; other and mixed weights become bfloat16 where the device is fast at it,
    else float32. float16 stays only on a GPU: a CPU computes it about ten times slower.

    Args:
        requested: "auto" or the type.
        checkpoint: an opened one.
        device: that computes.
    """
    import torch

    from codecria.core import machine
    from codecria.core.model.dtypes import DTYPES

    if requested != "auto":
        return DTYPES[requested]
    stored = {weight.dtype for weight in checkpoint.weights.stored.values()}
    if stored <= {"float32", "float64"}:
        return torch.float32
    if stored == {"float16"} and device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if machine.bf16_pays(device) else torch.float32
