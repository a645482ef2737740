"""convert: round trips bit for bit, other engines as oracles, and damage reported in one line."""

import itertools
import json
import math
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Chat, Layout, Request
from codecria.core.checkpoints.formats.chat_template import TEMPLATES
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.checkpoints.formats.layout import shapes_of
from codecria.core.checkpoints.parity import PROBE_TEXT
from codecria.core.checkpoints.saving import publish
from codecria.core.inspect import describe
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UsageError, UserError
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests import llama_cpp_oracle

pytest.importorskip("gguf")
CPU = torch.device("cpu")
PLAIN = PackedAttention(None)


def run(source: Path, out: Path, layout: str = "hf", **options: object) -> dict[str, object]:
    return convert(Request(source=source, out=out, layout=Layout(layout), **options))  # type: ignore[arg-type]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(path)
    return {n: checkpoint.weights.read(n, checkpoint.config) for n in shapes_of(checkpoint.config)}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.dtype == other[name].dtype, name
        assert torch.equal(weight, other[name]), name


@pytest.fixture(scope="module")
def instruct(extended: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all that must survive: theta, context, scale apart, pieces, lineage."""
    config = ModelConfig(
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=160,
        vocab_size=extended.vocab_size,
        rope_theta=1e6,
        max_context=8_192,
        norm_eps=1e-6,
    )
    model = Transformer(config)
    for number, (name, weight) in enumerate(model.named_parameters()):
        draws = torch.Generator().manual_seed(number)
        spread = 1.0 if name == "output.weight" else 0.15  # decided, so that rounding is no matter
        weight.data = torch.randn(weight.shape, generator=draws) * spread + (weight.ndim == 1)
    path = tmp_path_factory.mktemp("instruct") / "model"
    lineage = {"recipe": "instruct", "tokens": 5, "ancestors": [{"recipe": "fim", "tokens": 3}]}
    publish(path, model, dtype=torch.bfloat16, tokenizer=extended.path, lineage=lineage, card="A")
    return path


def facts_of(path: Path) -> dict[str, object]:
    """What must survive a round trip."""
    checkpoint = Checkpoint.open(path)
    assert checkpoint.tokenizer_path is not None
    return {
        "config": checkpoint.config,
        "tokenizer": checkpoint.tokenizer_path.read_bytes(),
        "template": checkpoint.chat_template(),
        "lineage": checkpoint.lineage(),
        "dtypes": {part.dtype for part in checkpoint.weights.stored.values()},
        "card": (checkpoint.folder / "README.md").read_text(),
    }


# Round trips


@pytest.mark.parametrize("size", ["7b", "13b", "34b", "70b"])
def test_meta_to_hugging_face_to_meta_is_bit_for_bit(
    meta_layout: ModuleType,
    size: str,
    tmp_path: Path,
) -> None:
    ranks, config = meta_layout.NARROW[size]
    config = replace(config, rope_theta=1e6, max_context=16_384)
    weights = meta_layout.meta_folder(tmp_path / "a", config, ranks=ranks)
    run(tmp_path / "a", tmp_path / "b", max_shard_bytes=60_000)
    assert len(Checkpoint.open(tmp_path / "b").weights.files) > 1
    run(tmp_path / "b", tmp_path / "c", "meta")
    found = torch.load(tmp_path / "c" / "consolidated.00.pth", weights_only=True)
    assert_same(dict(sorted(found.items())), dict(sorted(weights.items())))
    assert Checkpoint.open(tmp_path / "c").config == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 6), (8, 4)]),
    half=st.integers(1, 5),
    layers=st.integers(1, 3),
    hidden=st.integers(2, 40),
    vocabulary=st.integers(3, 50),
    theta=st.sampled_from([1e4, 5e5, 1e6]),
    tied=st.booleans(),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_any_shape_comes_back_from_either_way_round(
    heads: tuple[int, int],
    half: int,
    layers: int,
    hidden: int,
    vocabulary: int,
    theta: float,
    tied: bool,
    dtype: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = ModelConfig(
        dim=2 * half * heads[0],
        n_layers=layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        hidden_dim=hidden,
        vocab_size=vocabulary,
        rope_theta=theta,
        max_context=77,
        tied=tied,
    )
    folder = tmp_path_factory.mktemp("shape")
    model = Transformer(config)
    model.initialise(3)
    publish(
        folder / "a", model, dtype=getattr(torch, dtype), tokenizer=None, lineage={"recipe": "fim"}
    )
    run(folder / "a", folder / "b", "meta")
    run(folder / "b", folder / "c")
    assert Checkpoint.open(folder / "c").config == config
    assert Checkpoint.open(folder / "c").lineage() == {"recipe": "fim"}
    assert_same(weights_of(folder / "a"), weights_of(folder / "b"))
    assert_same(weights_of(folder / "a"), weights_of(folder / "c"))


def test_everything_a_checkpoint_records_survives(instruct: Path, tmp_path: Path) -> None:
    run(instruct, tmp_path / "meta", "meta")
    run(tmp_path / "meta", tmp_path / "back")
    assert facts_of(instruct) == facts_of(tmp_path / "meta") == facts_of(tmp_path / "back")
    assert facts_of(instruct)["template"] == TEMPLATES["llama2"]
    first = (instruct / "model.safetensors").read_bytes()
    assert first == (tmp_path / "back" / "model.safetensors").read_bytes()
    sums = subprocess.run(
        ["md5sum", "-c", "checklist.chk"], cwd=tmp_path / "meta", capture_output=True, check=False
    )
    assert sums.returncode == 0, sums.stderr


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16", "q8", "q4"])
def test_gguf_has_the_same_metadata_and_weights(
    instruct: Path, extended: Tokenizer, dtype: str | None, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    report = run(instruct, tmp_path / "m.gguf", "gguf", dtype=dtype)
    found = GgufWeights(tmp_path / "m.gguf")
    source = Checkpoint.open(instruct)
    assert found.facts.config == source.config
    assert found.facts.lineage == source.lineage()
    assert found.facts.chat_template == TEMPLATES["llama2"]
    kinds = {None: {"bfloat16"}, "q8": {"Q8_0"}, "q4": {"Q8_0", "Q4_0"}}
    assert {part.dtype for part in found.stored.values()} == {
        "float32",
        *kinds.get(dtype, {str(dtype)}),
    }
    assert extended.infill is not None
    ids = found.special_ids()
    assert (ids["bos"], ids["eos"], ids["eot"]) == (1, 2, extended.infill.end)
    for pre, suf, mid in (("prefix", "suffix", "middle"), ("fim_pre", "fim_suf", "fim_mid")):
        assert (ids[pre], ids[suf], ids[mid]) == (
            extended.infill.prefix,
            extended.infill.suffix,
            extended.infill.middle,
        )
    oracle = gguf.GGUFReader(tmp_path / "m.gguf")
    types = oracle.fields["tokenizer.ggml.token_type"].contents()
    assert {types[i] for i in (ids["prefix"], ids["suffix"], ids["middle"], ids["eot"])} == {3}
    assert len(oracle.fields["tokenizer.ggml.tokens"].contents()) == source.config.vocab_size
    # Weights: as another reader of the format finds them.
    tensors = {tensor.name: tensor for tensor in oracle.tensors}
    for ours in shapes_of(source.config):
        mine = source.weights.read(ours, source.config, rotary_order="interleaved").float()
        theirs = found.raw(ours).float()
        tensor = tensors[found.name(ours)]
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(decoded.reshape(theirs.shape), theirs.numpy())
        if dtype in ("q8", "q4") and mine.ndim == 2:
            groups = mine.abs().view(len(mine), -1, 32).amax(-1, keepdim=True)
            step, most = groups / {"q8": 127, "q4": 8}[dtype], {"q8": 0.57, "q4": 3.0}[dtype]
            off = (mine - theirs).abs().view(len(mine), -1, 32)
            assert bool((off <= most * step + 1e-6).all())
        else:
            plain = mine if dtype in (None, "q8", "q4") else mine.to(getattr(torch, dtype))
            assert torch.equal(plain.float() if mine.ndim == 2 else mine, theirs)
    assert report["compared"]["logits"]["relative"] < (0.5 if dtype == "q4" else 0.05)  # type: ignore[index]


def greedy(folder: Path, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Tokens by full forward passes, and by how much each was ahead."""
    model = load_model(Checkpoint.open(folder), device=CPU, dtype=torch.float32)
    ids, margins = list(prompt), []
    with torch.inference_mode():
        for _ in range(count):
            positions = torch.arange(len(ids)).unsqueeze(0)
            scores = model.logits(model(torch.tensor([ids]), positions, PLAIN)[:, -1])[0]
            top = scores.topk(2)
            margins.append(float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
    return ids[len(prompt) :], margins


def test_transformers_computes_the_same_from_a_converted_meta_folder(
    instruct: Path, tmp_path: Path
) -> None:
    """The oracle of the order of rows: Meta's parts, converted, in another's model."""
    transformers = pytest.importorskip("transformers")
    run(instruct, tmp_path / "meta", "meta")
    run(tmp_path / "meta", tmp_path / "hf", dtype="float32")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    config = Checkpoint.open(instruct).config
    ids = torch.randint(3, config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(12).expand(2, -1) + torch.tensor([[0], [8_000]])
    model = load_model(Checkpoint.open(tmp_path / "meta"), device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        mine = model.logits(model(ids, positions, PLAIN))
        found = theirs(input_ids=ids, position_ids=positions).logits
    assert torch.allclose(mine, found, atol=1e-4 * float(found.abs().max()))
    assert theirs.generation_config.eos_token_id == [2, config.vocab_size - 6]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "q8"])
def test_llama_cpp_generates_the_same_tokens(
    learnt: Path, extended: Tokenizer, dtype: str, tmp_path: Path
) -> None:
    run(learnt, tmp_path / "m.gguf", "gguf", dtype=dtype, chat=Chat.LLAMA2)
    engine = llama_cpp_oracle.loaded(tmp_path / "m.gguf")
    for text in ("def add(a, b):\n", "  x = [1,  2]\n\n\treturn é"):
        assert engine.tokenize(text.encode(), add_bos=True) == [1, *extended.encode(text)]
    prompt = [1, *extended.encode(PROBE_TEXT[:80])]
    tokens, margins = greedy(learnt, prompt, 24)
    found = list(itertools.islice(engine.generate(prompt, temp=0.0, repeat_penalty=1.0), 24))
    # As far as rounding cannot have changed which token is first.
    least = {"float32": 1e-3, "bfloat16": 0.05, "q8": 0.1}[dtype]
    sure = next((i for i, margin in enumerate(margins) if margin < least), len(margins))
    assert sure >= 4, "the model of the test is too undecided"
    assert found[:sure] == tokens[:sure]
    assert engine.metadata["tokenizer.chat_template"] == TEMPLATES["llama2"]


# Straight from a folder


def test_a_meta_folder_generates_what_its_conversion_does(
    instruct: Path, extended: Tokenizer, tmp_path: Path
) -> None:
    run(instruct, tmp_path / "meta", "meta")
    prompt = [1, *extended.encode("class A:")]
    assert greedy(tmp_path / "meta", prompt, 8)[0] == greedy(instruct, prompt, 8)[0]


# Refusals


def test_nothing_is_overwritten_unless_asked_for(instruct: Path, tmp_path: Path) -> None:
    run(instruct, tmp_path / "m")
    with pytest.raises(UserError, match="exists"):
        run(instruct, tmp_path / "m")
    run(instruct, tmp_path / "m", force=True, dtype="float32")
    assert {p.dtype for p in Checkpoint.open(tmp_path / "m").weights.stored.values()} == {"float32"}
    with pytest.raises(UsageError, match="is the source"):
        run(instruct, instruct, force=True)
    with pytest.raises(UserError, match="is a folder, and is not replaced"):
        run(instruct, tmp_path / "m", "gguf", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_only_models_are_replaced_and_never_what_holds_the_source(
    instruct: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("keep")
    (tmp_path / "b.txt").write_text("keep")
    with pytest.raises(UserError, match="is no model, and is not replaced"):
        run(instruct, tmp_path / "notes", force=True)
    with pytest.raises(UserError, match="is no model, and is not replaced"):
        run(instruct, tmp_path / "b.txt", "gguf", force=True)
    shutil.copytree(instruct, tmp_path / "run" / "model")
    with pytest.raises(UsageError, match="holds the source"):
        run(tmp_path / "run", tmp_path / "run", force=True)
    with pytest.raises(UserError, match="cannot write"):
        run(instruct, tmp_path / "b.txt" / "m")
    kept = [tmp_path / "notes" / "a.txt", tmp_path / "b.txt"]
    assert [path.read_text() for path in kept] == ["keep", "keep"]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_what_killed_conversions_left_is_removed_and_nothing_else(
    instruct: Path, tmp_path: Path
) -> None:
    (tmp_path / f".tmp-m-{'a' * 12}").mkdir()
    others = [tmp_path / f".tmp-m-2-{'b' * 12}", tmp_path / ".tmp-m-notes"]
    for path in others:
        path.touch()
    run(instruct, tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "m"])


def test_weights_of_float64_become_float32_in_gguf(
    meta_layout: ModuleType, extended: Tokenizer, tmp_path: Path
) -> None:
    config = replace(meta_layout.NARROW["7b"][1], vocab_size=extended.vocab_size)
    meta_layout.meta_folder(tmp_path / "m", config, dtype=torch.float64, tokenizer=extended.path)
    assert run(tmp_path / "m", tmp_path / "m.gguf", "gguf")["dtype"] == "f32"


def test_options_that_do_not_go_together_are_refused(
    meta_layout: ModuleType,
    instruct: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="Meta's layout has no type q8"):
        run(instruct, tmp_path / "m", "meta", dtype="q8")
    bare = tmp_path / "bare"
    meta_layout.meta_folder(bare, meta_layout.NARROW["7b"][1])
    with pytest.raises(UserError, match=r"has no tokenizer\.model"):
        run(bare, tmp_path / "m.gguf", "gguf")


def test_rows_that_q8_0_cannot_hold_are_reported(
    meta_layout: ModuleType,
    tmp_path: Path,
    tokenizer: Tokenizer,
) -> None:
    config = replace(meta_layout.NARROW["13b"][1], vocab_size=tokenizer.vocab_size)
    meta_layout.meta_folder(tmp_path / "m", config, tokenizer=tokenizer.path)
    with pytest.raises(UserError, match="Q8_0 needs rows of a multiple of 32"):
        run(tmp_path / "m", tmp_path / "m.gguf", "gguf", dtype="q8")
    assert not (tmp_path / "m.gguf").exists()


def test_values_that_a_type_cannot_hold_stop_the_conversion(
    meta_layout: ModuleType,
    tmp_path: Path,
) -> None:
    weights = meta_layout.meta_folder(tmp_path / "m", meta_layout.NARROW["7b"][1])
    weights["layers.1.feed_forward.w2.weight"][3, 4] = 1e6
    torch.save(weights, tmp_path / "m" / "consolidated.00.pth")
    with pytest.raises(UserError, match=r"layers.1.feed_forward.w2.weight holds .* as float16"):
        run(tmp_path / "m", tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_file_that_the_checklist_contradicts_stops_it(instruct: Path, tmp_path: Path) -> None:
    run(instruct, tmp_path / "meta", "meta")
    params = tmp_path / "meta" / "params.json"
    params.write_text(params.read_text() + " ")
    with pytest.raises(UserError, match=r"params.json is not the file that the checklist names"):
        run(tmp_path / "meta", tmp_path / "out")
    run(tmp_path / "meta", tmp_path / "out", verify=False)
    told = describe(tmp_path / "meta", verify=True)
    assert "params.json is not the file that the checklist names" in told["problems"]


def test_a_full_disk_is_reported_before_anything_is_written(
    instruct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"0\.00 GB free"):
        run(instruct, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_source_lost_can_be_put_right(instruct: Path, tmp_path: Path) -> None:
    run(instruct, tmp_path / "m", theta=5e5, context=99, chat=Chat.NONE)
    found = Checkpoint.open(tmp_path / "m")
    assert (found.config.rope_theta, found.config.max_context) == (5e5, 99)
    assert found.chat_template() == ""


def test_a_released_instruct_folder_gets_its_template_by_its_name(
    meta_layout: ModuleType,
    extended: Tokenizer,
    tmp_path: Path,
) -> None:
    config = replace(meta_layout.NARROW["7b"][1], vocab_size=extended.vocab_size, rope_theta=1e6)
    meta_layout.meta_folder(tmp_path / "CodeLlama-7b-Instruct", config, tokenizer=extended.path)
    notes: list[str] = []
    request = Request(
        source=tmp_path / "CodeLlama-7b-Instruct", out=tmp_path / "m", layout=Layout.HF
    )
    convert(request, note=notes.append)
    assert Checkpoint.open(tmp_path / "m").chat_template() == TEMPLATES["llama2"]
    assert "by its name" in notes[0]


# From the shell


def shell(python: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "codecria.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_verb_converts_and_reports(warm_python: str, instruct: Path, tmp_path: Path) -> None:
    done = shell(warm_python, "convert", instruct, tmp_path / "m.gguf", "--dtype", "q8_0", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["layout"], report["dtype"]) == ("gguf", "q8_0")
    assert report["compared"]["exact"] is False
    again = shell(warm_python, "convert", instruct, tmp_path / "m.gguf")
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert "Traceback" not in again.stderr
    assert shell(warm_python, "inspect", tmp_path / "m.gguf").returncode == 0


# A conversion that is killed when all is written and nothing is published.
KILLED = """
import os, signal
from pathlib import Path
from codecria.cli.app import main

Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_a_killed_conversion_leaves_nothing_visible_and_starts_anew(
    warm_python: str, extended: Tokenizer, tmp_path: Path
) -> None:
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=4, hidden_dim=64, vocab_size=extended.vocab_size
    )
    model = Transformer(config)
    model.initialise(0)
    publish(tmp_path / "src", model, dtype=torch.float32, tokenizer=extended.path, lineage={})
    command = [warm_python, "-c", KILLED, "convert", tmp_path / "src", tmp_path / "dst"]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "dst").exists()
    [left] = tmp_path.glob(".tmp-dst-*")
    assert list(left.glob("*.safetensors"))
    assert shell(warm_python, "convert", tmp_path / "src", tmp_path / "dst").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"]


# What the weights say


@pytest.fixture(scope="module")
def learnt(extended: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learnt code: the probe's own text, its parts in any order."""
    torch.manual_seed(0)
    config = ModelConfig(
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        hidden_dim=160,
        vocab_size=extended.vocab_size,
        rope_theta=1e6,
        max_context=512,
    )
    model = Transformer(config)
    model.initialise(0)
    ids = torch.tensor([[1, *extended.encode(PROBE_TEXT)][:257]])
    positions = torch.arange(256).unsqueeze(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(70):
        scores = model.logits(model(ids[:, :-1], positions, PLAIN))
        loss = torch.nn.functional.cross_entropy(scores[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * math.log(config.vocab_size)
    path = tmp_path_factory.mktemp("learnt") / "model"
    publish(path, model, dtype=torch.float32, tokenizer=extended.path, lineage={})
    (path / "codecria.json").unlink()  # as a checkpoint made elsewhere
    return path


def edited(path: Path, out: Path, **changes: object) -> Path:
    shutil.copytree(path, out)
    config = json.loads((out / "config.json").read_text()) | changes
    config.pop("rope_parameters") if "rope_theta" in changes else None
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_a_sound_checkpoint_raises_no_suspicion(learnt: Path, tmp_path: Path) -> None:
    assert describe(learnt, verify=True)["problems"] == []
    run(learnt, tmp_path / "meta", "meta")
    assert describe(tmp_path / "meta", verify=True)["problems"] == []


def test_a_lost_theta_is_found(learnt: Path, tmp_path: Path) -> None:
    path = edited(learnt, tmp_path / "m", rope_theta=1e4)
    (problem,) = describe(path, verify=True)["problems"]
    assert "rope_theta is 10000, and 1e+06 fits the weights better" in problem


def test_swapped_rows_of_q_and_k_are_found(learnt: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from codecria.core.checkpoints.formats.layout import reordered

    path = edited(learnt, tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    for name in weights:
        if "q_proj" in name or "k_proj" in name:
            weights[name] = reordered(weights[name], 4, source="half_split", target="interleaved")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (problem,) = describe(path, verify=True)["problems"]
    assert "wq and wk (q_proj, k_proj) seem to be in the order of Meta's layout" in problem


def test_a_tokenizer_of_another_vocabulary_is_found(
    learnt: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    path = edited(learnt, tmp_path / "m")
    model = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
        (path / "tokenizer.model").read_bytes()
    )
    normal = [i for i, piece in enumerate(model.pieces) if piece.type == 1]
    names = [(model.pieces[i].piece, model.pieces[i].score) for i in normal]
    for i, (piece, score) in zip(normal, reversed(names), strict=True):
        model.pieces[i].piece, model.pieces[i].score = piece, score
    (path / "tokenizer.model").write_bytes(model.SerializeToString())
    (problem,) = describe(path, verify=False)["problems"]
    assert "the added token '▁<PRE>' has the id 607" in problem  # of the files beside it
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    (problem,) = describe(path, verify=True)["problems"]
    assert "the tokenizer is of another vocabulary, or the weights are spoilt" in problem
    (path / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    problems = describe(path, verify=False)["problems"]
    assert any("the infilling pieces are missing from it" in line for line in problems)


def test_a_shape_that_differs_from_what_was_written_is_named(
    instruct: Path, tmp_path: Path
) -> None:
    shutil.copytree(instruct, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["rope_theta"] = 1e4
    del config["rope_parameters"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    problems = describe(tmp_path / "m", verify=True)["problems"]
    assert "rope_theta is 10000, the model was written with 1e+06" in problems


def test_a_damaged_lineage_does_not_stop_what_does_not_need_it(
    instruct: Path, tmp_path: Path
) -> None:
    shutil.copytree(instruct, tmp_path / "m")
    (tmp_path / "m" / "codecria.json").write_text('{"files": 3, "model": {"dim": "wide"}}')
    assert describe(tmp_path / "m", verify=True)["facts"]["dim"] == 64


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999])
def test_a_truncated_gguf_file_is_reported(instruct: Path, share: float, tmp_path: Path) -> None:
    run(instruct, tmp_path / "m.gguf", "gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"m.gguf is damaged or incomplete"):
        describe(tmp_path / "m.gguf", verify=False)


# Several ranks


def wide(tied: bool) -> ModelConfig:
    return ModelConfig(
        dim=64,
        n_layers=2,
        n_heads=16,
        n_kv_heads=8,
        hidden_dim=96,
        vocab_size=64,
        rope_theta=1e6,
        max_context=16_384,
        tied=tied,
    )


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_ranks_are_written_as_meta_s_code_divides_and_come_back_bit_for_bit(
    ranks: int, tied: bool, meta_layout: ModuleType, tmp_path: Path
) -> None:
    model = Transformer(wide(tied))
    model.initialise(3)
    publish(tmp_path / "m", model, dtype=torch.bfloat16, tokenizer=None, lineage={"step": 1})
    run(tmp_path / "m", tmp_path / "meta", "meta", ranks=ranks)
    files = sorted(path.name for path in (tmp_path / "meta").glob("*.pth"))
    assert files == [f"consolidated.{n:02d}.pth" for n in range(ranks)]
    # The test's own writer of Meta's layout divides the joined weights alike.
    whole = Checkpoint.open(tmp_path / "meta").weights
    joined = {whole.name(name): whole.raw(name) for name in whole.stored}
    parts = meta_layout.meta_parts(joined, ranks)
    for name, part in zip(files, parts, strict=True):
        found = torch.load(tmp_path / "meta" / name, weights_only=True)
        assert found.keys() - {"rope.freqs"} == part.keys() - {"rope.freqs"}
        for key in found.keys() & part.keys():
            assert torch.equal(found[key], part[key]), key
    run(tmp_path / "meta", tmp_path / "back")
    assert_same(weights_of(tmp_path / "back"), weights_of(tmp_path / "m"))
    assert Checkpoint.open(tmp_path / "back").config == wide(tied)
    run(tmp_path / "back", tmp_path / "again", "meta", ranks=ranks)
    for name in files:
        one, other = ((tmp_path / f / name).read_bytes() for f in ("meta", "again"))
        assert one == other


def test_ranks_change_from_one_number_to_another(tmp_path: Path) -> None:
    model = Transformer(wide(tied=False))
    model.initialise(3)
    publish(tmp_path / "m", model, dtype=torch.float32, tokenizer=None, lineage={})
    source = tmp_path / "m"
    for ranks in (8, 2, 4, 1):
        run(source, tmp_path / f"r{ranks}", "meta", ranks=ranks)
        source = tmp_path / f"r{ranks}"
    assert_same(weights_of(source), weights_of(tmp_path / "m"))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (3, "n_heads 16, n_kv_heads 8, dim 64, vocab_size 64"),
        (16, "16 ranks do not .* n_kv_heads 8"),
    ],
)
def test_ranks_that_do_not_divide_the_model_are_refused(
    ranks: int, message: str, tmp_path: Path
) -> None:
    model = Transformer(wide(tied=False))
    model.initialise(3)
    publish(tmp_path / "m", model, dtype=torch.float32, tokenizer=None, lineage={})
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / "m", tmp_path / "out", "meta", ranks=ranks)
    assert "among 1, 2, 4, 8" in str(error.value.hint)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="--ranks is for Meta's layout"):
        run(tmp_path / "m", tmp_path / "out", "hf", ranks=2)
