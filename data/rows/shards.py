"""A shard set: token ids on disk with document boundaries, memory-mapped, numpy alone suffices.

    DIR/manifest.json                what is here, with digests; written last
    DIR/tokenizer.model              what the ids mean
    DIR/report.json                  how the data came about, for people
    DIR/train-00000.tokens           ids, little-endian uint16 or uint32, each document BOS ... EOS
    DIR/train-00000.offsets          uint64, documents + 1, the first token of each in this shard
    DIR/train-00000.flags            uint8 a document, see ROUNDTRIP_LOSSY
    DIR/train-00000.parquet          a row a document: id, source, path, language, licence,
                                     redactions, bytes
    DIR/train-00000.learned          uint8 a token, 1 where it is a target: dialogs alone have it
    DIR/train-00000.keys             what documents appended later are compared with (`near.KEYS`)
    DIR/dropped.parquet              what was not kept, and why (`drops.py`)
    DIR/validation-00000.*           likewise

Documents and tokens of a split are numbered through all its shards, in the manifest's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter, ValidationError

from codecria.data.errors import UserError
from codecria.data.files import (
    atomic_write_json,
    atomic_writer,
    digest_file,
    digest_json,
    read_json,
)

FORMAT = "codecria-shards"
VERSION = 1
MANIFEST_NAME = "manifest.json"
SETS_NAME = "sets.json"  # in a folder whose subfolders are shard sets
SETS_FORMAT = "codecria-shard-sets"
ROUNDTRIP_LOSSY = 1  # flag: decode(encode(text)) differs from the text; never to be infilled
PARTS = ("tokens", "offsets", "flags", "parquet")
LEARNED_PART = "learned"  # beside them where not every token is a target
_CONTENT = {"tokens", "offsets", "flags", LEARNED_PART}
KEYS_PART = "keys"  # beside them where more can be appended

AGAIN = "make the shards again with `codecria prepare-data`"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What a reader must know of the tokenizer the ids come from."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    digest: str
    vocab_size: int
    bos_id: int
    eos_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: its file names' stem, its size, and the digest of each of its files."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    documents: int
    tokens: int
    digests: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """One split: its totals and its shards in order."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    documents: int
    tokens: int
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a shard set holds; the content of manifest.json.

    Attributes:
        format, version: of the layout on disk.
        dtype: of the token files, "uint16" or "uint32".
        tokenizer: what the ids come from.
        splits: "train", and "validation" where there is one.
        sources: name and counts of each source, as prepared.
        languages, licences: counts by name.
        recipe: the settings of the preparation.
        digest: of the content: tokens, offsets, flags and this page without times and paths.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: str
    version: int
    dtype: str
    tokenizer: TokenizerFacts
    splits: dict[str, SplitEntry]
    sources: list[dict[str, Any]]
    languages: dict[str, dict[str, int]]
    licences: dict[str, dict[str, int]]
    recipe: dict[str, Any]
    digest: str


def token_dtype(vocab_size: int) -> str:
    """The narrowest of "uint16" and "uint32" that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def finish_shard(
    folder: Path,
    name: str,
    *,
    offsets: npt.NDArray[Any],
    flags: npt.NDArray[Any],
    metadata: pa.Table,
    keys: pa.Table | None = None,
    learned: bool = False,
) -> ShardEntry:
    """Write what goes beside a shard's tokens, which are there, each file whole or not at all.

    Args:
        folder: where they go.
        name: stem of their names, such as "train-00000".
        offsets: (documents + 1,) first token of each document, then the number of tokens.
        flags: (documents,) bits of each document.
        metadata: a row a document: id, source, path, language, licence, redactions, bytes.
        keys: what later documents are compared with (`near.KEYS`), or None to keep nothing.
        learned: whether there is a file that marks which tokens are targets.

    Returns:
        the shard's entry for the manifest.
    """
    documents = len(offsets) - 1
    assert len(flags) == metadata.num_rows == documents, f"{name}: parts of unequal length"
    assert offsets[0] == 0, f"{name}: the first document starts at {offsets[0]}"
    for part, values, dtype in (("offsets", offsets, "<u8"), ("flags", flags, "u1")):
        with atomic_writer(folder / f"{name}.{part}") as file:
            file.write(np.ascontiguousarray(values, dtype=np.dtype(dtype)).data)
    with atomic_writer(folder / f"{name}.parquet") as file:
        pq.write_table(metadata, file)
    parts: tuple[str, ...] = (*PARTS, LEARNED_PART) if learned else PARTS
    if keys is not None:
        parts = (*parts, KEYS_PART)
        with (
            atomic_writer(folder / f"{name}.{KEYS_PART}") as file,
            pa.ipc.new_file(file, keys.schema) as writer,
        ):
            writer.write_table(keys.combine_chunks())
    return ShardEntry(
        name=name,
        documents=documents,
        tokens=int(offsets[-1]),
        digests={part: digest_file(folder / f"{name}.{part}") for part in parts},
    )


def write_manifest(
    folder: Path,
    splits: Mapping[str, Sequence[ShardEntry]],
    *,
    tokenizer: TokenizerFacts,
    sources: list[dict[str, Any]],
    languages: dict[str, dict[str, int]],
    licences: dict[str, dict[str, int]],
    recipe: dict[str, Any],
) -> Manifest:
    """Write manifest.json, which makes the folder a shard set. Call it last.

    Args:
        folder: holds the shards and tokenizer.model.
        splits: the shards of each split, in order.
        tokenizer, sources, languages, licences, recipe: see `Manifest`.
    """
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        dtype=token_dtype(tokenizer.vocab_size),
        tokenizer=tokenizer,
        splits={
            split: SplitEntry(
                documents=sum(entry.documents for entry in entries),
                tokens=sum(entry.tokens for entry in entries),
                shards=tuple(entries),
            )
            for split, entries in splits.items()
        },
        sources=sources,
        languages=languages,
        licences=licences,
        recipe=recipe,
        digest="",
    )
    value = asdict(manifest)
    value["digest"] = content_digest(manifest)
    atomic_write_json(folder / MANIFEST_NAME, value)
    return TypeAdapter(Manifest).validate_python(value)


def content_digest(manifest: Manifest) -> str:
    """The digest of a shard set: token bytes, offsets, flags, targets, and the manifest itself.

    Neither holds a time or a path, so the same documents prepared elsewhere are the same data. The
    parquet side files are left out: their bytes change with the version of the library.
    """
    value = asdict(manifest)
    del value["digest"]
    for split in value["splits"].values():
        for shard in split["shards"]:
            shard["digests"] = {p: d for p, d in shard["digests"].items() if p in _CONTENT}
    return digest_json(value)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard set.

    Raises:
        UserError: the folder is no shard set, an unfinished one, or of another version.
    """
    path = folder / MANIFEST_NAME
    if (folder / SETS_NAME).is_file():
        names = ", ".join(str(held) for held in sets_in(folder).values())
        raise UserError(f"{folder} holds several shard sets", hint=f"name one of them: {names}")
    if not path.is_file():
        if folder.is_dir():
            what, hint = "has no manifest.json", AGAIN
        else:
            what, hint = "does not exist", f"`codecria prepare-data ... --out {folder}` makes it"
        raise UserError(f"{folder} is not a finished shard set: it {what}", hint=hint)
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise UserError(f"{path} is not the manifest of a shard set", hint=AGAIN)
    if raw.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {raw.get('version')}, this codecria reads {VERSION}", hint=AGAIN
        )
    try:
        manifest = TypeAdapter(Manifest).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged: {where}: {first['msg']}", hint=AGAIN) from error
    if manifest.digest != content_digest(manifest):
        raise UserError(f"{path} is damaged: it does not have its own digest", hint=AGAIN)
    return manifest


def write_sets(folder: Path, groups: Sequence[str], weights: Mapping[str, float]) -> None:
    """Write sets.json, which names the shard sets below a folder. Call it last.

    Args:
        folder: whose subfolders are the sets.
        groups: their names.
        weights: of a mixture of them, or none; see `Mixture.parse`.
    """
    value = {"format": SETS_FORMAT, "sets": list(groups), "weights": dict(weights)}
    atomic_write_json(folder / SETS_NAME, value)


def sets_in(folder: Path) -> dict[str, Path]:
    """The shard sets at a folder by name: itself, called "", or those that sets.json names.

    Raises:
        UserError: sets.json is damaged.
    """
    if not (folder / SETS_NAME).is_file():
        return {"": folder}
    return {name: folder / name for name in _read_sets(folder)[0]}


def set_weights(folder: Path) -> dict[str, float]:
    """The weights that sets.json gives the sets at a folder; empty where it gives none."""
    return _read_sets(folder)[1] if (folder / SETS_NAME).is_file() else {}


def _read_sets(folder: Path) -> tuple[list[str], dict[str, float]]:
    path = folder / SETS_NAME
    raw = read_json(path)
    names = raw.get("sets") if isinstance(raw, dict) else None
    if not isinstance(names, list) or raw.get("format") != SETS_FORMAT:
        raise UserError(f"{path} does not name shard sets", hint=AGAIN)
    return [str(name) for name in names], dict(raw.get("weights") or {})


class ShardSet:
    """One split of a shard set, memory-mapped and read-only; open one with `ShardSet.open`.

    Document d and token t are numbered through all shards of the split.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self.folder = folder
        self.split = split
        self.manifest = manifest
        entry = manifest.splits[split]
        self._shards = entry.shards
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._tokens = [self._map(s, "tokens", dtype, s.tokens) for s in entry.shards]
        self._offsets = [self._map(s, "offsets", "<u8", s.documents + 1) for s in entry.shards]
        self._flags = [self._map(s, "flags", "u1", s.documents) for s in entry.shards]
        self._learned = [
            self._map(s, LEARNED_PART, "u1", s.tokens)
            for s in entry.shards
            if LEARNED_PART in s.digests
        ]
        self._first_document = np.cumsum([0, *(s.documents for s in entry.shards)])
        self._first_token = np.cumsum([0, *(s.tokens for s in entry.shards)])
        self._languages = lru_cache(maxsize=4)(self._read_languages)

    @classmethod
    def open(cls, folder: Path, split: str = "train") -> ShardSet:
        """Open a split; nothing is read but the manifest.

        Raises:
            UserError: no shard set, no such split, an empty one, or a file is missing or cut.
        """
        manifest = read_manifest(folder)
        if split not in manifest.splits:
            raise UserError(f"{folder} has no split {split!r}", hint=AGAIN)
        if not manifest.splits[split].tokens:
            raise UserError(f"{folder}: the split {split!r} is empty", hint=AGAIN)
        return cls(folder, split, manifest)

    @property
    def digest(self) -> str:
        """The digest of the whole shard set's content."""
        return self.manifest.digest

    @property
    def tokenizer_digest(self) -> str:
        """The digest of the tokenizer the ids come from."""
        return self.manifest.tokenizer.digest

    @property
    def dialogs(self) -> bool:
        """Whether it holds dialogs: some of their tokens are targets, others are not."""
        return bool(self._learned)

    @property
    def n_documents(self) -> int:
        """Documents in the split."""
        return int(self._first_document[-1])

    @property
    def n_tokens(self) -> int:
        """Tokens in the split, BOS and EOS of every document included."""
        return int(self._first_token[-1])

    def first_document(self, shard: int) -> int:
        """The first document of a shard, by its number in the manifest."""
        return int(self._first_document[shard])

    def offset(self, d: int) -> int:
        """The first token of document d; of d = n_documents, the number of tokens."""
        if d == self.n_documents:
            return self.n_tokens
        shard = self._shard_of_document(d)
        local = d - int(self._first_document[shard])
        return int(self._first_token[shard]) + int(self._offsets[shard][local])

    def offsets(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """The first tokens of documents first .. last, `last` included: (last - first + 1,)."""
        parts, d = [], first
        while d <= last:
            shard = min(self._shard_of_document(d), len(self._shards) - 1)
            base = int(self._first_document[shard])
            stop = min(last + 1, base + self._shards[shard].documents)
            if d == self.n_documents:
                parts.append(np.array([self.n_tokens], dtype=np.int64))
                break
            part = self._offsets[shard][d - base : stop - base].astype(np.int64)
            parts.append(part + int(self._first_token[shard]))
            d = stop
        return np.concatenate(parts)

    def document_at(self, token: int) -> int:
        """The document that token number `token` belongs to."""
        assert 0 <= token < self.n_tokens, f"token {token} of {self.n_tokens}"
        shard = int(np.searchsorted(self._first_token, token, side="right")) - 1
        local = token - int(self._first_token[shard])
        found = np.searchsorted(self._offsets[shard], local, side="right")
        return int(self._first_document[shard]) + int(found) - 1

    def length(self, d: int) -> int:
        """Tokens of document d, BOS and EOS included."""
        return self.offset(d + 1) - self.offset(d)

    def tokens(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Tokens start .. stop - 1, through shard borders."""
        return self._stretch(self._tokens, start, stop).astype(np.int32)

    def learned(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of tokens start .. stop - 1 are targets, in a set of dialogs."""
        assert self.dialogs, f"{self.folder} holds no dialogs"
        return self._stretch(self._learned, start, stop).astype(np.bool_)

    def _stretch(
        self, arrays: Sequence[npt.NDArray[Any]], start: int, stop: int
    ) -> npt.NDArray[Any]:
        assert 0 <= start <= stop <= self.n_tokens, f"[{start}, {stop}) of {self.n_tokens}"
        parts = []
        shard = int(np.searchsorted(self._first_token, start, side="right")) - 1
        while start < stop:
            base, end = int(self._first_token[shard]), int(self._first_token[shard + 1])
            parts.append(arrays[shard][start - base : min(stop, end) - base])
            start = min(stop, end)
            shard += 1
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def document(self, d: int) -> npt.NDArray[np.int32]:
        """The tokens of document d, BOS and EOS included."""
        return self.tokens(self.offset(d), self.offset(d + 1))

    def flags(self, d: int) -> int:
        """The bits of document d, see ROUNDTRIP_LOSSY."""
        shard = self._shard_of_document(d)
        return int(self._flags[shard][d - int(self._first_document[shard])])

    def metadata(self, d: int) -> dict[str, Any]:
        """What is known of document d: id, source, path, language, licence, bytes."""
        shard = self._shard_of_document(d)
        path = self.folder / f"{self._shards[shard].name}.parquet"
        local = d - int(self._first_document[shard])
        try:
            file = pq.ParquetFile(path)
            group = 0
            while local >= (rows := file.metadata.row_group(group).num_rows):
                local -= rows
                group += 1
            row: dict[str, Any] = file.read_row_group(group).slice(local, 1).to_pylist()[0]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged or missing: {error}", hint=AGAIN) from error
        return row

    def language(self, d: int) -> str | None:
        """The language of document d; None where the set does not record it."""
        known = [name for name, count in self.manifest.languages.items() if count]
        if len(known) == 1:
            return known[0]
        shard = self._shard_of_document(d)
        languages = self._languages(shard) if known else None
        return None if languages is None else languages[d - int(self._first_document[shard])]

    def _read_languages(self, shard: int) -> list[str | None] | None:
        path = self.folder / f"{self._shards[shard].name}.parquet"
        try:
            if "language" not in pq.read_schema(path).names:
                return None
            found: list[str | None] = pq.read_table(path, columns=["language"])[0].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged or missing: {error}", hint=AGAIN) from error
        return found

    def verify(self) -> list[str]:
        """Read every file of the split and list what differs from the manifest."""
        problems = []
        for shard in self._shards:
            for part in sorted(shard.digests, key=(*PARTS, LEARNED_PART, KEYS_PART).index):
                path = self.folder / f"{shard.name}.{part}"
                if not path.is_file():
                    problems.append(f"{path.name} is missing")
                elif digest_file(path) != shard.digests[part]:
                    problems.append(f"{path.name} is not the file that was written")
        return problems

    def _shard_of_document(self, d: int) -> int:
        assert 0 <= d <= self.n_documents, f"document {d} of {self.n_documents}"
        return int(np.searchsorted(self._first_document, d, side="right")) - 1

    def _map(self, shard: ShardEntry, part: str, dtype: Any, count: int) -> npt.NDArray[Any]:
        path = self.folder / f"{shard.name}.{part}"
        wanted = count * np.dtype(dtype).itemsize
        try:
            found = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path} is missing or unreadable", hint=AGAIN) from error
        if found != wanted:
            raise UserError(f"{path} has {found} bytes, the manifest says {wanted}", hint=AGAIN)
        if not count:
            return np.empty(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")
