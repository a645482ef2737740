"""Training steps recomputed with transformers' Llama and torch's AdamW, from rows to weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codecria.core.training.meter import read_metrics
from codecria.core.training.recipes import Recipe
from codecria.core.training.request import StageRequest
from codecria.core.training.resolve import resolve
from codecria.core.training.stage import Stage, run_stage
from codecria.data.rows.loader import RunRows
from codecria.data.rows.rows import IGNORE, Row
from codecria.data.tokenizer.tokenizer import Tokenizer

STEPS = 3
CONTEXT = 96

pytestmark = pytest.mark.usefixtures("tiny_preset")


@pytest.fixture(scope="module")
def init(extended: Tokenizer, random_model: Callable[..., Path]) -> Path:
    folder = random_model(extended, max_context=64)
    (folder / "codecria.json").unlink()  # made elsewhere: it may start any stage
    return folder


@pytest.fixture(scope="module")
def short(
    extended: Tokenizer,
    shard_writer: Callable[[Path, list[list[int]], Tokenizer], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Documents of some 5 to 40 tokens, several in every row."""
    folder = tmp_path_factory.mktemp("short") / "shards"
    texts = [f"def f{n}(x):\n    return x + {n}\n" * (1 + n % 3) for n in range(60)]
    shard_writer(folder, [extended.encode(t, bos=True, eos=True) for t in texts], extended)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    records = [{"instruction": f"Add {n}.", "output": f"x + {n}"} for n in range(40)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def expected_lr(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to the floor, said once more."""
    if step < recipe.warmup_steps:
        return recipe.peak_lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - 1 - recipe.warmup_steps)
    floor = recipe.peak_lr / 30
    return floor + (recipe.peak_lr - floor) * (1 + math.cos(math.pi * done)) / 2


def inputs_of(row: Row, *, document_mask: bool) -> dict[str, torch.Tensor]:
    """What transformers' model takes for a row: its mask of -inf and its positions."""
    T = len(row.ids)
    document = np.zeros(T, dtype=int)
    positions = np.arange(T)
    if document_mask:
        document = np.repeat(np.arange(len(row.segments)), row.segments)
        positions = np.concatenate([np.arange(n) for n in row.segments])
    seen = torch.from_numpy((document[:, None] == document[None, :]) & np.tri(T, dtype=bool))
    mask = torch.zeros(T, T).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {
        "input_ids": torch.from_numpy(row.ids.astype(np.int64))[None],
        "attention_mask": mask[None, None],
        "position_ids": torch.from_numpy(positions)[None],
    }


def recompute(stage: Stage, init: Path, published: Path) -> tuple[list[float], list[float], Any]:
    """Losses, gradient norms and weights of the run, by transformers and torch alone."""
    recipe = stage.run.recipe
    config = LlamaConfig.from_pretrained(published, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    model.load_state_dict(LlamaForCausalLM.from_pretrained(init).state_dict(), strict=True)
    matrices = [w for w in model.parameters() if w.ndim == 2]
    vectors = [w for w in model.parameters() if w.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-5,
    )
    rows = RunRows(
        stage.mixture,
        context=recipe.context,
        seed=recipe.seed,
        infilling=stage.vocabulary.infilling,
    )
    losses, norms = [], []
    for step in range(recipe.steps):
        batch = [rows.row(step * recipe.rows + i) for i in range(recipe.rows)]
        assert all(len(row.segments) > 2 for row in batch), "several documents lie in a row"
        count = sum(int((row.targets != IGNORE).sum()) for row in batch)
        total = torch.zeros(())
        for row in batch:
            logits = model(**inputs_of(row, document_mask=recipe.document_mask)).logits[0]
            targets = torch.from_numpy(row.targets.astype(np.int64))
            total = total + torch.nn.functional.cross_entropy(
                logits, targets, ignore_index=IGNORE, reduction="sum"
            )
        optimizer.zero_grad()
        (total / count).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        losses.append(float(total.detach()) / count)
        for group in optimizer.param_groups:
            group["lr"] = expected_lr(step, recipe)
        optimizer.step()
    return losses, norms, dict(model.named_parameters())


@pytest.mark.parametrize("document_mask", [False, True], ids=["plain-causal", "masked"])
@pytest.mark.parametrize("recipe", ["pretrain", "python", "fim", "lcft", "instruct"])
def test_three_steps_on_short_documents_agree_with_transformers_and_torch(
    recipe: str, document_mask: bool, init: Path, short: Path, chats: Path, tmp_path: Path
) -> None:
    # Kills: positions that restart where attention crosses documents, or run on where it does not.
    out = tmp_path / "run"
    instructs = recipe == "instruct"
    asked = StageRequest(
        recipe=recipe,
        data=[] if instructs else [str(short)],
        dialogs=[str(chats)] if instructs else [],
        replay=[f"{short}=0.3"] if instructs else [],
        init=init,
        steps=STEPS,
        changes={
            "context": CONTEXT,
            "batch_tokens": 2 * CONTEXT,
            "peak_lr": 2e-3,
            "document_mask": document_mask,
            **({"infill_scope": "context"} if recipe in ("fim", "lcft") else {}),
        },
        log_every=1,
        device="cpu",
        dtype="float32",
        compile="off",
    )
    stage = resolve(asked, out=out)
    assert stage.run.recipe.document_mask is document_mask
    run_stage(stage, out, report=lambda _: None, warn=pytest.fail, started=lambda _: None)
    losses, norms, theirs = recompute(stage, init, out / "model")
    records = [r for r in read_metrics(out / "metrics.jsonl") if "loss" in r]
    assert [r["loss"] for r in records] == pytest.approx(losses, rel=2e-6)
    assert [r["grad_norm"] for r in records] == pytest.approx(norms, rel=2e-5)
    before = LlamaForCausalLM.from_pretrained(init).state_dict()
    ours = LlamaForCausalLM.from_pretrained(out / "model").state_dict()
    apart = math.sqrt(sum(float((ours[n] - w.detach()).square().sum()) for n, w in theirs.items()))
    moved = math.sqrt(
        sum(float((before[n] - w.detach()).square().sum()) for n, w in theirs.items())
    )
    assert apart < 2e-4 * moved, f"weights differ by {apart / moved:.2%} of their change"
