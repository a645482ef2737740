"""A checkpoint's end ids: every file that names one counts, and conversions keep them."""

import json
from pathlib import Path
from typing import Any

import pytest

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.inference.engine import Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.sampling import Sampling
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in small_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values))


def ends_of(folder: Path) -> set[int]:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tokenizer_path is not None
    return set(checkpoint.end_ids(Tokenizer.load(checkpoint.tokenizer_path)))


@pytest.mark.parametrize(
    ("name", "values", "ends"),
    [
        ("config.json", {"eos_token_id": [7, 9]}, {2, 7, 9}),
        ("config.json", {"eos_token_id": 7}, {2, 7}),
        ("config.json", {"eos_token_id": None}, {2}),
        ("config.json", {"eos_token_id": []}, {2}),
        ("generation_config.json", {"eos_token_id": [300, 2]}, {2, 300}),
        ("generation_config.json", {"eos_token_id": 300}, {2, 300}),
        ("generation_config.json", {"eos_token_id": None}, {2}),
        ("tokenizer_config.json", {"eos_token": "<0x07>"}, {2, 10}),
        ("tokenizer_config.json", {"eos_token": {"content": "<0x07>"}}, {2, 10}),
        ("special_tokens_map.json", {"eos_token": {"content": "<0x08>"}}, {2, 11}),
        ("config.json", {"eos_token_id": 10**6}, {2}),
    ],
)
def test_each_file_that_names_an_end_counts(
    model: Path, name: str, values: dict[str, Any], ends: set[int]
) -> None:
    (model / "generation_config.json").unlink()
    edit(model, name, **values)
    assert ends_of(model) == ends


def test_the_ends_of_a_middle_and_of_a_turn_count(tokenizer: Tokenizer, random_model: Any) -> None:
    path = tokenizer.path.parent / "extended.model"
    path.write_bytes(tokenizer.extension())
    extended = Tokenizer.load(path)
    assert extended.infill is not None
    folder = random_model(extended, max_context=64)
    (folder / "generation_config.json").unlink()  # the tokenizer alone is enough
    assert ends_of(folder) == {2, extended.infill.end}


@pytest.mark.parametrize("value", ["2", 2.0, True, {"id": 2}, [2, "3"]])
def test_what_is_no_id_is_refused_by_name(model: Path, value: Any) -> None:
    edit(model, "config.json", eos_token_id=value)
    with pytest.raises(UserError, match=r"eos_token_id = .* is not a token id or a list"):
        Checkpoint.open(model)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_completion_ends_at_every_end(model: Path, name: str) -> None:
    plain = Generator.load(model, device="cpu", dtype="float32")
    prompt = plain.tokenizer.encode("def f(x):", bos=True)
    limits, greedy = Limits(max_tokens=12), Sampling(temperature=0)

    def ids(generator: Generator) -> list[int]:
        events = [e for _, e in generator.complete(prompt, greedy, limits)]
        return list(events[-1].ids)  # type: ignore[union-attr]

    said = ids(plain)
    assert len(said) == 12
    end = said[5]
    edit(model, name, eos_token_id=[2, 3, end])
    assert ids(Generator.load(model, device="cpu", dtype="float32")) == said[: said.index(end)]


@pytest.mark.parametrize("ends", [[7, 9], [300, 301, 302, 303], None])
def test_conversions_keep_every_end(model: Path, ends: list[int] | None, tmp_path: Path) -> None:
    edit(model, "config.json", eos_token_id=ends)
    edit(model, "generation_config.json", eos_token_id=[7, 500, 2])
    expected = ends_of(model)
    assert expected == {*(ends or []), 7, 500, 2}
    steps = [("a", "hf"), ("b", "meta"), ("c", "hf")]
    source = model
    for name, layout in steps:
        convert(Request(source=source, out=tmp_path / name, layout=Layout(layout), verify=False))
        source = tmp_path / name
        assert ends_of(source) == expected, layout
    named = json.loads((source / "generation_config.json").read_text())["eos_token_id"]
    assert set(named) == expected


@pytest.mark.parametrize("ends", [[7, 9], [300, 301, 302, 303], None])
def test_gguf_names_every_end(model: Path, ends: list[int] | None, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    edit(model, "config.json", eos_token_id=ends)
    out = tmp_path / "model.gguf"
    convert(Request(source=model, out=out, layout=Layout.GGUF, verify=False))
    found = GgufWeights(out)
    assert set(found.facts.ends) == {*(ends or []), 2}
    own = found.special_ids()
    assert own["eos"] == (ends[0] if ends else 2)
    if ends:
        assert own["eot"] == ends[1]
