"""Folders that hold odd things: whatever it is, the walk ends, and counts it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from codecria.data.corpus import documents, units
from codecria.data.corpus.documents import Document, Rejected
from codecria.data.corpus.reasons import Reason
from codecria.data.corpus.sources import Source, parse_sources, scan
from codecria.data.corpus.units import InputFile
from codecria.data.corpus.walk import Skip
from codecria.data.errors import UserError


def found(source: Source) -> tuple[list[str], dict[str, Reason]]:
    """(paths read, reasons by path skipped) of a source."""
    read, skipped = [], {}
    for entry in scan(source, max_bytes=1 << 20):
        if isinstance(entry, Skip):
            skipped[entry.relative] = entry.reason
        else:
            read.append(entry.relative)
    return read, skipped


def text(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x = 1\n")
    return path


def test_entries_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "src"
    text(source / "a.py")
    links = {
        "itself.py": "itself.py",
        "one.py": "two.py",
        "two.py": "one.py",
        "through.py": "a.py/below.py",
        "nowhere.py": "gone.py",
        "long.py": "n" * 300,
        "deep.py": "/".join(["n" * 200] * 20),
        "loop": ".",
        "LICENSE": "LICENSE",
        ".gitignore": ".gitignore",
    }
    for name, target in links.items():
        (source / name).symlink_to(target)
    os.mkfifo(source / "pipe.py")
    os.mkfifo(source / "COPYING")  # opening it would wait for ever
    listening = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(source)  # the name of a socket is at most 108 bytes long
    listening.bind("socket.py")
    os.chdir(here)
    read, skipped = found(Source(name="s", path=source))
    listening.close()
    assert read == ["a.py"]
    assert skipped == {
        **{name: Reason.UNREADABLE for name in links if name != "loop"},
        "loop/": Reason.LINKED_FOLDER,
        "pipe.py": Reason.SPECIAL,
        "COPYING": Reason.SPECIAL,
        "socket.py": Reason.SPECIAL,
    }


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """As somebody whom permissions bind, also where the tests run as root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_what_permissions_close_is_skipped_and_counted() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        text(folder / "a.py")
        for closed, mode in (("closed", 0), ("unlisted", 0o444)):
            text(folder / closed / "b.py").parent.chmod(mode)
        text(folder / "secret.py").chmod(0)
        text(folder / "LICENSE").chmod(0)
        text(folder / ".gitignore").chmod(0)
        with ordinary_user():
            read, skipped = found(Source(name="s", path=folder))
            secret = next(
                file
                for file in scan(Source(name="s", path=folder), max_bytes=100)
                if isinstance(file, InputFile) and file.relative == "secret.py"
            )
            [unit] = units.split(secret, unit_bytes=100)
            [item] = documents.read(unit)
        for closed in ("closed", "unlisted"):
            (folder / closed).chmod(0o755)
    assert read == ["LICENSE", "a.py", "secret.py"]
    assert skipped == {
        ".gitignore": Reason.LANGUAGE_UNKNOWN,
        "closed/": Reason.UNREADABLE,
        "unlisted/b.py": Reason.UNREADABLE,
    }
    assert isinstance(item, Rejected)
    assert item.reason is Reason.UNREADABLE


def test_files_that_vanish_after_the_scan_are_counted(tmp_path: Path) -> None:
    text(tmp_path / "a.py")
    text(tmp_path / "b.py")
    files = list(scan(Source(name="s", path=tmp_path), max_bytes=100))
    (tmp_path / "a.py").unlink()
    items = [
        item
        for file in files
        if isinstance(file, InputFile)
        for unit in units.split(file, unit_bytes=100)
        for item in documents.read(unit)
    ]
    assert [isinstance(item, Document) or item.reason for item in items] == [
        Reason.UNREADABLE,
        True,
    ]


def test_folders_may_lie_deeper_than_pythons_stack(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("k.py", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    read, skipped = found(Source(name="s", path=tmp_path))
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own removal recurses
    assert (read, skipped) == (["d/" * 1500 + "k.py"], {})


def test_links_out_of_a_source_are_read_only_on_request(tmp_path: Path) -> None:
    source, outside = tmp_path / "src", tmp_path / "outside"
    text(source / "own/a.py")
    text(outside / "b.py")
    text(outside / "tree/c.py")
    (outside / "tree/back").symlink_to(source)
    (outside / "tree/round").symlink_to(outside / "tree")
    (source / "inside.py").symlink_to("own/a.py")
    (source / "same").symlink_to("own")
    (source / "file.py").symlink_to(outside / "b.py")
    (source / "folder").symlink_to(outside / "tree")
    (source / "twice").symlink_to(outside / "tree")
    (source / "above").symlink_to(tmp_path)
    (source / "chain.py").symlink_to("file.py")
    read, skipped = found(Source(name="s", path=source))
    assert read == ["inside.py", "own/a.py"]
    assert skipped == {
        "above/": Reason.LINKED_FOLDER,
        "chain.py": Reason.LINKED_OUTSIDE,
        "file.py": Reason.LINKED_OUTSIDE,
        "folder/": Reason.LINKED_FOLDER,
        "same/": Reason.LINKED_FOLDER,
        "twice/": Reason.LINKED_FOLDER,
    }
    read, skipped = found(Source(name="s", path=source, follow_links=True))
    assert read == ["chain.py", "file.py", "folder/c.py", "inside.py", "own/a.py"]
    assert skipped == {
        "above/": Reason.LINKED_FOLDER,
        "folder/back/": Reason.LINKED_FOLDER,
        "folder/round/": Reason.LINKED_FOLDER,
        "same/": Reason.LINKED_FOLDER,
        "twice/": Reason.LINKED_FOLDER,
    }


def test_a_source_that_is_a_link_is_read_as_what_it_leads_to(tmp_path: Path) -> None:
    text(tmp_path / "real/a.py")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "a.py").symlink_to("real/a.py")
    assert found(Source(name="s", path=tmp_path / "link")) == (["a.py"], {})
    assert found(Source(name="s", path=tmp_path / "a.py")) == (["a.py"], {})


@pytest.mark.parametrize("name", ["loop", "n" * 300, "file/below", "a\0b"])
def test_a_source_that_cannot_be_read_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"no such|cannot read"):
        parse_sources([str(tmp_path / name)])
    with pytest.raises(UserError, match=r"no such|cannot read"):
        parse_sources([f"name={tmp_path / name}"])


def test_the_output_is_no_part_of_its_source(tmp_path: Path) -> None:
    text(tmp_path / "a.py")
    text(tmp_path / "out/b.py")
    source = Source(name="s", path=tmp_path, without=tmp_path / "out")
    assert found(source) == (["a.py"], {})
