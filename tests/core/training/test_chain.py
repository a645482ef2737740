"""The stages after code training: long context, instructions, and what a checkpoint hands on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.training.card import stages_of, training_seconds_of
from codecria.core.training.examples import examples
from codecria.core.training.meter import read_metrics
from codecria.core.training.planner import plan_paper, planned_model, reach_of
from codecria.core.training.recipes import recipe_for
from codecria.core.training.resolve import resolve
from codecria.core.training.sources import share_beyond
from codecria.data.errors import UsageError, UserError
from codecria.data.rows.shards import ShardSet
from tests.core.training.runs import CHANGES, request, train, weights

pytestmark = pytest.mark.usefixtures("tiny_preset")


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    records = [{"instruction": f"Add {n}.", "output": f"x + {n}"} for n in range(40)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture
def base(shards: Path, tmp_path: Path) -> Path:
    out = tmp_path / "base"
    train(request(recipe="pretrain", data=[str(shards)], size="1m", steps=1), out)
    return out


@pytest.fixture
def infill(base: Path, shards: Path, tmp_path: Path) -> Path:
    train(request(data=[str(shards)], init=base, steps=2), tmp_path / "infill")
    return tmp_path / "infill"


def test_long_context_training_changes_theta_window_and_keeps_the_objective(
    infill: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "long"
    changes = CHANGES | {"context": 256}
    records = train(
        request(recipe="lcft", data=[str(shards)], init=infill, changes=changes, steps=3), out
    )
    checkpoint = Checkpoint.open(out)
    assert checkpoint.config.rope_theta == 1e6
    assert checkpoint.config.max_context == 256
    assert checkpoint.lineage()["objective"]["infill_rate"] == 0.9
    assert any(record.get("infill_loss") for record in records)
    # The next window is not masked: attention crosses documents (DECISIONS).
    assert not json.loads((out / "run.json").read_text())["run"]["recipe"]["document_mask"]


def test_long_context_training_of_a_plain_model_stays_plain(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    asked = request(recipe="lcft", data=[str(shards)], init=base)
    stage = resolve(asked, out=tmp_path / "long")
    assert stage.run.recipe.infill is None
    assert stage.run.model.vocab_size == Checkpoint.open(base).config.vocab_size
    told = request(
        recipe="lcft", data=[str(shards)], init=base, changes=CHANGES | {"infill_rate": 0.5}
    )
    infilling = resolve(told, out=tmp_path / "other").run.recipe.infill
    assert infilling is not None
    assert infilling.rate == 0.5, "what is given for the run stands above what is inherited"


def test_positions_are_scaled_where_that_is_asked_for(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    changes = CHANGES | {"context": 256, "rope_theta": "1e4", "rope_scale": "4"}
    out = tmp_path / "linear"
    train(request(recipe="lcft", data=[str(shards)], init=base, changes=changes, steps=1), out)
    config = Checkpoint.open(out).config
    assert (config.rope_theta, config.rope_scale) == (1e4, 4.0)


def test_a_python_model_has_a_long_context_recipe_of_its_own(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    train(request(recipe="python", data=[str(shards)], init=base, steps=1), python)
    stage = resolve(request(recipe="lcft", data=[str(shards)], init=python), out=tmp_path / "out")
    assert stage.run.recipe.name == "lcft-python"
    with pytest.raises(UserError, match="lcft-python 1m starts from a checkpoint of python"):
        resolve(request(recipe="lcft-python", data=[str(shards)], init=base), out=tmp_path / "o")


def test_the_reach_of_masked_rows_is_told(base: Path, shards: Path, tmp_path: Path) -> None:
    # By hand: of every document, the tokens that stand behind more than `beyond` others in a row.
    opened = ShardSet.open(shards)
    lengths = [opened.length(d) for d in range(opened.n_documents)]
    by_hand = sum(
        max(0, min(128, n - start) - 64) for n in lengths for start in range(0, n, 128)
    ) / sum(lengths)
    assert share_beyond(opened, 64, 128) == pytest.approx(by_hand)
    masked = CHANGES | {"context": 128, "document_mask": "true"}
    asked = request(recipe="lcft", data=[str(shards)], init=base, changes=masked)
    reach = reach_of(resolve(asked, out=tmp_path / "long"))
    assert reach is not None
    assert (reach.beyond, reach.share) == (64, pytest.approx(by_hand))
    unmasked = request(recipe="lcft", data=[str(shards)], init=base)
    assert reach_of(resolve(unmasked, out=tmp_path / "long")) is None


def test_recomputed_activations_give_the_same_weights(shards: Path, tmp_path: Path) -> None:
    # Kills: a layer recomputed on other inputs, a mask forgotten in backward.
    found = {}
    for recompute in ("on", "off"):
        out = tmp_path / recompute
        asked = request(
            recipe="pretrain", data=[str(shards)], size="1m", recompute=recompute, steps=3
        )
        train(asked, out)
        assert json.loads((out / "run.json").read_text())["run"]["recompute"] is (recompute == "on")
        found[recompute] = weights(out)
    assert all(torch.equal(found["on"][name], found["off"][name]) for name in found["on"])


def test_instruction_tuning_learns_answers_and_replays_code(
    infill: Path, shards: Path, chats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "chat"
    records = train(
        request(
            recipe="instruct",
            init=infill,
            dialogs=[str(chats)],
            replay=[f"{shards}=0.25"],
            steps=12,
            any_init=True,
        ),
        out,
    )
    logged = [record for record in records if "dialog_loss" in record]
    assert logged[-1]["dialog_loss"] < logged[0]["dialog_loss"] - 0.5
    # Exact over blocks of 1,024 rows; this run has 48.
    assert logged[-1]["shares"][str(shards)] == pytest.approx(0.25, abs=0.1)
    assert any(record["replay_loss"] for record in logged)
    assert any(record["infill"]["infilled"] for record in logged), "the objective is kept"
    validations = [record for record in records if "validation_loss" in record]
    assert set(validations[-1]["validation"]) == {str(chats), str(shards)}
    assert set(validations[-1]["validation_infill"]) == {str(shards)}
    assert validations[-1]["validation"][str(chats)] < validations[0]["validation"][str(chats)]
    names = [stage["recipe"] for stage in stages_of(Checkpoint.open(out).lineage())]
    assert names == ["pretrain", "fim", "instruct"]


def test_a_tuning_stopped_by_a_signal_goes_on_to_the_same_weights(
    infill: Path, shards: Path, chats: Path, tmp_path: Path
) -> None:
    asked = request(
        recipe="instruct", init=infill, dialogs=[str(chats)], replay=[str(shards)], any_init=True
    )
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "cut", stop_after=2)
    train(asked, tmp_path / "cut")
    mine, theirs = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_changed_dialogs_are_another_run(
    infill: Path, chats: Path, tmp_path: Path, shards: Path
) -> None:
    out, file = tmp_path / "chat", tmp_path / "own.jsonl"
    file.write_text(chats.read_text())
    asked = request(recipe="instruct", init=infill, dialogs=[str(file)], steps=1, any_init=True)
    train(asked, out)
    file.write_text(chats.read_text() + '{"instruction": "More.", "output": "more"}\n')
    with pytest.raises(UserError, match=r"another run: data\.0\.digest"):
        train(asked, out)


def test_epochs_are_of_the_dialogs(infill: Path, shards: Path, chats: Path, tmp_path: Path) -> None:
    asked = request(
        recipe="instruct",
        init=infill,
        dialogs=[str(chats)],
        replay=[f"{shards}=0.5"],
        steps=None,
        epochs=4,
        any_init=True,
    )
    records = train(asked, tmp_path / "chat")
    epochs = [record["epochs"] for record in records if "epochs" in record][-1]
    assert 3.5 < epochs[str(chats)] < 5.5
    with pytest.raises(UsageError, match="--steps and --epochs both set the length"):
        resolve(
            request(recipe="instruct", init=infill, dialogs=["x"], epochs=1), out=None, plan=True
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dialogs": ["chats.jsonl"]}, "there is no --init"),
        ({"init": Path("base")}, "there are no --dialogs"),
    ],
)
def test_what_tuning_needs_is_asked_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(request(recipe="instruct", **options), out=None, plan=True)


def test_dialogs_that_fit_no_row_are_refused_or_counted(infill: Path, tmp_path: Path) -> None:
    long = {"instruction": "Count.", "output": "1 " * 200}
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(long | {"instruction": f"{n}"}) + "\n" for n in range(3)))
    asked = request(recipe="instruct", init=infill, dialogs=[str(file)], any_init=True)
    with pytest.raises(UserError, match="no dialog fits a context of 64 tokens"):
        resolve(asked, out=None, plan=True)
    with file.open("a") as more:
        more.write('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
        more.write('{"instruction": "e", "output": "f"}\n')
    assert resolve(asked, out=None, plan=True).too_long >= 2


def test_replay_that_leaves_nothing_to_the_dialogs_is_refused(
    infill: Path, shards: Path, chats: Path
) -> None:
    asked = request(
        recipe="instruct",
        init=infill,
        dialogs=[str(chats)],
        replay=[f"{shards}=1"],
        any_init=True,
    )
    with pytest.raises(UsageError, match="not between 0 and 1"):
        resolve(asked, out=None, plan=True)
    weighted = request(
        recipe="instruct",
        init=infill,
        dialogs=[f"{chats}=2"],
        replay=[f"{shards}=0.2"],
        any_init=True,
    )
    assert [s.weight for s in resolve(weighted, out=None, plan=True).mixture.sources] == [0.8, 0.2]


def test_examples_of_dialogs_show_the_mask(infill: Path, chats: Path) -> None:
    asked = request(recipe="instruct", init=infill, dialogs=[str(chats)], any_init=True)
    shown = list(examples(resolve(asked, out=None, plan=True), 2))
    assert [example.order for example in shown] == ["dialog", "dialog"]
    for example in shown:
        assert example.marked.startswith("[BOS][INST] Add ")
        before, _, said = example.marked.partition("«")
        assert before.endswith("[/INST]")
        assert said.endswith(" [EOS]»")
        assert said.startswith(" x + ")
        assert example.learned is not None
        assert len(example.learned) == len(example.ids)


@pytest.mark.parametrize(
    ("recipe", "size", "parameters", "theta"),
    [
        # PAPER section 1: 32,000 pieces without infilling, 32,016 with; long-context fine-tuning
        # sets a rotary base of 1e6, which 70b's Python and Instruct models never went through.
        ("pretrain", "7b", 6_738_415_616, 1e4),
        ("python", "7b", 6_738_415_616, 1e4),
        ("lcft-python", "7b", 6_738_415_616, 1e6),
        ("fim", "7b", 6_738_546_688, 1e4),
        ("lcft", "7b", 6_738_546_688, 1e6),
        ("instruct", "7b", 6_738_546_688, 1e6),
        ("pretrain", "13b", 13_015_864_320, 1e4),
        ("python", "13b", 13_015_864_320, 1e4),
        ("lcft-python", "13b", 13_015_864_320, 1e6),
        ("fim", "13b", 13_016_028_160, 1e4),
        ("lcft", "13b", 13_016_028_160, 1e6),
        ("instruct", "13b", 13_016_028_160, 1e6),
        ("pretrain", "34b", 33_743_970_304, 1e4),
        ("python", "34b", 33_743_970_304, 1e4),
        ("lcft", "34b", 33_743_970_304, 1e6),
        ("lcft-python", "34b", 33_743_970_304, 1e6),
        ("instruct", "34b", 33_743_970_304, 1e6),
        ("fim", "70b", 68_976_910_336, 1e4),
        ("lcft", "70b", 68_976_910_336, 1e6),
        ("python", "70b", 68_976_910_336, 1e4),
        ("instruct", "70b", 68_976_910_336, 1e4),
    ],
)
def test_plans_of_the_family_have_the_papers_parameters_and_rotary_bases(
    recipe: str, size: str, parameters: int, theta: float
) -> None:
    model = planned_model(recipe_for(recipe, size))
    assert (model.parameters, model.rope_theta) == (parameters, theta)
    trained = 4_096 if theta == 1e4 else 16_384
    assert model.max_context == trained


def test_dialogs_that_hold_an_evaluation_problem_are_left_out(infill: Path, tmp_path: Path) -> None:
    problem = {
        "task_id": "Demo/1",
        "prompt": "def running_sum(values):\n    total, sums = 0, []\n    for value in values:\n",
        "canonical_solution": "        total += value\n        sums.append(total)\n"
        "    return sums\n",
        "test": "assert running_sum([1, 2]) == [1, 3]",
        "entry_point": "running_sum",
    }
    benchmark = tmp_path / "problems.jsonl"
    benchmark.write_text(json.dumps(problem) + "\n")
    chats = tmp_path / "chats.jsonl"
    leak = {"instruction": "Sum up.", "output": problem["prompt"] + problem["canonical_solution"]}
    records = [leak, *({"instruction": f"Add {n}.", "output": f"x + {n}"} for n in range(20))]
    chats.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"recipe": "instruct", "init": infill, "dialogs": [str(chats)], "any_init": True}
    plain = resolve(request(**options), out=tmp_path / "run")
    clean = resolve(request(**options, decontaminate=[benchmark]), out=tmp_path / "run")
    assert [report.contaminated_dialogs for report in plain.dialogs] == [0]
    assert [report.contaminated_dialogs for report in clean.dialogs] == [1]
    assert clean.run.sources[0].digest != plain.run.sources[0].digest


def test_a_plan_needs_no_data() -> None:
    plan = plan_paper(request(recipe="lcft", size="7b", steps=None, changes={}))
    assert plan.model.rope_theta == 1e6
    assert plan.recompute, "no machine of ours holds the activations of 7b at 16,384 tokens"
    asked = request(recipe="lcft", size="7b", steps=None, changes={}, recompute="off")
    kept = plan_paper(asked).memory["activations"]
    assert plan.memory["activations"] < kept / 10
    instruct = plan_paper(request(recipe="instruct", size="34b", steps=None, changes={}))
    assert next((s.name, s.share) for s in instruct.sources) == ("dialogs", 0.92)
    with pytest.raises(UsageError, match="needs --size, or --dialogs and a checkpoint"):
        plan_paper(request(recipe="instruct"))


def test_a_finished_run_publishes_its_card(
    infill: Path, shards: Path, chats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "chat"
    asked = request(
        recipe="instruct",
        init=infill,
        dialogs=[str(chats)],
        replay=[str(shards)],
        steps=2,
        any_init=True,
    )
    train(asked, out)
    card = (out / "model" / "README.md").read_text()
    digests = [
        source["digest"][:12]
        for source in json.loads((out / "run.json").read_text())["run"]["sources"]
    ]
    for part in (
        "# instruct 1m",
        "1. pretrain 1m: 256 tokens",
        "3. instruct 1m: 512 tokens",
        "| chats.jsonl | 92.0% |",
        *digests,
        "validation loss",
        "## Limits",
    ):
        assert part in card
    newest = read_metrics(out / "metrics.jsonl")[-1]
    assert f"{newest['validation_loss']:.4f}" in card


def test_seconds_of_training_leave_out_the_rest() -> None:
    records = [
        {"tokens": 1_000, "tokens_per_s": 100.0},
        {"validation_loss": 1.0},
        {"tokens": 3_000, "tokens_per_s": 200.0},
    ]
    assert training_seconds_of(records) == 20.0
