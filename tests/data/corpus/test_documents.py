"""Sources to documents: what is found, what is passed over and why, and that nothing is lost."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.corpus import documents, languages, sources, units
from codecria.data.corpus.documents import Document, Rejected
from codecria.data.corpus.reasons import Reason
from codecria.data.corpus.sources import Source
from codecria.data.corpus.units import InputFile, Unit
from codecria.data.corpus.walk import Skip
from codecria.data.errors import UsageError, UserError


def plant(folder: Path, files: dict[str, str | bytes]) -> Source:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Source(name="src", path=folder)


def look(source: Source, max_bytes: int = 1 << 20) -> tuple[dict[str, Document], dict[str, Reason]]:
    """(documents by path, reasons by path) of everything in a source."""
    good: dict[str, Document] = {}
    bad: dict[str, Reason] = {}
    for found in sources.scan(source, max_bytes=max_bytes):
        if isinstance(found, Skip):
            bad[found.relative] = found.reason
            continue
        for unit in units.split(found, unit_bytes=1 << 20):
            for item in documents.read(unit):
                name = item.id.removeprefix(f"{source.name}/")
                if isinstance(item, Rejected):
                    bad[name] = item.reason
                else:
                    good[name] = item
    return good, bad


def lines_file(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_units(path: Path, unit_bytes: int) -> list[Document | Rejected]:
    (file,) = sources.scan(Source(name="s", path=path), max_bytes=1 << 20)
    assert isinstance(file, InputFile)
    return [
        item for unit in units.split(file, unit_bytes=unit_bytes) for item in documents.read(unit)
    ]


def test_every_file_of_a_tree_is_a_document_or_has_a_reason(tmp_path: Path) -> None:
    tree: dict[str, str | bytes] = {
        "a.py": "x = 1\n",
        "pkg/b.rs": "fn main() {}\n",
        "pkg/Makefile": "all:\n",
        "bin/tool": "#!/usr/bin/env python3\nprint()\n",
        "bin/blob": "no language\n",
        "lib.min.js": "x",
        "msg_pb2.py": "x",
        "package-lock.json": "{}",
        "photo.png": b"\x89PNG\0",
        "nul.py": b"x = '\0'\n",
        "latin.py": "# caf\xe9\n".encode("latin-1"),
        "rows.jsonl": "{}\n",
        "huge.py": "x" * 2000,
        ".git/config": "[core]\n",
        ".hidden/x.py": "x\n",
        "__pycache__/a.py": "x\n",
        "node_modules/m/index.js": "x\n",
        "env/pyvenv.cfg": "home=\n",
        "env/lib/x.py": "x\n",
    }
    good, bad = look(plant(tmp_path, tree), max_bytes=1000)
    assert sorted(good) == ["a.py", "bin/tool", "pkg/Makefile", "pkg/b.rs"]
    assert good["bin/tool"].metadata.language == "Python"
    assert bad == {
        "bin/blob": Reason.LANGUAGE_UNKNOWN,
        "lib.min.js": Reason.MINIFIED,
        "msg_pb2.py": Reason.GENERATED,
        "package-lock.json": Reason.GENERATED,
        "photo.png": Reason.LANGUAGE_UNKNOWN,
        "nul.py": Reason.BINARY,
        "latin.py": Reason.UNDECODABLE,
        "rows.jsonl": Reason.RECORDS_AMONG_CODE,
        "huge.py": Reason.TOO_LARGE,
        ".git/": Reason.VERSION_CONTROL,
        ".hidden/": Reason.HIDDEN,
        "__pycache__/": Reason.CACHE,
        "node_modules/": Reason.VENDORED,
        "env/": Reason.VENDORED,
    }


def test_gitignore_files_rule_their_folders_and_inner_ones_win(tmp_path: Path) -> None:
    tree: dict[str, str | bytes] = {
        ".gitignore": "*.gen.py\nout/\n/top.py\n!\n",  # the last is no pattern
        "top.py": "x",
        "a.gen.py": "x",
        "sub/top.py": "x",
        "sub/.gitignore": "!keep.gen.py\n",
        "sub/keep.gen.py": "x",
        "sub/drop.gen.py": "x",
        "out/x.py": "x",
    }
    good, bad = look(plant(tmp_path, tree))
    assert sorted(good) == ["sub/keep.gen.py", "sub/top.py"]
    ignored = sorted(name for name, reason in bad.items() if reason is Reason.IGNORED)
    assert ignored == ["a.gen.py", "out/", "sub/drop.gen.py", "top.py"]


def test_links_and_special_files_cannot_trap_the_walk(tmp_path: Path) -> None:
    source = plant(tmp_path, {"a.py": "x\n"})
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.py").symlink_to(tmp_path / "gone.py")
    os.mkfifo(tmp_path / "pipe.py")
    good, bad = look(source)
    assert sorted(good) == ["a.py"]
    assert bad == {
        "loop/": Reason.LINKED_FOLDER,
        "dangling.py": Reason.UNREADABLE,
        "pipe.py": Reason.SPECIAL,
    }


def test_a_folder_of_records_without_programs_is_a_data_set(tmp_path: Path) -> None:
    row = json.dumps({"text": "words"}) + "\n"
    source = plant(
        tmp_path,
        {"README.md": "data\n", "b/1.jsonl": row, "a.jsonl.gz": gzip.compress(row.encode())},
    )
    good, bad = look(source)
    assert (sorted(good), bad) == (
        ["a.jsonl.gz:1", "b/1.jsonl:1"],
        {"README.md": Reason.BESIDE_RECORDS},
    )


def test_file_names_that_are_not_text_stay_apart_and_encodable(tmp_path: Path) -> None:
    names = [b"caf\xe9.py", b"caf\xe8.py"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x = 1\n")
    good, _ = look(Source(name="s", path=tmp_path))
    assert len(good) == 2
    "".join(good).encode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfx = 1\n", "x = 1\n"),
        ("x = 'é'\n".encode("utf-16"), "x = 'é'\n"),
        ("x\n".encode("utf-16-be"), Reason.BINARY),  # no mark, so only its NULs are seen
        (b"\xfe\xff\0x\0\n", "x\n"),
        (b"a\r\nb\r\n", "a\r\nb\r\n"),
        (b"caf\xe9", Reason.UNDECODABLE),
        (b"a\0b", Reason.BINARY),
        ("a\0b".encode("utf-16"), Reason.BINARY),
        (b"\xff\xfea", Reason.UNDECODABLE),
        (b"", ""),
    ],
)
def test_bytes_decode_by_their_mark_or_as_utf8_or_say_why_not(
    data: bytes, expected: str | Reason
) -> None:
    assert documents.decode(data) == expected


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_utf8_with_and_without_a_mark_and_utf16_decode_to_the_same_text(text: str) -> None:
    plain = text.removeprefix("\ufeff")
    assert documents.decode(b"\xef\xbb\xbf" + plain.encode()) == plain
    assert documents.decode(plain.encode("utf-16")) == plain


def test_a_notebook_gives_its_code_cells_in_its_kernels_language(tmp_path: Path) -> None:
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# title"]},
            {"cell_type": "code", "source": ["x <- 1\n", "x"], "outputs": [{"data": "big"}]},
            {"cell_type": "code", "source": ""},
            {"cell_type": "code", "source": "y <- 2"},
        ],
        "metadata": {"kernelspec": {"language": "R"}},
    }
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["print(1)"]}]}]}
    good, bad = look(
        plant(
            tmp_path,
            {"n.ipynb": json.dumps(notebook), "old.ipynb": json.dumps(old), "bad.ipynb": "{"},
        )
    )
    assert good["n.ipynb"].text == "x <- 1\nx\n\ny <- 2\n"
    assert good["n.ipynb"].metadata.language == "R"
    assert good["old.ipynb"].text == "print(1)\n"
    assert good["old.ipynb"].metadata.language == "Python"
    assert bad == {"bad.ipynb": Reason.BAD_RECORD}


def test_bad_records_are_given_with_their_line_and_the_good_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\r\n'
        b"{broken\n"
        b"\n"
        b"[1]\n"
        b'{"text": 5}\n'
        b'{"other": "x"}\n'
        b'{"text": "a\\u0000b"}\n'
        b'{"text": "\\ud800"}\n'
        b'{"text": "caf\xe9"}\n'
        b'{"content": "two", "path": "a/b.go"}'
    )
    found = read_units(path, 1 << 20)
    assert [item.id for item in found] == [f"s/r.jsonl:{n}" for n in (1, 2, 4, 5, 6, 7, 8, 9, 10)]
    reasons = [item.reason if isinstance(item, Rejected) else item.text for item in found]
    assert reasons == [
        "one",
        Reason.BAD_RECORD,
        Reason.BAD_RECORD,
        Reason.BAD_RECORD,
        Reason.BAD_RECORD,
        Reason.BINARY,
        Reason.BAD_RECORD,
        Reason.UNDECODABLE,
        "two",
    ]
    last = found[-1]
    assert isinstance(last, Document)
    assert (last.metadata.language, last.metadata.path) == ("Go", "a/b.go")


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), max_size=30),
    unit_bytes=st.integers(1, 400),
    block_bytes=st.integers(1, 64),
    newline=st.booleans(),
)
def test_json_lines_give_the_same_documents_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    unit_bytes: int,
    block_bytes: int,
    newline: bool,
) -> None:
    path = tmp_path_factory.mktemp("cut") / "r.jsonl"
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    path.write_text(lines + "\n" * newline)
    whole = read_units(path, 1 << 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "BLOCK_BYTES", block_bytes)
        assert read_units(path, unit_bytes) == whole
    assert len(whole) == len(texts)


def test_compressed_and_utf16_records_read_as_the_plain_ones(tmp_path: Path) -> None:
    records = [{"text": f"line {i} é"} for i in range(50)]
    plain = lines_file(tmp_path / "a.jsonl", records)
    data = plain.read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data[:99]) + gzip.compress(data[99:]))
    with pa.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as stream:
        stream.write(data)
    (tmp_path / "d.jsonl").write_bytes(data.decode().encode("utf-16"))
    texts = [
        [item.text for item in read_units(tmp_path / name, 100) if isinstance(item, Document)]
        for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.jsonl")
    ]
    assert texts[0] == [record["text"] for record in records]
    assert texts[1:] == [texts[0]] * 3


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_archive_gives_what_is_readable_and_one_reason(
    tmp_path: Path, suffix: str
) -> None:
    noise = [{"text": os.urandom(40).hex()} for _ in range(30_000)]
    data = lines_file(tmp_path / "a.jsonl", noise).read_bytes()
    path = tmp_path / f"t.jsonl.{suffix}"
    with pa.CompressedOutputStream(str(path), {"gz": "gzip", "zst": "zstd"}[suffix]) as stream:
        stream.write(data)
    path.write_bytes(path.read_bytes()[:-5000])
    *good, last = read_units(path, 1 << 20)
    assert good
    assert all(isinstance(item, Document) for item in good)
    assert isinstance(last, Rejected)
    assert last.reason is Reason.TRUNCATED
    assert last.id == f"s/{path.name}:{len(good) + 1}"


def test_parquet_rows_are_numbered_through_however_groups_are_split(tmp_path: Path) -> None:
    path = tmp_path / "the-stack.parquet"
    table = pa.table(
        {
            "content": [f"int x{i};" for i in range(10)],
            "lang": ["C++"] * 10,
            "ext": ["cpp"] * 10,
            "max_stars_repo_path": [f"src/{i}.cpp" for i in range(10)],
            "max_stars_repo_name": ["me/it"] * 10,
            "max_stars_repo_licenses": [["MIT", "Apache-2.0"]] * 10,
            "unused": list(range(10)),
        }
    )
    pq.write_table(table, path, row_group_size=3)
    whole, pieces = read_units(path, 1 << 30), read_units(path, 1)
    assert whole == pieces
    assert [item.id for item in whole] == [f"s/the-stack.parquet:{n}" for n in range(1, 11)]
    first = whole[0]
    assert isinstance(first, Document)
    assert first.metadata == documents.Metadata(
        source="s", path="me/it/src/0.cpp", language="C++", licence="Apache-2.0 AND MIT"
    )


def test_parquet_that_is_broken_or_without_text_is_one_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    (item,) = read_units(broken, 1 << 20)
    assert isinstance(item, Rejected)
    assert item.reason is Reason.TRUNCATED
    ids = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"blob_id": ["a"], "path": ["b"]}), ids)
    (item,) = read_units(ids, 1 << 20)
    assert isinstance(item, Rejected)
    assert (item.id, item.reason) == ("s/ids.parquet", Reason.BAD_RECORD)
    assert "only blob_id, path: The Stack v2" in item.detail
    pq.write_table(pa.table({"code": ["a"], "path": ["b"]}), ids)
    (item,) = read_units(ids, 1 << 20)
    assert isinstance(item, Rejected)
    assert "rename the column" in item.detail


def test_parquet_columns_of_other_types_are_read_or_named(tmp_path: Path) -> None:
    letters = pa.py_buffer(b"fine" + b"caf\xe9")
    offsets = pa.array([0, 4, 8], pa.int32()).buffers()[1]
    columns = {
        "mixed": pa.StringArray.from_buffers(2, offsets, letters),
        "binary": pa.array([b"fine", b"caf\xe9"]),
        "dictionary": pa.array(["fine", None]).dictionary_encode(),
        "numbers": pa.array([1, 2]),
    }
    found = {}
    for name, column in columns.items():
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
        found[name] = [
            item.text if isinstance(item, Document) else item.reason
            for item in read_units(tmp_path / f"{name}.parquet", 1 << 20)
        ]
    assert found == {
        "mixed": ["fine", Reason.UNDECODABLE],
        "binary": ["fine", Reason.UNDECODABLE],
        "dictionary": ["fine", Reason.BAD_RECORD],
        "numbers": [Reason.BAD_RECORD] * 2,
    }


def test_a_line_too_long_to_hold_is_passed_over_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(units, "BLOCK_BYTES", 64)
    path = lines_file(tmp_path / "r.jsonl", [{"text": "a"}, {"text": "x" * 5000}, {"text": "b"}])
    first, second, third = read_units(path, 1 << 20)
    assert isinstance(second, Rejected)
    assert second.reason is Reason.TOO_LARGE
    assert (first.id, third.id) == ("s/r.jsonl:1", "s/r.jsonl:3")


def test_a_file_that_changes_between_scan_and_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x\n")
    (file,) = sources.scan(Source(name="s", path=path), max_bytes=100)
    assert isinstance(file, InputFile)
    path.write_text("longer\n")
    with pytest.raises(UserError, match="changed"):
        list(documents.read(Unit(file=file, start=0, stop=2, first=1, weight=2)))


def test_sources_are_named_after_their_folder_and_made_unique(tmp_path: Path) -> None:
    for name in ("a/src", "b/src", "c=d"):
        (tmp_path / name).mkdir(parents=True)
    arguments = [
        f"{tmp_path}/a/src",
        f"{tmp_path}/b/src",
        f"web={tmp_path}/b",
        f"{tmp_path}/c=d",
        "-",
    ]
    names = [source.name for source in sources.parse_sources(arguments)]
    assert names == ["src", "src-2", "web", "c=d", "stdin"]
    with pytest.raises(UsageError):
        sources.parse_sources([f"x={tmp_path}", f"x={tmp_path}"])
    with pytest.raises(UsageError):
        sources.parse_sources(["-", "-"])
    with pytest.raises(UserError, match="nowhere"):
        sources.parse_sources(["nowhere"])
    with pytest.raises(UserError) as named:
        sources.parse_sources(["src=0.5"])
    assert named.value.hint == "src=0.5 means: the source 0.5, called src"


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "Python"),
        ("Makefile", "Makefile"),
        ("x/Dockerfile.dev", "Dockerfile"),
        ("CMakeLists.txt", "CMake"),
        ("notes.txt", "Text"),
        ("a.spec.ts", "TypeScript"),
        ("X.CPP", "C++"),
        ("x.h", "C"),
        ("noext", None),
        ("a.tar.xz", None),
    ],
)
def test_a_path_tells_its_language(path: str, language: str | None) -> None:
    assert languages.by_path(path) == language


def test_language_names_are_taken_in_every_usual_spelling() -> None:
    typed = ["py", "cpp", "c-sharp", "C#", ".rs", "golang", "JavaScript"]
    assert languages.parse_languages(typed) == ("C#", "C++", "Go", "JavaScript", "Python", "Rust")
    with pytest.raises(UsageError) as caught:
        languages.parse_languages(["pyhton"])
    assert "python" in caught.value.hint


def test_the_language_table_is_unambiguous() -> None:
    entries = json.loads(Path(languages.__file__).with_name("languages.json").read_text())
    assert len(entries) > 100
    for field in ("extensions", "filenames", "interpreters"):
        seen = [value for entry in entries.values() for value in entry.get(field, ())]
        assert len(seen) == len(set(seen)), sorted(v for v in seen if seen.count(v) > 1)
    aliases = [
        alias.casefold()
        for name, entry in entries.items()
        for alias in {name.casefold(), *map(str.casefold, entry.get("aliases", ()))}
    ]
    assert len(aliases) == len(set(aliases))


def test_git_files_above_and_beside_a_source_are_honoured(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            ".git/HEAD": "ref: refs/heads/main\n",
            ".git/info/exclude": "private.py\n",
            ".gitignore": "*.log.py\n/lib/build/\n",
            ".gitattributes": "lib/gen/* linguist-generated\n*.vend.py linguist-vendored=true\n",
            "LICENSE": "Apache License\nVersion 2.0, January 2004\n",
            "lib/a.py": "x = 1\n",
            "lib/a.log.py": "x = 1\n",
            "lib/private.py": "x = 1\n",
            "lib/build/b.py": "x = 1\n",
            "lib/gen/g.py": "x = 1\n",
            "lib/gen/kept/.gitattributes": "*.py -linguist-vendored -linguist-generated\n",
            "lib/gen/kept/k.vend.py": "x = 1\n",
            "lib/v.vend.py": "x = 1\n",
        },
    )
    good, bad = look(Source(name="src", path=tmp_path / "lib"))
    assert sorted(good) == ["a.py", "gen/kept/k.vend.py"]
    assert good["a.py"].metadata.licence == "Apache-2.0"
    assert bad == {
        "a.log.py": Reason.IGNORED,
        "private.py": Reason.IGNORED,
        "build/": Reason.IGNORED,
        "gen/g.py": Reason.GENERATED,
        "gen/kept/.gitattributes": Reason.LANGUAGE_UNKNOWN,
        "v.vend.py": Reason.VENDORED,
    } | {name: reason for name, reason in bad.items() if name.endswith(".gitattributes")}


def test_the_nearest_licence_counts_unless_the_file_tells_its_own(tmp_path: Path) -> None:
    source = plant(
        tmp_path,
        {
            "COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 2, June 1991\n",
            "a.c": "int a;\n",
            "own.c": "/* SPDX-License-Identifier: MIT */\nint b;\n",
            "lib/LICENSE.txt": "CC0 1.0 Universal\n",
            "lib/b.c": "int c;\n",
            "odd/LICENSE": "all mine\n",
            "odd/c.c": "int d;\n",
        },
    )
    good, _ = look(source)
    found = {name: document.metadata.licence for name, document in good.items()}
    assert {name: found[name] for name in ("a.c", "own.c", "lib/b.c", "odd/c.c")} == {
        "a.c": "GPL-2.0-only",
        "own.c": "MIT",
        "lib/b.c": "CC0-1.0",
        "odd/c.c": "GPL-2.0-only",
    }


COMPRESS = {"bz2": bz2.compress, "xz": lzma.compress, "gz": gzip.compress}


@pytest.mark.parametrize("ending", COMPRESS)
def test_records_are_read_from_every_compression_up_to_where_it_breaks(
    tmp_path: Path, ending: str
) -> None:
    lines = "".join(
        json.dumps({"text": f"x = {i} ** {i * 7919 % 1000}\n"}) + "\n" for i in range(9000)
    )
    whole = COMPRESS[ending](lines[: len(lines) // 2].encode()) + COMPRESS[ending](
        lines[len(lines) // 2 :].encode()
    )
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(whole)
    assert len(read_units(path, 1)) == 9000, "several members are one file"
    path.write_bytes(whole[: len(whole) * 9 // 10])
    *good, last = read_units(path, 1)
    assert all(isinstance(item, Document) for item in good)
    assert isinstance(last, Rejected)
    assert last.reason is Reason.TRUNCATED
    path.write_bytes(b"this is no archive")
    [bad] = read_units(path, 1)
    assert isinstance(bad, Rejected)


@pytest.mark.parametrize("ending", ["zst", "lz4"])
def test_arrows_own_compressions_are_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.ndjson.{ending}"
    with pa.CompressedOutputStream(str(path), {"zst": "zstd", "lz4": "lz4"}[ending]) as file:
        file.write(b'{"text": "x = 1"}\n' * 5)
    assert len(read_units(path, 1)) == 5


def test_the_columns_of_public_data_sets_are_known(tmp_path: Path) -> None:
    records: list[object] = [
        {  # Dolma
            "id": "7",
            "text": "x = 1\n",
            "source": "stack",
            "metadata": {"path": "a/b.rs", "language": "Rust", "license": "mit"},
        },
        {  # starcoderdata
            "id": 1,
            "content": "int a;\n",
            "max_stars_repo_path": "a.h",
            "max_stars_repo_name": "me/it",
            "max_stars_count": 3,
        },
        {  # The Stack v2, smol: text with detected licences
            "content": "x\n",
            "path": "/a.py",
            "repo_name": "me/it",
            "detected_licenses": ["MIT", "ISC"],
            "license_type": "permissive",
        },
        {"blob_id": "9f", "path": "/a.py", "repo_name": "me/it"},  # The Stack v2: ids alone
    ]
    *good, ids = read_units(lines_file(tmp_path / "rows.jsonl", records), 1 << 20)
    known = [item.metadata for item in good if isinstance(item, Document)]
    assert [(m.path, m.language, m.licence) for m in known] == [
        ("a/b.rs", "Rust", "MIT"),
        ("me/it/a.h", "C", None),
        ("me/it//a.py", "Python", "ISC AND MIT"),
    ]
    assert isinstance(ids, Rejected)
    assert "The Stack v2 lists ids alone" in ids.detail


def test_a_source_that_the_work_tree_around_it_ignores_is_read_all_the_same(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            ".git/HEAD": "ref: refs/heads/main\n",
            ".gitignore": "/versions/*\n",
            "LICENSE": "Apache License\nVersion 2.0, January 2004\n",
            "versions/3.11/lib/json/a.py": "x = 1\n",
        },
    )
    good, bad = look(Source(name="src", path=tmp_path / "versions/3.11/lib"))
    assert (sorted(good), bad) == (["json/a.py"], {})
    assert good["json/a.py"].metadata.licence is None


def test_zeros_in_an_archive_cost_nothing_and_damage_costs_only_its_member(tmp_path: Path) -> None:
    one, two = (
        "".join(json.dumps({"text": os.urandom(9).hex()}) + "\n" for _ in range(2000)).encode()
        for _ in range(2)
    )
    for ending, compress in COMPRESS.items():
        path = tmp_path / f"rows.jsonl.{ending}"
        padded = compress(one) + b"\0" * 700 + compress(two) + b"\0" * 5000
        path.write_bytes(padded)
        assert [type(item) for item in read_units(path, 1)] == [Document] * 4000, ending
        broken = bytearray(compress(one))
        broken[len(broken) // 3] ^= 0xFF
        path.write_bytes(compress(two) + bytes(broken) + compress(two))
        found = read_units(path, 1)
        texts = [item.text for item in found if isinstance(item, Document)]
        whole = [json.loads(line)["text"] for line in two.splitlines()]
        assert texts[:2000] == whole, ending
        assert texts[-2000:] == whole, ending
        *_, last = found
        assert isinstance(last, Rejected)
        assert last.reason is Reason.TRUNCATED


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "lz4"])
def test_of_a_truncated_archive_every_line_that_can_be_decoded_is_given(
    tmp_path: Path, suffix: str
) -> None:
    lines = [json.dumps({"text": os.urandom(40).hex()}) for _ in range(20_000)]
    data = "".join(line + "\n" for line in lines).encode()
    path = tmp_path / f"t.jsonl.{suffix}"
    if suffix in COMPRESS:
        path.write_bytes(COMPRESS[suffix](data))
    else:
        with pa.CompressedOutputStream(str(path), {"zst": "zstd", "lz4": "lz4"}[suffix]) as stream:
            stream.write(data)
    path.write_bytes(path.read_bytes()[:-3000])
    tool = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd", "lz4": "lz4"}[suffix]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is the oracle")
    decoded = subprocess.run([tool, "-dc", path], capture_output=True, check=False).stdout
    *_, last = found = read_units(path, 1 << 20)
    assert isinstance(last, Rejected)
    texts = [item.text for item in found if isinstance(item, Document)]
    assert texts == [json.loads(line)["text"] for line in lines[: len(texts)]]
    assert len(texts) >= decoded.count(b"\n")


def test_a_damaged_row_group_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"{i} {os.urandom(50).hex()}" for i in range(3000)]})
    pq.write_table(table, path, row_group_size=1000, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 200] = os.urandom(200)
    path.write_bytes(data)
    for unit_bytes in (1, 1 << 30):
        found = read_units(path, unit_bytes)
        numbers = [int(item.text.split()[0]) for item in found if isinstance(item, Document)]
        assert numbers == [*range(1000), *range(2000, 3000)]
        [lost] = [item for item in found if isinstance(item, Rejected)]
        assert (lost.id, lost.reason) == ("s/rows.parquet:1001", Reason.TRUNCATED)


POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def test_what_git_lfs_did_not_fetch_is_no_document(tmp_path: Path) -> None:
    files = {"a.py": POINTER, "b.ipynb": POINTER, "c.py": "# " + POINTER, "d.csv": POINTER}
    source = plant(tmp_path / "code", {**files})
    good, bad = look(source)
    assert sorted(good) == ["c.py"]
    assert bad == dict.fromkeys(["a.py", "b.ipynb", "d.csv"], Reason.LFS_POINTER)
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"):
        (tmp_path / name).write_text(POINTER)
        [item] = read_units(tmp_path / name, 1 << 20)
        assert isinstance(item, Rejected)
        assert item.reason is Reason.LFS_POINTER
    [item] = read_units(lines_file(tmp_path / "r.jsonl", [{"text": POINTER}]), 1 << 20)
    assert isinstance(item, Rejected)
    assert item.reason is Reason.LFS_POINTER
