"""The recipes' numbers against the paper's, overrides, the schedule, and plans."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.model.config import PAPER_MODELS, SMALL_MODELS, preset
from codecria.core.training.optim import learning_rate
from codecria.core.training.overrides import override
from codecria.core.training.plan import make_plan, memory_bytes, plan_sources, training_seconds
from codecria.core.training.recipes import (
    CODE_MIXTURE,
    PYTHON_MIXTURE,
    RECIPES,
    Recipe,
    recipe_for,
)
from codecria.data.errors import UsageError
from codecria.data.formats.infill import InfillFormat


@pytest.mark.parametrize("key", RECIPES, ids=" ".join)
def test_every_recipe_is_sound(key: tuple[str, str]) -> None:
    assert RECIPES[key].problems() == []


def test_code_training_has_the_papers_numbers() -> None:
    table = {
        size: (r.peak_lr, r.batch_tokens, r.context, r.warmup_steps, r.tokens, r.steps)
        for size in PAPER_MODELS
        for r in [recipe_for("pretrain", size)]
    }
    batch = 4_194_304
    assert table == {
        "7b": (3e-4, batch, 4096, 1000, 500 * 10**9, 119_210),
        "13b": (3e-4, batch, 4096, 1000, 500 * 10**9, 119_210),
        "34b": (1.5e-4, batch, 4096, 1000, 500 * 10**9, 119_210),
        "70b": (1.5e-4, batch, 4096, 1000, 10**12, 238_419),
    }
    python = recipe_for("python", "34b")
    assert (python.peak_lr, python.tokens, python.steps) == (1e-4, 10**11, 23_842)
    assert not recipe_for("pretrain", "7b").document_mask
    assert recipe_for("pretrain", "15m").document_mask


def test_infilling_training_has_the_papers_numbers() -> None:
    sizes = [size for name, size in RECIPES if name == "fim" and size in PAPER_MODELS]
    assert sizes == ["7b", "13b", "70b"], "the 34b models were trained without infilling"
    for size in sizes:
        fim, pretrain = recipe_for("fim", size), recipe_for("pretrain", size)
        assert fim.infill == InfillFormat(rate=0.9, spm_share=0.5, scope="document", eos=True)
        assert pretrain.infill is None
        # Otherwise it is the code training it takes the place of.
        for name in ("tokens", "peak_lr", "context", "batch_tokens", "mixture", "warmup_steps"):
            assert getattr(fim, name) == getattr(pretrain, name)
    assert recipe_for("fim", "70b").tokens == 10**12
    with pytest.raises(UsageError, match="no recipe fim 34b") as caught:
        recipe_for("fim", "34b")
    assert "pretrain --size 34b" in caught.value.hint
    small = recipe_for("fim", "15m")
    assert small.infill == InfillFormat(scope="context")
    assert small.peak_lr == recipe_for("pretrain", "15m").peak_lr


def test_long_context_training_has_the_papers_numbers() -> None:
    # Code Llama, section 2.6: 3,000 steps are the base 7b's alone, 11,000 are both 34b's.
    table = {
        (name, size): (r.steps, r.rows, r.peak_lr, r.rope_theta, r.infill_rate, r.follows)
        for (name, size), r in RECIPES.items()
        if name.startswith("lcft") and size in PAPER_MODELS
    }
    assert table == {
        ("lcft", "7b"): (3_000, 128, 2e-5, 1e6, 0.9, ("fim",)),
        ("lcft", "13b"): (10_000, 128, 2e-5, 1e6, 0.9, ("fim",)),
        ("lcft", "34b"): (11_000, 64, 2e-5, 1e6, 0.0, ("pretrain",)),
        ("lcft", "70b"): (10_000, 64, 2e-5, 1e6, 0.9, ("fim",)),
        ("lcft-python", "7b"): (10_000, 128, 2e-5, 1e6, 0.0, ("python",)),
        ("lcft-python", "13b"): (10_000, 128, 2e-5, 1e6, 0.0, ("python",)),
        ("lcft-python", "34b"): (11_000, 64, 2e-5, 1e6, 0.0, ("python",)),
    }
    for name, size in table:
        recipe = recipe_for(name, size)
        assert recipe.context == 16_384
        assert not recipe.document_mask, "a document is seldom as long as the window"
    assert recipe_for("lcft", "13b").tokens == 20_971_520_000, "the 20B of figure 2"
    small = recipe_for("lcft", "15m")
    assert small.context == 4 * recipe_for("pretrain", "15m").context


def test_instruction_tuning_has_the_papers_numbers() -> None:
    for size in PAPER_MODELS:
        recipe = recipe_for("instruct", size)
        assert recipe.batch_tokens == 524_288
        assert recipe.tokens == 5 * 10**9
        assert recipe.steps == 9_537
        assert recipe.replay == pytest.approx(0.06 + 0.02)
        assert recipe.document_mask
        assert recipe.learn == "answers"
    follows = [recipe_for("instruct", size).follows for size in ("7b", "34b", "70b")]
    assert follows == [("lcft",), ("lcft",), ("python",)], "70b was tuned from the Python model"
    assert recipe_for("instruct", "34b").infill is None


def test_the_family_is_a_graph() -> None:
    assert recipe_for("fim", "7b").follows == ("pretrain",)
    assert recipe_for("python", "7b").follows == ("pretrain",)
    assert recipe_for("python", "70b").follows == ("fim",), "Python 70b came after infilling"
    for recipe in RECIPES.values():
        assert {*recipe.follows} <= {"scratch", *(name for name, _ in RECIPES)}


def test_the_plan_reproduces_the_papers_table_1() -> None:
    code = {s.name: s for s in plan_sources(CODE_MIXTURE, 500 * 10**9)}
    assert {name: round(s.epochs, 2) for name, s in code.items()} == {
        "code": 2.03,
        "natural language about code": 1.39,
        "natural language": 0.01,
    }
    assert {name: round(s.drawn / 1e9, 1) for name, s in code.items()} == {
        "code": 425.0,
        "natural language about code": 40.0,
        "natural language": 35.0,
    }
    python = {s.name: round(s.epochs, 2) for s in plan_sources(PYTHON_MIXTURE, 100 * 10**9)}
    # The table's own: 3.69, 0.05, 0.35, 0.00.
    assert python == {
        "python": 3.69,
        "code": 0.05,
        "natural language about code": 0.35,
        "natural language": 0.00,
    }


@pytest.mark.parametrize("mixture", [CODE_MIXTURE, PYTHON_MIXTURE])
def test_mixtures_are_whole(mixture: tuple) -> None:  # type: ignore[type-arg]
    assert sum(part.share for part in mixture) == pytest.approx(1)


def test_the_learning_rate_warms_up_peaks_and_ends_at_a_thirtieth() -> None:
    recipe = recipe_for("pretrain", "7b")
    rates = [learning_rate(step, recipe) for step in range(0, recipe.steps, 5)]
    assert learning_rate(0, recipe) == pytest.approx(3e-4 / 1000)
    assert learning_rate(999, recipe) == learning_rate(1000, recipe) == 3e-4 == max(rates)
    assert learning_rate(recipe.steps - 1, recipe) == pytest.approx(1e-5)
    middle = (1000 + recipe.steps - 1) // 2
    assert learning_rate(middle, recipe) == pytest.approx((3e-4 + 1e-5) / 2, rel=1e-3)


@given(
    steps=st.integers(1, 400),
    more=st.integers(0, 400),
    share=st.floats(0.01, 1),
    warmup=st.integers(0, 50),
)
def test_a_stable_schedule_is_the_same_in_a_longer_run_until_it_decays(
    steps: int, more: int, share: float, warmup: int
) -> None:
    # Kills: a decay that begins a step early, a peak that follows the length, a floor not reached.
    base = recipe_for("pretrain", "15m")
    changes = {"schedule": "wsd", "decay_share": share, "warmup_steps": warmup}
    short, long = (
        override(base, changes | {"tokens": n * base.batch_tokens}) for n in (steps, steps + more)
    )
    rates = [learning_rate(step, short) for step in range(steps)]
    stable = min(short.decay_start, steps)
    assert rates[:stable] == [learning_rate(step, long) for step in range(stable)]
    assert rates[warmup:stable] == [short.peak_lr] * max(0, stable - warmup)
    falling = rates[stable:]
    assert all(a > b for a, b in itertools.pairwise([short.peak_lr * 1.0001, *falling]))
    if falling:
        assert falling[-1] == pytest.approx(short.peak_lr * short.min_lr_ratio)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_finite_schedule(steps: int) -> None:
    base = recipe_for("pretrain", "15m")
    recipe = override(base, {"tokens": steps * base.batch_tokens})
    assert recipe.steps == steps
    assert all(0 < learning_rate(s, recipe) <= recipe.peak_lr for s in range(steps))


@pytest.mark.parametrize("text", ["64K", "6.4e4", "64_000", "64000"])
def test_counts_of_a_recipe_may_be_written_as_people_write_them(text: str) -> None:
    changed = override(recipe_for("pretrain", "15m"), {"batch_tokens": text, "context": "512"})
    assert changed.batch_tokens == 64_000


def test_overrides_are_parsed_checked_and_collected() -> None:
    base = recipe_for("pretrain", "15m")
    changed = override(
        base, {"peak_lr": "2e-3", "betas": "0.8,0.9", "tokens": "65536", "document_mask": "false"}
    )
    assert (changed.peak_lr, changed.betas, changed.tokens) == (2e-3, (0.8, 0.9), 65_536)
    assert not changed.document_mask
    assert changed.warmup_steps == 1, "a short small run warms up for 5 % of it"
    assert override(base, {"tokens": 65_536, "warmup_steps": 3}).warmup_steps == 3
    paper = override(recipe_for("pretrain", "7b"), {"tokens": 10**9})
    assert paper.warmup_steps == 1000, "the paper's warm-up is stated and stays"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1}, "no field 'lr'"),
        ({"name": "x"}, "no field 'name'"),
        ({"peak_lr": "fast"}, "peak_lr = 'fast' is not a number"),
        ({"context": "long"}, "context = 'long' is not a whole number"),
        ({"document_mask": "maybe"}, "document_mask = 'maybe' is not true or false"),
        ({"context": 100}, "not a multiple of context 100"),
        ({"peak_lr": -1, "clip_norm": 0}, "peak_lr -1.0 must be positive; clip_norm 0.0"),
        ({"infill_rate": 1.5}, r"infill_rate 1.5 not in \[0, 1\]"),
        ({"infill_scope": "file"}, "infill_scope = 'file' is not 'document' or 'context'"),
        ({"follows": "fim"}, "no field 'follows'"),
        (
            {"infill_rate": 0.9, "context": 16, "batch_tokens": 16},
            "context 16 has no room for infilling",
        ),
        ({"on_nonfinite": "pray"}, "on_nonfinite = 'pray'"),
    ],
)
def test_a_bad_override_is_a_usage_error_that_names_it(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        override(recipe_for("pretrain", "15m"), changes)


def test_a_model_that_the_paper_did_not_train_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="34b has no infilling") as caught:
        recipe_for("fim", "34b")
    assert "pretrain --size 34b" in caught.value.hint
    with pytest.raises(UsageError, match="Python 70b keeps a context of 4,096"):
        recipe_for("lcft-python", "70b")


def test_numbers_that_the_paper_does_not_state_are_marked() -> None:
    assert {"tokens", "batch_tokens"} <= {*recipe_for("lcft", "70b").stand_ins}
    assert "34b" in recipe_for("lcft", "70b").source
    for size in ("7b", "13b", "34b"):
        assert not {"tokens", "batch_tokens"} & {*recipe_for("lcft", size).stand_ins}
    assert recipe_for("pretrain", "7b").stand_ins == recipe_for("fim", "7b").stand_ins == ()
    known = {field.name for field in dataclasses.fields(Recipe)}
    assert all({*recipe.stand_ins} <= known for recipe in RECIPES.values())


def test_near_names_are_suggested_and_sizes_may_be_written_large() -> None:
    assert recipe_for("pretrain", "7B") is recipe_for("pretrain", "7b")
    with pytest.raises(UsageError) as caught:
        override(recipe_for("pretrain", "7b"), {"peak_rl": 1})
    assert caught.value.hint == "did you mean peak_lr?"
    with pytest.raises(UsageError) as caught:
        recipe_for("pretrian", "7b")
    assert "did you mean pretrain 7b?" in caught.value.hint


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        recipe_for("pretrain", "8b")
    assert "34b" in caught.value.hint
    assert "python" in caught.value.hint


def test_flops_and_time_of_a_worked_example() -> None:
    # 7B at 4,096 tokens: 6 x (6,738,546,688 - 32,016 x 4,096) + 6 x 32 x 4,096 x 4,096 per token.
    config = preset("7b")
    assert config.training_flops(4096) == 6 * 6_607_409_152 + 6 * 32 * 4096 * 4096
    plan = make_plan(
        recipe_for("pretrain", "7b"),
        config,
        [],
        micro_batch_size=1,
        dtype="bfloat16",
        peak_flops=0.0,
    )
    assert plan.seconds is None
    assert plan.flops == pytest.approx(2.14e22, rel=0.01)
    assert training_seconds(6e12, 1e12) == pytest.approx(10.0)


@pytest.mark.parametrize("size", SMALL_MODELS)
def test_a_tied_matrix_is_multiplied_and_an_untied_embedding_is_not(size: str) -> None:
    config = preset(size)
    context = 128
    head = config.vocab_size * config.dim
    blocks = config.parameters - head * (1 if config.tied else 2)
    expected = 6 * (blocks + head) + 6 * config.n_layers * config.dim * context
    assert config.training_flops(context) == expected


def test_memory_counts_weights_four_times_in_float32() -> None:
    config = preset("7b")
    parts = memory_bytes(config, 4096, 1, "bfloat16")
    states = parts["weights"] + parts["gradients"] + parts["optimizer moments"]
    assert states == 16 * config.parameters
    assert memory_bytes(config, 4096, 2, "bfloat16")["activations"] == 2 * parts["activations"]
    # Per token and layer: 2 x 4096 + 4 x 11008 numbers of 2 bytes, and 4096 of 30.
    layer = 2 * (2 * 4096 + 4 * 11008) + 30 * 4096
    assert parts["activations"] == 4096 * (32 * layer + 2 * 2 * 4096)
