"""The Llama 2 transformer, exactly: pre-norm blocks, rotary positions, SwiGLU (PAPER section 1).

The model turns token ids into hidden states, and with targets into the loss. Training never holds
the logits of a whole batch: core/model/loss.py multiplies by the output matrix chunk by chunk.

Parameter names are Llama's (wq, w1, attention_norm); core/checkpoints/checkpoint.py maps them to
the names on disk. Rotary pairs are half-split, as in the Hugging Face layout, so weights load
without a copy.

Shapes: B batch, T tokens, C = dim, H query heads, K key-value heads, D head dimension,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import context_parallel, head, spans
from .attention import Attend
from .config import ModelConfig
from .head import Head, Targets
from .linear import Linear
from .rope import llama3_divisors

if TYPE_CHECKING:
    from .tensor_inference import InferenceSplit
    from .tensor_parallel import TensorSplit

RopeTables = tuple[Tensor, Tensor]  # cosines and sines, each (B,T,1,D/2) float32


def rope_tables(positions: Tensor, config: ModelConfig) -> RopeTables:
    """The cosines and sines of the rotary angles, in float32 whatever the model's type.

    freq_i = theta^(-2i/D) with D the head dimension (PAPER section 1); linear scaling divides
    the positions, llama3 scaling some frequencies (rope.py). They are computed once a forward pass,
    for all layers. The model stores no table, so converting the model cannot round one.

    Args:
        positions: (B,T) integers.
        config: gives theta, the scale and D.
    """
    D = config.head_dim
    exponents = torch.arange(0, D, 2, dtype=torch.float32, device=positions.device) / D
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scale != 1.0:
        frequencies = frequencies / config.rope_scale
    if config.llama3 is not None:
        divisors = llama3_divisors(config.llama3, config.rope_theta, D)
        frequencies = frequencies / torch.tensor(divisors, device=positions.device)
    angles = positions.float().unsqueeze(-1) * frequencies  # (B,T,D/2)
    return angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)


def exact(x: Tensor) -> Tensor:
    """A tensor in float32 at least, the type that must not round: float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def apply_rope(x: Tensor, rope: RopeTables) -> Tensor:
    """Rotate the half-split pairs (x[i], x[i + D/2]) of each head: (B,T,H,D) -> (B,T,H,D)."""
    cos, sin = rope
    a, b = exact(x).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32, cast back, then scaled (PAPER section 1)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        wide = exact(x)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Multi-head or grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.wq = Linear(config.dim, config.n_heads * config.head_dim)
        self.wk = Linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wv = Linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wo = Linear(config.n_heads * config.head_dim, config.dim)

    def forward(self, x: Tensor, rope: RopeTables, attend: Attend) -> Tensor:
        """(B,T,C) -> (B,T,C)."""
        B, T, _ = x.shape
        q = apply_rope(self.wq(x).view(B, T, -1, self.head_dim), rope)  # (B,T,H,D)
        k = apply_rope(self.wk(x).view(B, T, -1, self.head_dim), rope)  # (B,T,K,D)
        v = self.wv(x).view(B, T, -1, self.head_dim)
        # Training's attention knows no layers, and a number would compile each layer anew.
        layer = 0 if torch.compiler.is_compiling() else self.layer
        out: Tensor = self.wo(attend(layer, q, k, v).reshape(B, T, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.hidden_dim)
        self.w2 = Linear(config.hidden_dim, config.dim)
        self.w3 = Linear(config.dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,C) -> (B,T,C)."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """One layer: attention and feed-forward, each normalised before and added to its input."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rope: RopeTables, attend: Attend) -> Tensor:
        """(B,T,C) -> (B,T,C)."""
        x = x + self.attention(self.attention_norm(x), rope, attend)
        x = x + self.feed_forward(self.ffn_norm(x))
        return x


class Transformer(nn.Module):
    """A Llama language model.

    Built with unset weights: call `initialise` to train from scratch, or load a checkpoint
    (`core.checkpoint.load_model`). Under `torch.device("meta")` nothing is allocated.

    `recompute` turns activation checkpointing on: training keeps only each layer's input and
    computes its other activations again in backward, a third more work for less memory.

    `split` is how processes share the layers and the vocabulary (tensor_parallel.py in training,
    tensor_inference.py in generation), None alone.

    Where only the last rows of the embedding and the output matrix are trained (those of new
    pieces, beside an adapter), `new_embeddings` and `new_outputs` stand in their place.

    Args:
        config: the shape.
    """

    new_embeddings: nn.Parameter | None
    new_outputs: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.split: TensorSplit | InferenceSplit | None = None
        self.tok_embeddings = nn.Parameter(torch.empty(config.vocab_size, config.dim))
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied:
            self.output = Linear(config.dim, config.vocab_size)
        self.register_parameter("new_embeddings", None)
        self.register_parameter("new_outputs", None)
        self.head = Head()

    def train_last_rows(self, rows: int) -> None:
        """Give the last rows of the embedding and the output matrix weights of their own."""
        self.new_embeddings = nn.Parameter(self.tok_embeddings[-rows:].detach().clone())
        if not self.config.tied:
            self.new_outputs = nn.Parameter(self.output.weight[-rows:].detach().clone().float())

    @property
    def output_weight(self) -> Tensor:
        """The output matrix (V,C): its own, or the embedding when tied."""
        return self.tok_embeddings if self.config.tied else self.output.weight

    def forward(
        self, ids: Tensor, positions: Tensor, attend: Attend, targets: Targets | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states after the final norm, or with targets the loss.

        Args:
            ids: (B,T) token ids.
            positions: (B,T) the position of each token, for the rotary angles.
            attend: who sees whom, core/model/attention.py or core/inference/cache.py.
            targets: what to compute the loss of.

        Returns:
            (B,T,C) hidden states; or the loss and each token's, see `Head`.
        """
        if self.split is None:
            x = F.embedding(ids, self.tok_embeddings)
            if self.new_embeddings is not None:
                place = ids - (self.config.vocab_size - len(self.new_embeddings))
                fresh = F.embedding(place.clamp(min=0), self.new_embeddings)
                x = torch.where((place >= 0).unsqueeze(-1), fresh, x)
        else:
            x = self.split.embed(ids, self.tok_embeddings, self.new_embeddings)
        rope = rope_tables(positions, self.config)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                # Nothing in a layer is random, so there is no random state to keep.
                x = checkpoint(
                    layer, x, rope, attend, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = layer(x, rope, attend)
        hidden: Tensor = self.norm(x)
        if self.split is not None:
            hidden = self.split.gather(hidden)
        if targets is None:
            return hidden
        losses: tuple[Tensor, Tensor]
        new_rows: Tensor | None = self.new_embeddings if self.config.tied else self.new_outputs
        if self.split is None:
            losses = self.head(hidden, self.output_weight, targets, None, new_rows)
        else:
            weight = self.split.own_rows(self.output_weight)
            if new_rows is not None:
                new_rows = self.split.own_new_rows(new_rows)
            losses = self.head(hidden, weight, targets, self.split.part, new_rows)
        return losses

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token in float32: (...,C) -> (...,V).

        Where processes share the vocabulary, the first of them gets all scores, the others theirs.
        """
        if self.split is None:
            scores: Tensor = self.head(hidden, self.output_weight)
            return scores
        from .tensor_inference import InferenceSplit

        assert isinstance(self.split, InferenceSplit), "training holds no logits"
        return self.split.logits(self.head(hidden, self.split.own_rows(self.output_weight)))

    def draws(self, seed: int) -> Iterator[tuple[str, int, Tensor]]:
        """Fresh weights: normal with deviation 0.02, norms one.

        Matrices that write into the residual stream (wo, w2) are drawn smaller by sqrt(2 L), so
        that the stream's variance does not grow with depth. The paper starts from Llama 2 and does
        not say how that was drawn: this is the customary choice (GPT-2's).

        Args:
            seed: the weights are a function of it and of the shape alone: one sequence of draws
                goes through all matrices, so a process that needs parts draws everything.

        Yields:
            the name of a weight, a row of it, and what to give to the rows from there on: float32,
            on the CPU. The next draw takes its memory.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                yield name, 0, torch.ones(weight.shape, device="cpu")
                continue
            deviation = residual if name.endswith(("wo.weight", "w2.weight")) else 0.02
            rows, columns = weight.shape
            block = torch.empty(min(rows, _block_rows(columns)), columns, device="cpu")
            for start in range(0, rows, len(block)):
                part = block[: rows - start]
                yield name, start, part.normal_(0.0, deviation, generator=generator)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw fresh weights, see `draws`."""
        weights = dict(self.named_parameters())
        for name, start, draw in self.draws(seed):
            weights[name][start : start + len(draw)].copy_(draw)


DRAWN = 1 << 22  # numbers that are drawn at once, about


def _block_rows(columns: int) -> int:
    """Rows to draw at once. PyTorch draws normal numbers sixteen by sixteen: blocks of a multiple
    are the numbers of the whole.
    """
    return max(16, DRAWN // columns // 16 * 16)


def compiled(model: Transformer, *, alone: bool) -> Callable[..., Any]:
    """The model's forward through torch.compile, except for what differs from batch to batch.

    Args:
        model: what is trained.
        alone: whether one process trains it. PyTorch 2.13 keeps graphs with their backward under
            keys that do not tell the processes of a launch apart: when a run with tp was started
            again, a process took another's, and its gradients were wrong without a word. So for
            several processes that cache is off; the one of compiled code stays.
    """
    if not alone:
        functorch.enable_autograd_cache = False
    spans.leave_uncompiled()
    context_parallel.leave_uncompiled()
    head.leave_uncompiled()
    forward: Callable[..., Any] = torch.compile(model)
    return forward
