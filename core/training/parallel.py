"""Training on several processes: how the weights are split, and what that means for gradients.

Every weight is a DTensor. PyTorch's `fully_shard` gathers the weights of a layer before its forward
and backward, and sums the gradients over the processes that see other tokens (dp and cp). The loss
is divided by the count of targets of the whole batch, so the sum is the gradient of the batch, as
in one process. With tp, what is gathered is this process's part of a layer (tensor_parallel.py).

On disk a weight is always whole: checkpoints are the same whatever the number of processes.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, distributed, nn

from codecria.core.model.context_parallel import ContextSplit
from codecria.core.model.transformer import Block, Transformer

from .world import World


def shard(model: Transformer, world: World, *, dtype: torch.dtype = torch.float32) -> None:
    """Split the weights of a model over the processes, layer by layer; alone, do nothing.

    Every weight is then a DTensor on `world.weights`: the tensor-parallel group has parts of the
    matrices, and the processes that see other tokens have parts of those (FSDP).

    Args:
        model: the same in every process, whole or on meta.
        world: the processes, arranged.
        dtype: what matrix products are computed in. The layers' matrices are gathered in it, as
            autocast would round them there; norms, embedding and output matrix in float32.
    """
    mesh = world.weights
    if mesh is None:
        assert world.size == 1, "the processes are arranged before a model is split"
        return
    if world.mesh.tp > 1:
        from codecria.core.model.tensor_parallel import split_model

        split_model(model, mesh["tp"])
        mesh = mesh["fsdp"]
    _quieten()
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        policy = replace(policy, param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.layers:
        assert isinstance(layer, Block)
        # The norms, a few numbers, are gathered with the model's own weights and stay exact.
        fully_shard([layer.attention, layer.feed_forward], mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums, not means: gloo has no scaled sum, so the factor 1 needs plain sums.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def sum_gradients(model: Transformer, *, now: bool) -> None:
    """Whether the next backward sums the gradients over the processes, or keeps its own.

    What is kept is added to the next ones in float32, and takes memory for all of the layers.
    """
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def context_split(world: World) -> ContextSplit | None:
    """This process's share of its rows' tokens; None where it has whole rows."""
    if world.mesh.cp == 1:
        return None
    return ContextSplit(world.cp_rank, world.mesh.cp, world.context_group)


def _quieten() -> None:
    """Leave out what PyTorch says of things that are meant so."""
    # No output of a layer is changed in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    # A whole tensor is gathered group by group, to be saved.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


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


def clip_gradients(weights: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their norm over all weights is at most `limit`.

    Returns:
        the norm before, the same in every process.
    """
    grads = [w.grad for w in weights if w.grad is not None]
    norm = _total_norm(grads)
    scale = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_
    torch._foreach_mul_([_own(grad) for grad in grads], scale)
    return norm


def _total_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm over all gradients together, whole ones or parts."""
    from torch.distributed.tensor import DTensor, Replicate

    if not grads or not isinstance(grads[0], DTensor):
        return torch.nn.utils.get_total_norm(grads)
    mesh = grads[0].device_mesh
    norms = torch.stack(torch._foreach_norm([_own(grad) for grad in grads]))
    copies = []  # in how many processes of a group the same part lies: a norm's weight under tp
    for grad in grads:
        assert isinstance(grad, DTensor)
        assert grad.device_mesh == mesh, "all weights are on one mesh"
        sizes = zip(mesh.shape, grad.placements, strict=True)
        copies.append(math.prod(n for n, place in sizes if isinstance(place, Replicate)))
    squares = norms.square() / torch.tensor(copies, device=norms.device)
    total = squares.sum()
    for dim in range(mesh.ndim):
        distributed.all_reduce(total, group=mesh.get_group(dim))
    return total.sqrt()


def _own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be split."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
