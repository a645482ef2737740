"""The training loop: exact resume, equal micro-batches, guards, and what it leaves on disk."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codecria.core import machine
from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.model.transformer import Transformer
from codecria.core.training import stage as stages
from codecria.core.training.meter import mfu, read_metrics, tokens_per_second
from codecria.core.training.optim import learning_rate
from codecria.core.training.planner import plan_stage
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import Stage, run_stage
from codecria.core.training.trainer import Outcome, Trainer
from codecria.data.errors import UsageError, UserError
from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.core.training import runs
from tests.core.training.runs import run as train
from tests.core.training.runs import weights

CHANGES = {"context": 32, "batch_tokens": 128, "peak_lr": 5e-3}


def request(shards: Path, **options: Any) -> StageRequest:
    settings: dict[str, Any] = {
        "recipe": "pretrain",
        "data": [str(shards)],
        "size": "1m",
        "steps": 8,
        "changes": CHANGES,
        "eval_every": 4,
    }
    return runs.request(**settings | options)


pytestmark = pytest.mark.usefixtures("tiny_preset")


def assert_same_weights(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different, f"{len(different)} of {len(mine)} weights differ: {different[:3]}"


def test_training_lowers_both_losses_and_publishes_a_model(shards: Path, tmp_path: Path) -> None:
    outcome, records = train(request(shards, steps=40), tmp_path / "run")
    assert outcome == Outcome(40, finished=True, trained=40)
    losses = [r["loss"] for r in records if "loss" in r]
    validation = [r["validation_loss"] for r in records if "validation_loss" in r]
    assert losses[-1] < losses[0] - 0.3
    assert validation[-1] < validation[0]
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert checkpoint.folder == tmp_path / "run" / "model"
    assert checkpoint.lineage()["tokens"] == 40 * 128
    assert checkpoint.tokenizer_path is not None
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == records


def test_a_run_stopped_by_a_signal_goes_on_to_the_same_weights(
    shards: Path, tmp_path: Path
) -> None:
    # Kills: moments not restored, the row counter reset, the schedule restarted.
    train(request(shards), tmp_path / "whole")
    outcome, _ = train(request(shards), tmp_path / "cut", stop_after=4)
    assert outcome == Outcome(4, finished=False, trained=4)
    outcome, _ = train(request(shards), tmp_path / "cut")
    assert outcome == Outcome(8, finished=True, trained=4)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert [r["step"] for r in cut] == [r["step"] for r in whole]
    assert [r.get("loss") for r in cut] == [r.get("loss") for r in whole]


def test_a_finished_run_does_nothing_when_started_again(shards: Path, tmp_path: Path) -> None:
    train(request(shards), tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "model").iterdir()}
    for saved in tmp_path.glob("run/checkpoints/*/*.safetensors"):
        saved.unlink()  # neither weights nor moments are read
    outcome, records = train(request(shards), tmp_path / "run")
    assert outcome == Outcome(8, finished=True, trained=0)
    assert records == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "model").iterdir()} == before


def test_only_the_newest_checkpoints_are_kept(shards: Path, tmp_path: Path) -> None:
    train(request(shards, save_every=2, keep=2), tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]


def test_every_saved_step_is_a_checkpoint_that_can_be_started_from(
    shards: Path, tmp_path: Path
) -> None:
    train(request(shards), tmp_path / "run")
    first = tmp_path / "run" / "checkpoints" / "step-00000006"
    outcome, _ = train(request(shards, size=None, init=first), tmp_path / "next")
    assert outcome.finished
    assert Checkpoint.open(tmp_path / "next").lineage()["parent"] == Checkpoint.open(first).digest()


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    micro_batch_size: int, shards: Path, tmp_path: Path
) -> None:
    # Kills: dividing by each micro-batch's own count of targets.
    train(request(shards, micro_batch_size=4, steps=2), tmp_path / "whole")
    train(request(shards, micro_batch_size=micro_batch_size, steps=2), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"changes": CHANGES | {"peak_lr": 1e-3}}, "recipe.peak_lr: 0.005 -> 0.001"),
        ({"changes": CHANGES | {"seed": 1}}, "recipe.seed: 0 -> 1"),
        ({"steps": 9}, "recipe.tokens: 1024 -> 1152"),
    ],
)
def test_a_changed_run_is_refused_with_the_difference(
    change: dict[str, Any], named: str, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(request(shards, steps=8), out, stop_after=1)
    with pytest.raises(UserError, match=named):
        train(request(shards, **change), out)


def test_another_environment_is_told_and_not_refused(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(request(shards), out, stop_after=1)
    page = json.loads((out / "run.json").read_text())
    page["environment"]["threads"] = 77
    (out / "run.json").write_text(json.dumps(page))
    [warning] = resolve(request(shards), out=out).standing(out).warnings
    assert f"threads: 77 -> {torch.get_num_threads()}" in warning


class Poisoned(Trainer):
    """A trainer whose loss is not a number in one step."""

    bad_step = 3

    def step(self, step: int, batch: Any) -> Any:
        if step == self.bad_step:
            with torch.no_grad():
                saved = self.model.norm.weight.clone()
                self.model.norm.weight.fill_(float("nan"))
            try:
                return super().step(step, batch)
            finally:
                with torch.no_grad():
                    self.model.norm.weight.copy_(saved)
        return super().step(step, batch)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    policy: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "Trainer", Poisoned)
    asked = request(shards, changes=CHANGES | {"on_nonfinite": policy}, save_every=1)
    if policy == "stop":
        with pytest.raises(UserError, match="before the update of step 4: loss nan"):
            train(asked, tmp_path / "run")
        assert Checkpoint.open(tmp_path / "run").folder.name == "step-00000003"
        return
    outcome, records = train(asked, tmp_path / "run")
    assert outcome.finished
    assert [r["step"] for r in records if "skipped" in r] == [4]
    assert Checkpoint.open(tmp_path / "run").lineage()["skipped"] == [3]
    assert all(torch.isfinite(w).all() for w in weights(tmp_path / "run").values())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(request(shards, save_every=2), out, stop_after=4)
    newest = out / "checkpoints" / "step-00000004"
    moments = newest / "optimizer.safetensors"
    moments.write_bytes(moments.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"cannot resume from .*step-00000004") as caught:
        train(request(shards, save_every=2), out)
    assert "remove that folder" in caught.value.hint
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    outcome, _ = train(request(shards, save_every=2), out)
    assert outcome == Outcome(8, finished=True, trained=6)


def test_a_bfloat16_run_keeps_float32_masters_and_publishes_bfloat16(
    shards: Path, tmp_path: Path
) -> None:
    _, records = train(request(shards, steps=40, dtype="bfloat16", save_every=40), tmp_path / "run")
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < losses[0] - 0.3
    saved = Checkpoint.open(tmp_path / "run" / "checkpoints" / "step-00000040")
    assert {part.dtype for part in saved.weights.stored.values()} == {"float32"}
    published = Checkpoint.open(tmp_path / "run").weights
    assert {part.dtype for part in published.stored.values()} == {"bfloat16"}


class PartlyFrozen(Trainer):
    """A trainer of a model with a frozen matrix and a weight that its shape does not know."""

    extra: ClassVar[torch.Tensor]

    def __init__(self, run: Any, model: Any, *others: Any, **named: Any) -> None:
        model.layers[0].attention.wq.weight.requires_grad_(False)
        model.layers[1].attention.wq.register_parameter(
            "adapter", torch.nn.Parameter(self.extra.clone())
        )
        model.layers[1].attention.wq.forward = self.adapted(model.layers[1].attention.wq)
        super().__init__(run, model, *others, **named)

    def adapted(self, linear: Any) -> Any:
        return lambda x: torch.nn.functional.linear(x, linear.weight + linear.adapter)


def test_frozen_and_extra_weights_are_trained_saved_and_resumed_by_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kills: moments of all weights or by place, extra weights lost, frozen ones decayed.
    PartlyFrozen.extra = torch.linspace(-0.1, 0.1, 16 * 16).view(16, 16)
    monkeypatch.setattr(stages, "Trainer", PartlyFrozen)
    train(request(shards, save_every=4), tmp_path / "whole")
    train(request(shards, save_every=4), tmp_path / "cut", stop_after=5)
    train(request(shards, save_every=4), tmp_path / "cut")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    saved = [tmp_path / run / "checkpoints" / "step-00000008" for run in ("whole", "cut")]
    adapter = "layers.1.attention.wq.adapter"
    extra = [load_file(folder / "extra.safetensors") for folder in saved]
    assert list(extra[0]) == [adapter]
    assert torch.equal(extra[0][adapter], extra[1][adapter])
    assert not torch.equal(extra[0][adapter], PartlyFrozen.extra)
    moments = load_file(saved[0] / "optimizer.safetensors")
    assert f"{adapter}.exp_avg" in moments
    assert not [name for name in moments if name.startswith("model.layers.0.self_attn.q_proj")]
    first = Transformer(Checkpoint.open(tmp_path / "whole").config)
    first.initialise(0)
    frozen = "layers.0.attention.wq.weight"
    assert torch.equal(weights(tmp_path / "whole")[frozen], dict(first.named_parameters())[frozen])
    monkeypatch.setattr(stages, "Trainer", Trainer)
    (tmp_path / "whole" / "model").rename(tmp_path / "model")
    with pytest.raises(UserError, match="saved with other trained weights"):
        train(request(shards, save_every=4), tmp_path / "whole")


def test_a_checkpoint_of_another_tokenizer_is_refused(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    train(request(shards, steps=1), tmp_path / "run")
    model = tmp_path / "run" / "model"
    (model / "codecria.json").unlink()
    path = model / "tokenizer.model"
    resolve(request(shards, size=None, init=model), out=None, plan=True)
    path.unlink()
    tokenizer.extend(path)
    with pytest.raises(UserError, match="another tokenizer than the data") as caught:
        resolve(request(shards, size=None, init=model), out=None, plan=True)
    assert caught.value.hint.endswith(f"--tokenizer {path}"), "a file that is there"
    for file in model.glob("tokenizer.*"):
        file.unlink()
    (model / "codecria.json").write_text(json.dumps({"tokenizer": "another"}))
    with pytest.raises(UserError, match="another tokenizer than the data") as caught:
        resolve(request(shards, size=None, init=model), out=None, plan=True)
    assert f"copy the model's tokenizer.model into {model}" in caught.value.hint


def test_two_processes_cannot_write_to_one_run(shards: Path, tmp_path: Path) -> None:
    from codecria.data.files import locked

    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        train(request(shards), tmp_path / "run")


def resolved(shards: Path, out: Path, **options: Any) -> Stage:
    return resolve(request(shards, **options), out=out)


def test_options_that_do_not_go_together_are_usage_errors(shards: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"data": []}, "there is no --data"),
        ({"size": None}, "either --size or --init"),
        ({"init": tmp_path}, "either --size or --init"),
        ({"tokens": 5}, "--tokens and --steps"),
        ({"micro_batch_size": 3}, "--micro-batch-size 3 does not divide the batch of 4 rows"),
        ({"dtype": "int8"}, "cannot train in 'int8'"),
        ({"compile": "maybe"}, "--compile is 'maybe'"),
        ({"device": "abacus"}, "there is no device 'abacus'"),
    ]:
        with pytest.raises(UsageError, match=message):
            resolved(shards, tmp_path / "run", **options)


def test_without_a_compiler_compilation_is_refused_and_never_chosen(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no C"):
        resolved(shards, tmp_path / "run", compile="on")
    long = {"compile": "auto", "steps": 10**9}
    assert not resolved(shards, tmp_path / "run", **long).run.compiled
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(machine, "compiler_problem", lambda: "")
    assert resolved(shards, tmp_path / "run", **long).run.compiled


def test_the_plan_of_a_run_counts_its_own_data(shards: Path, tmp_path: Path) -> None:
    stage = resolved(shards, tmp_path / "run")
    plan = plan_stage(stage)
    [source] = plan.sources
    assert source.unique == stage.mixture.sources[0].shards.n_tokens
    assert source.drawn == pytest.approx(8 * 128, rel=0.5)
    assert plan.as_json()["steps"] == 8


def test_records_hold_the_wait_for_data_and_the_time_of_a_step_apart(
    shards: Path, tmp_path: Path
) -> None:
    # Kills: waiting left out of the speed, a step counted twice.
    _, records = train(request(shards, log_every=2), tmp_path / "run")
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == [2, 4, 6, 8]
    for record in steps:
        assert record["data_wait_s"] >= 0
        assert record["step_s"] > 0
        whole = record["data_wait_s"] + record["step_s"]  # between them little is left: the log
        assert record["tokens_per_s"] <= 1.001 * 128 / whole


def test_speed_figures_are_what_they_say() -> None:
    assert tokens_per_second(4096, 2.0) == 2048.0
    assert tokens_per_second(0, 0.0) == 0.0
    assert mfu(1000.0, 6e8, 1e12) == 0.6
    assert mfu(1000.0, 6e8, 0.0) is None


def test_batches_are_rows_in_order(shards: Path, tmp_path: Path) -> None:
    from codecria.data.rows.loader import Loader

    stage = resolved(shards, tmp_path / "run")
    options: dict[str, Any] = {"context": 32, "seed": 0, "batch_rows": 4, "document_mask": True}
    with (
        Loader(stage.mixture, **options, start=5, stop=6) as late,
        Loader(stage.mixture, **options, start=0, stop=6) as all_of,
    ):
        [five] = list(late)
        assert np.array_equal(five.ids, list(all_of)[5].ids)


@pytest.mark.parametrize("document_mask", [False, True])
def test_a_run_that_restarted_positions_where_attention_does_not_is_refused_with_the_reason(
    document_mask: bool, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = request(shards, changes=CHANGES | {"document_mask": document_mask})
    train(asked, out, stop_after=1)
    page = json.loads((out / "run.json").read_text())
    del page["identity"]["positions"]  # as runs were recorded before positions had a choice
    (out / "run.json").write_text(json.dumps(page))
    if document_mask:  # nothing changed for it
        assert train(asked, out)[0].finished
        return
    with pytest.raises(UserError, match="restarted rotary positions at each document") as caught:
        train(asked, out)
    assert "another --out" in caught.value.hint


# --- extended, replaced, and refused runs ---------------------------------------------------------


def test_a_run_with_a_stable_phase_is_extended_to_the_very_weights_of_a_longer_one(
    shards: Path, tmp_path: Path
) -> None:
    # Kills: going on from decayed weights, a warm-up that follows the new length, kept moments.
    changes = CHANGES | {"schedule": "wsd", "decay_share": "0.25", "warmup_steps": 2}
    short = request(shards, steps=8, changes=changes, keep=1, save_every=8)
    longer = request(shards, steps=16, changes=changes, keep=1, save_every=8)
    train(longer, tmp_path / "whole")
    train(short, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000008"], "the step before the decay is kept"
    with pytest.raises(UserError, match=r"holds another run: recipe\.tokens") as caught:
        train(longer, tmp_path / "run")
    assert "--extend gives it more steps" in caught.value.hint
    extended = request(shards, steps=16, changes=changes, keep=1, save_every=8, extend=True)
    outcome, _ = train(extended, tmp_path / "run")
    assert outcome == Outcome(16, finished=True, trained=10)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert Checkpoint.open(tmp_path / "run").lineage()["extended"] == [6]
    whole, run = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    assert [r["loss"] for r in run if "loss" in r] == [r["loss"] for r in whole if "loss" in r]
    # The same command again, with and without --extend, finds nothing to do.
    assert train(extended, tmp_path / "run")[0].trained == 0
    assert train(longer, tmp_path / "run")[0].trained == 0


def test_extending_a_cosine_goes_on_from_the_last_step_and_says_what_that_means(
    shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(request(shards, steps=4), out)
    longer = request(shards, steps=8, extend=True)
    warned: list[str] = []
    records: list[dict[str, Any]] = []
    run_stage(resolve(longer, out=out), out, report=records.append, warn=warned.append, started=id)
    assert any("cosine is planned again over 8 steps" in line for line in warned)
    rates = [r["lr"] for r in records if "lr" in r]
    recipe = resolve(request(shards, steps=8), out=None, plan=True).run.recipe
    assert rates == [pytest.approx(learning_rate(step, recipe)) for step in range(4, 8)]
    with pytest.raises(UserError, match="would make it shorter"):
        train(request(shards, steps=2, extend=True), out)
    with pytest.raises(UserError, match=r"holds another run: recipe\.seed") as caught:
        train(request(shards, steps=16, extend=True, changes=CHANGES | {"seed": 3}), out)
    assert "--force" in caught.value.hint
    with pytest.raises(UserError, match="holds no run to extend"):
        train(request(shards, extend=True), tmp_path / "nothing")


def test_a_run_is_replaced_where_that_is_asked_for(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(request(shards, changes=CHANGES | {"seed": 5}), out)
    (out / "notes.txt").write_text("mine")
    outcome, _ = train(request(shards, force=True), out)
    assert outcome == Outcome(8, finished=True, trained=8)
    train(request(shards), tmp_path / "fresh")
    assert_same_weights(out, tmp_path / "fresh")
    assert (out / "notes.txt").read_text() == "mine"
    assert train(request(shards), out)[0].trained == 0
    inner = request(shards, size=None, init=out, force=True)
    with pytest.raises(UserError, match=r"would remove .*model, which the run starts from"):
        train(inner, out)
    assert Checkpoint.open(out).lineage()["step"] == 8, "the run is still there"


def test_another_split_of_the_batch_resumes_with_a_warning(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(request(shards), out, stop_after=4)
    warned: list[str] = []
    asked = request(shards, micro_batch_size=1)
    outcome = run_stage(
        resolve(asked, out=out), out, report=lambda _: None, warn=warned.append, started=id
    )
    assert outcome.finished
    assert warned == ["resuming with micro_batch_size: 4 -> 1: the last bits may differ"]


def test_data_folders_in_another_order_or_under_another_name_are_the_same_data(
    shards: Path, corpus: list[str], tokenizer: Tokenizer, shard_writer: Any, tmp_path: Path
) -> None:
    # Kills: rows dealt by the order of the command line after a resume.
    other = tmp_path / "other"
    ids = [tokenizer.encode(text[:500], bos=True, eos=True) for text in corpus[:20]]
    shard_writer(other, ids, tokenizer)
    both = [f"{shards}=0.7", f"{other}=0.3"]
    train(request(shards, data=both), tmp_path / "whole")
    train(request(shards, data=both), tmp_path / "cut", stop_after=4)
    renamed = tmp_path / "renamed"
    other.rename(renamed)
    train(request(shards, data=[f"{renamed}=0.3", f"{shards}=0.7"]), tmp_path / "cut")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    with pytest.raises(UserError, match=r"data\.\d\.weight"):
        train(request(shards, data=[f"{renamed}=0.4", f"{shards}=0.6"]), tmp_path / "cut")


def test_a_folder_with_checkpoints_and_no_record_is_not_resumed(
    shards: Path, tmp_path: Path
) -> None:
    # As a kill amid --force would leave it, were the record removed first.
    out = tmp_path / "run"
    train(request(shards), out, stop_after=4)
    (out / "run.json").unlink()
    with pytest.raises(UserError, match=r"holds checkpoints of a run, and no run\.json"):
        train(request(shards), out)
    assert train(request(shards, force=True), out)[0].trained == 8


def test_counts_below_one_and_options_that_exclude_each_other_are_refused_together(
    shards: Path,
) -> None:
    asked = request(
        shards, steps=-5, log_every=0, keep=0, save_every=-1, eval_rows=-1, extend=True, force=True
    )
    with pytest.raises(UsageError) as caught:
        resolve(asked, out=None)
    for part in ("--steps -5", "--log-every 0", "--keep 0", "--save-every -1", "--eval-rows -1"):
        assert part in caught.value.message
    assert "--extend keeps a run and --force replaces it" in caught.value.message
    assert "tokens" not in caught.value.message


@pytest.mark.parametrize("skipped_at", [0, 3])
def test_a_skipped_step_stays_out_of_the_means_and_the_records_are_json(
    skipped_at: int, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "Trainer", Poisoned)
    monkeypatch.setattr(Poisoned, "bad_step", skipped_at)
    asked = request(shards, changes=CHANGES | {"on_nonfinite": "skip"}, log_every=2)
    _, reported = train(asked, tmp_path / "run")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert records == reported
    assert json.dumps(reported, allow_nan=False)
    logged = [r for r in records if "tokens_per_s" in r]
    assert len(logged) == 4
    assert all(np.isfinite(r["loss"]) for r in logged)
    every = request(shards, changes=CHANGES | {"on_nonfinite": "skip"}, log_every=1)
    _, alone = train(every, tmp_path / "alone")
    assert all("loss" not in r for r in alone if r["step"] == skipped_at + 1)


def test_a_run_is_not_mixed_into_a_folder_of_something_else(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds shards: a run there would mix both"):
        train(request(shards), shards)
    train(request(shards, steps=1), tmp_path / "run")
    with pytest.raises(UserError, match="holds a checkpoint"):
        train(request(shards), tmp_path / "run" / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        resolve(request(shards), out=tmp_path / "file").standing(tmp_path / "file")


def test_a_disk_too_small_for_the_checkpoints_is_told_before_the_first_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10 << 20))
    with pytest.raises(UserError, match="GB free"):
        train(request(shards), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_plan_reads_no_weights_of_its_checkpoint_and_writes_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(request(shards, steps=1), tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))

    def read(self: Checkpoint) -> str:
        raise AssertionError("the weights are read")

    monkeypatch.setattr(Checkpoint, "digest", read)
    asked = request(shards, size=None, init=tmp_path / "run")
    stage = resolve(asked, out=tmp_path / "next", plan=True)
    assert stage.standing(tmp_path / "next").action == "start"
    assert plan_stage(stage, tmp_path / "next").seconds
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_of_an_existing_run_is_what_the_run_would_do(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(request(shards), out, stop_after=4)
    stage = resolve(request(shards), out=out, plan=True)
    assert stage.standing(out).action == "resume"
    rate = plan_stage(stage, out).rate
    assert rate is not None
    assert rate.source == "measured in this run"
    assert plan_stage(stage).rate != rate
    other = resolve(request(shards, changes=CHANGES | {"seed": 9}), out=out, plan=True)
    with pytest.raises(UserError, match=r"holds another run: recipe\.seed"):
        other.standing(out)
