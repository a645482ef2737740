"""Tensor parallelism: each process of a group computes a part of every layer, of the same tokens.

PyTorch's styles split the matrices (DTensor): wq, wk, wv, w1 and w3 by their output, wo and w2 by
their input, the embedding and the output matrix by the vocabulary. Between the layers each process
keeps a part of the tokens (sequence parallelism), so norms and sums are split too:

    embedding  ->  norm  ->  gather tokens  ->  wq wk wv, heads, wo  ->  sum, keep own tokens ...
    V / tp         T / tp    T                  H / tp                   T / tp

No process holds all logits: each scores its part of the vocabulary, and the loss needs the largest
score, the sum of exponentials and the target's score of all parts, three numbers a token.

Shapes: B rows, T tokens, C = dim, V vocabulary, H heads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

from .linear import Linear
from .loss import vocabulary_part

if TYPE_CHECKING:
    from .transformer import Transformer


BY_INPUT = ("attention.wo", "feed_forward.w2")  # matrices whose input is split, not their output


class TensorSplit:
    """The part of a tensor-parallel group that this process has, at both ends of the network.

    Args:
        mesh: the group, one dimension.
        vocab_size: V.
    """

    layout = Shard(1)  # between the layers each process keeps a part of the tokens

    def __init__(self, mesh: DeviceMesh, vocab_size: int) -> None:
        self.mesh = mesh
        self.part = vocabulary_part(vocab_size, mesh.get_local_rank(), mesh.get_group())

    def embed(self, ids: Tensor, weight: Tensor, new_rows: Tensor | None = None) -> Tensor:
        """Embeddings from the parts of the matrix.

        Args:
            ids: (B,T).
            weight: (V,C), split by V.
            new_rows: (n,C) that stand for the last rows, whole in every process.

        Returns:
            (B,T / tp,C), this process's tokens.
        """
        assert isinstance(weight, DTensor), "the embedding is split"
        own = ids - self.part.start
        known = (own >= 0) & (own < self.part.rows)
        found = F.embedding(torch.where(known, own, 0), weight.to_local())
        found = torch.where(known.unsqueeze(-1), found, 0.0)
        if new_rows is not None:
            place = ids - (self.part.total - len(new_rows))
            assert isinstance(new_rows, DTensor), "weights are on the mesh"
            fresh = F.embedding(place.clamp(min=0), new_rows.to_local(grad_placements=[Partial()]))
            # All are summed: one process gives these.
            fresh = fresh if self.mesh.get_local_rank() == 0 else fresh * 0.0
            found = torch.where((place >= 0).unsqueeze(-1), fresh, found)
        whole = DTensor.from_local(found, self.mesh, [Partial()], run_check=False)
        return whole.redistribute(placements=[self.layout]).to_local()

    def gather(self, hidden: Tensor) -> Tensor:
        """All tokens of the hidden states, for products with a part of the vocabulary."""
        assert isinstance(hidden, DTensor), "hidden states are split as the layers leave them"
        whole = hidden.redistribute(placements=[Replicate()])
        # Each process's gradient is that of its part of the vocabulary: they add up.
        return whole.to_local(grad_placements=[Partial()])

    def own_rows(self, weight: Tensor) -> Tensor:
        """(rows,C) this process's part of the output matrix (V,C)."""
        assert isinstance(weight, DTensor), "the output matrix is split"
        return weight.to_local()

    def own_new_rows(self, new_rows: Tensor) -> Tensor:
        """(n,C) those of the new rows that are the last of this process's part, perhaps none."""
        assert isinstance(new_rows, DTensor), "weights are on the mesh"
        first = self.part.total - len(new_rows)
        start, end = self.part.start, self.part.start + self.part.rows
        own = slice(max(start, first) - first, max(end, first) - first)
        return new_rows.to_local(grad_placements=[Partial()])[own]


def _as_multiplied(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001
    """What a norm gives, in the type of matrix products: half as much is gathered in bfloat16."""
    kind = output.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output


def summed_adapter(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The adapter of a matrix that is split by its input: this process's term of the sum.

    B is linear, so it is applied to each process's own A x, and what leaves the layer is summed
    once, with the term of the matrix itself.

    Args:
        x: (..., in) split by in.
        a: (rank,in) split by in.
        b: (out,rank) whole in every process.
        scale: of the product.
    """
    assert isinstance(x, DTensor), "the input is split"
    assert isinstance(a, DTensor), "A is split as its matrix"
    assert isinstance(b, DTensor), "weights are on the mesh"
    narrow = F.linear(x.to_local(), a.to_local())
    term = scale * F.linear(narrow, b.to_local(grad_placements=[Partial()]))
    return DTensor.from_local(term, x.device_mesh, [Partial()], run_check=False)


def _split_adapters(
    adapters: Mapping[Linear, tuple[Tensor, Tensor]],
    mesh: DeviceMesh,
    summed: Collection[nn.Module],
) -> None:
    """Split adapters as their matrices are: B by its output, or A by its input."""
    for module, (a, b) in adapters.items():
        module.summed = module in summed
        places = (Shard(1), Replicate()) if module.summed else (Replicate(), Shard(0))
        for name, whole, place in zip(("lora_a", "lora_b"), (a, b), places, strict=True):
            part = distribute_tensor(whole.detach(), mesh, [place], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(part))


def split_model(model: Transformer, mesh: DeviceMesh) -> None:
    """Split a model's weights over a tensor-parallel group, and its forward with them.

    Rows must be divisible by the group. Generation has single tokens: see tensor_inference.py.

    Args:
        model: whole, the same in every process of the group, or on meta.
        mesh: the group, one dimension.
    """
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    split = TensorSplit(mesh, model.config.vocab_size)
    own, all_tokens = split.layout, Replicate()
    inputs = PrepareModuleInput(
        input_layouts=(own, None, None), desired_input_layouts=(all_tokens, None, None)
    )
    one_input = PrepareModuleInput(input_layouts=(own,), desired_input_layouts=(all_tokens,))
    rows = RowwiseParallel(output_layouts=own)
    norm = SequenceParallel()
    norm.sequence_sharding = (own,)
    plan: dict[str, ParallelStyle] = {
        "attention_norm": norm,
        "attention": inputs,
        "attention.wq": ColwiseParallel(),
        "attention.wk": ColwiseParallel(),
        "attention.wv": ColwiseParallel(),
        "attention.wo": rows,
        "ffn_norm": norm,
        "feed_forward": one_input,
        "feed_forward.w1": ColwiseParallel(),
        "feed_forward.w3": ColwiseParallel(),
        "feed_forward.w2": rows,
    }
    adapters: dict[Linear, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        if isinstance(module, Linear) and module.lora_a is not None and module.lora_b is not None:
            adapters[module] = (module.lora_a, module.lora_b)
            module.lora_a = module.lora_b = None  # PyTorch's styles would split both by rows
    for layer in model.layers:
        parallelize_module(layer, mesh, plan, src_data_rank=None)
        for name in ("attention_norm", "ffn_norm"):
            getattr(layer, name).register_forward_hook(_as_multiplied)
    parallelize_module(model, mesh, {"norm": norm}, src_data_rank=None)
    matrices: list[tuple[nn.Module, str]] = [(model, "tok_embeddings")]
    if not model.config.tied:
        matrices.append((model.output, "weight"))
    for module, name in matrices:
        whole = getattr(module, name).detach()
        part = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(part))
    by_input = {f"layers.{n}.{name}" for n in range(len(model.layers)) for name in BY_INPUT}
    summed = [module for name, module in model.named_modules() if name in by_input]
    _split_adapters(adapters, mesh, summed)
    for name in ("new_embeddings", "new_outputs"):
        if (rows_of := getattr(model, name)) is not None:
            part = distribute_tensor(rows_of.detach(), mesh, [Replicate()], src_data_rank=None)
            model.register_parameter(name, nn.Parameter(part))
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained[name])
    model.split = split
