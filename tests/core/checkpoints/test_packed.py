"""Folders of packed weights: they hold what was rounded, and every reader understands them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.conversion.calibrate import importance
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.formats.layout import shapes_of
from codecria.core.checkpoints.formats.packed import PackedWeights
from codecria.core.checkpoints.parity import probe_ids
from codecria.core.checkpoints.saving import publish
from codecria.core.inspect import describe
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.core.native.packing import PackedKind, arrange, pack, packed_shape, quantize
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

KINDS = get_args(PackedKind)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows and columns are not all whole blocks."""
    config = ModelConfig(
        dim=80,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=100,
        vocab_size=tokenizer.vocab_size + 3,
        max_context=256,
    )
    built = Transformer(config)
    built.initialise(0)
    path = tmp_path_factory.mktemp("float") / "model"
    publish(path, built, dtype=torch.bfloat16, tokenizer=tokenizer.path, lineage={"tokens": 5})
    return path


@pytest.fixture(scope="module", params=KINDS)
def packed(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out: Path = tmp_path_factory.mktemp("packed") / request.param
    convert(Request(source=model, out=out, layout=Layout.HF, dtype=request.param))
    return out


def test_a_packed_folder_is_sound_and_names_its_types(packed: Path, model: Path) -> None:
    found = describe(packed, verify=True)
    assert found["problems"] == []
    if packed.name == "q4":  # the embedding and the output matrix are worth more
        assert {"q4", "q8"} <= found["facts"]["weights"].keys()
    assert packed.name in found["facts"]["weights"]
    assert found["facts"]["lineage"]["tokens"] == 5
    ratio = found["facts"]["bytes"] / describe(model, verify=False)["facts"]["bytes"]
    assert ratio < {"q8": 0.7, "q4": 0.65}[packed.name]


def test_each_matrix_is_the_source_s_within_a_step(packed: Path, model: Path) -> None:
    source, found = Checkpoint.open(model), Checkpoint.open(packed)
    assert found.config == source.config
    most = {"q8": 0.01, "q4": 0.2}[packed.name]
    for ours, shape in shapes_of(source.config).items():
        one, other = source.weights.raw(ours).float(), found.weights.raw(ours)
        assert other.shape == shape
        if len(shape) == 1:
            assert torch.equal(one, other)
        else:
            assert float((one - other).norm() / one.norm()) < most, ours


def test_the_bytes_are_mapped_and_decode_to_what_torch_computes_with(packed: Path) -> None:
    checkpoint = Checkpoint.open(packed)
    weights = checkpoint.weights
    assert isinstance(weights, PackedWeights)
    for ours, shape in shapes_of(checkpoint.config).items():
        found = weights.packed(ours)
        if len(shape) == 1:
            assert found is None
            continue
        assert found is not None
        assert found[1].shape == packed_shape(found[0], *shape)
        assert not found[1].flags.owndata
        assert np.array_equal(weights.array(ours), weights.raw(ours).numpy())
    built = load_model(checkpoint, device=CPU, dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        scores = built.logits(built(ids, ids, PackedAttention(None)))
    assert bool(scores.isfinite().all())


def test_a_packed_folder_converts_back_and_keeps_its_values(packed: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    plain = Request(source=packed, out=tmp_path / "f32", layout=Layout.HF, dtype="float32")
    convert(plain, note=notes.append)
    one, other = Checkpoint.open(packed), Checkpoint.open(tmp_path / "f32")
    for ours in shapes_of(one.config):
        assert torch.equal(one.weights.raw(ours), other.weights.raw(ours)), ours
    assert other.lineage()["quantised_source"]["types"] == sorted({packed.name, "q8"})
    assert "quantization_config" not in json.loads((tmp_path / "f32/config.json").read_text())


def test_damage_to_a_packed_folder_is_found(packed: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    file = broken / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(bytes(data))
    problems = describe(broken, verify=True)["problems"]
    assert "model.safetensors is not the file that was written" in problems
    page = json.loads((broken / "config.json").read_text())
    page["quantization_config"]["layout"] = 99
    (broken / "config.json").write_text(json.dumps(page))
    with pytest.raises(UserError, match=re.escape("packed in layout 99, this version")):
        Checkpoint.open(broken)
    page["quantization_config"]["layout"] = 1
    page["intermediate_size"] = 160
    (broken / "config.json").write_text(json.dumps(page))
    assert Checkpoint.open(broken).problems()


def test_opening_a_packed_folder_takes_no_torch(packed: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from codecria.core.checkpoints.checkpoint import Checkpoint;"
        "c = Checkpoint.open(Path(sys.argv[1])); c.weights.packed('tok_embeddings');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(packed)], check=True, timeout=300)


def test_four_bits_lose_the_least_where_the_inputs_are_worth_the_most() -> None:
    draws = np.random.default_rng(0)
    weights = draws.standard_normal((48, 96)).astype(np.float32)
    worth = draws.gamma(0.2, size=96).astype(np.float32) + np.float32(1e-3)
    worth /= worth.mean()
    errors = []
    for given in (None, worth):
        codes, scales = quantize("q4", weights, given)
        decoded = codes.reshape(48, 3, 32) * scales.astype(np.float32)[..., None]
        errors.append(((decoded.reshape(48, 96) - weights) ** 2 * worth).sum())
    assert errors[1] < 0.7 * errors[0], errors
    assert np.array_equal(
        pack("q4", weights, worth), arrange("q4", *quantize("q4", weights, worth))
    )
    nothing = quantize("q4", np.zeros((16, 32), np.float32), np.ones(32, np.float32))
    assert not nothing[0].any()


def test_the_worth_of_inputs_is_what_the_model_reads(model: Path, tokenizer: Tokenizer) -> None:
    checkpoint = Checkpoint.open(model)
    found = importance(checkpoint, checkpoint.config, tokenizer)
    matrices = {n: s for n, s in shapes_of(checkpoint.config).items() if len(s) == 2}
    assert found.keys() == matrices.keys() - {"tok_embeddings"}
    assert all(worth.shape == matrices[name][1:] for name, worth in found.items())
    # The first layer's inputs, computed by the model itself.
    built = load_model(checkpoint, device=CPU, dtype=torch.float32)
    ids = torch.tensor(probe_ids(tokenizer)[:256])
    with torch.inference_mode():
        inputs = built.layers[0].attention_norm(built.tok_embeddings[ids])
    mine = inputs.pow(2).mean(0)
    np.testing.assert_allclose(found["layers.0.attention.wq.weight"], mine.numpy(), rtol=1e-4)
