"""Checkpoint folders: whole or absent, sharded or not, and refused with the reason when damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model, resolve
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.saving import publish
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError

CPU = torch.device("cpu")
CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=61)


def published(path: Path, config: ModelConfig = CONFIG, **options: object) -> Transformer:
    model = Transformer(config)
    model.initialise(5)
    settings = {"dtype": torch.float32, "tokenizer": None, "lineage": {"step": 3}} | options
    publish(path, model, **settings)  # type: ignore[arg-type]
    return model


def same(one: Transformer, other: Transformer) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(weight, theirs[name]) for name, weight in one.named_parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [10_000, 5_000_000_000])
def test_a_model_comes_back_bit_for_bit(tied: bool, max_shard_bytes: int, tmp_path: Path) -> None:
    config = replace(CONFIG, tied=tied)
    model = published(tmp_path / "m", config, max_shard_bytes=max_shard_bytes)
    checkpoint = Checkpoint.open(tmp_path / "m")
    assert len(checkpoint.weights.files) > 1 or max_shard_bytes > 10_000
    assert checkpoint.config == config
    assert checkpoint.problems() == []
    assert checkpoint.lineage() == {"step": 3}
    assert same(load_model(checkpoint, device=CPU), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_arrays_hold_the_bits_of_the_tensors(
    dtype: torch.dtype, layout: Layout, tmp_path: Path
) -> None:
    published(tmp_path / "m", dtype=dtype, max_shard_bytes=10_000)
    convert(Request(source=tmp_path / "m", out=tmp_path / "c", layout=Layout(layout), verify=False))
    weights = Checkpoint.open(tmp_path / "c").weights
    for ours, stored in weights.stored.items():
        array, tensor = weights.array(ours), weights.raw(ours)
        assert array.shape == stored.shape == tuple(tensor.shape)
        assert array.dtype.name == stored.dtype.replace("bfloat16", "uint16")
        assert array.tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_publishing_again_replaces_the_folder_and_leaves_nothing_behind(tmp_path: Path) -> None:
    published(tmp_path / "m", max_shard_bytes=10_000)
    published(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "codecria.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_weights_can_be_converted_on_the_way(tmp_path: Path) -> None:
    model = published(tmp_path / "m", dtype=torch.bfloat16)
    loaded = load_model(Checkpoint.open(tmp_path / "m"), device=CPU, dtype=torch.float32)
    expected = model.tok_embeddings.detach().to(torch.bfloat16).float()
    assert torch.equal(loaded.tok_embeddings, expected)


def test_the_digest_tells_other_weights_and_other_shapes_apart(tmp_path: Path) -> None:
    published(tmp_path / "a")
    published(tmp_path / "b")
    published(tmp_path / "c", replace(CONFIG, rope_theta=1e6))
    a, b, c = (Checkpoint.open(tmp_path / name).digest() for name in "abc")
    assert a == b != c


def test_a_run_folder_stands_for_its_published_model(tmp_path: Path) -> None:
    published(tmp_path / "run" / "checkpoints" / "step-00000010")
    published(tmp_path / "run" / "checkpoints" / "step-00000020")
    assert resolve(tmp_path / "run").name == "step-00000020"
    published(tmp_path / "run" / "model")
    assert resolve(tmp_path / "run").name == "model"


def damage_nothing_there(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-200])


def damage_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")


def edit_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def damage_missing_weight(folder: Path) -> None:
    edit_weights(folder, "model.layers.1.mlp.up_proj.weight", None)


def damage_shape(folder: Path) -> None:
    edit_weights(folder, "model.norm.weight", torch.ones(31))


def damage_foreign_weight(folder: Path) -> None:
    edit_weights(folder, "model.layers.2.input_layernorm.weight", torch.ones(32))


def damage_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing_there, "is not a checkpoint: it has no config.json"),
        (damage_no_weights, "has a config.json but no weights"),
        (damage_truncate, "model.safetensors is damaged or incomplete"),
        (damage_header, "model.safetensors is damaged or incomplete"),
        (damage_missing_weight, "model.layers.1.mlp.up_proj.weight is missing"),
        (damage_shape, r"model.norm.weight has shape \(31,\), the model's is \(32,\)"),
        (damage_foreign_weight, "model.layers.2.input_layernorm.weight is not part of the model"),
        (damage_json, "config.json is not valid JSON"),
        (lambda f: edit_config(f, model_type="mistral"), "model_type is 'mistral'"),
        (lambda f: edit_config(f, attention_bias=True), "attention_bias = True is not part"),
        (lambda f: edit_config(f, hidden_size="absent"), "hidden_size is missing"),
        (lambda f: edit_config(f, hidden_size="wide"), "a field has a wrong value"),
        (lambda f: edit_config(f, num_attention_heads=5), "dim 32 is not a multiple of n_heads 5"),
        (lambda f: edit_config(f, head_dim=16), "head_dim 16 differs"),
        (
            lambda f: edit_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
            "rotary scaling 'yarn' is not supported",
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(
    damage: object, message: str, tmp_path: Path
) -> None:
    published(tmp_path / "m")
    damage(tmp_path / "m")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        load_model(Checkpoint.open(tmp_path / "m"), device=CPU)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    published(tmp_path / "m", max_shard_bytes=10_000)
    sorted((tmp_path / "m").glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"incomplete: model-00002-of-\d+.safetensors missing"):
        Checkpoint.open(tmp_path / "m")


@pytest.mark.parametrize("generation", [4, 5])
def test_theta_is_read_where_either_generation_of_transformers_writes_it(generation: int) -> None:
    raw = replace(CONFIG, rope_theta=1e6).to_hugging_face(dtype="float32")
    del raw["rope_parameters" if generation == 4 else "rope_theta"]
    assert ModelConfig.from_hugging_face(raw, where="config.json").rope_theta == 1e6


def with_own_output(folder: Path, output: torch.Tensor) -> None:
    """Store an output matrix in a tied checkpoint."""
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": output}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("equal", [True, False])
def test_a_stored_output_matrix_counts_as_transformers_counts_it(
    equal: bool, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = published(tmp_path / "m", replace(CONFIG, tied=True))
    table = model.tok_embeddings.detach()
    with_own_output(tmp_path / "m", table.clone() if equal else table.flip(0) + 0.1)
    checkpoint = Checkpoint.open(tmp_path / "m")
    assert checkpoint.config.tied == equal
    loaded = load_model(checkpoint, device=CPU)
    ids = torch.arange(12).unsqueeze(0)
    hidden = loaded(ids, torch.arange(12).unsqueeze(0), PackedAttention(None))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(hidden), theirs(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_converting_keeps_a_stored_output_matrix(layout: str, tmp_path: Path) -> None:
    model = published(tmp_path / "m", replace(CONFIG, tied=True))
    output = model.tok_embeddings.detach().flip(0)
    with_own_output(tmp_path / "m", output)
    convert(Request(source=tmp_path / "m", out=tmp_path / "out", layout=Layout(layout)))
    result = Checkpoint.open(tmp_path / "out")
    assert not result.config.tied
    assert torch.equal(result.weights.raw("output.weight"), output)


@pytest.mark.parametrize("wide", ["norm.weight", "input_layernorm.weight", "embed_tokens.weight"])
def test_mixed_types_load_into_one(wide: str, tmp_path: Path) -> None:
    published(tmp_path / "m", dtype=torch.bfloat16)
    file = tmp_path / "m" / "model.safetensors"
    mixed = {n: t.float() if n.endswith(wide) else t for n, t in load_file(file).items()}
    save_file(mixed, file, metadata={"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path / "m")
    for dtype in (None, torch.bfloat16, torch.float32):
        loaded = load_model(checkpoint, device=CPU, dtype=dtype)
        assert {w.dtype for w in loaded.parameters()} == {dtype or torch.float32}
        ids = torch.arange(8).unsqueeze(0)
        assert loaded(ids, ids, PackedAttention(None)).isfinite().all()
