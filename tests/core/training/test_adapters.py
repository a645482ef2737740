"""Adapters: trained alone, saved alone, resumed exactly, and the same to PEFT and to us."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from codecria.core.checkpoints.adapters.folder import Adapter
from codecria.core.checkpoints.adapters.merge import merged
from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import ModelConfig
from codecria.core.model.four_bits import dequantise, quantise
from codecria.core.model.transformer import Transformer
from codecria.core.training.adapters import attach, draws, trained_parameters
from codecria.core.training.meter import read_metrics
from codecria.core.training.optim import trained_weights
from codecria.core.training.overrides import override
from codecria.core.training.planner import plan_paper
from codecria.core.training.recipes import RECIPES, recipe_for
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.data.errors import UsageError, UserError
from tests.core.training.runs import CPU, request, train

pytestmark = pytest.mark.usefixtures("tiny_preset")


def logits(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    model = load_model(checkpoint, device=CPU).eval()
    return of_model(model, ids)


@torch.inference_mode()
def of_model(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    T = ids.shape[1]
    hidden = model(ids, torch.arange(T).expand(ids.shape), PackedAttention(None))
    return model.logits(hidden)


@pytest.fixture(scope="module")
def base(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from codecria.core.model.config import MODELS

    out = tmp_path_factory.mktemp("adapters") / "base"
    tiny = replace(MODELS["1m"], dim=16, n_layers=2, n_heads=2, n_kv_heads=1, hidden_dim=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "1m", tiny)
        train(request(recipe="pretrain", data=[str(shards)], size="1m", steps=2), out)
    return out / "model"


@pytest.fixture(scope="module")
def adapter(base: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with new infilling rows, trained in one go."""
    out = tmp_path_factory.mktemp("adapters") / "run"
    train(request(data=[str(shards)], init=base, lora=4), out)
    return out


def test_only_the_adapter_and_the_new_rows_are_trained_and_saved(base: Path, adapter: Path) -> None:
    opened = Adapter.open(adapter)
    config = Checkpoint.open(adapter).config
    new_rows = config.vocab_size - Checkpoint.open(base).config.vocab_size
    assert new_rows > 0, "the stage adds infilling pieces"
    recipe = replace(recipe_for("fim", "1m"), lora_rank=4)
    assert opened.parameters == trained_parameters(config, recipe, new_rows)
    step = adapter / "checkpoints" / "step-00000006"
    for folder in (step, adapter / "adapter"):
        assert not (folder / "model.safetensors").exists(), "the base is not saved"
    moments = load_file(step / "optimizer.safetensors")
    saved = sum(tensor.numel() for tensor in moments.values())
    assert saved == 2 * opened.parameters, "moments of other weights than the trained ones"
    assert all(np.abs(pair.b).max() > 0 for pair in opened.pairs.values()), "B stayed zero"
    record = opened.base
    assert record["digest"] == Checkpoint.open(base).digest()
    assert record["rope_theta"] == 1e4
    assert record["tokenizer"]
    losses = [r["loss"] for r in read_metrics(adapter / "metrics.jsonl") if "loss" in r]
    assert losses[-1] < losses[0]


def test_a_killed_run_of_an_adapter_ends_with_the_same_bits(
    base: Path, adapter: Path, shards: Path, tmp_path: Path
) -> None:
    asked = request(data=[str(shards)], init=base, lora=4)
    train(asked, tmp_path / "cut", stop_after=4)
    assert not (tmp_path / "cut" / "adapter").exists()
    between = Checkpoint.open(tmp_path / "cut")  # a step is an adapter to generate with
    assert between.lineage()["step"] == 4
    train(asked, tmp_path / "cut")
    name = "adapter/adapter_model.safetensors"
    one, other = (load_file(folder / name) for folder in (adapter, tmp_path / "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    last = "checkpoints/step-00000006/optimizer.safetensors"
    assert (adapter / last).read_bytes() == (tmp_path / "cut" / last).read_bytes()
    assert train(asked, tmp_path / "cut") == [], "a finished run is left as it is"
    with pytest.raises(UserError, match=r"lora_rank: 4 -> 2"):
        train(replace(asked, lora=2), tmp_path / "cut")


def test_an_adapter_computes_what_the_trained_model_did(
    base: Path, adapter: Path, shards: Path, tmp_path: Path
) -> None:
    # Kills: rows or pairs put elsewhere, a scale forgotten, wk and wv of grouped heads exchanged.
    config = Checkpoint.open(adapter).config
    ids = torch.arange(40).view(2, 20) * 15 % config.vocab_size
    ids[0, :4] = config.vocab_size - 1 - torch.arange(4)  # new pieces
    with_adapter = logits(Checkpoint.open(base, adapter), ids)
    assert not torch.allclose(with_adapter[:, :, :600], logits(Checkpoint.open(base), ids % 600))
    from codecria.core.checkpoints.conversion.convert import convert
    from codecria.core.checkpoints.conversion.request import Layout, Request

    report = convert(
        Request(source=base, adapter=adapter, out=tmp_path / "merged", layout=Layout.HF)
    )
    assert report["compared"]["logits"]["relative"] < 1e-4
    assert report["compared"]["adapter"]["gap"] < 1e-5
    torch.testing.assert_close(
        logits(Checkpoint.open(tmp_path / "merged"), ids), with_adapter, atol=1e-5, rtol=1e-4
    )
    # And without PyTorch, by name.
    opened = Adapter.open(adapter)
    written = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    for ours, theirs in (
        ("tok_embeddings", "model.embed_tokens.weight"),
        ("layers.1.attention.wk.weight", "model.layers.1.self_attn.k_proj.weight"),
    ):
        found = merged(ours, before[theirs].numpy(), opened, config.vocab_size)
        np.testing.assert_allclose(found, written[theirs].numpy(), atol=1e-6)


def test_an_adapter_of_another_model_is_refused(
    adapter: Path, base: Path, small_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model of another shape|belongs to another"):
        Checkpoint.open(small_model, adapter)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in weights.items()}, other / "model.safetensors")
    with pytest.raises(UserError, match="was trained from another model"):
        Checkpoint.open(other, adapter)
    save_file({name: t.bfloat16() for name, t in weights.items()}, other / "model.safetensors")
    Checkpoint.open(other, adapter)  # the same, rounded
    shutil.copytree(adapter / "adapter", tmp_path / "alone")
    page = json.loads((tmp_path / "alone" / "codecria.json").read_text())
    page["base"]["path"] = str(tmp_path / "gone")
    (tmp_path / "alone" / "codecria.json").write_text(json.dumps(page))
    config = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    (tmp_path / "alone" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(UserError, match="which is not there") as caught:
        Checkpoint.open(tmp_path / "alone")
    assert "--adapter" in caught.value.hint
    Checkpoint.open(base, tmp_path / "alone")


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_an_adapter_computes_the_same_on_every_engine_and_over_a_converted_base(
    base: Path, adapter: Path, tmp_path: Path, layout: str
) -> None:
    # Kills: an engine that reads the base's weights and not the merged ones.
    from codecria.core.checkpoints.conversion.convert import convert
    from codecria.core.checkpoints.conversion.request import Layout, Request
    from codecria.core.inference.loading import Compute, load_runner

    other = base
    if layout == "gguf":
        other = tmp_path / "base.gguf"
        convert(Request(source=base, out=other, layout=Layout.GGUF))
    checkpoint = Checkpoint.open(other, adapter)
    prompt = [1, *range(3, 20), checkpoint.config.vocab_size - 1]
    found = {}
    for engine in ("native", "torch"):
        runner = load_runner(checkpoint, Compute(engine=engine, dtype="float32"), print)
        runner.reserve(1, 32)
        found[engine] = runner.prefill(0, [prompt])[0]
    whole = logits(Checkpoint.open(base, adapter), torch.tensor([prompt]))[0, -1].numpy()
    for scores in found.values():
        np.testing.assert_allclose(scores, whole, atol=2e-5, rtol=1e-4)


def test_peft_opens_our_adapter_and_computes_the_same(base: Path, adapter: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = Checkpoint.open(adapter).config
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    model = peft.PeftModel.from_pretrained(model, adapter / "adapter").eval()
    ids = torch.arange(40).view(2, 20) * 15 % config.vocab_size
    ids[0, :4] = config.vocab_size - 1 - torch.arange(4)
    with torch.inference_mode():
        theirs = model(input_ids=ids).logits
    torch.testing.assert_close(
        logits(Checkpoint.open(base, adapter), ids), theirs, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["plain", "rslora", "some", "saved"])
def test_adapters_of_peft_open_here_and_compute_the_same(
    base: Path, tmp_path: Path, kind: str
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "plain": {"target_modules": "all-linear"},
        "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        "some": {
            "target_modules": ["down_proj", "lm_head"],
            "rank_pattern": {"down_proj": 3},
            "alpha_pattern": {"down_proj": 5},
        },
        "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    }[kind]
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=2, lora_alpha=16, task_type="CAUSAL_LM", **options)
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path / "theirs")
    ids = torch.arange(40).view(2, 20) * 15 % 600
    with torch.inference_mode():
        theirs = model(input_ids=ids).logits
    torch.testing.assert_close(
        logits(Checkpoint.open(base, tmp_path / "theirs"), ids), theirs, atol=2e-5, rtol=1e-4
    )


def test_adapters_of_other_kinds_are_refused_by_name(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, value in (
        ("use_dora", True),
        ("peft_type", "IA3"),
        ("bias", "lora_only"),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("init_lora_weights", "pissa_niter_4"),
        ("modules_to_save", ["score"]),
        ("target_parameters", ["experts.gate"]),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(UserError, match=f"{name} = "):
            Checkpoint.open(base, folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[:-8])
    with pytest.raises(UserError, match="damaged"):
        Checkpoint.open(base, folder)


@pytest.mark.parametrize("form", ["bfloat16", "qlora"])
def test_a_base_in_fewer_bits_trains_a_float32_adapter(
    base: Path, shards: Path, tmp_path: Path, form: str
) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16"} if form == "bfloat16" else {"qlora": True}
    asked = request(data=[str(shards)], init=base, lora=4, **options)
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "cut", stop_after=4)
    train(asked, tmp_path / "cut")
    found = [
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "cut")
    ]
    assert all(tensor.dtype == torch.float32 for tensor in found[0].values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    losses = [r["loss"] for r in read_metrics(tmp_path / "whole/metrics.jsonl") if "loss" in r]
    assert losses[-1] < losses[0]


def test_four_bits_lose_little_and_give_the_gradient_of_their_own_matrix() -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 40)  # no multiple of a block
    codes, scales = quantise(weight)
    back = dequantise(codes, scales, (24, 40), torch.float32)
    assert (back - weight).norm() / weight.norm() < 0.12
    again = dequantise(*quantise(back), (24, 40), torch.float32)
    torch.testing.assert_close(again, back)
    assert float(quantise(torch.zeros(3, 5))[1].abs().max()) == 0
    from codecria.core.model.linear import Linear

    layer = Linear(40, 24)
    layer.weight.data = weight.clone()
    layer.make_four_bits()
    layer.quantise(weight)
    x = torch.randn(3, 40, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, back.sum(0).expand(3, 40))


def test_a_fresh_adapter_changes_nothing_and_its_gradients_are_those_of_the_merged_matrix() -> None:
    config = ModelConfig(dim=24, n_layers=2, n_heads=6, n_kv_heads=2, hidden_dim=36, vocab_size=41)
    plain, adapted = Transformer(config), Transformer(config)
    plain.initialise(3)
    adapted.initialise(3)
    recipe = override(recipe_for("fim", "1m"), {"lora_rank": 3, "lora_layers": "attention"})
    attach(adapted, recipe, dtype=torch.float32, known_rows=38)
    with torch.no_grad():
        for weight, draw in draws(adapted, recipe):
            weight.copy_(draw)
    ids = torch.arange(12).view(1, 12) * 3 % 41
    torch.testing.assert_close(of_model(plain, ids), of_model(adapted, ids), atol=0, rtol=0)
    names = trained_weights(adapted)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in names} <= {
        "",
        *["wq", "wk", "wv", "wo"],
    }
    assert {"new_embeddings", "new_outputs"} <= names.keys()
    from codecria.core.model.head import Targets

    # The gradient of the last rows alone is those rows of the whole matrix's gradient.
    for model in (plain, adapted):
        loss, _ = model(
            ids, torch.arange(12).view(1, 12), PackedAttention(None), Targets(ids.roll(-1), 12)
        )
        loss.backward()
    for name, whole in (
        ("new_embeddings", plain.tok_embeddings.grad),
        ("new_outputs", plain.output.weight.grad),
    ):
        assert whole is not None
        torch.testing.assert_close(names[name].grad, whole[38:])
    # A is not reached through B, which is zero; B's gradient is the matrix's times A.
    weight = plain.layers[1].attention.wv
    module = adapted.layers[1].attention.wv
    expected = weight.weight.grad @ module.lora_a.detach().T * (32 / 3)
    torch.testing.assert_close(module.lora_b.grad, expected, atol=1e-7, rtol=1e-4)
    assert float(module.lora_a.grad.abs().max()) == 0


def test_the_rate_of_an_adapter_is_ten_times_the_full_one_and_no_more_than_suits_the_width() -> (
    None
):
    tuned = override(RECIPES["instruct", "7b"], {"lora_rank": 8})
    assert tuned.peak_lr == pytest.approx(2e-4), "ten times 2e-5"
    code = override(RECIPES["fim", "7b"], {"lora_rank": 8})
    assert code.peak_lr == pytest.approx(2.9e-4, rel=0.01), "not ten times a pretraining rate"
    assert code.weight_decay == 0
    assert override(RECIPES["fim", "7b"], {"lora_rank": 8, "peak_lr": 1e-3}).peak_lr == 1e-3
    with pytest.raises(UsageError, match="qlora trains an adapter"):
        override(RECIPES["fim", "7b"], {"qlora": True})


def test_a_plan_of_an_adapter_counts_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked = StageRequest(recipe="fim", size="7b", dtype="bfloat16", device="cpu")
    memory = plan_paper(replace(asked, qlora=True)).memory
    assert memory["weights"] < 4.6e9, "4.25 bits a weight of the layers"
    assert memory["optimizer moments"] < 0.4e9
    plain = plan_paper(replace(asked, lora=16)).memory
    assert 13e9 < plain["weights"] < 14e9, "bfloat16, the embedding in float32"


def test_options_that_do_not_go_together_are_refused(base: Path, shards: Path) -> None:
    for options, message in (
        ({"lora_alpha": 8.0}, "are for adapters"),
        ({"lora": 4, "init": None, "size": "1m"}, "needs a model to adapt"),
        ({"lora": 0}, "--lora 0 is less than 1"),
    ):
        asked = request(**{"data": [str(shards)], "init": base, **options})
        with pytest.raises(UsageError, match=message):
            resolve(asked, out=None)


@pytest.mark.parametrize("harm", ["nan", "overflow"])
def test_a_merge_that_changes_the_model_fails_and_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    # Kills: a gap that is no number taken for none, weights beyond the type's range.
    from codecria.cli import app as cli

    broken = tmp_path / "broken"
    shutil.copytree(adapter / "adapter", broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = float("nan") if harm == "nan" else 1e7
    save_file(tensors, broken / "adapter_model.safetensors")
    (broken / "codecria.json").write_text(
        json.dumps(json.loads((broken / "codecria.json").read_text()) | {"files": {}})
    )
    words = ["convert", str(base), str(tmp_path / "merged"), "--adapter", str(broken)]
    more = [] if harm == "nan" else ["--dtype", "float16"]
    monkeypatch.setattr(sys, "argv", ["codecria", *words, *more])
    assert int(cli.run()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
