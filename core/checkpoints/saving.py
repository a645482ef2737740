"""Writing checkpoints from parts: every process writes the boxes of the tensors that it holds.

The files are plain safetensors, whole, as anyone reads them: the main process lays them out and
reserves their space, then every process writes its boxes at their places. PyTorch's distributed
checkpoint plans who writes what, from the placements of the tensors, and reports a failure of one
process to all. Its own writer of this format (`HuggingFaceStorageWriter`) writes a file a process
and then a second time everything in place; here nothing is gathered and nothing written twice.

The folder must be on a disk that all processes see. It appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future as Pending
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from codecria.core.model.transformer import Transformer
from codecria.data.files import atomic_folder, digest_file, require_free_space, write_error

from .formats.hugging_face import header_of, plan_files, write_index
from .formats.layout import hugging_face_name, shapes_of
from .parts import ALONE_WARNING, cause_of
from .writing import CARD_NAME, MAX_SHARD_BYTES, write_beside

if TYPE_CHECKING:
    from .formats.hugging_face import Planned

Finish = Callable[[Path, dict[str, str]], None]  # a folder with weights, digests of files
SPARE_BYTES = 8 << 20  # for the small files of a checkpoint
DIGEST_THREADS = 8


class SafetensorsWriter(StorageWriter):
    """Writes tensors to a folder of safetensors files that appears whole.

    Args:
        folder: of the checkpoint; an older one is replaced.
        files: the tensors of every file, by the file's name.
        finish: called in the main process with the folder under its temporary name, whose tensors
            are whole, and the files' digests; it writes the other files. Then the folder appears.
        done: called in the main process once it has.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, Planned],
        finish: Finish,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.files = files
        self._finish = finish
        self._done = done
        self._open = contextlib.ExitStack()
        self._temporary: Path | None = None

    def reset(self, checkpoint_id: Any = None) -> None:
        """One writer writes one folder."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        """No path alone says what goes where."""
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing needs setting up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Lay the files out and reserve their space; each plan gets the folder's temporary name.

        Raises:
            UserError: the space is not there, or the folder cannot be written.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        headers = {name: header_of(planned) for name, planned in self.files.items()}
        require_free_space(
            self.folder.parent, sum(starts[""] for _, starts in headers.values()) + SPARE_BYTES
        )
        self._temporary = self._open.enter_context(atomic_folder(self.folder))
        for name, (header, starts) in headers.items():
            _reserve(self._temporary / name, header, starts[""])
        return [replace(plan, storage_data=str(self._temporary)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the boxes of the plan.

        Raises:
            UserError: a file cannot be written.
        """
        folder = Path(plan.storage_data)
        of_tensor = {tensor: name for name, planned in self.files.items() for tensor in planned}
        by_file: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            by_file.setdefault(of_tensor[item.index.fqn], []).append(item)
        results = []
        for name, items in by_file.items():
            _, starts = header_of(self.files[name])
            try:
                with (folder / name).open("r+b", buffering=0) as file:
                    for item in items:
                        shape, dtype = self.files[name][item.index.fqn]
                        found = planner.resolve_data(item)
                        assert isinstance(found, Tensor), item.index.fqn
                        assert item.tensor_data is not None, item.index.fqn
                        part = found.detach().to(device="cpu", dtype=dtype)
                        offsets = tuple(item.tensor_data.chunk.offsets)
                        _write_box(file.fileno(), starts[item.index.fqn], shape, offsets, part)
                        results.append(WriteResult(item.index, part.nbytes, None))
                    os.fsync(file.fileno())
            except OSError as error:
                raise write_error(self.folder / name, error) from error
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: ARG002
        """Write what lies beside the tensors, and let the folder appear."""
        assert self._temporary is not None, "`prepare_global_plan` comes first"
        temporary = self._temporary
        with ThreadPoolExecutor(DIGEST_THREADS) as threads:
            digests = threads.map(lambda name: digest_file(temporary / name), self.files)
            self._finish(temporary, dict(zip(self.files, digests, strict=True)))
        self._open.close()
        self._done()

    def abandon(self) -> None:
        """Remove what was written of a folder that will not appear."""
        with contextlib.suppress(_Abandoned), self._open:
            raise _Abandoned


class _Abandoned(Exception):
    """Ends the writing of a folder without it appearing."""


def _reserve(path: Path, header: bytes, size: int) -> None:
    """Make a file of a size with the header written, on disk where the system can reserve it.

    Raises:
        UserError: there is no space, or it cannot be written.
    """
    try:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)
            file.flush()
            if hasattr(os, "posix_fallocate"):  # not on macOS
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                        raise
    except OSError as error:
        raise write_error(path, error) from error


def _write_box(
    file: int, start: int, shape: tuple[int, ...], offsets: tuple[int, ...], part: Tensor
) -> None:
    """Write a part of a tensor to its place in a file.

    Args:
        file: descriptor.
        start: where the whole tensor begins in the file, in bytes.
        shape: of the whole, of any number of dimensions.
        offsets: where the part begins in each dimension.
        part: on the CPU, in the file's type.
    """
    if part.numel() == 0:
        return
    # The dimensions that the part covers whole, from the last one, make one run of bytes.
    inner = len(shape)
    while inner and part.shape[inner - 1] == shape[inner - 1]:
        inner -= 1
    inner = max(inner - 1, 0)
    stride = part.itemsize
    strides: list[int] = []
    for length in reversed(shape):
        strides.insert(0, stride)
        stride *= length
    for place in np.ndindex(*part.shape[:inner]):
        index = [*place] + [0] * (len(shape) - inner)
        at = start + sum((o + i) * s for o, i, s in zip(offsets, index, strides, strict=True))
        content = part[place].contiguous().view(-1).view(torch.uint8).numpy().data
        while content:
            written = os.pwrite(file, content, at)
            content, at = content[written:], at + written


class Saving:
    """A checkpoint on its way to the disk.

    Args:
        writer: that writes it.
        pending: the end of its work in the background.
        group: of the processes.
    """

    def __init__(self, writer: SafetensorsWriter, pending: Pending[Any], group: Any) -> None:
        self._writer = writer
        self._pending = pending
        self._group = group

    def failed(self) -> bool:
        """Whether it has ended without a checkpoint; `wait` raises why."""
        return self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint is there.

        Raises:
            UserError: a process could not write its part; every process raises.
        """
        whole = False
        try:
            self._pending.result()
            whole = True
        except CheckpointException as error:
            raise cause_of(error, self._group) from error
        finally:
            if not whole:
                self._writer.abandon()


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint folder holds.

    Attributes:
        tensors: by their names in the files; this process may hold parts of them.
        files: which file holds which tensors.
        beside: called in the main process with the folder, and the files' digests; it writes the
            other files.
    """

    tensors: Mapping[str, Tensor]
    files: Mapping[str, Planned]
    beside: Finish


def save_contents(
    folder: Path,
    contents: Contents,
    *,
    done: Callable[[], None] = lambda: None,
    group: Any = None,
    background: bool,
) -> Saving:
    """Write tensors, of which this process may hold parts, as a folder; every process calls it.

    Args:
        folder: that appears whole; an older one is replaced.
        contents: what it holds.
        done: called in the main process once it has appeared.
        group: the processes, as a gloo group that nothing else uses meanwhile; None for one alone.
        background: copy the tensors, and write in a thread of its own: they may change at once.

    Returns:
        the save, to be waited for.
    """
    writer = SafetensorsWriter(folder, contents.files, contents.beside, done)
    values = {name: tensor.detach() for name, tensor in contents.tensors.items()}
    # A warning of the thread would come out later, so the filter stays.
    warnings.filterwarnings("ignore", message=ALONE_WARNING)
    options: dict[str, Any] = {
        "storage_writer": writer,
        "planner": DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        "process_group": group,
        "no_dist": group is None,
    }
    pending: Pending[Any]
    if background:
        found = async_save(values, **options)
        assert isinstance(found, Pending), "staging is synchronous"
        pending = found
    else:
        with ThreadPoolExecutor(1) as thread:  # whose end keeps what was raised, for `wait`
            pending = thread.submit(save, values, **options)
    return Saving(writer, pending, group)


def planned_of(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Planned:
    """The whole shapes of tensors, and their types or the one given."""
    return {name: (tuple(t.shape), dtype or t.dtype) for name, t in tensors.items()}


def model_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights of a model's shape, by their names in the files, in the order of the layers."""
    weights = dict(model.named_parameters())
    return {hugging_face_name(name): weights[name] for name in shapes_of(model.config)}


def model_contents(
    model: Transformer,
    *,
    dtype: torch.dtype,
    tokenizer: Path | None,
    lineage: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Contents:
    """A checkpoint of a model's weights; the arguments are as for `publish`."""
    tensors = model_tensors(model)
    files = plan_files(planned_of(tensors, dtype), max_shard_bytes=max_shard_bytes)

    def beside(folder: Path, digests: dict[str, str]) -> None:
        write_index(folder, files)
        own = {name: digests[name] for name in files}
        write_beside(folder, model.config, own, dtype=dtype, tokenizer=tokenizer, lineage=lineage)

    return Contents(tensors, files, beside)


def publish(
    path: Path,
    model: Transformer,
    *,
    dtype: torch.dtype,
    tokenizer: Path | None,
    lineage: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    card: str = "",
    group: Any = None,
) -> None:
    """Write a model as a checkpoint folder that appears whole or not at all.

    Args:
        path: the folder; an older one is replaced.
        model: of which this process may hold parts; every process calls this.
        dtype, tokenizer, lineage, max_shard_bytes: as for `write_checkpoint`.
        card: the model card, or none.
        group: as for `save_contents`.

    Raises:
        UserError: it cannot be written, for lack of space for example; `path` is as it was.
    """
    contents = model_contents(
        model, dtype=dtype, tokenizer=tokenizer, lineage=lineage, max_shard_bytes=max_shard_bytes
    )
    publish_contents(path, contents, card=card, group=group)


def publish_contents(path: Path, contents: Contents, *, card: str = "", group: Any = None) -> None:
    """Write a finished checkpoint with its model card, see `publish`."""

    def beside(folder: Path, digests: dict[str, str]) -> None:
        contents.beside(folder, digests)
        if card:
            (folder / CARD_NAME).write_text(card, encoding="utf-8")

    whole = replace(contents, beside=beside)
    save_contents(path, whole, group=group, background=False).wait()
