"""Shard sets: what is written is read, through shard borders, and damage is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.rows.shards import (
    ShardSet,
    TokenizerFacts,
    token_dtype,
    write_manifest,
)
from tests.shard_files import write_shard

documents_lists = st.lists(
    st.lists(st.integers(0, 70_000), min_size=2, max_size=9), min_size=1, max_size=12
)


def write(folder: Path, shards: list[list[list[int]]], vocab_size: int) -> None:
    entries = [
        write_shard(
            folder,
            f"train-{n:05d}",
            tokens=np.array([token for d in part for token in d], dtype=np.int64),
            offsets=np.cumsum([0, *map(len, part)]),
            flags=np.array([len(d) % 2 for d in part], dtype=np.uint8),
            metadata=pa.table({"id": [f"{n}/{d}" for d in range(len(part))]}),
            vocab_size=vocab_size,
        )
        for n, part in enumerate(shards)
    ]
    facts = TokenizerFacts(digest="t", vocab_size=vocab_size, bos_id=1, eos_id=2)
    write_manifest(
        folder,
        {"train": entries},
        tokenizer=facts,
        sources=[],
        languages={},
        licences={},
        recipe={},
    )


@settings(max_examples=25)
@given(shards=st.lists(documents_lists, min_size=1, max_size=3), data=st.data())
def test_documents_and_spans_come_back_through_shard_borders(
    shards: list[list[list[int]]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("set")
    write(folder, shards, vocab_size=70_001)
    opened = ShardSet.open(folder)
    documents = [d for part in shards for d in part]
    everything = [token for d in documents for token in d]
    assert (opened.n_documents, opened.n_tokens) == (len(documents), len(everything))
    for d, document in enumerate(documents):
        assert opened.document(d).tolist() == document
        assert opened.length(d) == len(document)
        assert opened.flags(d) == len(document) % 2
    numbers = [f"{n}/{d}" for n, part in enumerate(shards) for d in range(len(part))]
    d = data.draw(st.integers(0, len(documents) - 1))
    assert opened.metadata(d)["id"] == numbers[d]
    start = data.draw(st.integers(0, len(everything)))
    stop = data.draw(st.integers(start, len(everything)))
    assert opened.tokens(start, stop).tolist() == everything[start:stop]
    owners = [d for d, document in enumerate(documents) for _ in document]
    assert [opened.document_at(token) for token in range(len(everything))] == owners
    offsets = np.cumsum([0, *map(len, documents)]).tolist()
    last = data.draw(st.integers(d, len(documents)))
    assert opened.offsets(d, last).tolist() == offsets[d : last + 1]
    assert opened.verify() == []


def test_ids_are_as_narrow_as_the_vocabulary_allows(tmp_path: Path) -> None:
    assert (token_dtype(65_536), token_dtype(65_537)) == ("uint16", "uint32")
    write(tmp_path, [[[1, 5, 2]]], vocab_size=32_000)
    assert (tmp_path / "train-00000.tokens").read_bytes() == bytes([1, 0, 5, 0, 2, 0])
    assert np.fromfile(tmp_path / "train-00000.offsets", "<u8").tolist() == [0, 3]


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    write(one, [[[1, 5, 2]]], 100)
    write(two, [[[1, 5, 2]]], 100)
    write(other, [[[1, 6, 2]]], 100)
    assert ShardSet.open(one).digest == ShardSet.open(two).digest != ShardSet.open(other).digest


def manifest_with(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "does not exist": lambda f: shutil.rmtree(f),
    "has no manifest.json": lambda f: (f / "manifest.json").unlink(),
    "is not valid JSON": lambda f: (f / "manifest.json").write_text("{"),
    "is not the manifest of a shard set": lambda f: manifest_with(f, format="other"),
    "is of version 99": lambda f: manifest_with(f, version=99),
    "is damaged: tokenizer": lambda f: manifest_with(f, tokenizer=3),
    "train-00000.tokens is missing": lambda f: (f / "train-00000.tokens").unlink(),
    "train-00000.flags has 0 bytes, the manifest says 2": lambda f: (
        f / "train-00000.flags"
    ).write_bytes(b""),
    "does not have its own digest": lambda f: manifest_with(f, splits={}),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named(message: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, [[[1, 5, 2], [1, 2]]], 100)
    DAMAGES[message](folder)
    with pytest.raises(UserError, match=message):
        ShardSet.open(folder)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, [[[1, 5, 2]]], 100)
    with pytest.raises(UserError, match="has no split 'validation'"):
        ShardSet.open(tmp_path, "validation")


def test_a_changed_byte_is_found_by_verification_alone(tmp_path: Path) -> None:
    write(tmp_path, [[[1, 5, 2]]], 100)
    path = tmp_path / "train-00000.tokens"
    path.write_bytes(bytes([1, 0, 6, 0, 2, 0]))
    (tmp_path / "train-00000.parquet").unlink()
    assert ShardSet.open(tmp_path).verify() == [
        "train-00000.tokens is not the file that was written",
        "train-00000.parquet is missing",
    ]
