"""Compressed files are read whole, and up to every place that can be read when they are not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.compressed import Compression, Damaged, read_blocks

COMPRESS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def read(path: Path, compression: Compression) -> tuple[bytes, bool]:
    """(what can be read, whether the file is damaged)."""
    content = b""
    try:
        for block in read_blocks(path, compression):
            content += block
    except Damaged:
        return content, True
    return content, False


@settings(max_examples=40, deadline=None)
@given(
    members=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    zeros=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    compression=st.sampled_from(sorted(COMPRESS)),
)
def test_members_with_zeros_between_them_are_one_file(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[bytes],
    zeros: list[int],
    compression: Compression,
) -> None:
    path = tmp_path_factory.mktemp("members") / "f"
    compress = COMPRESS[compression]
    path.write_bytes(
        b"".join(
            compress(member) + b"\0" * count for member, count in zip(members, zeros, strict=False)
        )
    )
    assert read(path, compression) == (b"".join(members), False)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), share=st.floats(0, 1), flip=st.booleans())
def test_a_damaged_gzip_file_gives_all_that_zlib_can_decode(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float, flip: bool
) -> None:
    # Kills: the block in which the decompressor raises is lost.
    generator = random.Random(seed)
    words = [generator.randbytes(6).hex() for _ in range(300)]
    content = b"".join(generator.choice(words).encode() + b"\n" for _ in range(20_000))
    packed = bytearray(gzip.compress(content))
    place = int(share * (len(packed) - 1))
    if flip:
        packed[place] ^= 0x10
    else:
        del packed[place:]
    path = tmp_path_factory.mktemp("damaged") / "f.gz"
    path.write_bytes(packed)
    decoder, decoded = zlib.decompressobj(wbits=31), b""
    try:
        for byte in packed:
            decoded += decoder.decompress(bytes([byte]))
    except zlib.error:
        pass
    found, damaged = read(path, "gzip")
    assert found[: len(decoded)] == decoded
    assert damaged or found == content


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_truncated_file_of_arrows_formats_gives_its_whole_blocks(
    tmp_path: Path, compression: Compression
) -> None:
    content = random.Random(0).randbytes(1_000_000)
    path = tmp_path / "f"
    with pa.CompressedOutputStream(str(path), compression) as stream:
        stream.write(content)
    whole = path.read_bytes()
    assert read(path, compression) == (content, False)
    path.write_bytes(whole * 2)
    assert read(path, compression) == (content * 2, False)
    path.write_bytes(whole[:-1000])
    found, damaged = read(path, compression)
    assert damaged
    assert content.startswith(found)
    assert len(found) > len(content) - (1 << 17), "at most one block is lost"


def test_members_after_a_damaged_one_are_read_from_a_line_of_their_own(tmp_path: Path) -> None:
    lines = [f"line {i}\n".encode() * 50 for i in range(3)]
    packed = [bytearray(gzip.compress(line)) for line in lines]
    packed[1] = packed[1][:25]
    path = tmp_path / "f.gz"
    path.write_bytes(b"".join(packed))
    found, damaged = read(path, "gzip")
    assert damaged
    assert found.startswith(lines[0])
    assert found.endswith(b"\n" + lines[2]) or found == lines[0] + lines[2]


def test_a_file_that_cannot_be_opened_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_blocks(tmp_path / "absent", "gzip"))
