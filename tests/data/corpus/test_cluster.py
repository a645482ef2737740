"""The same shards from a local Ray and a local Dask, where installed, as from one process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from codecria.data.corpus.prepare import prepare
from codecria.data.corpus.recipe import PrepareRecipe
from codecria.data.corpus.runner import Engine
from codecria.data.corpus.sources import Source
from codecria.data.corpus.stages import Runner, connect
from codecria.data.errors import UserError
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.training import train

NEEDS: dict[Runner, str] = {"ray": "ray", "dask": "distributed"}


def plant(folder: Path) -> Path:
    folder.mkdir()
    for i in range(60):
        body = "".join(f"    total_{i} += item_{j} * {j}\n" for j in range(i, i + 30))
        (folder / f"m{i:02}.py").write_text(f"def add_{i}(item):\n{body}")
    (folder / "copy.py").write_text((folder / "m03.py").read_text())
    (folder / "near.py").write_text((folder / "m04.py").read_text() + "# a copy\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("runner", NEEDS)
def test_a_local_cluster_gives_the_same_shards(tmp_path: Path, runner: Runner) -> None:
    pytest.importorskip(NEEDS[runner])
    source = Source(name="src", path=plant(tmp_path / "src"))
    texts = [path.read_text() for path in sorted((tmp_path / "src").iterdir())]
    model = train(texts, vocab_size=300, out=tmp_path / "tokenizer.model").path
    recipe = PrepareRecipe(shard_bytes=20_000)
    digests = []
    for name, engine in (
        ("one", Engine()),
        ("cluster", Engine(workers=2, runner=runner, partition_bytes=9_000)),
    ):
        outcome = prepare([source], tmp_path / name, recipe, model=model, engine=engine)
        assert outcome.report["dropped"]["distinct"]["near-duplicate"]["documents"] == 1
        assert ShardSet.open(tmp_path / name).verify() == []
        digests.append(ShardSet.open(tmp_path / name).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("runner", NEEDS)
def test_a_missing_library_is_one_clear_error(
    tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(NEEDS[runner]):
        monkeypatch.setitem(sys.modules, NEEDS[runner], None)  # as if it were not installed
    source = Source(name="src", path=plant(tmp_path / "src"))
    model = train(
        [path.read_text() for path in (tmp_path / "src").iterdir()],
        vocab_size=300,
        out=tmp_path / "tokenizer.model",
    ).path
    with pytest.raises(UserError, match=f"--runner {runner}") as caught:
        prepare(
            [source], tmp_path / "out", PrepareRecipe(), model=model, engine=Engine(runner=runner)
        )
    assert "pip install" in (caught.value.hint or "")


@pytest.mark.parametrize("runner", NEEDS)
@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_a_cluster_that_does_not_answer_is_one_clear_error(runner: Runner, address: str) -> None:
    pytest.importorskip(NEEDS[runner])
    with (
        pytest.raises(UserError, match=f"no {runner} cluster at {address}"),
        connect(runner, workers=1, address=address),
    ):
        pytest.fail("it answered")
