"""A new filter is one class in one list: all that a user sees of it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codecria.data.corpus import filters
from codecria.data.corpus.explain import explain
from codecria.data.corpus.filters import FILTERS, Chain, Decision, Inputs
from codecria.data.corpus.prepare import prepare
from codecria.data.corpus.reasons import Verdict
from codecria.data.corpus.recipe import PrepareRecipe, override
from codecria.data.corpus.runner import Engine
from codecria.data.corpus.sources import Source
from codecria.data.corpus.tally import Tally
from codecria.data.errors import UsageError
from codecria.data.files import digest_json
from codecria.data.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Todos:
    """How many to-dos a document may have."""

    most: int = 2


class FewTodos:
    """Drops documents with too many to-dos."""

    key: ClassVar[str] = "todos"
    step: ClassVar[str] = "finished"
    label: ClassVar[str] = "few to-dos"
    kind: ClassVar[Any] = Todos | None
    default: ClassVar[Any] = Todos()
    version: ClassVar[int] = 1
    remedies: ClassVar[Mapping[str, str]] = {"many-todos": "--set todos.most=N"}

    def __init__(self, settings: Todos | None, inputs: Inputs) -> None:  # noqa: ARG002
        self.settings = settings

    def decide(self, batch: pa.RecordBatch, tally: Tally) -> Decision:  # noqa: ARG002
        if self.settings is None:
            return batch, [None] * batch.num_rows
        counts = [text.count("TODO") for text in batch.column("text").to_pylist()]
        most = self.settings.most
        return batch, [Verdict("many-todos", f"{n} > {most}") if n > most else None for n in counts]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one registration."""
    monkeypatch.setattr(filters, "FILTERS", (*FILTERS, FewTodos))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    folder = tmp_path / "src"
    folder.mkdir()
    for name, todos in (("done", 0), ("nearly", 2), ("begun", 5)):
        body = "".join(f"def {name}_{i}(x):\n    return x + {i}\n\n" for i in range(5))
        (folder / f"{name}.py").write_text("# TODO\n" * todos + body)
    return Source(name="src", path=folder)


@pytest.mark.usefixtures("registered")
def test_a_registered_filter_has_its_field_step_reasons_report_and_explanation(
    tmp_path: Path, source: Source, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "out"
    recipe = override(PrepareRecipe(validation_share=0, dedup="none"), ["todos.most=3"])
    assert recipe.filters["todos"] == Todos(most=3)
    outcome = prepare([source], out, recipe, model=tokenizer.path, engine=Engine())
    report = outcome.report
    assert list(report["funnel"]).index("finished") == list(report["funnel"]).index("unique") - 1
    assert report["funnel"]["finished"]["documents"] == 2
    assert report["dropped"]["finished"]["many-todos"]["documents"] == 1
    assert report["identity"]["recipe"]["todos"] == {"most": 3}
    assert filters.labels()["finished"] == "few to-dos"
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    assert [(row["id"], row["reason"]) for row in rows] == [("src/begun.py", "many-todos")]
    [told] = explain(out, "begun.py")
    assert "dropped at step finished: many-todos" in told.lines[0]
    assert told.lines[-1].endswith("--set todos.most=N")


@pytest.mark.usefixtures("registered")
def test_settings_of_a_registered_filter_are_checked_and_can_turn_it_off() -> None:
    assert override(PrepareRecipe(), ["todos=null"]).filters["todos"] is None
    with pytest.raises(UsageError, match=r"todos\.most"):
        override(PrepareRecipe(), ["todos.most=many"])
    with pytest.raises(UsageError, match="no such field") as caught:
        override(PrepareRecipe(), ["todos.mots=3"])
    assert "did you mean most?" in (caught.value.hint or "")
    recipe = override(PrepareRecipe(), ["todos.most=7", "quality=null", "seed=4"])
    assert PrepareRecipe.from_json(recipe.to_json()) == recipe


@pytest.mark.usefixtures("registered")
def test_a_killed_run_never_takes_over_what_other_settings_of_a_filter_decided(
    tmp_path: Path, source: Source, tokenizer: Tokenizer
) -> None:
    def run(most: int, out: Path) -> int:
        recipe = override(PrepareRecipe(validation_share=0, dedup="none"), [f"todos.most={most}"])
        outcome = prepare(
            [source], out, recipe, model=tokenizer.path, engine=Engine(), force=True, keep_work=True
        )
        return int(outcome.report["funnel"]["finished"]["documents"])

    assert [run(most, tmp_path / "out") for most in (9, 3, 0, 9)] == [3, 2, 1, 3]


@pytest.mark.parametrize("position", range(len(FILTERS)))
def test_whatever_a_filter_is_made_with_is_in_the_digest(position: int) -> None:
    """By the filters themselves: no list of fields beside them can forget one."""
    chain = Chain(filters=FILTERS, settings=filters.defaults(), inputs=Inputs())
    key = FILTERS[position].key
    changed = {"languages": ("Python",), "licences": ("MIT",)}.get(key)
    if key == "decontamination":
        changed = replace(chain.settings[key], words=chain.settings[key].words + 1)
    others = [
        replace(chain, settings={**chain.settings, key: changed}),
        replace(chain, filters=tuple(f for f in FILTERS if f.key != key)),
        replace(chain, filters=(*FILTERS, FewTodos), settings={**chain.settings, "todos": Todos()}),
        replace(chain, inputs=Inputs(benchmarks="another")),
    ]
    digests = {digest_json(one.identity) for one in (chain, *others)}
    assert len(digests) == 1 + len(others)
