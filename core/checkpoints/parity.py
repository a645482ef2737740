"""Do two checkpoints compute the same? Logits compared, one layer in memory at a time.

This is a second writing of the model, on purpose: it turns each format's weights in the order they
are stored in (neighbouring pairs as Meta's code does, halves as transformers'), so that a wrong
order of rows in a conversion shows, which reading both through one path would hide. All of it is
float32.

Shapes: B prompts, T tokens, C = dim, H query heads, K key-value heads, D head dimension,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codecria.core.checkpoints.adapters.folder import Pair
from codecria.core.checkpoints.formats.layout import EMBEDDING, OUTPUT, RotaryOrder
from codecria.core.checkpoints.formats.weights import Weights
from codecria.core.model.config import ModelConfig
from codecria.core.model.rope import Llama3Scaling
from codecria.data.tokenizer.tokenizer import Tokenizer

# Plain code, in words and constructs that any model of code knows.
PROBE_TEXT = '''\
def binary_search(values, wanted):
    """Return the index of wanted in the sorted list values, or -1 if it is not there."""
    low, high = 0, len(values) - 1
    while low <= high:
        middle = (low + high) // 2
        if values[middle] == wanted:
            return middle
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def __len__(self):
        return len(self.items)


if __name__ == "__main__":
    stack = Stack()
    for number in range(10):
        stack.push(number)
    while len(stack) > 0:
        print(stack.pop())
'''
PROMPT_TOKENS = 64

Product = Callable[[Tensor], Tensor]  # by one matrix of the model


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A way to read weights: as which shape, with which order of pairs."""

    config: ModelConfig
    rotary_order: RotaryOrder


def probe_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids of the text, after BOS where the tokenizer has one."""
    first = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    return [*first, *tokenizer.encode(PROBE_TEXT)]


def prompts(config: ModelConfig, tokenizer: Tokenizer | None) -> tuple[Tensor, Tensor]:
    """Fixed prompts: code, ids from the whole vocabulary, its last ids, and the code far away.

    The last rows of the embedding are those of the infilling pieces.

    Args:
        config: of the model; its context sets the far positions.
        tokenizer: encodes the text; without one, ids spread over the vocabulary stand in for it.

    Returns:
        ids and positions, (B,T) each.
    """
    T = min(PROMPT_TOKENS, config.max_context)
    spread = [(7919 * i + config.bos_id) % config.vocab_size for i in range(T)]
    text = spread
    if tokenizer is not None and tokenizer.vocab_size <= config.vocab_size:
        encoded = probe_ids(tokenizer)
        text = (encoded * (T // len(encoded) + 1))[:T]
    last = [config.vocab_size - 1 - i % config.vocab_size for i in range(T)]
    near = torch.arange(T)
    far = near + config.max_context - T
    ids = torch.tensor([text, spread, last, text])
    return ids, torch.stack([near, near, near, far])


@torch.inference_mode()
def logits(
    weights: Weights,
    views: Sequence[View],
    ids: Tensor,
    positions: Tensor,
    on_layer: Callable[[int], None] | None = None,
    *,
    pairs: Mapping[str, Pair] | None = None,
    on_input: Callable[[str, Tensor], None] | None = None,
) -> list[Tensor]:
    """Scores under several views of the same weights, each weight read once.

    Args:
        weights: of the checkpoint.
        views: how to read them; they agree in the weights' shapes.
        ids, positions: (B,T).
        on_layer: called as each layer is done.
        pairs: adapters that are applied beside their matrices, which are the base's own then.
        on_input: called with the name of each matrix and what it multiplies, (B,T,C).

    Returns:
        (B,T,V) float32 for each view.

    Raises:
        UserError: a weights file is damaged.
    """

    def take(name: str) -> Tensor:
        with weights.borrow(name) as tensor:
            return tensor.to(torch.float32, copy=True)

    def product(name: str) -> Product:
        matrix = take(name)
        pair = (pairs or {}).get(name)
        if on_input is not None:

            def watched(x: Tensor) -> Tensor:
                on_input(name, x)
                return F.linear(x, matrix)

            return watched
        if pair is None:
            return lambda x: F.linear(x, matrix)
        a, b = torch.from_numpy(pair.a), torch.from_numpy(pair.b)
        return lambda x: F.linear(x, matrix) + pair.scale * F.linear(F.linear(x, a), b)

    config = views[0].config
    with weights.borrow(EMBEDDING) as table:
        first = F.embedding(ids, table).float()
    streams = [first] * len(views)
    turns = [_rotations(view, positions) for view in views]
    for layer in range(config.n_layers):
        at = f"layers.{layer}."
        norm = take(at + "attention_norm.weight")
        wq, wk, wv, wo = (product(f"{at}attention.{n}.weight") for n in ("wq", "wk", "wv", "wo"))
        streams = [
            x + _attention(_norm(x, norm, config), (wq, wk, wv, wo), view, turn)
            for x, view, turn in zip(streams, views, turns, strict=True)
        ]
        del wq, wk, wv, wo
        norm = take(at + "ffn_norm.weight")
        normed = [_norm(x, norm, config) for x in streams]
        gate = product(at + "feed_forward.w1.weight")
        inner = [F.silu(gate(x)) for x in normed]
        del gate
        up = product(at + "feed_forward.w3.weight")
        inner = [x * up(y) for x, y in zip(inner, normed, strict=True)]
        del up
        down = product(at + "feed_forward.w2.weight")
        streams = [x + down(y) for x, y in zip(streams, inner, strict=True)]
        del down
        if on_layer is not None:
            on_layer(layer)
    norm = take("norm.weight")
    output = product(EMBEDDING if config.tied else OUTPUT)
    return [output(_norm(x, norm, config)) for x in streams]


def _norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps) * weight


def _rotations(view: View, positions: Tensor) -> Tensor:
    """The angles' unit vectors as complex numbers: (B,T,1,D/2)."""
    D = view.config.head_dim
    exponents = torch.arange(0, D, 2, dtype=torch.float64) / D
    frequencies = view.config.rope_theta**-exponents / view.config.rope_scale
    if view.config.llama3 is not None:
        frequencies = _llama3(frequencies, view.config.llama3)
    angles = positions.double().unsqueeze(-1) * frequencies
    return torch.polar(torch.ones_like(angles), angles).unsqueeze(2).to(torch.complex64)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's rule in its published form, by turns within the original context: (D/2,)."""
    turns = scaling.original_context * frequencies / (2 * torch.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _rotate(x: Tensor, view: View, turn: Tensor) -> Tensor:
    """Each pair of a head's values is a complex number, multiplied: (B,T,H,D) -> (B,T,H,D)."""
    *outer, D = x.shape
    if view.rotary_order == "interleaved":
        pairs = torch.view_as_complex(x.reshape(*outer, D // 2, 2))
        return torch.view_as_real(pairs * turn).flatten(-2)
    pairs = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * turn
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def _attention(
    x: Tensor, matrices: tuple[Product, Product, Product, Product], view: View, turn: Tensor
) -> Tensor:
    wq, wk, wv, wo = matrices
    config = view.config
    B, T, _ = x.shape
    groups = config.n_heads // config.n_kv_heads

    def heads(matrix: Product) -> Tensor:
        return matrix(x).view(B, T, -1, config.head_dim)

    q = _rotate(heads(wq), view, turn).transpose(1, 2)  # (B,H,T,D)
    k = _rotate(heads(wk), view, turn).repeat_interleave(groups, dim=2).transpose(1, 2)
    v = heads(wv).repeat_interleave(groups, dim=2).transpose(1, 2)
    scores = q @ k.transpose(-1, -2) / config.head_dim**0.5
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return wo(mixed.transpose(1, 2).reshape(B, T, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far the logits of two checkpoints are apart.

    Attributes:
        largest: absolute difference.
        relative: norm of the difference over the norm of the logits, both less their means over
            the vocabulary, which no probability depends on.
        kl: mean divergence of the second's distribution from the first's, in nats a token.
        agree: share of tokens at which both rank the same token first.
    """

    largest: float
    relative: float
    kl: float
    agree: float


def difference(first: Tensor, second: Tensor) -> Difference:
    """Compare logits: (B,T,V) each."""
    a = first - first.mean(-1, keepdim=True)
    b = second - second.mean(-1, keepdim=True)
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return Difference(
        largest=float((a - b).abs().max()),
        relative=float((a - b).norm() / a.norm().clamp_min(1e-30)),
        kl=float((p.exp() * (p - q)).sum(-1).mean()),
        agree=float((a.argmax(-1) == b.argmax(-1)).float().mean()),
    )
