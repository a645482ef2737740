"""Packed weights of large models in the user's cache, so that the next start maps them.

    $XDG_CACHE_HOME/codecria/packed/DIGEST.safetensors    bytes of native/packing.py by usual names
    $XDG_CACHE_HOME/codecria/packed/DIGEST.json           the file's digest, and its state when read

The digest in the names is of the model's files, the type and the layout. A file that is not in the
state in which it was last read (size, time of change) is read whole and compared with its digest.
The least recently used go beyond a limit. What cannot be kept is packed in memory, as ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.checkpoints.formats.layout import our_name
from codecria.core.checkpoints.formats.packed import PackedWeights
from codecria.core.checkpoints.formats.weights import SafetensorsWeights
from codecria.core.native.kernels import Kernels
from codecria.core.native.packing import GROUP_BYTES, LAYOUT, PackedKind, packed_shape
from codecria.core.native.weights import (
    EMBEDDING,
    HEAD,
    Packed,
    Weight,
    Weights,
    head_dtype,
    matrix,
    shapes,
)
from codecria.data.errors import UserError
from codecria.data.files import DIGEST_BYTES, atomic_path, atomic_write_json, digest_file, sweep

from .prefix_cache import default_folder as prefix_folder
from .prefix_cache import model_digest

MOST_BYTES = 64_000_000_000  # of all files: a 70b model in q4 and some smaller ones
SPARE_BYTES = 1_000_000_000  # of the disk that are left free
SUFFIX = ".safetensors"
Say = Callable[[str], None]
_KINDS: dict[int, PackedKind] = {size: kind for kind, size in GROUP_BYTES.items()}


class _Planned(NamedTuple):
    """A matrix of a file: its name there, where its weights come from, and its packed shape."""

    name: str
    source: str
    rows: int
    columns: int
    kind: PackedKind

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B,G,S) of its bytes."""
        return packed_shape(self.kind, self.rows, self.columns)

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape)


class _Kept(Mapping[str, Weight]):
    """Weights of which some are packed elsewhere."""

    def __init__(self, packed: Mapping[str, Packed], others: Weights) -> None:
        self._packed, self._others = packed, others

    def __getitem__(self, name: str) -> Weight:
        return self._packed[name] if name in self._packed else self._others[name]

    def __contains__(self, name: object) -> bool:
        return name in self._packed or name in self._others

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._others, *self._packed]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def default_folder() -> Path:
    """codecria/packed in the user's cache folder."""
    return prefix_folder().with_name("packed")


def kept(
    checkpoint: Checkpoint,
    weights: Weights,
    kind: PackedKind,
    kernels: Kernels,
    say: Say,
    *,
    folder: Path | None = None,
    most_bytes: int = MOST_BYTES,
) -> Weights:
    """The weights with their matrices packed and mapped from the cache, where they are put first.

    Args:
        checkpoint: an opened one.
        weights: of it, by Hugging Face name.
        kind: "q8" or "q4".
        kernels: pack them.
        say: takes a sentence: that weights are being packed, or why they cannot be kept.
        folder: of the cache; None takes the user's.
        most_bytes: of all its files.
    """
    if isinstance(checkpoint.weights, PackedWeights):
        return weights  # a folder of packed weights is mapped as it is
    folder = folder or default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = {
            "layout": LAYOUT,
            "dtype": kind,
            "config": checkpoint.config.to_hugging_face(dtype=""),
        }
        path = folder / (model_digest(checkpoint.weights.files, facts, folder) + SUFFIX)
        if not _is_as_noted(path):
            with _alone(path, say):
                if not _is_as_noted(path) and not _is_sound(path, say):
                    plan = _plan(checkpoint, kind)
                    _make_room(folder, sum(one.size for one in plan), most_bytes)
                    _write(path, plan, weights, kernels, say)
        with contextlib.suppress(OSError):  # a folder that can only be read
            os.utime(path.with_suffix(".json"))  # it is the latest now
        return _Kept(_mapped(path), weights)
    except (UserError, OSError) as error:
        say(f"the packed weights are not kept: {error}")
        return weights


def survey(folder: Path | None = None) -> dict[str, Any]:
    """What `doctor` shows of the cache."""
    folder = folder or default_folder()
    sizes = [size for _, size, _ in _files(folder)]
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes), "limit": MOST_BYTES}


# --- reading --------------------------------------------------------------------------------------


def _mapped(path: Path) -> dict[str, Packed]:
    """The packed matrices of a file by Hugging Face name."""
    with path.open("rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names.pop("__metadata__", None)
    read = SafetensorsWeights(dict.fromkeys(names, path))
    found = {}
    for name in names:
        ours = our_name(name)
        assert ours is not None, name
        data = read.mapped_as(ours, read.stored[ours])
        found[name] = Packed(_KINDS[data.shape[-1]], data)
    return found


def _is_as_noted(path: Path) -> bool:
    """Whether a file is there, and in the state in which it was written or last verified."""
    try:
        known = json.loads(path.with_suffix(".json").read_bytes())
        return bool(known["state"] == _state(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_sound(path: Path, say: Say) -> bool:
    """Whether a file holds what was written; its new state is noted, or else it is removed."""
    note = path.with_suffix(".json")
    if not path.exists():
        return False
    try:
        known = json.loads(note.read_bytes())
        if known["digest"] == digest_file(path):
            atomic_write_json(note, known | {"state": _state(path)})
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nobody knows what it should hold
    say(f"{path} is damaged: the weights are packed again")
    for one in (path, note):
        one.unlink(missing_ok=True)
    return False


def _state(path: Path) -> list[int]:
    """What changes when a file is written to."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ino]


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(path: Path, say: Say) -> Iterator[None]:
    """Wait until no other process packs the same weights."""
    with (path.parent / f".lock-{path.stem}").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process packs these weights: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _plan(checkpoint: Checkpoint, kind: PackedKind) -> list[_Planned]:
    """The matrices that the engine packs. An embedding is looked up as it is stored."""
    found = list[_Planned]()
    head: PackedKind = "q8" if head_dtype(kind) == "q8" else kind
    for name, (rows, columns) in shapes(checkpoint.config).items():
        ours = our_name(name)
        assert ours is not None, name
        own = checkpoint.weights.packed_kind(ours)
        if name == HEAD:
            found.append(_Planned(name, name, rows, columns, own or head))
        elif name != EMBEDDING or own is not None:
            found.append(_Planned(name, name, rows, columns, own or kind))
        elif checkpoint.config.tied:
            found.append(_Planned(HEAD, name, rows, columns, head))
    return found


def _write(
    path: Path, plan: Sequence[_Planned], weights: Weights, kernels: Kernels, say: Say
) -> None:
    """Pack matrix after matrix into a file.

    Raises:
        UserError: it cannot be written.
    """
    header, end = dict[str, Any](), 0
    for one in plan:
        start, end = end, end + one.size
        header[one.name] = {"dtype": "U8", "shape": one.shape, "data_offsets": [start, end]}
    page = json.dumps(header).encode()
    page += b" " * (-(8 + len(page)) % 64)  # matrices begin at a line of the CPU's cache
    sweep(path)
    say(f"packing the weights, once for this model ({end / 1e9:.2f} GB in {path.parent})")
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for part in (len(page).to_bytes(8, "little"), page):
            digest.update(part)
            file.write(part)
        for one in plan:
            data = matrix(weights[one.source], one.kind, one.rows, one.columns, kernels).data
            digest.update(data.reshape(-1).data)
            file.write(data.reshape(-1).data)
        file.flush()
        # Before the file has its name: what has one is noted.
        note = {"digest": digest.hexdigest(), "state": _state(temporary)}
        atomic_write_json(path.with_suffix(".json"), note)


def _make_room(folder: Path, needed: int, most_bytes: int) -> None:
    """Remove the least recently used files until so many bytes fit the limit and the disk.

    Raises:
        UserError: they fit neither.
    """
    if needed > most_bytes:
        raise UserError(
            f"{needed / 1e9:.1f} GB are more than the cache's limit of {most_bytes / 1e9:.1f} GB",
            hint="codecria convert writes a folder of packed weights",
        )
    found = sorted(_files(folder))
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total + needed <= most_bytes and shutil.disk_usage(folder).free >= needed + SPARE_BYTES:
            return
        for one in (path, path.with_suffix(".json"), folder / f".lock-{path.stem}"):
            one.unlink(missing_ok=True)
        total -= size
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"{folder} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed",
            hint="XDG_CACHE_HOME names another place",
        )


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of the files in a folder."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                note = path.with_suffix(".json")
                used = (note if note.exists() else path).stat().st_mtime
                found.append((used, path.stat().st_size, path))
    return found
