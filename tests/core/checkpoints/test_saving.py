"""Checkpoints written in parts: the bytes of the whole, from any split, or nothing at all."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codecria.core.checkpoints import saving
from codecria.core.checkpoints.formats.hugging_face import plan_files
from codecria.core.checkpoints.saving import Contents, planned_of, save_contents
from codecria.data.errors import UserError
from tests.core.training.launch import Launch

pytestmark = pytest.mark.usefixtures("warm_launches")


def nothing_beside(_folder: Path, _digests: dict[str, str]) -> None:
    """What is written beside the tensors: nothing."""


def test_parts_of_any_shape_lie_where_the_whole_has_them(tmp_path: Path) -> None:
    whole = torch.arange(5 * 7 * 3, dtype=torch.float32).reshape(5, 7, 3)
    path = tmp_path / "file"
    path.write_bytes(bytes(16 + whole.nbytes))
    with path.open("r+b") as file:
        for rows in (slice(0, 2), slice(2, 5)):
            for columns in (slice(0, 7), slice(0, 3), slice(3, 7)):
                for deep in (slice(0, 3), slice(1, 3)):
                    part = whole[rows, columns, deep]
                    offsets = (rows.start, columns.start, deep.start)
                    saving._write_box(file.fileno(), 16, (5, 7, 3), offsets, part)
    found = np.frombuffer(path.read_bytes()[16:], dtype=np.float32).reshape(5, 7, 3)
    assert (found == whole.numpy()).all()
    assert path.stat().st_size == 16 + whole.nbytes


def test_what_changes_after_a_save_began_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kills: a save that reads the weights while training changes them.
    changed = threading.Event()
    write = saving._write_box

    def late(*arguments: object) -> None:
        assert changed.wait(60)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "_write_box", late)
    tensors = {"a": torch.ones(4, 3), "b": torch.nn.Parameter(torch.ones(5)).detach()}
    files = plan_files(planned_of(tensors), max_shard_bytes=40)
    assert len(files) == 2
    save = save_contents(
        tmp_path / "step", Contents(tensors, files, nothing_beside), background=True
    )
    assert not (tmp_path / "step").exists()
    for tensor in tensors.values():
        tensor.zero_()
    changed.set()
    save.wait()
    for name in files:
        assert all(bool(t.eq(1).all()) for t in load_file(tmp_path / "step" / name).values())


def test_a_save_that_fails_leaves_the_older_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"a": torch.ones(4, 3)}
    files = plan_files(planned_of(tensors), max_shard_bytes=1000)
    folder = tmp_path / "step"

    def save() -> None:
        save_contents(folder, Contents(tensors, files, nothing_beside), background=False).wait()

    save()
    before = (folder / "model.safetensors").read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        save()
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
    assert (folder / "model.safetensors").read_bytes() == before


# Saved from one mesh, read into others: row and column parts, copies, parts that hold nothing.
RESHARDED = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from codecria.core.checkpoints.formats.hugging_face import plan_files
from codecria.core.checkpoints.formats.weights import SafetensorsWeights
from codecria.core.checkpoints.parts import read_parts
from codecria.core.checkpoints.saving import Contents, planned_of, save_contents
from codecria.core.training.world import joined

folder = Path(sys.argv[1])
whole = {"a": torch.arange(30.0).reshape(5, 6), "b": torch.arange(3.0), "c": torch.ones(2, 9)}
with joined(torch.device("cpu"), timeout_s=60) as world:
    flat = init_device_mesh("cpu", (4,))
    grid = init_device_mesh("cpu", (2, 2))
    ways = [
        (flat, lambda t: [Shard(0)]),
        (grid, lambda t: [Shard(0), Shard(t.ndim - 1)]),
        (grid, lambda t: [Replicate(), Shard(0)]),
    ]
    for n, (mesh, places) in enumerate(ways):
        split = {k: distribute_tensor(t, mesh, places(t)) for k, t in whole.items()}
        files = plan_files(planned_of(split), max_shard_bytes=130)
        out = folder / str(n)
        contents = Contents(split, files, lambda folder, digests: None)
        save_contents(out, contents, group=world.files, background=True).wait()
        assert len(files) == 2
        found = {k: t for name in files for k, t in load_file(out / name).items()}
        assert all(torch.equal(found[k], whole[k]) for k in whole), found
        stored = SafetensorsWeights({k: out / name for name in files for k in files[name]})

        def fill(name, box, target):
            with stored.borrow_box(name, box) as part:
                target.copy_(part)

        for mesh, places in ways:
            split = {
                k: distribute_tensor(torch.zeros_like(t), mesh, places(t)) for k, t in whole.items()
            }
            read_parts(split, fill, world.files)
            assert all(torch.equal(split[k].full_tensor(), whole[k]) for k in whole)
    print("equal", flush=True)
os._exit(0)
"""


def test_what_one_mesh_saves_any_other_reads(tmp_path: Path) -> None:
    for status, output, errors in Launch([["-c", RESHARDED, str(tmp_path)]] * 4).end():
        assert status == 0, errors
        assert output == "equal\n"
