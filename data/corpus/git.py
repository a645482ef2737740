"""What git says about the files of a folder: ignored, tracked, generated, vendored.

Read here are `.gitignore`, `.git/info/exclude`, `.gitattributes` and the index, by git's own rules
(gitignore(5), `wildmatch.c`); no git program is run, so that a result depends neither on the git
installed nor on a user's settings (`core.excludesFile` is not read). The tests compare with
`git ls-files --cached --others --exclude-standard` and `git check-attr`.

Paths are bytes, relative to the folder where the rules begin, with `/` between their parts.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from codecria.data.files import read_regular

from .reasons import Reason

ATTRIBUTES = {b"linguist-vendored": Reason.VENDORED, b"linguist-generated": Reason.GENERATED}
RULES_BYTES = 1 << 22  # of a .gitignore or .gitattributes that are read

_GLOB = re.compile(rb"[*?\[\\]")
_CLASSES = {
    b"alnum": rb"[0-9A-Za-z]",
    b"alpha": rb"[A-Za-z]",
    b"blank": rb"[ \t]",
    b"cntrl": rb"[\x00-\x1f\x7f]",
    b"digit": rb"[0-9]",
    b"graph": rb"[!-~]",
    b"lower": rb"[a-z]",
    b"print": rb"[ -~]",
    b"punct": rb"[!-/:-@\[-`{-~]",
    b"space": rb"[ \t\n\v\f\r]",
    b"upper": rb"[A-Z]",
    b"xdigit": rb"[0-9A-Fa-f]",
}
_NEVER = rb"(?!)"


# ---------------------------------------------------------------------------------------- patterns


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A pattern of a `.gitignore` or `.gitattributes`.

    Attributes:
        regex: matches the whole path, relative to the folder of the pattern's file.
        negated: it re-includes what it matches (`!`).
        folders_only: it matches nothing but folders (a `/` at its end).
    """

    regex: bytes
    negated: bool = False
    folders_only: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """A pattern as it is written in a line, without trailing spaces."""
        negated = text.startswith(b"!")
        text = text[negated:]
        folders_only = text.endswith(b"/")
        text = text[: len(text) - folders_only]
        if b"/" in text:
            regex = _translated(text.removeprefix(b"/"), literal_start=True)
        else:  # matched against the last part of a path
            regex = rb"(?:.*/)?" + _translated(text, literal_start=False)
        return cls(regex=regex, negated=negated, folders_only=folders_only)


def _translated(glob: bytes, *, literal_start: bool) -> bytes:
    """A glob as a regular expression; one that git finds malformed matches nothing.

    Args:
        glob: the pattern, relative to its folder.
        literal_start: git compares what precedes the first wildcard apart, so that a `**` right
            after it counts as the start of a pattern.
    """
    if not glob:
        return _NEVER
    first = _GLOB.search(glob)
    begin = first.start() if first and literal_start else 0
    parts: list[bytes] = []
    i = 0
    while i < len(glob):
        character = glob[i : i + 1]
        if character == b"*":
            end = i
            while glob[end : end + 1] == b"*":
                end += 1
            opens = i == begin or glob[i - 1 : i] == b"/"
            rest = glob[end:]
            if end - i < 2 or not opens or not literal_start:
                parts.append(rb"[^/]*")
            elif rest.startswith(b"/"):
                parts.append(rb"(?:.*/)?")
                end += 1
            elif not rest or rest.startswith(b"\\/"):
                parts.append(rb".*")
            else:
                parts.append(rb"[^/]*")
            i = end
        elif character == b"?":
            parts.append(rb"[^/]")
            i += 1
        elif character == b"[":
            members, i = _bracket(glob, i + 1)
            if members is None:
                return _NEVER
            parts.append(members)
        elif character == b"\\":
            if i + 1 == len(glob):
                return _NEVER
            parts.append(re.escape(glob[i + 1 : i + 2]))
            i += 2
        else:
            parts.append(re.escape(character))
            i += 1
    return b"".join(parts)


def _bracket(glob: bytes, i: int) -> tuple[bytes | None, int]:
    """What a bracket expression matches, and where it ends; None if it is malformed.

    Args:
        glob: the pattern.
        i: where the expression begins, after its `[`.
    """
    negated = glob[i : i + 1] in (b"!", b"^")
    i += negated
    members: set[int] = set()
    previous: int | None = None
    first = True
    while True:
        if i >= len(glob):
            return None, i
        byte = glob[i]
        if byte == ord("]") and not first:
            break
        first = False
        if byte == ord("\\"):
            i += 1
            if i >= len(glob):
                return None, i
            byte = glob[i]
            members.add(byte)
            previous = byte
        elif byte == ord("-") and previous and i + 1 < len(glob) and glob[i + 1] != ord("]"):
            i += 1
            if glob[i] == ord("\\"):
                i += 1
                if i >= len(glob):
                    return None, i
            members.update(range(previous, glob[i] + 1))
            previous = None
        elif glob[i : i + 2] == b"[:":
            end = glob.find(b"]", i + 2)
            if end < 0:
                return None, i
            if end == i + 2 or glob[end - 1] != ord(":"):  # no class: an ordinary [
                members.add(byte)
                previous = byte
            else:
                known = _CLASSES.get(glob[i + 2 : end - 1])
                if known is None:
                    return None, i
                members.update(b for b in range(256) if re.match(known, bytes([b])))
                previous = None
                i = end
        else:
            members.add(byte)
            previous = byte
        i += 1
    chosen = (set(range(256)) - members if negated else members) - {ord("/")}
    if not chosen:
        return _NEVER, i + 1
    return b"[" + b"".join(b"\\x%02x" % member for member in sorted(chosen)) + b"]", i + 1


class Patterns:
    """The patterns of one file in order, to be looked up by path."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self._patterns = [(re.compile(p.regex, re.DOTALL), p) for p in reversed(patterns)]
        # Most paths match nothing: one expression finds that out.
        together = b"|".join(b"(?:%s)" % p.regex for p in patterns)
        self._any = re.compile(together, re.DOTALL) if patterns else None

    def ignores(self, path: bytes, *, folder: bool) -> bool | None:
        """What the last pattern that matches a path says of it; None if there is none."""
        if self._any is None or not self._any.fullmatch(path):
            return None
        for regex, pattern in self._patterns:
            if (folder or not pattern.folders_only) and regex.fullmatch(path):
                return not pattern.negated
        return None


def parse_ignore(data: bytes) -> Patterns:
    """The patterns of a `.gitignore`."""
    patterns = []
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        line = _without_trailing_spaces(line.removesuffix(b"\r").split(b"\0")[0])
        if line and not line.startswith(b"#"):
            patterns.append(Pattern.parse(line))
    return Patterns(patterns)


def _without_trailing_spaces(line: bytes) -> bytes:
    r"""A line up to its last character that is no space; `\ ` is one that counts."""
    end, i = 0, 0
    while i < len(line):
        if line[i] == ord("\\"):
            if i + 1 == len(line):
                return line
            i += 1
            end = i + 1
        elif line[i] != ord(" "):
            end = i + 1
        i += 1
    return line[:end]


Mark = tuple[re.Pattern[bytes], Reason, bool]


def parse_attributes(data: bytes) -> tuple[Mark, ...]:
    """The lines of a `.gitattributes` that linguist reads: pattern, reason, set or unset."""
    marks = []
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        line = line.strip()
        quoted = re.match(rb'"((?:[^"\\]|\\.)*)"', line)
        if quoted:
            text, attributes = re.sub(rb"\\(.)", rb"\1", quoted[1]), line[quoted.end() :].split()
        else:
            text, *attributes = line.split() or [b""]
        if not text or text.startswith((b"#", b"!", b"[attr]")):
            continue
        pattern = Pattern.parse(text)
        if pattern.folders_only:  # git gives no attributes to folders
            continue
        regex = re.compile(pattern.regex, re.DOTALL)
        for attribute in attributes:
            name, _, value = attribute.lstrip(b"-!").partition(b"=")
            if name in ATTRIBUTES:
                on = not attribute.startswith((b"-", b"!")) and value.lower() != b"false"
                marks.append((regex, ATTRIBUTES[name], on))
    return tuple(marks)


# ------------------------------------------------------------------------------------------- index


SUBMODULE = 0o160000  # the mode of an entry of the index


def tracked_paths(git_folder: Path) -> dict[bytes, int]:
    """The paths in a repository's index and their modes; empty if it cannot be read."""
    config = read_regular(_common_folder(git_folder) / "config", RULES_BYTES) or b""
    wide = re.search(rb"(?im)^\s*objectformat\s*=\s*\"?sha256", config) is not None
    paths: dict[bytes, int] = {}
    # A split index keeps most of its entries in a second file.
    for path in [git_folder / "index", *sorted(git_folder.glob("sharedindex.*"))]:
        data = read_regular(path, 1 << 33)
        if data:
            try:
                paths.update(_index_entries(data, hash_bytes=32 if wide else 20))
            except (struct.error, IndexError, ValueError):
                continue
    paths.pop(b"", None)
    return paths


def _index_entries(data: bytes, *, hash_bytes: int) -> Iterator[tuple[bytes, int]]:
    """The paths and modes in an index file of version 2, 3 or 4 (gitformat-index(5)).

    Raises:
        struct.error, IndexError, ValueError: it is no index, or cut off.
    """
    signature, version, count = struct.unpack_from(">4sLL", data)
    if signature != b"DIRC" or version not in (2, 3, 4):
        raise ValueError(f"index of version {version}")
    position, previous = 12, b""
    for _ in range(count):
        start = position
        (mode,) = struct.unpack_from(">L", data, start + 24)  # after the times, device and inode
        position += 40 + hash_bytes
        (flags,) = struct.unpack_from(">H", data, position)
        position += 4 if flags & 0x4000 else 2
        if version == 4:
            dropped, position = _varint(data, position)
            end = data.index(b"\0", position)
            previous = previous[: len(previous) - dropped] + data[position:end]
            position = end + 1
        else:
            end = data.index(b"\0", position)
            previous = data[position:end]
            position = start + ((end - start) // 8 + 1) * 8
        yield previous, mode


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in git's offset encoding, and where it ends."""
    value = data[position] & 0x7F
    while data[position] & 0x80:
        position += 1
        value = ((value + 1) << 7) | (data[position] & 0x7F)
    return value, position + 1


# -------------------------------------------------------------------------------------- work trees


def git_folder_of(folder: str | Path) -> Path | None:
    """The repository of the work tree whose root a folder is; None if it is no such root."""
    found = Path(folder, ".git")
    try:
        if (found / "HEAD").is_file():
            return found
    except OSError:
        return None
    link = read_regular(found, RULES_BYTES)
    if link is None or not link.startswith(b"gitdir:"):
        return None
    target = os.fsdecode(link.removeprefix(b"gitdir:").strip())
    return Path(folder, target)


def _common_folder(git_folder: Path) -> Path:
    """Where a linked work tree keeps what it shares with the others."""
    named = read_regular(git_folder / "commondir", RULES_BYTES)
    return git_folder / os.fsdecode(named.strip()) if named else git_folder


def root_of(folder: Path) -> Path | None:
    """The root of the work tree that a folder lies in, itself perhaps; links are resolved."""
    here = Path(os.path.realpath(folder))
    return next((parent for parent in (here, *here.parents) if git_folder_of(parent)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What one folder's files say.

    Attributes:
        below: the folder's path, with a / at its end unless it is empty.
    """

    below: bytes
    ignore: Patterns | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What git says about the entries of one folder.

    Attributes:
        prefix: the folder's path, with a / at its end unless it is empty.
        ignored: the folder is ignored: of what lies in it only tracked files count.
        tracked: paths in the index.
        tracked_folders: the folders that these lie in, and submodules.
        rules: of the files above, outermost first.
    """

    prefix: bytes = b""
    ignored: bool = False
    tracked: frozenset[bytes] = frozenset()
    tracked_folders: frozenset[bytes] = frozenset()
    rules: tuple[_Rules, ...] = field(default=())

    @classmethod
    def root(cls, folder: str | Path) -> Self:
        """At the root of a work tree, or at a folder that lies in none."""
        git_folder = git_folder_of(folder)
        if git_folder is None:
            return cls()
        modes = tracked_paths(git_folder)
        folders = {path for path, mode in modes.items() if mode == SUBMODULE}
        for path in modes:
            while (path := path.rpartition(b"/")[0]) and path not in folders:
                folders.add(path)
        data = read_regular(_common_folder(git_folder) / "info" / "exclude", RULES_BYTES)
        rules = (_Rules(below=b"", ignore=parse_ignore(data)),) if data else ()
        return cls(tracked=frozenset(modes), tracked_folders=frozenset(folders), rules=rules)

    def reading(self, folder: str | Path) -> Self:
        """With what the git files in the scope's own folder say."""
        if self.ignored:
            return self
        data = read_regular(Path(folder, ".gitignore"), RULES_BYTES, follow=False)
        ignore = parse_ignore(data) if data else None
        data = read_regular(Path(folder, ".gitattributes"), RULES_BYTES, follow=False)
        marks = parse_attributes(data) if data else ()
        if ignore is None and not marks:
            return self
        return replace(
            self, rules=(*self.rules, _Rules(below=self.prefix, ignore=ignore, marks=marks))
        )

    def ignores(self, name: str, *, folder: bool) -> bool:
        """Whether an entry of the folder is ignored, and nothing in it is tracked."""
        path = self.prefix + os.fsencode(name)
        if path in (self.tracked_folders if folder else self.tracked):
            return False
        return self.ignored or self._matches(path, folder=folder)

    def below(self, name: str) -> Self:
        """The scope of a folder in the folder, before its own files are read."""
        path = self.prefix + os.fsencode(name)
        ignored = self.ignored or self._matches(path, folder=True)
        return replace(self, prefix=path + b"/", ignored=ignored)

    def mark(self, name: str) -> Reason | None:
        """What .gitattributes marks a file as; of several lines about it the last counts."""
        path = self.prefix + os.fsencode(name)
        found: dict[Reason, bool] = {}
        for rule in self.rules:
            for regex, reason, on in rule.marks:
                if regex.fullmatch(path, len(rule.below)):
                    found[reason] = on
        return next((reason for reason, on in found.items() if on), None)

    def _matches(self, path: bytes, *, folder: bool) -> bool:
        """Whether the innermost file that speaks about a path ignores it."""
        for rule in reversed(self.rules):
            if rule.ignore is not None:
                verdict = rule.ignore.ignores(path[len(rule.below) :], folder=folder)
                if verdict is not None:
                    return verdict
        return False


def scope_of(folder: Path) -> Scope:
    """What git says about the entries of a folder, by the work tree that it lies in.

    A folder that its work tree ignores, and tracks nothing of, is no part of that tree: who names
    it as a source wants it (an environment, a Python below a repository of its own, a build).
    """
    return _scope_in_tree(folder) or Scope().reading(folder)


def is_foreign(folder: Path) -> bool:
    """Whether a folder is no part of the work tree around it, or lies in none."""
    return _scope_in_tree(folder) is None


def _scope_in_tree(folder: Path) -> Scope | None:
    root = root_of(folder)
    if root is None:
        return None
    scope = Scope.root(root).reading(root)
    here = root
    for name in Path(os.path.realpath(folder)).relative_to(root).parts:
        if scope.ignores(name, folder=True):
            return None
        here /= name
        scope = scope.below(name).reading(here)
    return scope
