"""The model against transformers' LlamaForCausalLM, and against itself through the cache."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.saving import publish
from codecria.core.model.attention import PackedAttention, pack_offsets
from codecria.core.model.config import MODELS, PAPER_MODELS, SMALL_MODELS, ModelConfig, preset
from codecria.core.model.transformer import Transformer, rope_tables
from codecria.data.errors import UserError

CPU = torch.device("cpu")
PLAIN = PackedAttention(None)

SHAPES = {
    "multi-head": ModelConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=4, hidden_dim=96, vocab_size=131
    ),
    "grouped-query, theta 1e6": ModelConfig(
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=96,
        vocab_size=131,
        rope_theta=1e6,
        max_context=16_384,
    ),
    "tied, linear scaling": ModelConfig(
        dim=48,
        n_layers=3,
        n_heads=6,
        n_kv_heads=1,
        hidden_dim=80,
        vocab_size=77,
        rope_scale=4.0,
        tied=True,
    ),
}
shapes = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def fresh(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.initialise(seed)
    with torch.no_grad():  # the customary start is so small that errors would hide
        for weight in model.parameters():
            weight.mul_(3.0 if weight.ndim == 2 else 1.0)
    return model.eval()


def positions_from(start: int, ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(start, start + ids.shape[1]).expand(ids.shape)


def tokens(config: ModelConfig, B: int, T: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(7))


@shapes
def test_transformers_opens_our_checkpoint_and_computes_the_same_logits(
    config: ModelConfig, tmp_path: Path
) -> None:
    # Kills: interleaved rotary pairs, a forgotten norm, theta or scaling lost on disk.
    model = fresh(config)
    publish(tmp_path / "m", model, dtype=torch.float32, tokenizer=None, lineage={})
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    ids = tokens(config, 2, 40)
    for start in (0, config.max_context - 40):
        at = positions_from(start, ids)
        with torch.no_grad():
            mine = model.logits(model(ids, at, PLAIN))
            reference = theirs(ids, position_ids=at).logits
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=0)


@shapes
@pytest.mark.parametrize("shard", ["1KB", "10GB"])
def test_we_open_a_transformers_checkpoint_and_compute_the_same_logits(
    config: ModelConfig, shard: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **config.to_hugging_face(dtype="float32") | {"initializer_range": 0.06},
            attn_implementation="eager",
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "m", max_shard_size=shard)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard == "1KB")
    checkpoint = Checkpoint.open(tmp_path / "m")
    assert checkpoint.config == config
    model = load_model(checkpoint, device=CPU)
    ids = tokens(config, 2, 40)
    for start in (0, config.max_context - 40):
        at = positions_from(start, ids)
        with torch.no_grad():
            mine = model.logits(model(ids, at, PLAIN))
            reference = theirs(ids, position_ids=at).logits
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("7b", 6_738_546_688),
        ("13b", 13_016_028_160),
        ("34b", 33_743_970_304),
        ("70b", 68_976_910_336),
    ],
)
def test_the_presets_have_the_papers_parameter_counts(size: str, parameters: int) -> None:
    config = preset(size)
    with torch.device("meta"):
        built = sum(weight.numel() for weight in Transformer(config).parameters())
    assert built == config.parameters == parameters


@pytest.mark.parametrize("size", SMALL_MODELS)
def test_the_parameter_formula_counts_the_built_model(size: str) -> None:
    config = preset(size)
    with torch.device("meta"):
        built = sum(weight.numel() for weight in Transformer(config).parameters())
    assert built == config.parameters


def test_preset_names_do_not_collide_and_an_unknown_one_lists_them() -> None:
    assert not PAPER_MODELS.keys() & SMALL_MODELS.keys()
    with pytest.raises(UserError) as caught:
        preset("8b")
    assert all(name in caught.value.hint for name in MODELS)


@shapes
def test_packed_documents_are_computed_as_if_each_stood_alone(config: ModelConfig) -> None:
    # Kills: positions that do not restart, documents that see each other.
    model = fresh(config)
    lengths = [7, 1, 12]
    ids = tokens(config, 1, 20)
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    offsets = pack_offsets([lengths], size=21)
    with torch.no_grad():
        packed = model(ids, positions, PackedAttention(offsets))
        alone = [model(part, positions_from(0, part), PLAIN) for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=2e-5, rtol=1e-4)


@shapes
def test_only_distances_count_so_shifted_positions_change_nothing(config: ModelConfig) -> None:
    model = fresh(config)
    ids = tokens(config, 1, 16)
    with torch.no_grad():
        near = model(ids, positions_from(0, ids), PLAIN)
        far = model(ids, positions_from(1000, ids), PLAIN)
    torch.testing.assert_close(near, far, atol=1e-3, rtol=1e-3)


def test_the_rotary_angles_stay_float32_in_a_bfloat16_model() -> None:
    config = SHAPES["grouped-query, theta 1e6"]
    fresh(config).to(torch.bfloat16)
    cos, sin = rope_tables(torch.tensor([[15_999]]), config)
    angle = 15_999 / 1e6 ** (2 / config.head_dim)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos[0, 0, 0, 1].item() == pytest.approx(torch.tensor(angle).cos().item(), abs=1e-3)


def test_initial_weights_are_a_function_of_the_seed() -> None:
    config = SHAPES["multi-head"]
    one, two, other = (dict(fresh(config, seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["tok_embeddings"], other["tok_embeddings"])
