"""Data parallel training: every process holds a shard of each weight, and its own rows of a batch.

PyTorch's `fully_shard` gathers the weights of a layer before its forward and backward, and sums the
gradients over the processes. The loss is divided by the count of targets of the whole batch, so the
sum is the gradient of the batch, as in one process.

On disk a weight is always whole: checkpoints are the same whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from codecria.core.model.transformer import Transformer

from .world import World

T = TypeVar("T")
Read = Callable[[str], Tensor]


def shard(model: Transformer, world: World) -> None:
    """Split the weights of a model over the processes, layer by layer; alone, do nothing.

    Args:
        model: the same in every process.
        world: the processes.
    """
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("dp",))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums, not means: gloo has no scaled sum, so the factor 1 needs plain sums.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, on the device and with the placement of another.

    Every process has the whole tensor, mapped from disk for example: nothing is sent.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split; every process calls it in the same order."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def with_whole_tensors(world: World, tensors: Mapping[str, Tensor], work: Callable[[Read], T]) -> T:
    """Do something with whole tensors in the main process; no more than one is gathered at a time.

    Args:
        world: the processes, each of which calls this.
        tensors: by name, the same names in every process.
        work: called in the main process with a function that gives a whole tensor by its name.

    Returns:
        what it returned, in every process.

    Raises:
        UserError: the main process raised it; every process does then.
    """

    def read(name: str) -> Tensor:
        world.ask(name)
        return whole(tensors[name])

    return world.on_main(lambda: work(read), answer=lambda name: whole(tensors[name]))


def clip_gradients(weights: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their norm over all weights is at most `limit`.

    Returns:
        the norm before, the same in every process.
    """
    weights = list(weights)
    norm = whole(torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(weights, limit, norm)
    return norm
