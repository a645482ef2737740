"""Options that several verbs share, each declared once, and the help groups they stand in.

A verb uses an alias as the annotation of its parameter and gives the default itself:
`device: Device = "auto"`. Typer fills the parameter; nothing here imports what is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codecria.data.errors import UsageError
from codecria.data.quantities import parse_bytes, parse_count

if TYPE_CHECKING:
    from codecria.core.inference.loading import Compute
    from codecria.core.inference.sharing import Sharing

# Help groups (rich_help_panel); one name for one idea across verbs.
INPUT = "Input"
OUTPUT = "Output"
TRAINING = "Training"
ADAPTER = "Adapter"
SCHEDULE = "Logging and checkpoints"
INFILLING = "Infilling"
CHAT = "Chat"
SAMPLING = "Sampling"
SCORING = "Scoring"
SANDBOX = "Sandbox"
ENDPOINT = "Endpoint"
SERVER = "Server"
MACHINE = "Device and speed"

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16"]
WeightsName = Literal["auto", "float32", "bfloat16", "q8", "q4"]
EngineName = Literal["auto", "native", "torch"]
CacheName = Literal["auto", "float32", "bfloat16", "q8"]
Switch = Literal["auto", "on", "off"]
TierName = Literal["auto", "bwrap", "native", "command", "none"]

# --- the model, and what it runs on ---

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        envvar="CODECRIA_MODEL",
        help="Checkpoint or run folder.",
        rich_help_panel=INPUT,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Adapter to apply to the model: its folder, or the run that trained it.",
        rich_help_panel=INPUT,
    ),
]
OptionalModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        envvar="CODECRIA_MODEL",
        help="Checkpoint or run folder; not needed with --server.",
        rich_help_panel=INPUT,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Context length in tokens [default: the model's trained context].",
        rich_help_panel=INPUT,
    ),
]
Device = Annotated[
    DeviceName,
    typer.Option(help="Device; auto uses a GPU if there is one.", rich_help_panel=MACHINE),
]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        help="Compute type; auto is bfloat16 where the device is fast at it.",
        rich_help_panel=MACHINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; use 1 on a shared machine.", rich_help_panel=MACHINE),
]

Mesh = Annotated[
    str,
    typer.Option(
        metavar="MESH",
        help="How torchrun's processes share the work: auto, or such as dp=4,tp=2 for problems and"
        " layers (docs/several-devices.md).",
        rich_help_panel=MACHINE,
    ),
]

# --- what generates ---

Engine = Annotated[
    EngineName,
    typer.Option(
        help="native: CPU kernels without PyTorch; torch: PyTorch, on a CPU or GPU; auto: native"
        " on a CPU where it runs, else torch.",
        rich_help_panel=MACHINE,
    ),
]
WeightsDtype = Annotated[
    WeightsName,
    typer.Option(
        "--dtype",
        help="Type of the weights; q8 and q4 (native engine) take 8.5 and 4.5 bits a weight; auto"
        " keeps the stored type where it fits the memory and the device is fast at it.",
        rich_help_panel=MACHINE,
    ),
]
CacheDtype = Annotated[
    CacheName,
    typer.Option(
        help="Type of the key-value cache; q8 (native engine) takes half; auto follows --dtype.",
        rich_help_panel=MACHINE,
    ),
]
KeepPacked = Annotated[
    bool,
    typer.Option(
        "--keep-packed",
        help="Keep weights that --dtype packs (q8, q4) in the user's cache: the next start maps"
        " them.",
        rich_help_panel=MACHINE,
    ),
]
EngineThreads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads [default: all cores; the native engine uses fewer while others keep"
        " them busy].",
        rich_help_panel=MACHINE,
    ),
]
Batch = Annotated[
    int,
    typer.Option(min=1, help="Sequences decoded in one batch.", rich_help_panel=MACHINE),
]

# --- a model elsewhere ---

EndpointUrl = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.",
        rich_help_panel=ENDPOINT,
    ),
]
EndpointModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Model name at --endpoint.", rich_help_panel=ENDPOINT),
]
KeyEnv = Annotated[
    str,
    typer.Option(
        metavar="VARIABLE",
        help="Environment variable that holds the endpoint's key.",
        rich_help_panel=ENDPOINT,
    ),
]

# --- sampling ---

Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", "-t", help="Sampling temperature; 0 is greedy.", rich_help_panel=SAMPLING
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        help="Nucleus sampling: keep the likeliest tokens up to this probability.",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        min=0, help="Keep this many likeliest tokens; 0 keeps all.", rich_help_panel=SAMPLING
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed.", rich_help_panel=SAMPLING)]

Ks = Annotated[
    str | None,
    typer.Option(
        "--k",
        metavar="K,K",
        help="Estimate pass@k for these k, such as 1,5,25 [default: 1,10,100].",
        rich_help_panel=SCORING,
    ),
]

# --- evaluations ---

ShardData = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Shard folder made by prepare-data."),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Only the first N problems.", rich_help_panel=INPUT),
]
PromptForm = Annotated[
    str | None,
    typer.Option(help="How the model is asked [default: the first].", rich_help_panel=SAMPLING),
]
ResultFile = Annotated[Path | None, typer.Option(help="Write the result to a JSON file too.")]

# --- the sandbox ---

Tier = Annotated[
    TierName,
    typer.Option(
        "--sandbox",
        help="Sandbox tier; none runs programs unconfined.",
        rich_help_panel=SANDBOX,
    ),
]
SandboxCommand = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="With --sandbox command: as 'podman run --rm -i --network none IMAGE'.",
        rich_help_panel=SANDBOX,
    ),
]
ConfirmMode = Annotated[
    Literal["passes", "all", "off"],
    typer.Option(
        "--confirm",
        help="Judge what passes (or all) again with solution and tests in two processes; a pass"
        " counts only there. off is faster, and a cheat can pass.",
        rich_help_panel=SANDBOX,
    ),
]
Packages = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Installed packages that programs may import, such as numpy,sympy [default: none].",
        rich_help_panel=SANDBOX,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Programs run at once [default: one per core].", rich_help_panel=SANDBOX
    ),
]
MemoryMb = Annotated[
    int,
    typer.Option(min=16, help="Memory limit per program, MB.", rich_help_panel=SANDBOX),
]

# --- a repository's history, and its own tests ---

TestShare = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Share of the spans that lie in test files, while other files have some left; 0 leaves"
        " test files out.",
        rich_help_panel=SCORING,
    ),
]
Tests = Annotated[
    str,
    typer.Option(
        metavar="auto|off|PATHS|COMMAND",
        help="Tests that decide too: auto finds them by name; paths, or a command of pytest or"
        " unittest, choose them; off runs none.",
        rich_help_panel=SANDBOX,
    ),
]
TestsPackages = Annotated[
    str | None,
    typer.Option(
        "--packages",
        metavar="NAME|DIR,...",
        help="What the tests may import: packages installed beside codecria, or a folder (a"
        " virtual environment, or one of pip install --target) [default: pytest].",
        rich_help_panel=SANDBOX,
    ),
]
TestsTimeout = Annotated[
    float,
    typer.Option(
        min=1,
        max=3600,
        metavar="SECONDS",
        help="Time for the tests of one commit.",
        rich_help_panel=SANDBOX,
    ),
]

# --- what a verb prints ---

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=OUTPUT),
]
JsonLines = Annotated[
    bool,
    typer.Option("--json", help="Print JSON lines on stdout.", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan and stop.", rich_help_panel=OUTPUT),
]

Devices = Annotated[
    int | None,
    typer.Option(min=1, help="With --dry-run: devices that share the run.", rich_help_panel=OUTPUT),
]


DeviceFlops = Annotated[
    float,
    typer.Option(
        min=1,
        metavar="FLOPS",
        help="With --devices: peak of each, such as 989e12 FLOP/s.",
        rich_help_panel=OUTPUT,
    ),
]
Mfu = Annotated[
    float,
    typer.Option(
        min=0.01,
        max=1,
        metavar="SHARE",
        help="With --devices: share of that peak to plan the time with.",
        rich_help_panel=OUTPUT,
    ),
]


def _parsed(parse: Callable[[str], int]) -> Callable[[Any], int]:
    """A parser whose refusals Typer reports with the option's name."""

    def read(text: Any) -> int:
        try:
            return parse(str(text))  # a configuration file may hold a number
        except UsageError as error:
            raise ValueError(f"{error.message}: {error.hint}") from error

    return read


def _memory_size(text: str) -> int:
    """Bytes of memory as people write them, such as 80GB; at least 1."""
    size = parse_bytes(text)
    if size < 1:
        raise UsageError(f"{text} is less than 1", hint="use bytes, such as 80GB")
    return size


DeviceMemory = Annotated[
    int | None,
    typer.Option(
        parser=_parsed(_memory_size),
        metavar="BYTES",
        help="With --dry-run: memory of each device, such as 80GB.",
        rich_help_panel=OUTPUT,
    ),
]


parsed_bytes = _parsed(parse_bytes)
Drafting = Annotated[
    Literal["auto", "off"],
    typer.Option(
        "--draft",
        help="Draft tokens from text that was seen and verify several in one pass, where that is"
        " faster; the text is the same.",
        rich_help_panel=MACHINE,
    ),
]
CacheDisk = Annotated[
    int,
    typer.Option(
        parser=parsed_bytes,
        metavar="BYTES",
        help="Disk space for prompts that were read, of all models; 0 writes none.",
        rich_help_panel=MACHINE,
    ),
]

Decontaminate = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Leave out what contains a problem of this evaluation set; repeatable.",
        rich_help_panel=INPUT,
    ),
]


def adapted(model: Path, adapter: Path | None) -> Path:
    """A model with the adapter of `--adapter`, as the path that opens both."""
    from codecria.core.checkpoints.adapters.folder import with_adapter

    return with_adapter(model, adapter)


def compute(
    device: str,
    dtype: str,
    engine: EngineName,
    threads: int | None,
    cache_dtype: CacheName,
    *,
    keep_packed: bool = False,
    sharing: Sharing | None = None,
) -> Compute:
    """What a verb's options ask a model to be computed with, in the order of its parameters.

    Args:
        device, dtype, engine, threads, cache_dtype, keep_packed: the options.
        sharing: the processes that compute; None is this one alone.
    """
    from codecria.core.inference.loading import Compute
    from codecria.core.inference.sharing import ALONE

    return Compute(
        device=device,
        dtype=dtype,
        engine=engine,
        threads=threads,
        cache_dtype=cache_dtype,
        keep_packed=keep_packed,
        sharing=sharing or ALONE,
    )


def count_option(help: str, *names: str, panel: str | None = None) -> Any:
    """An option that takes a count as people write it: 50M, 5e7, 50_000_000.

    Args:
        help: the help line.
        names: of the option, if not the parameter's.
        panel: the help group.
    """
    return typer.Option(
        *names, parser=_parsed(parse_count), metavar="N", help=help, rich_help_panel=panel
    )


def complete_sizes(incomplete: str) -> list[str]:
    """Model sizes for the shell to complete."""
    from codecria.core.model.config import MODELS

    return [name for name in MODELS if name.startswith(incomplete.lower())]


def complete_recipes(incomplete: str) -> list[str]:
    """Recipe names for the shell to complete."""
    from codecria.core.training.recipes import RECIPES

    return sorted({name for name, _ in RECIPES if name.startswith(incomplete)})


def complete_fields(incomplete: str) -> list[str]:
    """Recipe fields for `--set`, each with its `=`."""
    from codecria.core.training.overrides import CHANGEABLE

    names = [f"{name}=" for name in CHANGEABLE]
    return [name for name in names if name.startswith(incomplete)]


Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a recipe field; repeatable.",
        autocompletion=complete_fields,
    ),
]


def pairs_of(changes: list[str]) -> dict[str, str]:
    """`--set` values as a mapping.

    Raises:
        UsageError: one is not FIELD=VALUE.
    """
    pairs = [change.partition("=") for change in changes]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise UsageError(
                f"--set {name}{equals} is not FIELD=VALUE", hint="for example --set peak_lr=1e-3"
            )
    return {name.replace("-", "_"): value for name, _, value in pairs}


def names_of(text: str | None) -> tuple[str, ...]:
    """The names in a list with commas between them."""
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def ks_of(text: str) -> tuple[int, ...]:
    """The numbers of `--k`, smallest first.

    Raises:
        UsageError: one is no whole number above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 1_000_000 for part in parts):
        raise UsageError(f"--k {text!r} is not a list of whole numbers above 0", hint="as 1,5,25")
    return tuple(sorted({int(part) for part in parts}))
