"""Rotary scaling: transformers is the oracle, and what a config.json may not say is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.formats.gguf.facts import ROPE_TENSOR
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.checkpoints.saving import publish
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import ModelConfig
from codecria.core.model.rope import Llama3Scaling, llama3_divisors
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")
LLAMA3 = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
)  # Llama 3.1's
CONFIG = ModelConfig(
    dim=256,
    n_layers=2,
    n_heads=2,  # of 128, as Llama 3's: short, middling and long waves
    n_kv_heads=1,
    hidden_dim=64,
    vocab_size=600,
    rope_theta=5e5,
    max_context=131_072,
    llama3=LLAMA3,
)


def base(**fields: Any) -> dict[str, Any]:
    plain = replace(CONFIG, llama3=None, rope_theta=1e4).to_hugging_face(dtype="float32")
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        del plain[key]
    return plain | fields


def read(**fields: Any) -> ModelConfig:
    return ModelConfig.from_hugging_face(base(**fields), where="config.json")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = Transformer(CONFIG)
    torch.manual_seed(0)
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=0.2 if weight.ndim == 2 else 1.0)
    path = tmp_path_factory.mktemp("llama3") / "model"
    publish(path, built, dtype=torch.float32, tokenizer=tokenizer.path, lineage={})
    return path


@pytest.mark.parametrize("start", [0, 8_000, 60_000, 131_000])
def test_llama3_scaling_gives_the_logits_of_transformers_at_near_and_far_positions(
    model: Path, start: int
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(model, attn_implementation="eager")
    assert theirs.config.rope_parameters["rope_type"] == "llama3"
    ours = load_model(Checkpoint.open(model), device=CPU)
    ids = torch.randint(3, 600, (2, 40), generator=torch.Generator().manual_seed(start))
    positions = torch.arange(40).expand(2, -1) * 3 + start  # apart, so that distances are long too
    positions[:, 0] = 0
    with torch.no_grad():
        wanted = theirs(ids, position_ids=positions).logits
        found = ours.logits(ours(ids, positions, PackedAttention(None)))
        plain = Transformer(replace(CONFIG, llama3=None))
        plain.load_state_dict(ours.state_dict())
        unscaled = plain.logits(plain(ids, positions, PackedAttention(None)))
    assert (found - wanted).norm() / wanted.norm() < 1e-4
    # Of unscaled positions the same logits would prove nothing.
    assert (unscaled - wanted).norm() / wanted.norm() > 1e-2


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_divisors_are_those_of_transformers(theta: float, head_dim: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_parameters=LLAMA3.to_hugging_face() | {"rope_theta": theta},
        max_position_embeddings=131_072,
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, CPU)
    plain = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    found = plain / torch.tensor(llama3_divisors(LLAMA3, theta, head_dim), dtype=torch.float64)
    torch.testing.assert_close(found.float(), scaled, rtol=2e-6, atol=0)


def test_llama3_scaling_survives_conversions_and_llama_cpp_gets_its_tensor(
    model: Path, tmp_path: Path
) -> None:
    convert(Request(source=model, out=tmp_path / "hf", layout=Layout.HF))
    assert Checkpoint.open(tmp_path / "hf").config == CONFIG
    convert(Request(source=model, out=tmp_path / "m.gguf", layout=Layout.GGUF))
    opened = GgufWeights(tmp_path / "m.gguf")
    assert opened.facts.config == CONFIG
    tensor = torch.from_numpy(opened.file.raw(ROPE_TENSOR).view(np.float32).copy())
    wanted = torch.tensor(llama3_divisors(LLAMA3, 5e5, 128))
    assert torch.equal(tensor, wanted)
    assert tensor.max() == 8.0
    assert tensor.min() == 1.0


def test_meta_s_layout_refuses_llama3_scaling(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot express llama3 rotary scaling"):
        convert(Request(source=model, out=tmp_path / "meta", layout=Layout.META))
    assert not (tmp_path / "meta").exists()


LINEAR = {"type": "linear", "factor": 4.0}
HF_LLAMA3 = LLAMA3.to_hugging_face()


@pytest.mark.parametrize(
    ("fields", "theta", "scale", "llama3"),
    [
        ({}, 1e4, 1.0, None),
        ({"rope_theta": 1e6}, 1e6, 1.0, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, 1.0, None),
        ({"rope_scaling": LINEAR}, 1e4, 4.0, None),
        ({"rope_scaling": LINEAR, "rope_parameters": None}, 1e4, 4.0, None),
        ({"rope_scaling": None, "rope_parameters": LINEAR | {"rope_theta": 1e6}}, 1e6, 4.0, None),
        ({"rope_theta": 5e5, "rope_scaling": HF_LLAMA3}, 5e5, 1.0, LLAMA3),
        ({"rope_parameters": HF_LLAMA3 | {"rope_theta": 5e5}}, 5e5, 1.0, LLAMA3),
        ({"hidden_act": "swish"}, 1e4, 1.0, None),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}, "rope_parameters": LINEAR},
         1e4, 4.0, None),
    ],
)  # fmt: skip
def test_either_generation_of_config_json_is_read(
    fields: dict[str, Any], theta: float, scale: float, llama3: Llama3Scaling | None
) -> None:
    config = read(**fields)
    assert (config.rope_theta, config.rope_scale, config.llama3) == (theta, scale, llama3)
    back = json.loads(json.dumps(config.to_hugging_face(dtype="float32")))
    assert ModelConfig.from_hugging_face(back, where="x") == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
         "rope_scaling is linear by 4, rope_parameters is none"),
        ({"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"factor": 2.0}},
         "rope_scaling is linear by 4, rope_parameters is linear by 2"),
        ({"rope_scaling": LINEAR, "rope_parameters": HF_LLAMA3}, "rope_parameters is llama3 by 8"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "disagree"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' is not an object"),
        ({"rope_scaling": 4.0}, "rope_scaling = 4.0 is not an object"),
        ({"rope_parameters": [LINEAR]}, "rope_parameters = .* is not an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor = '4' is not a number"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor = True is not a number"),
        ({"rope_scaling": {"factor": 4.0}}, "factor 4.0 without a rope_type"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 4.0}}, "disagree"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "scaling 'longrope'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rotary scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": HF_LLAMA3 | {"high_freq_factor": 0.5}}, "makes no sense"),
        ({"rope_parameters": {"full_attention": LINEAR}}, "differs by layer"),
        ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrongly_is_refused_by_name(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(**fields)


def test_a_user_s_rope_scaling_beside_our_rope_parameters_is_refused() -> None:
    ours = replace(CONFIG, llama3=None).to_hugging_face(dtype="float32")
    with pytest.raises(UserError, match="disagree on the rotary positions"):
        ModelConfig.from_hugging_face(ours | {"rope_scaling": LINEAR}, where="x")


def test_a_record_of_a_run_keeps_the_scaling() -> None:
    from dataclasses import asdict

    spelled = json.loads(json.dumps(asdict(CONFIG)))
    assert ModelConfig.from_record(spelled) == CONFIG
