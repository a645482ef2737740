"""The model card: what a published model is, what it was made from, and what it is not.

Everything in it is taken from the run, and only what was measured is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codecria.data.rows.mixture import Mixture

from .recipes import INSTRUCT, Recipe
from .run import RunConfig

MOST_ROWS = 12  # of a table of languages or licences; the manifest of the data has all


def model_card(
    run: RunConfig,
    mixture: Mixture,
    *,
    lineage: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    device: str,
) -> str:
    """The card of a finished run, in Markdown with the hubs' front matter.

    Args:
        run: what was done.
        mixture: the training data.
        lineage: of the checkpoint.
        metrics: the records of metrics.jsonl.
        device: what it was trained on.
    """
    recipe, model = run.recipe, run.model
    newest: dict[str, Any] = {}
    for record in metrics:
        newest |= record
    tokens = recipe.steps * recipe.batch_tokens
    flops = model.training_flops(recipe.context, frozen=recipe.lora_rank > 0) * tokens
    seconds = training_seconds_of(metrics)
    parts = [
        "---",
        f"library_name: {'peft' if recipe.lora_rank else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags: [code, llama, codecria]",
        "---",
        "",
        f"# {recipe.name} {recipe.size}",
        "",
        f"{recipe.summary} Made with codecria, which follows Code Llama (arXiv 2308.12950); the"
        f" numbers: {recipe.source}.",
        "",
        *_table(
            ("", ""),
            [
                ("parameters", f"{model.parameters:,}"),
                ("layers, width, heads", f"{model.n_layers}, {model.dim}, {model.n_heads}"),
                ("vocabulary", f"{model.vocab_size:,}"),
                ("context", f"{model.max_context:,} tokens"),
                ("rotary base", f"{model.rope_theta:g}"),
            ],
        ),
        "",
        "## How it was made",
        "",
        *_stages(lineage),
        "",
        *_recipe(recipe),
        "",
        "## Data",
        "",
        *_data(run, mixture, newest.get("epochs") or {}),
        "",
        "## Compute",
        "",
        f"This stage alone: {tokens:,} tokens, {flops:.3g} FLOPs by 6 P + 6 L d T a token, "
        + (f"{seconds / 3600:.2f} hours of training" if seconds else "a time that was not recorded")
        + f" on {device}, {run.dtype}. Energy was not measured.",
        "",
        "## Results",
        "",
        *_results(newest),
        "",
        "## Use",
        "",
        *_use(recipe),
        "",
        "## Limits",
        "",
        "- Only losses on held-out documents were measured here. `codecria evaluate` measures "
        "whether its code works.",
        "- It can repeat code it was trained on, under that code's licence, and write code that is "
        "wrong or unsafe: run none of it outside a sandbox.",
        "- No training for safety, and no test for toxic or biased answers.",
        "- The publisher must choose a licence for the weights, considering the licences of the "
        "data above.",
        "",
    ]
    return "\n".join(parts)


def training_seconds_of(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training, without saving and evaluating, from a run's records.

    >>> training_seconds_of([{"tokens": 100, "tokens_per_s": 50.0}])
    2.0
    """
    seconds, before = 0.0, 0
    for record in metrics:
        if record.get("tokens_per_s"):
            seconds += (record["tokens"] - before) / record["tokens_per_s"]
            before = record["tokens"]
    return seconds


def stages_of(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages a checkpoint went through, oldest first.

    The oldest has a parent of its own where it started from a checkpoint made elsewhere.
    """
    own = {key: value for key, value in lineage.items() if key != "ancestors"}
    return [*reversed(lineage.get("ancestors", [])), own]


def _stages(lineage: Mapping[str, Any]) -> list[str]:
    stages = stages_of(lineage)
    lines = (
        [] if not stages[0].get("parent") else [f"0. a checkpoint, digest {stages[0]['parent']}"]
    )
    for number, stage in enumerate(stages, start=1):
        data = ", ".join(digest[:12] for digest in stage.get("data", []))
        lines.append(
            f"{number}. {stage.get('recipe')} {stage.get('size', '')}: {stage.get('tokens', 0):,}"
            f" tokens, data {data}"
        )
    return lines


def _recipe(recipe: Recipe) -> list[str]:
    rows = [
        ("context", f"{recipe.context:,}"),
        ("batch", f"{recipe.batch_tokens:,} tokens"),
        ("steps", f"{recipe.steps:,}"),
        (
            "learning rate",
            f"{recipe.peak_lr:g}, {recipe.warmup_steps:,} warm-up steps, {_decay(recipe)} to"
            f" {recipe.peak_lr * recipe.min_lr_ratio:g}",
        ),
        (
            "AdamW",
            f"betas {recipe.betas[0]:g} and {recipe.betas[1]:g}, epsilon {recipe.eps:g}, weight"
            f" decay {recipe.weight_decay:g}, gradients clipped at {recipe.clip_norm:g}",
        ),
        ("attention", "within documents" if recipe.document_mask else "across the window"),
        ("seed", str(recipe.seed)),
    ]
    if recipe.lora_rank:
        rows.append(
            (
                "adapter",
                f"rank {recipe.lora_rank}, alpha {recipe.lora_alpha:g}, matrices"
                f" {recipe.lora_layers}{', base in 4 bits' if recipe.qlora else ''}",
            )
        )
    if recipe.infill_rate:
        rows.append(
            (
                "infilling",
                f"{recipe.infill_rate:.0%} of eligible documents, {recipe.infill_spm_share:.0%} of"
                f" them suffix first, scope {recipe.infill_scope}, cuts at {recipe.infill_spans}",
            )
        )
    return _table(("recipe", ""), rows)


def _decay(recipe: Recipe) -> str:
    if recipe.schedule == "cosine":
        return "cosine"
    return f"constant, over the last {recipe.decay_share:.0%} of the steps linear"


def _data(run: RunConfig, mixture: Mixture, epochs: Mapping[str, float]) -> list[str]:
    rows = []
    languages: dict[str, int] = {}
    licences: dict[str, int] = {}
    for source, spec in zip(mixture.sources, run.sources, strict=True):
        manifest = source.shards.manifest
        rows.append(
            (
                source.name.rstrip("/").rpartition("/")[2],
                f"{source.weight:.1%}",
                f"{source.shards.n_documents:,}",
                f"{source.shards.n_tokens:,}",
                f"{epochs[source.name]:.2f}" if source.name in epochs else "",
                spec.digest[:12],
            )
        )
        for counts, found in ((languages, manifest.languages), (licences, manifest.licences)):
            for name, count in found.items():
                counts[name] = counts.get(name, 0) + count.get("documents", 0)
    lines = _table(("source", "share", "documents", "tokens", "epochs", "digest"), rows)
    for title, counts in (("language", languages), ("licence", licences)):
        if counts:
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            shown = [(name, f"{count:,}") for name, count in ranked[:MOST_ROWS]]
            if len(ranked) > MOST_ROWS:
                rest = sum(count for _, count in ranked[MOST_ROWS:])
                shown.append((f"{len(ranked) - MOST_ROWS} more", f"{rest:,}"))
            lines += ["", *_table((title, "documents"), shown)]
    return lines


def _results(newest: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, title in (
        ("validation_loss", "validation loss, nats a token"),
        ("validation_infill_loss", "the same of infilled documents"),
    ):
        if newest.get(name) is not None:
            rows.append((title, f"{newest[name]:.4f}"))
    return _table(("held-out documents", ""), rows) if rows else ["There was nothing held out."]


def _use(recipe: Recipe) -> list[str]:
    if recipe.lora_rank:
        fill = "--file code.py --at 10:5"
        return [
            f"    codecria generate --model BASE --adapter FOLDER {fill}",
            "    codecria convert BASE MERGED --adapter FOLDER",
            "",
            "The folder is an adapter in PEFT's layout; BASE is the model it was trained from.",
        ]
    lines = ['    codecria generate --model FOLDER "def fibonacci("']
    if recipe.infill_rate:
        lines.append("    codecria generate --model FOLDER --file code.py --at 10:5")
    if recipe.name == INSTRUCT.name:
        lines.append('    codecria generate --model FOLDER --chat "Reverse a list."')
    return [*lines, "", "The folder is in the Hugging Face Llama layout and opens as such."]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
