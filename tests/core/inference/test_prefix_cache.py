"""The prefix cache: what it restores is what was read, and nothing that is damaged or another's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from codecria.core.inference.prefix_cache import (
    BLOCK,
    DiskBlocks,
    PrefixCache,
    model_digest,
    survey,
)
from codecria.core.inference.runner import Snapshot
from codecria.core.model.config import ModelConfig
from codecria.data.files import TEMPORARY_PREFIX

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=26, max_context=64
)


class Rows:
    """The rows of a runner, whose keys and values are the tokens themselves."""

    config = CONFIG
    layout = "rows"
    tolerance = 0.0

    def __init__(self, *rows: list[int]) -> None:
        self.held = [list(row) for row in rows]

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        return np.array(self.held[row][start:stop], dtype=np.int32).view(np.uint8)

    def restore(self, row: int, start: int, snapshot: Snapshot) -> None:
        self.held[row][start:] = snapshot.view(np.int32).tolist()


PROMPT = [n % 23 for n in range(3 * BLOCK + 5)]


def stored(cache: PrefixCache, tokens: list[int]) -> None:
    cache.store(Rows(tokens), 0, tokens)  # type: ignore[arg-type]


def restored(cache: PrefixCache, tokens: list[int]) -> list[int]:
    rows = Rows([])
    count = cache.restore(rows, 0, tokens)  # type: ignore[arg-type]
    assert rows.held[0] == tokens[:count]
    return rows.held[0]


def test_whole_blocks_come_back_and_the_last_token_is_always_read() -> None:
    cache = PrefixCache()
    stored(cache, PROMPT)
    assert len(restored(cache, PROMPT)) == 3 * BLOCK
    assert len(restored(cache, [*PROMPT, 1, 2, 3])) == 3 * BLOCK
    assert len(restored(cache, PROMPT[: 2 * BLOCK])) == BLOCK  # its last token's scores are needed
    changed = [*PROMPT[: BLOCK + 3], 25, *PROMPT[BLOCK + 4 :]]
    assert len(restored(cache, changed)) == BLOCK
    assert restored(cache, [25, *PROMPT]) == []
    assert cache.counts.found == (3 + 3 + 1 + 1) * BLOCK


def test_the_least_recently_used_blocks_go_first() -> None:
    size = BLOCK * 4  # bytes of a block here
    cache = PrefixCache(memory_bytes=4 * size)
    first, second = PROMPT[:BLOCK], [20, *PROMPT[1 : 2 * BLOCK]]
    stored(cache, first)
    stored(cache, second)
    restored(cache, [*first, 1])
    stored(cache, [19, *PROMPT[1 : 2 * BLOCK]])
    assert cache.memory_bytes <= 4 * size
    assert len(restored(cache, [*first, 1])) == BLOCK
    assert restored(cache, [*second, 1]) == []  # without its first block the second is of no use


def test_blocks_outlive_a_process_on_disk(tmp_path: Path) -> None:
    cache = PrefixCache(disk=DiskBlocks(tmp_path, "model"))
    stored(cache, PROMPT)
    cache.write_latest()
    assert survey(tmp_path)["files"] == 3
    later = PrefixCache(disk=DiskBlocks(tmp_path, "model"))
    assert len(restored(later, PROMPT)) == 3 * BLOCK
    assert later.counts.read == 3
    other = PrefixCache(disk=DiskBlocks(tmp_path, "another model"))
    assert restored(other, PROMPT) == []


def test_what_is_used_again_is_written_while_the_process_runs(tmp_path: Path) -> None:
    cache = PrefixCache(disk=DiskBlocks(tmp_path, "model"))
    stored(cache, PROMPT)
    assert survey(tmp_path)["files"] == 0
    restored(cache, PROMPT)
    assert cache.disk is not None
    cache.disk.close()
    assert survey(tmp_path)["files"] == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other tokens"])
def test_a_damaged_file_is_removed_and_read_no_more(tmp_path: Path, damage: str) -> None:
    cache = PrefixCache(disk=DiskBlocks(tmp_path, "model"))
    stored(cache, PROMPT[:BLOCK])
    cache.write_latest()
    [path] = tmp_path.glob("*/*.kv")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    elif damage == "other tokens":
        content[-2 * 4 * BLOCK] ^= 1
    path.write_bytes({"cut": content[:-3], "empty": b""}.get(damage, bytes(content)))
    later = PrefixCache(disk=DiskBlocks(tmp_path, "model"))
    assert restored(later, PROMPT) == []
    assert not path.exists()


def test_the_disk_is_bounded_and_the_oldest_files_go(tmp_path: Path) -> None:
    disk = DiskBlocks(tmp_path, "model", most_bytes=2_500)
    cache = PrefixCache(disk=disk)
    for number in range(12):
        stored(cache, [number, *PROMPT[1:BLOCK]])
        cache.write_latest()
        for path in tmp_path.glob("*/*.kv"):
            if path.stat().st_mtime > 1e9 + 100:  # the new one
                os.utime(path, (1e9 + number, 1e9 + number))
    assert 0 < survey(tmp_path)["bytes"] <= 2_500
    later = PrefixCache(disk=DiskBlocks(tmp_path, "model", most_bytes=2_500))
    assert restored(later, [0, *PROMPT[1:BLOCK], 1]) == []
    assert len(restored(later, [11, *PROMPT[1:BLOCK], 1])) == BLOCK


def test_a_disk_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    disk = DiskBlocks(tmp_path / "file" / "folder", "model")
    cache = PrefixCache(disk=disk)
    stored(cache, PROMPT)
    cache.write_latest()
    assert "cannot write" in disk.failed
    assert len(restored(cache, PROMPT)) == 3 * BLOCK


WRITER = """
import sys
from pathlib import Path
import numpy as np
from codecria.core.inference.prefix_cache import Block, DiskBlocks

disk = DiskBlocks(Path(sys.argv[1]), "model", most_bytes=6_000_000)
print("begins", flush=True)
while True:
    for key in range(40):
        content = np.full(200_000, key, np.uint8)
        disk.write(bytes([key]), Block(bytes([key]) * 64, content))
"""


def read(disk: DiskBlocks, key: int) -> bool:
    """Whether a block of the writers' is there; one that is not whole counts as damaged."""
    return disk.read(bytes([key]), bytes([key]) * 64) is not None


def test_writers_that_share_a_folder_and_are_killed_leave_whole_blocks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    reader = DiskBlocks(tmp_path, "model", most_bytes=6_000_000)
    found = 0
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begins\n"
        for _ in range(1000):  # while they write the same blocks, and remove the oldest
            found += sum(read(reader, key) for key in range(40))
            if found >= 100:
                break
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert found >= 100
    assert sum(read(reader, key) for key in range(40)) > 0
    assert reader.damaged == 0
    for path in tmp_path.glob(f"*/{TEMPORARY_PREFIX}*"):  # what the killed were writing
        os.utime(path, (1e9, 1e9))
    reader.sweep()
    assert {path.suffix for path in tmp_path.glob("*/*")} <= {".kv"}
    assert survey(tmp_path)["bytes"] <= 6_000_000


def test_a_models_digest_follows_its_files_and_its_runner(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    notes = tmp_path / "cache"
    first = model_digest([weights], {"layout": "a"}, notes)
    assert model_digest([weights], {"layout": "a"}, notes) == first
    assert model_digest([weights], {"layout": "b"}, notes) != first
    weights.write_bytes(b"22")
    assert model_digest([weights], {"layout": "a"}, notes) != first
    (notes / "models.json").write_text("[]")
    assert model_digest([weights], {"layout": "a"}, tmp_path / "elsewhere") == model_digest(
        [weights], {"layout": "a"}, notes
    )
