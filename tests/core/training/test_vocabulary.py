"""The infilling stage from end to end: a grown vocabulary, losses apart, exact resume, order."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.generator import Generator
from codecria.core.model.batch import loss_by_kind
from codecria.core.model.transformer import Transformer
from codecria.core.training.examples import examples
from codecria.core.training.initial import initial_model
from codecria.core.training.meter import infilling_record, read_metrics
from codecria.core.training.planner import plan_stage
from codecria.core.training.recipes import recipe_for
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import Stage
from codecria.core.training.vocabulary import new_rows
from codecria.data.errors import UserError
from codecria.data.formats.infill import Infiller, Order
from codecria.data.rows.loader import stack
from codecria.data.rows.rows import IGNORE, Counts, Row
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.core.training import runs
from tests.core.training.runs import CHANGES, train, weights
from tests.recomposed import recompose

pytestmark = pytest.mark.usefixtures("tiny_preset")


def request(shards: Path, **options: Any) -> StageRequest:
    return runs.request(**{"data": [str(shards)]} | options)


@pytest.fixture
def base(shards: Path, tmp_path: Path) -> Path:
    """A run of `pretrain`, to start from."""
    train(request(shards, recipe="pretrain", size="1m", steps=1), tmp_path / "base")
    return tmp_path / "base"


def test_a_run_publishes_an_extended_model_that_generates(
    base: Path, shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "infill"
    records = train(request(shards, init=base), out)
    checkpoint = Checkpoint.open(out)
    V = tokenizer.vocab_size
    assert checkpoint.config.vocab_size == V + 16
    assert checkpoint.tokenizer_path is not None
    published = Tokenizer.load(checkpoint.tokenizer_path)
    assert published.infill is not None
    assert published.infill.prefix == V + 7
    assert checkpoint.lineage()["tokenizer"] == published.digest
    assert checkpoint.lineage()["recipe"] == "fim"
    assert checkpoint.lineage()["parent"] == Checkpoint.open(base).digest()
    generator = Generator.load(out, device="cpu", dtype="float32")
    assert generator.tokenizer.infill == published.infill
    logged = [r for r in records if "loss" in r]
    for record in logged:
        told = record["infill"]
        assert told["pieces"] >= told["eligible"] >= told["infilled"] == told["psm"] + told["spm"]
        assert told["effective_rate"] == pytest.approx(
            told["infilled_tokens"] / told["tokens"], abs=1e-6
        )
        assert record["infill_loss"] > 0
    assert records == read_metrics(out / "metrics.jsonl")
    validations = [r for r in records if "validation_loss" in r]
    assert validations[-1]["validation_infill_loss"] < validations[0]["validation_infill_loss"]
    page = json.loads((out / "run.json").read_text())
    assert page["identity"]["recipe.infill_rate"] == 0.9
    assert page["identity"]["tokenizer_digest"] == published.digest


def test_a_run_stopped_by_a_signal_goes_on_to_the_same_weights(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    train(request(shards, init=base), tmp_path / "whole")
    train(request(shards, init=base), tmp_path / "cut", stop_after=4)
    train(request(shards, init=base), tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    told = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    for key in ("loss", "infill_loss", "plain_loss", "infill", "validation_infill_loss"):
        assert [r.get(key) for r in told[0]] == [r.get(key) for r in told[1]]


def test_shards_of_either_tokenizer_give_the_same_rows(
    base: Path,
    shards: Path,
    tokenizer: Tokenizer,
    corpus: list[str],
    shard_writer: Callable[[Path, list[list[int]], Tokenizer], None],
    tmp_path: Path,
) -> None:
    # What is read through the scan is what preparing the data again would have given.
    extended = tokenizer.extend(tmp_path / "tokenizer.model")
    again = tmp_path / "again"
    documents = [extended.encode(text[:3000], bos=True, eos=True) for text in corpus]
    shard_writer(again, documents, extended)
    one = resolve(request(shards, init=base), out=None, plan=True)
    other = resolve(request(again, init=base), out=None, plan=True)
    split, prepared = one.mixture.sources[0].shards, other.mixture.sources[0].shards
    assert split.n_tokens == prepared.n_tokens
    assert (split.tokens(0, split.n_tokens) == prepared.tokens(0, split.n_tokens)).all()
    assert one.vocabulary.digest == other.vocabulary.digest == extended.digest


def start_of(stage: Stage) -> Transformer:
    """The model before its first step."""
    known_rows = stage.vocabulary.known_rows
    return initial_model(stage.run, stage.start, known_rows=known_rows, device=torch.device("cpu"))


def test_new_rows_are_near_the_mean_and_old_ones_stay(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    before = weights(base)["tok_embeddings"]
    stage = resolve(request(shards, init=base), out=tmp_path / "infill")
    model = start_of(stage)
    after = model.tok_embeddings.detach()
    V = len(before)
    assert len(after) == V + 16
    assert torch.equal(after[:V], before)
    strays = (after[V:] - before.mean(0)) / before.std(0)
    assert strays.std().item() == pytest.approx(0.1, rel=0.3)
    assert len(torch.unique(after[V:], dim=0)) == 16
    assert torch.equal(start_of(stage).tok_embeddings, model.tok_embeddings)


def test_rows_that_padded_a_vocabulary_are_drawn_anew() -> None:
    recipe = replace(recipe_for("fim", "7b"), new_row_noise=0.0)
    old = torch.tensor([[1.0, 3.0], [3.0, 5.0], [99.0, 99.0]])
    new = new_rows("tok_embeddings", old[:2], 2, recipe)
    assert new.tolist() == [[2.0, 4.0], [2.0, 4.0]]
    noisy = replace(recipe, new_row_noise=0.1)
    drawn = [new_rows(name, old[:2], 2, noisy) for name in ("tok_embeddings", "output.weight")]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0], new_rows("tok_embeddings", old[:2], 2, noisy))


def test_the_familys_order_is_kept_unless_told_otherwise(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "next"
    with pytest.raises(UserError, match="starts from a checkpoint of pretrain, not from fresh"):
        resolve(request(shards, size="1m"), out=out)
    resolve(request(shards, size="1m", any_init=True), out=out)
    resolve(request(shards, size="1m"), out=None, plan=True)  # a plan may be made of anything
    train(request(shards, init=base, steps=1), tmp_path / "infill")
    twice = request(shards, init=tmp_path / "infill")
    with pytest.raises(UserError, match="a checkpoint of fim") as caught:
        resolve(twice, out=out)
    assert "--any-init" in caught.value.hint
    # A checkpoint made elsewhere tells no stage: Llama 2 itself, for one.
    (tmp_path / "infill" / "model" / "codecria.json").unlink()
    stage = resolve(twice, out=out)
    assert stage.run.model.vocab_size == stage.vocabulary.size, "extended once, not twice"


def test_a_stage_after_infilling_keeps_its_vocabulary(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    train(request(shards, init=base, steps=1), tmp_path / "infill")
    asked = request(shards, recipe="python", init=tmp_path / "infill", steps=1)
    train(asked, tmp_path / "python")
    checkpoint = Checkpoint.open(tmp_path / "python")
    assert checkpoint.tokenizer_path is not None
    tokenizer = Tokenizer.load(checkpoint.tokenizer_path)
    assert tokenizer.infill is not None
    assert checkpoint.config.vocab_size == tokenizer.vocab_size


def test_the_plan_tells_what_will_be_infilled(base: Path, shards: Path) -> None:
    scopes = {}
    for scope in ("document", "context"):
        changes = CHANGES | {"infill_scope": scope, "context": 256}
        plan = plan_stage(resolve(request(shards, init=base, changes=changes), out=None, plan=True))
        scopes[scope] = plan.as_json()["infill"]
    held = ShardSet.open(shards).n_tokens
    assert {told["tokens"] for told in scopes.values()} == {held}
    assert scopes["context"]["effective_rate"] == pytest.approx(0.9)
    whole = scopes["document"]
    assert whole["effective_rate"] == pytest.approx(0.9 * whole["eligible_tokens"] / held)
    assert 0 <= whole["effective_rate"] < 0.3


@pytest.mark.parametrize("scope", ["document", "context"])
def test_what_the_plan_expects_is_what_the_rows_hold(scope: str, base: Path, shards: Path) -> None:
    changes = CHANGES | {"infill_scope": scope, "context": 512, "batch_tokens": 512}
    stage = resolve(request(shards, init=base, changes=changes), out=None, plan=True)
    from codecria.data.rows.loader import source_rows

    rows = source_rows(
        stage.mixture.sources[0].shards,
        context=512,
        seed=0,
        infilling=stage.vocabulary.infilling,
    )
    total = Counts()
    for k in range(rows.rows):
        counts = rows.row(k).counts
        assert counts is not None
        total += counts
    expected = plan_stage(stage).infill
    assert expected is not None
    [(share, told)] = expected.sources
    assert share == 1.0
    assert (told.pieces, told.tokens) == (total.pieces, total.tokens)
    # A part of BOS or EOS alone has no text; the plan does not read documents.
    assert told.eligible == pytest.approx(total.eligible + total.split, abs=3)


def test_examples_are_the_runs_own_and_say_what_they_are(base: Path, shards: Path) -> None:
    stage = resolve(request(shards, init=base), out=None, plan=True)
    tokenizer = stage.vocabulary.tokenizer
    assert tokenizer is not None
    infiller = Infiller(tokenizer)
    shown = list(examples(stage, 8))
    assert len(shown) == 8
    assert {example.order for example in shown} == {"PSM", "SPM"}
    for example in shown:
        text = recompose(infiller, example.ids, Order[example.order])
        bare = example.marked
        for name in ("BOS", "PRE", "SUF", "MID", "EOT", "EOS"):
            assert f"[{name}]" in bare
            bare = bare.replace(f"[{name}]", "", 1)
        assert sorted(bare) == sorted(text)
    again = list(examples(resolve(request(shards, init=base), out=None, plan=True), 8))
    assert again == shown
    plain = resolve(request(shards, recipe="pretrain", init=base), out=None, plan=True)
    [first] = examples(plain, 1)
    assert first.order == "plain"


def test_losses_are_told_apart_by_kind() -> None:
    kinds = torch.tensor([0, 0, 1, 2, 2, 0], dtype=torch.uint8).numpy()
    targets = torch.tensor([5, IGNORE, 6, 7, 8, 9], dtype=torch.int32).numpy()
    row = Row(targets, targets, (6,), kinds, Counts(tokens=10, infilled_tokens=4))
    each = torch.tensor([1.0, 0.0, 2.0, 3.0, 5.0, 7.0])
    apart = loss_by_kind(each, stack([row], document_mask=True))
    assert apart.tolist() == [[8.0, 2.0], [2.0, 1.0], [8.0, 2.0], [0.0, 0.0]]
    record = infilling_record(apart, Counts(tokens=10, infilled_tokens=4))
    assert record["plain_loss"] == 4.0
    assert record["infill_loss"] == pytest.approx(10 / 3)
    assert (record["psm_loss"], record["spm_loss"]) == (2.0, 4.0)
    assert record["infill"]["effective_rate"] == 0.4
    assert infilling_record(torch.zeros(3, 2), Counts())["infill_loss"] is None
