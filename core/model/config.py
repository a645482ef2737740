"""The shape of a model: Llama 2's architecture as a frozen value, presets, and JSON on disk.

`ModelConfig` is all that is needed to build a model and all that `config.json` of the Hugging Face
Llama layout says about it. What such a file asks for and Llama 2 does not have (biases, another
activation, another kind of rotary scaling) is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from codecria.data.errors import UserError

from .rope import Llama3Scaling, Rope, rope_of

# What other architectures ask for under the same model_type, and the values that ask for nothing.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu", "swish", None),  # two names of one function
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "partial_rotary_factor": (1, None),
    "num_local_experts": (0, 1, None),
    "use_qk_norm": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (1, None),
    "logits_scaling": (1, None),
    "embedding_multiplier": (1, None),
    "residual_multiplier": (1, None),
    "no_rope_layers": ([], None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama architecture (Code Llama, section 2; Llama 2, section 2.2).

    Attributes:
        dim: width of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads; the head dimension is dim / n_heads.
        n_kv_heads: key and value heads; fewer than n_heads is grouped-query attention.
        hidden_dim: width of the SwiGLU feed-forward.
        vocab_size: rows of the embedding and of the output matrix.
        norm_eps: epsilon of RMSNorm.
        rope_theta: base of the rotary frequencies (1e4 before, 1e6 after long-context fine-tuning).
        rope_scale: positions are divided by this (linear position scaling; 1 is none).
        llama3: Llama 3.1's scaling of the rotary frequencies, or None.
        max_context: longest sequence the model was trained on, in tokens.
        tied: whether the output matrix is the embedding (never in the paper's models).
        bos_id, eos_id: ids of the document frame; -1 where the checkpoint names none. More ids may
            end a completion: core/checkpoints/ends.py.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    vocab_size: int = 32_000
    norm_eps: float = 1e-5  # Code Llama's params.json
    rope_theta: float = 1e4  # Llama 2
    rope_scale: float = 1.0
    llama3: Llama3Scaling | None = None
    max_context: int = 4_096  # Llama 2
    tied: bool = False
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        """Check what must hold between the numbers, all at once.

        Raises:
            UserError: with every violated condition.
        """
        problems = [
            f"{name} must be at least 1, not {value}"
            for name, value in (
                ("dim", self.dim),
                ("n_layers", self.n_layers),
                ("n_heads", self.n_heads),
                ("n_kv_heads", self.n_kv_heads),
                ("hidden_dim", self.hidden_dim),
                ("vocab_size", self.vocab_size),
                ("max_context", self.max_context),
            )
            if value < 1
        ]
        if not problems:
            if self.dim % self.n_heads:
                problems.append(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
            elif self.head_dim % 2:
                problems.append(f"the head dimension {self.head_dim} is odd; rotary needs pairs")
            if self.n_heads % self.n_kv_heads:
                problems.append(
                    f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
                )
        if self.rope_theta <= 1 or self.rope_scale <= 0:
            problems.append(
                f"rope_theta {self.rope_theta} must exceed 1 and rope_scale {self.rope_scale} 0"
            )
        if self.llama3 is not None and self.rope_scale != 1.0:
            problems.append(f"rope_scale {self.rope_scale} and llama3 scaling exclude each other")
        if problems:
            raise UserError("this model cannot be built: " + "; ".join(problems))

    @classmethod
    def from_record(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """The value that `dataclasses.asdict` spelled, as run.json holds it."""
        scaling = raw.get("llama3")
        fields = dict(raw) | {"llama3": None if scaling is None else Llama3Scaling(**scaling)}
        return cls(**fields)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def parameters(self) -> int:
        """Number of weights, a tied output matrix counted once."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.n_kv_heads * self.head_dim
        block = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        matrices = 1 if self.tied else 2
        return self.n_layers * block + matrices * self.vocab_size * self.dim + self.dim

    def training_flops(self, context: int, *, frozen: bool = False) -> float:
        """FLOPs of one training token: 6 P + 6 L d T, forward and backward (DECISIONS: MFU).

        P counts the weights that are multiplied: an untied embedding is only looked up.

        Args:
            context: tokens of one attention window, T.
            frozen: the weights get no gradient, as under an adapter: 4 P.
        """
        multiplied = self.parameters - (0 if self.tied else self.vocab_size * self.dim)
        return (4.0 if frozen else 6.0) * multiplied + 6.0 * self.n_layers * self.dim * context

    def to_hugging_face(self, *, dtype: str) -> dict[str, Any]:
        """The content of `config.json` in the Hugging Face Llama layout.

        `rope_theta` stands both where transformers 4, vLLM and llama.cpp read it and where
        transformers 5 does.

        Args:
            dtype: name of the weights' type, such as "float32" or "bfloat16".
        """
        rope = Rope(theta=self.rope_theta, scale=self.rope_scale, llama3=self.llama3)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.norm_eps,
            **rope.to_hugging_face(),
            "max_position_embeddings": self.max_context,
            "tie_word_embeddings": self.tied,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": self.bos_id if self.bos_id >= 0 else None,
            "eos_token_id": self.eos_id if self.eos_id >= 0 else None,
            "torch_dtype": dtype,
        }

    @classmethod
    def from_hugging_face(cls, raw: Mapping[str, Any], *, where: str) -> ModelConfig:
        """Read a `config.json` of the Hugging Face Llama layout, of transformers 4 or 5.

        Args:
            raw: the parsed file.
            where: its path, for messages.

        Raises:
            UserError: a field is missing or of the wrong type, or asks for what Llama 2 has not.
        """
        if raw.get("model_type") != "llama":
            raise UserError(
                f"{where}: model_type is {raw.get('model_type')!r}, only 'llama' can be read",
                hint="codecria reads Llama-architecture checkpoints: Llama 2, Code Llama, its own",
            )
        for key, plain in _PLAIN.items():
            if raw.get(key) not in plain:
                raise UserError(
                    f"{where}: {key} = {raw[key]!r} is not part of the Llama 2 architecture"
                )
        rope = rope_of(raw, where=where)
        bos, eos = (
            next(iter(special_ids(raw, key, where=where, absent=absent)), -1)
            for key, absent in (("bos_token_id", 1), ("eos_token_id", 2))
        )
        try:
            n_heads = int(raw["num_attention_heads"])
            config = cls(
                dim=int(raw["hidden_size"]),
                n_layers=int(raw["num_hidden_layers"]),
                n_heads=n_heads,
                n_kv_heads=int(raw.get("num_key_value_heads") or n_heads),
                hidden_dim=int(raw["intermediate_size"]),
                vocab_size=int(raw["vocab_size"]),
                norm_eps=float(raw.get("rms_norm_eps", 1e-6)),  # transformers' own default
                max_context=int(raw.get("max_position_embeddings", 2048)),
                tied=bool(raw.get("tie_word_embeddings", False)),
                bos_id=bos,
                eos_id=eos,
                rope_theta=rope.theta,
                rope_scale=rope.scale,
                llama3=rope.llama3,
            )
        except KeyError as error:
            raise UserError(f"{where}: {error.args[0]} is missing") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: a field has a wrong value ({error})") from error
        head_dim = raw.get("head_dim")
        if head_dim not in (None, config.head_dim):
            raise UserError(
                f"{where}: head_dim {head_dim} differs from hidden_size / num_attention_heads"
                f" = {config.head_dim}, which Llama 2's architecture fixes"
            )
        return config


def special_ids(
    raw: Mapping[str, Any], key: str, *, where: str, absent: int | None = None
) -> list[int]:
    """The ids under a key of a checkpoint's JSON file: a number, a list of them, or null for none.

    Args:
        raw: the parsed file.
        key: such as "eos_token_id".
        where: the file's path, for messages.
        absent: the id that counts where the file lacks the key.

    Raises:
        UserError: the value is neither of these.
    """
    value = raw.get(key, absent)
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise UserError(
            f"{where}: {key} = {value!r} is not a token id or a list of them",
            hint="correct it, or write null",
        )
    return [i for i in ids if i >= 0]  # some files write -1 for none


# The paper's shapes: PAPER section 1 (its table names the source of each figure). Vocabulary 32,016
# where the base model learnt infilling, else 32,000; theta and context are those of Llama 2, where
# every chain starts: long-context fine-tuning changes them.
_7B = ModelConfig(
    dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, hidden_dim=11008, vocab_size=32_016
)
PAPER_MODELS: dict[str, ModelConfig] = {
    "7b": _7B,
    "13b": replace(_7B, dim=5120, n_layers=40, n_heads=40, n_kv_heads=40, hidden_dim=13824),
    "34b": replace(
        _7B, dim=8192, n_layers=48, n_heads=64, n_kv_heads=8, hidden_dim=22016, vocab_size=32_000
    ),
    "70b": replace(_7B, dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, hidden_dim=28672),
}

# Shapes people can run. Ours, not the paper's: the same architecture, hidden_dim by the release's
# rule (2/3 of 4 d, rounded up to a multiple of 32, or 256 from 512 wide on). The output matrix is
# tied up to 110m, where it would otherwise hold most of the weights.
_15M = ModelConfig(dim=288, n_layers=6, n_heads=6, n_kv_heads=6, hidden_dim=768, tied=True)
SMALL_MODELS: dict[str, ModelConfig] = {
    "1m": replace(_15M, dim=128, n_layers=4, n_heads=4, n_kv_heads=4, hidden_dim=352),
    "4m": replace(_15M, dim=192, n_layers=6, n_heads=6, n_kv_heads=6, hidden_dim=512),
    "15m": _15M,
    "42m": replace(_15M, dim=512, n_layers=8, n_heads=8, n_kv_heads=8, hidden_dim=1536),
    "110m": replace(_15M, dim=768, n_layers=12, n_heads=12, n_kv_heads=12, hidden_dim=2048),
    "1b": replace(
        _15M, dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, hidden_dim=5632, tied=False
    ),
}

MODELS: dict[str, ModelConfig] = PAPER_MODELS | SMALL_MODELS


def preset(size: str) -> ModelConfig:
    """The preset shape called `size`.

    Raises:
        UserError: there is none of that name.
    """
    if size not in MODELS:
        raise UserError(
            f"there is no model size {size!r}", hint="choose one of " + ", ".join(MODELS)
        )
    return MODELS[size]
