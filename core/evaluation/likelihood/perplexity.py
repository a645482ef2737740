"""Perplexity by position: the loss of a token by how many tokens stand before it.

A text is read from its start, in chunks, with the key-value cache. The trained context is no limit
here: what happens beyond it is the question. The logits of one chunk of tokens are all that exist
at a time, and the keys and values of one text.

Shapes: T tokens of a text or a row, B rows, S texts, N buckets of positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codecria.core.inference.cache import ChunkAttention, cache_of
from codecria.core.inference.torch_runner import PREFILL_CHUNK
from codecria.core.model.attention import choose_backend
from codecria.core.model.batch import batch_loss
from codecria.core.model.head import Targets
from codecria.core.model.transformer import Transformer
from codecria.data.rows.loader import Batch
from codecria.data.tokenizer.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

RESAMPLES = 1_000  # of the bootstrap: its 95% interval then varies by a few per cent of its width
FINEST = 8  # the first bucket ends at this part of the trained context


@torch.inference_mode()
def token_losses(
    model: Transformer,
    ids: Ids,
    *,
    chunk: int = PREFILL_CHUNK,
    done: Callable[[int], None] = lambda _: None,
) -> npt.NDArray[np.float32]:
    """The loss of every token but the first, given all before it.

    Args:
        model: in evaluation.
        ids: (T,), at least two.
        chunk: tokens of one forward pass; bounds the activations.
        done: called with the number of tokens of each pass.

    Returns:
        (T-1,) in nats: entry j is the loss of ids[j + 1], with j + 1 tokens before it.
    """
    device = model.tok_embeddings.device
    given = torch.from_numpy(ids[:-1].astype(np.int64)).to(device)
    targets = torch.from_numpy(ids[1:].astype(np.int64)).to(device)
    cache = cache_of(model, batch=1, positions=len(given))
    losses = torch.empty(len(given), dtype=torch.float32)
    for start in range(0, len(given), chunk):
        stop = min(start + chunk, len(given))
        positions = torch.arange(start, stop, device=device).unsqueeze(0)
        part, wanted = (x[start:stop].unsqueeze(0) for x in (given, targets))
        _, each = model(part, positions, ChunkAttention(cache, start), Targets(wanted, count=1))
        losses[start:stop] = each.cpu()
        done(stop - start)
    return losses.numpy()


@torch.inference_mode()
def row_losses(model: Transformer, batch: Batch) -> Tensor:
    """The loss of every target of packed rows, in nats.

    Args:
        model: in evaluation.
        batch: B rows of T tokens, which say what attention crosses.

    Returns:
        (B T,) zero where there is no target.
    """
    device = model.tok_embeddings.device
    backend, _ = choose_backend(device)
    return batch_loss(model, batch, device=device, backend=backend)[1]


def token_bytes(tokenizer: Tokenizer, ids: Ids) -> npt.NDArray[np.int64]:
    """(T-1,) the bytes of text that every id but the first adds."""
    sizes = np.array([len(piece) for piece in tokenizer.typed_bytes()], dtype=np.int64)
    found = sizes[ids[1:]]
    text = tokenizer.decode(ids[1:2].tolist())
    if len(found):
        found[0] = len(text.encode())  # without the space that the tokenizer puts first
    return found


# --- the buckets ----------------------------------------------------------------------------------


def borders(
    trained: int, *, multiples: Sequence[float] = (), ends: Sequence[int] = ()
) -> list[int]:
    """Where the buckets of positions end, in tokens of context, after a leading 0.

    >>> borders(4096, multiples=(1, 2, 4))
    [0, 512, 1024, 2048, 4096, 8192, 16384]

    Args:
        trained: the trained context.
        multiples: of it; powers of two between an eighth of it and the largest are added.
        ends: the ends themselves, instead.
    """
    if ends:
        return sorted({0, *ends})
    found = {max(1, round(multiple * trained)) for multiple in multiples}
    size = max(1, trained // FINEST)
    while size < max(found):
        found.add(size)
        size *= 2
    return sorted({0, *found})


@dataclass(frozen=True, slots=True)
class Sums:
    """What was read, summed by text and bucket.

    Attributes:
        nats: (S,N) losses.
        tokens: (S,N) how many.
        bytes: (S,N) of text.
    """

    nats: Floats
    tokens: Floats
    bytes: Floats


def aligned(
    ends: Sequence[int], own: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> list[int]:
    """Where buckets end in another tokenizer's tokens of the same text: at the same bytes.

    A token that lies across a border belongs to the bucket after it.

    Args:
        ends: in tokens of the first tokenizer, 0 first.
        own, other: bytes of each token that is scored, by the first tokenizer and the other.
    """
    before = np.concatenate([[0], np.cumsum(own)])
    after = np.cumsum(other)

    def moved(end: int) -> int:
        if end >= len(own):  # the whole text, whatever its last bytes are counted as
            return len(other)
        return int(np.searchsorted(after, before[end], side="right"))

    return [0, *(moved(end) for end in ends[1:])]


def sums(
    losses: Sequence[npt.ArrayLike],
    sizes: Sequence[npt.ArrayLike],
    ends: Sequence[Sequence[int]],
) -> Sums:
    """File the tokens of each text under the buckets ends[n] < tokens before it <= ends[n + 1].

    Args:
        losses: of each text, (T-1,) as `token_losses` gives them.
        sizes: of each text, (T-1,) bytes.
        ends: of each text, (N+1,) as `borders` gives them; tokens beyond the last are left out.
    """
    shape = (len(losses), len(ends[0]) - 1)
    found = Sums(np.zeros(shape), np.zeros(shape), np.zeros(shape))
    for s, (nats, size, borders_here) in enumerate(zip(losses, sizes, ends, strict=True)):
        for n, (first, last) in enumerate(itertools.pairwise(borders_here)):
            part = np.asarray(nats, dtype=np.float64)[first:last]
            found.nats[s, n] = part.sum()
            found.tokens[s, n] = len(part)
            found.bytes[s, n] = np.asarray(size)[first:last].sum()
    return found


def _mean(nats: Floats, units: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(nats / units)


def _resampled(values: Floats, *, seed: int) -> Floats:
    """(RESAMPLES,N) column sums over texts drawn with replacement, the same draws for each call."""
    S = len(values)
    weights = np.random.default_rng(seed).multinomial(S, np.full(S, 1 / S), size=RESAMPLES)
    return np.asarray(weights @ values)


def _interval(draws: Floats, texts: int) -> list[float] | None:
    """The middle 95% of what resampling the texts gives; none of fewer than two texts."""
    draws = draws[np.isfinite(draws)]
    if texts < 2 or not len(draws):
        return None
    return [float(x) for x in np.quantile(draws, (0.025, 0.975))]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rows(found: Sums, *, seed: int) -> list[dict[str, Any]]:
    """A model's figures for each bucket, and for all tokens up to its end, as JSON values.

    Intervals are of 95%, by drawing the texts anew with replacement: tokens of one text are not
    independent of each other.

    Args:
        found: of `read`.
        seed: of the draws.
    """
    columns = []
    for part in (found, _cumulated(found)):
        nats, tokens, size = (
            _resampled(x, seed=seed) for x in (part.nats, part.tokens, part.bytes)
        )
        nll = _mean(part.nats.sum(0), part.tokens.sum(0))
        bits = _mean(part.nats.sum(0), part.bytes.sum(0)) / math.log(2)
        texts = (part.tokens > 0).sum(0)
        drawn = np.exp(np.minimum(_mean(nats, tokens), 700))  # beyond that a float has no name
        drawn_bits = _mean(nats, size) / math.log(2)
        columns.append(
            [
                {
                    "texts": int(texts[n]),
                    "tokens": int(part.tokens[:, n].sum()),
                    "bytes": int(part.bytes[:, n].sum()),
                    "nll": _finite(float(nll[n])),
                    "perplexity": _finite(float(np.exp(min(nll[n], 700)))),
                    "perplexity_interval": _interval(drawn[:, n], int(texts[n])),
                    "bits_per_byte": _finite(float(bits[n])),
                    "bits_per_byte_interval": _interval(drawn_bits[:, n], int(texts[n])),
                }
                for n in range(part.nats.shape[1])
            ]
        )
    own, upto = columns
    return [a | {"upto": b} for a, b in zip(own, upto, strict=True)]


def _cumulated(found: Sums) -> Sums:
    """As if each bucket began at the start of the text."""
    return Sums(*(np.cumsum(x, axis=1) for x in (found.nats, found.tokens, found.bytes)))


def paired_differences(
    first: Sums, second: Sums, *, same_tokens: bool, seed: int
) -> list[dict[str, Any]]:
    """How the second model does on each bucket beside the first, on the same texts.

    Args:
        first, second: of the same texts.
        same_tokens: whether both read the same ids: then perplexities are compared, else bits a
            byte.
        seed: of the draws of texts, the same draws for both.

    Returns:
        for each bucket `relative`, second / first - 1 of the perplexity or of the bits a byte, and
        its 95% interval.
    """
    units = [part.tokens if same_tokens else part.bytes for part in (first, second)]

    def relative(a: Floats, b: Floats) -> Floats:
        return np.asarray(np.expm1(b - a) if same_tokens else b / a - 1)

    total = relative(
        *(_mean(p.nats.sum(0), u.sum(0)) for p, u in zip((first, second), units, strict=True))
    )
    drawn = relative(
        *(
            _mean(_resampled(part.nats, seed=seed), _resampled(unit, seed=seed))
            for part, unit in zip((first, second), units, strict=True)
        )
    )
    texts = ((units[0] > 0) & (units[1] > 0)).sum(0)
    return [
        {
            "relative": _finite(float(total[n])),
            "interval": _interval(drawn[:, n], int(texts[n])),
        }
        for n in range(len(total))
    ]
