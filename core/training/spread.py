"""What a step takes on each of several devices, and which mesh suits a run.

As `parallel.shard` does it: a device keeps its part of each weight, gradient and moment in float32.
A layer's weights are gathered before its forward and again before its backward, those outside of
the layers once a pass. Every figure is a function of shapes: no device is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from codecria.core.model.config import ModelConfig
from codecria.core.model.loss import CHUNK_BYTES
from codecria.data.errors import UsageError

from .adapters import four_bit_bytes, trained_parameters
from .mesh import Mesh, check_mesh, parse_mesh
from .plan import fullest, layer_parameters, memory_bytes, step_moments
from .recipes import Recipe

# To compare meshes: what a device sends a second, about half of what links are sold with.
LINK_INSIDE = 200e9  # NVLink of an H100: 450 GB/s each way
LINK_BETWEEN = 25e9  # a network card of 400 Gbit/s for each device
# Of a device's memory a plan fills at most this much: CUDA's own memory, NCCL's buffers and
# fragments of the allocator are not in its parts.
FILLED = 0.9
PER_MACHINE = 8  # devices of a machine, where nothing says otherwise
PEAK_FLOPS = 989e12  # an H100's in bfloat16, dense (NVIDIA's data sheet)
MFU = 0.4  # the share of the peak that a plan's time assumes


WEIGHTS, GRADIENTS = "weights", "gradients"  # what is sent
HIDDEN, KEYS = "hidden states (tp)", "keys and values (cp)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the devices of a run compute a step.

    Attributes:
        mesh: how they share the work.
        micro_batch_size: rows of one forward pass.
        recompute: whether activations are recomputed in backward.
        dtype: of matrix products.
    """

    mesh: Mesh
    micro_batch_size: int
    recompute: bool
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The devices that a plan is made for.

    Attributes:
        devices: how many share the run.
        memory: bytes of each; None if unknown.
        per_machine: devices of one machine.
        peak_flops: of each device, FLOP/s.
        mfu: the share of it that a run reaches.
    """

    devices: int
    memory: int | None = None
    per_machine: int = PER_MACHINE
    peak_flops: float = PEAK_FLOPS
    mfu: float = MFU

    @property
    def room(self) -> int | None:
        """Bytes of each that a plan may fill; None if unknown."""
        return None if self.memory is None else int(FILLED * self.memory)

    def link(self, neighbours: int) -> float:
        """Bytes a second between a device and others, by how many neighbours they are among."""
        return LINK_INSIDE if neighbours <= self.per_machine else LINK_BETWEEN


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadPlan:
    """What a step takes on each device.

    Attributes:
        way: how they compute.
        machines: the devices.
        memory: bytes on a device, by part.
        links: bytes that a device sends or receives a step, by what they are.
        link_seconds: what each of these takes (`link_seconds`).
        seconds: of a step, at the given share of the devices' peak; links are not counted.
    """

    way: Way
    machines: Machines
    memory: Mapping[str, int]
    links: Mapping[str, int]
    link_seconds: Mapping[str, float]
    seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether a device holds it, with room to spare; None if its memory is unknown."""
        room = self.machines.room
        return None if room is None else sum(self.memory.values()) <= room

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "devices": self.machines.devices,
            "mesh": asdict(self.way.mesh),
            "micro_batch_size": self.way.micro_batch_size,
            "recompute": self.way.recompute,
            "dtype": self.way.dtype,
            "memory_bytes": dict(self.memory) | {"total": sum(self.memory.values())},
            "link_bytes": dict(self.links),
            "link_seconds": dict(self.link_seconds),
            "step_seconds": self.seconds,
            "peak_flops": self.machines.peak_flops,
            "mfu": self.machines.mfu,
            "device_memory": self.machines.memory,
            "fits": self.fits,
        }


def _gathered(config: ModelConfig, recipe: Recipe | None) -> tuple[int, int]:
    """`layer_parameters` of what is split: of a base in 4 bits, every device has the layers."""
    layer, outside = layer_parameters(config)
    if recipe is not None and recipe.qlora:
        layer = -(-trained_parameters(config, recipe, 0) // config.n_layers)
    return layer, outside


def spread_memory(
    config: ModelConfig, context: int, way: Way, recipe: Recipe | None = None
) -> dict[str, int]:
    """Bytes of a step on each device at its fullest moment, by part: see `spread_moments`."""
    return fullest(spread_moments(config, context, way, recipe))


def spread_moments(
    config: ModelConfig, context: int, way: Way, recipe: Recipe | None = None
) -> dict[str, dict[str, int]]:
    """Bytes of a step on each device, by moment ("loss", "backward", "end") and part.

    Gathered are the weights outside of the layers, from forward to the end of backward, and two
    layers (one in use, the next on its way). Backward has the gradients of two layers, before and
    in their sum; at its end, when no activations are left, those of the weights outside too. With
    tp, all of these are a device's part.

    Of the activations that `step_moments` counts, cp leaves a share, and tp a share of all but the
    inputs of the matrix products, which need every token; backward keeps the gathered keys and
    values of whole rows. In bfloat16, the loss multiplies by a copy of the output matrix.

    Args:
        config: the shape.
        context: tokens of a row.
        way: how the devices compute.
        recipe: as for `step_moments`.
    """
    mesh, micro = way.mesh, way.micro_batch_size
    alone = step_moments(config, context, micro, way.dtype, recompute=way.recompute, recipe=recipe)
    if mesh.size == 1:
        return alone
    size = 4 if way.dtype == "float32" else 2
    layer, outside = (-(-count // mesh.tp) for count in _gathered(config, recipe))
    matrix = -(-config.vocab_size * config.dim // mesh.tp)
    state = dict(alone["loss"])
    whole = four_bit_bytes(config) if recipe is not None and recipe.qlora else 0
    state["weights"] -= whole
    split = ("weights", "gradients", "optimizer moments")
    common = {part: -(-state[part] // mesh.size) for part in split} | {
        **({"weights in 4 bits": whole} if whole else {}),
        "gathered weights": 2 * size * layer + 4 * outside,
    }
    gradients = 2 * (size + 4) * layer
    kept, again = _activations(config, context // mesh.cp * micro, way, size)
    return {
        "loss": common
        | {
            "activations": kept,
            "logits": 2 * CHUNK_BYTES + 4 * matrix + (2 * matrix if size == 2 else 0),
        },
        "backward": common
        | {
            "gathered gradients": gradients,
            "activations": kept + again,
            "gradient of the output": 4 * matrix,
        },
        "end": common | {"gathered gradients": gradients + 8 * outside},
    }


def _activations(config: ModelConfig, tokens: int, way: Way, size: int) -> tuple[int, int]:
    """Bytes of activations of a device's tokens: kept, and recomputed one layer at a time.

    Numbers of the compute type take `size` each.
    """
    C, tp, cp = config.dim, way.mesh.tp, way.mesh.cp
    keys = 2 * config.n_kv_heads * config.head_dim
    shared = size * (4 * C + keys * (cp if cp > 1 else 1) + 4 * config.hidden_dim) + 8 * C
    layer = size * 2 * C + shared // tp
    kept = config.n_layers * (4 * C // tp if way.recompute else layer) + 2 * size * C
    return tokens * kept, tokens * layer if way.recompute else 0


def link_bytes(
    config: ModelConfig, recipe: Recipe, way: Way, memory: int | None = None
) -> dict[str, int]:
    """Bytes of a step that a device receives of weights, keys and values, and hidden states, and
    sends of gradients.

    Args:
        config: the shape.
        recipe: gives rows and context.
        way: how the devices compute.
        memory: bytes of a device that a step may take, for gradients: they are sent once a step
            where it holds them all (`accumulates`), else once a pass.
    """
    mesh, micro = way.mesh, way.micro_batch_size
    size = 4 if way.dtype == "float32" else 2
    passes = -(-recipe.rows // mesh.dp // micro)
    sums = 1 if memory is not None and accumulates(config, recipe, way, memory) else passes
    tokens = recipe.rows // mesh.dp * recipe.context // mesh.cp  # of a step, of this device
    layer, outside = _gathered(config, recipe)
    layers = config.n_layers * layer
    parts = mesh.token_parts  # all but one come from elsewhere
    found = {
        WEIGHTS: passes * (2 * size * layers + 4 * outside) // mesh.tp * (parts - 1) // parts,
        GRADIENTS: sums * 4 * (layers + outside) // mesh.tp * (parts - 1) // parts,
    }
    if mesh.tp > 1:
        # In a layer twice gathered and twice summed, and again in backward; at both ends once.
        a_layer = size * (12 if way.recompute else 8)
        each = config.dim * (config.n_layers * a_layer + 4 * 4)
        found[HIDDEN] = tokens * each * (mesh.tp - 1) // mesh.tp
    if mesh.cp > 1:
        each = 2 * config.n_kv_heads * config.head_dim // mesh.tp * size * config.n_layers
        times = 3 if way.recompute else 2
        found[KEYS] = tokens * each * times * (mesh.cp - 1)
    return found


def step_seconds(config: ModelConfig, recipe: Recipe, machines: Machines) -> float:
    """Seconds of a step's FLOPs at the given share of all devices' peak."""
    frozen = recipe.lora_rank > 0
    flops = config.training_flops(recipe.context, frozen=frozen) * recipe.batch_tokens
    return flops / (machines.devices * machines.peak_flops * machines.mfu)


def link_seconds(links: Mapping[str, int], mesh: Mesh, machines: Machines) -> dict[str, float]:
    """Seconds that each of a step's `link_bytes` takes: within a machine, or between machines where
    a device's partners are on several.
    """
    partners = {HIDDEN: mesh.tp, KEYS: mesh.tp * mesh.cp}
    return {
        what: size / machines.link(partners.get(what, mesh.size)) for what, size in links.items()
    }


def _estimate(config: ModelConfig, recipe: Recipe, way: Way, machines: Machines) -> float:
    """Seconds of a step with its links, to compare meshes: weights are sent while it computes."""
    compute = step_seconds(config, recipe, machines) * (4 / 3 if way.recompute else 1)
    links = link_bytes(config, recipe, way, machines.room)
    waits = link_seconds(links, way.mesh, machines)
    meanwhile = waits.pop(WEIGHTS) + waits.pop(GRADIENTS)
    return max(compute, meanwhile) + sum(waits.values())


def meshes(config: ModelConfig, recipe: Recipe, machines: Machines) -> Iterator[Mesh]:
    """Every mesh that can be, those with the most dp first; tp stays within a machine."""
    count = machines.devices
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    for dp in reversed(divisors):
        for tp in divisors:
            if count % (dp * tp) == 0 and machines.per_machine % tp == 0:
                mesh = Mesh(dp=dp, tp=tp, cp=count // (dp * tp))
                try:
                    check_mesh(mesh, recipe, config)
                except UsageError:
                    continue
                yield mesh


def choose_way(
    config: ModelConfig,
    recipe: Recipe,
    machines: Machines,
    *,
    mesh: Mesh | None,
    micro_batch_size: int | None,
    dtype: str,
    recompute: bool | None,
) -> Way:
    """The way with the fastest step of those that fit: what --mesh auto means.

    Where nothing fits, it is the way that needs the least; where the memory is unknown, all fit.

    Args:
        config, recipe: what is trained.
        machines: the devices.
        mesh, micro_batch_size, recompute: as asked for; None leaves them open.
        dtype: of matrix products.
    """
    found = [mesh] if mesh is not None else list(meshes(config, recipe, machines))
    found = found or [Mesh(dp=machines.devices)]  # whose refusal says what is wrong
    ways = [
        Way(mesh=each, micro_batch_size=rows, recompute=again, dtype=dtype)
        for each in found
        for rows in _micro_batches(recipe.rows // each.dp, micro_batch_size)
        for again in ((False, True) if recompute is None else (recompute,))
    ]

    def need(way: Way) -> int:
        return sum(spread_memory(config, recipe.context, way, recipe).values())

    fitting = [way for way in ways if machines.room is None or need(way) <= machines.room]
    if not fitting:
        return min(ways, key=need)
    return min(fitting, key=lambda way: _estimate(config, recipe, way, machines))


def _micro_batches(share: int, asked: int | None) -> list[int]:
    """Rows of a pass to choose from, where a device has a share of the rows."""
    if asked is not None:
        return [min(asked, max(1, share))]
    return [rows for rows in range(1, share + 1) if share % rows == 0] or [1]


def accumulates(config: ModelConfig, recipe: Recipe, way: Way, memory: int) -> bool:
    """Whether a device can keep all gradients of its part of the layers until a step's last pass.

    They are then summed over the processes once a step, not once a pass.
    """
    alone = memory_bytes(config, recipe.context, 1, way.dtype, recipe=recipe)
    kept = alone["gradients"] // way.mesh.tp
    return sum(spread_memory(config, recipe.context, way, recipe).values()) + kept <= memory


def plan_spread(
    recipe: Recipe,
    config: ModelConfig,
    machines: Machines,
    *,
    mesh: str,
    micro_batch_size: int | None,
    dtype: str,
    recompute: bool | None,
) -> SpreadPlan:
    """Plan a step on several devices.

    Args:
        recipe, config: what is trained.
        machines: the devices.
        mesh: as --mesh has it.
        micro_batch_size, recompute: as asked for; None leaves them open.
        dtype: of matrix products.

    Raises:
        UsageError: the work cannot be shared so.
    """
    if machines.memory is None:  # everything would fit
        micro_batch_size, recompute = micro_batch_size or 1, bool(recompute)
    asked = parse_mesh(mesh, machines.devices)
    if asked is not None:
        check_mesh(asked, recipe, config)
    way = choose_way(
        config,
        recipe,
        machines,
        mesh=asked,
        micro_batch_size=micro_batch_size,
        dtype=dtype,
        recompute=recompute,
    )
    check_mesh(way.mesh, recipe, config)
    links = link_bytes(config, recipe, way, machines.room)
    return SpreadPlan(
        way=way,
        machines=machines,
        memory=spread_memory(config, recipe.context, way, recipe),
        links=links,
        link_seconds=link_seconds(links, way.mesh, machines),
        seconds=step_seconds(config, recipe, machines),
    )
