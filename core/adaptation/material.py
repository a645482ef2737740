"""What an adaptation learns from and is measured by: code before the cut, spans after it, others.

OUT/adapt.json           the commits of the cut, so that later commits change nothing
OUT/repo.jsonl           code of the last commit before the cut
OUT/rehearsal.jsonl      some files of other code
OUT/data/repo, rehearsal shards of both
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.evaluation.repository.spans import (
    KINDS,
    Found,
    code_files,
    code_language,
    of_files,
    of_history,
    text_of,
)
from codecria.data.corpus.history import Commit, History, Split, split
from codecria.data.corpus.prepare import prepare
from codecria.data.corpus.recipe import PrepareRecipe
from codecria.data.corpus.runner import Engine
from codecria.data.corpus.sources import Source
from codecria.data.errors import UserError
from codecria.data.files import atomic_write, atomic_write_json, json_line, read_json
from codecria.data.identity import differences, require_same
from codecria.data.progress import Progress
from codecria.data.rows.shards import ShardSet

from .request import DATA, RECORD, AdaptRequest

Text = tuple[str, str]  # path and content
REHEARSAL_BYTES = 4_000_000  # of text that is rehearsed, at most
MEASURED_FILES = 40  # of rehearsal code, held out to measure what was forgotten
VALIDATION_SHARE = 0.02  # of the files, whose loss the run's metrics show


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What was found.

    Attributes:
        halves: the history, cut.
        code: of the repository before the cut.
        spans: of the later commits.
        rehearsal: other code to train on.
        rehearsal_spans: of other code that is not trained on.
    """

    halves: Split
    code: tuple[Text, ...]
    spans: Found
    rehearsal: tuple[Text, ...]
    rehearsal_spans: Found


def gather(request: AdaptRequest, out: Path) -> Material:
    """Read the repository and the rehearsal code; nothing is written.

    Args:
        request: what was asked for.
        out: the folder, whose record fixes the commits if there is one.

    Raises:
        UserError: the history cannot be cut so, or adds no code; the folder is of another request.
    """
    with History.open(request.repository) as history:
        halves = _halves(history, request, out)
        found = of_history(
            history, halves, kinds=KINDS, limit=request.limit, seed=request.seed,
            test_share=request.test_share,
        )  # fmt: skip
        if not found.spans:
            raise UserError(
                "the later commits add no code to measure with", hint="choose an earlier --since"
            )
        code = tuple(_code_of(history, halves.base))
    if not code:
        raise UserError(
            f"there is no code at {halves.base.id[:12]}, before the cut",
            hint="choose a later --since",
        )
    files = list(rehearsal_files(request.rehearsal)) if request.rehearsal_share else []
    measured, rehearsed = files[:MEASURED_FILES], files[MEASURED_FILES:]
    if request.rehearsal_share and not rehearsed:
        raise UserError(
            f"{request.rehearsal} holds fewer than {MEASURED_FILES + 1} files of code",
            hint="name a larger folder, or pass --rehearsal-share 0",
        )
    return Material(
        halves=halves,
        code=code,
        spans=found,
        rehearsal=tuple(rehearsed),
        rehearsal_spans=of_files(measured, kinds=KINDS, limit=request.limit, seed=request.seed),
    )


def write(
    request: AdaptRequest,
    material: Material,
    out: Path,
    checkpoint: Checkpoint,
    *,
    note: Callable[[str], None],
    progress: Callable[[Progress], None],
) -> int:
    """Write the record, the texts and the shards, as far as they are not there.

    Returns:
        tokens of the repository's code.

    Raises:
        UserError: something cannot be written, or the checkpoint has no tokenizer.
    """
    if checkpoint.tokenizer_path is None:
        raise UserError(
            f"{checkpoint.folder} has no tokenizer.model",
            hint="copy the one the model was trained with into that folder",
        )
    out.mkdir(parents=True, exist_ok=True)
    if not (out / RECORD).is_file():
        atomic_write_json(out / RECORD, _identity(request, material.halves))
    sources = {"repo": material.code}
    if material.rehearsal:
        sources["rehearsal"] = material.rehearsal
    for name, texts in sources.items():
        file = out / f"{name}.jsonl"
        lines = "".join(json_line({"path": path, "text": text}) for path, text in texts).encode()
        if not file.is_file() or file.read_bytes() != lines:
            atomic_write(file, lines)
        made = prepare(
            [Source(name=name, path=file)],
            out / DATA / name,
            replace(PrepareRecipe(), validation_share=VALIDATION_SHARE, seed=request.seed),
            model=checkpoint.tokenizer_path,
            engine=Engine(progress=progress),
        )
        if not made.unchanged:
            note(
                f"codecria prepare-data {file} --tokenizer {checkpoint.tokenizer_path}"
                f" --validation-share {VALIDATION_SHARE:g} --out {out / DATA / name}"
            )
    return ShardSet.open(out / DATA / "repo").n_tokens


def rehearsal_files(folder: Path | None) -> Iterator[Text]:
    """Files of code below a folder, by a hash of their paths, up to `REHEARSAL_BYTES`.

    Args:
        folder: None is the running Python's library, which every machine has.

    Raises:
        UserError: it is no folder, or a file in it cannot be read.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise UserError(f"{root} is no folder", hint="name a folder of code for --rehearsal")
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", ".git"}
    paths = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*"))
        if not skipped.intersection(path.relative_to(root).parts)
    ]
    total = 0
    for name in sorted(paths, key=lambda path: hashlib.blake2b(os.fsencode(path)).digest()):
        path = root / name
        if code_language(name) is None or not path.is_file() or path.is_symlink():
            continue
        try:
            text = text_of(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror or error}",
                hint="name another folder for --rehearsal",
            ) from error
        if text is not None:
            total += len(text)
            if total > REHEARSAL_BYTES:
                return
            yield name, text


def _code_of(history: History, commit: Commit) -> Iterator[Text]:
    for path, blob in code_files(history, commit.id):
        text = text_of(history.content(blob))
        if text is not None:
            yield path, text


def _halves(history: History, request: AdaptRequest, out: Path) -> Split:
    """The cut: as recorded, so that commits made since do not move it, or as asked for."""
    if not (out / RECORD).is_file():
        return split(history.commits(), since=request.since, share=request.split)
    known = read_json(out / RECORD)
    if not isinstance(known, dict) or not {"tip", "base"} <= known.keys():
        raise UserError(f"{out / RECORD} is damaged", hint="choose another --out")
    commits = history.commits(known["tip"])
    place = next((n for n, c in enumerate(commits, start=1) if c.id == known["base"]), 0)
    if not 0 < place < len(commits):
        raise UserError(
            f"{request.repository} no longer has the commits that {out} was begun with",
            hint="choose another --out",
        )
    halves = Split(commits[place - 1], tuple(commits[place:]), len(commits))
    require_same(
        out,
        differences(known, _identity(request, halves)),
        what="another adaptation",
        hint="repeat its options, or choose another --out",
    )
    return halves


def _identity(request: AdaptRequest, halves: Split) -> dict[str, object]:
    """What decides the spans and the data."""
    return {
        "repository": str(request.repository.resolve()),
        "init": str(request.init),
        "base": halves.base.id,
        "tip": halves.later[-1].id,
        "since": request.since,
        "split": request.split,
        "rehearsal": None if request.rehearsal is None else str(request.rehearsal.resolve()),
        "rehearsed": request.rehearsal_share > 0,
        "limit": request.limit,
        "test_share": request.test_share,
        "seed": request.seed,
    }
