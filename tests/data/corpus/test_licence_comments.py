"""Licence comments at the head of files: where they end, and near-duplicates without them."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from codecria.data.corpus import licence_comments, near, shingles
from codecria.data.corpus.near import Near

LICENCE = [
    "Copyright 2020 The Authors. All rights reserved.",
    "",
    'Licensed under the Apache License, Version 2.0 (the "License");',
    "you may not use this file except in compliance with the License.",
    "You may obtain a copy of the License at",
    "",
    "    http://www.apache.org/licenses/LICENSE-2.0",
    "",
    "Unless required by applicable law or agreed to in writing, software",
    'distributed under the License is distributed on an "AS IS" BASIS,',
    "WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.",
    "See the License for the specific language governing permissions and",
    "limitations under the License.",
]


def marked(mark: str) -> str:
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in LICENCE)


HASH, SLASHES = marked("#"), marked("//")
BLOCK = "/*\n" + marked(" *") + " */\n"
BODY = "int f(int x) { return x + 1; }\n"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (HASH, "import os\n"),
        ("#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n" + HASH, "import os\n"),
        (HASH + "\n", '"""What this does."""\nimport os\n'),
        (SLASHES, BODY),
        (SLASHES + "\n", "#include <stdio.h>\n" + BODY),
        (SLASHES, "#include <stdio.h>\n" + BODY),
        (BLOCK, "\n// What this does.\n" + BODY),
        ("// Copyright 2020 Somebody\n\n" + BLOCK, BODY),
        ("<?php\n" + BLOCK, "echo 1;\n"),
        ("<!--\n" + marked("") + "-->\n", "<p>Text</p>\n"),
        (marked("--"), "SELECT 1;\n"),
        ("\ufeff" + HASH, "import os\n"),
    ],
)
def test_the_comment_ends_where_the_file_begins(head: str, body: str) -> None:
    end = licence_comments.end(head + body)
    assert (head + body)[end:].strip() == body.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        BODY,
        "# What this does.\nimport os\n",
        "# What this does.\n\n# Copyright 2020\nimport os\n",
        HASH,
        "import os\n" + HASH,
        "/* License: an open comment\n" + BODY,
    ],
)
def test_other_comments_and_files_that_are_all_comment_stay(text: str) -> None:
    assert licence_comments.end(text) == 0


def test_a_column_without_licences_is_the_same_object() -> None:
    texts = shingles.column([BODY, "x = 1"])
    assert licence_comments.without(texts) is texts


@pytest.mark.parametrize("header", [HASH, SLASHES, BLOCK])
def test_short_distinct_files_that_share_a_licence_are_not_near_duplicates(header: str) -> None:
    draw = random.Random(7)
    words = [f"name{i}" for i in range(400)]
    bodies = [" ".join(draw.choices(words, k=draw.randrange(12, 60))) + "\n" for _ in range(60)]
    chosen = Near()
    with_header = near.gram_sets(shingles.column([header + body for body in bodies]), chosen)
    for one in range(60):
        for other in range(one):
            assert near.jaccard(with_header[one], with_header[other]) < chosen.threshold
    alone = near.gram_sets(shingles.column(bodies), chosen)
    assert all((a == b).all() for a, b in zip(with_header, alone, strict=True))


def test_copies_under_different_licences_are_near_duplicates() -> None:
    body = " ".join(f"word{i}" for i in range(80))
    first, second = near.gram_sets(
        pa.array([HASH + body, "# Copyright 1999 Others\n# License: MIT\n" + body]), Near()
    )
    assert near.jaccard(first, second) == 1
