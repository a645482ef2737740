"""Inspect knows every kind of folder, tells its facts, and finds what is missing or changed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from codecria.cli import app as cli
from codecria.core.inspect import describe, document_text
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import run_stage
from codecria.data.errors import UserError
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer

Inspect = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Inspect:
    """Call the verb: its exit status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["codecria", "inspect", *map(str, arguments)])
        capfd.readouterr()
        status = cli.run()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return call


@pytest.fixture(scope="module")
def run_folder(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    request = StageRequest(
        recipe="pretrain",
        data=[str(shards)],
        size="1m",
        steps=2,
        changes={"context": "32", "batch_tokens": "64"},
        dtype="float32",
        compile="off",
        log_every=1,
        eval_rows=1,
    )
    quiet: Callable[[Any], None] = lambda _: None  # noqa: E731 - a name for nothing
    run_stage(resolve(request, out=out), out, report=quiet, warn=quiet, started=quiet)
    return out


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def problems(path: Path, *, verify: bool = False) -> list[str]:
    found = describe(path, verify=verify)["problems"]
    assert isinstance(found, list)
    return found


# --- every kind is recognised and told --------------------------------------------------------


def test_everything_whole_has_no_problems_even_when_verified(
    shards: Path, small_model: Path, run_folder: Path, tokenizer: Tokenizer
) -> None:
    kinds = {}
    for path in (shards, small_model, run_folder, tokenizer.path):
        told = describe(path, verify=True)
        assert told["problems"] == []
        assert json.loads(json.dumps(told)) == told
        kinds[path] = told["kind"]
    assert list(kinds.values()) == ["shards", "checkpoint", "run", "tokenizer"]


def test_the_facts_of_shards_are_their_counts(shards: Path, corpus: list[str]) -> None:
    facts = describe(shards, verify=False)["facts"]
    opened = {split: ShardSet.open(shards, split) for split in ("train", "validation")}
    assert facts["documents"] == len(corpus)
    assert facts["tokens"] == sum(split.n_tokens for split in opened.values())
    assert facts["digest"] == opened["train"].digest
    assert facts["tokenizer"]["digest"] == opened["train"].tokenizer_digest


def test_the_facts_of_a_checkpoint_are_its_shape(small_model: Path, tokenizer: Tokenizer) -> None:
    facts = describe(small_model, verify=False)["facts"]
    wanted = {
        "context": 64, "rope_theta": 1e4, "n_kv_heads": 2, "bos_id": 1, "eos_id": 2,
        "lineage": {"step": 7}, "weights": {"float32": facts["parameters"]}, "files": 1,
    }  # fmt: skip
    assert {key: facts[key] for key in wanted} == wanted
    assert facts["tokenizer"]["digest"] == tokenizer.digest


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_a_checkpoint_that_transformers_saved_is_told_as_it_is(
    tied: bool, max_shard_size: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=128,
        rope_theta=1e6,
        tie_word_embeddings=tied,
    )
    theirs = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    told = describe(tmp_path, verify=True)
    facts = told["facts"]
    assert facts["parameters"] == theirs.num_parameters()
    assert facts["weights"] == {"bfloat16": facts["parameters"]}
    assert (facts["rope_theta"], facts["context"], facts["tied"]) == (1e6, 128, tied)
    assert (facts["files"] > 1) == (max_shard_size == "20KB")
    assert told["problems"] == ["tokenizer.model is missing: it cannot complete text"]


def test_the_facts_of_a_run_are_where_it_stands(run_folder: Path, shards: Path) -> None:
    facts = describe(run_folder, verify=False)["facts"]
    assert (facts["recipe"], facts["size"], facts["step"]) == ("pretrain", "1m", 2)
    assert (facts["tokens"], facts["tokens_wanted"]) == (128, 128)
    assert facts["loss"] > 0
    assert facts["validation_loss"] > 0
    assert [source["path"] for source in facts["sources"]] == [str(shards)]
    assert facts["checkpoints"][-1] == "step-00000002"
    assert facts["published"] is True
    assert facts["environment"]["torch"] == torch.__version__


def test_the_facts_of_a_tokenizer_are_its_ids(tokenizer: Tokenizer) -> None:
    facts = describe(tokenizer.path, verify=False)["facts"]
    assert (facts["vocabulary"], facts["bos_id"], facts["eos_id"]) == (600, 1, 2)
    assert facts["infill_ids"] is None
    assert facts == describe(tokenizer.path.parent, verify=False)["facts"]


def test_the_infilling_ids_of_the_llama_tokenizer_are_told(release_tokenizer: Tokenizer) -> None:
    facts = describe(release_tokenizer.path, verify=False)["facts"]
    assert facts["vocabulary"] in (32_000, 32_016)
    assert (facts["infill_ids"] is None) == (facts["vocabulary"] == 32_000)


# --- what is missing or changed ---------------------------------------------------------------


@pytest.mark.parametrize("part", ["tokens", "offsets", "flags", "parquet"])
def test_one_changed_byte_of_a_shard_is_found(part: str, shards: Path, tmp_path: Path) -> None:
    copy = copytree(shards, tmp_path / "copy")
    flip_byte(copy / f"train-00000.{part}")
    (found,) = problems(copy, verify=True)
    assert f"train-00000.{part}" in found


@pytest.mark.parametrize("part", ["tokens", "offsets", "flags"])
def test_a_truncated_shard_is_found_without_reading_it(
    part: str, shards: Path, tmp_path: Path
) -> None:
    copy = copytree(shards, tmp_path / "copy")
    path = copy / f"validation-00000.{part}"
    path.write_bytes(path.read_bytes()[:-1])
    assert any(path.name in line for line in problems(copy))


def test_a_missing_or_foreign_tokenizer_beside_shards_is_found(
    shards: Path, tmp_path: Path
) -> None:
    copy = copytree(shards, tmp_path / "copy")
    flip_byte(copy / "tokenizer.model")
    assert any("not the one" in line for line in problems(copy, verify=True))
    (copy / "tokenizer.model").unlink()
    assert problems(copy) == ["tokenizer.model is missing"]


def test_one_changed_byte_of_the_weights_is_found(small_model: Path, tmp_path: Path) -> None:
    copy = copytree(small_model, tmp_path / "copy")
    flip_byte(copy / "model.safetensors")
    assert problems(copy) == []
    assert problems(copy, verify=True) == ["model.safetensors is not the file that was written"]


def test_weights_that_are_not_finite_are_found(small_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = copytree(small_model, tmp_path / "copy")
    (copy / "codecria.json").unlink()  # as if it came from elsewhere: no digests
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, copy / "model.safetensors")
    assert problems(copy, verify=True) == ["model.norm.weight holds values that are not finite"]


def test_missing_and_damaged_weights_are_problems_of_a_folder_still_described(
    small_model: Path, tmp_path: Path
) -> None:
    copy = copytree(small_model, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or incomplete" in problems(copy)[0]
    weights.unlink()
    told = describe(copy, verify=False)
    assert "no weights" in told["problems"][0]
    assert told["facts"]["context"] == 64


def test_a_weight_of_another_model_is_found(small_model: Path, tmp_path: Path) -> None:
    copy = copytree(small_model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] = 3
    config["bos_token_id"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    found = problems(copy)
    assert any("model.layers.2." in line and "is missing" in line for line in found)
    assert any("bos_id is 5" in line for line in found)


def test_what_a_run_has_lost_is_found(run_folder: Path, tmp_path: Path) -> None:
    copy = copytree(run_folder, tmp_path / "copy")
    flip_byte(copy / "model" / "model.safetensors")
    (copy / "checkpoints" / "step-00000002" / "model.safetensors").unlink()
    found = problems(copy, verify=True)
    assert any(line.startswith("step-00000002: ") for line in found)
    assert any(line.startswith("model: ") for line in found)


def test_data_that_changed_since_a_run_began_is_found(run_folder: Path, tmp_path: Path) -> None:
    copy = copytree(run_folder, tmp_path / "copy")
    page = json.loads((copy / "run.json").read_text())
    page["run"]["sources"][0]["digest"] = "0" * 32
    (copy / "run.json").write_text(json.dumps(page))
    assert any("changed since the run began" in line for line in problems(copy))
    page["run"]["sources"][0]["path"] = str(tmp_path / "gone")
    (copy / "run.json").write_text(json.dumps(page))
    assert any("gone" in line for line in problems(copy))


# --- the verb ---------------------------------------------------------------------------------


def test_the_status_says_whether_all_is_well(
    inspect: Inspect, shards: Path, tmp_path: Path
) -> None:
    status, out, err = inspect(shards, "--verify")
    assert (status, err) == (0, "")
    assert "tokens" in out
    copy = copytree(shards, tmp_path / "copy")
    flip_byte(copy / "train-00000.tokens")
    assert inspect(copy)[0] == 0
    status, out, err = inspect(copy, "--verify")
    assert status == 1
    assert err.startswith("warning: train-00000.tokens")
    status, out, err = inspect(copy, "--verify", "--json")
    assert (status, err, len(json.loads(out)["problems"])) == (1, "", 1)


def test_a_document_is_printed_to_the_byte(
    inspect: Inspect, shards: Path, tokenizer: Tokenizer
) -> None:
    wanted = tokenizer.decode(ShardSet.open(shards).document(3).tolist()[1:-1])
    status, out, err = inspect(shards, "--document", 3)
    assert (status, out) == (0, wanted)
    assert json.loads(err)["id"] == "train-3"
    status, out, err = inspect(shards, "--document", 3, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"id": "train-3", "text": wanted}


@pytest.mark.parametrize("number", [-1, 10_000])
def test_a_document_that_is_not_there_is_refused_with_those_that_are(
    number: int, shards: Path
) -> None:
    with pytest.raises(UserError, match=str(number)) as caught:
        document_text(shards, number)
    assert caught.value.hint.startswith("documents: 0 .. ")


def test_an_unknown_folder_is_answered_with_what_is_looked_for(
    inspect: Inspect, tmp_path: Path
) -> None:
    status, out, err = inspect(tmp_path)
    assert (status, out) == (1, "")
    for name in ("manifest.json", "run.json", "config.json", "tokenizer.model"):
        assert name in err


@pytest.mark.parametrize("name", ["manifest.json", "run.json", "config.json", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe\x00"])
def test_damaged_files_end_in_a_message(
    name: str, content: bytes, inspect: Inspect, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    status, out, err = inspect(tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "--debug" not in err, "an unforeseen error"


@pytest.mark.usefixtures("tiny_preset")
def test_a_run_on_relative_paths_is_inspected_from_any_folder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(shards, tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path / "here")
    request = StageRequest(
        recipe="pretrain",
        data=["data"],
        size="1m",
        steps=1,
        changes={"context": "32", "batch_tokens": "64"},
        dtype="float32",
        compile="off",
        eval_rows=1,
    )
    out = Path("run")
    quiet: Callable[[Any], None] = lambda _: None  # noqa: E731 - a name for nothing
    run_stage(resolve(request, out=out), out, report=quiet, warn=quiet, started=quiet)
    assert problems(out) == []
    monkeypatch.chdir(tmp_path)
    assert problems(tmp_path / "here" / "run", verify=True) == []
    page = json.loads((tmp_path / "here/run/run.json").read_text())
    assert page["run"]["sources"][0]["path"] == "data", "metrics name it as it was given"
