"""Where documents come from: folders, files, standard input; what is in them, and how it is cut.

Nothing is opened here but what must be to cut it into pieces that `documents.read` can take alone:

    scan(source)   -> InputFile | Skip     names, sizes and times
    split(file)    -> Unit                 pieces of bounded size
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pathspec
import pyarrow as pa
import pyarrow.parquet as pq

from codecria.data.errors import UsageError, UserError

from . import languages, licences
from .reasons import Reason

STDIN = "-"
BLOCK_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20  # a longer line is counted and passed over without being held
LICENCE_BYTES = 1 << 17  # of a licence file, that are read
TEXT_COLUMNS = ("content", "text")  # of a record; the first that is there

Kind = Literal["text", "notebook", "jsonl", "parquet"]
Compression = Literal["gzip", "zstd", "bz2", "xz", "lz4"] | None
COMPRESSIONS: dict[str, Compression] = {
    "": None,
    ".gz": "gzip",
    ".zst": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lz4": "lz4",
}

RECORD_SUFFIXES: dict[str, tuple[Kind, Compression]] = {
    **{
        suffix + packed: ("jsonl", compression)
        for suffix in (".jsonl", ".ndjson", ".json")
        for packed, compression in COMPRESSIONS.items()
        if suffix + packed != ".json"  # one value, and often somebody's settings
    },
    ".parquet": ("parquet", None),
}

VERSION_CONTROL = frozenset({".git", ".hg", ".svn", "CVS", ".bzr", "_darcs"})
VENDORED = frozenset(
    [
        "site-packages",
        "dist-packages",
        "node_modules",
        "bower_components",
        "vendor",
        "vendored",
        "_vendor",
        "third_party",
        "third-party",
        "thirdparty",
        "3rdparty",
        "Godeps",
        "Pods",
        "Carthage",
    ]
)
CACHES = frozenset({"__pycache__"})
MINIFIED_ENDINGS = (".min.js", ".min.css", "-min.js", "-min.css", ".bundle.js", ".min.mjs")
GENERATED_ENDINGS = [
    "_pb2.py",
    "_pb2.pyi",
    "_pb2_grpc.py",
    ".pb.go",
    ".pb.gw.go",
    ".pb.cc",
    ".pb.h",
    ".pb.swift",
    ".pb.dart",
    ".g.dart",
    ".freezed.dart",
    ".designer.cs",
    ".g.cs",
    ".generated.cs",
    ".generated.ts",
    ".generated.js",
    "_generated.go",
    ".js.map",
    ".css.map",
]
GENERATED_NAMES = frozenset(
    [
        "package-lock.json",
        "npm-shrinkwrap.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "Cargo.lock",
        "poetry.lock",
        "composer.lock",
        "Gemfile.lock",
        "mix.lock",
        "go.sum",
        "uv.lock",
        "flake.lock",
        "Pipfile.lock",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Something to read: a folder, a file, or (`path` None) standard input.

    Attributes:
        without: a folder that is no part of it wherever it lies: the output.
    """

    name: str
    path: Path | None
    without: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of a source, seen but not opened.

    Attributes:
        source: the source's name.
        relative: its path within the source, with `/`, always valid text.
        path: where it is.
        bytes, mtime_ns: as seen; a reader refuses a file that has changed since.
        language: what its name says; None for records and for names that say nothing.
        licence: that of the nearest licence file at or above it.
    """

    source: str
    relative: str
    path: Path
    bytes: int
    mtime_ns: int
    kind: Kind
    compression: Compression = None
    language: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A folder not entered, or a file that its name or size rules out."""

    source: str
    relative: str
    reason: Reason
    bytes: int = 0
    folder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A piece of one file that can be read by itself.

    Attributes:
        start, stop: bytes for JSON lines (both at line starts), row groups for parquet; a file
            read whole has 0 and its size.
        first: the number of its first record, from 1.
        weight: about how many bytes of input it stands for.
    """

    file: InputFile
    start: int
    stop: int
    first: int
    weight: int


def parse_sources(arguments: Sequence[str]) -> list[Source]:
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
        if separator and name and "/" not in name and not Path(argument).exists():
            if name in named.values():
                raise UsageError(f"two sources are called {name!r}", hint="give each its own name")
            named[i], argument = name, rest
        if argument == STDIN:
            if None in paths:
                raise UsageError("standard input can be a source only once")
            paths.append(None)
            continue
        path = Path(argument)
        if not path.exists():
            raise UserError(f"no such file or folder: {argument}", hint="check the path")
        paths.append(path)
    taken = set(named.values())
    sources = []
    for i, source_path in enumerate(paths):
        if i not in named:
            base = name = "stdin" if source_path is None else _display(source_path.resolve().name)
            number = 1
            while name in taken:
                number += 1
                name = f"{base}-{number}"
            taken.add(name)
            named[i] = name
        sources.append(Source(name=named[i], path=source_path))
    return sources


def _display(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 are written out, so names stay apart."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def record_kind(name: str) -> tuple[Kind, Compression] | None:
    """How a file of records is read, by its name; None for anything else."""
    lower = name.lower()
    for suffix, found in RECORD_SUFFIXES.items():
        if lower.endswith(suffix):
            return found
    return None


def scan(source: Source, *, max_bytes: int) -> Iterator[InputFile | Skip]:
    """Everything in a source, sorted by path component; of files, git's and licences are read.

    A folder that holds record files and no program is a data set: its record files are read.
    In any other folder record files are somebody's fixtures, and are skipped with that reason.

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
        for entry in _entries(source, source.path):
            if isinstance(entry, Skip):
                yield entry
            else:
                yield _judge_name(entry, source, data_set=data_set, max_bytes=max_bytes)
    else:
        entry = _Entry(
            path=source.path,
            relative=_display(source.path.name),
            licence=_licence_around(source.path.resolve().parent),
        )
        data_set = record_kind(entry.name) is not None
        yield _judge_name(entry, source, data_set=data_set, max_bytes=max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    path: Path
    relative: str
    licence: str | None = None

    @property
    def name(self) -> str:
        return self.relative.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What a folder's git files say about what lies below it.

    Attributes:
        below: the folder within the source, with its /; "" for the source or a folder above it.
        above: the source within the folder, with its /; "" for the source or a folder below it.
        ignore: of its .gitignore.
        marks: of its .gitattributes, in order: a pattern, the reason it sets or takes away.
    """

    below: str
    above: str
    ignore: pathspec.GitIgnoreSpec | None = None
    marks: tuple[tuple[pathspec.GitIgnoreSpec, Reason, bool], ...] = ()

    def path(self, relative: str) -> str:
        """A path within the source as the folder sees it."""
        return self.above + relative[len(self.below) :]


_ATTRIBUTES = {"linguist-vendored": Reason.VENDORED, "linguist-generated": Reason.GENERATED}


def _entries(source: Source, folder: Path) -> Iterator[_Entry | Skip]:
    """Everything in a folder but the output, which is not there the first time."""
    prefix = None
    if source.without is not None:
        root, output = folder.resolve(), source.without.resolve()
        if root in output.parents:
            prefix = _display(f"{output.relative_to(root).as_posix()}/")
    rules: tuple[_Rules, ...] = ()
    licence = None
    if not _is_foreign(folder):
        rules, licence = _rules_above(folder), _licence_above(folder)
    for entry in _walk(folder, source.name, "", rules, licence):
        if prefix is None or not f"{entry.relative}/".startswith(prefix):
            yield entry


def _git_folders(folder: Path) -> list[Path]:
    """The folders of a git work tree above one that lies in it, from its root down."""
    above = [folder.resolve(), *folder.resolve().parents]
    root = next((i for i, parent in enumerate(above) if (parent / ".git").exists()), 0)
    return above[root:0:-1]


def _rules_above(folder: Path) -> tuple[_Rules, ...]:
    """What git's files above a folder say about it, the repository's own excludes among them."""
    here = folder.resolve()
    parents = _git_folders(folder)
    rules = []
    for parent in [*parents, here]:
        above = "" if parent == here else f"{here.relative_to(parent).as_posix()}/"
        if (exclude := parent / ".git" / "info" / "exclude").is_file():
            rules.append(_Rules(below="", above=above, ignore=_read_gitignore(exclude)))
        if parent != here:
            names = {path.name for path in parent.glob(".git*")}
            rules.append(_read_rules(parent, names, below="", above=above))
    return tuple(rules)


def _is_foreign(folder: Path) -> bool:
    """Whether the git work tree around a folder ignores it: then it is no part of that tree.

    Who names such a folder as a source wants it: an environment, a Python installed below a
    repository of its own, a build.
    """
    here = folder.resolve()
    for parent in _git_folders(folder):
        rule = _read_rules(parent, {path.name for path in parent.glob(".git*")}, below="", above="")
        relative = here.relative_to(parent)
        above = [*reversed(relative.parents[:-1]), relative]
        if any(_ignored(f"{part.as_posix()}/", (rule,)) for part in above):
            return True
    return False


def _read_rules(folder: Path, names: Collection[str], *, below: str, above: str) -> _Rules:
    """What the git files in a folder say."""
    ignore = _read_gitignore(folder / ".gitignore") if ".gitignore" in names else None
    marks = _read_attributes(folder / ".gitattributes") if ".gitattributes" in names else ()
    return _Rules(below=below, above=above, ignore=ignore, marks=marks)


def _read_attributes(path: Path) -> tuple[tuple[pathspec.GitIgnoreSpec, Reason, bool], ...]:
    """The marks that linguist reads in a .gitattributes."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    marks = []
    for line in lines:
        pattern, *attributes = line.split() or [""]
        for attribute in attributes:
            name, _, value = attribute.lstrip("-!").partition("=")
            if name in _ATTRIBUTES and _is_pattern(pattern):
                on = not attribute.startswith(("-", "!")) and value.lower() != "false"
                spec = pathspec.GitIgnoreSpec.from_lines([pattern])
                marks.append((spec, _ATTRIBUTES[name], on))
    return tuple(marks)


def _marked(relative: str, rules: Sequence[_Rules]) -> Reason | None:
    """What .gitattributes marks a file as; of several lines about it the last counts."""
    found: dict[Reason, bool] = {}
    for rule in rules:
        for spec, reason, on in rule.marks:
            if spec.match_file(rule.path(relative)):
                found[reason] = on
    return next((reason for reason, on in found.items() if on), None)


def _licence_around(folder: Path) -> str | None:
    """The licence of a folder by itself, or else by the git work tree that it lies in."""
    own = _licence_of(folder, _names(folder))
    return own if own or _is_foreign(folder) else _licence_above(folder)


def _licence_above(folder: Path) -> str | None:
    """The licence of the git work tree that a folder lies in, if it is not its root."""
    for parent in reversed(_git_folders(folder)):
        if licence := _licence_of(parent, _names(parent)):
            return licence
    return None


def _names(folder: Path) -> list[str]:
    """What lies in a folder, sorted; nothing where that cannot be seen."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _licence_of(folder: Path, names: Iterable[str]) -> str | None:
    """The licence that a folder's own licence files tell, the first that tells one."""
    for name in names:
        if not licences.is_licence_file(name):
            continue
        try:
            with (folder / name).open("rb") as file:
                text = file.read(LICENCE_BYTES).decode("utf-8", "replace")
        except OSError:  # a folder, or not ours to read
            continue
        if licence := licences.of_text(text):
            return licence
    return None


def _walk(
    folder: Path, source: str, prefix: str, rules: tuple[_Rules, ...], licence: str | None
) -> Iterator[_Entry | Skip]:
    """Files below a folder in order, pruned folders as skips; `prefix` ends in / unless empty."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        yield Skip(source=source, relative=prefix, reason=Reason.UNREADABLE, folder=True)
        return
    names = {entry.name for entry in entries}
    if prefix and "pyvenv.cfg" in names:  # a virtual environment, whatever it is called
        yield Skip(source=source, relative=prefix, reason=Reason.VENDORED, folder=True)
        return
    if not names.isdisjoint((".gitignore", ".gitattributes")):
        rules = (*rules, _read_rules(folder, names, below=prefix, above=""))
    licence = _licence_of(folder, (entry.name for entry in entries if entry.is_file())) or licence
    for entry in entries:
        relative = prefix + _display(entry.name)
        is_folder = entry.is_dir(follow_symlinks=True)
        reason: Reason | None = None
        if is_folder:
            reason = _pruned(entry)
        if reason is None and _ignored(relative + "/" * is_folder, rules):
            reason = Reason.IGNORED
        if reason is None and not is_folder:
            reason = _marked(relative, rules)
        if is_folder and reason is None:
            yield from _walk(Path(entry.path), source, relative + "/", rules, licence)
        elif reason is not None:
            shown = relative + "/" * is_folder
            yield Skip(source=source, relative=shown, reason=reason, folder=is_folder)
        else:
            yield _Entry(path=Path(entry.path), relative=relative, licence=licence)


def _pruned(entry: os.DirEntry[str]) -> Reason | None:
    if entry.name in VERSION_CONTROL:
        return Reason.VERSION_CONTROL
    if entry.name in CACHES:
        return Reason.CACHE
    if entry.name in VENDORED:
        return Reason.VENDORED
    if entry.name.startswith("."):
        return Reason.HIDDEN
    # Following a link could leave the source or never end.
    return Reason.LINKED_FOLDER if entry.is_symlink() else None


def _read_gitignore(path: Path) -> pathspec.GitIgnoreSpec | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return pathspec.GitIgnoreSpec.from_lines(filter(_is_pattern, lines))


def _is_pattern(line: str) -> bool:
    """Whether a line of a `.gitignore` is one; git passes over what is not, so do we."""
    try:
        pathspec.GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


def _ignored(relative: str, rules: Sequence[_Rules]) -> bool:
    """Whether the innermost `.gitignore` that speaks about a path ignores it."""
    for rule in reversed(rules):
        verdict = rule.ignore.check_file(rule.path(relative)).include if rule.ignore else None
        if verdict is not None:
            return verdict
    return False


def _is_data_set(source: Source) -> bool:
    """Whether a folder holds record files and no programs."""
    assert source.path is not None
    found = False
    for entry in _entries(source, source.path):
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
    entry: _Entry, source: Source, *, data_set: bool, max_bytes: int
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
    elif name in GENERATED_NAMES or name.lower().endswith(tuple(GENERATED_ENDINGS)):
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


def split(file: InputFile, *, unit_bytes: int) -> Iterator[Unit]:
    """A file's pieces of about `unit_bytes`, in order.

    Text files and compressed JSON lines stay whole (the latter is streamed by its reader).

    Raises:
        UserError: a parquet file has no column of text.
    """
    if file.kind == "parquet":
        yield from _split_parquet(file, unit_bytes)
    elif file.kind == "jsonl" and file.compression is None and file.bytes > unit_bytes:
        yield from _split_lines(file, unit_bytes)
    else:
        yield Unit(file=file, start=0, stop=file.bytes, first=1, weight=file.bytes)


def _split_lines(file: InputFile, unit_bytes: int) -> Iterator[Unit]:
    """Cut at the first line start at or after each multiple of `unit_bytes`."""
    try:
        with file.path.open("rb") as stream:
            if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                yield Unit(file=file, start=0, stop=file.bytes, first=1, weight=file.bytes)
                return
            stream.seek(0)
            start = position = 0
            first = line = 1  # of the unit, and of the line that begins at `position`
            while block := stream.read(BLOCK_BYTES):
                # The unit may end only after a newline at offset `start + unit_bytes - 1` or later.
                earliest = max(0, start + unit_bytes - 1 - position)
                cut = block.find(b"\n", earliest) if earliest < len(block) else -1
                while cut >= 0:
                    stop = position + cut + 1
                    next_first = line + block.count(b"\n", 0, cut + 1)
                    yield Unit(file=file, start=start, stop=stop, first=first, weight=stop - start)
                    start, first = stop, next_first
                    earliest = start + unit_bytes - 1 - position
                    cut = block.find(b"\n", earliest) if earliest < len(block) else -1
                line += block.count(b"\n")
                position += len(block)
            if start < position:
                yield Unit(
                    file=file, start=start, stop=position, first=first, weight=position - start
                )
    except OSError:
        # Left to the reader, which counts it.
        yield Unit(file=file, start=0, stop=file.bytes, first=1, weight=file.bytes)


def _split_parquet(file: InputFile, unit_bytes: int) -> Iterator[Unit]:
    try:
        with file.path.open("rb") as stream, pq.ParquetFile(stream) as parquet:
            metadata = parquet.metadata
            schema = parquet.schema_arrow
    except (OSError, pa.ArrowException):
        yield Unit(file=file, start=0, stop=0, first=1, weight=0)  # the reader counts it
        return
    if not any(name in schema.names for name in TEXT_COLUMNS):
        ids_only = "blob_id" in schema.names
        raise UserError(
            f"{file.path} has no column 'content' or 'text', only {', '.join(schema.names)}",
            hint="The Stack v2 lists ids alone: fetch the contents first"
            if ids_only
            else "rename the column that holds the documents",
        )
    start, first, rows, weight = 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        weight += metadata.row_group(group).total_byte_size
        if weight >= unit_bytes or group + 1 == metadata.num_row_groups:
            yield Unit(file=file, start=start, stop=group + 1, first=first, weight=weight)
            start, first, rows, weight = group + 1, first + rows, 0, 0
