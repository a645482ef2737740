"""Decompressed bytes of a file, up to every place that can be read.

gzip, bzip2 and xz are read member by member: zeros between members are padding, and after a
damaged member reading resumes at the next one. zstd and lz4 are read up to the damage.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import pyarrow as pa

Compression = Literal["gzip", "zstd", "bz2", "xz", "lz4"]
COMPRESSIONS: dict[str, Compression] = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lz4": "lz4",
}
BLOCK_BYTES = 1 << 20
OVERRUN_BYTES = 1 << 12  # before damage shows, in which the next member may begin
DAMAGE = (zlib.error, lzma.LZMAError, EOFError, OSError)


class Damaged(OSError):
    """A file's content is damaged; what could be read of it was given before."""


class _Decompressor(Protocol):
    """What the decompressors of zlib, bz2 and lzma share."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Format:
    """A format of members, each of which begins with a magic number.

    Attributes:
        piece_bytes: compressed bytes taken at once, so few that they cannot become gigabytes.
    """

    new: Callable[[], _Decompressor]
    magic: bytes
    piece_bytes: int


_FORMATS = {
    "gzip": _Format(lambda: zlib.decompressobj(wbits=31), b"\x1f\x8b\x08", 1 << 16),
    "bz2": _Format(bz2.BZ2Decompressor, b"BZh", 1 << 12),
    "xz": _Format(lzma.LZMADecompressor, b"\xfd7zXZ\0", 1 << 13),
}


def read_blocks(path: Path, compression: Compression) -> Iterator[bytes]:
    """The content of a compressed file in blocks of any size.

    Raises:
        Damaged: part of the content cannot be read; all the rest was given.
        OSError: the file cannot be read.
    """
    with path.open("rb") as raw:
        if compression in _FORMATS:
            yield from _read_members(raw, _FORMATS[compression])
        else:
            yield from _read_arrow(raw, compression)


def _read_members(raw: IO[bytes], form: _Format) -> Iterator[bytes]:
    damage: BaseException | None = None
    start: int | None = 0
    last = b""
    while start is not None:
        if damage is not None and last and not last.endswith(b"\n"):
            yield b"\n"  # the line that the damage cut off does not run into the next member's
        member = _Member(raw, form, start)
        for block in member.read():
            yield block
            last = block
        damage = damage or member.damage
        start, garbage = _next_member(raw, form.magic, member.end)
        if garbage and damage is None:
            damage = Damaged("the end of the file is no compressed data")
    if damage is not None:
        raise Damaged(str(damage) or type(damage).__name__) from damage


class _Member:
    """One member of a compressed file.

    Attributes:
        end: where the next member may begin.
        damage: what is wrong with it, known once it was read.
    """

    def __init__(self, raw: IO[bytes], form: _Format, start: int) -> None:
        self._raw, self._form, self._start = raw, form, start
        self.end = start + 1
        self.damage: BaseException | None = None

    def read(self) -> Iterator[bytes]:
        """Its content; what precedes the damage is read once more, byte by byte."""
        given = 0
        try:
            for block in self._decompressed():
                yield block
                given += len(block)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self.damage = error
            yield from self._after(given)

    def _decompressed(self) -> Iterator[bytes]:
        decompressor = self._form.new()
        self._raw.seek(self._start)
        while not decompressor.eof:
            piece = self._raw.read(self._form.piece_bytes)
            if not piece:
                raise EOFError("the compressed data ends before its end mark")
            if block := decompressor.decompress(piece):
                yield block
            self.end = max(self._start + 1, self._raw.tell() - len(decompressor.unused_data))

    def _after(self, given: int) -> Iterator[bytes]:
        """What can be read after the first `given` bytes."""
        decompressor = self._form.new()
        self._raw.seek(self._start)
        position = 0
        reached = max(0, self.end - self._start - 2 * self._form.piece_bytes)
        try:
            while piece := self._raw.read(self._form.piece_bytes if position < reached else 1):
                block = decompressor.decompress(piece)
                position += len(piece)
                if len(block) > given:
                    yield block[given:]
                given = max(0, given - len(block))
        except DAMAGE:
            pass
        # A member that is cut off takes the head of the next one for its own end.
        self.end = self._start + max(1, position - OVERRUN_BYTES)


def _next_member(raw: IO[bytes], magic: bytes, start: int) -> tuple[int | None, bool]:
    """Where the next member begins, if there is one, and whether more than zeros precedes it."""
    raw.seek(start)
    garbage = False
    held, position = b"", start
    while block := raw.read(BLOCK_BYTES):
        held += block
        found = held.find(magic)
        before = held if found < 0 else held[:found]
        garbage = garbage or bool(before.strip(b"\0"))
        if found >= 0:
            return position + found, garbage
        kept = len(magic) - 1
        position += len(held) - min(kept, len(held))
        held = held[-kept:]
    return None, garbage


def _read_arrow(raw: IO[bytes], compression: str) -> Iterator[bytes]:
    given = 0
    try:
        stream = pa.CompressedInputStream(raw, compression)
        while block := stream.read(BLOCK_BYTES):
            yield block
            given += len(block)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Of the block that failed, what precedes the damage can still be had in small reads.
        yield from _read_arrow_after(raw, compression, given)
        raise Damaged((str(error).splitlines() or [type(error).__name__])[0]) from error


def _read_arrow_after(raw: IO[bytes], compression: str, given: int) -> Iterator[bytes]:
    raw.seek(0)
    rest = bytearray()
    try:
        stream = pa.CompressedInputStream(raw, compression)
        while given:
            given -= len(stream.read(min(given, BLOCK_BYTES)))
        while byte := stream.read(1):
            rest += byte
    except (OSError, pa.ArrowException):
        pass
    if rest:
        yield bytes(rest)
