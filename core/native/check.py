"""A child process that compiles kernels, and runs them before anybody relies on them.

    python -m codecria.core.native.check LEVEL > KERNELS.o

It writes the object code and ends with status 0 if a small model gives the scores that numpy
computes, in every type, with one token, several and a whole prompt. Else it writes what is wrong
and ends with `WRONG`. It may crash: that is what it is for.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import numpy as np

from codecria.core.model.config import ModelConfig

from .compile import object_code
from .cpu import Level, host_target
from .kernels import WRONG, from_object
from .key_values import CacheDtype
from .packing import Floats, as_float32, pack, unpack
from .runner import NativeRunner
from .weights import (
    EMBEDDING,
    HEAD,
    MATRICES,
    NORM,
    NORMS,
    Dtype,
    head_dtype,
    shapes,
    to_bfloat16,
)  # fmt: skip

# Sizes that 32 and 16 do not divide, a head of 24 numbers, grouped queries.
CONFIG = ModelConfig(
    dim=96, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=72, vocab_size=90, max_context=64
)
TYPES: dict[Dtype, tuple[CacheDtype, float]] = {  # and the largest error, of scores' deviation
    "float32": ("float32", 1e-4),
    "bfloat16": ("bfloat16", 0.05),
    "q8": ("q8", 0.15),
    "q4": ("bfloat16", 0.15),
}


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Floats]:
    """Weights by Hugging Face name, scaled so that every part matters."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Floats:
        return draw.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)

    def norm() -> Floats:
        return 1 + draw.standard_normal(config.dim, np.float32) * np.float32(0.1)

    weights = {name: matrix(*shape) for name, shape in shapes(config).items()}
    weights[EMBEDDING] *= np.float32(config.dim**0.5)
    for layer in range(config.n_layers):
        for theirs in NORMS.values():
            weights[f"model.layers.{layer}.{theirs}.weight"] = norm()
    weights[NORM] = norm()
    return weights


def rounded_weights(weights: dict[str, Floats], dtype: Dtype) -> dict[str, Floats]:
    """The same weights as a type of matrices keeps them; the embedding, as looked up, is kept."""
    found = dict(weights)
    found.setdefault(HEAD, weights[EMBEDDING])
    for name, weight in found.items():
        if weight.ndim == 2 and name != EMBEDDING:
            its_dtype = head_dtype(dtype) if name == HEAD else dtype
            if its_dtype == "bfloat16":
                found[name] = as_float32(to_bfloat16(weight))
            elif its_dtype != "float32":
                found[name] = unpack(its_dtype, pack(its_dtype, weight), *weight.shape)
    return found


def reference(config: ModelConfig, weights: dict[str, Floats], ids: list[int]) -> Floats:
    """(T,V) scores after each token of a sequence, in plain numpy."""
    H, K, E, T = config.n_heads, config.n_kv_heads, config.head_dim, len(ids)

    def norm(x: Floats, weight: Floats) -> Floats:
        found: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * weight
        return found

    frequencies = config.rope_theta ** (-np.arange(0, E, 2) / E)
    angles = np.outer(np.arange(T), frequencies)[:, None]  # (T,1,E/2)

    def turn(x: Floats) -> Floats:
        a, b = x[..., : E // 2], x[..., E // 2 :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = weights[EMBEDDING][ids]
    for layer in range(config.n_layers):
        w = {
            name: weights[f"model.layers.{layer}.{theirs}.weight"]
            for name, theirs in (MATRICES | NORMS).items()
        }
        h = norm(x, w["attention_norm"])
        q, k, v = (
            (h @ w[name].T).reshape(T, -1, E).astype(np.float32)
            for name in ("query", "key", "value")
        )
        k, v = (y.repeat(H // K, axis=1) for y in (turn(k), v))
        scores = np.einsum("the,she->hts", turn(q), k) / np.sqrt(E)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hts,she->the", shares, v).reshape(T, -1) @ w["out"].T
        h = norm(x, w["hidden_norm"])
        gate = h @ w["gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"].T)) @ w["down"].T
    found: Floats = (norm(x, weights[NORM]) @ weights[HEAD].T).astype(np.float32)
    return found


def check(level: Level, code: bytes) -> str:
    """What is wrong with the kernels of an object file, or nothing."""
    kernels = from_object(code, level)
    config, weights = CONFIG, random_weights(CONFIG)
    ids = [(7 * n) % config.vocab_size for n in range(40)]
    for dtype, (cache, tolerance) in TYPES.items():
        expected = reference(config, rounded_weights(weights, dtype), ids)
        for threads in (1, 2):
            runner = NativeRunner(
                config, weights, kernels, dtype=dtype, cache_dtype=cache, threads=threads
            )
            runner.reserve(1, len(ids))
            found = [
                runner.prefill(0, [ids[:23]]),
                runner.decode(0, [ids[23:24]]),
                runner.decode(0, [ids[24:]]),
            ]
            runner.close()
            error = np.abs(np.concatenate(found) - expected[22:]).max() / expected.std()
            if not error < tolerance:
                return f"{dtype} with {threads} threads is off by {error:.2g}"
    return ""


def main(level: Level) -> int:
    """Compile and check a level's kernels; the exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is no surprise, and leaves no file
    code = object_code(host_target(level))
    problem = check(level, code)
    sys.stdout.buffer.write(problem.encode() or code)
    return WRONG if problem else 0


if __name__ == "__main__":
    name: Any = sys.argv[1]
    raise SystemExit(main(name))
