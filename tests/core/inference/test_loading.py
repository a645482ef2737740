"""Which engine computes: the choice, its fallback, and the same text from every one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.healing import heal
from codecria.core.inference.loading import Compute, available_memory, native_dtype
from codecria.core.inference.sampling import Sampling
from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.native.runner import NativeRunner
from codecria.data.errors import UsageError, UserError
from codecria.data.formats import chat
from codecria.data.formats.infill import Infiller, Order
from codecria.data.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engines(small_model: Path) -> dict[str, Generator]:
    names = ("native", "torch")
    return {name: Generator.load(small_model, engine=name) for name in names}  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("heals", [False, True])
def test_in_float32_every_engine_writes_the_same_text(
    engines: dict[str, Generator], temperature: float, heals: bool
) -> None:
    texts = {}
    for name, generator in engines.items():
        ids, opening = generator.tokenizer.encode("def f(x):\n    retur", bos=True), None
        if heals:
            ids, opening = heal(ids, generator.tokenizer.typed_bytes())
        events = generator.complete(
            ids,
            Sampling(temperature=temperature, seed=3, top_p=0.95, top_k=50),
            Limits(max_tokens=24, samples=4, stops=("zzz",)),
            opening=opening,
        )
        texts[name] = {n: event for n, event in events if isinstance(event, Completion)}
    assert {n: c.text for n, c in texts["native"].items()} == {
        n: c.text for n, c in texts["torch"].items()
    }


def test_every_kind_of_prompt_has_one_text_on_both_engines(
    extended: Tokenizer, random_model: Callable[..., Path]
) -> None:
    # Infilling in both orders, chat, a prompt of more than the native engine's part of 512 tokens,
    # and samples: side by side, ragged, each with the ends of its kind.
    model = random_model(extended, max_context=1024)
    infiller = Infiller(extended)
    before, after = "def area(w, h):\n    return ", "\n\nprint(area(2, 3))\n"
    asked = [
        (chat.prompt_ids(extended, [chat.Message(role="user", content="Why?")]), 2),
        (extended.encode("x = [1, 2, 3]\n" * 60, bos=True), 2),
        (extended.encode("", bos=True), 3),
        *((infiller.prompt(before, after, order).tolist(), 2) for order in (Order.PSM, Order.SPM)),
    ]
    assert max(len(ids) for ids, _ in asked) > 512
    texts = []
    for name in ("native", "torch"):
        generator = Generator.load(model, engine=name, device="cpu")  # type: ignore[arg-type]
        ends = generator.ends | {infiller.special.end}
        engine = generator.engine(batch=4)
        for number, (ids, samples) in enumerate(asked):
            for sample in range(samples):
                engine.add(
                    ids,
                    sampling=Sampling(temperature=0.7 * sample, top_p=0.95, seed=number),
                    limits=Limits(max_tokens=16),
                    ends=ends,
                    sample=sample,
                )
        found = {n: event.text for n, event in engine.run() if isinstance(event, Completion)}
        texts.append([found[n] for n in sorted(found)])
    assert texts[0] == texts[1]


def test_prompts_side_by_side_write_what_each_writes_alone(engines: dict[str, Generator]) -> None:
    generator = engines["native"]
    prompts = [generator.tokenizer.encode("x = 1\n" * n, bos=True) for n in range(1, 6)]

    def run(some: list[list[int]]) -> list[str]:
        engine = generator.engine()
        for prompt in some:
            engine.add(
                prompt,
                sampling=Sampling(temperature=0.7, seed=len(prompt)),
                limits=Limits(max_tokens=12),
                ends=generator.ends,
            )
        found = {n: event.text for n, event in engine.run() if not isinstance(event, str)}
        return [found[n] for n in sorted(found)]

    assert run(prompts) == [text for prompt in prompts for text in run([prompt])]


def test_auto_takes_the_native_engine_on_a_cpu(small_model: Path) -> None:
    said: list[str] = []
    generator = Generator.load(small_model, device="cpu", say=said.append)
    assert isinstance(generator.runner, NativeRunner)
    assert not said, "nothing is unusual"


def test_auto_falls_back_to_pytorch_and_says_why(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "llvmlite"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    said: list[str] = []
    generator = Generator.load(small_model, device="cpu", say=said.append)
    assert isinstance(generator.runner, TorchRunner)
    [line] = said
    assert line.startswith("PyTorch computes: ")
    assert "llvmlite" in line
    with pytest.raises(UserError, match="llvmlite"):
        Generator.load(small_model, device="cpu", engine="native")
    with pytest.raises(UsageError, match="--dtype q8 needs the native engine"):
        Generator.load(small_model, device="cpu", dtype="q8", say=said.append)


def test_what_only_the_native_engine_has_is_refused_elsewhere(small_model: Path) -> None:
    for options in ({"dtype": "q4"}, {"cache_dtype": "q8"}):
        with pytest.raises(UsageError, match="needs the native engine"):
            Generator.load(small_model, engine="torch", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the native engine cannot be used"):
        Generator.load(small_model, engine="native", device="cuda")
    for options in ({"dtype": "int8"}, {"engine": "onnx"}, {"cache_dtype": "q4"}):
        with pytest.raises(UsageError, match="there is no"):
            Compute(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "q8", "q4"])
@pytest.mark.parametrize("cache_dtype", ["auto", "float32", "bfloat16", "q8"])
def test_every_type_generates(small_model: Path, dtype: str, cache_dtype: str) -> None:
    generator = Generator.load(
        small_model,
        engine="native",
        dtype=dtype,
        cache_dtype=cache_dtype,  # type: ignore[arg-type]
        threads=1,
    )
    ids = generator.tokenizer.encode("def f(", bos=True)
    *_, (_, done) = generator.complete(ids, Sampling(), Limits(max_tokens=4))
    assert isinstance(done, Completion)


def test_auto_packs_only_what_does_not_fit_the_memory(small_model: Path) -> None:
    checkpoint = Checkpoint.open(small_model)
    whole = checkpoint.config.parameters * 4
    for memory, dtype, words in (
        (whole * 2, "float32", ""),
        (whole * 0.5, "q8", "packed as q8"),
        (whole * 0.2, "q4", "packed as q4"),
    ):
        said: list[str] = []
        assert native_dtype(checkpoint, "auto", memory, said.append) == dtype
        assert words in " ".join(said)
        assert native_dtype(checkpoint, "bfloat16", memory, said.append) == "bfloat16"
    assert available_memory() > whole


def test_a_completion_on_a_cpu_loads_no_pytorch(small_model: Path) -> None:
    program = (
        "import sys; from codecria.cli.app import run;"
        "status = run();"
        "slow = ('torch', 'pyarrow', 'transformers', 'numba', 'pydantic', 'rich');"
        "print([m for m in slow if m in sys.modules], status, file=sys.stderr)"
    )
    arguments = ["generate", "-m", str(small_model), "--max-tokens", "3", "def f("]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--device", "cpu", "--threads", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "[] 0"
