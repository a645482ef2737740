"""Licences by their own texts, by headers, by columns; expressions against plain logic."""

from __future__ import annotations

import itertools
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.corpus import licences
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
        (MIT.format(NOTICE) + BSD + BINARY, "MIT"),
        ("All rights reserved.", None),
        ("", None),
    ],
)
def test_a_licence_is_told_by_its_own_phrases(text: str, expected: str | None) -> None:
    assert licences.of_text(text) == expected


def test_licence_files_of_installed_packages_agree_with_what_they_declare() -> None:
    """An independent oracle: what a package declares as an SPDX expression, its file says too."""
    compared = 0
    for package in distributions():
        declared = licences.normalise(package.metadata.get("License-Expression") or "")
        files = [f for f in package.files or [] if licences.is_licence_file(f.name)]
        if declared is None or " " in declared or len(files) != 1:
            continue
        path = Path(str(files[0].locate()))
        found = licences.of_text(path.read_text(errors="replace")) if path.is_file() else None
        if found is not None:
            compared += 1
            same = declared.removesuffix("-or-later").removesuffix("-only")
            assert found.startswith(same), f"{package.name}: {declared}, its file says {found}"
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
    assert licences.of_header(text) == expected


def test_an_spdx_line_counts_before_phrases_and_only_near_the_top() -> None:
    spdx = "# SPDX-License-Identifier: MIT\n"
    assert licences.of_header("# Licensed under the Apache License, Version 2.0\n" + spdx) == "MIT"
    assert licences.of_header("x = 1\n" * 2000 + spdx) is None


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
    assert licences.is_licence_file(name) == expected
