"""Where documents come from: folders, files, standard input, and which of their files are read.

No file of a source is opened here: its name, type and size decide, with what git says of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from codecria.data.errors import UsageError, UserError

from . import languages
from .licence_files import licence_around
from .names import MINIFIED_ENDINGS, Kind, is_generated_name, record_kind
from .reasons import Reason
from .units import MAX_RECORD_BYTES, InputFile
from .walk import Entry, Skip, display, walk

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Something to read: a folder, a file, or (`path` None) standard input.

    Attributes:
        without: a folder that is no part of it wherever it lies: the output.
        follow_links: links that lead out of a folder are read too.
    """

    name: str
    path: Path | None
    without: Path | None = None
    follow_links: bool = False


def parse_sources(arguments: Sequence[str], *, follow_links: bool = False) -> list[Source]:
    """`PATH`, `NAME=PATH` or `-`, in the order given; names are made unique.

    A path that exists is taken as it is, also when it holds `=`. Without a name, a source is called
    after its file or folder, and the second of one name gets `-2`.

    Raises:
        UsageError: no source, a name given twice, or standard input given twice.
        UserError: a path does not exist.
    """
    if not arguments:
        raise UsageError("no source was given", hint="name a folder, a .jsonl or .parquet file")
    named: dict[int, str] = {}
    paths: list[Path | None] = []
    for i, argument in enumerate(arguments):
        name, separator, rest = argument.partition("=")
        if separator and name and "/" not in name and not _exists(Path(argument)):
            if name in named.values():
                raise UsageError(f"two sources are called {name!r}", hint="give each its own name")
            named[i], argument = name, rest
        if argument == STDIN:
            if None in paths:
                raise UsageError("standard input can be a source only once")
            paths.append(None)
            continue
        path = Path(argument)
        try:
            path.stat()
        except FileNotFoundError as error:
            hint = "check the path"
            if i in named:
                hint = f"{named[i]}={argument} means: the source {argument}, called {named[i]}"
            raise UserError(f"no such file or folder: {argument}", hint=hint) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"cannot read {argument}: {reason}", hint="check the path") from error
        paths.append(path)
    taken = set(named.values())
    sources = []
    for i, source_path in enumerate(paths):
        if i not in named:
            base = name = "stdin" if source_path is None else _own_name(source_path)
            number = 1
            while name in taken:
                number += 1
                name = f"{base}-{number}"
            taken.add(name)
            named[i] = name
        sources.append(Source(name=named[i], path=source_path, follow_links=follow_links))
    return sources


def _own_name(path: Path) -> str:
    return display(Path(os.path.realpath(path)).name)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def scan(source: Source, *, max_bytes: int) -> Iterator[InputFile | Skip]:
    """Everything in a source, sorted by path component.

    A folder that holds record files and no program is a data set: its record files are read.
    In any other folder record files are taken for fixtures, and skipped with that reason.

    Args:
        source: a source with a path (standard input is spooled to a file first).
        max_bytes: larger text files are skipped.

    Raises:
        UserError: the source itself cannot be read.
    """
    assert source.path is not None, f"source {source.name} has not been spooled"
    try:
        mode = source.path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(source.path).close()
    except OSError as error:
        raise UserError(
            f"cannot read {source.path}: {error.strerror}", hint="check its permissions"
        ) from error
    if stat.S_ISDIR(mode):
        data_set = _is_data_set(source)
        for found in _entries(source):
            if isinstance(found, Skip):
                yield found
            else:
                yield _judge_name(found, source, data_set=data_set, max_bytes=max_bytes)
    else:
        entry = Entry(
            path=source.path,
            relative=display(source.path.name),
            licence=licence_around(Path(os.path.realpath(source.path)).parent),
        )
        data_set = record_kind(entry.name) is not None
        yield _judge_name(entry, source, data_set=data_set, max_bytes=max_bytes)


def _entries(source: Source) -> Iterator[Entry | Skip]:
    assert source.path is not None
    return walk(source.path, source.name, without=source.without, follow_links=source.follow_links)


def _is_data_set(source: Source) -> bool:
    """Whether a folder holds record files and no programs."""
    found = False
    for entry in _entries(source):
        if isinstance(entry, Skip):
            continue
        if record_kind(entry.name) is not None:
            found = True
            continue
        language = languages.by_path(entry.name)
        if language is not None and languages.language_class(language) in (
            "programming",
            "markup",
        ):
            return False
    return found


def _judge_name(
    entry: Entry, source: Source, *, data_set: bool, max_bytes: int
) -> InputFile | Skip:
    """What a file's name, type and size say about it."""
    name = entry.name
    try:
        status = entry.path.stat()
    except OSError:  # a link to nothing, or a file that went meanwhile
        return Skip(source=source.name, relative=entry.relative, reason=Reason.UNREADABLE)
    records = record_kind(name)
    language = None if records else languages.by_path(entry.relative)
    kind: Kind = records[0] if records else "text"
    if language == "Jupyter Notebook":
        kind, language = "notebook", None  # the kernel decides
    reason: Reason | None = None
    if not stat.S_ISREG(status.st_mode):
        reason = Reason.SPECIAL  # opening a pipe would wait for ever
    elif records and not data_set:
        reason = Reason.RECORDS_AMONG_CODE
    elif data_set and not records:
        reason = Reason.BESIDE_RECORDS
    elif name.lower().endswith(MINIFIED_ENDINGS):
        reason = Reason.MINIFIED
    elif is_generated_name(name):
        reason = Reason.GENERATED
    elif kind == "text" and language is None and "." in name:
        reason = Reason.LANGUAGE_UNKNOWN
    elif status.st_size > (MAX_RECORD_BYTES if kind == "notebook" else max_bytes) and not records:
        reason = Reason.TOO_LARGE
    if reason is not None:
        return Skip(
            source=source.name, relative=entry.relative, reason=reason, bytes=status.st_size
        )
    return InputFile(
        source=source.name,
        relative=entry.relative,
        path=entry.path,
        bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        kind=kind,
        compression=records[1] if records else None,
        language=language,
        licence=None if records else entry.licence,  # a data set's own is not its records'
    )
