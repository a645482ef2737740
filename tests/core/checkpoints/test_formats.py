"""Formats of checkpoints: Meta's ranks, names and orders of rows, GGUF, a tokenizer's files."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.formats.chat_template import TEMPLATES, template_for
from codecria.core.checkpoints.formats.hugging_face import write_tokenizer, write_weights
from codecria.core.checkpoints.formats.layout import (
    EMBEDDING,
    OUTPUT,
    gguf_name,
    hugging_face_name,
    meta_name,
    reordered,
    rotary_heads,
    shapes_of,
)
from codecria.core.checkpoints.formats.meta import (
    hidden_dim_of,
    params_of,
    width_rule,
)
from codecria.core.checkpoints.formats.pickled import read_pickled
from codecria.core.checkpoints.formats.pth import write_pickle
from codecria.core.checkpoints.formats.weights import forget
from codecria.core.checkpoints.parity import View, logits
from codecria.core.checkpoints.saving import publish
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import PAPER_MODELS
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from codecria.data.formats import chat
from codecria.data.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3].parent / "shared"
LLAMA2 = SHARED / "tokenizers" / "llama2.model"

SIZES = ("7b", "13b", "34b", "70b")


# Names and orders of rows


def test_every_weight_of_a_model_has_a_name_and_a_shape_in_every_format() -> None:
    for tied, config in itertools.product((False, True), PAPER_MODELS.values()):
        config = replace(config, tied=tied)
        with torch.device("meta"):
            model = Transformer(config)
        shapes = shapes_of(config)
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == shapes
        for name_of in (hugging_face_name, gguf_name, meta_name):
            assert len({name_of(name) for name in shapes}) == len(shapes)


@given(heads=st.integers(1, 6), half=st.integers(1, 8), width=st.integers(1, 5), data=st.data())
def test_an_order_of_rows_and_back_changes_nothing(
    heads: int, half: int, width: int, data: st.DataObject
) -> None:
    weight = torch.arange(heads * 2 * half * width).view(-1, width)
    turned = reordered(weight, heads, source="interleaved", target="half_split")
    head = data.draw(st.integers(0, heads - 1))
    i = data.draw(st.integers(0, half - 1))
    first = head * 2 * half
    assert torch.equal(turned[first + i], weight[first + 2 * i])
    assert torch.equal(turned[first + half + i], weight[first + 2 * i + 1])
    assert torch.equal(reordered(turned, heads, source="half_split", target="interleaved"), weight)


# Meta's layout


@pytest.mark.parametrize("size", SIZES)
def test_ranks_of_every_paper_shape_are_joined_and_compute_what_meta_s_order_says(
    meta_layout: ModuleType, size: str, tmp_path: Path
) -> None:
    ranks, config = meta_layout.NARROW[size]
    config = replace(config, rope_theta=1e6, max_context=16_384)
    weights = meta_layout.meta_folder(tmp_path / "m", config, ranks=ranks)
    checkpoint = Checkpoint.open(tmp_path / "m")
    assert checkpoint.config == config
    assert checkpoint.problems() == []
    assert len(checkpoint.weights.files) == ranks
    for ours in shapes_of(config):
        assert torch.equal(checkpoint.weights.raw(ours), weights[meta_name(ours)]), ours
    # Loaded into our model, in halves, against a forward pass over the pairs as they are stored.
    model = load_model(checkpoint, device=CPU, dtype=torch.float32)
    ids = torch.randint(0, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(9).expand(2, -1) + torch.tensor([[0], [16_000]])
    by_format = logits(
        checkpoint.weights, [View(config=config, rotary_order="interleaved")], ids, positions
    )[0]
    ours_logits = model.logits(model(ids, positions, PackedAttention(None)))
    assert torch.allclose(ours_logits, by_format, atol=2e-4 * float(by_format.abs().max()))


RELEASED_PARAMS = {
    # Literal files, and what follows for the ones that were not seen (PAPER section 1).
    "7b": '{"dim":4096,"n_layers":32,"n_heads":32,"multiple_of":256,"ffn_dim_multiplier":1.0,'
    '"norm_eps":1e-5,"rope_theta":1000000}',
    "13b": '{"dim":5120,"n_layers":40,"n_heads":40,"multiple_of":256,"ffn_dim_multiplier":1.0,'
    '"norm_eps":1e-5,"rope_theta":1000000}',
    "34b": '{"dim":8192,"n_layers":48,"n_heads":64,"n_kv_heads":8,"multiple_of":256,'
    '"ffn_dim_multiplier":1.0,"norm_eps":1e-5,"rope_theta":1000000}',
    "70b": '{"dim":8192,"n_layers":80,"n_heads":64,"n_kv_heads":8,"multiple_of":4096,'
    '"ffn_dim_multiplier":1.3,"norm_eps":1e-5,"rope_theta":10000,"vocab_size":-1}',
}


@pytest.mark.parametrize("size", RELEASED_PARAMS)
def test_the_released_params_give_the_paper_s_shapes(size: str, tmp_path: Path) -> None:
    """The rule of the width, absent fields, and a vocabulary taken from the embedding's rows."""
    from codecria.core.checkpoints.formats.meta import MetaWeights, read_meta_config

    (tmp_path / "params.json").write_text(RELEASED_PARAMS[size])
    rows = PAPER_MODELS[size].vocab_size
    torch.save({"tok_embeddings.weight": torch.zeros(rows, 1)}, tmp_path / "consolidated.00.pth")
    config = read_meta_config(tmp_path, MetaWeights(tmp_path))
    theta = json.loads(RELEASED_PARAMS[size])["rope_theta"]
    context = 16_384 if theta == 1_000_000 else 4_096
    assert config == replace(PAPER_MODELS[size], rope_theta=theta, max_context=context)


@given(
    dim=st.integers(1, 40).map(lambda n: 8 * n),
    hidden=st.integers(2, 6_000),
)
def test_any_width_can_be_said_by_the_release_s_rule(dim: int, hidden: int) -> None:
    assert hidden_dim_of(dim, *width_rule(dim, hidden)) == hidden


def test_the_rule_prefers_what_was_released() -> None:
    assert [width_rule(c.dim, c.hidden_dim) for c in PAPER_MODELS.values()] == [
        (256, None),
        (256, None),
        (256, None),
        (4096, 1.3),
    ]


def test_params_cannot_say_rotary_scaling(
    meta_layout: ModuleType,
) -> None:
    with pytest.raises(UserError, match="cannot express rotary scaling"):
        params_of(replace(meta_layout.NARROW["7b"][1], rope_scale=4.0))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_pickle_written_weight_by_weight_is_one_of_torch_s(mapped: bool, tmp_path: Path) -> None:
    weights = {
        "a": torch.randn(7, 3).to(torch.bfloat16),
        "b.c": torch.randn(5),
        "d": torch.randn(2, 2, dtype=torch.float64),
        "e": torch.randn(33).half(),
    }
    planned = {n: (tuple(w.shape), w.dtype) for n, w in weights.items()}
    write_pickle(tmp_path / "consolidated.00.pth", planned, weights.__getitem__)
    found = torch.load(tmp_path / "consolidated.00.pth", weights_only=True, mmap=mapped)
    assert list(found) == list(weights)
    assert all(torch.equal(found[n], w) and found[n].dtype == w.dtype for n, w in weights.items())
    write_pickle(tmp_path / "again.pth", planned, weights.__getitem__)
    torch.save(OrderedDict(weights), tmp_path / "theirs.pth")
    larger = (tmp_path / "consolidated.00.pth").stat().st_size
    assert larger <= 1.5 * (tmp_path / "theirs.pth").stat().st_size


def test_a_pickle_is_read_without_torch_as_torch_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    whole = torch.randn(6, 8)
    weights = OrderedDict(
        a=torch.randn(7, 3).to(torch.bfloat16),
        b=whole[2:4],  # lies within another's bytes
        c=torch.nn.Parameter(torch.randn(5, dtype=torch.float64)),
        d=torch.randn(3).half(),
        e=torch.zeros(0, 4),
        f=whole,
    )
    torch.save(weights, path)
    found = read_pickled(path)
    assert found is not None
    assert list(found) == list(weights)
    for name, one in weights.items():
        data = torch.from_numpy(found[name].data)
        data = data.view(torch.bfloat16) if found[name].dtype == "bfloat16" else data
        assert data.dtype == one.dtype
        assert torch.equal(data, one)
    torch.save({"a": whole.T}, path)  # not one after the other: torch's own loader reads it
    assert read_pickled(path) is None
    for content in (b"", b"PK\x05\x06" + bytes(18), path.read_bytes()[:400]):
        path.write_bytes(content)
        assert read_pickled(path) is None


def test_a_folder_of_metas_is_generated_from_without_pytorch(
    meta_layout: ModuleType, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ranks, config = meta_layout.NARROW["13b"]
    config = replace(config, vocab_size=tokenizer.vocab_size)
    meta_layout.meta_folder(tmp_path / "m", config, ranks=ranks, tokenizer=tokenizer.path)
    texts = []
    for engine in ("native", "torch"):
        program = "import sys; from codecria.cli.app import run; run();"
        program += "print('torch' in sys.modules, file=sys.stderr)"
        options = ["--engine", engine, "--dtype", "float32", "--threads", "1", "--device", "cpu"]
        options += ["--max-tokens", "4", "def f("]
        done = subprocess.run(
            [sys.executable, "-c", program, "generate", "-m", str(tmp_path / "m"), *options],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr.splitlines()[-1] == str(engine == "torch")
        texts.append(done.stdout)
    assert texts[0] == texts[1]


class Hostile:
    """Pickles into a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_hostile_pickle_is_refused_and_does_nothing(
    meta_layout: ModuleType, zipped: bool, tmp_path: Path
) -> None:
    _, config = meta_layout.NARROW["7b"]
    meta_layout.meta_folder(tmp_path / "m", config)
    target = tmp_path / "m" / "consolidated.00.pth"
    marker = tmp_path / "harmed"
    if zipped:
        torch.save({"tok_embeddings.weight": Hostile(marker)}, target)
    else:
        target.write_bytes(pickle.dumps({"tok_embeddings.weight": Hostile(marker)}))
    with pytest.raises(UserError, match=r"is refused: it holds more|is damaged"):
        Checkpoint.open(tmp_path / "m")
    assert not marker.exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_files_of_before_torch_1_6_are_read_as_often_as_is_asked(
    meta_layout: ModuleType, ranks: int, tmp_path: Path
) -> None:
    """They are no zips and lie in memory: giving memory back would erase them."""
    config = replace(meta_layout.NARROW["13b"][1], vocab_size=2_048)
    weights = meta_layout.meta_folder(tmp_path / "m", config, ranks=ranks)
    for path in (tmp_path / "m").glob("*.pth"):
        part = torch.load(path, weights_only=True)
        torch.save(part, path, _use_new_zipfile_serialization=False)
    found = Checkpoint.open(tmp_path / "m").weights
    for _ in range(2):
        for ours in shapes_of(config):
            with found.borrow(ours) as weight:
                assert torch.equal(weight, weights[meta_name(ours)]), ours


def drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


def truncate(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite_params(folder: Path, **changes: object) -> None:
    path = folder / "params.json"
    told = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in told.items() if v != "absent"}))


def of_another_model(folder: Path) -> None:
    part = torch.load(folder / "consolidated.01.pth", weights_only=True)
    part["layers.0.attention.wq.bias"] = torch.ones(2)
    torch.save(part, folder / "consolidated.01.pth")


def of_another_width(folder: Path) -> None:
    part = torch.load(folder / "consolidated.02.pth", weights_only=True)
    name = "layers.1.attention.wo.weight"
    part[name] = part[name][:-2].clone()
    torch.save(part, folder / "consolidated.02.pth")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: drop(f, "consolidated.01.pth"), "incomplete: consolidated.01.pth missing"),
        (lambda f: drop(f, "consolidated.03.pth"), "incomplete: consolidated.03.pth missing"),
        (lambda f: drop(f, "params.json"), "params.json"),
        (lambda f: truncate(f, "consolidated.02.pth"), "consolidated.02.pth is damaged"),
        (lambda f: rewrite_params(f, dim="absent"), "dim is missing"),
        (lambda f: rewrite_params(f, dim="wide"), "dim = 'wide' is not a number"),
        (lambda f: rewrite_params(f, use_scaled_rope=True), "use_scaled_rope = True is not part"),
        (lambda f: rewrite_params(f, dim=None), "dim = None is not a number"),
        (lambda f: rewrite_params(f, multiple_of=0), "multiple_of = 0 is out of range"),
        (lambda f: rewrite_params(f, n_heads=float("inf")), "n_heads = inf is out of range"),
        (of_another_width, r"consolidated.02.pth and .* differ in the shape or type of layers.1"),
        (of_another_model, "layers.0.attention.wq.bias is in one alone"),
    ],
)
def test_damaged_meta_folders_are_refused_by_name(
    meta_layout: ModuleType, damage: object, message: str, tmp_path: Path
) -> None:
    ranks, config = meta_layout.NARROW["34b"]
    meta_layout.meta_folder(tmp_path / "m", config, ranks=ranks)
    damage(tmp_path / "m")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        Checkpoint.open(tmp_path / "m")


def test_params_of_another_model_are_told_by_its_weights(
    meta_layout: ModuleType, tmp_path: Path
) -> None:
    ranks, config = meta_layout.NARROW["34b"]
    meta_layout.meta_folder(tmp_path / "m", config, ranks=ranks)
    rewrite_params(tmp_path / "m", n_kv_heads=8, n_layers=2)
    problems = Checkpoint.open(tmp_path / "m").problems()
    assert "layers.0.attention.wk.weight has shape (32, 128), the model's is (64, 128)" in problems
    assert "layers.2.ffn_norm.weight is not part of the model" in problems


# safetensors


@given(
    shapes=st.lists(
        st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5
    ),
    limit=st.integers(1, 400),
)
def test_weights_written_one_at_a_time_are_those_safetensors_reads(
    shapes: list[tuple[int, ...]], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("w")
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    weights = {f"w{i}": torch.randn(shape).to(kinds[i % 3]) for i, shape in enumerate(shapes)}
    planned = {n: (tuple(w.shape), w.dtype) for n, w in weights.items()}
    digests = write_weights(folder, planned, weights.__getitem__, max_shard_bytes=limit)
    found: dict[str, torch.Tensor] = {}
    for name in digests:
        found |= load_file(folder / name)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[n], w) and found[n].dtype == w.dtype for n, w in weights.items())


def test_memory_of_mapped_weights_is_given_back_and_the_weights_stay(tmp_path: Path) -> None:
    weight = torch.arange(1 << 20, dtype=torch.float32)
    planned = {"w": (tuple(weight.shape), weight.dtype)}
    write_weights(tmp_path, planned, lambda _: weight, max_shard_bytes=1 << 40)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        mapped = file.get_tensor("w")
    for _ in range(2):
        assert float(mapped.double().sum()) == float(weight.double().sum())
        forget([mapped])


# Tokenizers


TEXT = st.text(
    alphabet=st.one_of(
        st.sampled_from(list(" \n\t_()=:.<>[]/'\"0123456789abcdefEOTPRMIDSUF▁é漢😀")),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)
FRAGMENTS = st.lists(
    st.one_of(
        TEXT, st.sampled_from(["    ", "\n\n", " <PRE>", "<EOT>", "▁<SUF>", "def f(", " " * 17])
    ),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def pairs(
    meta_layout: ModuleType, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> list[tuple[Tokenizer, object]]:
    """Tokenizers and what transformers makes of the files we write for them."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizers")
    contents = [tokenizer.path.read_bytes(), tokenizer.extension()]
    if LLAMA2.is_file():
        llama2 = Tokenizer.load(LLAMA2)
        contents += [LLAMA2.read_bytes(), llama2.extension()]
    made = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.model"
        path.write_bytes(content)
        out = folder / str(number)
        out.mkdir()
        write_tokenizer(out, Tokenizer.load(path), meta_layout.NARROW["7b"][1], TEMPLATES["llama2"])
        theirs = transformers.AutoTokenizer.from_pretrained(out)
        made.append((Tokenizer.load(path), theirs))
    return made


@given(text=FRAGMENTS)
def test_transformers_encodes_as_we_do(pairs: list[tuple[Tokenizer, object]], text: str) -> None:
    for ours, theirs in pairs:
        if ours.infill is not None and any(p in text for p in ours.pieces(_sentinels(ours))):
            continue  # U+2581 typed before a sentinel: there it is one, here it is text
        if "<s>" in text or "</s>" in text or "<unk>" in text:
            continue
        assert theirs(text)["input_ids"] == [ours.bos_id, *ours.encode(text)]  # type: ignore[operator]


def _sentinels(tokenizer: Tokenizer) -> list[int]:
    assert tokenizer.infill is not None
    ids = tokenizer.infill
    return [ids.prefix, ids.suffix, ids.middle, ids.end]


def test_the_names_of_the_infilling_tokens_are_told(
    pairs: list[tuple[Tokenizer, object]],
) -> None:
    ours, theirs = pairs[1]
    assert ours.infill is not None
    config = json.loads((Path(theirs.name_or_path) / "tokenizer_config.json").read_text())  # type: ignore[attr-defined]
    told = [config[f"{name}_token"] for name in ("prefix", "suffix", "middle", "eot")]
    assert theirs.convert_tokens_to_ids(told) == _sentinels(ours)  # type: ignore[attr-defined]
    assert len(theirs) == ours.vocab_size  # type: ignore[arg-type]
    text = "x" + ours.pieces([ours.infill.end])[0]
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == "x"  # type: ignore


DIALOG = [
    chat.Message(role="system", content="Be brief.\nUse Python."),
    chat.Message(role="user", content="  Add two  numbers. "),
    chat.Message(role="assistant", content="a + b"),
    chat.Message(role="user", content="And three?"),
]


@pytest.mark.parametrize("skip_system", [False, True])
def test_the_llama2_template_gives_the_ids_of_our_prompts(
    pairs: list[tuple[Tokenizer, object]], skip_system: bool
) -> None:
    dialog = DIALOG[skip_system:]
    messages = [{"role": m.role, "content": m.content} for m in dialog]
    for ours, theirs in pairs:
        found = theirs.apply_chat_template(  # type: ignore[attr-defined]
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert found == chat.prompt_ids(ours, dialog)


def with_step(content: bytes) -> bytes:
    """A tokenizer whose last piece is 70b's <step>."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    model.pieces[-1].piece = "<step>"
    model.pieces[-1].type = 3
    found: bytes = model.SerializeToString()
    return found


@pytest.mark.parametrize("skip_system", [False, True])
def test_the_turns_template_gives_the_ids_of_our_prompts(
    meta_layout: ModuleType, tokenizer: Tokenizer, skip_system: bool, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "t.model"
    path.write_bytes(with_step(tokenizer.extension()))
    ours = Tokenizer.load(path)
    assert chat.form_of(ours) == "turns"
    (tmp_path / "x").mkdir()
    write_tokenizer(tmp_path / "x", ours, meta_layout.NARROW["7b"][1], TEMPLATES["turns"])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
    dialog = DIALOG[skip_system:]
    messages = [{"role": m.role, "content": m.content} for m in dialog]
    found = theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert found == chat.prompt_ids(ours, dialog)


def test_a_template_goes_with_models_that_learnt_dialogs(tokenizer: Tokenizer) -> None:
    assert template_for(tokenizer, {"recipe": "fim"}) == ""
    assert template_for(tokenizer, {"recipe": "instruct"}) == TEMPLATES["llama2"]
    assert template_for(None, {"recipe": "instruct"}) == ""


def test_a_quantised_checkpoint_is_named_as_one(
    meta_layout: ModuleType,
    tmp_path: Path,
) -> None:
    config = meta_layout.NARROW["7b"][1]
    model = Transformer(config)
    model.initialise(0)
    publish(tmp_path / "m", model, dtype=torch.float32, tokenizer=None, lineage={})
    weights = load_file(tmp_path / "m" / "model.safetensors")
    name = hugging_face_name("layers.1.feed_forward.w2.weight")
    weights[name] = weights[name].to(torch.int8)
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    assert Checkpoint.open(tmp_path / "m").problems() == [
        f"{name} is of type int8: quantised weights are not read"
    ]
    assert {EMBEDDING, OUTPUT} <= shapes_of(config).keys()
    assert rotary_heads("layers.0.attention.wk.weight", config) == config.n_kv_heads
