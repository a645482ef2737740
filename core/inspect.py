"""What a folder holds, told as JSON values: shards, a run, a checkpoint, or a tokenizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.shards import MANIFEST_NAME, ShardSet, read_manifest
from codecria.data.tokenizer import Tokenizer

from .checkpoint import CONFIG_NAME, TOKENIZER_NAME, Checkpoint
from .resume import step_folders
from .run import METRICS_NAME, RUN_NAME, recorded
from .trainer import read_metrics


def describe(path: Path, *, verify: bool) -> dict[str, Any]:
    """Recognise a path by its content and describe it.

    Args:
        path: a folder, or a tokenizer.model.
        verify: also read the content and compare it with what was recorded.

    Returns:
        JSON values: "kind", "path", "facts" by name, and "problems", a list that is empty when
        nothing is missing or corrupt.

    Raises:
        UserError: it is nothing that is known here, or too damaged to describe.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        return _tokenizer(path)
    if (path / MANIFEST_NAME).is_file():
        return _shards(path, verify=verify)
    if (path / RUN_NAME).is_file():
        return _run(path, verify=verify)
    if (path / CONFIG_NAME).is_file():
        return _checkpoint(path)
    if (path / TOKENIZER_NAME).is_file():
        return _tokenizer(path)
    raise UserError(
        f"{path} is nothing codecria knows",
        hint=f"it looks for {MANIFEST_NAME} (shards), {RUN_NAME} (a run), {CONFIG_NAME}"
        f" (a checkpoint) or {TOKENIZER_NAME}",
    )


def document_text(path: Path, number: int) -> tuple[str, dict[str, Any]]:
    """Document `number` of a shard set's training split, as text, and what is known of it.

    Raises:
        UserError: there is no such document, or the shard set cannot be read.
    """
    shards = ShardSet.open(path)
    if not 0 <= number < shards.n_documents:
        raise UserError(
            f"{path} has no document {number}", hint=f"documents: 0 .. {shards.n_documents - 1}"
        )
    tokenizer = Tokenizer.load(path / TOKENIZER_NAME)
    framed = shards.document(number).tolist()
    return tokenizer.decode(framed[1:-1]), shards.metadata(number)


def _told(kind: str, path: Path, facts: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), "facts": facts, "problems": problems}


def _tokenizer(path: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.load(path)
    facts = {
        "vocabulary": tokenizer.vocab_size,
        "bos, eos": [tokenizer.bos_id, tokenizer.eos_id],
        "infilling ids": None if tokenizer.infill is None else asdict(tokenizer.infill),
        "encoding": tokenizer.fast_path,
        "digest": tokenizer.digest,
    }
    return _told("tokenizer", path, facts, [])


def _shards(path: Path, *, verify: bool) -> dict[str, Any]:
    manifest = read_manifest(path)
    problems: list[str] = []
    for split in manifest.splits:
        try:
            opened = ShardSet.open(path, split)
        except UserError as error:
            problems.append(error.message)
            continue
        if verify:
            problems += opened.verify()
    tokenizer = path / TOKENIZER_NAME
    if not tokenizer.is_file():
        problems.append(f"{TOKENIZER_NAME} is missing")
    elif verify and Tokenizer.load(tokenizer).digest != manifest.tokenizer.digest:
        problems.append(f"{TOKENIZER_NAME} is not the one the shards were encoded with")
    languages = Counter({k: v.get("tokens", 0) for k, v in manifest.languages.items()})
    facts: dict[str, Any] = {}
    for split, entry in manifest.splits.items():
        facts[split] = (
            f"{entry.tokens:,} tokens, {entry.documents:,} documents, {len(entry.shards)} shards"
        )
    facts |= {
        "sources": [source.get("name") for source in manifest.sources],
        "languages": dict(languages.most_common(8)),
        "vocabulary": manifest.tokenizer.vocab_size,
        "tokenizer": manifest.tokenizer.digest,
        "digest": manifest.digest,
    }
    return _told("shards", path, facts, problems)


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.open(path)
    problems = checkpoint.problems()
    config = checkpoint.config
    dtypes = Counter(dtype for _, dtype in checkpoint.shapes().values())
    facts: dict[str, Any] = {
        "parameters": f"{config.parameters:,}",
        "types": dict(dtypes),
        "shape": f"dim {config.dim}, {config.n_layers} layers, {config.n_heads} heads,"
        f" {config.n_kv_heads} key-value heads, feed-forward {config.hidden_dim}",
        "context": config.max_context,
        "rope_theta": config.rope_theta,
        "vocabulary": config.vocab_size,
        "bos, eos": [config.bos_id, config.eos_id],
    }
    if config.rope_scale != 1.0:
        facts["rope_scale"] = config.rope_scale
    if checkpoint.tokenizer_path is None:
        problems.append(f"{TOKENIZER_NAME} is missing")
    else:
        tokenizer = Tokenizer.load(checkpoint.tokenizer_path)
        facts["infilling ids"] = None if tokenizer.infill is None else asdict(tokenizer.infill)
        if tokenizer.vocab_size > config.vocab_size:
            problems.append(
                f"{TOKENIZER_NAME} has {tokenizer.vocab_size} pieces, the model"
                f" {config.vocab_size} rows"
            )
    if lineage := checkpoint.lineage():
        facts["lineage"] = lineage
    return _told("checkpoint", path, facts, problems)


def _run(path: Path, *, verify: bool) -> dict[str, Any]:
    page = recorded(path)
    assert page is not None, "describe found run.json"
    run = page["run"]
    recipe = run["recipe"]
    metrics = read_metrics(path / METRICS_NAME) if (path / METRICS_NAME).is_file() else []
    newest: dict[str, Any] = {}
    for entry in metrics:
        newest |= entry
    problems: list[str] = []
    saved = step_folders(path)
    published = path / "model"
    for folder in [*saved, *([published] if published.is_dir() else [])]:
        try:
            problems += [f"{folder.name}: {line}" for line in Checkpoint.open(folder).problems()]
        except UserError as error:
            problems.append(f"{folder.name}: {error.message}")
    for source in run["sources"]:
        try:
            shards = ShardSet.open(Path(source["path"]))
        except UserError as error:
            problems.append(f"data: {error.message}")
            continue
        if shards.digest != source["digest"]:
            problems.append(f"data: {source['path']} has changed since the run began")
        if verify:
            problems += [f"data: {line}" for line in shards.verify()]
    facts = {
        "recipe": f"{recipe['name']} {recipe['size']}",
        "step": newest.get("step", 0),
        "tokens": f"{newest.get('tokens', 0):,} of {recipe['tokens']:,}",
        "loss": newest.get("loss"),
        "validation loss": newest.get("validation_loss"),
        "epochs": newest.get("epochs"),
        "sources": {source["path"]: source["weight"] for source in run["sources"]},
        "checkpoints": [folder.name for folder in saved],
        "published": published.is_dir(),
        "environment": page["environment"],
    }
    return _told("run", path, facts, problems)
