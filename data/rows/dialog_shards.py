"""Files of dialogs as shard sets: token ids with a mark on those the model is to say itself.

A file is read twice: once to find what can be trained on, duplicates and which dialogs are held
out, once to encode. What comes out is a shard set like any other (`shards.py`) whose documents are
whole dialogs, in the turns form a dialog up to each of its answers. It is memory-mapped, has a
digest, and is made again only when the file or the tokenizer has changed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from codecria.data.corpus import shingles
from codecria.data.corpus.decontaminate import Index
from codecria.data.errors import UserError
from codecria.data.files import atomic_folder, atomic_writer, digest_file, digest_json
from codecria.data.formats.chat import Dialog, Message, form_of, training_examples
from codecria.data.formats.dialogs import Found, Refused, read
from codecria.data.tokenizer.model_file import MODEL_NAME
from codecria.data.tokenizer.tokenizer import Tokenizer

from .shards import (
    LEARNED_PART,
    ShardEntry,
    ShardSet,
    TokenizerFacts,
    finish_shard,
    read_manifest,
    token_dtype,
    write_manifest,
)

HOLDOUT_SHARE = 0.02  # of the dialogs, for validation
HOLDOUT_MOST = 1_000  # dialogs: more make no validation loss more telling
READER = 2  # of `dialogs.py`, counted up when it gives other dialogs for the same file
CHECKED_AT_ONCE = 256  # dialogs looked through for problems
SHOWN = 5  # refused records named in full
METADATA = pa.schema([("source", pa.string()), ("where", pa.string()), ("turns", pa.uint32())])


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogReport:
    """What a file of dialogs held.

    Attributes:
        name: of the file.
        read: records.
        kept: dialogs to train on or to validate with.
        held_out: of these, for validation.
        duplicates: left out, as an equal dialog came before.
        refused: left out, counted by what is wrong with them.
        examples: some of those refused, "where: problem".
        contaminated: left out, as they hold an evaluation problem; counted by problem. A dialog
            that holds several counts for each.
        contaminated_dialogs: how many dialogs these are.
        unused: fields that leave no trace in the dialogs, by the number of records with them.
    """

    name: str
    read: int
    kept: int
    held_out: int
    duplicates: int
    refused: dict[str, int]
    examples: list[str]
    contaminated: dict[str, int] = field(default_factory=dict)
    contaminated_dialogs: int = 0
    unused: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> DialogReport:
        """The report under another file name."""
        examples = [name + example.removeprefix(self.name) for example in self.examples]
        return replace(self, name=name, examples=examples)


def open_dialogs(
    path: Path,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    allow_tags: bool,
    strict: bool,
    problems: Index | None = None,
) -> tuple[Path, DialogReport]:
    """The shard set of a file of dialogs, made below `folder` unless it is there.

    Args:
        path: the file (formats: `dialogs.py`).
        tokenizer: of the model that is to learn them; it also settles the chat form.
        folder: where shard sets of dialogs lie; each gets a subfolder of its own.
        allow_tags: keep dialogs whose text holds the tags of a chat form.
        strict: a record that cannot be used is an error.
        problems: evaluation problems (`decontaminate.build`); dialogs that hold one are left out.

    Returns:
        the shard set's folder, and what was in the file.

    Raises:
        UserError: the file cannot be read or holds no dialog, or, when strict, a bad record.
    """
    try:
        content = digest_file(path)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}",
            hint="dialogs come as JSON lines, JSON or parquet",
        ) from error
    recipe = {
        "kind": "dialogs",
        "reader": READER,
        "file": content,
        "form": form_of(tokenizer),
        "allow_tags": allow_tags,
    }
    if recipe["form"] == "turns":
        recipe["sequences"] = "one an answer"  # sets made before held one a dialog
    if problems is not None:
        recipe["benchmarks"] = problems.digest
    made = folder / f"{path.name}-{digest_json([recipe, tokenizer.digest])[:12]}"
    if not made.is_dir():
        selection = _select(path, problems, allow_tags=allow_tags)
        _check_strict(path, selection.report, strict=strict)
        if not selection.report.kept:
            raise UserError(
                f"{path} holds no dialog to train on" + _first(selection.report),
                hint="one JSON object a line: messages, conversations, or instruction and output",
            )
        with atomic_folder(made) as temporary:
            _write(path, tokenizer, temporary, selection, recipe, allow_tags=allow_tags)
    report = DialogReport(**read_manifest(made).sources[0]).of(path.name)
    _check_strict(path, report, strict=strict)
    return made, report


def _check_strict(path: Path, report: DialogReport, *, strict: bool) -> None:
    if strict and report.refused:
        raise UserError(
            f"{path.parent / report.examples[0]}",
            hint="mend the record, or leave --strict away to skip and count such records",
        )


def _first(report: DialogReport) -> str:
    return f": {report.examples[0]}" if report.examples else ""


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which records of a file are used: (wanted, held out) by number of the record."""

    wanted: set[int]
    held_out: set[int]
    report: DialogReport


def _select(path: Path, problems: Index | None, *, allow_tags: bool) -> _Selection:
    seen: dict[bytes, int] = {}
    refused: Counter[str] = Counter()
    examples: list[str] = []
    count = duplicates = 0
    unused: Counter[str] = Counter()
    leaks = _Leaks(problems)
    for number, record in enumerate(read(path, allow_tags=allow_tags)):
        count += 1
        unused.update(record.unused if isinstance(record, Found) else ())
        if isinstance(record, Refused):
            refused[_kind(record.problem)] += 1
            if len(examples) < SHOWN:
                examples.append(f"{record.where}: {record.problem}")
        elif seen.setdefault(_digest(record.dialog), number) != number:
            duplicates += 1
        else:
            leaks.add(number, record.dialog)
    contaminated = leaks.finish()
    seen = {digest: number for digest, number in seen.items() if number not in contaminated}
    # Digests are as good as random: the smallest are a fixed sample of any set of dialogs.
    share = max(1, min(HOLDOUT_MOST, round(HOLDOUT_SHARE * len(seen)))) if len(seen) > 1 else 0
    held_out = {seen[digest] for digest in sorted(seen)[:share]}
    report = DialogReport(
        name=path.name,
        read=count,
        kept=len(seen),
        held_out=len(held_out),
        duplicates=duplicates,
        refused=dict(sorted(refused.items())),
        examples=examples,
        contaminated=dict(sorted(leaks.counts.items())),
        contaminated_dialogs=len(contaminated),
        unused=dict(sorted(unused.items())),
    )
    return _Selection(set(seen.values()), held_out, report)


class _Leaks:
    """Finds the dialogs that hold an evaluation problem, many dialogs at a time.

    Attributes:
        counts: dialogs by problem.
    """

    def __init__(self, problems: Index | None) -> None:
        self.counts: Counter[str] = Counter()
        self._problems = problems
        self._found: set[int] = set()
        self._waiting: list[tuple[int, str]] = []

    def add(self, number: int, dialog: Dialog) -> None:
        """Check the dialog of record `number`, now or later."""
        if self._problems is None:
            return
        self._waiting.append((number, searched_text(dialog)))
        if len(self._waiting) == CHECKED_AT_ONCE:
            self._check(self._problems)

    def finish(self) -> set[int]:
        """The numbers of the records whose dialogs hold a problem."""
        if self._problems is not None:
            self._check(self._problems)
        return self._found

    def _check(self, problems: Index) -> None:
        numbers = [number for number, _ in self._waiting]
        texts = shingles.column([text for _, text in self._waiting])
        for number, named in zip(numbers, problems.problems_in(texts), strict=True):
            if named:
                self._found.add(number)
                self.counts.update(named)
        self._waiting.clear()


def searched_text(dialog: Sequence[Message]) -> str:
    """A dialog as one text to look for evaluation problems in: its messages in order.

    A prompt and its solution stand one after the other, as they do in a problem.
    """
    return "\n".join(message.content for message in dialog)


def _kind(problem: str) -> str:
    """A problem without the place and the parser's details, to count by."""
    return problem.split(":")[0].split("[")[0] if problem.startswith("not JSON") else problem


def _digest(dialog: Dialog) -> bytes:
    parts: list[tuple[str, ...]] = [(m.role, m.content, m.destination or "") for m in dialog]
    parts += [("context", str(i)) for i, message in enumerate(dialog) if not message.learned]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def _write(
    path: Path,
    tokenizer: Tokenizer,
    folder: Path,
    selection: _Selection,
    recipe: dict[str, Any],
    *,
    allow_tags: bool,
) -> None:
    splits: dict[str, list[ShardEntry]] = {}
    for split, numbers in (
        ("train", selection.wanted - selection.held_out),
        ("validation", selection.held_out),
    ):
        if numbers:
            found = (
                record
                for number, record in enumerate(read(path, allow_tags=allow_tags))
                if number in numbers and isinstance(record, Found)
            )
            splits[split] = [_write_split(f"{split}-00000", path.name, tokenizer, folder, found)]
    (folder / MODEL_NAME).write_bytes(tokenizer.content)
    write_manifest(
        folder,
        splits,
        tokenizer=TokenizerFacts(
            digest=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        ),
        sources=[asdict(selection.report.of(""))],  # a renamed file is the same data
        languages={},
        licences={},
        recipe=recipe,
    )


def _write_split(
    name: str, source: str, tokenizer: Tokenizer, folder: Path, dialogs: Iterator[Found]
) -> ShardEntry:
    wide = np.dtype(token_dtype(tokenizer.vocab_size)).newbyteorder("<")
    offsets, rows = [0], []
    with (
        atomic_writer(folder / f"{name}.tokens") as ids,
        atomic_writer(folder / f"{name}.{LEARNED_PART}") as learned,
    ):
        for found in dialogs:
            for tokens in training_examples(tokenizer, found.dialog):
                ids.write(np.array(tokens.ids, dtype=wide).tobytes())
                learned.write(np.array(tokens.learned, dtype=np.uint8).tobytes())
                offsets.append(offsets[-1] + len(tokens.ids))
                rows.append({"source": source, "where": found.where, "turns": len(found.dialog)})
    return finish_shard(
        folder,
        name,
        offsets=np.array(offsets, dtype=np.uint64),
        flags=np.zeros(len(rows), dtype=np.uint8),
        metadata=pa.Table.from_pylist(rows, schema=METADATA),
        learned=True,
    )


def held_out(folder: Path) -> ShardSet | None:
    """The validation split of a set of dialogs, where it has one."""
    manifest = read_manifest(folder)
    return ShardSet.open(folder, "validation") if "validation" in manifest.splits else None
