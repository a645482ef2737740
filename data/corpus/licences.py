"""Licences as SPDX expressions: read, joined, and held against what a user wants.

    normalise(value)    what a data set's column says -> expression or None
    join(values)        several licences of one thing, all of which apply
    parse_wanted(text)  what a user allows -> Wanted

An expression is an id of the SPDX list, or ids joined by AND, OR and WITH; the package
license-expression knows the list and parses. None is unknown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from license_expression import (
    AND,
    OR,
    ExpressionError,
    LicenseSymbol,
    LicenseWithExceptionSymbol,
    Licensing,
    get_spdx_licensing,
)

from codecria.data.errors import UsageError

UNKNOWN = "unknown"

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
# Names people write that the SPDX list does not know.
_ALIASES = {
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


# ------------------------------------------------------------------------------------- expressions

_PARTS = re.compile(r"(\s+(?:and|or|with)\s+|\s*[()/]\s*)", re.IGNORECASE)


@functools.cache
def _licensing() -> Licensing:
    return get_spdx_licensing()


@functools.cache
def _canonical() -> dict[str, str]:
    """The ids of the SPDX list by how they are compared."""
    return {
        symbol.key.casefold(): symbol.key
        for symbol in _licensing().known_symbols.values()
        if not symbol.key.startswith("LicenseRef-")
    }


def _one(name: str) -> str | None:
    """The id that a name stands for, or None."""
    folded = name.strip().casefold()
    if known := _ALIASES.get(folded) or _canonical().get(folded):
        return known
    if not re.fullmatch(r"[a-z0-9.+-]+", folded):
        return None
    try:
        symbol = _licensing().parse(name.strip())
    except ExpressionError:
        return None
    known = str(symbol.key) if isinstance(symbol, LicenseSymbol) else ""
    return known if known.casefold() in _canonical() else None  # `GPL-2.0+` and other old ids


@functools.lru_cache(maxsize=4096)
def _parsed(value: str) -> object | None:
    """The tree of an expression, with ids as the SPDX list writes them; None for what is none.

    `MIT/Apache-2.0`, the old form of OR, counts as such where every side is a known licence.
    """
    parts = [part for part in _PARTS.split(value) if part]
    known = [_one(part) for part in parts]
    slashes = [part.strip() == "/" for part in parts]
    if any(slashes) and not all(
        slash or name or _PARTS.fullmatch(part)
        for slash, name, part in zip(slashes, known, parts, strict=True)
    ):
        return None
    text = "".join(
        " OR " if slash else name or part
        for slash, name, part in zip(slashes, known, parts, strict=True)
    )
    try:
        tree: object | None = _licensing().parse(text)
    except ExpressionError:
        return None
    return tree


def _names_in(node: object) -> str:
    """An expression written out."""
    if isinstance(node, (AND, OR)):
        sign = " AND " if isinstance(node, AND) else " OR "
        sides = [
            f"({_names_in(side)})" if isinstance(side, (AND, OR)) else _names_in(side)
            for side in node.args
        ]
        return sign.join(sides)
    if isinstance(node, LicenseWithExceptionSymbol):
        return f"{node.license_symbol.key} WITH {node.exception_symbol.key}"
    assert isinstance(node, LicenseSymbol), node
    return str(node.key)


def normalise(value: str) -> str | None:
    """What a column or a header says, as an expression with ids as the SPDX list writes them.

    A name nobody knows stays as it is. None for what says that there is no licence.

    >>> normalise("apache-2.0"), normalise("GPLv3+"), normalise("no-license")
    ('Apache-2.0', 'GPL-3.0-or-later', None)
    >>> normalise("MIT/Apache-2.0")
    'MIT OR Apache-2.0'
    """
    value = " ".join(value.split())
    if value.casefold() in _NOTHING:
        return None
    if known := _one(value):
        return known
    tree = _parsed(value)
    return value if tree is None else _names_in(tree)


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
        names: SPDX ids, sorted, and "unknown" if what states none is wanted too.
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
        tree = _parsed(expression)
        return expression.casefold() in wanted if tree is None else _allowed(tree, wanted)


def _allowed(node: object, wanted: frozenset[str]) -> bool:
    if isinstance(node, OR):
        return any(_allowed(side, wanted) for side in node.args)
    if isinstance(node, AND):
        return all(_allowed(side, wanted) for side in node.args)
    if isinstance(node, LicenseWithExceptionSymbol):
        node = node.license_symbol
    assert isinstance(node, LicenseSymbol), node
    return str(node.key).casefold() in wanted


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
            near = get_close_matches(part.casefold(), [*_canonical(), *_ALIASES], n=3)
            named = " or ".join(_one(name) or name for name in near)
            raise UsageError(
                f"no licence is called {part!r}",
                hint=f"did you mean {named}?" if near else "e.g. permissive,unknown or MIT,ISC",
            )
