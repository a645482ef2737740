"""Names of weights in each format, and the order of the rows that rotary positions rotate.

Our names are Llama's (`layers.0.attention.wq.weight`). Rotary positions rotate pairs of a head's
rows: interleaved (2i, 2i+1) in Meta's files and in GGUF, half-split (i, i + D/2) in the Hugging
Face layout and in our model. Only wq and wk have such rows.

D is the head dimension, H the heads of the weight in question: n_heads for wq, n_kv_heads for wk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from codecria.core.model.config import ModelConfig

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Weight = TypeVar("Weight", Tensor, npt.NDArray[Any])

RotaryOrder = Literal["half_split", "interleaved"]
EMBEDDING, OUTPUT = "tok_embeddings", "output.weight"

_HUGGING_FACE = {
    EMBEDDING: "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    OUTPUT: "lm_head.weight",
}
_HUGGING_FACE_BLOCK = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_GGUF = {
    EMBEDDING: "token_embd.weight",
    "norm.weight": "output_norm.weight",
    OUTPUT: "output.weight",
}
_GGUF_BLOCK = {
    "attention.wq.weight": "attn_q.weight",
    "attention.wk.weight": "attn_k.weight",
    "attention.wv.weight": "attn_v.weight",
    "attention.wo.weight": "attn_output.weight",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "attention_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
}


def hugging_face_name(ours: str) -> str:
    """The Hugging Face name of one of our weights: norm.weight -> model.norm.weight."""
    return _HUGGING_FACE.get(ours) or "model.layers." + _in_block(ours, _HUGGING_FACE_BLOCK)


def our_name(hugging_face: str) -> str | None:
    """Our name of a weight by its Hugging Face one, or None for what no Llama has."""
    outer = {theirs: ours for ours, theirs in _HUGGING_FACE.items()}
    if hugging_face in outer:
        return outer[hugging_face]
    number, _, inner = hugging_face.removeprefix("model.layers.").partition(".")
    ours = {theirs: name for name, theirs in _HUGGING_FACE_BLOCK.items()}.get(inner)
    if ours is None or not number.isdecimal() or not hugging_face.startswith("model.layers."):
        return None
    return f"layers.{int(number)}.{ours}"


def gguf_name(ours: str) -> str:
    """llama.cpp's name of one of our weights: norm.weight -> output_norm.weight."""
    return _GGUF.get(ours) or "blk." + _in_block(ours, _GGUF_BLOCK)


def meta_name(ours: str) -> str:
    """Meta's name of one of our weights, which is ours but for the embedding."""
    return "tok_embeddings.weight" if ours == EMBEDDING else ours


def _in_block(ours: str, names: dict[str, str]) -> str:
    layers, number, inner = ours.split(".", 2)
    assert layers == "layers", f"{ours} is not a weight of the model"
    return f"{number}.{names[inner]}"


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a model, by our name, in the order of the layers."""
    C, kv = config.dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, C)}
    for layer in range(config.n_layers):
        block = {
            "attention_norm.weight": (C,),
            "attention.wq.weight": (C, C),
            "attention.wk.weight": (kv, C),
            "attention.wv.weight": (kv, C),
            "attention.wo.weight": (C, C),
            "ffn_norm.weight": (C,),
            "feed_forward.w1.weight": (config.hidden_dim, C),
            "feed_forward.w2.weight": (C, config.hidden_dim),
            "feed_forward.w3.weight": (config.hidden_dim, C),
        }
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["norm.weight"] = (C,)
    if not config.tied:
        shapes[OUTPUT] = (config.vocab_size, C)
    return shapes


def rotary_heads(ours: str, config: ModelConfig) -> int:
    """The number of heads of a weight that rotary positions rotate: 0 for all but wq and wk."""
    if ours.endswith("attention.wq.weight"):
        return config.n_heads
    return config.n_kv_heads if ours.endswith("attention.wk.weight") else 0


def reordered(weight: Weight, heads: int, *, source: RotaryOrder, target: RotaryOrder) -> Weight:
    """The rows of a wq or wk in another order of pairs: (H D,C) -> (H D,C).

    Args:
        weight: a tensor or an array of `heads` heads; with 0 heads it is returned as it is.
        heads: H.
        source, target: the order of the rows now, and in the result.
    """
    if not heads or source == target:
        return weight
    rows, width = weight.shape
    half = rows // heads // 2
    split = (heads, half, 2) if source == "interleaved" else (heads, 2, half)
    return weight.reshape(*split, width).swapaxes(1, 2).reshape(rows, width)
