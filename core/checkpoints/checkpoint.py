"""Checkpoints: a folder in the Hugging Face Llama layout or in Meta's, or a GGUF file.

The folder that is written (writing.py), whole or absent:

    config.json                    the shape (core/model/config.py)
    model.safetensors              weights under the Hugging Face names, or several files
    model.safetensors.index.json   and which file holds which weight, where they are several
    tokenizer.model                with tokenizer_config.json and generation_config.json
    README.md                      the model card of a finished run (core/training/card.py)
    codecria.json                  lineage: recipe, step, data digest, parent; the shape again;
                                   digests of the files (ours alone)

transformers, vLLM and llama.cpp's converter open it as it is, and the checkpoints they publish open
here, and Meta's releases too (formats/). Weights are mapped from disk: nothing is copied until
it is used or converted. Opening imports no PyTorch; loading a `Transformer` and writing do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecria.core.checkpoints.adapters.folder import (
    ADAPTER_KEY,
    Adapter,
    adapter_folder,
    split_adapter,
)
from codecria.core.checkpoints.adapters.weights import MergedWeights, adapted
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.checkpoints.formats.hugging_face import (
    TOKENIZER_JSON_NAME,
    placed_weights,
    read_chat_template,
)
from codecria.core.checkpoints.formats.layout import (
    EMBEDDING,
    OUTPUT,
    shapes_of,
)
from codecria.core.checkpoints.formats.meta import (
    MetaWeights,
    checklist,
    is_meta_folder,
    read_meta_config,
)
from codecria.core.checkpoints.formats.packed import (
    PackedWeights,
    is_packed,
)
from codecria.core.checkpoints.formats.weights import SafetensorsWeights, Weights
from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError
from codecria.data.files import (
    digest_bytes,
    digest_file,
    digest_json,
    read_json,
)
from codecria.data.gguf import is_gguf
from codecria.data.tokenizer.tokenizer import Tokenizer

from .ends import CONFIG_NAME, ENDS_KEY, LINEAGE_NAME, end_ids, sorted_ends
from .recognise import not_a_checkpoint, refuse_quantised, snapshot_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from codecria.core.model.transformer import Transformer

TOKENIZER_NAME = "tokenizer.model"
DIGESTS_KEY, MODEL_KEY = "files", "model"  # in codecria.json, beside the lineage


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder or GGUF file that was found to be a checkpoint; open one with `Checkpoint.open`.

    Attributes:
        folder: where it lies; a GGUF file itself.
        config: its shape.
        weights: where they lie, in any layout; with an adapter, merged as they are read.
        adapter: what it is adapted by, if anything.
    """

    folder: Path
    config: ModelConfig
    weights: Weights
    adapter: Adapter | None = None

    @classmethod
    def open(cls, path: Path, adapter: Path | None = None) -> Checkpoint:
        """Open a checkpoint folder of either layout, one published in a run folder, or a GGUF file.

        MODEL+ADAPTER is a model with an adapter applied to it. An adapter folder alone opens with
        the base that it names, where that is still at its place.

        Args:
            path: the folder.
            adapter: the folder of an adapter to apply to it.

        Raises:
            UserError: it is none, or parts of it are missing; the adapter belongs to another model.
        """
        if adapter is None:
            path, adapter = split_adapter(path)
        if adapter is not None:
            return cls.open(path).with_adapter(Adapter.open(adapter))
        named = adapter_folder(path)
        if named is not None and _part(named, ADAPTER_KEY):
            own = Adapter.open(named)
            return cls.open(_base_of(own, path)).with_adapter(own)
        if is_gguf(path):
            file = GgufWeights(path)
            return cls(path, file.facts.config, file)
        folder = resolve(path)
        if (folder / CONFIG_NAME).is_file():
            config, packed = _read_config(folder)
            placed = placed_weights(folder)
            refuse_quantised(folder, {}, placed)
            weights: Weights = (
                PackedWeights(placed, config) if packed else SafetensorsWeights(placed)
            )
        else:
            meta = MetaWeights(folder)
            weights, config = meta, _as_recorded(read_meta_config(folder, meta), folder)
        return cls(folder, _as_stored(config, weights), weights)

    def with_adapter(self, adapter: Adapter) -> Checkpoint:
        """This checkpoint as the base of an adapter.

        Raises:
            UserError: the adapter belongs to another model.
        """
        if self.adapter is not None:
            raise UserError(
                f"{self.adapter.folder} is an adapter itself: none can be put on top of it",
                hint=f"merge it first: codecria convert {self.adapter.folder} MERGED",
            )
        config, weights = adapted(self.weights, self.config, adapter, str(self.folder))
        return replace(self, config=config, weights=weights, adapter=adapter)

    @property
    def folders(self) -> list[Path]:
        """Where its files lie, the first that has one counting: its adapter's, then its own."""
        return [*([self.adapter.folder] if self.adapter is not None else []), self.folder]

    @property
    def tokenizer_path(self) -> Path | None:
        """Its tokenizer.model, a tokenizer.json that lies there alone, or its GGUF file.

        None where it has none that can be read.
        """
        names = (TOKENIZER_NAME, TOKENIZER_JSON_NAME)
        paths = [folder / name for folder in self.folders for name in names]
        base = self._base_weights
        if isinstance(base, GgufWeights) and not base.tokenizer_obstacle:
            paths.append(self.folder)
        return next((path for path in paths if path.is_file()), None)

    def chat_template(self) -> str:
        """Its chat template in Jinja; empty where it has none."""
        found = next(filter(None, map(read_chat_template, filter(Path.is_dir, self.folders))), "")
        base = self._base_weights
        return found or (base.facts.chat_template if isinstance(base, GgufWeights) else "")

    def end_ids(self, tokenizer: Tokenizer | None) -> tuple[int, ...]:
        """The ids that end a completion, EOS first; every use asks here.

        Args:
            tokenizer: the checkpoint's, or None where it has none.

        Raises:
            UserError: a file that names ids is damaged.
        """
        if isinstance(self.weights, GgufWeights):
            return sorted_ends(self.weights.facts.ends, self.config, tokenizer)
        return end_ids(self.folder, self.config, tokenizer)

    def lineage(self) -> dict[str, Any]:
        """What it was made from, as recorded with it; empty for others' checkpoints."""
        own = (DIGESTS_KEY, MODEL_KEY, ENDS_KEY, ADAPTER_KEY)
        if self.adapter is not None:
            page = dict(self.adapter.record)
        elif isinstance(self.weights, GgufWeights):
            return dict(self.weights.facts.lineage)
        else:
            page = _page(self.folder)
        return {key: value for key, value in page.items() if key not in own}

    def verify(self) -> list[str]:
        """Read every weight and list what is not as it was written, or is no number.

        Raises:
            UserError: a weights file is damaged or incomplete.
        """
        lines = []
        for name, expected in sorted(_part(self.folder, DIGESTS_KEY).items()):
            path = self.folder / name
            if not path.is_file():
                lines.append(f"{name} is missing")
            elif digest_file(path) != expected:
                lines.append(f"{name} is not the file that was written")
        if self.adapter is not None:
            lines += self.adapter.problems()
        declared = asdict(self._base_config)
        lines += [
            f"{key} is {declared[key]:g}, the model was written with {value:g}"
            for key, value in _shape_recorded(self.folder).items()
            if key in declared and declared[key] != value
        ]
        lines += [f"{name} {problem}" for name, problem in checklist(self.folder) if problem]
        return lines + self.weights.not_finite()

    @property
    def _base_weights(self) -> Weights:
        weights = self.weights
        return weights.base if isinstance(weights, MergedWeights) else weights

    @property
    def _base_config(self) -> ModelConfig:
        weights = self.weights
        return weights.base_config if isinstance(weights, MergedWeights) else self.config

    def stamp(self) -> dict[str, Any]:
        """Shape, sizes and times of its files: while these stay, so does the digest.

        Large checkpoints take minutes to read; this reads no weights.
        """
        files = [(path.resolve(), path.stat()) for path in sorted(self.weights.files)]
        return {
            "shape": digest_json(self.config.to_hugging_face(dtype="")),
            "files": [[str(path), found.st_size, found.st_mtime_ns] for path, found in files],
        }

    def digest(self) -> str:
        """The digest of its shape and weights, files read whole."""
        parts = [digest_json(self.config.to_hugging_face(dtype="")).encode()]
        parts += [digest_file(path).encode() for path in sorted(self.weights.files)]
        return digest_bytes(*parts)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight of the model by our name, in our order of rows, mapped where it can be.

        Raises:
            UserError: a file is damaged or lacks a weight.
        """
        for ours in shapes_of(self.config):
            yield ours, self.weights.read(ours, self.config)

    def problems(self) -> list[str]:
        """What is missing, unexpected or of the wrong shape, one line each; empty when sound."""
        return self.weights.problems(self.config)


def _base_of(adapter: Adapter, path: Path) -> Path:
    """The base that an adapter names.

    Raises:
        UserError: it is not at its place.
    """
    for name in (adapter.base.get("path"), adapter.base_name):
        if name and Path(name).is_dir():
            return Path(name)
    raise UserError(
        f"{path} is an adapter of {adapter.base_name or 'a base that it does not name'},"
        " which is not there",
        hint=f"name its base beside it: --model BASE --adapter {path}",
    )


def _page(folder: Path) -> dict[str, Any]:
    path = folder / LINEAGE_NAME
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _part(folder: Path, key: str) -> dict[str, Any]:
    """An object within codecria.json; empty where there is none."""
    value = _page(folder).get(key)
    return value if isinstance(value, dict) else {}


def _shape_recorded(folder: Path) -> dict[str, float]:
    """The fields of the shape as codecria.json has them."""
    return {k: v for k, v in _part(folder, MODEL_KEY).items() if isinstance(v, int | float)}


def _as_recorded(config: ModelConfig, folder: Path) -> ModelConfig:
    """The shape, with fields that Meta's layout lacks taken from codecria.json."""
    declared: dict[str, Any] = _shape_recorded(folder)
    silent = ("max_context", "tied", "bos_id", "eos_id")
    return replace(config, **{key: declared[key] for key in silent if key in declared})


def _as_stored(config: ModelConfig, weights: Weights) -> ModelConfig:
    """The shape with an output matrix of its own where one is stored that is not the embedding.

    transformers does the same: the weights take precedence over `tie_word_embeddings`.
    """
    if not config.tied or OUTPUT not in weights.stored or EMBEDDING not in weights.stored:
        return config
    if weights.stored[OUTPUT].shape != weights.stored[EMBEDDING].shape:
        return replace(config, tied=False)
    same = np.array_equal(weights.array(OUTPUT), weights.array(EMBEDDING))
    return config if same else replace(config, tied=False)


def read_config(folder: Path) -> ModelConfig:
    """The shape in the config.json of a checkpoint folder.

    Raises:
        UserError: the file is missing or damaged, or asks for what Llama 2 has not.
    """
    config, _ = _read_config(folder)
    return config


def _read_config(folder: Path) -> tuple[ModelConfig, bool]:
    """The shape, and whether the weights are packed (formats/packed.py)."""
    path = folder / CONFIG_NAME
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object")
    packed = is_packed(raw, where=str(path))
    if not packed:
        refuse_quantised(folder, raw)
    return ModelConfig.from_hugging_face(raw, where=str(path)), packed


def resolve(path: Path) -> Path:
    """The checkpoint folder that `path` means.

    It is the path itself, the newest one of a run folder, or the snapshot of a Hugging Face cache.

    Raises:
        UserError: there is none.
    """
    if (path / CONFIG_NAME).is_file():
        return path
    if (path / "model" / CONFIG_NAME).is_file():
        return path / "model"
    if is_meta_folder(path):
        return path
    steps = sorted((path / "checkpoints").glob("step-*"))
    if steps and (steps[-1] / CONFIG_NAME).is_file():
        return steps[-1]
    cached = snapshot_of(path)
    if cached is not None:
        return resolve(cached)
    raise not_a_checkpoint(path)


def check_fits(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's weights are those of its shape.

    Raises:
        UserError: some are missing, unexpected or of another shape.
    """
    problems = checkpoint.problems()
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"{checkpoint.folder} does not fit its config.json: {'; '.join(problems[:3])}{more}",
            hint="the files are of different models, or damaged: get them again",
        )


def load_model(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype | None = None
) -> Transformer:
    """Build the model and give it the checkpoint's weights.

    On the CPU, in the type they are stored in, weights are mapped from disk and cost no memory
    until read. Such a model must not be trained: convert it or copy its weights first.

    Args:
        checkpoint: an opened one.
        device: where the weights go.
        dtype: of all weights; None keeps the stored type, and takes float32 for several.

    Raises:
        UserError: weights are missing, unexpected or of another shape.
    """
    check_fits(checkpoint)
    import torch
    from torch import nn

    from codecria.core.model.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(checkpoint.config)
    if dtype is None and len({part.dtype for part in checkpoint.weights.stored.values()}) > 1:
        dtype = torch.float32
    for name, tensor in _unmerged(checkpoint):
        owner, _, leaf = name.rpartition(".")
        weight = nn.Parameter(tensor.to(device=device, dtype=dtype), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, weight)
    if checkpoint.adapter is not None:
        _apply(model, checkpoint.adapter)
    return model


def _unmerged(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every weight as it is before `_apply`: matrices that get an adapter are the base's own."""
    weights = checkpoint.weights
    if not isinstance(weights, MergedWeights):
        yield from checkpoint.tensors()
        return
    for ours in shapes_of(checkpoint.config):
        if ours in weights.adapter.pairs and ours != OUTPUT:
            yield ours, weights.base.read(ours, weights.base_config)
        else:
            yield ours, weights.read(ours, checkpoint.config)


def _apply(model: Transformer, adapter: Adapter) -> None:
    """Give the layers of a model their adapters, in the model's type."""
    import torch

    from codecria.core.model.linear import Linear

    for ours, pair in adapter.pairs.items():
        if ours == OUTPUT:  # the head multiplies by the matrix itself: merged above
            continue
        module = model.get_submodule(ours.removesuffix(".weight"))
        assert isinstance(module, Linear), f"{ours} is no matrix of a layer"
        like = module.weight
        a, b = (torch.from_numpy(half).to(like) for half in (pair.a, pair.b))
        module.adapt(a, b, pair.scale)
        for half in (module.lora_a, module.lora_b):
            assert half is not None, "just adapted"
            half.requires_grad_(False)
