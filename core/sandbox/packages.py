"""Installed packages that programs may import: which ones, and which files are theirs.

A server finds them in one folder: links to their files, or bubblewrap's binds of them. Only these
files and those of their dependencies are readable; the rest of the installation is not.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from codecria.data.errors import UsageError

OWN = "codecria"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMPILED = (".so", ".pyd", ".dylib")
_WHOLE = (".dist-info", ".egg-info", ".libs")  # folders that belong to one package
_LIST = "pip list shows what is installed"


@dataclass(frozen=True, slots=True)
class Allowed:
    """Packages that programs may import.

    Attributes:
        versions: of the packages and of their dependencies, by name.
        files: paths below the folder that a server imports from, with the files or folders there.
        compiled: whether one of them holds compiled code.
    """

    versions: Mapping[str, str]
    files: tuple[tuple[str, Path], ...]
    compiled: bool

    def link(self, folder: Path) -> None:
        """Make a folder that these packages can be imported from.

        Args:
            folder: an empty one of ours.
        """
        for name, path in self.files:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)


@lru_cache(maxsize=8)
def allowed(names: tuple[str, ...]) -> Allowed:
    """Packages of this interpreter, with their dependencies.

    A dependency that is not installed is left out. One that only another system or Python needs is
    included where it is installed.

    Args:
        names: of packages as pip names them, or as they are imported.

    Raises:
        UsageError: one is not installed, or its files are not known.
    """
    versions: dict[str, str] = {}
    files: dict[str, Path] = {}
    compiled = False
    left = deque(_named(name) for name in names)
    while left:
        found = left.popleft()
        name = _normal(found.metadata["Name"])
        if name in versions:
            continue
        versions[name] = found.version
        parts = _record(name, found)
        compiled = compiled or any(part[-1].endswith(_COMPILED) for part in parts)
        root = Path(str(found.locate_file(""))).resolve()
        files |= {path: root / path for path in _places(parts) if (root / path).exists()}
        left += _dependencies(found)
    parents = {path: _parents(path) for path in files}
    kept = sorted(path for path in files if not any(part in files for part in parents[path]))
    return Allowed(
        dict(sorted(versions.items())), tuple((path, files[path]) for path in kept), compiled
    )


def _normal(name: str) -> str:
    """A package's name as registries compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _named(name: str) -> importlib.metadata.Distribution:
    """An installed package.

    Raises:
        UsageError: there is none of this name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not the name of a package", hint="as --packages numpy,sympy")
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    owners = sorted(set(importlib.metadata.packages_distributions().get(name, ())))
    if len(owners) != 1:
        why = f"belongs to {', '.join(owners)}: name one" if owners else "is not installed"
        raise UsageError(f"the package {name} {why}", hint=_LIST)
    return importlib.metadata.distribution(owners[0])


def _dependencies(
    found: importlib.metadata.Distribution,
) -> Iterator[importlib.metadata.Distribution]:
    """The installed packages that a package requires, those of its extras left out."""
    for requirement in found.requires or ():
        text, _, marker = requirement.partition(";")
        name = _NAME.match(text.strip())
        if name is None or re.search(r"\bextra\b", marker):
            continue
        try:
            yield importlib.metadata.distribution(name[0].rstrip("._-"))
        except importlib.metadata.PackageNotFoundError:
            continue


def _record(name: str, found: importlib.metadata.Distribution) -> list[tuple[str, ...]]:
    """The paths of a package's files that lie where packages are installed.

    Raises:
        UsageError: its files are not known, or they are a project's own.
    """
    if name == OWN:
        raise UsageError(
            f"{OWN} itself cannot be allowed: programs may not read it", hint="leave it out"
        )
    if '"editable": true' in (found.read_text("direct_url.json") or ""):
        raise UsageError(
            f"the package {name} is installed from a folder (editable)",
            hint=f"install it as a copy: pip install the folder, without -e, or leave {name} out",
        )
    if found.files is None:
        raise UsageError(
            f"the package {name} has no list of its files", hint=f"pip install {name} makes one"
        )
    paths = (path.parts for path in found.files)
    return [
        parts
        for parts in paths
        if parts and parts[0] != "/" and ".." not in parts and not parts[0].endswith(".pth")
    ]


def _places(paths: Iterable[Sequence[str]], above: str = "") -> Iterator[str]:
    """The files, and the folders that belong to the package as a whole, which hold these paths.

    A folder without `__init__` can be shared by packages (a namespace): its parts count then.
    """
    below: dict[str, list[Sequence[str]]] = defaultdict(list)
    for first, *rest in paths:
        below[first].append(rest)
    for name, rests in below.items():
        is_package = any(len(rest) == 1 and rest[0].split(".")[0] == "__init__" for rest in rests)
        if [] in rests or is_package or name.endswith(_WHOLE):
            yield f"{above}{name}"
        else:
            yield from _places(rests, f"{above}{name}/")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
