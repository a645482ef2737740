"""Tensor parallelism of generation: each process computes a part of every layer, of all tokens.

Each process has the heads, the feed-forward widths and the ids of the vocabulary that are its own,
as plain tensors. Matrices are split as in training (tensor_parallel.py), but a decoded token cannot
be cut into parts, and nothing needs a gradient: so all processes hold all hidden states, and the
parts that wo and w2 give are summed.

    embedding  ->  wq wk wv, heads, wo  ->  sum  ->  w1 w3, w2  ->  sum  ...  ->  output matrix
    V / tp         H / tp                   all      F / tp         all           V / tp

Training's DTensors would do the same; here each of their operations takes as long as the product of
one token.

Shapes: B rows, T tokens, C = dim, V vocabulary, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from .loss import vocabulary_part

if TYPE_CHECKING:
    from .transformer import Transformer

Box = tuple[slice, ...]
Read = Callable[[str, Box, Tensor], None]  # a weight's name, what of it, where to
BY_OUTPUT = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight")
BY_INPUT = ("wo.weight", "w2.weight")
BY_VOCABULARY = ("tok_embeddings", "output.weight")


class InferenceSplit:
    """The part of a group that this process has, at both ends of the network.

    Args:
        rank: of this process in the group.
        group: the processes.
        vocab_size: V.
    """

    def __init__(self, rank: int, group: ProcessGroup, vocab_size: int) -> None:
        self.rank, self.group, self.size = rank, group, group.size()
        self.part = vocabulary_part(vocab_size, rank, group)

    def embed(self, ids: Tensor, weight: Tensor, new_rows: Tensor | None = None) -> Tensor:
        """Embeddings from the parts of the matrix: (B,T), (rows,C) -> (B,T,C)."""
        assert new_rows is None, "rows stand apart while they are trained alone"
        own = ids - self.part.start
        known = (own >= 0) & (own < self.part.rows)
        found = F.embedding(torch.where(known, own, 0), weight)
        return self.summed(torch.where(known.unsqueeze(-1), found, 0.0))

    def gather(self, hidden: Tensor) -> Tensor:
        """The hidden states, which every process has."""
        return hidden

    def own_rows(self, weight: Tensor) -> Tensor:
        """(rows,C) this process's part of the output matrix, which is all it has."""
        return weight

    def own_new_rows(self, new_rows: Tensor) -> Tensor:
        """Rows that stand apart, which only training has."""
        raise AssertionError(f"{len(new_rows)} rows stand apart in generation")

    def logits(self, scores: Tensor) -> Tensor:
        """(...,V) scores of the whole vocabulary in the first process; (...,rows) in the others."""
        share = -(-self.part.total // self.size)
        padded = F.pad(scores, (0, share - self.part.rows)).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        distributed.gather(padded, parts, group=self.group, group_dst=0)
        if parts is None:
            return scores
        return torch.cat(parts, dim=-1)[..., : self.part.total]

    def summed(self, part: Tensor) -> Tensor:
        """The sum of what all processes have, in each of them."""
        part = part.contiguous()
        distributed.all_reduce(part, group=self.group)
        return part


def own_box(name: str, shape: tuple[int, ...], split: InferenceSplit) -> Box:
    """The part of a weight that a process of a group has.

    Args:
        name: of the weight.
        shape: of the whole.
        split: the process's place; the group must divide the heads and the feed-forward width.
    """
    whole = tuple(slice(0, size) for size in shape)
    if name.endswith(BY_VOCABULARY):
        return (slice(split.part.start, split.part.start + split.part.rows), *whole[1:])
    for names, dim in ((BY_OUTPUT, 0), (BY_INPUT, 1)):
        if name.endswith(names):
            share = shape[dim] // split.size
            mine = slice(split.rank * share, (split.rank + 1) * share)
            return (*whole[:dim], mine, *whole[dim + 1 :])
    return whole  # norms


def _parts(model: Transformer, split: InferenceSplit) -> Iterator[tuple[str, nn.Parameter, Box]]:
    for name, weight in list(model.named_parameters()):
        yield name, weight, own_box(name, tuple(weight.shape), split)


@torch.no_grad()
def split_for_inference(
    model: Transformer,
    split: InferenceSplit,
    read: Read,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give a model this process's part of every weight, and share its forward with the group.

    Args:
        model: on meta.
        split: this process's place in the group.
        read: reads a part of a weight; nothing else of it is read.
        device, dtype: of the weights.
    """
    from .transformer import Block

    for name, _, box in _parts(model, split):
        part = torch.empty([s.stop - s.start for s in box], dtype=dtype, device=device)
        read(name, box, part)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(part, requires_grad=False))

    def summed(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return split.summed(output)

    for layer in model.layers:
        assert isinstance(layer, Block), "a layer"
        layer.attention.wo.register_forward_hook(summed)
        layer.feed_forward.w2.register_forward_hook(summed)
    model.split = split
