"""Licences by their own texts, by headers, by columns; expressions against plain logic."""

from __future__ import annotations

import itertools
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.corpus import licence_files, licence_texts, licences
from codecria.data.corpus.licences import PERMISSIVE, Wanted
from codecria.data.errors import UsageError

MIT = """Copyright (c) 2020 Someone

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so{}.
"""
NOTICE = """, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software"""
BSD = """Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:
1. Redistributions of source code must retain the above copyright
   notice, this list of conditions and the following disclaimer.
"""
BINARY = "2. Redistributions in binary form must reproduce the above copyright notice.\n"
NAMES = "3. Neither the name may be used to endorse or promote products derived from it.\n"
ADVERTISING = "3. All advertising materials mentioning features must say so.\n"
ISC = """Permission to use, copy, modify, and/or distribute this software for any
purpose with or without fee is hereby granted{}."""
ISC_NOTICE = """, provided that the above copyright notice and this permission notice appear in
all copies"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MIT.format(NOTICE), "MIT"),
        (MIT.format(NOTICE).replace("\n", " ").upper(), "MIT"),
        ("> " + MIT.format(NOTICE).replace("\n", "\n> "), "MIT"),
        (MIT.format(""), "MIT-0"),
        (BSD, "BSD-1-Clause"),
        (BSD + BINARY, "BSD-2-Clause"),
        (BSD + BINARY + NAMES, "BSD-3-Clause"),
        (BSD + BINARY + ADVERTISING + NAMES, "BSD-4-Clause"),
        (ISC.format(ISC_NOTICE), "ISC"),
        (ISC.format(""), "0BSD"),
        ("Apache License\n   Version 2.0, January 2004\n", "Apache-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n", "GPL-3.0-only"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 2.1, February 1999\n", "LGPL-2.1-only"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3, 19 November 2007", "AGPL-3.0-only"),
        ("This is free and unencumbered software released into the public domain.", "Unlicense"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        (MIT.format(NOTICE) + BSD + BINARY, "BSD-2-Clause AND MIT"),
        ("All rights reserved.", None),
        ("", None),
    ],
)
def test_a_licence_is_told_by_its_own_phrases(text: str, expected: str | None) -> None:
    assert licence_texts.of_text(text) == expected


def test_licence_files_of_installed_packages_agree_with_what_they_declare() -> None:
    """An independent oracle: what a package declares as an SPDX expression, its file says too."""
    compared = 0
    for package in distributions():
        declared = licences.normalise(package.metadata.get("License-Expression") or "")
        files = [f for f in package.files or [] if licence_files.is_licence_file(f.name)]
        if declared is None or " " in declared or len(files) != 1:
            continue
        path = Path(str(files[0].locate()))
        found = licence_texts.of_text(path.read_text(errors="replace")) if path.is_file() else None
        if found is not None:
            compared += 1
            same = declared.removesuffix("-or-later").removesuffix("-only")
            names = found.split(" AND ")  # a file may go on with what is bundled
            assert any(name.startswith(same) for name in names), (package.name, declared, found)
    assert compared >= 5, f"only {compared} packages in {sys.prefix} could be compared"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# SPDX-License-Identifier: Apache-2.0\nimport os\n", "Apache-2.0"),
        (
            "/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */\n",
            "GPL-2.0-only WITH Linux-syscall-note",
        ),
        ("<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->", "MIT OR Apache-2.0"),
        ('// Licensed under the Apache License, Version 2.0 (the "License");\n', "Apache-2.0"),
        ("# Use of this source code is governed by a BSD-style\n# license that", "BSD-3-Clause"),
        (
            " * under the terms of the GNU General Public License as published by\n"
            " * the Free Software Foundation; either version 2 of the License, or\n"
            " * (at your option) any later version.\n",
            "GPL-2.0-or-later",
        ),
        (
            "# This Source Code Form is subject to the terms of the Mozilla Public\n"
            "# License, v. 2.0.",
            "MPL-2.0",
        ),
        ("print('license')\n", None),
        ("def f():\n    return 1\n", None),
    ],
)
def test_headers_tell_the_licence(text: str, expected: str | None) -> None:
    assert licence_texts.of_header(text) == expected


APACHE = "Apache License\n   Version 2.0, January 2004\n"
GPL = "GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n"
COMMONS = """"Commons Clause" License Condition v1.0
The Software is provided to you by the Licensor under the License, as defined below, subject to the
following condition. The grant of rights will not include the right to Sell the Software.
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (COMMONS + APACHE, "LicenseRef-Apache-2.0-restricted"),
        (APACHE + COMMONS, "LicenseRef-Apache-2.0-restricted"),
        (MIT.format(NOTICE) + "For non-commercial use only.", "LicenseRef-MIT-restricted"),
        (MIT.format(NOTICE) + "It may not be used for commercial purposes.", None),
        ("Free for personal use only.\n" + BSD + BINARY, "LicenseRef-BSD-2-Clause-restricted"),
        (MIT.format(NOTICE) + "The Software shall be used for Good, not Evil.", None),
        (MIT.format(NOTICE) + GPL, "GPL-3.0-only AND MIT"),
        (GPL + "\nThis product bundles the following.\n" + MIT.format(NOTICE), "GPL-3.0-only"),
        (MIT.format(NOTICE) + "\nThird-party licenses\n" + GPL, "MIT"),
        ("Third-party software\n" + MIT.format(NOTICE), None),
        ("for any purpose, commercial or non-commercial\n" + APACHE, "Apache-2.0"),
    ],
)
def test_restrictions_and_other_peoples_notices_are_not_the_plain_licence(
    text: str, expected: str | None
) -> None:
    found = licence_texts.of_text(text)
    if expected is not None or "Third-party" in text[:20]:
        assert found == expected
    assert not Wanted(names=PERMISSIVE).allows(found) or expected in ("MIT", "Apache-2.0")


def test_a_header_with_a_restriction_is_not_the_plain_licence() -> None:
    head = "# Licensed under the MIT License, for non-commercial use only.\n"
    assert licence_texts.of_header(head) == "LicenseRef-MIT-restricted"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"LICENSE.txt": GPL, "LICENSE-3RD-PARTY": MIT.format(NOTICE)}, "GPL-3.0-only"),
        ({"COPYING": GPL, "LICENSES.bundled": MIT.format(NOTICE)}, "GPL-3.0-only"),
        ({"LICENSE": GPL, "LICENSE.vendor": APACHE}, "GPL-3.0-only"),
        ({"LICENSE-THIRD-PARTY.md": MIT.format(NOTICE)}, None),
        ({"COPYING": GPL, "LICENSE-MIT": MIT.format(NOTICE)}, "GPL-3.0-only AND MIT"),
        ({"LICENSE-APACHE": APACHE, "LICENSE-MIT": MIT.format(NOTICE)}, "Apache-2.0 AND MIT"),
        (
            {
                "LICENSE": "It is available under the terms of either of the licenses found in"
                " LICENSE.APACHE or LICENSE.MIT.",
                "LICENSE.APACHE": APACHE,
                "LICENSE.MIT": MIT.format(NOTICE),
            },
            "Apache-2.0 OR MIT",
        ),
    ],
)
def test_all_licence_files_of_a_project_apply_and_third_parties_license_nothing(
    tmp_path: Path, files: dict[str, str], expected: str | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_files.licence_of(tmp_path, sorted(files)) == expected


COMMON = Path("/usr/share/common-licenses")


@pytest.mark.skipif(not COMMON.is_dir(), reason="no Debian, no texts of common licences")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("Apache-2.0", "Apache-2.0"), ("BSD", "BSD-3-Clause"), ("CC0-1.0", "CC0-1.0")),
        *(("GPL-2", "GPL-2.0-only"), ("GPL-3", "GPL-3.0-only"), ("MPL-2.0", "MPL-2.0")),
        *(("LGPL-2", "LGPL-2.0-only"), ("LGPL-2.1", "LGPL-2.1-only"), ("LGPL-3", "LGPL-3.0-only")),
    ],
)
def test_the_whole_texts_of_common_licences_are_the_plain_ones(name: str, expected: str) -> None:
    path = COMMON / name
    if not path.is_file():
        pytest.skip(f"this Debian has no {name}")
    assert licence_texts.of_text(path.read_text()) == expected


def test_an_spdx_line_counts_before_phrases_and_only_near_the_top() -> None:
    spdx = "# SPDX-License-Identifier: MIT\n"
    assert (
        licence_texts.of_header("# Licensed under the Apache License, Version 2.0\n" + spdx)
        == "MIT"
    )
    assert licence_texts.of_header("x = 1\n" * 2000 + spdx) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("mit", "MIT"),
        ("apache-2.0", "Apache-2.0"),
        ("Apache License 2.0", "Apache-2.0"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("gpl-3.0", "GPL-3.0-only"),
        ("mit or (apache-2.0 and bsd-3-clause)", "MIT OR (Apache-2.0 AND BSD-3-Clause)"),
        ("no-license", None),
        ("", None),
        ("My Own Terms", "My Own Terms"),
        ("MIT/Apache-2.0", "MIT OR Apache-2.0"),
        ("Apache-2.0 / MIT", "Apache-2.0 OR MIT"),
        ("MIT/X11", "MIT"),
        ("My/Own", "My/Own"),
        ("GPL v3 or MIT", "GPL-3.0-only OR MIT"),
        ("MIT OR GPL-2.0-only AND ISC", "MIT OR (GPL-2.0-only AND ISC)"),
        ("LicenseRef-mine AND MIT", "LicenseRef-mine AND MIT"),
    ],
)
def test_names_become_those_of_the_list(value: str, expected: str | None) -> None:
    assert licences.normalise(value) == expected


def test_several_licences_all_apply() -> None:
    assert licences.join(["MIT", "apache-2.0", "mit"]) == "Apache-2.0 AND MIT"
    assert licences.join(["MIT OR ISC", "0BSD"]) == "0BSD AND (MIT OR ISC)"
    assert licences.join(["no_license"]) is None


IDS = ("MIT", "GPL-2.0-only", "ISC", "MPL-2.0")
EXPRESSIONS = st.recursive(
    st.sampled_from(IDS),
    lambda inner: st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_an_expression_counts_as_plain_logic_does(expression: str) -> None:
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(IDS, n) for n in range(len(IDS) + 1)
    ):
        plain = expression
        for name in IDS:
            plain = plain.replace(name, str(name in chosen))
        wanted = Wanted(names=chosen)
        assert wanted.allows(expression) == eval(plain)
        assert wanted.allows(licences.normalise(expression)) == eval(plain)


def test_what_is_wanted_is_parsed_and_misspellings_are_named() -> None:
    assert licences.parse_wanted("any") is None
    assert licences.parse_wanted("permissive") == Wanted(
        names=tuple(sorted(PERMISSIVE, key=str.casefold))
    )
    some = licences.parse_wanted("mit, gplv3,unknown")
    assert some == Wanted(names=("GPL-3.0-only", "MIT", "unknown"))
    assert some.allows(None)
    assert some.allows("MIT WITH Some-exception")
    assert some.allows("GPL-3.0")
    assert not some.allows("MIT AND ISC")
    assert not some.allows("(MIT")
    assert not Wanted(names=("MIT",)).allows(None)
    with pytest.raises(UsageError, match="no licence is called 'apche'") as caught:
        licences.parse_wanted("apche-2.0".replace("-2.0", ""))
    assert "Apache" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LICENSE", True),
        ("licence.txt", True),
        ("COPYING.LESSER", True),
        ("LICENSE-MIT", True),
        ("UNLICENSE", True),
        ("license.py", False),
        ("licenses.json", False),
        ("LICENSING_NOTES", False),
        ("readme.md", False),
    ],
)
def test_licence_files_are_known_by_their_names(name: str, expected: bool) -> None:
    assert licence_files.is_licence_file(name) == expected
