"""Describe what a path holds as JSON values: shards, a run, a checkpoint, GGUF, or a tokenizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codecria.core.checkpoints.adapters.folder import CONFIG_NAME as ADAPTER_NAME
from codecria.core.checkpoints.adapters.folder import PUBLISHED_ADAPTER, Adapter
from codecria.core.checkpoints.adapters.weights import MergedWeights
from codecria.core.checkpoints.checkpoint import (
    TOKENIZER_NAME,
    Checkpoint,
    read_config,
)
from codecria.core.checkpoints.ends import CONFIG_NAME
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.checkpoints.formats.hugging_face import TOKENIZER_JSON_NAME
from codecria.core.checkpoints.formats.meta import PARAMS_NAME, is_meta_folder, read_params
from codecria.core.checkpoints.probe import contradictions
from codecria.core.checkpoints.recognise import not_a_checkpoint, snapshot_of
from codecria.core.model.config import ModelConfig
from codecria.core.training.meter import read_metrics
from codecria.core.training.resume import step_folders
from codecria.core.training.run import METRICS_NAME, PUBLISHED, RUN_NAME, recorded
from codecria.data.errors import UserError
from codecria.data.files import digest_file, is_lfs_pointer
from codecria.data.gguf import is_gguf
from codecria.data.rows.shards import (
    MANIFEST_NAME,
    SETS_NAME,
    ShardSet,
    read_manifest,
    set_weights,
    sets_in,
)
from codecria.data.tokenizer.extension import INFILL_EXTENSION
from codecria.data.tokenizer.tokenizer import Tokenizer


def describe(path: Path, *, verify: bool, adapter: Path | None = None) -> dict[str, Any]:
    """Recognise a path by its content and describe it.

    Args:
        path: a folder, or a tokenizer.model.
        verify: also read the content and compare it with what was recorded.
        adapter: an adapter of the checkpoint at the path: they are described together.

    Returns:
        JSON values: "kind" ("shards", "shard sets", "run", "checkpoint", "adapter", "gguf" or
        "tokenizer"),
        "path", "facts" by name, and "problems": a list, empty when nothing is missing or corrupt.

    Raises:
        UserError: it is nothing that is known here, or too damaged to describe.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist", hint="check the path")
    cached = snapshot_of(path)
    if cached is not None:
        path = cached
    other = path.suffix in (".safetensors", ".json") and path.name != TOKENIZER_JSON_NAME
    if path.is_file() and (other or is_lfs_pointer(path)):
        raise not_a_checkpoint(path)
    if path.is_file():
        return _gguf(path, verify=verify) if is_gguf(path) else _tokenizer(path)
    if (path / SETS_NAME).is_file():
        return _sets(path, verify=verify)
    if (path / MANIFEST_NAME).is_file():
        return _shards(path, verify=verify)
    if (path / RUN_NAME).is_file():
        return _run(path, verify=verify)
    if adapter is not None or (path / ADAPTER_NAME).is_file():
        return _adapter(path, adapter, verify=verify)
    if (path / CONFIG_NAME).is_file() or is_meta_folder(path):
        return _checkpoint(path, verify=verify)
    if any((path / name).is_file() for name in (TOKENIZER_NAME, TOKENIZER_JSON_NAME)):
        return _tokenizer(path)
    error = not_a_checkpoint(path)
    if not error.message.endswith(f"no {PARAMS_NAME}"):
        raise error
    raise UserError(
        f"{path} is nothing that codecria makes or reads",
        hint=f"it looks for {MANIFEST_NAME} (shards), {RUN_NAME} (a run), {CONFIG_NAME}"
        f" or {PARAMS_NAME} (a checkpoint) or {TOKENIZER_NAME}",
    )


def document_text(path: Path, number: int, split: str = "train") -> tuple[str, dict[str, Any]]:
    """Document `number` of a split of a shard set, as text, and what is known of it.

    Raises:
        UserError: there is no such document, or the shard set cannot be read.
    """
    shards = ShardSet.open(path, split)
    if not 0 <= number < shards.n_documents:
        raise UserError(
            f"{path} has no document {number}", hint=f"documents: 0 .. {shards.n_documents - 1}"
        )
    tokenizer = Tokenizer.load(path / TOKENIZER_NAME)
    framed = shards.document(number).tolist()
    return tokenizer.decode(framed[1:-1]), shards.metadata(number)


def _description(
    kind: str, path: Path, facts: dict[str, Any], problems: list[str]
) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), "facts": facts, "problems": problems}


def _tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a model or a user must know of a tokenizer."""
    return {
        "vocabulary": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "unk_id": tokenizer.unk_id,
        "pad_id": tokenizer.pad_id,
        "infill_ids": None if tokenizer.infill is None else asdict(tokenizer.infill),
        "step_id": tokenizer.step_id,
        "added_tokens": tokenizer.pieces(tokenizer.added),
        "digest": tokenizer.digest,
    }


def _tokenizer(path: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.load(path)
    facts = _tokenizer_facts(tokenizer) | {"encoding": tokenizer.fast_path}
    return _description("tokenizer", path, facts, [])


def _sets(path: Path, *, verify: bool) -> dict[str, Any]:
    weights = set_weights(path)
    facts: dict[str, Any] = {}
    problems: list[str] = []
    for name, folder in sets_in(path).items():
        described = _shards(folder, verify=verify)
        facts[name] = {key: described["facts"][key] for key in ("documents", "tokens", "digest")}
        if name in weights:
            facts[name]["weight"] = weights[name]
        problems += [f"{name}: {line}" for line in described["problems"]]
    return _description("shard sets", path, facts, problems)


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
    elif verify and digest_file(tokenizer) != manifest.tokenizer.digest:
        problems.append(f"{TOKENIZER_NAME} is not the one the shards were encoded with")
    facts = {
        "documents": sum(split.documents for split in manifest.splits.values()),
        "tokens": sum(split.tokens for split in manifest.splits.values()),
        "splits": {
            name: {
                "documents": split.documents,
                "tokens": split.tokens,
                "shards": len(split.shards),
            }
            for name, split in manifest.splits.items()
        },
        "sources": manifest.sources,
        "languages": manifest.languages,
        "licences": manifest.licences,
        "dtype": manifest.dtype,
        "tokenizer": asdict(manifest.tokenizer),
        "recipe": manifest.recipe,
        "digest": manifest.digest,
    }
    return _description("shards", path, facts, problems)


def _model_facts(config: ModelConfig) -> dict[str, Any]:
    shape = asdict(config)
    first = {
        "parameters": config.parameters,
        "context": shape.pop("max_context"),
        "vocabulary": shape.pop("vocab_size"),
    }
    if config.llama3 is None:
        del shape["llama3"]
    return first | shape


def _checkpoint(path: Path, *, verify: bool) -> dict[str, Any]:
    meta = not (path / CONFIG_NAME).is_file()
    layout = "Meta" if meta else "Hugging Face"
    try:
        checkpoint = Checkpoint.open(path)
        problems = checkpoint.problems()
    except UserError as error:
        # Weights are missing or damaged; the shape is known all the same.
        facts = read_params(path) if meta else _model_facts(read_config(path))
        return _description("checkpoint", path, {"layout": layout} | facts, [error.message])
    config = checkpoint.config
    weights: Counter[str] = Counter()
    for part in checkpoint.weights.stored.values():
        weights[part.dtype] += math.prod(part.shape)
    files = checkpoint.weights.files
    facts = _model_facts(config) | {
        "layout": layout,
        "weights": dict(weights),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }
    sound = not problems
    tokenizer: Tokenizer | None = None
    if checkpoint.tokenizer_path is None:
        problems.append(f"{TOKENIZER_NAME} is missing: it cannot complete text")
    else:
        tokenizer, found = _with_tokenizer(checkpoint.tokenizer_path, config, facts)
        problems += found
    facts["end_ids"] = list(checkpoint.end_ids(tokenizer))
    facts["chat_template"] = bool(checkpoint.chat_template())
    facts["lineage"] = checkpoint.lineage()
    if verify:
        damage = checkpoint.verify()
        problems += damage
        if (
            sound
            and not damage
            and tokenizer is not None
            and tokenizer.vocab_size <= config.vocab_size
        ):
            problems += contradictions(checkpoint.weights, config, tokenizer)
    return _description("checkpoint", path, facts, problems)


def _adapter(path: Path, named: Path | None, *, verify: bool) -> dict[str, Any]:
    """An adapter folder, with its base where that is named or at its place."""
    adapter = Adapter.open(named or path)
    first = next(iter(adapter.pairs.values()), None)
    facts: dict[str, Any] = {
        "rank": adapter.rank,
        "scale": None if first is None else first.scale,
        "adapter_weights": adapter.parameters,
        "matrices": len(adapter.pairs),
        "new_rows": {name: len(ids) for name, (ids, _) in adapter.rows.items()},
        "base": adapter.base.get("path") or adapter.base_name or None,
        "base_digest": adapter.base.get("digest"),
        "base_tokenizer": adapter.base.get("tokenizer"),
        "base_in_4_bits": adapter.base.get("four_bits", False),
    }
    problems = adapter.problems()
    try:
        checkpoint = Checkpoint.open(path) if named is None else Checkpoint.open(path, named)
    except UserError as error:
        problems.append(error.message)
    else:
        facts |= _model_facts(checkpoint.config)
        facts["lineage"] = checkpoint.lineage()
        if verify:
            problems += [line for line in checkpoint.verify() if line not in problems]
            assert isinstance(checkpoint.weights, MergedWeights), "opened with its adapter"
            base = Checkpoint.open(checkpoint.folder)
            if adapter.base.get("digest") not in (None, base.digest()):
                problems.append(f"{base.folder} is not the base that it was trained from")
    return _description("adapter", adapter.folder, facts, problems)


def _gguf(path: Path, *, verify: bool) -> dict[str, Any]:
    opened = GgufWeights(path)
    weights: Counter[str] = Counter()
    for part in opened.stored.values():
        weights[part.dtype] += math.prod(part.shape)
    facts = _model_facts(opened.facts.config) | {
        "weights": dict(weights),
        "bytes": path.stat().st_size,
        "special_ids": opened.special_ids(),
        "end_ids": list(opened.facts.ends),
        "chat_template": bool(opened.facts.chat_template),
        "lineage": opened.facts.lineage,
    }
    config = opened.facts.config
    problems = opened.problems(config)
    sound = not problems
    tokenizer: Tokenizer | None = None
    if opened.tokenizer_obstacle is not None:
        problems.append(f"its tokenizer cannot be read: {opened.tokenizer_obstacle}")
    else:
        tokenizer, found = _with_tokenizer(path, config, facts)
        problems += found
    if verify and sound:
        damage = opened.not_finite()
        problems += damage
        if not damage and tokenizer is not None and tokenizer.vocab_size <= config.vocab_size:
            problems += contradictions(opened, config, tokenizer)
    return _description("gguf", path, facts, problems)


def _with_tokenizer(
    path: Path, config: ModelConfig, facts: dict[str, Any]
) -> tuple[Tokenizer | None, list[str]]:
    """Add a checkpoint's tokenizer to its facts; the tokenizer, and what does not fit the model."""
    try:
        tokenizer = Tokenizer.load(path)
    except UserError as error:
        return None, [error.message]
    facts["tokenizer"] = _tokenizer_facts(tokenizer)
    problems = [
        f"{name} is {ours} in the model's shape and {theirs} in {TOKENIZER_NAME}"
        for name, ours, theirs in (
            ("bos_id", config.bos_id, tokenizer.bos_id),
            ("eos_id", config.eos_id, tokenizer.eos_id),
        )
        if ours != theirs
    ]
    sizes = (
        f"{TOKENIZER_NAME} has {tokenizer.vocab_size} pieces, the model {config.vocab_size} rows"
    )
    if tokenizer.vocab_size > config.vocab_size:
        problems.append(sizes)
    elif tokenizer.infill is None and config.vocab_size == tokenizer.vocab_size + len(
        INFILL_EXTENSION
    ):
        problems.append(f"{sizes}: the infilling pieces are missing from it")
    return tokenizer, problems


def _data_of(run: Path, source: Mapping[str, Any]) -> Path:
    """The shard set of a run's source; that of a file of dialogs lies in the run's own folder."""
    for made in sorted((run / "dialogs").glob(f"*/{MANIFEST_NAME}")):
        if read_manifest(made.parent).digest == source["digest"]:
            return made.parent
    # As given, a path may be relative to a working directory that is not today's.
    folders = [Path(source[key]) for key in ("folder", "path") if key in source]
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


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
    published = path / (PUBLISHED_ADAPTER if recipe.get("lora_rank") else PUBLISHED)
    for folder in [*saved, *([published] if published.is_dir() else [])]:
        try:
            checkpoint = Checkpoint.open(folder)
            found = checkpoint.problems() + (checkpoint.verify() if verify else [])
        except UserError as error:
            found = [error.message]
        problems += [f"{folder.name}: {line}" for line in found]
    for source in run["sources"]:
        try:
            shards = ShardSet.open(_data_of(path, source))
        except UserError as error:
            problems.append(f"data: {error.message}")
            continue
        if shards.digest != source["digest"]:
            problems.append(f"data: {source['path']} has changed since the run began")
        if verify:
            problems += [f"data: {line}" for line in shards.verify()]
    facts = {
        "recipe": recipe["name"],
        "size": recipe["size"],
        "step": newest.get("step", 0),
        "tokens": newest.get("tokens", 0),
        "tokens_wanted": recipe["tokens"],
        "loss": newest.get("loss"),
        "validation_loss": newest.get("validation_loss"),
        "epochs": newest.get("epochs"),
        "model": _model_facts(ModelConfig.from_record(run["model"])),
        "dtype": run["dtype"],
        "sources": run["sources"],
        "checkpoints": [folder.name for folder in saved],
        "published": published.is_dir(),
        "environment": page["environment"],
    }
    return _description("run", path, facts, problems)
