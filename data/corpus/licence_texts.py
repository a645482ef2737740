"""The licence that a text states: a licence file, or the first lines of a source file.

of_text(text)    a LICENSE or COPYING file -> expression or None
of_header(text)  the first lines of a source file -> expression or None
"""

from __future__ import annotations

import re

from . import licences

HEAD_CHARACTERS = 6_000  # of a source file, where a header stands

# ------------------------------------------------------------------------------------------- texts

_SPACE = re.compile(r"[\W_]+")


def _plain(text: str) -> str:
    """Lower-case words with one space between them: titles, frames and line ends make no odds."""
    return f" {_SPACE.sub(' ', text).lower().strip()} "


# Phrases of licences' own texts, all of which must be there; the first licence that fits counts,
# so those whose text holds another's stand before it.
_TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
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
    ("MIT-CMU", ("by obtaining using and or copying this software",)),
    ("0BSD", ("permission to use copy modify and or distribute this software",)),
    ("BSD-1-Clause", ("redistributions of source code must retain the above copyright notice",)),
)
_MIT_NOTICE = "the above copyright notice and this permission notice shall be included"
_ISC_NOTICE = "provided that the above copyright notice and this permission notice appear"


_GNU_TITLE = re.compile(
    r" gnu (?P<family>affero |lesser |library )?general public license version (?P<version>3|2 1|2)"
    r" (?:19 november 2007|29 june 2007|(?:1 )?february 1999|june 1991) "
)
_GNU_NAMES = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL", None: "GPL"}

# What opens a part about other people's work, in words that no licence's own text uses.
_THIRD_PARTIES = re.compile(
    r" (?:third|3rd) party (?:licen[cs]es?|software|components?|librar(?:y|ies)|code|attributions?"
    r"|notices (?!normally)|dependencies)"
    r"| bundle[sd]? (?:the|with|several|some|software|code|in) | subcomponents "
    r"| this (?:\w+ )?(?:product|software|distribution|package|library|project|repository|program"
    r"|binary|wheel)(?: \w+){0,4}? (?:also )?(?:includes?|contains?|bundles?|incorporates?|embeds?)"
    r" (?:the following|code|software|components|files|portions|third|parts|some|several|other"
    r"|a copy|libraries|source) "
    r"| (?:the following|these) (?:components|libraries|packages|third) "
    r"| (?:parts|portions|files) of (?:this|the) (?:software|code|file|project|library|repository)"
    r" (?:are|is|were|come|have) "
)

# What takes away from a licence, in words that no text of the list uses but those of licences that
# are restricted by their own name. The GNU licences, MPL, Unlicense and Zlib speak of
# non-commercial use or of restrictions, too, without adding any.
_FIELD = "(?:personal|private|internal|educational|academic|research|evaluation)"
_RESTRICTIONS = re.compile(
    r" commons clause "
    r"|(?<! commercial or)(?<! commercially or)(?<! only for)(?<! occasionally and)"
    r" non ?commercial(?:ly)? (?!or commercial|distribution )"
    r"| (?:not|never|no) (?:\w+ ){0,6}commercial(?:ly)? (?:uses?|purposes?|products?|gain) "
    r"| commercial use (?:\w+ ){0,4}(?:not|prohibited|forbidden|requires?|needs?) "
    rf"| {_FIELD} (?:and \w+ |or \w+ )?(?:use|purposes?) only | only for {_FIELD} "
    r"| does not include (?:\w+ ){0,12}right to sell "
    r"| used for good | not (?:be used )?for evil "
    r"| (?:may|must|shall|can) not be used (?:by|for|in) (?!advertising)"
    r"| not (?:\w+ ){0,8}train(?:ing)? (?:\w+ ){0,6}(?:models?|machine|ai|artificial) "
    r"| hippocratic license | anti 996 | (?:military|weapons) (?:use|purposes|or|systems|research) "
    r"| not (?:\w+ ){0,4}designed (?:\w+ ){0,4}licensed (?:\w+ ){0,14}nuclear "
    r"| (?:additional|extra) restrictions? (?:apply|applies|are|is|shall) "
    r"| following (?:additional|further|extra) (?:restriction|limitation|condition)s? "
    r"| with the (?:additional|further|added) (?:restriction|condition|limitation)s? "
)
# Licences that are restricted by their own words: these are in the id already.
_OWN_RESTRICTIONS = ("BUSL-1.1", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "Elastic-2.0", "SSPL-1.0")


def of_text(text: str) -> str | None:
    """The licence that a LICENSE or COPYING file holds, or None.

    Of a file with several licences all apply. What follows a notice of third parties is not the
    project's own and counts for nothing. A licence with a restriction added (Commons Clause,
    non-commercial use only) is `LicenseRef-ID-restricted`, which no list of permissive ones holds.
    """
    plain = _plain(text[:200_000])
    foreign = _THIRD_PARTIES.search(plain)
    own = plain[: foreign.start() + 1] if foreign else plain
    found = _licences_in(own)
    if not found:
        return of_header(text) if foreign is None or foreign.start() > 400 else None
    if _RESTRICTIONS.search(own):
        found = {name if name in _OWN_RESTRICTIONS else _restricted(name) for name in found}
    return licences.join(found)


_EITHER = re.compile(r" either of (?:the|these) licen[cs]es | (?:dual|double) licen[cs]ed ")


def offers_choice(text: str) -> bool:
    """Whether a file holds no licence itself, but says that either of several may be chosen."""
    plain = _plain(text[:20_000])
    return _EITHER.search(plain) is not None and not _licences_in(plain)


def _restricted(name: str) -> str:
    return f"LicenseRef-{name}-restricted"


def _licences_in(plain: str) -> set[str]:
    """Every licence whose text a plain text holds."""
    found = {
        f"{_GNU_NAMES[match['family']]}-{match['version'].replace(' ', '.')}"
        + ("" if match["version"] == "2 1" else ".0")
        + "-only"
        for match in _GNU_TITLE.finditer(plain)
    }
    starts: set[int] = set()
    for name, phrases in _TEXTS:
        places = [plain.find(f" {phrase} ") for phrase in phrases]
        if min(places) < 0 or places[0] in starts:
            continue  # or a text that holds this one's phrase too, and stands before it
        starts.add(places[0])
        after = plain[min(places) :]
        if name == "MIT-0":
            found.add("MIT" if _MIT_NOTICE in after[:3000] else "MIT-0")
        elif name == "0BSD":
            found.add("ISC" if _ISC_NOTICE in after[:1500] else "0BSD")
        elif name == "BSD-1-Clause":
            found.add(_bsd(after[:4000]))
        else:
            found.add(name)
    return found


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
_HINTS = ("icen", "ICEN", "ublic domain")  # no header is without one of these
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
    """The licence that a source file's first lines state, or None.

    An `SPDX-License-Identifier` counts before anything else; then the phrases that headers use.
    """
    head = text[:HEAD_CHARACTERS]
    if not any(hint in head for hint in _HINTS):
        return None
    if match := _SPDX.search(head):
        expression = licences.normalise(match[1].strip().strip("-").strip())
        if expression is not None:
            return expression
    plain = _plain(head)
    if " licen" not in plain and " public domain" not in plain:
        return None
    places = [(found.start(), name) for rule, name in _COMPILED if (found := rule.search(plain))]
    if (at := plain.find("redistributions of source code must retain")) >= 0 and not places:
        places = [(at, _bsd(plain))]
    if not places:
        return None
    at, name = min(places)
    around = plain[max(0, at - 300) : at + 1500]
    return _restricted(name) if _RESTRICTIONS.search(around) else name
