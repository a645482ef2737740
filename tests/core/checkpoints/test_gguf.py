"""GGUF files as models: every type of weight, the tokenizer, and llama.cpp's own files."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.formats.gguf.types import READABLE, dequantised
from codecria.core.checkpoints.formats.layout import shapes_of
from codecria.core.checkpoints.saving import publish
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.sampling import Sampling
from codecria.core.inspect import describe
from codecria.core.model.attention import PackedAttention
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.core.native.packing import unpack
from codecria.data.errors import UserError
from codecria.data.gguf import TYPES, GgufFile
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests import llama_cpp_oracle

gguf = pytest.importorskip("gguf")
TEXTS = (
    "def f(x):\n    return  x",
    " leading, <PRE> and ▁<SUF> as text",
    "\t\té\x00ß 🦙 \r\n\n\n   end   ",
    "",
)


@pytest.fixture(scope="module")
def model(extended: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole superblocks, so that llama.cpp can quantise it to any type."""
    config = ModelConfig(
        dim=256,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=512,
        vocab_size=extended.vocab_size + 3,  # rows without a piece
        rope_theta=1e6,
        max_context=2_048,
        tied=True,
    )
    built = Transformer(config)
    for number, (name, weight) in enumerate(built.named_parameters()):
        draws = torch.Generator().manual_seed(number)
        spread = 0.05 if name == "tok_embeddings" else 0.08
        weight.data = torch.randn(weight.shape, generator=draws) * spread + (weight.ndim == 1)
    path = tmp_path_factory.mktemp("model") / "instruct"
    publish(
        path,
        built,
        dtype=torch.float32,
        tokenizer=extended.path,
        lineage={"recipe": "instruct", "tokens": 5},
    )
    return path


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a GGUF file in float32."""
    out = tmp_path_factory.mktemp("gguf") / "instruct.gguf"
    convert(Request(source=model, out=out, layout=Layout.GGUF))
    return out


@pytest.fixture(scope="module")
def q4_k_m(whole: Path) -> Path:
    """The common kind of file: Q4_K matrices, some of them Q6_K, made by llama.cpp."""
    return llama_cpp_oracle.quantised(whole, whole.with_name("q4_k_m.gguf"), "Q4_K_M")


@pytest.mark.parametrize("kind", sorted(READABLE))
def test_every_type_decodes_as_the_gguf_package_does(kind: str) -> None:
    size = TYPES[kind].block_bytes
    raw = np.random.default_rng(0).integers(0, 256, (300, size), dtype=np.uint8)
    mine = dequantised(raw.reshape(-1), kind, (300, TYPES[kind].block))
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(mine, theirs.reshape(mine.shape), equal_nan=True)


def test_llama_cpp_s_q4_k_m_file_is_read_as_the_gguf_package_reads_it(q4_k_m: Path) -> None:
    opened = Checkpoint.open(q4_k_m)
    assert {part.dtype for part in opened.weights.stored.values()} == {"float32", "Q4_K", "Q6_K"}
    assert opened.problems() == []
    oracle = {tensor.name: tensor for tensor in gguf.GGUFReader(q4_k_m).tensors}
    for ours, shape in shapes_of(opened.config).items():
        tensor = oracle[opened.weights.name(ours)]
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        assert np.array_equal(opened.weights.raw(ours).numpy(), theirs), ours


def written(path: Path, ids: list[int], count: int) -> list[int]:
    generator = Generator.load(path, device="cpu", dtype="float32")
    sampling, limits = Sampling(temperature=0.0), Limits(max_tokens=count)
    for _, event in generator.complete(ids, sampling, limits, specials=True):
        if isinstance(event, Completion):
            return list(event.ids)
    raise AssertionError("it ended without a completion")


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q4_K_S", "Q5_K_M", "Q6_K", "Q4_0", "Q5_0"])
def test_a_file_that_llama_cpp_quantised_gives_llama_cpp_s_scores(
    kind: str, whole: Path, extended: Tokenizer, tmp_path: Path
) -> None:
    path = llama_cpp_oracle.quantised(whole, tmp_path / "q.gguf", kind)
    engine = llama_cpp_oracle.loaded(path, logits_all=True)
    ids = [1, *extended.encode(TEXTS[0])]
    engine.eval(ids)
    theirs = torch.from_numpy(np.array(engine.scores[: len(ids)]))
    built = load_model(Checkpoint.open(path), device=torch.device("cpu"), dtype=torch.float32)
    positions = torch.arange(len(ids))[None]
    with torch.inference_mode():
        mine = built.logits(built(torch.tensor([ids]), positions, PackedAttention(None)))[0]
    # llama.cpp rounds activations to 8 bits in these products.
    off = (mine - theirs).norm() / mine.norm()
    assert off < 0.08, f"scores are {off:.3f} apart"


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_the_kernels_get_a_file_s_own_codes_in_the_model_s_order(
    dtype: str, model: Path, tmp_path: Path
) -> None:
    convert(Request(source=model, out=tmp_path / "m.gguf", layout=Layout.GGUF, dtype=dtype))
    opened = Checkpoint.open(tmp_path / "m.gguf")
    for ours, shape in shapes_of(opened.config).items():
        found = opened.weights.packed(ours)
        if len(shape) == 1:
            assert found is None
            continue
        assert found is not None
        assert found[0] == ("q8" if ours == "tok_embeddings" else dtype)
        wanted = opened.weights.read(ours, opened.config).numpy()
        assert np.array_equal(unpack(*found, *shape), wanted), ours


def test_the_tokenizer_of_a_file_encodes_as_the_one_it_was_made_from(
    whole: Path, extended: Tokenizer
) -> None:
    found = Tokenizer.load(whole)
    assert found.vocab_size == extended.vocab_size
    assert (found.infill, found.bos_id, found.eos_id) == (extended.infill, 1, 2)
    assert found.fast_path == extended.fast_path
    for text in TEXTS:
        for specials in ("text", "parse"):
            for leading in (True, False):
                ids = extended.encode(text, specials=specials, leading_space=leading)  # type: ignore[arg-type]
                assert found.encode(text, specials=specials, leading_space=leading) == ids  # type: ignore[arg-type]
        ids = extended.encode(text)
        assert found.decode(ids) == extended.decode(ids)
    engine = llama_cpp_oracle.loaded(whole, vocab_only=True)
    for text in TEXTS[:3]:
        assert engine.tokenize(text.encode(), add_bos=False) == found.encode(text)


def test_a_file_completes_infills_and_is_described(q4_k_m: Path, model: Path) -> None:
    found = describe(q4_k_m, verify=True)
    assert found["problems"] == []
    assert found["facts"]["tokenizer"]["infill_ids"] is not None
    assert found["facts"]["lineage"]["tokens"] == 5
    source, opened = Checkpoint.open(model), Checkpoint.open(q4_k_m)
    tokenizer = Tokenizer.load(q4_k_m)
    assert set(opened.end_ids(tokenizer)) == set(source.end_ids(tokenizer))
    assert opened.chat_template() == source.chat_template() != ""
    assert len(written(q4_k_m, [1, 300, 301], 5)) == 5


def test_a_quantised_file_becomes_a_folder_that_says_so(q4_k_m: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    report = convert(
        Request(source=q4_k_m, out=tmp_path / "hf", layout=Layout.HF), note=notes.append
    )
    assert notes == [
        "quantised weights (Q4_K, Q6_K) become float16; --dtype float32 keeps each value exactly"
    ]
    assert (report["source_layout"], report["dtype"]) == ("gguf", "float16/float32")
    opened = Checkpoint.open(tmp_path / "hf")
    assert opened.lineage()["quantised_source"] == {
        "name": "q4_k_m.gguf",
        "types": ["Q4_K", "Q6_K"],
    }
    exact = Request(source=q4_k_m, out=tmp_path / "f32", layout=Layout.HF, dtype="float32")
    assert convert(exact)["compared"]["logits"]["relative"] < 1e-5
    assert describe(tmp_path / "hf", verify=True)["problems"] == []
    before, after = Tokenizer.load(q4_k_m), Tokenizer.load(tmp_path / "hf")
    assert [after.encode(text) for text in TEXTS] == [before.encode(text) for text in TEXTS]
    assert (
        Checkpoint.open(tmp_path / "hf").chat_template() == Checkpoint.open(q4_k_m).chat_template()
    )


def edited(source: Path, out: Path, old: bytes, new: bytes) -> Path:
    assert len(old) == len(new)
    data = source.read_bytes()
    assert old in data
    out.write_bytes(data.replace(old, new, 1))
    return out


def test_what_is_no_plain_llama_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    other = edited(whole, tmp_path / "a.gguf", b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0gemma")
    with pytest.raises(UserError, match="of the architecture 'gemma', only 'llama' can be read"):
        Checkpoint.open(other)
    lacking = edited(whole, tmp_path / "b.gguf", b"llama.block_count", b"llama.block_xxxxx")
    with pytest.raises(UserError, match=r"lacks llama.block_count, a field of the model's shape"):
        Checkpoint.open(lacking)
    foreign = edited(whole, tmp_path / "c.gguf", b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")
    assert Checkpoint.open(foreign).problems() == [
        "blk.0.attn_q.weight is missing",
        "blk.0.attn_x.weight is not part of the model",
    ]
    with pytest.raises(UserError, match="does not fit"):
        Generator.load(foreign, device="cpu", dtype="float32")


def test_another_kind_of_tokenizer_is_named_and_the_weights_are_read(
    whole: Path, tmp_path: Path
) -> None:
    key = b"tokenizer.ggml.model\x08\0\0\0\5\0\0\0\0\0\0\0"
    path = edited(whole, tmp_path / "gpt.gguf", key + b"llama", key + b"gpt-2")
    opened = Checkpoint.open(path)
    assert opened.tokenizer_path is None
    assert opened.problems() == []
    with pytest.raises(UserError, match="its vocabulary is 'gpt-2'"):
        Tokenizer.load(path)
    with pytest.raises(UserError, match="its vocabulary is 'gpt-2'"):
        Generator.load(path, device="cpu", dtype="float32")
    [problem] = describe(path, verify=False)["problems"]
    assert problem == "its tokenizer cannot be read: its vocabulary is 'gpt-2'"


def test_opening_a_file_takes_no_torch(whole: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from codecria.data.gguf import GgufFile;"
        " GgufFile(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True, timeout=300)


def test_a_killed_conversion_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    path = shutil.copy(whole, tmp_path / "short.gguf")
    with Path(path).open("r+b") as file:
        file.truncate(file.seek(0, 2) - 64)
    with pytest.raises(UserError, match="ends at byte"):
        convert(Request(source=Path(path), out=tmp_path / "hf", layout=Layout.HF))
    assert [entry.name for entry in tmp_path.iterdir()] == ["short.gguf"]


def test_tensors_lie_where_the_file_says(whole: Path) -> None:
    tensors = GgufFile(whole).tensors.values()
    for before, after in itertools.pairwise(tensors):
        assert 0 <= after.start - (before.start + before.bytes) < 32
