"""Licences: told from headers, licence files and columns; compared as SPDX expressions.

    of_header(text)     the first lines of a source file -> expression or None
    of_text(text)       a LICENSE or COPYING file -> expression or None
    normalise(value)    what a data set's column says -> expression or None
    parse_wanted(text)  what a user allows -> Wanted

An expression is an id of the SPDX list, or ids joined by AND, OR and WITH. None is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath

from codecria.data.errors import UsageError

UNKNOWN = "unknown"
OPERATORS = ("AND", "OR", "WITH")
HEAD_CHARACTERS = 6_000  # of a source file, where a header stands

# What asks for no more than its own text and a notice to be kept: the licences that the Blue Oak
# Council lists as permissive and that are met in public code, and dedications to the public domain.
PERMISSIVE = (
    "0BSD",
    "AFL-3.0",
    "Apache-2.0",
    "Artistic-2.0",
    "BlueOak-1.0.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-2-Clause-Patent",
    "BSD-3-Clause",
    "BSD-3-Clause-Clear",
    "BSD-3-Clause-LBNL",
    "BSD-4-Clause",
    "BSL-1.0",
    "bzip2-1.0.6",
    "CC0-1.0",
    "curl",
    "ECL-2.0",
    "EFL-2.0",
    "FSFAP",
    "FTL",
    "HPND",
    "ICU",
    "IJG",
    "ISC",
    "Libpng",
    "libtiff",
    "MIT",
    "MIT-0",
    "MIT-Modern-Variant",
    "MS-PL",
    "MulanPSL-2.0",
    "NCSA",
    "NIST-PD",
    "OpenSSL",
    "PHP-3.01",
    "PostgreSQL",
    "PSF-2.0",
    "Python-2.0",
    "TCL",
    "UPL-1.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "W3C",
    "WTFPL",
    "X11",
    "Zlib",
    "ZPL-2.1",
)
OTHERS = (
    "AGPL-1.0-only",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "APSL-2.0",
    "BUSL-1.1",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CDDL-1.0",
    "CDDL-1.1",
    "CECILL-2.1",
    "CPL-1.0",
    "Elastic-2.0",
    "EPL-1.0",
    "EPL-2.0",
    "EUPL-1.1",
    "EUPL-1.2",
    "GFDL-1.3-only",
    "GFDL-1.3-or-later",
    "GPL-1.0-only",
    "GPL-1.0-or-later",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "LGPL-2.0-only",
    "LGPL-2.0-or-later",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "MPL-1.1",
    "MPL-2.0",
    "MS-RL",
    "ODbL-1.0",
    "OFL-1.1",
    "OSL-3.0",
    "SSPL-1.0",
    "Vim",
)
_CANONICAL = {name.casefold(): name for name in (*PERMISSIVE, *OTHERS)}
# Ids that the SPDX list has given up, and names people write.
_GNU = {
    f"{family}-{version}{suffix}": f"{family.upper()}-{version}-{meaning}"
    for family in ("gpl", "lgpl", "agpl", "gfdl")
    for version in ("1.0", "1.3", "2.0", "2.1", "3.0")
    for suffix, meaning in (("", "only"), ("+", "or-later"))
}
_ALIASES = {
    **_GNU,
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "apache": "Apache-2.0",
    "apache2": "Apache-2.0",
    "asl 2.0": "Apache-2.0",
    "boost": "BSL-1.0",
    "boost software license 1.0": "BSL-1.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-2": "BSD-2-Clause",
    "bsd-3": "BSD-3-Clause",
    "bsd2": "BSD-2-Clause",
    "bsd3": "BSD-3-Clause",
    "2-clause bsd": "BSD-2-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "simplified bsd": "BSD-2-Clause",
    "cc0": "CC0-1.0",
    "eclipse public license 2.0": "EPL-2.0",
    "expat": "MIT",
    "gnu gpl v2": "GPL-2.0-only",
    "gnu gpl v3": "GPL-3.0-only",
    "gpl v2": "GPL-2.0-only",
    "gpl v3": "GPL-3.0-only",
    "gpl2": "GPL-2.0-only",
    "gpl3": "GPL-3.0-only",
    "gplv2": "GPL-2.0-only",
    "gplv2+": "GPL-2.0-or-later",
    "gplv3": "GPL-3.0-only",
    "gplv3+": "GPL-3.0-or-later",
    "isc license": "ISC",
    "lgplv2.1": "LGPL-2.1-only",
    "lgplv3": "LGPL-3.0-only",
    "lgplv3+": "LGPL-3.0-or-later",
    "agplv3": "AGPL-3.0-only",
    "agplv3+": "AGPL-3.0-or-later",
    "mit license": "MIT",
    "mit/x11": "MIT",
    "the mit license": "MIT",
    "mozilla public license 2.0": "MPL-2.0",
    "mpl": "MPL-2.0",
    "mpl 2.0": "MPL-2.0",
    "mpl2": "MPL-2.0",
    "psf": "PSF-2.0",
    "public domain": "Unlicense",
    "python software foundation license": "PSF-2.0",
    "the unlicense": "Unlicense",
    "zlib/libpng": "Zlib",
}
_NOTHING = frozenset(
    [
        *("", "none", "null", "unknown", "other", "unlicensed", "noassertion", "n/a"),
        *("no license", "no-license", "no_license"),
    ]
)
_FILE_NAME = re.compile(
    r"(?:(?:un)?licen[cs]es?|copying|copyright|mit-licen[cs]e)(?:[.\-_][a-z0-9.\-_+]*)?", re.I
)
_PROGRAM_ENDINGS = (".py", ".js", ".ts", ".go", ".java", ".c", ".h", ".rs", ".rb", ".json", ".yml")


def is_licence_file(name: str) -> bool:
    """Whether a file is by its name the licence of what lies around it."""
    name = PurePosixPath(name).name
    return bool(_FILE_NAME.fullmatch(name)) and not name.lower().endswith(_PROGRAM_ENDINGS)


# ------------------------------------------------------------------------------------------- texts

_SPACE = re.compile(r"[\W_]+")


def _plain(text: str) -> str:
    """Lower-case words with one space between them: titles, frames and line ends make no odds."""
    return f" {_SPACE.sub(' ', text).lower().strip()} "


# Phrases of licences' own texts, all of which must be there; the first licence that fits counts,
# so those whose text holds another's stand before it.
_TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0-only", ("gnu affero general public license", "version 3 19 november 2007")),
    ("LGPL-3.0-only", ("gnu lesser general public license", "version 3 29 june 2007")),
    ("LGPL-2.1-only", ("gnu lesser general public license", "version 2 1 february 1999")),
    ("LGPL-2.0-only", ("gnu library general public license", "version 2 june 1991")),
    ("GPL-3.0-only", ("gnu general public license", "version 3 29 june 2007")),
    ("GPL-2.0-only", ("gnu general public license", "version 2 june 1991")),
    ("SSPL-1.0", ("server side public license", "version 1 october 16 2018")),
    ("MPL-2.0", ("mozilla public license", "version 2 0", "covered software")),
    ("MPL-1.1", ("mozilla public license", "version 1 1", "covered code")),
    ("EPL-2.0", ("eclipse public license", "v 2 0", "secondary license")),
    ("EPL-1.0", ("eclipse public license", "v 1 0", "contributor")),
    ("CDDL-1.0", ("common development and distribution license", "covered software")),
    ("EUPL-1.2", ("european union public licence", "v 1 2")),
    ("BUSL-1.1", ("business source license 1 1", "change date")),
    ("Elastic-2.0", ("elastic license 2 0",)),
    ("Apache-2.0", ("apache license", "version 2 0 january 2004")),
    ("CC0-1.0", ("cc0 1 0 universal",)),
    ("CC-BY-NC-SA-4.0", ("attribution noncommercial sharealike 4 0 international",)),
    ("CC-BY-NC-4.0", ("attribution noncommercial 4 0 international",)),
    ("CC-BY-SA-4.0", ("attribution sharealike 4 0 international",)),
    ("CC-BY-4.0", ("attribution 4 0 international",)),
    ("Artistic-2.0", ("artistic license 2 0",)),
    ("OFL-1.1", ("sil open font license version 1 1",)),
    ("BSL-1.0", ("boost software license version 1 0",)),
    ("Unlicense", ("free and unencumbered software released into the public domain",)),
    ("WTFPL", ("do what the fuck you want to public license",)),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("UPL-1.0", ("universal permissive license", "larger works")),
    ("NCSA", ("permission is hereby granted free of charge", "neither the names of")),
    (
        "PostgreSQL",
        ("permission to use copy modify and distribute", "in no event shall the university"),
    ),
    ("MulanPSL-2.0", ("mulan psl v2",)),
    ("BlueOak-1.0.0", ("blue oak model license",)),
    (
        "MIT-0",
        ("permission is hereby granted free of charge to any person", "without restriction"),
    ),
    (
        "Zlib",
        (
            "this software is provided as is without any express or implied warranty",
            "altered source versions must be plainly marked",
        ),
    ),
    ("0BSD", ("permission to use copy modify and or distribute this software",)),
    ("BSD-1-Clause", ("redistributions of source code must retain the above copyright notice",)),
)
_MIT_NOTICE = "the above copyright notice and this permission notice shall be included"
_ISC_NOTICE = "provided that the above copyright notice and this permission notice appear"


def of_text(text: str) -> str | None:
    """The licence that a LICENSE or COPYING file holds, or None.

    Of a file with several licences (a notice of third parties after its own) the one counts whose
    text begins first; `AND` is not made up, since such files often list what is merely bundled.
    """
    plain = _plain(text[:200_000])
    found: list[tuple[int, int, str]] = []
    for rank, (name, phrases) in enumerate(_TEXTS):
        places = [plain.find(f" {phrase} ") for phrase in phrases]
        if min(places) >= 0:
            found.append((min(places), rank, name))
    if not found:
        return of_header(text)
    place, _, name = min(found, key=lambda hit: (hit[0], hit[1]))
    after = plain[place:]
    if name == "MIT-0":
        return "MIT" if _MIT_NOTICE in after[:3000] else "MIT-0"
    if name == "0BSD":
        return "ISC" if _ISC_NOTICE in after[:1500] else "0BSD"
    if name == "BSD-1-Clause":
        return _bsd(after[:4000])
    return name


def _bsd(plain: str) -> str:
    if "all advertising materials mentioning" in plain:
        return "BSD-4-Clause"
    if "endorse or promote products" in plain:
        return "BSD-3-Clause"
    if "redistributions in binary form must" in plain:
        return "BSD-2-Clause"
    return "BSD-1-Clause"


# ----------------------------------------------------------------------------------------- headers

_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9 \t.+()\-]+)")
_HINTS = ("icen", "ICEN", "ublic domain")  # no header speaks without one of these
# (words that must follow each other in a header, the licence)
_HEADERS: tuple[tuple[str, str], ...] = (
    (r"licensed under the apache license,? version 2", "Apache-2.0"),
    (r"licensed to the apache software foundation", "Apache-2.0"),
    (r"apache license,? version 2 0", "Apache-2.0"),
    (
        r"affero general public license.{0,200}?version 3.{0,80}?or at your option",
        "AGPL-3.0-or-later",
    ),
    (
        r"lesser general public license.{0,200}?version 3.{0,80}?or at your option",
        "LGPL-3.0-or-later",
    ),
    (
        r"lesser general public license.{0,200}?version 2 1.{0,80}?or at your option",
        "LGPL-2.1-or-later",
    ),
    (
        r"library general public license.{0,200}?version 2.{0,80}?or at your option",
        "LGPL-2.0-or-later",
    ),
    (r"gnu general public license.{0,200}?version 3.{0,80}?or at your option", "GPL-3.0-or-later"),
    (r"gnu general public license.{0,200}?version 2.{0,80}?or at your option", "GPL-2.0-or-later"),
    (r"gnu general public license version 3", "GPL-3.0-only"),
    (r"gnu general public license version 2", "GPL-2.0-only"),
    (r"mozilla public license,? v 2 0", "MPL-2.0"),
    (r"eclipse public license v?2 0|eclipse public license v 2 0", "EPL-2.0"),
    (r"eclipse public license v1 0|eclipse public license v 1 0", "EPL-1.0"),
    (r"(?:licensed|released|distributed|available) under the (?:terms of the )?mit license", "MIT"),
    (r"use of this source code is governed by an mit style", "MIT"),
    (r"permission is hereby granted free of charge to any person", "MIT"),
    (r"use of this source code is governed by a bsd style", "BSD-3-Clause"),
    (
        r"(?:licensed|released|distributed) under the (?:terms of the )?"
        r"(?:new |3 clause |modified )?bsd license",
        "BSD-3-Clause",
    ),
    (r"boost software license,? version 1 0", "BSL-1.0"),
    (r"placed in the public domain|released into the public domain", "Unlicense"),
)
_COMPILED = tuple((re.compile(pattern), name) for pattern, name in _HEADERS)


def of_header(text: str) -> str | None:
    """The licence that a source file's first lines tell, or None.

    An `SPDX-License-Identifier` counts before anything else; then the phrases that headers use.
    """
    head = text[:HEAD_CHARACTERS]
    if not any(hint in head for hint in _HINTS):
        return None
    if match := _SPDX.search(head):
        expression = normalise(match[1].strip().strip("-").strip())
        if expression is not None:
            return expression
    plain = _plain(head)
    if " licen" not in plain and " public domain" not in plain:
        return None
    places = [(found.start(), name) for rule, name in _COMPILED if (found := rule.search(plain))]
    if not places:
        if "redistributions of source code must retain" in plain:
            return _bsd(plain)
        return None
    return min(places)[1]


# ------------------------------------------------------------------------------------- expressions

_TOKEN = re.compile(r"\s*(\(|\)|[^\s()]+)")


def normalise(value: str) -> str | None:
    """What a column or a header says, as an expression with ids as the SPDX list writes them.

    A name nobody knows stays as it is. None for what says that there is no licence.

    >>> normalise("apache-2.0"), normalise("GPLv3+"), normalise("no-license")
    ('Apache-2.0', 'GPL-3.0-or-later', None)
    """
    value = " ".join(value.split())
    if value.casefold() in _NOTHING:
        return None
    if known := _one(value):
        return known
    parts = _TOKEN.findall(value)
    if not any(part.upper() in OPERATORS for part in parts):
        return value
    shown = [part.upper() if part.upper() in OPERATORS else _one(part) or part for part in parts]
    return " ".join(shown).replace("( ", "(").replace(" )", ")")


def _one(name: str) -> str | None:
    folded = name.casefold()
    return _CANONICAL.get(folded) or _ALIASES.get(folded)


def join(values: Iterable[str]) -> str | None:
    """Several licences of one thing, all of which apply (The Stack lists what it detected)."""
    known = sorted({found for value in values if (found := normalise(value))})
    if len(known) < 2:
        return known[0] if known else None
    return " AND ".join(f"({name})" if " OR " in name else name for name in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The licences that documents may have.

    Attributes:
        names: SPDX ids, sorted, and "unknown" if what tells none is wanted too.
    """

    names: tuple[str, ...]

    def allows(self, expression: str | None) -> bool:
        """Whether a document of this licence is wanted.

        Of OR one side is enough, AND needs both, WITH goes by the licence before it. What is no
        expression is one name, allowed only if it is among the wanted.
        """
        if expression is None:
            return UNKNOWN in self.names
        wanted = frozenset(name.casefold() for name in self.names)
        tokens = [
            token.upper() if token.upper() in OPERATORS else token
            for token in _TOKEN.findall(expression)
        ]
        try:
            place, verdict = _or(tokens, 0, wanted)
        except IndexError:
            return expression.casefold() in wanted
        return verdict if place == len(tokens) else expression.casefold() in wanted


def _or(tokens: list[str], place: int, wanted: frozenset[str]) -> tuple[int, bool]:
    """The place after an expression, and whether it is allowed."""
    place, verdict = _and(tokens, place, wanted)
    while tokens[place : place + 1] == ["OR"]:
        place, other = _and(tokens, place + 1, wanted)
        verdict = verdict or other
    return place, verdict


def _and(tokens: list[str], place: int, wanted: frozenset[str]) -> tuple[int, bool]:
    place, verdict = _simple(tokens, place, wanted)
    while tokens[place : place + 1] == ["AND"]:
        place, other = _simple(tokens, place + 1, wanted)
        verdict = verdict and other
    return place, verdict


def _simple(tokens: list[str], place: int, wanted: frozenset[str]) -> tuple[int, bool]:
    if tokens[place] == "(":
        place, verdict = _or(tokens, place + 1, wanted)
        if tokens[place] != ")":
            raise IndexError
        return place + 1, verdict
    if tokens[place] == ")":
        raise IndexError
    name = _one(tokens[place]) or tokens[place]
    place += 1
    if tokens[place : place + 1] == ["WITH"]:
        if tokens[place + 1] in "()":
            raise IndexError
        place += 2
    return place, name.casefold() in wanted


def parse_wanted(text: str) -> Wanted | None:
    """`any` (None), or names with commas, `permissive` and `unknown` among them.

    Raises:
        UsageError: a name nobody knows; the hint offers the nearest.
    """
    if text.strip().casefold() == "any":
        return None
    return Wanted(names=tuple(sorted(set(_names(text)), key=str.casefold)))


def _names(text: str) -> Iterator[str]:
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part.casefold() == "permissive":
            yield from PERMISSIVE
        elif part.casefold() == UNKNOWN:
            yield UNKNOWN
        elif found := _one(part):
            yield found
        else:
            near = get_close_matches(part.casefold(), [*_CANONICAL, *_ALIASES], n=3)
            named = " or ".join(_one(name) or name for name in near)
            raise UsageError(
                f"no licence is called {part!r}",
                hint=f"did you mean {named}?" if near else "e.g. permissive,unknown or MIT,ISC",
            )
