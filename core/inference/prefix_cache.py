"""Keys and values of prompts that were read, for the next prompt that begins alike.

The second completion in a file reads only what changed. Blocks of 16 tokens are kept in memory and,
if a folder is given, on disk; the least recently used go first.

    tokens   [ block 0 ][ block 1 ][ block 2 ][ rest ]
    key      k0 = H(root, tokens 0)   k1 = H(k0, tokens 1)   k2 = H(k1, tokens 2)

A key stands for all tokens up to a block's end, as keys and values depend on all of them. The root
is the digest of the model and of how it is computed. A block is used only if its tokens are those
of the prompt and its bytes are as they were written. Files appear whole or not at all; one that is
damaged is removed and counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codecria.data.errors import UserError
from codecria.data.files import TEMPORARY_PREFIX, atomic_path, digest_file, temporary_beside

from .runner import Runner, Snapshot

BLOCK = 16  # tokens
MEMORY_BYTES = 1_000_000_000
DISK_BYTES = 2_000_000_000
CLOSING_BYTES = 64 << 20  # of the latest blocks that are written when a server ends
QUEUED_WRITES = 64  # more are dropped: a slow disk must not hold the engine up
KEY_BYTES = 20
MAGIC = b"codecria kv 1\n"
SUFFIX = ".kv"
LEFTOVER_S = 3600.0  # age of a temporary file whose writer is gone


def default_folder() -> Path:
    """Where blocks are kept on disk: codecria/prefixes in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "codecria" / "prefixes"


@dataclass(slots=True)
class Block:
    """Keys and values of `BLOCK` positions.

    Attributes:
        tokens: their ids, as bytes.
        snapshot: of the runner.
        written: whether it is on disk.
    """

    tokens: bytes
    snapshot: Snapshot
    written: bool = False


@dataclass(slots=True)
class Counts:
    """What a cache has done.

    Attributes:
        asked: tokens of prompts that were looked up.
        found: of these, tokens that were there.
        read: blocks that came from disk.
        damaged: files that were damaged and removed.
    """

    asked: int = 0
    found: int = 0
    read: int = 0
    damaged: int = 0


class PrefixCache:
    """Blocks of one model, in memory and on disk. The engine's thread alone uses it.

    Args:
        memory_bytes: most bytes of blocks in memory.
        disk: the blocks on disk, or None.
    """

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES, disk: DiskBlocks | None = None) -> None:
        self.counts = Counts()
        self.disk = disk
        self._most = memory_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # the latest last
        self._bytes = 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of the blocks in memory."""
        return self._bytes

    def restore(self, runner: Runner, row: int, tokens: Sequence[int]) -> int:
        """Put what is known of a prompt into an empty row.

        Args:
            runner: of the cache's model.
            row: reserved, and empty.
            tokens: the prompt; its last one is never restored, as its scores are not kept.

        Returns:
            the positions that were filled.
        """
        keys = _keys(tokens[: len(tokens) - 1])
        self.counts.asked += len(tokens)
        filled = 0
        for key, part in keys:
            block = self._find(key, part)
            if block is None:
                break
            runner.restore(row, filled, block.snapshot)
            filled += BLOCK
        self.counts.found += filled
        return filled

    def store(self, runner: Runner, row: int, tokens: Sequence[int]) -> None:
        """Keep the whole blocks of a row that are not kept yet.

        Args:
            runner: of the cache's model.
            row: holds these tokens.
            tokens: from its start.
        """
        start = 0
        for key, part in _keys(tokens):
            if key in self._blocks:
                self._blocks.move_to_end(key)
            else:
                found = runner.snapshot(row, start, start + BLOCK)
                if found.nbytes > self._most:
                    return
                self._add(key, Block(part, found, written=False))
            start += BLOCK

    def write_latest(self, most_bytes: int = CLOSING_BYTES) -> None:
        """Write the latest blocks that are not on disk yet, before the process ends."""
        if self.disk is None:
            return
        total = 0
        chosen = []
        for key, block in reversed(self._blocks.items()):
            total += block.snapshot.nbytes
            if total > most_bytes:
                break
            if not block.written:
                chosen.append((key, block))
        for key, block in reversed(chosen):
            self.disk.write(key, block)
            block.written = True
        self.disk.close()

    def _find(self, key: bytes, tokens: bytes) -> Block | None:
        block = self._blocks.get(key)
        if block is None:
            block = None if self.disk is None else self.disk.read(key, tokens)
            if block is None:
                return None
            self.counts.read += 1
            self._add(key, block)
            return block
        if block.tokens != tokens:
            return None
        self._blocks.move_to_end(key)
        if self.disk is not None and not block.written:
            # What is used a second time may be of use to the next process: text that is typed
            # changes with each key, and writing all of it would wear the disk.
            block.written = self.disk.write_soon(key, block)
        return block

    def _add(self, key: bytes, block: Block) -> None:
        self._blocks[key] = block
        self._bytes += block.snapshot.nbytes
        while self._bytes > self._most:
            _, dropped = self._blocks.popitem(last=False)
            self._bytes -= dropped.snapshot.nbytes


class DiskBlocks:
    """Blocks of all models in one folder.

    Args:
        folder: made if need be, for its owner alone: blocks tell what text was.
        model: digest of the model and of how it is computed.
        most_bytes: of all files; the least recently used are removed.
    """

    def __init__(self, folder: Path, model: str, *, most_bytes: int = DISK_BYTES) -> None:
        self.folder = folder
        self.failed = ""  # why nothing is written any more
        self.damaged = 0
        self._model = model
        self._most = most_bytes
        self._queue: queue.Queue[tuple[bytes, Block] | None] = queue.Queue(QUEUED_WRITES)
        self._thread: threading.Thread | None = None
        self._added = 0
        self._lock = threading.Lock()
        self.sweep()

    def read(self, key: bytes, tokens: bytes) -> Block | None:
        """The block with this key and these tokens, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        block = self._parsed(content, tokens)
        if block is None:
            self.damaged += 1
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it is the latest now
        return block

    def write_soon(self, key: bytes, block: Block) -> bool:
        """Write a block in a thread; False where too many wait, and it is not written."""
        if self.failed:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="prefix-writer", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((key, block))
        except queue.Full:
            return False
        return True

    def write(self, key: bytes, block: Block) -> None:
        """Write a block; a disk that cannot be written is noted in `failed` and left alone."""
        if self.failed:
            return
        path = self._path(key)
        data = block.snapshot.tobytes()
        head: dict[str, Any] = {"model": self._model, "bytes": len(data), "digest": _digest(data)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(exist_ok=True)
            temporary = temporary_beside(path)
            try:
                with temporary.open("wb") as file:
                    file.write(MAGIC + json.dumps(head).encode() + b"\n" + block.tokens)
                    file.write(data)
                # Not flushed to the disk first: a block that is lost or damaged is read again.
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self.failed = f"cannot write {path}: {error.strerror}"
            return
        with self._lock:
            self._added += len(data)
            sweep = self._added > self._most // 16
        if sweep:
            self.sweep()

    def close(self) -> None:
        """Wait for the writes under way."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self.sweep()

    def sweep(self) -> None:
        """Remove the least recently used files that are beyond the limit."""
        with self._lock:
            self._added = 0
        found = sorted(_files(self.folder))
        for path in self.folder.glob(f"*/{TEMPORARY_PREFIX}*"):  # of writers that were killed
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFTOVER_S:
                    path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self._most:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self.write(*item)

    def _path(self, key: bytes) -> Path:
        name = _digest(self._model.encode(), key)
        return self.folder / name[:2] / (name + SUFFIX)

    def _parsed(self, content: bytes, tokens: bytes) -> Block | None:
        """The block in a file, or None where it is damaged or another's."""
        if not content.startswith(MAGIC):
            return None
        line, _, body = content[len(MAGIC) :].partition(b"\n")
        try:
            head = json.loads(line)
            known = (head["model"], head["bytes"], head["digest"])
        except (ValueError, KeyError, TypeError):
            return None
        data = body[len(tokens) :]
        same = known == (self._model, len(data), _digest(data))
        if not same or body[: len(tokens)] != tokens:
            return None
        return Block(tokens, np.frombuffer(data, dtype=np.uint8).copy(), written=True)


def survey(folder: Path | None = None) -> dict[str, Any]:
    """What `doctor` shows of the blocks on disk."""
    folder = folder or default_folder()
    sizes = [size for _, size, _ in _files(folder)]
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes), "limit": DISK_BYTES}


def model_digest(files: Sequence[Path], facts: dict[str, Any], folder: Path) -> str:
    """A digest of a model's files and of how it is computed.

    The digest of a file is remembered by its place, size and time of change, so that large files
    are read once.

    Args:
        files: configuration and weights.
        facts: the kind of runner, its types, the program's version.
        folder: of the prefix cache.
    """
    notes = folder / "models.json"
    try:
        known = json.loads(notes.read_bytes())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    found: dict[str, str] = {}
    for path in sorted(files):
        state = path.stat()
        name = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}"
        digest = known.get(name)
        found[name] = digest if isinstance(digest, str) else digest_file(path)
    if found.keys() - known.keys():
        latest = dict(list((known | found).items())[-200:])
        with contextlib.suppress(OSError, UserError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_path(notes) as temporary:
                temporary.write_text(json.dumps(latest))
    return _digest(*sorted(d.encode() for d in found.values()), json.dumps(facts).encode())


def _keys(tokens: Sequence[int]) -> list[tuple[bytes, bytes]]:
    """(key, tokens as bytes) of the whole blocks of a sequence."""
    ids: npt.NDArray[np.int32] = np.asarray(tokens, dtype=np.int32)
    found = []
    key = b""
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        part = ids[start : start + BLOCK].tobytes()
        key = hashlib.blake2b(key + part, digest_size=KEY_BYTES).digest()
        found.append((key, part))
    return found


def _digest(*parts: bytes) -> str:
    found = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of the files in a folder."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*/*{SUFFIX}"):
            with contextlib.suppress(OSError):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
    return found
