"""The tests of a repository: which files hold them, and what runs them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codecria.data.errors import UsageError

Backend = Literal["pytest", "unittest"]
_TEST_FILE = re.compile(r"(?:.*/)?(?:test_[^/]*|[^/]*_test|tests)\.py")
_TEST_FOLDERS = frozenset({"test", "tests", "testing", "__tests__"})
# As languages beside Python name them: x_test.go, x.test.ts, x.spec.js, x_spec.rb, XTest.java.
_OTHER_TESTS = re.compile(
    r"test_.*|.*(?:[._-](?:test|spec)|[a-z\d]Tests?)\.\w+|tests\.\w+|conftest\.py"
)
_NOT_OURS = frozenset({"site-packages", "node_modules", ".venv", "venv", "vendor", "_vendor"})
_COMPILED = (".so", ".pyd")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which tests to run.

    Attributes:
        backend: what runs them; None is pytest where it is at hand, else unittest.
        paths: files and folders; none are those that look like tests.
        options: more words for pytest.
    """

    backend: Backend | None = None
    paths: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_tests(text: str) -> Asked:
    """What `--tests` asks for, `off` apart: `auto`, paths, or a command of pytest or unittest.

    >>> parse_tests("python -m pytest tests/unit -k 'not slow'").options
    ('-k', 'not slow')

    Raises:
        UsageError: it is another command.
    """
    hint = "as --tests auto, --tests tests/unit, or --tests 'pytest tests -k parser'"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--tests {text!r} cannot be read: {error}", hint=hint) from error
    if not words:
        raise UsageError("--tests names nothing", hint=hint)
    if words == ["auto"]:
        return Asked()
    if re.fullmatch(r"(?:.*/)?python[\d.]*", words[0]) and words[1:2] == ["-m"]:
        words = words[2:]
    backend: Backend | None = None
    name = words[0].rpartition("/")[2] if words else ""
    if name in ("pytest", "py.test"):
        backend, words = "pytest", words[1:]
    elif name == "unittest":
        backend, words = "unittest", words[1:]
    elif name in ("make", "tox", "nox", "hatch", "sh", "bash", "python", "python3", "uv", "npm"):
        raise UsageError(
            f"--tests {text!r}: the sandbox runs pytest and unittest, no other commands", hint=hint
        )
    cut = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    options = tuple(words[cut:])
    if options and backend == "unittest":
        raise UsageError(f"--tests: {options[0]} is no option here", hint="unittest takes paths")
    return Asked(backend, tuple(word.rstrip("/") for word in words[:cut]), options)


def files_of_tests(files: Iterable[str], asked: Asked) -> list[str]:
    """The test files among a commit's files."""
    if asked.paths:
        return sorted(
            path
            for path in files
            if path.endswith(".py")
            and any(path == p or p == "." or path.startswith(f"{p}/") for p in asked.paths)
            and (path in asked.paths or _TEST_FILE.fullmatch(path))
        )
    return sorted(
        path
        for path in files
        if _TEST_FILE.fullmatch(path) and not _NOT_OURS.intersection(path.split("/"))
    )


def is_of_tests(path: str) -> bool:
    """Whether a file of any language is part of tests, by its name and folders.

    >>> [is_of_tests(path) for path in ("tests/data.py", "pkg/testify.py", "ui/List.test.tsx")]
    [True, False, True]
    """
    *folders, name = path.split("/")
    return bool(_TEST_FOLDERS.intersection(folders) or _OTHER_TESTS.fullmatch(name))


def nearest_first(files: Sequence[str], paths: Iterable[str], texts: dict[str, str]) -> list[str]:
    """Test files, those first that name a module of these paths."""
    stems = {stem_of(path) for path in paths}

    def far(file: str) -> bool:
        return not any(names(texts.get(file, ""), stem) or stem in file for stem in stems)

    return sorted(files, key=lambda file: (far(file), file))


def stem_of(path: str) -> str:
    """The name that a file is imported by: its own, or its folder's."""
    folder, _, name = path.rpartition("/")
    stem = name.removesuffix(".py")
    return folder.rpartition("/")[2] if stem in ("__init__", "__main__") else stem


def names(text: str, stem: str) -> bool:
    """Whether a text has a name in it."""
    return bool(stem) and re.search(rf"\b{re.escape(stem)}\b", text) is not None


@dataclass(frozen=True, slots=True)
class Packages:
    """What tests may import beside the repository and the standard library.

    Attributes:
        names: of packages installed beside codecria.
        folders: of installed packages.
        compiled: whether the folders hold compiled code.
    """

    names: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    compiled: bool = False

    def has(self, package: str) -> bool:
        """Whether a package is in one of the folders."""
        return any((folder / package).is_dir() for folder in self.folders)


def parse_packages(words: Iterable[str]) -> Packages:
    """Packages by name, and folders: a virtual environment, or what `pip install --target` made.

    Raises:
        UsageError: a folder is none, or is made for another Python.
    """
    plain, folders = [], []
    for word in words:
        if "/" not in word and not Path(word).is_dir():
            plain.append(word)
            continue
        folders += _package_folders(Path(word))
    compiled = any(path.suffix in _COMPILED for folder in folders for path in folder.rglob("*"))
    return Packages(tuple(plain), tuple(folders), compiled)


def _package_folders(place: Path) -> list[Path]:
    """The folders that packages are imported from in an environment, or a folder of packages.

    Raises:
        UsageError: there is none, or it is another Python's.
    """
    if place.is_file():  # an interpreter of an environment
        place = place.parent.parent
    if not place.is_dir():
        raise UsageError(f"--packages {place} is no folder", hint="name a virtual environment")
    if not (place / "pyvenv.cfg").is_file():
        return [place.resolve()]
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    found = sorted({*place.glob("lib*/python*/site-packages")})
    fitting = [folder for folder in found if folder.parent.name == own]
    if not fitting:
        others = ", ".join(folder.parent.name for folder in found) or "no packages"
        raise UsageError(
            f"--packages {place} has {others}, and tests run with {own}",
            hint=f"make an environment with {own}, or pip install --target FOLDER",
        )
    return [folder.resolve() for folder in fitting]
