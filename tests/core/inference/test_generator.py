"""Loading: one compute type whatever the weights are stored in, on a device that exists."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codecria.core import machine
from codecria.core.checkpoints.checkpoint import Checkpoint, load_model
from codecria.core.checkpoints.saving import publish
from codecria.core.checkpoints.writing import write_checkpoint
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.healing import heal
from codecria.core.inference.sampling import Sampling
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UsageError, UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")
Stored = Callable[[str], torch.dtype]


def stored_as(folder: Path, source: Path, dtype: Stored) -> Path:
    """A copy of a checkpoint with each weight stored in the type that `dtype` gives its name."""
    checkpoint = Checkpoint.open(source)
    weights = dict(load_model(checkpoint, device=CPU).named_parameters())
    folder.mkdir()
    write_checkpoint(
        folder,
        checkpoint.config,
        weights.__getitem__,
        dtype={name: dtype(name) for name in weights},
        tokenizer=checkpoint.tokenizer_path,
        lineage={},
    )
    return folder


@pytest.mark.parametrize(
    "dtype",
    [
        lambda name: torch.float32 if "norm" in name else torch.bfloat16,
        lambda name: torch.bfloat16 if "norm" in name else torch.float16,
        lambda name: torch.float32 if name == "tok_embeddings" else torch.bfloat16,
        lambda _: torch.float16,
    ],
    ids=["float32 norms", "bfloat16 norms", "float32 embeddings", "float16"],
)
@pytest.mark.parametrize("requested", ["auto", "float32", "bfloat16"])
def test_weights_of_any_types_are_loaded_into_one_and_generate(
    requested: str, dtype: Stored, small_model: Path, tmp_path: Path
) -> None:
    folder = stored_as(tmp_path / "mixed", small_model, dtype)
    generator = Generator.load(folder, engine="torch", device="cpu", dtype=requested)
    [found] = {weight.dtype for weight in generator.model.parameters()}
    fast = torch.bfloat16 if machine.bf16_pays(CPU) else torch.float32
    assert found == {"auto": fast, "float32": torch.float32, "bfloat16": torch.bfloat16}[requested]
    ids = generator.tokenizer.encode("def f(", bos=True)
    events = list(generator.complete(ids, Sampling(), Limits(max_tokens=4)))
    assert isinstance(events[-1][1], Completion)


def test_float32_weights_stay_float32(small_model: Path, tokenizer: Tokenizer) -> None:
    generator = Generator.load(small_model, engine="torch")
    assert {weight.dtype for weight in generator.model.parameters()} == {torch.float32}
    assert generator.tokenizer.digest == tokenizer.digest


@pytest.fixture(scope="module")
def padded(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose likeliest ids are sentinels, control pieces and rows that no piece has."""
    folder = tmp_path_factory.mktemp("padded")
    extended = tokenizer.extend(folder / "tokenizer.model")
    torch.manual_seed(0)
    config = ModelConfig(
        dim=32,
        n_layers=1,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=64,
        vocab_size=extended.vocab_size + 40,
        max_context=64,
    )
    model = Transformer(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        model.output.weight[sorted(extended.special_ids)] *= 30
        model.output.weight[extended.vocab_size :] *= 30
    publish(
        folder / "model", model, dtype=torch.float32, tokenizer=extended.path, lineage={"step": 1}
    )
    return folder / "model"


@pytest.mark.parametrize("temperature", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("heals", [False, True])
def test_no_id_that_is_no_text_is_drawn_and_none_ends_in_an_exception(
    temperature: float, heals: bool, padded: Path
) -> None:
    # Kills: IndexError of a healed completion, an error for ids outside the tokenizer's pieces.
    generator = Generator.load(padded, device="cpu", dtype="float32")
    tokenizer = generator.tokenizer
    assert tokenizer.infill is not None
    assert {tokenizer.infill.prefix, tokenizer.unk_id, tokenizer.bos_id} <= tokenizer.special_ids
    ids, opening = tokenizer.encode("    retur", bos=True), None
    if heals:
        ids, opening = heal(ids, tokenizer.typed_bytes())
    sampling = Sampling(temperature=temperature, seed=5)
    for specials in (False, True):
        events = generator.complete(
            ids, sampling, Limits(max_tokens=16, samples=6), opening=opening, specials=specials
        )
        drawn = {i for _, e in events if isinstance(e, Completion) for i in e.ids}
        assert max(drawn, default=0) < tokenizer.vocab_size
        assert specials or not drawn & tokenizer.special_ids
        for i in tokenizer.special_ids & drawn:
            tokenizer.stream().push(i)
    # A caller that ends at one sentinel alone masks all others, EOS among them.
    engine = generator.engine()
    end = frozenset({tokenizer.infill.end})
    engine.add(ids, sampling=sampling, limits=Limits(max_tokens=32), ends=end)
    [done] = [event for _, event in engine.run() if isinstance(event, Completion)]
    assert not set(done.ids) & tokenizer.special_ids


def test_a_device_or_type_that_does_not_exist_is_refused(small_model: Path) -> None:
    for name in ("tpu", "meta", "mps", ""):
        with pytest.raises(UsageError, match="there is no device"):
            machine.choose_device(name)
    with pytest.raises(UserError, match="there is no CUDA device"):
        machine.choose_device("cuda:99")
    with pytest.raises(UsageError, match="there is no compute type 'int8'"):
        Generator.load(small_model, device="cpu", dtype="int8")
