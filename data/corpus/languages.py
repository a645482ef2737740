"""Which language a file or record is in; the table is `languages.json`.

The facts are GitHub linguist's (names, extensions, file names, interpreters), chosen for what code
corpora hold and written down anew. An extension that several languages share has one default, the
reader met most often in public code; `ambiguous.py` knows the others by what a file says.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Literal

from codecria.data.errors import UsageError

from . import ambiguous

LanguageClass = Literal["programming", "data", "markup", "prose"]
UNKNOWN = "unknown"  # records that say nothing about their language

_SHEBANG = re.compile(r"^#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*)?(?:\S*/)?([A-Za-z+_-]+[23]?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageTable:
    """The table, turned round for look-ups; keys are lower case except file names.

    Attributes:
        classes: language -> what kind of text it is; quality thresholds depend on it.
        by_extension: extension with its dot -> language.
        by_filename: whole file name -> language.
        by_interpreter: name after `#!` -> language.
        by_alias: any accepted spelling -> language.
    """

    classes: dict[str, LanguageClass]
    by_extension: dict[str, str]
    by_filename: dict[str, str]
    by_interpreter: dict[str, str]
    by_alias: dict[str, str]


@functools.cache
def table() -> LanguageTable:
    """The language table, read once."""
    entries = json.loads(Path(__file__).with_name("languages.json").read_text(encoding="utf-8"))
    return LanguageTable(
        classes={name: entry["class"] for name, entry in entries.items()},
        by_extension={e: name for name, entry in entries.items() for e in entry["extensions"]},
        by_filename={f: name for name, e in entries.items() for f in e.get("filenames", ())},
        by_interpreter={i: name for name, e in entries.items() for i in e.get("interpreters", ())},
        by_alias={
            alias.casefold(): name
            for name, entry in entries.items()
            for alias in (*entry.get("aliases", ()), name, name.replace(" ", "-"))
        },
    )


def language_class(language: str) -> LanguageClass:
    """What kind of text a language is; unknown ones are taken for programs."""
    return table().classes.get(language, "programming")


def by_path(path: str) -> str | None:
    """The language of a path by its name, or None: whole name first, then the longest extension."""
    name = PurePosixPath(path).name
    if found := table().by_filename.get(name):
        return found
    extension = name.lower()
    while "." in extension[1:]:
        extension = extension[extension.index(".", 1) :]
        if found := table().by_extension.get(extension):
            return found
    # `Dockerfile.dev`, `Makefile.common`: the name before the first dot speaks.
    stem = name.split(".", 1)[0]
    return table().by_filename.get(stem) if stem in ("Dockerfile", "Makefile") else None


def by_content(path: str, text: str) -> str | None:
    """The language of a file: by its name, checked by its text where names are shared."""
    default = by_path(path)
    if default is None:
        return by_shebang(text)
    return ambiguous.decide(_extension(path), text, default)


def possible_by_path(path: str) -> frozenset[str]:
    """All languages that a path's name can mean; empty where it means none."""
    default = by_path(path)
    if default is None:
        return frozenset()
    return ambiguous.possible(_extension(path)) | {default}


def _extension(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def by_shebang(text: str) -> str | None:
    """The language of a script's `#!` line, or None."""
    match = _SHEBANG.match(text[:200])
    return table().by_interpreter.get(match.group(1)) if match else None


def by_name(name: str) -> str | None:
    """The language a data set's own column names (`C++`, `cpp`, `c-sharp`, `.py`), or None."""
    if name.startswith("."):
        return table().by_extension.get(name.lower())
    return table().by_alias.get(name.casefold()) or table().by_extension.get(f".{name.lower()}")


def parse_languages(names: Iterable[str]) -> tuple[str, ...]:
    """The canonical names for what a user typed, sorted and unique.

    Raises:
        UsageError: a name is not in the table; the hint offers the nearest ones.
    """
    found = set()
    for name in names:
        language = UNKNOWN if name.casefold() == UNKNOWN else by_name(name)
        if language is None:
            near = get_close_matches(name.casefold(), table().by_alias, n=3)
            hint = "did you mean " + " or ".join(near) + "?" if near else "e.g. python,c,c++,rust"
            raise UsageError(f"no language is called {name!r}", hint=hint)
        found.add(language)
    return tuple(sorted(found))
