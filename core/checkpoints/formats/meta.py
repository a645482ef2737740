"""Meta's release layout: consolidated.NN.pth, params.json, tokenizer.model, checklist.chk.

Each file holds one rank's part of a model-parallel model: rows of wq, wk, wv, w1, w3 and output,
columns of wo, w2 and the embedding; norms are repeated (PAPER section 1). params.json holds
neither the context nor, mostly, the vocabulary; early ones lack n_kv_heads and rope_theta too.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codecria.core.model.config import ModelConfig
from codecria.data.errors import UserError
from codecria.data.files import read_json

from .layout import EMBEDDING, OUTPUT, RotaryOrder, meta_name
from .pickled import Pickled
from .pth import as_tensor, read_pickle
from .weights import Box, Stored, Weights, forget, forget_memory

if TYPE_CHECKING:
    from torch import Tensor

PARAMS_NAME = "params.json"
CHECKLIST_NAME = "checklist.chk"
SHARD_PATTERN = "consolidated.*.pth"
LONG_THETA = 1e6  # of models that went through long-context fine-tuning
LONG_CONTEXT, SHORT_CONTEXT = 16_384, 4_096  # trained contexts of Code Llama and Llama 2
FIRST_THETA = 1e4  # Llama 2's, where params.json has none
_SHAPE_FIELDS = (
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
)
_NEEDED = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")
_COUNTS = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of")
_LOADER_FIELDS = ("max_seq_len", "max_batch_size", "model_parallel_size")  # of some releases


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder is in Meta's layout, by its content."""
    return (folder / PARAMS_NAME).is_file() or any(folder.glob(SHARD_PATTERN))


def hidden_dim_of(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """The width of the feed-forward by the release's rule (PAPER section 1)."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def width_rule(dim: int, hidden_dim: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` that give a width; the released ones where they do."""
    for multiple_of, multiplier in ((256, None), (4096, 1.3), (32, None)):
        if hidden_dim_of(dim, multiple_of, multiplier) == hidden_dim:
            return multiple_of, multiplier
    # The rule rounds up to hidden_dim itself from anything above half of it.
    multiplier = 0.75 * hidden_dim / int(2 * (4 * dim) / 3)
    assert hidden_dim_of(dim, hidden_dim, multiplier) == hidden_dim or hidden_dim == 1
    return hidden_dim, multiplier


def read_params(folder: Path) -> dict[str, Any]:
    """params.json, with numbers where there should be.

    Raises:
        UserError: it is missing or damaged, or holds a field that Llama 2 has not.
    """
    path = folder / PARAMS_NAME
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object")
    for name in _NEEDED:
        if name not in raw:
            raise UserError(f"{path}: {name} is missing")
    for name, value in raw.items():
        if name not in _SHAPE_FIELDS + _LOADER_FIELDS:
            raise UserError(
                f"{path}: {name} = {value!r} is not part of the Llama 2 architecture",
                hint="codecria reads Llama 2 and Code Llama in Meta's layout",
            )
        absent = value is None and name not in _NEEDED
        if not absent and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{path}: {name} = {value!r} is not a number")
        if not absent and (not math.isfinite(value) or (name in _COUNTS and value < 1)):
            raise UserError(f"{path}: {name} = {value!r} is out of range")
    return raw


def read_meta_config(folder: Path, weights: MetaWeights) -> ModelConfig:
    """The shape of a model in Meta's layout.

    The vocabulary is the embedding's rows, as the release takes it from the tokenizer. The context
    is not recorded: 16,384 tokens with the theta of Code Llama, 4,096 with Llama 2's.

    Raises:
        UserError: params.json is missing, damaged, or does not fit the weights.
    """
    raw = read_params(folder)
    dim, heads = int(raw["dim"]), int(raw["n_heads"])
    theta = float(raw.get("rope_theta") or FIRST_THETA)
    table = weights.stored.get(EMBEDDING)
    rows = table.shape[0] if table is not None and table.shape else 0
    declared = int(raw.get("vocab_size") or -1)
    multiplier = raw.get("ffn_dim_multiplier")
    return ModelConfig(
        dim=dim,
        n_layers=int(raw["n_layers"]),
        n_heads=heads,
        n_kv_heads=int(raw.get("n_kv_heads") or heads),
        hidden_dim=hidden_dim_of(
            dim, int(raw["multiple_of"]), None if multiplier is None else float(multiplier)
        ),
        vocab_size=declared if declared > 0 else rows,
        norm_eps=float(raw["norm_eps"]),
        rope_theta=theta,
        max_context=LONG_CONTEXT if theta >= LONG_THETA else SHORT_CONTEXT,
    )


def params_of(config: ModelConfig) -> dict[str, Any]:
    """The content of params.json.

    Raises:
        UserError: the layout cannot express what the model needs.
    """
    if config.rope_scale != 1.0:
        raise UserError(
            f"Meta's layout cannot express rotary scaling, and the model divides positions by"
            f" {config.rope_scale:g}",
            hint="convert it to the Hugging Face layout or to GGUF",
        )
    if config.llama3 is not None:
        raise UserError(
            "Meta's layout of Llama 2 cannot express llama3 rotary scaling, which the model has",
            hint="convert it to the Hugging Face layout or to GGUF",
        )
    multiple_of, multiplier = width_rule(config.dim, config.hidden_dim)
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if config.n_kv_heads != config.n_heads:
        params["n_kv_heads"] = config.n_kv_heads
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    return params


class MetaWeights(Weights):
    """Weights in consolidated.NN.pth, the parts of all ranks joined as they are read."""

    rotary_order: RotaryOrder = "interleaved"

    def __init__(self, folder: Path) -> None:
        """Open every rank's file; weights stay on disk.

        Raises:
            UserError: files are missing or damaged, hold more than tensors, or do not fit together.
        """
        self.files = _ranks(folder)
        # torch's files before 1.6 are no zips and are read whole: there is nothing to give back.
        in_files = all(zipfile.is_zipfile(path) for path in self.files)
        self._parts = [read_pickle(path, mapped=in_files) for path in self.files]
        self.mapped = in_files and len(self.files) == 1
        self._parts_mapped = in_files
        names = self._parts[0].keys()
        for path, part in zip(self.files, self._parts, strict=True):
            if part.keys() != names:
                odd = sorted(part.keys() ^ names)[0]
                raise UserError(
                    f"{path} and {self.files[0].name} differ: {odd} is in one alone",
                    hint="they are parts of different models: get the folder again",
                )
        self._names = {("tok_embeddings" if n == "tok_embeddings.weight" else n): n for n in names}
        self._names.pop("rope.freqs", None)  # a table that every loader makes anew
        self.stored = {ours: self._stored(ours) for ours in self._names}
        self._check_count(folder)

    def name(self, ours: str) -> str:
        """Meta's name."""
        return meta_name(ours)

    def array(self, ours: str) -> npt.NDArray[Any]:
        """As `raw`, without PyTorch where the files are as it writes them."""
        parts = [part.data for part in self._of(ours)]
        axis = _axis(ours)
        if len(parts) == 1 or axis is None or parts[0].ndim != 2:
            return parts[0]
        whole = np.concatenate(parts, axis=axis)
        if self._parts_mapped:
            for part in parts:
                forget_memory(part.ctypes.data, part.nbytes)
        return whole

    def raw(self, ours: str) -> Tensor:
        """A weight, of one rank mapped from its file, of several joined in memory."""
        parts = [as_tensor(part) for part in self._of(ours)]
        axis = _axis(ours)
        if len(parts) == 1 or axis is None or parts[0].ndim != 2:
            return parts[0]
        import torch

        whole = torch.cat(parts, dim=axis)
        if self._parts_mapped:
            forget(parts)
        return whole

    @contextlib.contextmanager
    def borrow_box(self, ours: str, box: Box) -> Iterator[Tensor]:
        """A box of `raw`, read from the ranks that hold some of it."""
        parts, axis = [as_tensor(part) for part in self._of(ours)], _axis(ours)
        if len(parts) == 1 or axis is None or parts[0].ndim != 2:
            with super().borrow_box(ours, box) as part:
                yield part
            return
        import torch

        size = parts[0].shape[axis]
        found = []
        for number, whole in enumerate(parts):
            start = max(0, box[axis].start - number * size)
            stop = min(size, box[axis].stop - number * size)
            if start < stop:
                inner = tuple(slice(start, stop) if n == axis else r for n, r in enumerate(box))
                found.append(whole[inner])
        yield torch.cat(found, dim=axis) if found else parts[0][:0, :0]
        if self._parts_mapped:
            forget(parts)

    def _of(self, ours: str) -> list[Pickled]:
        return [part[self._names[ours]] for part in self._parts]

    def _stored(self, ours: str) -> Stored:
        parts = self._of(ours)
        shape = list(parts[0].data.shape)
        for path, part in zip(self.files, parts, strict=True):
            if part.data.shape != parts[0].data.shape or part.dtype != parts[0].dtype:
                raise UserError(
                    f"{path} and {self.files[0].name} differ in the shape or type of"
                    f" {self._names[ours]}",
                    hint="they are parts of different models: get the folder again",
                )
        axis = _axis(ours)
        if axis is not None and len(shape) == 2:
            shape[axis] *= len(parts)
        return Stored(tuple(shape), parts[0].dtype)

    def _check_count(self, folder: Path) -> None:
        """That as many ranks are there as the parts' sizes say.

        A rank has n_heads / ranks heads of wq, so the parts of wq add up to a square.
        """
        found = self.stored.get("layers.0.attention.wq.weight")
        if found is None or len(found.shape) != 2 or not found.shape[0]:
            return  # `problems` will name it
        rows, dim = found.shape
        if rows != dim and dim % (rows // len(self.files) or 1) == 0:
            expected = dim // (rows // len(self.files))
            absent = ", ".join(
                f"consolidated.{n:02d}.pth" for n in range(len(self.files), expected)
            )
            raise UserError(
                f"{folder} is incomplete: {absent or 'a part'} missing, the model is in {expected}"
                f" parts",
                hint="download the model again",
            )


def _axis(ours: str) -> int | None:
    """Along which axis the ranks' parts of a weight are joined; None for copies."""
    if ours == EMBEDDING or ours.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
        return 1
    split = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight")
    return 0 if ours == OUTPUT or ours.endswith(split) else None


def check_ranks(config: ModelConfig, ranks: int) -> None:
    """See that a model can be divided among ranks as the release's code divides it.

    Raises:
        UserError: with every size that cannot.
    """
    sizes = {
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "hidden_dim": config.hidden_dim,
        "dim": config.dim,
        "vocab_size": config.vocab_size,
    }
    odd = [f"{name} {size}" for name, size in sizes.items() if size % ranks]
    if odd:
        most = math.gcd(*sizes.values())
        fitting = [str(n) for n in range(1, min(most, 64) + 1) if most % n == 0]
        raise UserError(
            f"{ranks} ranks do not divide {', '.join(odd)}",
            hint=f"this model can be divided among {', '.join(fitting)}"
            + (" (alone)" if len(fitting) == 1 else ""),
        )


def rank_shape(ours: str, shape: tuple[int, ...], ranks: int) -> tuple[int, ...]:
    """The shape of one rank's part of a weight."""
    axis = _axis(ours) if len(shape) == 2 else None
    return tuple(n // ranks if i == axis else n for i, n in enumerate(shape))


def rank_part(ours: str, weight: Tensor, rank: int, ranks: int) -> Tensor:
    """One rank's part of a weight; norms are repeated."""
    axis = _axis(ours) if weight.ndim == 2 else None
    if axis is None:
        return weight
    size = weight.shape[axis] // ranks
    return weight.narrow(axis, rank * size, size)


def _ranks(folder: Path) -> list[Path]:
    """The files of the ranks, in order and without gaps."""
    numbers = {}
    for path in folder.glob(SHARD_PATTERN):
        found = re.fullmatch(r"consolidated\.(\d+)\.pth", path.name)
        if found is not None:
            numbers[int(found[1])] = path
    if not numbers:
        raise UserError(
            f"{folder} has a {PARAMS_NAME} but no weights (consolidated.00.pth)",
            hint="download the model again",
        )
    absent = [f"consolidated.{n:02d}.pth" for n in range(max(numbers)) if n not in numbers]
    if absent:
        raise UserError(
            f"{folder} is incomplete: {', '.join(absent)} missing", hint="download the model again"
        )
    return [numbers[n] for n in sorted(numbers)]


def checklist(folder: Path) -> Iterator[tuple[str, str]]:
    """Compare the files a checklist.chk names with their MD5 sums, reading them whole.

    Yields:
        (file, what is wrong with it; empty where nothing is). Nothing without a checklist.

    Raises:
        UserError: the checklist cannot be read.
    """
    for digest, name in _lines(folder):
        file = folder / name
        if not file.is_file():
            yield name, "is missing"
        else:
            same = md5(file) == digest
            yield name, "" if same else "is not the file that the checklist names"


def listed(folder: Path) -> int:
    """How many files a checklist.chk names."""
    return len(_lines(folder))


def _lines(folder: Path) -> list[tuple[str, str]]:
    """Digests and names in a checklist.chk; none without one."""
    path = folder / CHECKLIST_NAME
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    found = []
    for line in filter(str.strip, lines):
        digest, _, name = line.partition(" ")
        name = name.strip().removeprefix("*").removeprefix("./")
        if not re.fullmatch(r"[0-9a-f]{32}", digest) or not name or "/" in name:
            raise UserError(f"{path} is damaged: {line[:80]!r} is no MD5 sum and file name")
        found.append((digest, name))
    return found


def md5(path: Path) -> str:
    """The MD5 sum of a file, read in blocks; the release's checklists hold these."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
