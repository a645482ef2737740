"""Every number of every training stage, on one page, each with its source.

A `Recipe` is a frozen value; a stage differs from another by `dataclasses.replace`. Paper-size
recipes carry the paper's figures (PAPER section 2 and 4 name the table of each). Small sizes carry
ours, chosen so that they train well on one machine; they are marked as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from codecria.core.model.config import PAPER_MODELS, SMALL_MODELS
from codecria.data.errors import UsageError
from codecria.data.formats.infill import InfillFormat, Scope, Spans
from codecria.data.rows.dialog_rows import Learn


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One source of the paper's mixture (Code Llama, table 1).

    Attributes:
        name: what the source holds.
        share: of the tokens drawn.
        unique_tokens: tokens in the source, derived from the table's epochs; 0 where unknown.
    """

    name: str
    share: float
    unique_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a training stage does, from the first step to the last.

    Attributes:
        name: the stage.
        size: the model size the numbers are for.
        summary: one sentence for help texts and tables.
        source: where the numbers come from.
        tokens: tokens to train on; the steps follow.
        context: tokens of one row.
        batch_tokens: tokens of one optimiser step, a multiple of the context.
        peak_lr: learning rate at the end of the warm-up.
        schedule: how the rate falls after the warm-up: "cosine" over all steps, or "wsd"
            (warm-up, stable, decay): constant, then linear over the last part.
        decay_share: of the steps, the last part, in which the rate of "wsd" falls.
        min_lr_ratio: last learning rate over the peak.
        warmup_steps: steps of linear warm-up.
        betas, eps, weight_decay: of AdamW.
        clip_norm: the gradient's norm is scaled down to this.
        document_mask: attention within documents; else across the whole row.
        rope_theta: base of the rotary frequencies the model is given; None keeps the checkpoint's.
        rope_scale: linear scaling of the positions it is given; None keeps the checkpoint's.
        on_nonfinite: a loss or gradient that is not finite stops the run before the optimiser
            step, or that step is left out and counted.
        seed: of fresh weights and of the order of the data.
        follows: stages whose checkpoints it may start from; "scratch" stands for fresh weights. A
            checkpoint made elsewhere records no stage and is accepted, as Llama 2 is.
        keep_objective: documents are infilled as in the checkpoint's own stage; the infilling
            fields count only where they are set for the run.
        learn: the tokens of dialogs with loss: "answers" and what ends them, or "all".
        replay: share of the rows that are drawn from the replayed data, where there is some.
        infill_rate: probability that an eligible document is infilled; 0 for a stage without.
        infill_spm_share, infill_scope, infill_eos, infill_spans: see `InfillFormat`.
        lora_rank: rank of the adapter that is trained instead of the weights (LoRA); 0 for none.
        lora_alpha: the adapter's product is scaled by alpha / rank.
        lora_layers: the matrices that get one: "all" of the layers, those of "attention", or those
            of the feed-forward, "mlp".
        qlora: the frozen matrices of the layers are kept in 4 bits.
        new_row_noise: embedding rows of new tokens are the mean of the others plus normal noise of
            this many of their standard deviations.
        mixture: the paper's data mixture, for plans; the data trained on is named at run time.
        stand_ins: fields whose numbers the paper does not state for this stage and size; what is
            here stands in for them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    size: str
    summary: str
    source: str
    tokens: int
    context: int
    batch_tokens: int
    peak_lr: float
    schedule: Literal["cosine", "wsd"] = "cosine"  # Code Llama, section 2.6
    decay_share: float = 0.1  # ours; a tenth is customary
    min_lr_ratio: float = 1 / 30  # Code Llama, section 2.6
    warmup_steps: int = 1_000  # Code Llama, section 2.6
    betas: tuple[float, float] = (0.9, 0.95)  # Code Llama, section 2.6
    eps: float = 1e-5  # Llama 2, section 2.2; Code Llama does not say
    weight_decay: float = 0.1  # Llama 2, section 2.2; Code Llama does not say
    clip_norm: float = 1.0  # Llama 2, section 2.2; Code Llama does not say
    document_mask: bool = False
    rope_theta: float | None = None
    rope_scale: float | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    seed: int = 0
    follows: tuple[str, ...] = ("scratch", "pretrain")
    keep_objective: bool = False
    learn: Learn = "answers"  # Llama 2, section 3.1; Code Llama does not say
    replay: float = 0.0
    infill_rate: float = 0.0
    infill_spm_share: float = 0.5  # Code Llama, section 2.3
    infill_scope: Scope = "document"  # Code Llama, section 2.3
    infill_spans: Spans = "chars"  # Code Llama, section 2.3
    infill_eos: bool = True  # Code Llama does not say; every document ends with EOS
    lora_rank: int = 0
    lora_alpha: float = 32.0  # LoRA Without Regret: with alpha / rank the rate suits any rank
    lora_layers: Literal["all", "attention", "mlp"] = "all"  # LoRA Without Regret
    qlora: bool = False
    new_row_noise: float = 0.1  # Code Llama does not say
    mixture: tuple[Share, ...] = field(default=())
    stand_ins: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Optimiser steps that cover the tokens."""
        return math.ceil(self.tokens / self.batch_tokens)

    @property
    def rows(self) -> int:
        """Rows of one optimiser step."""
        return self.batch_tokens // self.context

    @property
    def decay_start(self) -> int:
        """Steps before the rate falls in the "wsd" schedule."""
        return max(self.warmup_steps, self.steps - math.ceil(self.decay_share * self.steps))

    @property
    def rope(self) -> dict[str, Any]:
        """What the stage changes of a model's rotary positions, by field of `ModelConfig`."""
        values = {"rope_theta": self.rope_theta, "rope_scale": self.rope_scale}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def infill(self) -> InfillFormat | None:
        """How documents are infilled, or None in a stage without."""
        if not self.infill_rate:
            return None
        return InfillFormat(
            rate=self.infill_rate,
            spm_share=self.infill_spm_share,
            scope=self.infill_scope,
            spans=self.infill_spans,
            eos=self.infill_eos,
        )

    def problems(self) -> list[str]:
        """What does not hold between the numbers, one line each."""
        rules = [
            (self.tokens >= 1, f"tokens {self.tokens} must be at least 1"),
            (self.context >= 2, f"context {self.context} must be at least 2"),
            (
                self.batch_tokens >= self.context and self.batch_tokens % self.context == 0,
                f"batch_tokens {self.batch_tokens} is not a multiple of context {self.context}",
            ),
            (self.peak_lr > 0, f"peak_lr {self.peak_lr} must be positive"),
            (0 <= self.min_lr_ratio <= 1, f"min_lr_ratio {self.min_lr_ratio} not in [0, 1]"),
            (0 < self.decay_share <= 1, f"decay_share {self.decay_share} not in (0, 1]"),
            (self.warmup_steps >= 0, f"warmup_steps {self.warmup_steps} is negative"),
            (
                all(0 <= beta < 1 for beta in self.betas),
                f"betas {self.betas} are not in [0, 1)",
            ),
            (self.eps > 0, f"eps {self.eps} must be positive"),
            (self.weight_decay >= 0, f"weight_decay {self.weight_decay} is negative"),
            (self.clip_norm > 0, f"clip_norm {self.clip_norm} must be positive"),
            (0 <= self.infill_rate <= 1, f"infill_rate {self.infill_rate} not in [0, 1]"),
            (
                0 <= self.infill_spm_share <= 1,
                f"infill_spm_share {self.infill_spm_share} not in [0, 1]",
            ),
            (
                not self.infill_rate or self.context >= INFILL_CONTEXT,
                f"context {self.context} has no room for infilling: at least {INFILL_CONTEXT}",
            ),
            (
                self.rope_theta is None or self.rope_theta > 1,
                f"rope_theta {self.rope_theta} must exceed 1",
            ),
            (
                self.rope_scale is None or self.rope_scale > 0,
                f"rope_scale {self.rope_scale} must be positive",
            ),
            (0 <= self.replay < 1, f"replay {self.replay} not in [0, 1)"),
            (self.new_row_noise >= 0, f"new_row_noise {self.new_row_noise} is negative"),
            (self.lora_rank >= 0, f"lora_rank {self.lora_rank} is negative"),
            (self.lora_alpha > 0, f"lora_alpha {self.lora_alpha} must be positive"),
            (bool(self.lora_rank) or not self.qlora, "qlora trains an adapter: set lora_rank"),
            (0 <= self.seed < 2**32, f"seed {self.seed} is not in 0 .. 2^32 - 1"),
        ]
        numbers = [self.peak_lr, self.eps, self.weight_decay, self.clip_norm, self.new_row_noise]
        numbers.append(self.lora_alpha)
        rules += [
            (math.isfinite(number), f"{number} is not a finite number")
            for number in (*numbers, self.rope_theta or 1.0, self.rope_scale or 1.0)
        ]
        return [message for holds, message in rules if not holds]


# Code Llama, table 1. The unique tokens are what the table's proportions and epochs imply for 500B
# tokens (PAPER section 2); a source of nearly no epoch stands with what 0.01 epochs imply.
CODE_MIXTURE = (
    Share(name="code", share=0.85, unique_tokens=425e9 / 2.03),
    Share(name="natural language about code", share=0.08, unique_tokens=40e9 / 1.39),
    Share(name="natural language", share=0.07, unique_tokens=35e9 / 0.01),
)
PYTHON_MIXTURE = (
    Share(name="python", share=0.75, unique_tokens=75e9 / 3.69),
    Share(name="code", share=0.10, unique_tokens=425e9 / 2.03),
    Share(name="natural language about code", share=0.10, unique_tokens=40e9 / 1.39),
    Share(name="natural language", share=0.05, unique_tokens=35e9 / 0.01),
)

INFILL_CONTEXT = 32  # ours: shorter rows would hold little but sentinels and reserved places
PAPER_CONTEXT = 4_096  # Code Llama, section 2.6
PAPER_BATCH_TOKENS = 1_024 * PAPER_CONTEXT  # "4M tokens" (DECISIONS)

PRETRAIN = Recipe(
    name="pretrain",
    size="7b",
    summary="Train on code, from a base model or from scratch.",
    source="Code Llama, sections 2.2 and 2.6, table 1",
    tokens=500_000_000_000,
    context=PAPER_CONTEXT,
    batch_tokens=PAPER_BATCH_TOKENS,
    peak_lr=3e-4,
    mixture=CODE_MIXTURE,
)
PYTHON = replace(
    PRETRAIN,
    name="python",
    summary="Specialise a code model on Python.",
    source="Code Llama, sections 2.2 and 2.6, table 1; batch, warm-up and floor as in code"
    " training",
    tokens=100_000_000_000,
    peak_lr=1e-4,
    follows=("pretrain",),
    mixture=PYTHON_MIXTURE,
    stand_ins=("batch_tokens", "warmup_steps", "min_lr_ratio"),
)
# Takes the place of code pretraining, on Llama 2; in a chain of our own, it follows a short
# pretraining that plays Llama 2.
FIM = replace(
    PRETRAIN,
    name="fim",
    summary="Train on code with the infilling objective, from a base model.",
    source="Code Llama, sections 2.2, 2.3 and 2.6, table 1",
    follows=("pretrain",),
    infill_rate=0.9,  # Code Llama, section 2.3
)
_WITHOUT_INFILLING = "34b"  # Code Llama, section 2.3: of the base models, this one alone

LONG_CONTEXT = 16_384  # Code Llama, section 2.4
LCFT = replace(
    PRETRAIN,
    name="lcft",
    summary="Fine-tune on long sequences, so that the model can use a long context.",
    source="Code Llama, section 2.4; mixture, warm-up and floor as in code training",
    tokens=10_000 * 128 * LONG_CONTEXT,  # section 2.6: 10,000 steps of 2M tokens
    context=LONG_CONTEXT,
    batch_tokens=128 * LONG_CONTEXT,  # section 2.6: "2M tokens" (DECISIONS)
    peak_lr=2e-5,  # section 2.6
    rope_theta=1e6,  # section 2.4
    follows=("fim",),
    infill_rate=FIM.infill_rate,
    keep_objective=True,  # the paper does not say; without it infilling is unlearned
    stand_ins=("warmup_steps", "min_lr_ratio"),
)
LCFT_PYTHON = replace(
    LCFT,
    name="lcft-python",
    summary="The same for a Python model.",
    follows=("python",),
    infill_rate=0.0,
    mixture=PYTHON_MIXTURE,
)
# Code Llama, section 2.6: (steps, rows of a batch). 3,000 steps are the base 7b's alone. The paper
# gives no numbers for 70b: the batch of 34b and the steps of 13b stand in.
_LCFT: dict[tuple[str, str], tuple[int, int]] = {
    ("lcft", "7b"): (3_000, 128),
    ("lcft", "13b"): (10_000, 128),
    ("lcft", "34b"): (11_000, 64),
    ("lcft", "70b"): (10_000, 64),
    ("lcft-python", "7b"): (10_000, 128),
    ("lcft-python", "13b"): (10_000, 128),
    ("lcft-python", "34b"): (11_000, 64),
}

INSTRUCT = replace(
    PRETRAIN,
    name="instruct",
    summary="Tune on dialogs, so that the model follows instructions.",
    source="Code Llama, section 2.5; rate as in Llama 2, section 3.1; warm-up and floor as in code"
    " training",
    tokens=5_000_000_000,  # Code Llama, section 2.6
    batch_tokens=524_288,  # section 2.6
    peak_lr=2e-5,
    document_mask=True,  # a dialog must not see its neighbour in the row
    follows=("lcft",),
    infill_rate=FIM.infill_rate,
    keep_objective=True,
    replay=0.08,  # section 2.5: 6 % code and 2 % natural language
    mixture=(
        Share(name="dialogs", share=0.92, unique_tokens=0),
        Share(name="code", share=0.06, unique_tokens=425e9 / 2.03),
        Share(name="natural language", share=0.02, unique_tokens=35e9 / 0.01),
    ),
    stand_ins=("peak_lr", "warmup_steps", "min_lr_ratio"),
)

_PAPER_PEAK_LR = {"7b": 3e-4, "13b": 3e-4, "34b": 1.5e-4, "70b": 1.5e-4}  # section 2.6

# Ours: (peak learning rate, context, batch tokens). The peak falls with width as is customary; a
# batch is small enough for thousands of steps on the 20 tokens a parameter that a run defaults to.
_SMALL: dict[str, tuple[float, int, int]] = {
    "1m": (3e-3, 256, 8_192),
    "4m": (2e-3, 512, 8_192),
    "15m": (1.5e-3, 512, 16_384),
    "42m": (1e-3, 1_024, 32_768),
    "110m": (6e-4, 1_024, 65_536),
    "1b": (4e-4, 2_048, 262_144),
}


# Combinations that the paper did not train, and why (PAPER section 1).
_NEVER_MADE: dict[tuple[str, str], tuple[str, str]] = {
    ("fim", _WITHOUT_INFILLING): (
        "the paper's 34b has no infilling: its code training is `pretrain`",
        "use `codecria pretrain --size 34b`",
    ),
    ("lcft-python", "70b"): (
        "the paper's Python 70b keeps a context of 4,096 tokens: it had no long-context stage",
        "use `codecria lcft --size 70b` for the base model",
    ),
}


def _paper(base: Recipe, size: str) -> Recipe:
    if (base.name, size) in _LCFT:
        steps, rows = _LCFT[base.name, size]
        batch = rows * base.context
        recipe = replace(base, size=size, tokens=steps * batch, batch_tokens=batch)
        if base is LCFT and size == _WITHOUT_INFILLING:
            return replace(recipe, follows=("pretrain",), infill_rate=0.0)
        if size == "70b":
            return replace(
                recipe,
                source="Code Llama, section 2.4, which gives neither batch nor steps for 70b: the"
                " batch of 34b and the steps of 13b stand in; warm-up and floor as in code"
                " training",
                stand_ins=("tokens", "batch_tokens", *recipe.stand_ins),
            )
        return recipe
    if base is INSTRUCT:
        if size == "70b":  # tuned from the Python model (Code Llama, section 2.5)
            return replace(base, size=size, follows=("python",), infill_rate=0.0)
        return replace(base, size=size, infill_rate=_infill_rate(size))
    code_training = base is not PYTHON
    rate = _PAPER_PEAK_LR[size] if code_training else base.peak_lr
    # The 70B models saw twice the tokens in code training (Code Llama, section 2.2), and Python 70B
    # came after the one with infilling.
    tokens = base.tokens * (2 if size == "70b" and code_training else 1)
    follows = ("fim",) if size == "70b" and base is PYTHON else base.follows
    return replace(base, size=size, peak_lr=rate, tokens=tokens, follows=follows)


def _infill_rate(size: str) -> float:
    return 0.0 if size == _WITHOUT_INFILLING else FIM.infill_rate


def _small(base: Recipe, size: str) -> Recipe:
    rate, context, batch = _SMALL[size]
    parameters = SMALL_MODELS[size].parameters
    recipe = replace(
        base,
        size=size,
        source="ours, for small models",
        stand_ins=(),
        tokens=20 * parameters,
        context=context,
        batch_tokens=batch,
        peak_lr=rate,
        document_mask=True,
        infill_scope="context",  # few documents are whole in a small window
    )
    if base is PYTHON:
        # A specialisation starts from a trained model: a third of the rate, as in the paper.
        recipe = replace(recipe, peak_lr=rate / 3, follows=("pretrain", "fim"))
    elif base in (LCFT, LCFT_PYTHON):
        # Four times the window and a small part of the tokens, as in the paper; over so few steps
        # its fifteenth of the rate leaves a small model where it was.
        recipe = replace(
            recipe,
            tokens=2 * parameters,
            context=4 * context,
            peak_lr=rate / 5,
            document_mask=False,
            follows=("pretrain", "fim") if base is LCFT else base.follows,
        )
    elif base is INSTRUCT:
        recipe = replace(
            recipe,
            tokens=2 * parameters,
            peak_lr=rate / 10,
            follows=("pretrain", "fim", "lcft", "python", "lcft-python"),
        )
    return replace(recipe, warmup_steps=warmup_for(recipe.steps))


def warmup_for(steps: int) -> int:
    """Warm-up of a small run: the paper's 1,000 steps, at most 5 % of the run (DECISIONS)."""
    return min(1_000, max(1, steps // 20))


RECIPES: dict[tuple[str, str], Recipe] = {
    (base.name, size): (_paper if size in PAPER_MODELS else _small)(base, size)
    for base in (PRETRAIN, FIM, PYTHON, LCFT, LCFT_PYTHON, INSTRUCT)
    for size in (*PAPER_MODELS, *SMALL_MODELS)
    if (base.name, size) not in _NEVER_MADE
}


def recipe_for(name: str, size: str) -> Recipe:
    """The recipe of stage `name` for a model size.

    Raises:
        UsageError: there is none.
    """
    size = size.lower()  # 7B is 7b
    if (name, size) in _NEVER_MADE:
        why, instead = _NEVER_MADE[name, size]
        raise UsageError(f"there is no recipe {name} {size}: {why}", hint=instead)
    if (name, size) not in RECIPES:
        names = sorted({known for known, _ in RECIPES})
        sizes = list(dict.fromkeys(s for known, s in RECIPES if known == name or name not in names))
        near = [*get_close_matches(name, names, 1), *get_close_matches(size, sizes, 1)]
        meant = f"did you mean {' '.join(near)}? " if len(near) == 2 else ""
        raise UsageError(
            f"there is no recipe {name!r} for size {size!r}",
            hint=f"{meant}recipes: {', '.join(names)}; sizes: {', '.join(sizes)}",
        )
    return RECIPES[name, size]


def parent_of(recipe: Recipe) -> Recipe | None:
    """The recipe of the stage that comes before it in the family, or None where it starts one."""
    before = [name for name in recipe.follows if name not in ("scratch", recipe.name)]
    return RECIPES.get((before[0], recipe.size)) if before else None


# The fields that say how documents are infilled: what a checkpoint hands on to its children.
OBJECTIVE = ("infill_rate", "infill_spm_share", "infill_scope", "infill_eos", "infill_spans")
